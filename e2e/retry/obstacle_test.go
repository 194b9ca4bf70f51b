package retry

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// A later StopContainer with less patience is what counts; one with more changes nothing.
func TestShorterGraceShortensTheWait(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	n, p := lab.Node(), lab.RunPod(t)
	laters := map[string]func(*lab.Container) error{
		"stop": func(c *lab.Container) error { return n.StopContainer(lab.Context(t), c.ID, 1) },
		"longer": func(c *lab.Container) error {
			go func() { _ = n.StopContainer(lab.Context(t), c.ID, 1) }()
			time.Sleep(50 * time.Millisecond)
			return n.StopContainer(lab.Context(t), c.ID, 50)
		},
		"kill":   func(c *lab.Container) error { return n.StopContainer(lab.Context(t), c.ID, 0) },
		"remove": func(c *lab.Container) error { return n.RemoveContainer(lab.Context(t), c.ID) },
	}
	for name, later := range laters {
		c := p.Run(name, patient)
		t.Run(name, func(t *testing.T) {
			lab.Eventually(t, "it runs", func() bool { return lines(t, c.LogPath(), "started") > 0 })
			first := make(chan error, 1)
			go func() { first <- n.StopContainer(lab.Context(t), c.ID, 60) }()
			lab.Eventually(t, "it is asked", func() bool { return lines(t, c.LogPath(), "asked") > 0 })
			within(t, 4*time.Second, "the later call", func() error { return later(c) })
			within(t, time.Second, "the earlier call", func() error { return <-first })
			if name != "remove" && lines(t, c.LogPath(), "asked") != 1 {
				t.Errorf("asked %d times", lines(t, c.LogPath(), "asked"))
			}
		})
	}
}

// obstacle makes something of one pod take very long, in the background, and returns what ends it.
type obstacle struct {
	name string
	make func(*testing.T) (end func())
}

var obstacles = []obstacle{
	{"a container that takes its grace", func(t *testing.T) func() {
		c := lab.RunPod(t).Run("main", patient)
		lab.Eventually(t, "it runs", func() bool { return lines(t, c.LogPath(), "started") > 0 })
		return calls(t, 1, func(ctx context.Context) error { return lab.Node().StopContainer(ctx, c.ID, 60) }, c.Pod.Remove)
	}},
	{"300 commands that hang", func(t *testing.T) func() {
		c := lab.RunPod(t).Run("main", "exec clockwork pause")
		return calls(t, 300, func(ctx context.Context) error {
			_, _, err := lab.Node().ExecSync(ctx, c.ID, []string{"clockwork", "pause"}, time.Minute)
			return err
		}, c.Pod.Remove)
	}},
	{"pulls from a registry that says nothing", func(t *testing.T) func() {
		address, end := silentRegistry(t)
		return calls(t, 40, func(ctx context.Context) error {
			_, err := lab.Node().Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: address + "/silent:1"}, nil, nil)
			return err
		}, end)
	}},
	{"a checkpoint that hangs", func(t *testing.T) func() {
		c := lab.RunPod(t).Run("main", "exec clockwork pause")
		if err := os.WriteFile(gate(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		request := &runtimeapi.CheckpointPodRequest{PodSandboxId: c.Pod.ID, OutputPath: t.TempDir(), ContainerIds: []string{c.ID}}
		return calls(t, 1, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			_, err := lab.Node().Runtime.CheckpointPod(ctx, request)
			return err
		}, func() {
			if err := os.Remove(gate()); err != nil {
				t.Error(err)
			}
			within(t, 10*time.Second, "removing a pod under a checkpoint", func() error { c.Pod.Remove(); return nil })
		})
	}},
	{"a shim that is stopped", func(t *testing.T) func() {
		c := lab.RunPod(t).Run("main", "exec clockwork pause")
		if err := syscall.Kill(shimOf(t, c.Pod.ID), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		return calls(t, 20, func(ctx context.Context) error {
			_, _, err := lab.Node().ExecSync(ctx, c.ID, []string{"true"}, time.Minute)
			return err
		}, func() {
			within(t, 10*time.Second, "removing a pod whose shim is stopped", func() error { c.Pod.Remove(); return nil })
		})
	}},
}

// shimOf is the process id of a pod's shim.
func shimOf(t *testing.T, pod string) int {
	t.Helper()
	response, err := lab.Node().PodSandboxStatus(lab.Context(t), pod, true)
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ ShimPid int }
	if err := json.Unmarshal([]byte(response.Info["info"]), &info); err != nil || info.ShimPid < 2 {
		t.Fatalf("info %q: %v", response.Info["info"], err)
	}
	return info.ShimPid
}

// calls makes calls that are expected to hang. What it returns gives them up, and cleans up.
func calls(t *testing.T, times int, call func(context.Context) error, clean func()) func() {
	ctx, giveUp := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for range times {
		group.Go(func() {
			if err := call(ctx); err == nil && ctx.Err() == nil {
				t.Error("a call that was to hang succeeded")
			}
		})
	}
	time.Sleep(300 * time.Millisecond) // until they hang
	return func() {
		giveUp()
		group.Wait()
		clean()
	}
}

// While other pods hang in every way that there is, a pod comes up, is used and goes as at any other time.
func TestNobodyWaitsForAnotherPod(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	var usual []time.Duration
	for range 3 {
		usual = append(usual, probe(t))
	}
	limit := 3*slices.Max(usual) + 200*time.Millisecond
	for _, o := range obstacles {
		t.Run(o.name, func(t *testing.T) {
			end := o.make(t)
			defer end()
			var took []time.Duration
			for range 3 {
				took = append(took, probe(t))
			}
			if fastest := slices.Min(took); fastest > limit {
				t.Errorf("a pod's life took %s, want at most %s", fastest, limit)
			}
			t.Logf("a pod's life took %s to %s, before %s to %s", slices.Min(took), slices.Max(took), slices.Min(usual), slices.Max(usual))
		})
	}
}

// probe is how long a pod's life takes, with the questions that a kubelet asks of all pods at once.
func probe(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	n, ctx := lab.Node(), lab.Context(t)
	p := lab.RunPod(t)
	c := p.Run("probe", "trap 'exit 0' TERM; while :; do sleep 0.01; done")
	if got := c.Sh("echo alive"); got != "alive" {
		t.Errorf("the probe says %q", got)
	}
	if _, err := n.ListPodSandbox(ctx, nil); err != nil {
		t.Error(err)
	}
	if _, err := n.ListPodSandboxStats(ctx, nil); err != nil {
		t.Error(err)
	}
	if _, err := n.ListContainerStats(ctx, nil); err != nil {
		t.Error(err)
	}
	c.Stop(5)
	p.Remove()
	return time.Since(began)
}

// silentRegistry takes connections and never says a word.
func silentRegistry(t *testing.T) (address string, end func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var lock sync.Mutex
	var held []net.Conn
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			lock.Lock()
			held = append(held, connection)
			lock.Unlock()
		}
	}()
	return listener.Addr().String(), func() {
		_ = listener.Close()
		lock.Lock()
		defer lock.Unlock()
		for _, connection := range held {
			_ = connection.Close()
		}
	}
}
