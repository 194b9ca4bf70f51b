// Package streaming tests exec, attach and port-forward with the clients that kubectl, the kubelet and crictl are built
// on: client-go's SPDY and WebSocket executors and its port forwarder; and with clients that misbehave.
package streaming

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// sleeper stays and ends at once on SIGTERM.
const sleeper = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

// pod runs a sandbox under a census: whatever a test's clients leave behind is found.
func pod(t *testing.T, options ...func(*runtimeapi.PodSandboxConfig)) *lab.Pod {
	t.Helper()
	lab.Image(t, "clockwork:1") // before the census: an unpacked image stays
	lab.Clean(t, lab.Node())
	return lab.RunPod(t, options...)
}

// protocols are the ways to connect to a process.
var protocols = map[string]func(address string) (remotecommand.Executor, error){
	"spdy": func(address string) (remotecommand.Executor, error) {
		parsed, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, parsed)
	},
	"websocket v5": func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, address)
	},
	"websocket v4": func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, address, "v4.channel.k8s.io")
	},
}

// each runs a test over every protocol but those left out.
func each(t *testing.T, test func(t *testing.T, connect func(string) (remotecommand.Executor, error)), without ...string) {
	t.Helper()
protocols:
	for name, connect := range protocols {
		for _, out := range without {
			if name == out {
				continue protocols
			}
		}
		t.Run(name, func(t *testing.T) { test(t, connect) })
	}
}

// execURL asks for a command.
func execURL(t testing.TB, request *runtimeapi.ExecRequest) string {
	t.Helper()
	response, err := lab.Node().Runtime.Exec(lab.Context(t), request)
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	return response.Url
}

// said is what a command said and how it ended.
type said struct {
	stdout, stderr string
	code           int
}

// run executes a shell command line, with or without input.
func run(t testing.TB, connect func(string) (remotecommand.Executor, error), c *lab.Container, script string, stdin io.Reader) said {
	t.Helper()
	request := &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", script}, Stdin: stdin != nil, Stdout: true, Stderr: true}
	executor, err := connect(execURL(t, request))
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr})
	return said{stdout.String(), stderr.String(), code(t, err)}
}

// code is the exit code in what an executor returns.
func code(t testing.TB, err error) int {
	t.Helper()
	var exit exec.CodeExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	t.Errorf("stream: %v", err)
	return -1
}

// eventually polls a condition that the kernel or the daemon brings about soon.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// descriptors counts what the daemon has open.
func descriptors(t testing.TB) int {
	t.Helper()
	open, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(lab.Node().Pid()), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}
