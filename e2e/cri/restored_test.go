package cri

import (
	"context"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// What is told of a restored pod is what is told of any: a kubelet that follows events takes it for a new one.
func TestEventsOfARestoredPod(t *testing.T) {
	p := pod(t)
	c := p.Run("count", "exec clockwork count 8")
	eventually(t, "it counts", func() bool { return exists(c.LogPath()) && len(readLog(t, c.LogPath())) > 5 })
	directory := checkpoint(t, p, c)
	ctx, cancel := context.WithTimeout(lab.Context(t), 30*time.Second)
	defer cancel()
	stream, err := lab.Node().Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	restored, containers := restore(t, directory, p, c)
	again := containers[0].Start()
	again.Stop(0)
	restored.Remove()
	const created, started, stopped, deleted = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	told := map[string][]runtimeapi.ContainerEventType{}
	for _, event := range heard(t, stream, 8, func() []string { return []string{restored.ID, again.ID} }) {
		told[event.ContainerId] = append(told[event.ContainerId], event.ContainerEventType)
		if event.PodSandboxStatus.GetId() != restored.ID {
			t.Errorf("event of another pod: %v", event.PodSandboxStatus)
		}
		if event.ContainerId == again.ID && event.ContainerEventType == started {
			if len(event.ContainersStatuses) != 1 || event.ContainersStatuses[0].State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("statuses in the event of its start: %v", event.ContainersStatuses)
			}
		}
	}
	for what, id := range map[string]string{"pod": restored.ID, "container": again.ID} {
		if !slices.Equal(told[id], []runtimeapi.ContainerEventType{created, started, stopped, deleted}) {
			t.Errorf("of the %s: %v", what, told[id])
		}
	}
}

// Limits that were changed before a checkpoint are those of the restored pod, and can be changed again.
func TestLimitsOfARestoredPodChange(t *testing.T) {
	p := pod(t)
	c := p.Run("count", "exec clockwork count 8", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	})
	eventually(t, "it counts", func() bool { return exists(c.LogPath()) && len(readLog(t, c.LogPath())) > 5 })
	if err := resize(t, c, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := limitPod(t, p.ID, nil, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 192 << 20}); err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	if _, err := lab.Node().CLI(lab.Context(t), "checkpoint", p.ID, directory); err != nil {
		t.Fatal(err)
	}
	p.Remove()
	// The command line asks for the pod as the checkpoint has it.
	if _, err := lab.Node().CLI(lab.Context(t), "restore", directory); err != nil {
		t.Fatal(err)
	}
	pods, err := lab.Node().ListPodSandbox(lab.Context(t), &runtimeapi.PodSandboxFilter{LabelSelector: p.Config.Labels})
	if err != nil || len(pods) != 1 {
		t.Fatalf("pods after the restore: %v, %v", pods, err)
	}
	restored := lab.Adopt(t, pods[0].Id, p.Config)
	containers, err := lab.Node().ListContainers(lab.Context(t), &runtimeapi.ContainerFilter{PodSandboxId: restored.ID})
	if err != nil || len(containers) != 1 {
		t.Fatalf("containers after the restore: %v, %v", containers, err)
	}
	again := &lab.Container{ID: containers[0].Id, Config: c.Config, Pod: restored}
	want := func(what string, bytes int64) {
		t.Helper()
		if got := cgroupFile(t, pidOf(t, again), "memory", "memory.limit_in_bytes", "memory.max"); got != itoa(int(bytes)) {
			t.Errorf("%s: memory limit in the kernel = %s, want %d", what, got, bytes)
		}
		if got := again.Status().Resources.GetLinux(); got.GetMemoryLimitInBytes() != bytes || got.GetCpuShares() != 512 {
			t.Errorf("%s: in the status: %v", what, got)
		}
	}
	want("restored", 96<<20)
	if got := podLimits(t, restored.ID).Resources.GetMemoryLimitInBytes(); got != 192<<20 {
		t.Errorf("limit of the restored pod = %d", got)
	}
	if err := resize(t, again, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 48 << 20, OomScoreAdj: 900}); err != nil {
		t.Fatal(err)
	}
	want("changed again", 48<<20)
	if got := again.Sh("cat /proc/1/oom_score_adj"); got != "900" {
		t.Errorf("score of the restored process = %s", got)
	}
	wantNoFault(t, again)
}
