package cri

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// cgroupFile reads a file of a process's own cgroup from the node, in the v1 hierarchy of a controller or in v2.
func cgroupFile(t *testing.T, pid int, controller, v1, v2 string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	unified := ""
	for line := range strings.Lines(strings.TrimSpace(string(text))) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if parts[1] == "" {
			unified = parts[2]
		}
		if !slices.Contains(strings.Split(parts[1], ","), controller) {
			continue
		}
		for _, root := range []string{"/sys/fs/cgroup/" + parts[1], "/sys/fs/cgroup/" + controller} {
			if value, err := os.ReadFile(filepath.Join(root, parts[2], v1)); err == nil {
				return strings.TrimSpace(string(value))
			}
		}
	}
	value, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", unified, v2))
	if err != nil {
		t.Fatalf("controller %s of %d: %v in %s", controller, pid, err, text)
	}
	return strings.TrimSpace(string(value))
}

func TestLimitsReachTheKernel(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512, CpusetCpus: "0", OomScoreAdj: 500,
		}
	})
	pid := pidOf(t, c)
	for _, test := range []struct{ controller, v1, v2, want string }{
		{"memory", "memory.limit_in_bytes", "memory.max", "67108864"},
		{"cpu", "cpu.cfs_quota_us", "cpu.max", "50000"},
		{"cpuset", "cpuset.cpus", "cpuset.cpus", "0"},
	} {
		if got := cgroupFile(t, pid, test.controller, test.v1, test.v2); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s = %q, want %s", test.v1, got, test.want)
		}
	}
	if got := procStatus(t, pid, "Cpus_allowed_list"); got != "0" {
		t.Errorf("allowed cpus = %s", got)
	}
	got := c.Status().Resources.GetLinux()
	if got.GetMemoryLimitInBytes() != 64<<20 || got.GetCpuQuota() != 50000 || got.GetCpuShares() != 512 {
		t.Errorf("resources in the status = %v", got)
	}
}

func TestContainersLiveBelowThePodsCgroup(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.CgroupParent = "/" + lab.Node().Cgroup + "/kubepods/besteffort/pod1"
	})
	c := p.Run("main", sleeper)
	text, err := os.ReadFile(filepath.Join("/proc", itoa(pidOf(t, c)), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	inside := 0
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, p.Config.Linux.CgroupParent+"/") {
			inside++
		}
	}
	if inside < 4 {
		t.Errorf("in %d hierarchies below the parent: %s", inside, text)
	}
	removeParents(t, p)
}

// removeParents removes a pod, and as its kubelet the parent of its cgroup: what is below that was ours.
func removeParents(t *testing.T, p *lab.Pod) {
	t.Helper()
	p.Remove()
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		parents, _ := filepath.Glob(pattern + p.Config.Linux.CgroupParent)
		for _, parent := range parents {
			below, _ := filepath.Glob(parent + "/*/cgroup.procs")
			if len(below) > 0 {
				t.Errorf("left below the parent: %v", below)
			}
			for path := parent; !strings.HasSuffix(path, lab.Node().Cgroup); path = filepath.Dir(path) {
				_ = os.Remove(path)
			}
		}
	}
}

func TestContainerStats(t *testing.T) {
	p := pod(t)
	busy := p.Run("busy", "while :; do :; done", func(c *runtimeapi.ContainerConfig) { c.Labels["kind"] = "busy" })
	idle := p.Run("idle", "head -c 3000000 /dev/zero >/file; "+sleeper)
	time.Sleep(200 * time.Millisecond)
	first, err := lab.Node().ContainerStats(lab.Context(t), busy.ID)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	second, err := lab.Node().ContainerStats(lab.Context(t), busy.ID)
	if err != nil {
		t.Fatal(err)
	}
	if second.Cpu.Timestamp <= first.Cpu.Timestamp {
		t.Errorf("cpu timestamp did not advance: %d, %d", first.Cpu.Timestamp, second.Cpu.Timestamp)
	}
	used := second.Cpu.UsageCoreNanoSeconds.GetValue() - first.Cpu.UsageCoreNanoSeconds.GetValue()
	if used < 50_000_000 || used > 700_000_000 {
		t.Errorf("a busy loop used %d ns in 0.5 s", used)
	}
	if second.Memory.WorkingSetBytes.GetValue() == 0 || second.Memory.Timestamp == 0 || second.Memory.RssBytes == nil {
		t.Errorf("memory = %v", second.Memory)
	}
	if second.Attributes.GetId() != busy.ID || second.Attributes.Labels["kind"] != "busy" || second.Attributes.Metadata.GetName() != "busy" {
		t.Errorf("attributes = %v", second.Attributes)
	}
	var layer *runtimeapi.ContainerStats
	eventually(t, "the writable layer is some 3,000,000 bytes", func() bool { // its size may be looked up now and then only
		layer, err = lab.Node().ContainerStats(lab.Context(t), idle.ID)
		bytes := layer.GetWritableLayer().GetUsedBytes().GetValue()
		return err == nil && bytes >= 3_000_000 && bytes < 4_000_000
	})
	if layer.WritableLayer.GetFsId().GetMountpoint() == "" || layer.WritableLayer.GetInodesUsed().GetValue() == 0 {
		t.Errorf("writable layer = %v", layer.WritableLayer)
	}
	for what, filter := range map[string]*runtimeapi.ContainerStatsFilter{
		"id":                {Id: busy.ID},
		"prefix":            {Id: busy.ID[:12]},
		"label":             {LabelSelector: map[string]string{"kind": "busy"}},
		"sandbox and label": {PodSandboxId: p.ID, LabelSelector: map[string]string{"kind": "busy"}},
	} {
		list, err := lab.Node().ListContainerStats(lab.Context(t), filter)
		if err != nil || len(list) != 1 || list[0].Attributes.Id != busy.ID {
			t.Errorf("%s: %v, %v", what, list, err)
		}
	}
	if list, err := lab.Node().ListContainerStats(lab.Context(t), nil); err != nil || len(list) != 2 {
		t.Errorf("no filter: %d, %v", len(list), err)
	}
}
