// Package checkpoint tests CheckpointPod, RestorePod and CheckpointContainer from outside.
package checkpoint

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// source is a running pod of clockwork containers.
type source struct {
	*lab.Pod
	t          *testing.T
	containers []*lab.Container
}

// run starts a pod; each container is named after the first of its arguments to clockwork.
func run(t *testing.T, commands ...[]string) *source {
	t.Helper()
	s := &source{Pod: lab.RunPod(t), t: t}
	for _, arguments := range commands {
		c := s.Create(arguments[len(arguments)-1], "", func(config *runtimeapi.ContainerConfig) {
			config.Command, config.Args = nil, arguments
		})
		s.containers = append(s.containers, c.Start())
	}
	return s
}

// ids are the containers' ids, as CheckpointPod wants them.
func (s *source) ids() []string {
	var ids []string
	for _, c := range s.containers {
		ids = append(ids, c.ID)
	}
	return ids
}

// configs are the containers' configurations, as RestorePod wants them.
func (s *source) configs() []*runtimeapi.ContainerConfig {
	var configs []*runtimeapi.ContainerConfig
	for _, c := range s.containers {
		configs = append(configs, proto.Clone(c.Config).(*runtimeapi.ContainerConfig))
	}
	return configs
}

// checkpoint writes the pod down into a fresh directory.
func (s *source) checkpoint() string {
	s.t.Helper()
	directory := s.t.TempDir()
	if _, err := lab.Node().Runtime.CheckpointPod(lab.Context(s.t), &runtimeapi.CheckpointPodRequest{
		PodSandboxId: s.ID, OutputPath: directory, ContainerIds: s.ids()}); err != nil {
		s.t.Fatalf("CheckpointPod: %v", err)
	}
	return directory
}

// restored is a pod made from a checkpoint.
type restored struct {
	t      *testing.T
	id     string
	config *runtimeapi.PodSandboxConfig
	ids    map[string]string
}

// anotherPod is a pod of another name that the checkpoint may become: only its hostname is the same.
func (s *source) anotherPod(name string) *runtimeapi.PodSandboxConfig {
	return client.Pod(name, s.t.TempDir(), func(c *runtimeapi.PodSandboxConfig) { c.Hostname = s.Config.Hostname })
}

// restore makes a new pod of a new name from a checkpoint; it is removed when the test ends.
func (s *source) restore(directory string) *restored {
	s.t.Helper()
	config := s.anotherPod("restored-" + client.Unique()[:5])
	r, err := restore(s.t, directory, config, s.configs())
	if err != nil {
		s.t.Fatalf("RestorePod: %v", err)
	}
	return r
}

func restore(t *testing.T, directory string, config *runtimeapi.PodSandboxConfig, configs []*runtimeapi.ContainerConfig) (*restored, error) {
	t.Helper()
	response, err := lab.Node().Runtime.RestorePod(lab.Context(t), &runtimeapi.RestorePodRequest{
		CheckpointPath: directory, Config: config, ContainerConfigs: configs})
	if err != nil {
		return nil, err
	}
	r := &restored{t: t, id: response.PodSandboxId, config: config, ids: map[string]string{}}
	t.Cleanup(r.remove)
	for _, c := range response.RestoredContainers {
		r.ids[c.Name] = c.ContainerId
	}
	return r, nil
}

func (r *restored) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := lab.Node().StopPodSandbox(ctx, r.id); err != nil {
		r.t.Errorf("stop the restored pod: %v", err)
	}
	if err := lab.Node().RemovePodSandbox(ctx, r.id); err != nil {
		r.t.Errorf("remove the restored pod: %v", err)
	}
}

func (r *restored) start(names ...string) {
	r.t.Helper()
	for _, name := range names {
		if err := lab.Node().StartContainer(lab.Context(r.t), r.ids[name]); err != nil {
			r.t.Fatalf("StartContainer %s: %v", name, err)
		}
	}
}

func (r *restored) state(name string) runtimeapi.ContainerState {
	r.t.Helper()
	response, err := lab.Node().ContainerStatus(lab.Context(r.t), r.ids[name], false)
	if err != nil {
		r.t.Fatal(err)
	}
	return response.Status.State
}

func (r *restored) sh(name, script string) string {
	r.t.Helper()
	stdout, stderr, err := lab.Node().ExecSync(lab.Context(r.t), r.ids[name], []string{"/bin/sh", "-c", script}, 20*time.Second)
	if err != nil {
		r.t.Fatalf("exec %q: %v %s", script, err, stderr)
	}
	return strings.TrimSpace(string(stdout))
}

// lines are what a container has printed under a pod's log directory.
func lines(config *runtimeapi.PodSandboxConfig, name string) []string {
	text, _ := os.ReadFile(filepath.Join(config.LogDirectory, name+"_0.log"))
	var all []string
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		if parts := strings.SplitN(line, " ", 4); len(parts) == 4 {
			all = append(all, parts[3])
		}
	}
	return all
}

// await waits for a line with prefix after the first from ones.
func await(t *testing.T, config *runtimeapi.PodSandboxConfig, name, prefix string, from int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all := lines(config, name)
		for _, line := range all[min(from, len(all)):] {
			if strings.HasPrefix(line, prefix) {
				return
			}
		}
	}
	t.Fatalf("container %s printed no %q: %v", name, prefix, lines(config, name))
}

// counts are counter, MONOTONIC, BOOTTIME and REALTIME of each line of `clockwork count`.
func counts(t *testing.T, config *runtimeapi.PodSandboxConfig, name string) [][4]int64 {
	t.Helper()
	var all [][4]int64
	for _, line := range lines(config, name) {
		var words [4]int64
		for i, field := range strings.Fields(line)[:min(4, len(strings.Fields(line)))] {
			number, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				t.Fatalf("container %s reports %q", name, line)
			}
			words[i] = number
		}
		all = append(all, words)
	}
	return all
}

// keepsCounting wants the source running, unfrozen and unharmed.
func (s *source) keepsCounting(name string) {
	s.t.Helper()
	all := counts(s.t, s.Config, name)
	await(s.t, s.Config, name, fmt.Sprint(all[len(all)-1][0]+10, " "), len(all)-1)
}
