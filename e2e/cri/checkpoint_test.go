package cri

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// pairedPod runs a pod whose two containers count through shared memory, and notice a cut that is not consistent.
func pairedPod(t *testing.T) (*lab.Pod, []*lab.Container) {
	t.Helper()
	p := pod(t)
	both := []*lab.Container{
		p.Run("ask", "echo kept >/root/file; rmdir /home/alice; exec clockwork pair ask"),
		p.Run("answer", "exec clockwork pair answer"),
	}
	for _, c := range both {
		eventually(t, c.Config.Metadata.Name+" counts", func() bool {
			return exists(c.LogPath()) && strings.Contains(output(readLog(t, c.LogPath()), "stdout"), "agree")
		})
	}
	return p, both
}

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

func TestCheckpointAndRestoreOfAPod(t *testing.T) {
	p, both := pairedPod(t)
	both[0].Sh("echo shared >/dev/shm/note")
	directory := checkpoint(t, p, both...)
	for _, c := range both { // it went on
		if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s is %s after the checkpoint", c.Config.Metadata.Name, state)
		}
		before := len(readLog(t, c.LogPath()))
		eventually(t, "it counts on", func() bool { return len(readLog(t, c.LogPath())) > before })
		wantNoFault(t, c)
	}
	before := tree256(t, directory)
	p.Remove()
	again, restored := restore(t, directory, p, both...)
	for _, c := range restored {
		if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Errorf("%s is %s after RestorePod", c.Config.Metadata.Name, state)
		}
	}
	time.Sleep(300 * time.Millisecond)
	for _, c := range restored {
		if exists(c.LogPath()) && len(readLog(t, c.LogPath())) > 0 {
			t.Errorf("%s ran before StartContainer", c.Config.Metadata.Name)
		}
	}
	for _, c := range restored {
		c.Start()
	}
	for _, c := range restored {
		eventually(t, c.Config.Metadata.Name+" counts on", func() bool {
			return exists(c.LogPath()) && strings.Count(output(readLog(t, c.LogPath()), "stdout"), "agree") > 2
		})
		wantNoFault(t, c)
	}
	if got := restored[0].Sh("cat /root/file /dev/shm/note; ls -d /home/alice 2>&1 | wc -l; hostname"); got != "kept\nshared\n1\n"+again.Config.Hostname {
		t.Errorf("root filesystem, /dev/shm and hostname: %q", got)
	}
	if got := restored[0].Sh("test -d /home/alice && echo back; true"); got != "" {
		t.Error("a directory that was removed came back")
	}
	if namespace(t, pidOf(t, restored[0]), "time") != namespace(t, pidOf(t, restored[1]), "time") {
		t.Error("the restored containers have different time namespaces")
	}
	if after := tree256(t, directory); after != before {
		t.Error("RestorePod changed the checkpoint")
	}
	restored[0].Stop(0)
	if code := restored[0].Status().ExitCode; code != 137 {
		t.Errorf("exit code of a restored container = %d", code)
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
		if gap.Monotonic < 0 || gap.Monotonic > 50*time.Millisecond || gap.Boottime < 0 || gap.Boottime > 50*time.Millisecond {
			t.Errorf("over %s of real time MONOTONIC went on %s and BOOTTIME %s", gap.Realtime, gap.Monotonic, gap.Boottime)
		}
		t.Logf("real time %s, MONOTONIC %s, BOOTTIME %s", gap.Realtime, gap.Monotonic, gap.Boottime)
	}
	if !found {
		t.Error("the loop saw no gap of 2 s")
	}
}

func TestCheckpointctlReadsTheArchives(t *testing.T) {
	p, both := pairedPod(t)
	archives := archivesIn(t, checkpoint(t, p, both...))
	if len(archives) != 2 {
		t.Fatalf("archives: %v", archives)
	}
	single := filepath.Join(t.TempDir(), "container.tar")
	err := lab.Node().CheckpointContainer(lab.Context(t), &runtimeapi.CheckpointContainerRequest{ContainerId: both[0].ID, Location: single, Timeout: 30})
	if err != nil {
		t.Fatalf("CheckpointContainer: %v", err)
	}
	if state := both[0].Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s after CheckpointContainer", state)
	}
	for _, archive := range append(archives, single) {
		for _, arguments := range [][]string{{"show"}, {"inspect", "--all"}} {
			shown, err := exec.Command(filepath.Join(node.Cache(), "bin/checkpointctl"), append(arguments, archive)...).CombinedOutput()
			if err != nil || !strings.Contains(string(shown), "ask") && !strings.Contains(string(shown), "answer") {
				t.Errorf("checkpointctl %v %s: %v: %s", arguments, archive, err, shown)
			}
			if arguments[0] == "inspect" && !strings.Contains(string(shown), "clockwork") {
				t.Errorf("checkpointctl inspect shows no process: %s", shown)
			}
		}
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

// On error, and at the deadline, every container runs again and nothing is left in the directory.
func TestADeadlineEndsACheckpointAndThePodRunsOn(t *testing.T) {
	p := pod(t)
	c := p.Run("tight", "exec clockwork tight 256")
	eventually(t, "the loop runs", func() bool {
		return exists(c.LogPath()) && strings.Contains(output(readLog(t, c.LogPath()), "stdout"), "alive")
	})
	for _, limit := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond} {
		directory := t.TempDir()
		ctx, cancel := context.WithTimeout(lab.Context(t), limit)
		err := lab.Node().CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: directory, ContainerIds: []string{c.ID}})
		cancel()
		before := len(readLog(t, c.LogPath()))
		eventually(t, "the loop goes on", func() bool { return len(readLog(t, c.LogPath())) > before })
		if err == nil {
			continue // it was fast enough
		}
		eventually(t, "the directory is empty", func() bool { left, err := os.ReadDir(directory); return err == nil && len(left) == 0 })
	}
	wantNoFault(t, c)
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
	eventually(t, "the loop goes on without a daemon", func() bool { return len(readLog(t, c.LogPath())) > before })
	if err := lab.Node().Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", state)
	}
	wantNoFault(t, c)
	checkpoint(t, p, c)
}

// archivesIn lists the tar files of a checkpoint.
func archivesIn(t *testing.T, directory string) []string {
	t.Helper()
	var archives []string
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".tar") {
			archives = append(archives, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return archives
}
