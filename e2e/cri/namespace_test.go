package cri

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func withPid(mode runtimeapi.NamespaceMode) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode }
}

func TestPodNamespacesAreSharedAndContainerNamespacesAreNot(t *testing.T) {
	p := pod(t)
	other := lab.RunPod(t)
	c1, c2, d := pidOf(t, p.Run("c1", sleeper)), pidOf(t, p.Run("c2", sleeper)), pidOf(t, other.Run("d", sleeper))
	host := os.Getpid()
	for _, kind := range []string{"net", "ipc", "uts", "time"} {
		one, two := namespace(t, c1, kind), namespace(t, c2, kind)
		if one != two {
			t.Errorf("%s: %s and %s in one pod", kind, one, two)
		}
		if one == namespace(t, host, kind) || one == namespace(t, d, kind) {
			t.Errorf("%s: %s is shared with the node or another pod", kind, one)
		}
	}
	for _, kind := range []string{"mnt", "pid", "cgroup"} {
		all := []string{namespace(t, c1, kind), namespace(t, c2, kind), namespace(t, d, kind), namespace(t, host, kind)}
		slices.Sort(all)
		if len(slices.Compact(all)) != 4 {
			t.Errorf("%s: not one each: %v", kind, all)
		}
	}
	if namespace(t, c1, "user") != namespace(t, host, "user") {
		t.Error("user: a pod without userns_options has a user namespace")
	}
}

// CRIU refuses nested time namespaces, and a child in another one than its parent would see other clocks.
func TestNoTaskIsLeftWithADifferentNamespaceForChildren(t *testing.T) {
	p := pod(t)
	c := p.Run("c1", "trap 'exit 0' TERM; sleep 1000 & wait") // no process that ends while it is looked at
	c.Sh("true")
	inPod := processesIn("net", namespace(t, pidOf(t, c), "net"))
	if len(inPod) < 2 {
		t.Fatalf("processes in the pod: %v", inPod)
	}
	for _, pid := range inPod {
		for _, kind := range []string{"pid", "time"} {
			own, children := namespace(t, pid, kind), namespace(t, pid, kind+"_for_children")
			if own != strings.Replace(children, "_for_children", "", 1) {
				t.Errorf("process %d: %s is %s, for children %s", pid, kind, own, children)
			}
		}
	}
}

func TestExecJoinsEveryNamespace(t *testing.T) {
	p := pod(t)
	c := p.Run("c1", sleeper)
	seen := c.Sh("for k in mnt pid net ipc uts user cgroup time; do readlink /proc/self/ns/$k; done")
	var want []string
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time"} {
		want = append(want, namespace(t, pidOf(t, c), kind))
	}
	if seen != strings.Join(want, "\n") {
		t.Errorf("exec sees\n%s\nwant\n%s", seen, strings.Join(want, "\n"))
	}
}

func TestTimeNamespaceIsBornWithoutOffsets(t *testing.T) {
	p := pod(t)
	c := p.Run("c1", sleeper)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/timens_offsets", pidOf(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != string(host) { // offsets are absolute: a pod's clocks are at birth the daemon's
		t.Errorf("offsets %q, the node's are %q", text, host)
	}
}

func TestPidModeContainer(t *testing.T) {
	p := pod(t)
	c := p.Run("c1", "for i in $(seq 40); do sleep 1000 & done; "+sleeper)
	pid := pidOf(t, c)
	if fields := strings.Fields(procStatus(t, pid, "NSpid")); fields[len(fields)-1] != "1" {
		t.Errorf("NSpid = %v", fields)
	}
	space := namespace(t, pid, "pid")
	eventually(t, "40 children", func() bool { return len(processesIn("pid", space)) >= 41 })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := c.Wait(); status.ExitCode != 137 {
		t.Errorf("exit code = %d", status.ExitCode)
	}
	eventually(t, "no process left in the pid namespace", func() bool { return len(processesIn("pid", space)) == 0 })
}

func TestPidModePod(t *testing.T) {
	p := pod(t, withPid(runtimeapi.NamespaceMode_POD))
	c1, c2 := p.Run("c1", sleeper), p.Run("c2", "until [ -e /dev/shm/end ]; do sleep 0.05; done; exit 7")
	pid := pidOf(t, c1)
	if one, two := namespace(t, pid, "pid"), namespace(t, pidOf(t, c2), "pid"); one != two {
		t.Fatalf("pid namespaces %s and %s", one, two)
	}
	if listed := c1.Sh("ps -o pid,args"); !strings.Contains(listed, "exit 7") {
		t.Errorf("c1 does not see c2: %s", listed)
	}
	c1.Sh("touch /dev/shm/end")
	if status := c2.Wait(); status.ExitCode != 7 {
		t.Errorf("exit code of c2 = %d", status.ExitCode)
	}
	if state := c1.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("c1 is %s after c2 ended", state)
	}
	// An orphan's zombie goes to the pod's first process, which must reap it.
	c1.Sh("(sleep 0.05 &) ; true")
	eventually(t, "no zombie in the pod", func() bool {
		return !slices.ContainsFunc(processesIn("pid", namespace(t, pid, "pid")), func(pid int) bool {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return strings.Contains(string(text), ") Z ")
		})
	})
}

func TestPidModeNode(t *testing.T) {
	p := pod(t, withPid(runtimeapi.NamespaceMode_NODE))
	c := p.Run("c1", sleeper)
	if namespace(t, pidOf(t, c), "pid") != namespace(t, os.Getpid(), "pid") {
		t.Error("pid: not the node's")
	}
	own, _ := os.ReadFile("/proc/self/comm")
	if got := c.Sh("cat /proc/" + strconv.Itoa(os.Getpid()) + "/comm"); got != strings.TrimSpace(string(own)) {
		t.Errorf("the node's processes are not seen: comm of this test is %q", got)
	}
}

func TestPidModeTarget(t *testing.T) {
	p := pod(t)
	target := p.Run("app", "sleep 999 & "+sleeper)
	debug := p.Run("debug", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target.ID}
	})
	pid := pidOf(t, debug)
	if namespace(t, pid, "pid") != namespace(t, pidOf(t, target), "pid") {
		t.Fatal("the debug container has another pid namespace than its target")
	}
	if seen := debug.Sh("ps -o args"); !strings.Contains(seen, "sleep 999") {
		t.Errorf("the target's processes are not seen: %s", seen)
	}
	if err := lab.Node().StopPodSandbox(lab.Context(t), p.ID); err != nil {
		t.Fatal(err)
	}
	if alive(pid) {
		t.Error("StopPodSandbox left the debug container")
	}
}

// A first process without a handler ignores SIGTERM, so the grace period must end in SIGKILL.
func TestStopEscalates(t *testing.T) {
	p := pod(t)
	deaf := p.Run("deaf", "exec sleep 1000")
	began := time.Now()
	deaf.Stop(1)
	if took := time.Since(began); took < time.Second || took > 2*time.Second {
		t.Errorf("stop took %s, want 1 s of grace", took)
	}
	if status := deaf.Status(); status.ExitCode != 137 {
		t.Errorf("exit code = %d, want 137", status.ExitCode)
	}
	polite := p.Run("polite", "trap 'exit 9' TERM; while :; do sleep 0.02; done")
	time.Sleep(100 * time.Millisecond)
	began = time.Now()
	polite.Stop(10)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("stop of a willing process took %s", took)
	}
	if status := polite.Status(); status.ExitCode != 9 {
		t.Errorf("exit code = %d, want 9", status.ExitCode)
	}
}

func TestNetworkNamespaceLivesWithoutProcesses(t *testing.T) {
	p := pod(t)
	pin := filepath.Join(lab.Node().Run, "ns", p.ID, "net")
	ip := sandboxStatus(t, p.ID).Network.Ip
	shown, err := exec.Command("nsenter", "--net="+pin, "ip", "-o", "address").CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter: %v: %s", err, shown)
	}
	if !strings.Contains(string(shown), ip+"/") || !strings.Contains(string(shown), "127.0.0.1/8") {
		t.Errorf("no container yet; addresses: %s", shown)
	}
	mountinfo, _ := os.ReadFile("/proc/self/mountinfo")
	if pins := strings.Count(string(mountinfo), filepath.Dir(pin)+"/"); pins != 4 {
		t.Errorf("%d pins, want net, ipc, uts and time", pins)
	}
	c := p.Run("c1", sleeper)
	if seen := c.Sh("cat /proc/self/mountinfo"); strings.Contains(seen, "nsfs") {
		t.Errorf("pins are seen in the container: %s", seen)
	}
}

func TestNetworkModeNode(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	c := p.Run("c1", sleeper)
	for _, kind := range []string{"net", "uts"} {
		if namespace(t, pidOf(t, c), kind) != namespace(t, os.Getpid(), kind) {
			t.Errorf("%s: not the node's", kind)
		}
	}
	status := sandboxStatus(t, p.ID)
	if status.Network.GetIp() != "" {
		t.Errorf("ip = %q, want none", status.Network.Ip)
	}
	if mode := status.Linux.Namespaces.Options.Network; mode != runtimeapi.NamespaceMode_NODE {
		t.Errorf("network mode = %s", mode)
	}
}

func TestIpcIsOfThePod(t *testing.T) {
	p := pod(t)
	c1, c2, d := p.Run("c1", sleeper), p.Run("c2", sleeper), lab.RunPod(t).Run("d", sleeper)
	c1.Sh("echo hello >/dev/shm/word; touch /dev/mqueue/queue")
	if got := c2.Sh("cat /dev/shm/word; ls /dev/mqueue"); got != "hello\nqueue" {
		t.Errorf("c2 sees %q", got)
	}
	if got := d.Sh("ls -A /dev/shm; ls -A /dev/mqueue"); got != "" {
		t.Errorf("another pod sees %q", got)
	}
	node := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
	})
	if namespace(t, pidOf(t, node.Run("n", sleeper)), "ipc") != namespace(t, os.Getpid(), "ipc") {
		t.Error("ipc: not the node's")
	}
}

func TestHostnameOfThePodOnly(t *testing.T) {
	p := pod(t)
	admin := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}
	c1, c2 := p.Run("c1", sleeper, admin), p.Run("c2", sleeper)
	before, _ := os.Hostname()
	c1.Sh("hostname changed")
	if got := c2.Sh("hostname"); got != "changed" {
		t.Errorf("c2 sees %q", got)
	}
	if after, _ := os.Hostname(); after != before {
		t.Errorf("the node's hostname became %q", after)
	}
}

func TestCgroupNamespaceHidesTheHostPath(t *testing.T) {
	p := pod(t)
	c := p.Run("c1", sleeper)
	for line := range strings.Lines(c.Sh("cat /proc/self/cgroup")) {
		if path := strings.TrimSpace(line[strings.LastIndex(line, ":")+1:]); path != "/" {
			t.Errorf("cgroup line %q, want /", strings.TrimSpace(line))
		}
	}
}

func TestUserNamespaceMapsTheContainersRoot(t *testing.T) {
	const base, length = 200000, 65536
	ids := []*runtimeapi.IDMapping{{HostId: base, ContainerId: 0, Length: length}}
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
	volume := t.TempDir()
	c := p.Run("c1", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/volume", UidMappings: ids, GidMappings: ids}}
	})
	pid := pidOf(t, c)
	if uid := strings.Fields(procStatus(t, pid, "Uid"))[0]; uid != strconv.Itoa(base) {
		t.Errorf("uid on the node = %s", uid)
	}
	if got := c.Sh("id -u; stat -c %u /bin/busybox /etc/passwd; awk '{print $1,$2,$3}' /proc/self/uid_map"); got != fmt.Sprintf("0\n0\n0\n0 %d %d", base, length) {
		t.Errorf("inside: %q", got)
	}
	c.Sh("echo x >/volume/file && echo y >/root/file")
	var stat syscall.Stat_t
	if err := syscall.Stat(filepath.Join(volume, "file"), &stat); err != nil || stat.Uid != 0 {
		t.Errorf("file in the volume: uid %d, %v; want unshifted", stat.Uid, err)
	}
	user := namespace(t, pid, "user")
	for _, kind := range []string{"net", "ipc", "uts", "time", "pid", "mnt", "cgroup"} {
		if owner := ownerOf(t, pid, kind); owner != user {
			t.Errorf("%s is owned by %s, want the pod's %s", kind, owner, user)
		}
	}
}

// ownerOf asks the kernel which user namespace owns a process's namespace of a kind.
func ownerOf(t *testing.T, pid int, kind string) string {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	owner, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatalf("NS_GET_USERNS of %s: %v", kind, err)
	}
	defer unix.Close(owner)
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", owner))
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestVerboseInfoAndNsCommandTellTheKernelsInodes(t *testing.T) {
	p := pod(t)
	c := p.Run("c1", sleeper)
	pid := pidOf(t, c)
	listed, err := lab.Node().CLI(lab.Context(t), "ns", p.ID, "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time"} {
		target := namespace(t, pid, kind)
		inode := strings.Trim(target[len(kind)+1:], "[]")
		if !strings.Contains(listed, inode) {
			t.Errorf("meridian ns does not show %s: %s", target, listed)
		}
	}
	info := fmt.Sprint(information(t, c))
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "time"} {
		if target := namespace(t, pid, kind); !strings.Contains(info, target) {
			t.Errorf("container info does not show %s", target)
		}
	}
}

func TestKernelRingIsOutOfReach(t *testing.T) {
	p := pod(t)
	c := p.Run("c1", sleeper)
	got := c.Sh("dmesg >/dev/null 2>&1 && echo dmesg; test -e /dev/kmsg && echo kmsg; head -c1 /proc/kmsg >/dev/null 2>&1 && echo prockmsg; echo end")
	if got != "end" {
		t.Errorf("reached: %q", got)
	}
}

func TestSandboxSurvivesNothingOfItsPodInitButReports(t *testing.T) {
	p := pod(t, withPid(runtimeapi.NamespaceMode_POD))
	c := p.Run("c1", sleeper)
	pid := pidOf(t, c)
	first := 0
	for _, candidate := range processesIn("pid", namespace(t, pid, "pid")) {
		if fields := strings.Fields(procStatus(t, candidate, "NSpid")); fields[len(fields)-1] == "1" {
			first = candidate
		}
	}
	if first == 0 || first == pid {
		t.Fatalf("pod-init is %d, container %d", first, pid)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := c.Wait(); status.ExitCode != 137 {
		t.Errorf("exit code = %d", status.ExitCode)
	}
	eventually(t, "the sandbox is not ready", func() bool {
		return sandboxStatus(t, p.ID).State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
}
