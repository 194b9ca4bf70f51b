package network

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

const sleeper = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

func address(t *testing.T, p *lab.Pod) string {
	t.Helper()
	response, err := lab.Node().PodSandboxStatus(lab.Context(t), p.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	return response.Status.Network.GetIp()
}

// A pod has the address that the plugins gave it, which are told who it is and what it wants; nothing is left of it.
func TestPodsAreConnectedByPlugins(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	write(t, journal, "")
	p := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 12080}}
		c.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "10M"}
	})
	ip := address(t, p)
	if held := leases(t); len(held) != 1 || held[0] != ip {
		t.Fatalf("the pod has %q, host-local holds %v", ip, held)
	}
	c := p.Run("main", sleeper)
	if inside := c.Sh("ip -4 addr show eth0; ip addr show lo; cat /etc/hosts"); !strings.Contains(inside, ip+"/24") ||
		!strings.Contains(inside, "127.0.0.1/8") || !strings.Contains(inside, ip+"\t"+p.Config.Hostname) {
		t.Errorf("address %s, inside:\n%s", ip, inside)
	}
	add := calls(t)[0]
	for _, word := range []string{"ADD netns=/", "K8S_POD_NAME=" + p.Config.Metadata.Name, "K8S_POD_UID=" + p.Config.Metadata.Uid, "K8S_POD_INFRA_CONTAINER_ID=" + p.ID} {
		if !strings.Contains(add, word) {
			t.Errorf("no %q in %q", word, add)
		}
	}
	wanted, _ := configuration(t, add)["runtimeConfig"].(map[string]any)
	if wanted["portMappings"] == nil || wanted["bandwidth"] == nil || wanted["dns"] != nil {
		t.Errorf("runtimeConfig %v", wanted)
	}
	p.Remove()
	last := calls(t)[len(calls(t))-1]
	if held := leases(t); len(held) != 0 || !strings.HasPrefix(last, "DEL netns=/") || configuration(t, last)["prevResult"] == nil {
		t.Errorf("leases %v after %q", held, last)
	}
}

// Whatever a plugin does instead of its work: the caller is told, what others did is undone, and the next pod comes up.
func TestPluginsThatFail(t *testing.T) {
	lab.Clean(t, lab.Node())
	t.Cleanup(func() { write(t, mode, "ok") })
	for does, said := range map[string]string{
		"hang": "did not end within 2 s", "garbage": "no CNI result: \"hello\"", "flood": "more than 1048576 bytes",
		"signal": "ended by signal 9", "refuse": "no room: on this node", "lie": "no room",
	} {
		write(t, mode, does)
		write(t, journal, "")
		began := time.Now()
		config := client.Pod("fails-"+client.Unique()[:5], t.TempDir())
		id, err := lab.Node().RunPodSandbox(lab.Context(t), config, "")
		if err == nil || !strings.Contains(err.Error(), said) || !strings.Contains(err.Error(), "plugin stub, ADD") {
			t.Errorf("%s: %s %v, want %q", does, id, err, said)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: took %s", does, took)
		}
		if held, last := leases(t), calls(t)[len(calls(t))-1]; len(held) != 0 || !strings.HasPrefix(last, "DEL ") {
			t.Errorf("%s: leases %v after %q", does, held, last)
		}
	}
	write(t, mode, "ok")
	lab.RunPod(t)
}

// The node's share of the pod network reaches the plugins that ask for it, also after a restart.
func TestPodCidrIsTheirs(t *testing.T) {
	n := lab.Node()
	told := &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "fd00:244::/64,10.244.0.0/24"}}
	if err := n.UpdateRuntimeConfig(lab.Context(t), told); err != nil {
		t.Fatal(err)
	}
	lab.Clean(t, n) // what was told is kept
	n.Kill()
	if err := n.Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	write(t, journal, "")
	lab.RunPod(t)
	wanted, _ := configuration(t, calls(t)[0])["runtimeConfig"].(map[string]any)
	if ranges := fmt.Sprint(wanted["ipRanges"]); ranges != "[[map[subnet:10.244.0.0/24]] [map[subnet:fd00:244::/64]]]" {
		t.Errorf("ipRanges %s", ranges)
	}
}

// A restart changes no address; a pod is taken down with the configuration it was made with, when there is none any more.
func TestConfigurationComesAndGoes(t *testing.T) {
	n := lab.Node()
	lab.Clean(t, n)
	p := lab.RunPod(t)
	ip := address(t, p)
	n.Kill()
	if err := n.Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	if now := address(t, p); now != ip {
		t.Errorf("address %s became %q", ip, now)
	}
	lab.Eventually(t, "the plugins are asked whether the pod is connected", func() bool {
		last := calls(t)[len(calls(t))-1]
		return strings.HasPrefix(last, "CHECK netns=/") && strings.Contains(last, p.ID)
	})
	t.Cleanup(func() { write(t, list, conflist) })
	for _, broken := range []string{"", "{", `{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "../bin/stub"}]}`} {
		if err := os.Remove(list); err != nil {
			t.Fatal(err)
		}
		if broken != "" {
			write(t, list, broken)
		} else {
			defer write(t, list, conflist)
		}
		if ready, message := network(t); ready || !strings.Contains(message, "CNI configuration") {
			t.Errorf("with %q NetworkReady is %v: %s", broken, ready, message)
		}
		if _, err := n.RunPodSandbox(lab.Context(t), client.Pod("none", t.TempDir()), ""); err == nil {
			t.Errorf("with %q a pod came up", broken)
		}
		if broken == "" {
			write(t, list, "")
		}
	}
	p.Remove()
	if held := leases(t); len(held) != 0 {
		t.Errorf("leases %v", held)
	}
	write(t, list, conflist)
	if ready, message := network(t); !ready {
		t.Errorf("NetworkReady is false: %s", message)
	}
}

// A pod whose namespace went with a reboot is taken down at the next start.
func TestLeasesOfLostPodsAreFreed(t *testing.T) {
	n := lab.Node()
	lab.Clean(t, n)
	write(t, mode, "ok")
	p := lab.RunPod(t)
	record, err := os.ReadFile(n.Root + "/cni/" + p.ID + ".json")
	if err != nil {
		t.Fatal(err)
	}
	p.Remove()
	lost := strings.ReplaceAll(string(record), p.ID, "lost")
	write(t, n.Root+"/cni/lost.json", lost)
	write(t, ipam+"/10.77.0.99", "lost\r\neth0")
	n.Kill()
	if err := n.Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, "the lost pod's address is free", func() bool { return len(leases(t)) == 0 })
}

// A plugin that refuses to take a pod down holds up nobody: the pod goes, and the plugin is asked again.
func TestDelIsRepeatedUntilItIsDone(t *testing.T) {
	n := lab.Node()
	lab.Clean(t, n)
	write(t, mode, "keep")
	t.Cleanup(func() { write(t, mode, "ok") })
	p := lab.RunPod(t)
	p.Remove()
	record := n.Root + "/cni/" + p.ID + ".json"
	if _, err := os.Stat(record); err != nil {
		t.Fatal(err)
	}
	write(t, mode, "ok")
	lab.Eventually(t, "the record is gone", func() bool {
		_, err := os.Stat(record)
		return os.IsNotExist(err)
	})
}

// network is the condition NetworkReady, checked against the verbose keys that scripts read.
func network(t *testing.T) (bool, string) {
	t.Helper()
	response, err := lab.Node().Status(lab.Context(t), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, condition := range response.Status.Conditions {
		if condition.Type != runtimeapi.NetworkReady {
			continue
		}
		if loaded := response.Info["lastCNILoadStatus"] == "OK"; loaded != condition.Status {
			t.Errorf("lastCNILoadStatus %q with NetworkReady %v", response.Info["lastCNILoadStatus"], condition.Status)
		}
		if condition.Status && !strings.Contains(response.Info["cniconfig"], `"cni-lab"`) {
			t.Errorf("cniconfig %q", response.Info["cniconfig"])
		}
		return condition.Status, condition.Message
	}
	t.Fatal("no condition NetworkReady")
	return false, ""
}
