// Package conformance asserts what cri-tools' critest asserts, in our own words and without its images, where no other
// package here does. e2e/critest.md names for each of critest's specs the test that covers it; TestTable keeps it true.
package conformance

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// sleeper stays and ends at once on SIGTERM.
const sleeper = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

type (
	podOption       = func(*runtimeapi.PodSandboxConfig)
	containerOption = func(*runtimeapi.ContainerConfig)
)

// pod runs a sandbox under a census.
func pod(t *testing.T, options ...podOption) *lab.Pod {
	t.Helper()
	lab.Image(t, "clockwork:1") // before the census: an unpacked image stays
	lab.Clean(t, lab.Node())
	return lab.RunPod(t, options...)
}

func security(change func(*runtimeapi.LinuxContainerSecurityContext)) containerOption {
	return func(c *runtimeapi.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func mounting(mounts ...*runtimeapi.Mount) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = mounts }
}

// create asks for a container and returns what came back; one that came to be is removed with its pod.
func create(t *testing.T, p *lab.Pod, options ...containerOption) (string, error) {
	t.Helper()
	config := client.Container(p.Config, "c-"+client.Unique()[:5], lab.Image(t, "clockwork:1"), []string{"true"}, options...)
	response, err := lab.Node().Runtime.CreateContainer(lab.Context(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	return response.GetContainerId(), err
}

var wantCode, eventually = lab.WantCode, lab.Eventually

// run runs a shell command line that may fail, and returns its exit code and both outputs together.
func run(t *testing.T, c *lab.Container, script string) (int32, string) {
	t.Helper()
	got, err := lab.Node().Runtime.ExecSync(lab.Context(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"/bin/sh", "-c", script}, Timeout: 20})
	if err != nil {
		t.Fatalf("exec %q: %v", script, err)
	}
	return got.ExitCode, strings.TrimSpace(string(got.Stdout) + string(got.Stderr))
}
