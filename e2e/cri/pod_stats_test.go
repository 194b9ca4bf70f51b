package cri

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func TestUsageOfAPod(t *testing.T) {
	p := pod(t)
	c := p.Run("main", "head -c 20000000 /dev/zero | tail >/dev/null & i=0; while :; do i=$((i+1)); done")
	ask := func() *runtimeapi.LinuxPodSandboxStats {
		t.Helper()
		response, err := lab.Node().Client.Runtime.PodSandboxStats(lab.Context(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		if response.Stats.GetAttributes().GetId() != p.ID || response.Stats.Attributes.Metadata.GetName() == "" {
			t.Errorf("attributes = %v", response.Stats.GetAttributes())
		}
		return response.Stats.Linux
	}
	first := ask()
	time.Sleep(300 * time.Millisecond)
	second := ask()
	used := second.Cpu.UsageCoreNanoSeconds.GetValue() - first.Cpu.UsageCoreNanoSeconds.GetValue()
	if passed := second.Cpu.Timestamp - first.Cpu.Timestamp; used < 10_000_000 || passed < 300_000_000 {
		t.Errorf("a busy loop used %d ns of CPU in %d ns", used, passed)
	}
	if rate := second.Cpu.UsageNanoCores.GetValue(); rate < 10_000_000 || rate > 3_000_000_000 {
		t.Errorf("rate of a busy loop = %d billionths of a CPU", rate)
	}
	if second.Memory.UsageBytes.GetValue() < second.Containers[0].Memory.UsageBytes.GetValue()/2 || second.Memory.WorkingSetBytes.GetValue() == 0 {
		t.Errorf("memory of the pod %v, of its container %v", second.Memory, second.Containers[0].Memory)
	}
	if len(second.Containers) != 1 || second.Containers[0].Attributes.Id != c.ID {
		t.Errorf("containers = %v", second.Containers)
	}
	if second.Process.ProcessCount.GetValue() == 0 {
		t.Error("no process in a pod that runs")
	}
	if eth := second.Network.GetDefaultInterface(); eth.GetName() != "eth0" || len(second.Network.Interfaces) != 1 {
		t.Errorf("network = %v", second.Network)
	}
	before := second.Network.DefaultInterface.TxBytes.GetValue()
	c.Sh("ping -c 1 -W 1 -s 1000 10.255.255.1 >/dev/null 2>&1; true")
	if after := ask().Network.DefaultInterface.TxBytes.GetValue(); after < before+1000 {
		t.Errorf("%d bytes sent before, %d after a thousand more", before, after)
	}
}

func TestUsageOfPodsIsFiltered(t *testing.T) {
	p, other := pod(t), lab.RunPod(t) // one census: files of a pod stay open once its usage was asked for
	list := func(filter *runtimeapi.PodSandboxStatsFilter) map[string]bool {
		response, err := lab.Node().Client.Runtime.ListPodSandboxStats(lab.Context(t), &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, stats := range response.Stats {
			found[stats.Attributes.Id] = true
		}
		return found
	}
	if all := list(nil); !all[p.ID] || !all[other.ID] {
		t.Errorf("all = %v", all)
	}
	if one := list(&runtimeapi.PodSandboxStatsFilter{Id: p.ID[:20]}); len(one) != 1 || !one[p.ID] {
		t.Errorf("one = %v", one)
	}
	if none := list(&runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"of": "nobody"}}); len(none) != 0 {
		t.Errorf("none = %v", none)
	}
}
