package cri

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func TestContainerGoesThroughItsStates(t *testing.T) {
	began := time.Now().UnixNano()
	p := pod(t)
	c := p.Create("main", "exit 3")
	created := c.Status()
	if created.State != runtimeapi.ContainerState_CONTAINER_CREATED || created.StartedAt != 0 || created.FinishedAt != 0 {
		t.Errorf("created: %v", created)
	}
	c.Start()
	exited := c.Wait()
	if exited.CreatedAt < began || exited.StartedAt < exited.CreatedAt || exited.FinishedAt < exited.StartedAt || exited.FinishedAt > time.Now().UnixNano() {
		t.Errorf("times: created %d started %d finished %d", exited.CreatedAt, exited.StartedAt, exited.FinishedAt)
	}
	if exited.ExitCode != 3 || exited.Reason != "Error" {
		t.Errorf("exit code %d, reason %q", exited.ExitCode, exited.Reason)
	}
	wantCode(t, "start of an exited container", lab.Node().StartContainer(lab.Context(t), c.ID), codes.FailedPrecondition, c.ID[:12])
}

// What the process cannot have done before StartContainer, it has not.
func TestNothingRunsBeforeStart(t *testing.T) {
	p := pod(t)
	volume := t.TempDir()
	c := p.Create("main", "touch /volume/ran; "+sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/volume"}}
	})
	time.Sleep(50 * time.Millisecond)
	if exists(volume + "/ran") {
		t.Error("the process ran before StartContainer")
	}
	c.Start()
	eventually(t, "the process runs", func() bool { return exists(volume + "/ran") })
}

func TestExitCodes(t *testing.T) {
	p := pod(t)
	for _, test := range []struct {
		name, script string
		code         int32
		reason       string
	}{
		{"zero", "exit 0", 0, "Completed"},
		{"one", "exit 1", 1, "Error"},
		{"large", "exit 255", 255, "Error"},
		{"killed", "exec sh -c 'trap - KILL; sleep 1000 & wait'", 137, "Error"},
	} {
		c := p.Run(test.name, test.script)
		if test.code == 137 {
			if err := syscall.Kill(pidOf(t, c), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if status := c.Wait(); status.ExitCode != test.code || status.Reason != test.reason {
			t.Errorf("%s: exit code %d, reason %q; want %d, %q", test.name, status.ExitCode, status.Reason, test.code, test.reason)
		}
	}
}

func TestContainerStatusEchoesTheRequest(t *testing.T) {
	p := pod(t)
	volume := t.TempDir()
	mount := &runtimeapi.Mount{HostPath: volume, ContainerPath: "/volume", Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Attempt = 4
		c.Mounts = []*runtimeapi.Mount{mount}
	})
	got := c.Status()
	if !proto.Equal(got.Metadata, c.Config.Metadata) {
		t.Errorf("metadata = %v", got.Metadata)
	}
	if got.Labels["io.kubernetes.container.name"] != "main" || got.Annotations["e2e.example/kind"] != "test" {
		t.Errorf("labels %v, annotations %v", got.Labels, got.Annotations)
	}
	if got.Image.GetImage() == "" || got.ImageRef == "" {
		t.Errorf("image %v, reference %q", got.Image, got.ImageRef)
	}
	if got.ImageId != c.Config.Image.Image {
		t.Errorf("image id %q, want what PullImage returned: %q", got.ImageId, c.Config.Image.Image)
	}
	if got.LogPath != c.LogPath() {
		t.Errorf("log path %q, want %q", got.LogPath, c.LogPath())
	}
	echoed := false
	for _, candidate := range got.Mounts {
		if candidate.ContainerPath == mount.ContainerPath {
			echoed = candidate.HostPath == mount.HostPath && candidate.Readonly && candidate.Propagation == mount.Propagation
		}
	}
	if !echoed {
		t.Errorf("mounts = %v", got.Mounts)
	}
	list, err := lab.Node().ListContainers(lab.Context(t), &runtimeapi.ContainerFilter{Id: c.ID})
	if err != nil || len(list) != 1 || list[0].PodSandboxId != p.ID || list[0].ImageId != got.ImageId || list[0].State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("ListContainers: %v, %v", list, err)
	}
}

func TestCreateContainerIsSafeToRepeat(t *testing.T) {
	p := pod(t)
	c := p.Create("main", sleeper)
	id, err := lab.Node().CreateContainer(lab.Context(t), p.ID, c.Config, p.Config)
	if err != nil || id != c.ID {
		t.Errorf("the same request again: %q, %v; want %q", id, err, c.ID)
	}
	other := proto.Clone(c.Config).(*runtimeapi.ContainerConfig)
	other.Command = []string{"/bin/true"}
	_, err = lab.Node().Runtime.CreateContainer(lab.Context(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: other, SandboxConfig: p.Config})
	wantCode(t, "another request of the same name", err, codes.AlreadyExists, "main")
}

func TestContainerIsStoppedAndRemovedIdempotently(t *testing.T) {
	p := pod(t)
	ctx, n := lab.Context(t), lab.Node()
	c := p.Run("main", sleeper)
	for range 2 {
		c.Stop(5)
	}
	for range 2 {
		if err := n.RemoveContainer(ctx, c.ID); err != nil {
			t.Fatalf("RemoveContainer: %v", err)
		}
	}
	_, err := n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	wantCode(t, "status of a removed container", err, codes.NotFound, c.ID)
	wantCode(t, "start of a removed container", n.StartContainer(ctx, c.ID), codes.NotFound, c.ID)
	if err := n.StopContainer(ctx, c.ID, 1); err != nil {
		t.Errorf("stop of a removed container: %v", err)
	}
	// Removed by force while it runs, and while it was never started.
	running, created := p.Run("running", sleeper), p.Create("created", sleeper)
	pid := pidOf(t, running)
	for _, c := range []*lab.Container{running, created} {
		if err := n.RemoveContainer(ctx, c.ID); err != nil {
			t.Errorf("RemoveContainer of a live one: %v", err)
		}
	}
	if alive(pid) {
		t.Error("a removed container's process runs on")
	}
	// The name is free again.
	p.Run("main", sleeper)
}

func TestZeroGraceKillsAtOnce(t *testing.T) {
	p := pod(t)
	c := p.Run("deaf", "trap '' TERM; while :; do sleep 0.05; done")
	began := time.Now()
	c.Stop(0)
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %s", took)
	}
	if code := c.Status().ExitCode; code != 137 {
		t.Errorf("exit code = %d", code)
	}
}

// The kernel drops a signal that a first process has no handler for: the program gets it once it has one, and only once.
func TestStopReachesAProgramThatHasJustStarted(t *testing.T) {
	p := pod(t)
	c := p.Run("young", "sleep 0.4; trap 'n=$((n + 1)); [ $n = 1 ] || exit 6; sleep 0.2; exit 5' TERM; while :; do sleep 0.02; done")
	began := time.Now()
	c.Stop(20)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if code := c.Status().ExitCode; code != 5 {
		t.Errorf("exit code = %d", code)
	}
	// One that never has a handler is killed at the end of its grace, and its pod goes at once.
	c = p.Run("deaf", "exec sleep 600")
	began = time.Now()
	c.Stop(1)
	if took := time.Since(began); took < time.Second || took > 2*time.Second {
		t.Errorf("a grace of 1 s took %s", took)
	}
	if code := c.Status().ExitCode; code != 137 {
		t.Errorf("exit code = %d", code)
	}
}

// A second call with a shorter grace period shortens the wait of the first.
func TestSecondStopShortensTheFirst(t *testing.T) {
	p := pod(t)
	c := p.Run("deaf", "trap '' TERM; while :; do sleep 0.05; done")
	began, first := time.Now(), make(chan error)
	ctx := lab.Context(t)
	go func() { first <- lab.Node().StopContainer(ctx, c.ID, 60) }()
	time.Sleep(200 * time.Millisecond)
	c.Stop(0)
	if err := <-first; err != nil {
		t.Errorf("first stop: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestListContainersAndsItsFilters(t *testing.T) {
	p := pod(t)
	running := p.Run("running", sleeper)
	exited := p.Run("exited", "exit 0")
	exited.Wait()
	created := p.Create("created", sleeper)
	other := lab.RunPod(t)
	foreign := other.Run("running", sleeper)
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	names := map[string]string{running.ID: "running", exited.ID: "exited", created.ID: "created", foreign.ID: "foreign"}
	for _, test := range []struct {
		what   string
		filter *runtimeapi.ContainerFilter
		want   string
	}{
		{"none", nil, "created exited foreign running"},
		{"sandbox", &runtimeapi.ContainerFilter{PodSandboxId: p.ID}, "created exited running"},
		{"sandbox prefix", &runtimeapi.ContainerFilter{PodSandboxId: p.ID[:12]}, "created exited running"},
		{"id", &runtimeapi.ContainerFilter{Id: exited.ID}, "exited"},
		{"id prefix", &runtimeapi.ContainerFilter{Id: exited.ID[:12]}, "exited"},
		{"running", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, "foreign running"},
		{"exited", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_EXITED)}, "exited"},
		{"created", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_CREATED)}, "created"},
		{"label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.container.name": "running"}}, "foreign running"},
		{"label and sandbox", &runtimeapi.ContainerFilter{PodSandboxId: p.ID, LabelSelector: map[string]string{"io.kubernetes.container.name": "running"}}, "running"},
		{"id and foreign sandbox", &runtimeapi.ContainerFilter{Id: exited.ID, PodSandboxId: other.ID}, ""},
		{"unknown id", &runtimeapi.ContainerFilter{Id: strings.Repeat("f", 64)}, ""},
	} {
		list, err := lab.Node().ListContainers(lab.Context(t), test.filter)
		if err != nil {
			t.Errorf("%s: %v", test.what, err)
			continue
		}
		var got []string
		for _, container := range list {
			got = append(got, names[container.Id])
		}
		if joined := sorted(got); joined != test.want {
			t.Errorf("%s: got %q, want %q", test.what, joined, test.want)
		}
	}
}

func TestProcessFromImageAndRequest(t *testing.T) {
	lab.Image(t, "config:1")
	p := pod(t)
	image := lab.Image(t, "config:1")
	run := func(name string, options ...func(*runtimeapi.ContainerConfig)) *lab.Container {
		t.Helper()
		return p.Run(name, "", append([]func(*runtimeapi.ContainerConfig){func(c *runtimeapi.ContainerConfig) {
			c.Command, c.Image.Image = nil, image
		}}, options...)...)
	}
	plain := run("plain")
	eventually(t, "output", func() bool {
		return exists(plain.LogPath()) && strings.Contains(output(readLog(t, plain.LogPath()), "stdout"), "\n")
	})
	if got := output(readLog(t, plain.LogPath()), "stdout"); got != "hello /var/work\n" {
		t.Errorf("image's entrypoint, env and working directory: %q", got)
	}
	plain.Stop(10)
	if code := plain.Status().ExitCode; code != 42 {
		t.Errorf("exit code %d after the image's stop signal, want 42", code)
	}
	args := run("args", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"echo only args $GREETING"} })
	args.Wait()
	if got := output(readLog(t, args.LogPath()), "stdout"); got != "only args hello\n" {
		t.Errorf("args alone: %q", got)
	}
	all := run("all", func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"/bin/sh", "-c"}
		c.Args = []string{"echo $GREETING-$MORE-${EMPTY-unset}-$(pwd)"}
		c.Envs = []*runtimeapi.KeyValue{{Key: "GREETING", Value: []byte("hi")}, {Key: "MORE", Value: []byte("a b=c")}}
		c.WorkingDir = "/tmp/new"
	})
	all.Wait()
	if got := output(readLog(t, all.LogPath()), "stdout"); got != "hi-a b=c--/tmp/new\n" {
		t.Errorf("request over image: %q", got)
	}
}

func TestStartFailureIsAnExitWithAReason(t *testing.T) {
	p := pod(t)
	for name, command := range map[string][]string{
		"missing":   {"/no/such/program"},
		"directory": {"/etc"},
		"denied":    {"/etc/passwd"},
	} {
		config := client.Container(p.Config, name, lab.Image(t, "clockwork:1"), command)
		id, err := lab.Node().CreateContainer(lab.Context(t), p.ID, config, p.Config)
		if err == nil {
			err = lab.Node().StartContainer(lab.Context(t), id)
		}
		if err == nil || !strings.Contains(err.Error(), command[0]) {
			t.Errorf("%s: error %v does not name %s", name, err, command[0])
			continue
		}
		if id == "" {
			continue // refused at create: the kubelet reports that as well
		}
		response, err := lab.Node().ContainerStatus(lab.Context(t), id, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := response.Status; got.State != runtimeapi.ContainerState_CONTAINER_EXITED || got.ExitCode == 0 || got.Reason == "" {
			t.Errorf("%s: state %s, code %d, reason %q", name, got.State, got.ExitCode, got.Reason)
		}
	}
}

func TestOutOfMemoryIsSaid(t *testing.T) {
	p := pod(t)
	c := p.Run("hungry", "exec clockwork hold 64", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 16 << 20
	})
	if status := c.Wait(); status.ExitCode != 137 || status.Reason != "OOMKilled" {
		t.Errorf("exit code %d, reason %q", status.ExitCode, status.Reason)
	}
	// A child that is killed for memory while the container lives is not the container's end.
	survivor := p.Run("survivor", "clockwork hold 64; echo child $?; "+sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 16 << 20
	})
	eventually(t, "the child was killed", func() bool {
		return exists(survivor.LogPath()) && strings.Contains(output(readLog(t, survivor.LogPath()), "stdout"), "child 137")
	})
	if state := survivor.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("survivor is %s", state)
	}
}

func TestTerminal(t *testing.T) {
	p := pod(t)
	c := p.Run("tty", "tty; stty size; "+sleeper, func(c *runtimeapi.ContainerConfig) { c.Tty = true })
	eventually(t, "output", func() bool { return exists(c.LogPath()) && len(readLog(t, c.LogPath())) >= 2 })
	lines := readLog(t, c.LogPath())
	if got := strings.TrimSpace(lines[0].text); !strings.HasPrefix(got, "/dev/pts/") && got != "/dev/console" {
		t.Errorf("tty says %q", got)
	}
	if lines[0].stream != "stdout" {
		t.Errorf("terminal output is logged as %s", lines[0].stream)
	}
}
