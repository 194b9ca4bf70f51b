package cri

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// samples are a pod's metrics by name: those of the pod, and those of its one container.
func samples(t *testing.T, pod string) map[string][]*runtimeapi.Metric {
	t.Helper()
	all, err := lab.Node().ListPodSandboxMetrics(lab.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]*runtimeapi.Metric{}
	for _, one := range all {
		if one.PodSandboxId != pod {
			continue
		}
		metrics := one.Metrics
		for _, container := range one.ContainerMetrics {
			metrics = append(metrics, container.Metrics...)
		}
		for _, metric := range metrics {
			found[metric.Name] = append(found[metric.Name], metric)
		}
	}
	return found
}

// lacking reports a metric that needs what this kernel may not have: a huge page hierarchy, I/O accounting of cgroup2.
func lacking(name string) bool {
	if strings.Contains(name, "hugetlb") {
		_, v1 := os.Stat("/sys/fs/cgroup/hugetlb")
		controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		return v1 != nil && !strings.Contains(string(controllers), "hugetlb")
	}
	return strings.Contains(name, "_fs_reads_") || strings.Contains(name, "_fs_writes_") || strings.Contains(name, "_blkio_")
}

func TestMetricsHaveTheValuesOfTheKernel(t *testing.T) {
	descriptors, err := lab.Node().ListMetricDescriptors(lab.Context(t))
	if err != nil || len(descriptors) != 56 {
		t.Fatalf("%d descriptors, %v; want 56", len(descriptors), err)
	}
	p := pod(t)
	c := p.Run("busy", "exec 3</dev/null 4</dev/null; sleep 1000 & while :; do :; done", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuQuota: 90_000, CpuPeriod: 100_000, CpuShares: 512,
			MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}
	})
	c.Sh("head -c 3000000 /dev/zero >/file")
	began := time.Now()
	var found map[string][]*runtimeapi.Metric
	eventually(t, "the container used a second of CPU", func() bool {
		found = samples(t, p.ID)
		return value(found, "container_cpu_usage_seconds_total") >= 1
	})
	for _, descriptor := range descriptors {
		if descriptor.Help == "" || !slices.Contains(descriptor.LabelKeys, "container") {
			t.Errorf("%v", descriptor)
		}
		if len(found[descriptor.Name]) == 0 && !lacking(descriptor.Name) {
			t.Errorf("no sample of %s", descriptor.Name)
		}
		for _, metric := range found[descriptor.Name] {
			if len(metric.LabelValues) != len(descriptor.LabelKeys) || metric.Timestamp == 0 {
				t.Errorf("%v, want labels %v", metric, descriptor.LabelKeys)
			}
		}
	}
	for name, want := range map[string]uint64{
		"container_spec_memory_limit_bytes": 64 << 20, "container_spec_cpu_quota": 90_000, "container_spec_cpu_period": 100_000,
		"container_processes": 2, "container_threads": 2, "container_sockets": 0, "container_oom_events_total": 0,
	} {
		if got := value(found, name); got != want {
			t.Errorf("%s = %d, want %d", name, got, want)
		}
	}
	for name, least := range map[string]uint64{
		"container_file_descriptors": 7, "container_fs_usage_bytes": 3_000_000, "container_memory_usage_bytes": 100_000,
		"container_last_seen": uint64(began.Unix()), "container_start_time_seconds": uint64(began.Unix() - 100), "container_ulimits_soft": 1,
	} {
		if got := value(found, name); got < least {
			t.Errorf("%s = %d, want %d or more", name, got, least)
		}
	}
	labels := found["container_processes"][0].LabelValues
	if labels[0] != "busy" || labels[3] != c.ID || labels[4] != "e2e" || labels[5] != p.Config.Metadata.Name {
		t.Errorf("labels of a container: %v", labels)
	}
	if interfaces := found["container_network_receive_bytes_total"]; len(interfaces) != 1 || interfaces[0].LabelValues[6] != "eth0" {
		t.Errorf("interfaces: %v", interfaces)
	}
}

func value(found map[string][]*runtimeapi.Metric, name string) uint64 {
	if len(found[name]) == 0 {
		return 0
	}
	return found[name][0].GetValue().GetValue()
}
