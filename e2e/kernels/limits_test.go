package kernels

import (
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// sleeper is a shell command line that stays and ends at once on SIGTERM.
const sleeper = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

// pod runs a sandbox under a census.
func pod(t *testing.T, options ...func(*runtimeapi.PodSandboxConfig)) *lab.Pod {
	t.Helper()
	lab.Image(t, "clockwork:1") // before the census: an unpacked image stays
	lab.Clean(t, lab.Node())
	return lab.RunPod(t, options...)
}

func resources(r *runtimeapi.LinuxContainerResources) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r }
}

// file reads a file of the container's cgroup, which its cgroup namespace shows as the root.
func file(c *lab.Container, name string) string { return c.Sh("cat /sys/fs/cgroup/" + name) }

// field is the number after a key of a flat-keyed file.
func field(t *testing.T, text, key string) int64 {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+" "); ok {
			number, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			return number
		}
	}
	t.Fatalf("no %q in %q", key, text)
	return 0
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// Every limit of CRI in the words of cgroup v2, and the unified map verbatim.
func TestLimitsOfCgroup2(t *testing.T) {
	c := pod(t).Run("main", sleeper, resources(&runtimeapi.LinuxContainerResources{
		CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512, CpusetCpus: "0", CpusetMems: "0",
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20, OomScoreAdj: 500,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "50331648", "memory.low": "1048576", "pids.max": "77"},
	}))
	for name, want := range map[string]string{
		"cpu.max":               "50000 100000",
		"cpu.weight":            "20", // 1 + (512 - 2) * 9999 / 262142
		"cpuset.cpus":           "0",
		"cpuset.cpus.effective": "0",
		"cpuset.mems":           "0",
		"memory.max":            "67108864",
		"memory.swap.max":       "33554432", // memory and swap, less memory
		"memory.high":           "50331648",
		"memory.low":            "1048576",
		"pids.max":              "77",
		"hugetlb.2MB.max":       "4194304",
	} {
		if got := file(c, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if got := c.Sh("grep Cpus_allowed_list /proc/self/status"); !strings.HasSuffix(got, "\t0") {
		t.Errorf("an exec runs on %q", got)
	}
}

func TestSwapIsOffWhereMemoryAndSwapAreEqual(t *testing.T) {
	c := pod(t).Run("main", sleeper, resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}))
	if got := file(c, "memory.swap.max"); got != "0" {
		t.Errorf("memory.swap.max = %q", got)
	}
}

func TestQuotaThrottles(t *testing.T) {
	c := pod(t).Run("busy", "while :; do :; done", resources(&runtimeapi.LinuxContainerResources{CpuQuota: 10000, CpuPeriod: 100000}))
	used := func() int64 { return field(t, file(c, "cpu.stat"), "usage_usec") }
	eventually(t, "it is throttled", func() bool { return field(t, file(c, "cpu.stat"), "nr_throttled") > 2 })
	began, before := time.Now(), used()
	time.Sleep(2 * time.Second)
	// A tenth of a processor; the execs that read the file come on top.
	if share := float64(used()-before) / float64(time.Since(began).Microseconds()); share > 0.2 {
		t.Errorf("it used %.2f of a processor", share)
	}
}

func TestProcessesAreCounted(t *testing.T) {
	c := pod(t).Run("main", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done 2>/dev/null; "+sleeper,
		resources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"pids.max": "6"}}))
	status := c.Wait() // a shell that cannot fork ends
	if status.ExitCode == 0 {
		t.Errorf("exit code %d, want the shell's complaint", status.ExitCode)
	}
}

// What the kernel kills for memory is the container's end only when it was its first process.
func TestKilledForMemory(t *testing.T) {
	p := pod(t)
	limit := resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20})
	if status := p.Run("hungry", "exec clockwork hold 64", limit).Wait(); status.ExitCode != 137 || status.Reason != "OOMKilled" {
		t.Errorf("exit code %d, reason %q", status.ExitCode, status.Reason)
	}
	survivor := p.Run("survivor", "clockwork hold 64; "+sleeper, limit)
	eventually(t, "the child is killed", func() bool { return field(t, file(survivor, "memory.events"), "oom_kill") == 1 })
	if state := survivor.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("survivor is %s", state)
	}
}

// Limits that the kernel refuses leave nothing behind and name the file.
func TestRefusedLimitNamesItsFile(t *testing.T) {
	p := pod(t)
	for name, value := range map[string]string{"memory.high": "much", "no.such": "1"} {
		config := p.Config
		image := lab.Image(t, "clockwork:1")
		_, err := lab.Node().CreateContainer(lab.Context(t), p.ID, container(config, image, map[string]string{name: value}), config)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s = %s: %v", name, value, err)
		}
	}
}

// The parent of a pod is a kubelet's: it may have limits and delegates nothing yet.
func TestParentOfAnotherOwner(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.CgroupParent = "/" + lab.Node().Cgroup + "/kubepods/burstable/pod-x"
	})
	c := p.Run("main", sleeper, resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 8 << 20}))
	if got := file(c, "memory.max"); got != "8388608" {
		t.Errorf("memory.max = %q", got)
	}
	p.Remove()
	removeDirectories(t, "/sys/fs/cgroup/"+lab.Node().Cgroup, "kubepods/burstable/pod-x")
}

// With CAP_SYS_RESOURCE a guaranteed pod gets what the kubelet asked for.
func TestOomScoreBelowZero(t *testing.T) {
	c := pod(t).Run("main", sleeper, resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: -997}))
	if got := c.Sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj"); got != "-997\n-997" {
		t.Errorf("oom_score_adj = %q", got)
	}
}
