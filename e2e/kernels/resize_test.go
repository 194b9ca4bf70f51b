package kernels

import (
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// resize asks for new limits of a running container.
func resize(t *testing.T, c *lab.Container, limits *runtimeapi.LinuxContainerResources) error {
	t.Helper()
	request := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: limits}
	_, err := lab.Node().Runtime.UpdateContainerResources(lab.Context(t), request)
	return err
}

// Every limit that can change in place, in the words of cgroup v2; what is not named stays.
func TestResizeOnCgroup2(t *testing.T) {
	c := pod(t).Run("main", sleeper, resources(&runtimeapi.LinuxContainerResources{
		CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
		Unified: map[string]string{"memory.high": "50331648", "pids.max": "77"},
	}))
	if err := resize(t, c, &runtimeapi.LinuxContainerResources{
		CpuQuota: 75000, MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 160 << 20, OomScoreAdj: 321,
		Unified: map[string]string{"memory.high": "100663296", "memory.low": "1048576"},
	}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"cpu.max":         "75000 100000",
		"cpu.weight":      "20",
		"memory.max":      "134217728",
		"memory.swap.max": "33554432",
		"memory.high":     "100663296",
		"memory.low":      "1048576",
		"pids.max":        "77",
	} {
		if got := file(c, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if got := c.Sh("cat /proc/1/oom_score_adj"); got != "321" {
		t.Errorf("oom_score_adj = %s", got)
	}
	if got := c.Status().Resources.GetLinux(); got.CpuShares != 512 || got.Unified["pids.max"] != "77" || got.Unified["memory.low"] != "1048576" {
		t.Errorf("in the status: %v", got)
	}
}

// cgroup v2 itself would take such a limit, and kill.
func TestLimitBelowWhatIsInUseKillsNobody(t *testing.T) {
	c := pod(t).Run("main", "clockwork hold 32 & "+sleeper, resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20}))
	eventually(t, "it holds its memory", func() bool { return field(t, file(c, "memory.stat"), "anon") > 32<<20 })
	err := resize(t, c, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20})
	lab.WantCode(t, "16 MiB", err, codes.FailedPrecondition, "in use")
	if events := file(c, "memory.events"); field(t, events, "oom_kill") != 0 {
		t.Errorf("somebody was killed: %s", events)
	}
	for name, want := range map[string]string{"memory.max": "100663296", "memory.high": "max"} {
		if got := file(c, name); got != want {
			t.Errorf("%s = %q, want %q as before", name, got, want)
		}
	}
	if err := resize(t, c, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}); err != nil {
		t.Errorf("64 MiB: %v", err)
	}
}

// Files that nobody needs give way to a smaller limit.
func TestLimitBelowThePageCacheFreesIt(t *testing.T) {
	c := pod(t).Run("main", "dd if=/dev/zero of=/file bs=1M count=24 2>/dev/null; sync; touch /written; "+sleeper, resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20}))
	eventually(t, "the file is there", func() bool { return c.Sh("ls /written || true") != "" })
	if err := resize(t, c, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}); err != nil {
		t.Errorf("16 MiB beside 24 MiB of page cache: %v", err)
	}
}
