package cri

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// The fourteen capabilities that Docker, containerd and CRI-O with Docker's list grant by default.
const defaultCapabilities = "00000000a80425fb"

func security(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func TestCapabilities(t *testing.T) {
	p := pod(t)
	for _, test := range []struct {
		name       string
		add, drop  []string
		user       int64
		want, ambi string
	}{
		{"default", nil, nil, 0, defaultCapabilities, "0000000000000000"},
		{"add", []string{"NET_ADMIN"}, nil, 0, "00000000a80435fb", "0000000000000000"},
		{"add-prefixed", []string{"CAP_NET_ADMIN"}, nil, 0, "00000000a80435fb", "0000000000000000"},
		{"drop", nil, []string{"CHOWN"}, 0, "00000000a80425fa", "0000000000000000"},
		{"drop-all", nil, []string{"ALL"}, 0, "0000000000000000", "0000000000000000"},
		{"drop-all-add", []string{"KILL"}, []string{"ALL"}, 0, "0000000000000020", "0000000000000000"},
		{"user", nil, nil, 1000, "0000000000000000", "0000000000000000"},
	} {
		c := p.Run(test.name, sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: test.add, DropCapabilities: test.drop}
			s.RunAsUser = &runtimeapi.Int64Value{Value: test.user}
		}))
		pid := pidOf(t, c)
		if got := procStatus(t, pid, "CapEff"); got != test.want {
			t.Errorf("%s: effective %s, want %s", test.name, got, test.want)
		}
		if got := procStatus(t, pid, "CapAmb"); got != test.ambi {
			t.Errorf("%s: ambient %s, want %s", test.name, got, test.ambi)
		}
		if seen := c.Sh("grep CapEff /proc/self/status"); !strings.Contains(seen, test.want) {
			t.Errorf("%s: an exec has %s, want %s", test.name, seen, test.want)
		}
	}
}

func TestSeccompAndNoNewPrivileges(t *testing.T) {
	p := pod(t)
	plain := p.Run("plain", sleeper)
	if got := procStatus(t, pidOf(t, plain), "Seccomp"); got != "2" {
		t.Errorf("RuntimeDefault: Seccomp %s, want 2", got)
	}
	if got := plain.Sh("grep '^Seccomp:' /proc/self/status; unshare -n true 2>&1; echo $?"); !strings.HasPrefix(got, "Seccomp:\t2") || strings.HasSuffix(got, "\n0") {
		t.Errorf("exec under RuntimeDefault: %q", got)
	}
	open := p.Run("open", sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		s.NoNewPrivs = true
	}))
	if got := procStatus(t, pidOf(t, open), "Seccomp"); got != "0" {
		t.Errorf("Unconfined: Seccomp %s, want 0", got)
	}
	if got := procStatus(t, pidOf(t, open), "NoNewPrivs"); got != "1" {
		t.Errorf("NoNewPrivs = %s", got)
	}
	if got := procStatus(t, pidOf(t, plain), "NoNewPrivs"); got != "0" {
		t.Errorf("NoNewPrivs without asking = %s", got)
	}
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	for script, want := range map[string]string{
		"cat /proc/timer_list | wc -c": "0",
		"cat /proc/keys | wc -c":       "0",
		"ls /sys/firmware | wc -l":     "0",
		"echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward || echo refused": "refused",
		"echo h 2>/dev/null >/proc/sysrq-trigger || echo refused":           "refused",
		"mkdir /sys/fs/cgroup/x 2>/dev/null || echo refused":                "refused",
	} {
		if got := c.Sh(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// The kubelet's procMount Unmasked, allowed only with a user namespace of the pod's own, arrives as empty lists.
func TestUnmaskedProc(t *testing.T) {
	ids := []*runtimeapi.IDMapping{{HostId: 300000, ContainerId: 0, Length: 65536}}
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
	c := p.Run("main", sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths, s.ReadonlyPaths = nil, nil }))
	if mounted := c.Sh("grep ' /proc/' /proc/self/mountinfo || true"); mounted != "" {
		t.Errorf("below /proc are mounts: %s", mounted)
	}
}

func TestDevices(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	// No "core", which others link to /proc/kcore where the kernel has it: it would be masked.
	want := "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "
	if got := c.Sh("ls /dev | sort | tr '\\n' ' '"); got != want {
		t.Errorf("/dev holds %q, want %q", got, want)
	}
	if got := c.Sh("echo x >/dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c"); got != "4\n4" {
		t.Errorf("devices: %q", got)
	}
	if got := c.Sh("mknod /tmp/disk b 254 0 && cat /tmp/disk 2>&1 | head -c 100"); !strings.Contains(got, "not permitted") {
		t.Errorf("a block device that was not granted: %q", got)
	}
	with := p.Run("with", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/sink", Permissions: "rw"}}
	})
	if got := with.Sh("echo x >/dev/sink; stat -c '%t %T' /dev/sink"); got != "1 3" {
		t.Errorf("/dev/sink is %q", got)
	}
}

func TestPrivileged(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.Run("main", sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	pid := pidOf(t, c)
	if got := procStatus(t, pid, "Seccomp"); got != "0" {
		t.Errorf("Seccomp = %s", got)
	}
	// The bounding set of the node, whatever it lacks, is what privileged means.
	if eff, bound := procStatus(t, pid, "CapEff"), procStatus(t, 1, "CapBnd"); eff != bound {
		t.Errorf("effective %s, want the node's bounding set %s", eff, bound)
	}
	if got := c.Sh("echo 0 >/proc/sys/net/ipv4/ip_forward && ls /dev | wc -l"); got == "" {
		t.Error("/proc/sys is read-only")
	}
}

func TestUsersAndGroups(t *testing.T) {
	for _, image := range []string{"user:name", "user:uid", "user:uid-gid", "user:member"} {
		lab.Image(t, image)
	}
	p := pod(t)
	uid := func(value int64) func(*runtimeapi.LinuxContainerSecurityContext) {
		return func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: value} }
	}
	for _, test := range []struct {
		name, image string
		change      func(*runtimeapi.LinuxContainerSecurityContext)
		want        string
	}{
		{"root", "clockwork:1", func(*runtimeapi.LinuxContainerSecurityContext) {}, "0 0 0"},
		{"image-name", "user:name", func(*runtimeapi.LinuxContainerSecurityContext) {}, "33 33 33"},
		{"image-uid", "user:uid", func(*runtimeapi.LinuxContainerSecurityContext) {}, "1002 0 0"},
		{"image-uid-gid", "user:uid-gid", func(*runtimeapi.LinuxContainerSecurityContext) {}, "1003 1004 1004"},
		{"image-member", "user:member", func(*runtimeapi.LinuxContainerSecurityContext) {}, "1000 1000 1000 50000"},
		{"uid", "user:name", uid(1000), "1000 1000 1000 50000"},
		{"uid-gid", "clockwork:1", func(s *runtimeapi.LinuxContainerSecurityContext) {
			uid(1234)(s)
			s.RunAsGroup = &runtimeapi.Int64Value{Value: 5678}
			s.SupplementalGroups = []int64{7, 8}
		}, "1234 5678 5678 7 8"},
		{"username", "clockwork:1", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "www-data" }, "33 33 33"},
		{"strict", "user:member", func(s *runtimeapi.LinuxContainerSecurityContext) {
			uid(1000)(s)
			s.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
			s.SupplementalGroups = []int64{9}
		}, "1000 1000 1000 9"},
	} {
		c := p.Run(test.name, sleeper, security(test.change), func(c *runtimeapi.ContainerConfig) { c.Image.Image = lab.Image(t, test.image) })
		if got := c.Sh("echo $(id -u) $(id -g) $(id -G)"); got != test.want {
			t.Errorf("%s: ids %q, want %q", test.name, got, test.want)
		}
	}
	config := client.Container(p.Config, "nobody-knows", lab.Image(t, "clockwork:1"), []string{"true"}, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "stranger" }))
	_, err := lab.Node().Runtime.CreateContainer(lab.Context(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	wantCode(t, "unknown user name", err, codes.InvalidArgument, "stranger")
}

func TestReadonlyRootFilesystem(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }))
	if got := c.Sh("touch /tmp/x 2>&1; touch /dev/shm/y && echo shm"); !strings.Contains(got, "Read-only file system") || !strings.Contains(got, "shm") {
		t.Errorf("got %q", got)
	}
}

func TestOomScoreAdj(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 777 })
	if got := c.Sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj"); got != "777\n777" {
		t.Errorf("oom_score_adj = %q", got)
	}
	// A negative value that this node may not set is lowered as far as it goes, not refused: static pods ask for it.
	low := p.Run("low", sleeper, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.OomScoreAdj = -997 })
	if got := low.Sh("echo alive"); got != "alive" {
		t.Error(got)
	}
}
