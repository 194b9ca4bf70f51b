package cri

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func checkpoint(t *testing.T, p *lab.Pod, containers ...*lab.Container) string {
	t.Helper()
	directory := t.TempDir()
	request := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: directory}
	for _, c := range containers {
		request.ContainerIds = append(request.ContainerIds, c.ID)
	}
	if err := lab.Node().CheckpointPod(lab.Context(t), request); err != nil {
		t.Fatalf("CheckpointPod: %v", err)
	}
	return directory
}

// restore brings a checkpoint back as a new pod; the containers are CREATED.
func restore(t *testing.T, directory string, from *lab.Pod, containers ...*lab.Container) (*lab.Pod, []*lab.Container) {
	t.Helper()
	config := proto.Clone(from.Config).(*runtimeapi.PodSandboxConfig)
	config.Metadata.Uid, config.LogDirectory = client.Unique(), t.TempDir()
	request := &runtimeapi.RestorePodRequest{CheckpointPath: directory, Config: config}
	for _, c := range containers {
		request.ContainerConfigs = append(request.ContainerConfigs, c.Config)
	}
	response, err := lab.Node().RestorePod(lab.Context(t), request)
	if err != nil {
		t.Fatalf("RestorePod: %v", err)
	}
	p := lab.Adopt(t, response.PodSandboxId, config)
	var restored []*lab.Container
	for _, c := range containers {
		at := slices.IndexFunc(response.RestoredContainers, func(r *runtimeapi.RestoredContainer) bool { return r.Name == c.Config.Metadata.Name })
		if at < 0 {
			t.Fatalf("%s is not among the restored: %v", c.Config.Metadata.Name, response.RestoredContainers)
		}
		restored = append(restored, &lab.Container{ID: response.RestoredContainers[at].ContainerId, Config: c.Config, Pod: p})
	}
	return p, restored
}

func wantNoFault(t *testing.T, c *lab.Container) {
	t.Helper()
	for line := range strings.Lines(output(readLog(t, c.LogPath()), "stdout")) {
		for _, fault := range []string{"DISAGREE", "LOST", "BACK", "FAILED"} {
			if strings.HasPrefix(line, fault) {
				t.Fatalf("%s: %s", c.Config.Metadata.Name, line)
			}
		}
	}
}

// MONOTONIC and BOOTTIME resume where they stopped, whatever time passed in between.
func TestRestoredClocksResumeWhereTheyStopped(t *testing.T) {
	p := pod(t)
	c := p.Run("tight", "exec clockwork tight")
	alive := func(c *lab.Container) func() bool {
		return func() bool {
			return exists(c.LogPath()) && strings.Contains(output(readLog(t, c.LogPath()), "stdout"), "alive")
		}
	}
	eventually(t, "the loop runs", alive(c))
	directory := checkpoint(t, p, c)
	p.Remove()
	time.Sleep(2 * time.Second)
	_, restored := restore(t, directory, p, c)
	restored[0].Start()
	eventually(t, "the loop runs again", alive(restored[0]))
	wantNoFault(t, restored[0])
	found := false
	for line := range strings.Lines(output(readLog(t, restored[0].LogPath()), "stdout")) {
		gap, err := parseGap(line)
		if err != nil || gap.Realtime < 2*time.Second {
			continue
		}
		found = true
		// Lateness of a loaded machine included; e2e/move holds the clocks to what is reported.
		if gap.Monotonic < 0 || gap.Monotonic > time.Second || gap.Boottime < 0 || gap.Boottime > time.Second {
			t.Errorf("over %s of real time MONOTONIC went on %s and BOOTTIME %s", gap.Realtime, gap.Monotonic, gap.Boottime)
		}
		t.Logf("real time %s, MONOTONIC %s, BOOTTIME %s", gap.Realtime, gap.Monotonic, gap.Boottime)
	}
	if !found {
		t.Error("the loop saw no gap of 2 s")
	}
}

func TestCommandLineCheckpointAndRestore(t *testing.T) {
	p := pod(t)
	c := p.Run("count", "exec clockwork count 8")
	eventually(t, "it counts", func() bool { return exists(c.LogPath()) && len(readLog(t, c.LogPath())) > 20 })
	directory := t.TempDir()
	if _, err := lab.Node().CLI(lab.Context(t), "checkpoint", p.ID, directory); err != nil {
		t.Fatal(err)
	}
	p.Remove()
	if _, err := lab.Node().CLI(lab.Context(t), "restore", directory); err != nil {
		t.Fatal(err)
	}
	list, err := lab.Node().ListPodSandbox(lab.Context(t), nil)
	if err != nil || len(list) != 1 {
		t.Fatalf("pods after restore: %v, %v", list, err)
	}
	lab.Adopt(t, list[0].Id, p.Config)
	containers, err := lab.Node().ListContainers(lab.Context(t), &runtimeapi.ContainerFilter{PodSandboxId: list[0].Id})
	if err != nil || len(containers) != 1 || containers[0].State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("containers after restore: %v, %v", containers, err)
	}
}

// The shim thaws a pod whose daemon was killed while it was frozen.
func TestDaemonKilledInTheMiddleOfACheckpoint(t *testing.T) {
	p := pod(t)
	c := p.Run("tight", "exec clockwork tight 256")
	eventually(t, "the loop runs", func() bool {
		return exists(c.LogPath()) && strings.Contains(output(readLog(t, c.LogPath()), "stdout"), "alive")
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := make(chan struct{})
	stub := lab.Node().Runtime
	directory := t.TempDir()
	go func() {
		_, _ = stub.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: directory, ContainerIds: []string{c.ID}})
		close(done)
	}()
	time.Sleep(60 * time.Millisecond)
	lab.Node().Kill()
	cancel()
	<-done
	before := len(readLog(t, c.LogPath()))
	began := time.Now()
	eventually(t, "the loop goes on without a daemon", func() bool { return len(readLog(t, c.LogPath())) > before })
	t.Logf("the loop was heard of %s after the daemon's death", time.Since(began).Round(time.Millisecond))
	if err := lab.Node().Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", state)
	}
	wantNoFault(t, c)
	eventually(t, "it can be checkpointed again", func() bool { // once the dump that nobody waits for has ended
		ctx, cancel := context.WithTimeout(lab.Context(t), 20*time.Second)
		defer cancel()
		again := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: t.TempDir(), ContainerIds: []string{c.ID}}
		return lab.Node().CheckpointPod(ctx, again) == nil
	})
}
