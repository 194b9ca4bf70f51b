package kernels

import (
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/pair"
)

// A pod comes back from its checkpoint, and its clocks have stood still meanwhile. How punctual a translated machine
// is says nothing: e2e/move measures that.
func TestRestoredClocksGoOn(t *testing.T) {
	p := pod(t)
	c := p.Run("tight", "exec clockwork tight")
	eventually(t, "the loop runs", func() bool { return strings.Contains(log(c), "alive") })
	directory := t.TempDir()
	request := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: directory, ContainerIds: []string{c.ID}}
	if err := lab.Node().CheckpointPod(lab.Context(t), request); err != nil {
		t.Fatalf("CheckpointPod: %v", err)
	}
	p.Remove()
	const away = 3 * time.Second
	time.Sleep(away)
	restored := restore(t, directory, c).Start()
	eventually(t, "the loop runs again", func() bool { return strings.Contains(log(restored), "alive") })
	gap := largest(t, restored)
	t.Logf("real time %s, MONOTONIC %s, BOOTTIME %s", gap.Realtime, gap.Monotonic, gap.Boottime)
	for name, clock := range map[string]time.Duration{"MONOTONIC": gap.Monotonic, "BOOTTIME": gap.Boottime} {
		if clock < 0 || gap.Realtime-clock < away {
			t.Errorf("over %s of real time %s went on %s", gap.Realtime, name, clock)
		}
	}
	if strings.Contains(log(restored), " BACK") {
		t.Errorf("a clock went back: %s", log(restored))
	}
}

// restore brings a container back as the only one of a new pod.
func restore(t *testing.T, directory string, from *lab.Container) *lab.Container {
	t.Helper()
	config := proto.Clone(from.Pod.Config).(*runtimeapi.PodSandboxConfig)
	config.Metadata.Uid, config.LogDirectory = client.Unique(), t.TempDir()
	response, err := lab.Node().RestorePod(lab.Context(t), &runtimeapi.RestorePodRequest{
		CheckpointPath: directory, Config: config, ContainerConfigs: []*runtimeapi.ContainerConfig{from.Config},
	})
	if err != nil {
		t.Fatalf("RestorePod: %v", err)
	}
	p := lab.Adopt(t, response.PodSandboxId, config)
	if len(response.RestoredContainers) != 1 {
		t.Fatalf("restored: %v", response.RestoredContainers)
	}
	return &lab.Container{ID: response.RestoredContainers[0].ContainerId, Config: from.Config, Pod: p}
}

func log(c *lab.Container) string {
	text, _ := os.ReadFile(c.LogPath())
	return string(text)
}

func largest(t *testing.T, c *lab.Container) pair.Gap {
	t.Helper()
	var gaps []pair.Gap
	for line := range strings.Lines(log(c)) {
		if _, said, ok := strings.Cut(line, " stdout F "); ok {
			if gap, err := pair.ParseGap(strings.TrimSpace(said)); err == nil {
				gaps = append(gaps, gap)
			}
		}
	}
	return pair.Largest(gaps)
}
