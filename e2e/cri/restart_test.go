package cri

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// Twenty pods run while the daemon is killed and started again. Containers keep their process ids, logs have no gap,
// what ended meanwhile has its right exit code, and every object is listed within a second.
func TestDaemonIsKilledWithTwentyPods(t *testing.T) {
	const pods = 20
	lab.Image(t, "clockwork:1")
	n := lab.Node()
	lab.Clean(t, n)
	var counting, ending []*lab.Container
	for i := range pods {
		p := lab.RunPod(t)
		counting = append(counting, p.Run("count", "exec clockwork count"))
		ending = append(ending, p.Run("end", fmt.Sprintf("while ! test -e /dev/shm/go; do sleep 0.02; done; exit %d", i+1)))
	}
	pids := map[string]int{}
	for _, c := range append(append([]*lab.Container{}, counting...), ending...) {
		pids[c.ID] = pidOf(t, c)
	}
	for _, c := range counting { // through a file in the pod's /dev/shm, seen by both containers, tell the other to end
		c.Sh("(sleep 0.5; touch /dev/shm/go) >/dev/null 2>&1 &")
	}
	n.Kill()
	time.Sleep(1500 * time.Millisecond)
	began := time.Now()
	if err := n.Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	list, err := n.ListContainers(lab.Context(t), nil)
	listed := time.Since(began)
	if err != nil || len(list) != 2*pods {
		t.Fatalf("%d containers listed, %v", len(list), err)
	}
	if listed > time.Second {
		t.Errorf("listed %s after the start, want 1 s at most", listed)
	}
	sandboxes, err := n.ListPodSandbox(lab.Context(t), &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}})
	if err != nil || len(sandboxes) != pods {
		t.Errorf("%d ready sandboxes listed, %v", len(sandboxes), err)
	}
	t.Logf("%d pods and %d containers were listed %s after exec of the daemon", pods, 2*pods, listed.Round(time.Millisecond))
	for _, c := range counting {
		if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s is %s", c.ID, state)
			continue
		}
		if pid := pidOf(t, c); pid != pids[c.ID] {
			t.Errorf("process id %d became %d", pids[c.ID], pid)
		}
		c.Sh("true")
		wantNoGap(t, c)
	}
	for i, c := range ending {
		if status := c.Status(); status.State != runtimeapi.ContainerState_CONTAINER_EXITED || status.ExitCode != int32(i+1) || status.FinishedAt == 0 || status.FinishedAt > began.UnixNano() {
			t.Errorf("ended while the daemon was dead: state %s, exit code %d at %d; want %d before %d", status.State, status.ExitCode, status.FinishedAt, i+1, began.UnixNano())
		}
	}
}

// wantNoGap checks that the counter in a log goes up by one from line to line.
func wantNoGap(t *testing.T, c *lab.Container) {
	t.Helper()
	next := 0
	for line := range strings.Lines(output(readLog(t, c.LogPath()), "stdout")) {
		got, err := strconv.Atoi(strings.Fields(line)[0])
		if err != nil || got != next {
			t.Fatalf("log of %s: line %q where %d was due", c.ID, strings.TrimSpace(line), next)
		}
		next++
	}
	if next < 100 {
		t.Errorf("log of %s has only %d lines", c.ID, next)
	}
}

func TestStateSurvivesRestarts(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	created := p.Create("created", "exit 6")
	before, sandbox := c.Status(), sandboxStatus(t, p.ID)
	if err := lab.Node().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Node().Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	after, again := c.Status(), sandboxStatus(t, p.ID)
	if before.String() != after.String() {
		t.Errorf("container status was\n%v\nis\n%v", before, after)
	}
	if sandbox.String() != again.String() {
		t.Errorf("sandbox status was\n%v\nis\n%v", sandbox, again)
	}
	if image := imageStatus(t, lab.Reference("clockwork:1")); image == nil {
		t.Error("the image is gone")
	}
	if code := created.Start().Wait().ExitCode; code != 6 {
		t.Errorf("a container created before the restart ended with %d", code)
	}
	fresh := p.Run("fresh", sleeper)
	fresh.Sh("true")
	c.Stop(5)
	if code := c.Status().ExitCode; code != 0 {
		t.Errorf("exit code = %d", code)
	}
}

func TestPodsCanBeRemovedAfterAShimDied(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	shim := parentOf(t, pidOf(t, c))
	kill(t, shim)
	eventually(t, "the pod's death is reported", func() bool {
		return sandboxStatus(t, p.ID).State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY &&
			c.Status().State != runtimeapi.ContainerState_CONTAINER_RUNNING
	})
	other := lab.RunPod(t)
	other.Run("main", sleeper).Sh("true")
}
