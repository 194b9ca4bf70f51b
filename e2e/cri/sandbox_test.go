package cri

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func sandboxStatus(t *testing.T, id string) *runtimeapi.PodSandboxStatus {
	t.Helper()
	response, err := lab.Node().PodSandboxStatus(lab.Context(t), id, false)
	if err != nil {
		t.Fatalf("PodSandboxStatus %s: %v", id, err)
	}
	return response.Status
}

func TestSandboxStatusEchoesTheRequest(t *testing.T) {
	began := time.Now().UnixNano()
	p := pod(t)
	got := sandboxStatus(t, p.ID)
	if !proto.Equal(got.Metadata, p.Config.Metadata) {
		t.Errorf("metadata = %v, want %v", got.Metadata, p.Config.Metadata)
	}
	if got.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("state = %v", got.State)
	}
	if got.CreatedAt < began || got.CreatedAt > time.Now().UnixNano() {
		t.Errorf("created at %d, want between %d and now", got.CreatedAt, began)
	}
	if !maps.Equal(got.Labels, p.Config.Labels) || !maps.Equal(got.Annotations, p.Config.Annotations) {
		t.Errorf("labels %v annotations %v", got.Labels, got.Annotations)
	}
	want := p.Config.Linux.SecurityContext.NamespaceOptions
	if !proto.Equal(got.Linux.GetNamespaces().GetOptions(), want) {
		t.Errorf("namespace options = %v, want %v", got.Linux.GetNamespaces().GetOptions(), want)
	}
	first, err := netip.ParseAddr(got.Network.GetIp())
	if err != nil || !first.Is4() {
		t.Errorf("ip = %q", got.Network.GetIp())
	}
	if additional := got.Network.GetAdditionalIps(); len(additional) != 1 || !netip.MustParseAddr(additional[0].Ip).Is6() {
		t.Errorf("additional ips = %v, want one IPv6 address", additional)
	}
	// A timestamp would make a kubelet v1.37 with EventedPLEG run init containers for ever (e2e/cluster, TestInitAndSidecar).
	if response, err := lab.Node().PodSandboxStatus(lab.Context(t), p.ID, false); err != nil || response.Timestamp != 0 {
		t.Errorf("timestamp = %d, %v", response.GetTimestamp(), err)
	}
}

func TestRunPodSandboxIsSafeToRepeat(t *testing.T) {
	p := pod(t)
	id, err := lab.Node().RunPodSandbox(lab.Context(t), p.Config, "")
	if err != nil || id != p.ID {
		t.Errorf("the same request again: id %q, error %v; want %q", id, err, p.ID)
	}
	other := proto.Clone(p.Config).(*runtimeapi.PodSandboxConfig)
	other.Hostname = "other"
	_, err = lab.Node().RunPodSandbox(lab.Context(t), other, "")
	wantCode(t, "another request of the same name", err, codes.AlreadyExists, p.Config.Metadata.Name)
}

func TestSandboxIsStoppedAndRemovedIdempotently(t *testing.T) {
	p := pod(t)
	ctx, n := lab.Context(t), lab.Node()
	c := p.Run("main", sleeper)
	for range 2 {
		if err := n.StopPodSandbox(ctx, p.ID); err != nil {
			t.Fatalf("StopPodSandbox: %v", err)
		}
	}
	if state := sandboxStatus(t, p.ID).State; state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("state after stop = %v", state)
	}
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("container after stop = %v", state)
	}
	for range 2 {
		if err := n.RemovePodSandbox(ctx, p.ID); err != nil {
			t.Fatalf("RemovePodSandbox: %v", err)
		}
	}
	_, err := n.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	wantCode(t, "status of a removed sandbox", err, codes.NotFound, p.ID)
	_, err = n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	wantCode(t, "status of a removed sandbox's container", err, codes.NotFound, c.ID)
	unknown := strings.Repeat("0", 64)
	if err := n.StopPodSandbox(ctx, unknown); err != nil {
		t.Errorf("stop of an unknown sandbox: %v", err)
	}
	if err := n.RemovePodSandbox(ctx, unknown); err != nil {
		t.Errorf("remove of an unknown sandbox: %v", err)
	}
}

func TestRemovePodSandboxForcesRunningContainers(t *testing.T) {
	p := pod(t)
	c := p.Run("stubborn", "trap '' TERM; while :; do sleep 0.05; done")
	pid := pidOf(t, c)
	if err := lab.Node().RemovePodSandbox(lab.Context(t), p.ID); err != nil {
		t.Fatalf("RemovePodSandbox: %v", err)
	}
	if alive(pid) {
		t.Errorf("process %d outlived its sandbox", pid)
	}
}

func TestListPodSandboxAndsItsFilters(t *testing.T) {
	lab.Clean(t, lab.Node())
	first := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Labels["tier"] = "a" })
	second := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Labels["tier"] = "a" })
	if err := lab.Node().StopPodSandbox(lab.Context(t), second.ID); err != nil {
		t.Fatal(err)
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	gone := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	label := map[string]string{"tier": "a"}
	cases := []struct {
		what   string
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		{"no filter", nil, []string{first.ID, second.ID}},
		{"id", &runtimeapi.PodSandboxFilter{Id: first.ID}, []string{first.ID}},
		{"unique prefix", &runtimeapi.PodSandboxFilter{Id: first.ID[:16]}, []string{first.ID}},
		{"ready", &runtimeapi.PodSandboxFilter{State: ready}, []string{first.ID}},
		{"not ready", &runtimeapi.PodSandboxFilter{State: gone}, []string{second.ID}},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: label}, []string{first.ID, second.ID}},
		{"label and state", &runtimeapi.PodSandboxFilter{LabelSelector: label, State: gone}, []string{second.ID}},
		{"id and wrong state", &runtimeapi.PodSandboxFilter{Id: first.ID, State: gone}, nil},
		{"wrong value", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"tier": "b"}}, nil},
		{"unknown id", &runtimeapi.PodSandboxFilter{Id: strings.Repeat("f", 64)}, nil},
	}
	for _, test := range cases {
		list, err := lab.Node().ListPodSandbox(lab.Context(t), test.filter)
		if err != nil {
			t.Errorf("%s: %v", test.what, err)
			continue
		}
		got := map[string]bool{}
		for _, sandbox := range list {
			got[sandbox.Id] = true
		}
		want := map[string]bool{}
		for _, id := range test.want {
			want[id] = true
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", test.what, got, want)
		}
	}
}

func TestIdsMayBeUniquePrefixes(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	if got := sandboxStatus(t, p.ID[:12]).Id; got != p.ID {
		t.Errorf("sandbox by prefix = %s, want %s", got, p.ID)
	}
	response, err := lab.Node().ContainerStatus(lab.Context(t), c.ID[:12], false)
	if err != nil || response.Status.Id != c.ID {
		t.Errorf("container by prefix = %v, %v", response, err)
	}
	if err := lab.Node().StopContainer(lab.Context(t), c.ID[:12], 5); err != nil {
		t.Errorf("stop by prefix: %v", err)
	}
}

func TestRuntimeHandlers(t *testing.T) {
	lab.Clean(t, lab.Node())
	config := client.Pod("handler", t.TempDir())
	_, err := lab.Node().Runtime.RunPodSandbox(lab.Context(t), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "nonesuch"})
	wantCode(t, "unknown handler", err, codes.InvalidArgument, "nonesuch")
	id, err := lab.Node().RunPodSandbox(lab.Context(t), config, "meridian")
	if err != nil {
		t.Fatalf("handler meridian: %v", err)
	}
	if got := sandboxStatus(t, id).RuntimeHandler; got != "meridian" {
		t.Errorf("runtime handler = %q", got)
	}
	if err := lab.Node().RemovePodSandbox(lab.Context(t), id); err != nil {
		t.Error(err)
	}
}

func TestPodFilesAndSysctls(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.DnsConfig.Options = []string{"ndots:5"}
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "99", "kernel.shm_rmid_forced": "1"}
	})
	c := p.Run("main", sleeper)
	if got := c.Sh("hostname"); got != p.Config.Hostname {
		t.Errorf("hostname = %q", got)
	}
	resolv := c.Sh("cat /etc/resolv.conf")
	for _, line := range []string{"nameserver 192.0.2.53", "search e2e.svc", "options ndots:5"} {
		if !strings.Contains(resolv, line) {
			t.Errorf("resolv.conf %q lacks %q", resolv, line)
		}
	}
	if got := c.Sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"); got != "99\n1" {
		t.Errorf("sysctls = %q", got)
	}
	if size := c.Sh("df -k /dev/shm | awk 'END{print $2}'"); size != "65536" {
		t.Errorf("/dev/shm holds %s KiB, want 65536", size)
	}
}
