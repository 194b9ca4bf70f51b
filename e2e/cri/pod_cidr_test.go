package cri

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// own is what the node's configuration says.
const own = "10.88.0.0/16,fd00:88::/64"

// tell says which addresses the node's pods should have, as the kubelet does.
func tell(t *testing.T, cidr string) error {
	t.Helper()
	config := &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}
	return lab.Node().UpdateRuntimeConfig(lab.Context(t), config)
}

// renumbered takes the census of a node that was told what its configuration says, and tells it so again in the end.
func renumbered(t *testing.T) {
	t.Helper()
	lab.Image(t, "clockwork:1")
	back := func() {
		if err := tell(t, own); err != nil {
			t.Error(err)
		}
	}
	back()
	lab.Clean(t, lab.Node())
	t.Cleanup(back)
}

func addresses(t *testing.T, p *lab.Pod) string {
	t.Helper()
	network := sandboxStatus(t, p.ID).Network
	all := []string{network.Ip}
	for _, more := range network.AdditionalIps {
		all = append(all, more.Ip)
	}
	return strings.Join(all, ",")
}

// New pods get addresses of the node's share of the pod network, also after a restart; those that are there keep theirs
// and stay connected.
func TestPodCidrIsHonoured(t *testing.T) {
	n := lab.Node()
	renumbered(t)
	old := lab.RunPod(t)
	before := addresses(t, old)
	old.Run("count", "exec clockwork count")
	old.Run("serve", "exec clockwork serve")
	asker := old.Run("asker", sleeper)
	for range 2 {
		if err := tell(t, "10.244.3.0/24,fd00:244:3::/64"); err != nil {
			t.Fatal(err)
		}
	}
	for _, moment := range []string{"told", "restarted"} {
		if moment == "restarted" {
			n.Kill()
			if err := n.Start(lab.Context(t)); err != nil {
				t.Fatal(err)
			}
		}
		p := lab.RunPod(t)
		if got := addresses(t, p); !strings.HasPrefix(got, "10.244.3.") || !strings.Contains(got, ",fd00:244:3::") {
			t.Errorf("%s: a new pod has %s", moment, got)
		}
		p.Run("count", "exec clockwork count")
		p.Run("serve", "exec clockwork serve")
		other := p.Run("asker", sleeper)
		if now := addresses(t, old); now != before {
			t.Errorf("%s: the old pod's addresses %s became %s", moment, before, now)
		}
		for _, to := range strings.Split(before, ",") {
			get(t, to)
			if got := other.Sh("wget -q -O - http://" + bracketed(to) + ":8080/"); !strings.Contains(got, "count") {
				t.Errorf("%s: from the new pod to %s: %q", moment, to, got)
			}
		}
		for _, to := range strings.Split(addresses(t, p), ",") {
			get(t, to)
			if got := asker.Sh("wget -q -O - http://" + bracketed(to) + ":8080/"); !strings.Contains(got, "count") {
				t.Errorf("%s: from the old pod to %s: %q", moment, to, got)
			}
		}
	}
}

func bracketed(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}

// The bridge and nft's rules have nothing left of an earlier subnet when its last pod goes, also one of an earlier daemon.
func TestSubnetsWithoutPodsAreForgotten(t *testing.T) {
	n := lab.Node()
	renumbered(t)
	for _, restarted := range []bool{false, true} {
		if err := tell(t, "10.244.4.0/24"); err != nil {
			t.Fatal(err)
		}
		p := lab.RunPod(t)
		if got := addresses(t, p); strings.Contains(got, ",") || !strings.HasPrefix(got, "10.244.4.") {
			t.Errorf("a pod has %s", got)
		}
		if err := tell(t, own); err != nil {
			t.Fatal(err)
		}
		if restarted {
			n.Kill()
			if err := n.Start(lab.Context(t)); err != nil {
				t.Fatal(err)
			}
		}
		if state := addressing(t); !strings.Contains(state, "10.88.0.1/16") || !strings.Contains(state, "10.244.4.1/24") {
			t.Errorf("with a pod in 10.244.4: %s", state)
		}
		p.Remove()
		eventually(t, "nothing is left of 10.244.4", func() bool {
			state := addressing(t)
			return strings.Contains(state, "10.88.0.1/16") && !strings.Contains(state, "10.244.")
		})
	}
}

// addressing is what the kernel knows of the bridge's subnets.
func addressing(t *testing.T) string {
	t.Helper()
	links, err := exec.Command("ip", "addr", "show", lab.Node().Bridge).Output()
	rules, failed := exec.Command("nft", "list", "ruleset").Output()
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return string(links) + string(rules)
}

func TestPodCidrsThatCannotBe(t *testing.T) {
	renumbered(t)
	for _, none := range []string{
		"x", ",", "10.244.0.0", "10.244.0.0/33", "10.244.0.1/24", "10.244.0.0/24,10.245.0.0/24", "127.0.0.0/8", "fd00::/128",
		"10.244.0.0/24;", strings.Repeat("9", 1<<20),
	} {
		wantCode(t, fmt.Sprintf("%.40q", none), tell(t, none), codes.InvalidArgument, "runtime_config.network_config.pod_cidr")
	}
	wantCode(t, "no IPv4", tell(t, "fd00:244::/64"), codes.FailedPrecondition, "fd00:244::/64", "[cni]")
	if output, err := exec.Command("ip", "addr", "add", "10.245.0.9/24", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%s", output)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", "10.245.0.9/24", "dev", "lo").Run() })
	wantCode(t, "in use", tell(t, "10.245.0.0/24"), codes.FailedPrecondition, "10.245.0.0/24 is in use", "10.245.0.9")
	if err := tell(t, ""); err != nil { // nothing changes
		t.Error(err)
	}
	// An old pod's address cannot become the bridge's.
	if err := tell(t, "10.246.0.0/29"); err != nil {
		t.Fatal(err)
	}
	ip := addresses(t, lab.RunPod(t))
	base := strings.TrimSuffix(ip, ".2")
	if base == ip {
		t.Fatalf("the first pod has %s", ip)
	}
	for range 2 { // the third pod has .4, which begins no subnet, but .5 is the first of 10.246.0.4/30
		lab.RunPod(t)
	}
	fourth := lab.RunPod(t)
	if got := addresses(t, fourth); got != base+".5" {
		t.Fatalf("the fourth pod has %s", got)
	}
	wantCode(t, "a pod's address", tell(t, base+".4/30"), codes.FailedPrecondition, base+".5", "remove that pod")
	lab.RunPod(t)
}
