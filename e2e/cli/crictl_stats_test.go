package cli

import (
	"bufio"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// offered skips the rest where the node says that it does not have the call yet.
func (c *crictl) offered(arguments ...string) {
	c.Helper()
	if _, stderr, err := c.try(arguments...); err != nil && strings.Contains(stderr, "Unimplemented") {
		c.Skipf("crictl %s: the node answers Unimplemented", arguments[0])
	}
}

func TestCrictlContainerStats(t *testing.T) {
	c := newCrictl(t)
	_, id := c.pod("stats", "while :; do :; done", "")
	wants(t, "stats", c.call("stats", "--seconds", "1"), id[:13], "stats")
	stats := c.ask("stats", "--id", id, "--output", "json")
	wants(t, "stats --output json", stats.at("stats", 0, "attributes", "id").String(), id)
	for _, path := range [][]any{{"cpu", "usageCoreNanoSeconds", "value"}, {"memory", "workingSetBytes", "value"}, {"writableLayer", "usedBytes", "value"}} {
		stats.at(append([]any{"stats", 0}, path...)...)
	}
}

func TestCrictlPodStats(t *testing.T) {
	c := newCrictl(t)
	pod, _ := c.pod("statsp", sleeper, "")
	c.offered("statsp", "--seconds", "1")
	wants(t, "statsp", c.call("statsp", "--seconds", "1"), pod[:13])
	shown := c.ask("statsp", "--id", pod, "--output", "json")
	wants(t, "statsp --output json", shown.at("stats", 0, "attributes", "id").String(), pod)
	shown.at("stats", 0, "linux", "network", "defaultInterface", "rxBytes", "value")
	shown.at("stats", 0, "linux", "process", "processCount", "value")
}

func TestCrictlMetrics(t *testing.T) {
	c := newCrictl(t)
	pod, id := c.pod("metrics", sleeper, "")
	wants(t, "metricdescs", c.call("metricdescs"), "container_cpu_usage_seconds_total", "container_ulimits_soft", "labelKeys")
	wants(t, "metricsp", c.call("metricsp"), pod, id, "container_memory_working_set_bytes", "eth0")
}

func TestCrictlUpdate(t *testing.T) {
	c := newCrictl(t)
	_, id := c.pod("update", sleeper, "")
	c.offered("update", "--cpu-share", "256", id)
	c.call("update", "--memory", "50331648", "--cpu-quota", "40000", "--cpu-period", "100000", id)
	resources := c.ask("inspect", id).at("status", "resources", "linux")
	wants(t, "memory", resources.at("memoryLimitInBytes").String(), "50331648")
	wants(t, "cpu", resources.at("cpuQuota").String(), "40000")
}

func TestCrictlEvents(t *testing.T) {
	c := newCrictl(t)
	command := c.command("events")
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var problems strings.Builder
	command.Stderr = &problems
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // it subscribes; events before are not its own
	pod, id := c.pod("events", "exit 0", "")
	time.Sleep(300 * time.Millisecond)
	_ = command.Process.Kill()
	seen := map[string][]string{}
	decoder := json.NewDecoder(bufio.NewReader(output))
	for {
		var event struct{ ContainerId, ContainerEventType string }
		if decoder.Decode(&event) != nil {
			break
		}
		seen[event.ContainerId] = append(seen[event.ContainerId], event.ContainerEventType)
	}
	_ = command.Wait()
	if strings.Contains(problems.String(), "Unimplemented") {
		t.Skip("crictl events: the node answers Unimplemented")
	}
	if got := strings.Join(seen[id], " "); got != "CONTAINER_CREATED_EVENT CONTAINER_STARTED_EVENT CONTAINER_STOPPED_EVENT" {
		t.Errorf("events of the container: %q; all: %v; %s", got, seen, problems.String())
	}
	if !strings.Contains(strings.Join(seen[pod], " "), "CONTAINER_CREATED_EVENT") {
		t.Errorf("events of the pod: %v", seen[pod])
	}
}
