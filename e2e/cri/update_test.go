package cri

import (
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

func TestLimitsOfAPodAreTheKubeletsOwn(t *testing.T) {
	p, c := pod(t), lab.Node().Client
	request := &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512}}
	if _, err := c.Runtime.UpdatePodSandboxResources(lab.Context(t), request); err != nil {
		t.Error(err)
	}
	request.Resources.CpuShares = 1
	if _, err := c.Runtime.UpdatePodSandboxResources(lab.Context(t), request); status.Code(err) != codes.InvalidArgument {
		t.Errorf("nonsense: %v", err)
	}
	request.PodSandboxId = strings.Repeat("0", 64)
	if _, err := c.Runtime.UpdatePodSandboxResources(lab.Context(t), request); status.Code(err) != codes.NotFound {
		t.Errorf("unknown pod: %v", err)
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
