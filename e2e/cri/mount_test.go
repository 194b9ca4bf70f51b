package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func mounting(mounts ...*runtimeapi.Mount) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = mounts }
}

// tmpfs mounts one at path until the test ends.
func tmpfs(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("e2e", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestVolumes(t *testing.T) {
	p := pod(t)
	volume := t.TempDir()
	write(t, filepath.Join(volume, "file"), "from the node")
	if err := os.Symlink(volume, volume+"-link"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(volume + "-link") })
	c := p.Run("main", sleeper, mounting(
		&runtimeapi.Mount{HostPath: volume, ContainerPath: "/rw"},
		// The kubelet sends image_sub_path with every volume's subPath, images or not.
		&runtimeapi.Mount{HostPath: volume, ContainerPath: "/ro", Readonly: true, ImageSubPath: "sub"},
		&runtimeapi.Mount{HostPath: filepath.Join(volume, "file"), ContainerPath: "/deep/er/single"},
		&runtimeapi.Mount{HostPath: volume + "-link", ContainerPath: "/linked"},
		&runtimeapi.Mount{HostPath: filepath.Join(volume, "file"), ContainerPath: "/etc/passwd", Readonly: true},
	))
	if got := c.Sh("cat /rw/file /deep/er/single /linked/file /etc/passwd"); got != strings.Repeat("from the node", 4) {
		t.Errorf("read %q", got)
	}
	if got := c.Sh("echo x >/rw/new; touch /ro/no 2>&1; touch /etc/passwd 2>&1; true"); strings.Count(got, "Read-only file system") != 2 {
		t.Errorf("read-only mounts: %q", got)
	}
	if !exists(filepath.Join(volume, "new")) {
		t.Error("a write did not reach the node")
	}
}

func TestMountsAreExactlyThoseAskedFor(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, mounting(&runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/volume"}))
	known := map[string]bool{"/": true, "/proc": true, "/dev": true, "/dev/pts": true, "/dev/mqueue": true, "/dev/shm": true, "/sys": true,
		"/sys/fs/cgroup": true, "/etc/hostname": true, "/etc/hosts": true, "/etc/resolv.conf": true, "/volume": true}
	for _, masked := range append(append([]string{}, client.MaskedPaths...), client.ReadonlyPaths...) {
		known[masked] = true
	}
	for line := range strings.Lines(c.Sh("cat /proc/self/mountinfo")) {
		point := strings.Fields(line)[4]
		if !known[point] && !strings.HasPrefix(point, "/sys/fs/cgroup/") {
			t.Errorf("unasked mount: %s", strings.TrimSpace(line))
		}
		delete(known, point)
	}
	for _, point := range []string{"/", "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/volume"} {
		if known[point] {
			t.Errorf("missing mount: %s", point)
		}
	}
}

func TestPropagation(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	for _, test := range []struct {
		name         string
		mode         runtimeapi.MountPropagation
		down, upward bool
	}{
		{"private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{"host-to-container", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{"bidirectional", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		volume := t.TempDir()
		tmpfs(t, volume) // a mount of its own, shared as all mounts of this world are
		admin := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })
		c := p.Run(test.name, sleeper, admin, mounting(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/volume", Propagation: test.mode}))
		tmpfs(t, filepath.Join(volume, "down"))
		write(t, filepath.Join(volume, "down/file"), "x")
		if seen := c.Sh("ls /volume/down") == "file"; seen != test.down {
			t.Errorf("%s: a later mount of the node is seen: %v, want %v", test.name, seen, test.down)
		}
		c.Sh("mkdir /volume/up && mount -t tmpfs up /volume/up && touch /volume/up/file")
		t.Cleanup(func() { _ = unix.Unmount(filepath.Join(volume, "up"), unix.MNT_DETACH) })
		if seen := exists(filepath.Join(volume, "up/file")); seen != test.upward {
			t.Errorf("%s: a mount of the container is seen: %v, want %v", test.name, seen, test.upward)
		}
		c.Stop(0)
	}
}

func TestRecursiveReadOnly(t *testing.T) {
	p := pod(t)
	volume := t.TempDir()
	tmpfs(t, filepath.Join(volume, "sub"))
	c := p.Run("main", sleeper, mounting(
		&runtimeapi.Mount{HostPath: volume, ContainerPath: "/plain", Readonly: true},
		&runtimeapi.Mount{HostPath: volume, ContainerPath: "/recursive", Readonly: true, RecursiveReadOnly: true},
	))
	if got := c.Sh("touch /plain/sub/a && echo written; touch /recursive/sub/b 2>&1; true"); !strings.HasPrefix(got, "written") || !strings.Contains(got, "Read-only file system") {
		t.Errorf("got %q", got)
	}
	for what, mount := range map[string]*runtimeapi.Mount{
		"recursive_read_only without readonly":       {HostPath: volume, ContainerPath: "/x", RecursiveReadOnly: true},
		"recursive_read_only with bidirectional":     {HostPath: volume, ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		"recursive_read_only with host to container": {HostPath: volume, ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	} {
		config := client.Container(p.Config, "refused", lab.Image(t, "clockwork:1"), []string{"true"}, mounting(mount))
		_, err := lab.Node().Runtime.CreateContainer(lab.Context(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
		wantCode(t, what, err, codes.InvalidArgument, "recursive")
	}
}

func TestMissingHostPathIsAnErrorAndMakesNothing(t *testing.T) {
	p := pod(t)
	missing := filepath.Join(t.TempDir(), "missing/path")
	config := client.Container(p.Config, "main", lab.Image(t, "clockwork:1"), []string{"true"}, mounting(&runtimeapi.Mount{HostPath: missing, ContainerPath: "/x"}))
	_, err := lab.Node().Runtime.CreateContainer(lab.Context(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	if err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("error %v does not name %s", err, missing)
	}
	if exists(missing) {
		t.Error("the directory was made")
	}
}

// A mount target that the image turns into a symlink out of its root stays inside the root.
func TestTargetsStayInsideTheRootFilesystem(t *testing.T) {
	lab.Image(t, "links:1")
	p := pod(t)
	volume := t.TempDir()
	write(t, filepath.Join(volume, "file"), "volume")
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = lab.Image(t, "links:1")
		for _, link := range []string{"/absolute", "/climbing", "/chained"} {
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: volume, ContainerPath: link + "/inner" + link})
		}
	})
	if got := c.Sh("cd /outside/inner && cat absolute/file climbing/file chained/file"); got != "volumevolumevolume" {
		t.Errorf("got %q", got)
	}
	if exists("/outside") {
		t.Error("a directory was made outside the root filesystem")
	}
}
