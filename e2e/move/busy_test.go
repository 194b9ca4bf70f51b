package move

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// On a node where everybody else wants the processors, a pod with the least share of them and a small quota is captured
// and restored in good time: both bind its own work, and not that for which it stands still.
func TestBusyNodeMovesInTime(t *testing.T) {
	p := runChanged(t, nodes.A, nil, func(config *runtimeapi.ContainerConfig) {
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 2, CpuQuota: 5000, CpuPeriod: 100_000}
	}, container{"count", []string{"count", "8"}})
	p.await("count", "5 ", 0)
	for range 4 {
		busy(t)
	}
	took := map[string][]time.Duration{}
	for range 7 {
		result := p.move()
		took["late"] = append(took["late"], time.Duration(result.Late))
		took["downtime"] = append(took["downtime"], time.Duration(result.Downtime))
		for _, phase := range result.Phases {
			took[phase.Name] = append(took[phase.Name], time.Duration(phase.Duration))
		}
		p.await("count", "", len(p.lines("count")))
		p.limited()
	}
	contiguous(t, p.readings("count"))
	for name, times := range took {
		slices.Sort(times)
		t.Logf("%s: median %s of %s", name, times[len(times)/2], times)
	}
	// The quota is 50 ms a second. Under it a restore took 226 ms, and a dump 548 instead of 288 (load 20); the dump is also
	// at the mercy of who else runs here.
	if median := took["restore"][len(took["restore"])/2]; median > 150*time.Millisecond {
		t.Errorf("restore took %s: it waits for its pod's share of the processors", took["restore"])
	}
}

// limited wants the restored process where its limits are, and as nice as it was.
func (p *pod) limited() {
	p.t.Helper()
	// Field 19 of stat(5) is the nice value; a busy node's shell is not: exec begins with that of its parent, the shim.
	if nice := strings.Fields(p.sh("count", "cat /proc/1/stat"))[18]; nice != "0" {
		p.t.Errorf("the restored process has nice value %s, and had 0", nice)
	}
	if cgroups := p.sh("count", "cut -d: -f3 /proc/1/cgroup | sort -u"); cgroups != "/" {
		p.t.Errorf("the restored process sees its cgroups as %q, want / in each hierarchy", cgroups)
	}
	outside := fmt.Sprintf("d=$(ls -d /sys/fs/cgroup/cpu*/%s/%s/*/ /sys/fs/cgroup/%s/%s/*/ 2>/dev/null | head -1); "+
		"cat $d/cpu.cfs_quota_us $d/cpu.shares $d/cpu.max $d/cpu.weight 2>/dev/null; wc -l < $d/cgroup.procs",
		p.at.Cgroup, p.id(), p.at.Cgroup, p.id())
	output, err := exec.Command("/bin/sh", "-c", outside).Output()
	if limits := strings.Join(strings.Fields(string(output)), " "); err != nil || (limits != "5000 2 1" && limits != "5000 100000 1 1") {
		p.t.Errorf("limits and number of processes in the container's cgroup: %q, %v", limits, err)
	}
}

// busy keeps one processor busy until the test ends.
func busy(t *testing.T) {
	t.Helper()
	loop := exec.Command("/bin/sh", "-c", "while :; do :; done")
	if err := loop.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = loop.Process.Kill()
		_ = loop.Wait()
	})
}
