package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func user(uid int64) containerOption {
	return security(func(s *securityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: uid} })
}

// mapped gives a pod a user namespace whose root is base.
func mapped(base uint32) podOption {
	ids := mapping(base)
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
}

func mapping(base uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: base, Length: 65536}}
}

// own is a line of /proc/self/status, asked from inside.
func own(c *lab.Container, key string) string {
	return strings.TrimSpace(c.Sh("sed -n 's/^" + key + ":\t*//p' /proc/self/status"))
}

func TestAmbientCapabilitiesReachAnOrdinaryUser(t *testing.T) {
	const netBindService, sysTime = 1 << 10, 1 << 25
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024"}
	})
	ambient := func(names ...string) containerOption {
		return security(func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: names}
		})
	}
	for name, want := range map[string]uint64{"NET_BIND_SERVICE": netBindService, "SYS_TIME": sysTime} {
		c := p.Run(strings.ToLower(name[:3]), sleeper, user(1000), ambient(name))
		for _, set := range []string{"CapAmb", "CapEff", "CapPrm", "CapInh", "CapBnd"} {
			if got, _ := strconv.ParseUint(own(c, set), 16, 64); got != want {
				t.Errorf("%s: %s is %#x, want %#x", name, set, got, want)
			}
		}
	}
	listen := "timeout 0.2 nc -l -p 80; test $? = 143 -o $? = 124 && echo listened"
	for _, test := range []struct {
		name   string
		option containerOption
		want   bool
	}{{"with", ambient("NET_BIND_SERVICE"), true}, {"without", ambient(), false}} {
		c := p.Run(test.name, sleeper, user(1000), test.option)
		if _, got := run(t, c, listen); strings.Contains(got, "listened") != test.want {
			t.Errorf("%s the capability, listening on port 80: %q", test.name, got)
		}
	}
}

func TestMountOptions(t *testing.T) {
	p := pod(t)
	volume := t.TempDir()
	nested := filepath.Join(volume, "nested")
	if err := os.Mkdir(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("e2e", nested, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(nested, unix.MNT_DETACH) })
	for name, test := range map[string]struct {
		options []string
		want    string
	}{
		"none": {nil, "ran read"},
		"exec": {[]string{"noexec"}, "read"},
		"dev":  {[]string{"nodev"}, "ran"},
		"all":  {[]string{"noexec", "nodev", "nosuid"}, ""},
	} {
		c := p.Run(name, sleeper, mounting(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/v", MountOptions: test.options}))
		for _, directory := range []string{"/v", "/v/nested"} {
			_, got := run(t, c, "cp /bin/busybox "+directory+"/; mknod "+directory+"/n c 1 3 2>/dev/null; "+
				directory+"/busybox echo ran 2>/dev/null; cat "+directory+"/n 2>/dev/null && echo read; rm "+directory+"/*b* "+directory+"/n")
			if got = strings.Join(strings.Fields(got), " "); got != test.want {
				t.Errorf("%v at %s: %q, want %q", test.options, directory, got, test.want)
			}
			if flags := c.Sh("awk '$5 == \"" + directory + "\" {print $6}' /proc/self/mountinfo"); !hasAll(flags, test.options) {
				t.Errorf("%s has options %s, want %v", directory, flags, test.options)
			}
		}
	}
}

func hasAll(list string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(","+list+",", ","+word+",") {
			return false
		}
	}
	return true
}

func TestVolumesOfAPodWithAUserNamespace(t *testing.T) {
	const base = 300000
	p := pod(t, mapped(base))
	volume := t.TempDir()
	c := p.Run("main", sleeper, mounting(
		&runtimeapi.Mount{HostPath: volume, ContainerPath: "/mapped", UidMappings: mapping(base), GidMappings: mapping(base)},
		&runtimeapi.Mount{HostPath: volume, ContainerPath: "/plain"},
	))
	if got := c.Sh("stat -c %u:%g /mapped /plain"); got != "0:0\n65534:65534" {
		t.Errorf("owners with and without mapping: %q", got)
	}
	c.Sh("touch /mapped/new && chown 7:8 /mapped/new")
	var stat syscall.Stat_t
	if err := syscall.Stat(filepath.Join(volume, "new"), &stat); err != nil || stat.Uid != 7 || stat.Gid != 8 {
		t.Errorf("on the node: %d:%d, %v", stat.Uid, stat.Gid, err)
	}
	other := &runtimeapi.Mount{HostPath: volume, ContainerPath: "/x", UidMappings: mapping(base + 1), GidMappings: mapping(base + 1)}
	_, err := create(t, p, mounting(other))
	wantCode(t, "another mapping than the pod's", err, codes.InvalidArgument, volume, "mapping")
}

func TestUserNamespaceOnTheNodesNetwork(t *testing.T) {
	response, err := lab.Node().Status(lab.Context(t), false)
	if err != nil || !response.GetFeatures().GetUserNamespacesHostNetwork() {
		t.Fatalf("features %v, %v", response.GetFeatures(), err)
	}
	pod(t)
	p := lab.RunPod(t, mapped(400000), func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname, c.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
	})
	c := p.Run("main", sleeper)
	if got := c.Sh("awk '{print $1, $2, $3}' /proc/self/uid_map; id -u; touch /root/x && stat -c %u /root/x"); got != "0 400000 65536\n0\n0" {
		t.Errorf("ids: %q", got)
	}
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Sh("readlink /proc/self/ns/net"); got != ours {
		t.Errorf("network namespace %s, want the node's %s", got, ours)
	}
	if got := c.Sh("ls /sys/class/net"); !strings.Contains(got, "lo") {
		t.Errorf("/sys/class/net: %q", got)
	}
	if _, got := run(t, c, "ip link set lo down"); !strings.Contains(got, "not permitted") {
		t.Errorf("the node's loopback: %q", got)
	}
	c.Stop(0)
}

func TestHugepageLimitsOfAnyNode(t *testing.T) {
	p := pod(t)
	// The kubelet sends every size the node has, whether a controller for them is there or not.
	none := func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}
	}
	p.Run("none", sleeper, none)
	_, err := create(t, p, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}
	})
	if controllers, _ := os.ReadFile("/proc/cgroups"); strings.Contains(string(controllers), "hugetlb") {
		if err != nil {
			t.Error(err)
		}
		return
	}
	wantCode(t, "a limit without its controller", err, codes.FailedPrecondition, "hugetlb")
}

func TestSwapIsLimitedTogetherWithMemory(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 32<<20, 48<<20
	})
	got := c.Sh("cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes /sys/fs/cgroup/memory.swap.max 2>/dev/null; true")
	if got == "" { // v1 controllers are not mounted inside
		path := legacy(t, c, "memory")
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", path, "memory.memsw.limit_in_bytes"))
		if err != nil {
			t.Fatal(err)
		}
		got = strings.TrimSpace(string(text))
	}
	if got != fmt.Sprint(48<<20) && got != fmt.Sprint(16<<20) {
		t.Errorf("limit of swap: %q", got)
	}
}

// pidOf is the process id on the node of a container's process 1.
func pidOf(t *testing.T, c *lab.Container) int {
	t.Helper()
	response, err := lab.Node().ContainerStatus(lab.Context(t), c.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(response.Info["info"]), &info); err != nil || info.Pid < 2 {
		t.Fatalf("no pid in %q: %v", response.Info["info"], err)
	}
	return info.Pid
}

// legacy is a container's path in a v1 hierarchy.
func legacy(t *testing.T, c *lab.Container, controller string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pidOf(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); parts[1] == controller {
			return parts[2]
		}
	}
	t.Fatalf("no %s in %s", controller, text)
	return ""
}

func TestUnifiedFilesAreWrittenAsGiven(t *testing.T) {
	p := pod(t)
	id, err := create(t, p, func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"/bin/sh", "-c", sleeper}
		c.Linux.Resources.Unified = map[string]string{"memory.high": "50331648"}
	})
	controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if !strings.Contains(string(controllers), "memory") { // hybrid: cgroup2 governs no memory
		wantCode(t, "memory.high where cgroup2 has no memory", err, codes.FailedPrecondition, "memory.high")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := cat(t, id, "memory.high"); got != "50331648" {
		t.Errorf("memory.high = %q", got)
	}
}

// cat reads a file of a created container's own cgroup.
func cat(t *testing.T, id, file string) string {
	t.Helper()
	if err := lab.Node().StartContainer(lab.Context(t), id); err != nil {
		t.Fatal(err)
	}
	stdout, _, err := lab.Node().ExecSync(lab.Context(t), id, []string{"cat", "/sys/fs/cgroup/" + file}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(stdout))
}

func TestStopSignals(t *testing.T) {
	p := pod(t)
	for signal, name := range map[runtimeapi.Signal]string{
		runtimeapi.Signal_SIGNAL_SIGTERM: "TERM", runtimeapi.Signal_SIGNAL_SIGUSR1: "USR1", runtimeapi.Signal_SIGNAL_SIGQUIT: "QUIT", runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3: "RTMIN+3",
	} {
		trap := name
		if name == "RTMIN+3" {
			trap = "37" // busybox knows these by number
		}
		script := "trap 'exit 41' " + trap + "; while :; do sleep 0.02; done"
		c := p.Run(strings.ToLower(strings.ReplaceAll(name, "+", "-")), script, func(c *runtimeapi.ContainerConfig) { c.StopSignal = signal })
		if got := c.Status().GetStopSignal(); got != signal {
			t.Errorf("%s: status says %s", name, got)
		}
		c.Stop(10)
		if got := c.Status().GetExitCode(); got != 41 {
			t.Errorf("%s: exit code %d", name, got)
		}
	}
	if got := p.Create("default", sleeper).Status().GetStopSignal(); got != runtimeapi.Signal_SIGNAL_SIGTERM {
		t.Errorf("without a wish: status says %s", got)
	}
}

func TestSysctlsThatAreOpen(t *testing.T) {
	const read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
	before := pingAndPorts(t)
	p := pod(t)
	if got := strings.Fields(p.Run("main", sleeper).Sh(read)); strings.Join(got, " ") != "0 0 2147483647" {
		t.Errorf("of a pod: %v", got)
	}
	node := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname, c.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
	})
	node.Run("main", sleeper)
	if after := pingAndPorts(t); after != before {
		t.Errorf("of the node: %q became %q", before, after)
	}
}

func pingAndPorts(t *testing.T) string {
	t.Helper()
	return read(t, "/proc/sys/net/ipv4/ip_unprivileged_port_start") + read(t, "/proc/sys/net/ipv4/ping_group_range")
}

func TestDevicePermissions(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/node-log", Permissions: "r"}}
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYSLOG"}}
	})
	if _, got := run(t, c, "dd if=/dev/node-log of=/dev/null bs=8k count=1 2>/dev/null && echo read; echo x >/dev/node-log"); !strings.HasPrefix(got, "read") || !strings.Contains(got, "not permitted") {
		t.Errorf("a device that may be read: %q", got)
	}
	everything := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	all := everything.Run("main", sleeper, security(func(s *securityContext) { s.Privileged = true }))
	if got := all.Sh("test -c /dev/kmsg && echo there; mkdir /sys/fs/cgroup/below && rmdir /sys/fs/cgroup/below && echo writable"); got != "there\nwritable" {
		t.Errorf("a privileged container's devices and cgroup: %q", got)
	}
}
