package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func listed(t *testing.T, id string) bool {
	t.Helper()
	list, err := lab.Node().ListContainers(lab.Context(t), &runtimeapi.ContainerFilter{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	return len(list) == 1 && list[0].Id == id
}

func TestContainerIsListedUntilItIsRemoved(t *testing.T) {
	p := pod(t)
	for state, prepare := range map[string]func(*lab.Container){
		"created": func(*lab.Container) {},
		"running": func(c *lab.Container) { c.Start() },
		"stopped": func(c *lab.Container) { c.Start().Stop(5) },
	} {
		c := p.Create(state, sleeper)
		prepare(c)
		if !listed(t, c.ID) {
			t.Errorf("%s: not listed", state)
		}
		if err := lab.Node().RemoveContainer(lab.Context(t), c.ID); err != nil {
			t.Errorf("%s: %v", state, err)
		}
		if listed(t, c.ID) {
			t.Errorf("%s: listed after its removal", state)
		}
	}
}

func TestStartedIsRunningAndStoppedIsExited(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("when StartContainer returned: %s", state)
	}
	c.Stop(10)
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("when StopContainer returned: %s", state)
	}
}

func TestStatsOfSeveralContainersAndTheirFilters(t *testing.T) {
	p := pod(t)
	var ids []string
	for i := range 3 {
		ids = append(ids, p.Run(fmt.Sprint("c", i), sleeper, func(c *runtimeapi.ContainerConfig) { c.Labels["number"] = fmt.Sprint(i) }).ID)
	}
	for _, test := range []struct {
		what   string
		filter *runtimeapi.ContainerStatsFilter
		want   []string
	}{
		{"none", nil, ids},
		{"id", &runtimeapi.ContainerStatsFilter{Id: ids[1]}, ids[1:2]},
		{"sandbox", &runtimeapi.ContainerStatsFilter{PodSandboxId: p.ID}, ids},
		{"label", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"number": "2"}}, ids[2:]},
		{"a label nobody has", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"number": "3"}}, nil},
	} {
		stats, err := lab.Node().ListContainerStats(lab.Context(t), test.filter)
		if err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
		var got []string
		for _, one := range stats {
			got = append(got, one.GetAttributes().GetId())
			if one.GetCpu().GetTimestamp() == 0 || one.GetMemory().GetTimestamp() == 0 {
				t.Errorf("%s: no time: %v", test.what, one)
			}
		}
		want := slices.Sorted(slices.Values(test.want))
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", test.what, got, want)
		}
	}
}

// An exec that ran out of time leaves no process behind, also when asked through the kubelet's client.
func TestTimedOutExecIsGone(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	if _, _, err := lab.Node().ExecSync(lab.Context(t), c.ID, []string{"sleep", "4321"}, time.Second); err == nil || !strings.Contains(err.Error(), "timed out") {
		t.Errorf("error: %v", err)
	}
	if code, seen := run(t, c, "pgrep -f 'sleep 4321' || ps -o args | grep '^sleep 4321'"); code == 0 {
		t.Errorf("still there: %s", seen)
	}
}

func TestContainersOfAPodShareItsNetworkAndNothingElse(t *testing.T) {
	p := pod(t)
	server := p.Run("server", "echo from the server; echo server >/page; exec httpd -f -p 80 -h /")
	other := p.Run("other", "echo from the other; "+sleeper)
	eventually(t, "the page is served", func() bool { return get(t, "http://"+address(t, p)+"/page") == "server" })
	if code, got := run(t, other, "wget -q -O - http://127.0.0.1/page"); code != 0 || got != "server" {
		t.Errorf("over the pod's loopback: %d, %s", code, got)
	}
	for c, word := range map[*lab.Container]string{server: "from the server", other: "from the other"} {
		if log := read(t, c.LogPath()); !strings.Contains(log, " stdout F "+word+"\n") {
			t.Errorf("log: %q", log)
		}
		if got := c.Sh("echo " + word); got != word {
			t.Errorf("exec: %q", got)
		}
	}
	if code, _ := run(t, other, "test -e /page"); code == 0 {
		t.Error("the other container sees the server's root filesystem")
	}
}

// No call about a thing that does not exist, or no longer, and that wants it gone, is an error.
func TestWhatIsGoneIsGone(t *testing.T) {
	lab.Clean(t, lab.Node())
	ctx, n, unknown := lab.Context(t), lab.Node(), strings.Repeat("ab", 32)
	for what, err := range map[string]error{
		"StopPodSandbox":   n.StopPodSandbox(ctx, unknown),
		"RemovePodSandbox": n.RemovePodSandbox(ctx, unknown),
		"StopContainer":    n.StopContainer(ctx, unknown, 1),
		"RemoveContainer":  n.RemoveContainer(ctx, unknown),
		"RemoveImage":      n.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: lab.Reference("nonesuch:1")}),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSandboxStates(t *testing.T) {
	p := pod(t)
	state := func() runtimeapi.PodSandboxState {
		t.Helper()
		got, err := lab.Node().PodSandboxStatus(lab.Context(t), p.ID, false)
		if err != nil {
			t.Fatal(err)
		}
		return got.Status.State
	}
	found := func() int {
		t.Helper()
		list, err := lab.Node().ListPodSandbox(lab.Context(t), &runtimeapi.PodSandboxFilter{Id: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if state() != runtimeapi.PodSandboxState_SANDBOX_READY || found() != 1 {
		t.Errorf("after RunPodSandbox: %s, listed %d times", state(), found())
	}
	for range 2 {
		if err := lab.Node().StopPodSandbox(lab.Context(t), p.ID); err != nil {
			t.Fatal(err)
		}
	}
	if state() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || found() != 1 {
		t.Errorf("after StopPodSandbox: %s, listed %d times", state(), found())
	}
	p.Remove()
	if found() != 0 {
		t.Error("listed after RemovePodSandbox")
	}
}

func TestSysctlsOfThePod(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.ipv4.tcp_fin_timeout": "7"}
	})
	c := p.Run("main", sleeper)
	if got := c.Sh("cd /proc/sys; cat kernel/shm_rmid_forced fs/mqueue/msg_max net/ipv4/tcp_fin_timeout"); got != "1\n100\n7" {
		t.Errorf("sysctls = %q", got)
	}
	if got := read(t, "/proc/sys/fs/mqueue/msg_max"); got == "100\n" {
		t.Error("the node's own value was set")
	}
}
