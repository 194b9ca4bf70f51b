package cri

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// resize asks for new limits, in place.
func resize(t *testing.T, c *lab.Container, limits *runtimeapi.LinuxContainerResources) error {
	t.Helper()
	request := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: limits}
	_, err := lab.Node().Client.Runtime.UpdateContainerResources(lab.Context(t), request)
	return err
}

func TestLimitsOfARunningContainerChange(t *testing.T) {
	c := pod(t).Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512}
	})
	pid := pidOf(t, c)
	for _, bytes := range []int64{128 << 20, 32 << 20} {
		if err := resize(t, c, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: bytes, MemorySwapLimitInBytes: bytes, CpuQuota: 25000}); err != nil {
			t.Fatal(err)
		}
		if got := cgroupFile(t, pid, "memory", "memory.limit_in_bytes", "memory.max"); got != itoa(int(bytes)) {
			t.Errorf("memory limit in the kernel = %s, want %d", got, bytes)
		}
		if got := cgroupFile(t, pid, "cpu", "cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "25000") {
			t.Errorf("cpu quota in the kernel = %s", got)
		}
		got := c.Status().Resources.GetLinux()
		if got.GetMemoryLimitInBytes() != bytes || got.GetCpuQuota() != 25000 || got.GetCpuShares() != 512 || got.GetCpuPeriod() != 100000 {
			t.Errorf("resources in the status = %v: what was not named must stay", got)
		}
	}
	if now := pidOf(t, c); now != pid {
		t.Errorf("the container was restarted: pid %d, now %d", pid, now)
	}
}

func TestLimitsThatCannotBeSetChangeNothing(t *testing.T) {
	c := pod(t).Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	})
	if err := resize(t, c, &runtimeapi.LinuxContainerResources{CpuShares: 1024, CpusetCpus: "4000"}); err == nil {
		t.Error("a CPU that this machine does not have was given")
	}
	if got := c.Status().Resources.GetLinux(); got.GetCpuShares() != 512 || got.GetCpusetCpus() != "" {
		t.Errorf("resources in the status after a refusal = %v", got)
	}
	if got := cgroupFile(t, pidOf(t, c), "cpu", "cpu.shares", "cpu.weight"); got != "512" && got != "20" {
		t.Errorf("shares in the kernel after a refusal = %s", got)
	}
	for name, limits := range map[string]*runtimeapi.LinuxContainerResources{"linux": nil, "linux.cpu_shares": {CpuShares: 1}} {
		if err := resize(t, c, limits); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	unknown := &lab.Container{ID: strings.Repeat("0", 64)}
	if err := resize(t, unknown, &runtimeapi.LinuxContainerResources{CpuShares: 512}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown container: %v", err)
	}
}

// limitPod asks for limits of the pod as a whole.
func limitPod(t *testing.T, pod string, overhead, limits *runtimeapi.LinuxContainerResources) error {
	t.Helper()
	request := &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: overhead, Resources: limits}
	_, err := lab.Node().Runtime.UpdatePodSandboxResources(lab.Context(t), request)
	return err
}

// podLimits is what the pod's verbose information says of its limits.
func podLimits(t *testing.T, pod string) (limits struct {
	Cgroup              string
	Overhead, Resources *runtimeapi.LinuxContainerResources
}) {
	t.Helper()
	response, err := lab.Node().PodSandboxStatus(lab.Context(t), pod, true)
	if err == nil {
		err = json.Unmarshal([]byte(response.Info["info"]), &limits)
	}
	if err != nil {
		t.Fatalf("PodSandboxStatus: %v", err)
	}
	return limits
}

// podFile reads a file of a pod's own cgroup.
func podFile(t *testing.T, path, controller, v1, v2 string) string {
	t.Helper()
	for _, file := range []string{filepath.Join(controller, path, v1), filepath.Join(path, v2)} {
		if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", file)); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	t.Fatalf("cgroup %s has neither %s nor %s", path, v1, v2)
	return ""
}

// Where nobody else limits a pod, its own cgroup has the limits: those it was made with, then those of each update.
func TestLimitsOfAPodReachTheKernel(t *testing.T) {
	limits := func(bytes, quota int64) *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: bytes, CpuQuota: quota, CpuPeriod: 100000}
	}
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Resources, c.Linux.Overhead = limits(64<<20, 50000), limits(8<<20, 5000)
	})
	cgroup := podLimits(t, p.ID).Cgroup
	want := func(what, memory, quota string) {
		t.Helper()
		if got := podFile(t, cgroup, "memory", "memory.limit_in_bytes", "memory.max"); got != memory {
			t.Errorf("%s: memory in the kernel = %s, want %s", what, got, memory)
		}
		if got := podFile(t, cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, quota) {
			t.Errorf("%s: quota in the kernel = %s, want %s", what, got, quota)
		}
	}
	want("a new pod", itoa(72<<20), "55000")
	if err := limitPod(t, p.ID, limits(8<<20, 5000), limits(128<<20, 20000)); err != nil {
		t.Fatal(err)
	}
	want("an update", itoa(136<<20), "25000")
	if err := errors.Join(lab.Node().Stop(), lab.Node().Start(lab.Context(t))); err != nil {
		t.Fatal(err)
	}
	if got := podLimits(t, p.ID); got.Resources.GetMemoryLimitInBytes() != 128<<20 || got.Overhead.GetCpuQuota() != 5000 {
		t.Errorf("shown after a restart of the daemon: %+v", got)
	}
	if err := limitPod(t, p.ID, nil, limits(0, -1)); err != nil {
		t.Fatal(err)
	}
	unlimited := podFile(t, filepath.Dir(cgroup), "memory", "memory.limit_in_bytes", "memory.max")
	none := map[bool]string{true: "max", false: "-1"}[unlimited == "max"]
	want("limits that are lifted", unlimited, none)
}

// The kubelet limits a cgroup of its own above the pod's and tells us: that is shown, and nothing is set twice.
func TestLimitsOfAPodAreTheKubeletsOwn(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.CgroupParent = "/" + lab.Node().Cgroup + "/kubepods/burstable/pod2"
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	})
	file := func() string {
		return podFile(t, podLimits(t, p.ID).Cgroup, "memory", "memory.limit_in_bytes", "memory.max")
	}
	before := file()
	if err := limitPod(t, p.ID, nil, &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 32 << 20}); err != nil {
		t.Error(err)
	}
	if got := podLimits(t, p.ID).Resources; got.GetCpuShares() != 512 || got.GetMemoryLimitInBytes() != 32<<20 {
		t.Errorf("shown: %v", got)
	}
	if after := file(); after != before || before == itoa(64<<20) {
		t.Errorf("memory limit of the pod's cgroup = %s, then %s: it is the kubelet's to set", before, after)
	}
	wantCode(t, "nonsense", limitPod(t, p.ID, nil, &runtimeapi.LinuxContainerResources{CpuShares: 1}), codes.InvalidArgument, "resources.cpu_shares")
	wantCode(t, "unknown pod", limitPod(t, strings.Repeat("0", 64), nil, nil), codes.NotFound)
	if err := lab.Node().StopPodSandbox(lab.Context(t), p.ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a pod that has ended", limitPod(t, p.ID, nil, nil), codes.FailedPrecondition, "Stopped")
	removeParents(t, p)
}

// The score is each process's own: those that run get it, and those that come after.
func TestScoreOfARunningContainerChanges(t *testing.T) {
	c := pod(t).Run("main", "sleep 1000 & sleep 1000 & "+sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 100, CpuShares: 512}
	})
	score := func(score int64) error {
		return resize(t, c, &runtimeapi.LinuxContainerResources{OomScoreAdj: score})
	}
	want := func(what string, want int64) {
		t.Helper()
		if got := c.Sh("cat /proc/[0-9]*/oom_score_adj | sort -u"); got != itoa(int(want)) {
			t.Errorf("%s: scores of the processes = %q, want %d", what, got, want)
		}
		if got := c.Status().Resources.GetLinux(); got.GetOomScoreAdj() != want || got.GetCpuShares() != 512 {
			t.Errorf("%s: in the status: %v", what, got)
		}
	}
	eventually(t, "they run", func() bool { return strings.Count(c.Sh("ps -o args"), "sleep 1000") >= 2 })
	want("at first", 100)
	for _, next := range []int64{700, 300} {
		if err := score(next); err != nil {
			t.Fatal(err)
		}
		want("after an update", next)
	}
	if err := score(-500); err == nil {
		want("lowered, by a daemon that may", -500)
	} else {
		wantCode(t, "lowered, by a daemon that may not", err, codes.FailedPrecondition, "CAP_SYS_RESOURCE")
		want("after a refusal", 300)
	}
}

// What the kernel refuses is the caller's to mend, and says how: not a fault of the runtime.
func TestLimitsBelowUseAreRefused(t *testing.T) {
	c := pod(t).Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	})
	err := resize(t, c, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1})
	if code := status.Code(err); code != codes.FailedPrecondition || !strings.Contains(err.Error(), "memory") {
		t.Errorf("one byte: %v", err)
	}
	err = resize(t, c, &runtimeapi.LinuxContainerResources{CpuQuota: 1<<63 - 1})
	if code := status.Code(err); code != codes.InvalidArgument || !strings.Contains(err.Error(), "cpu") {
		t.Errorf("a quota beyond the kernel's numbers: %v", err)
	}
	if got := c.Status().Resources.GetLinux().GetMemoryLimitInBytes(); got != 64<<20 {
		t.Errorf("memory limit after refusals = %d", got)
	}
}
