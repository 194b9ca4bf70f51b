// Package cli tests what an engineer on the node types: the meridian command, and crictl where it is on PATH.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

func TestMain(m *testing.M) { lab.Main(m) }

// meridian runs the command and wants it to succeed.
func meridian(t *testing.T, arguments ...string) string {
	t.Helper()
	output, err := lab.Node().CLI(lab.Context(t), arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

// runPod runs a pod by `meridian run`, removed by `meridian rm` when the test ends, and returns both ids.
func runPod(t *testing.T, name string, command ...string) (pod, container string) {
	t.Helper()
	return runPodWith(t, name, nil, command...)
}

// runPodWith does so with options of `meridian run`.
func runPodWith(t *testing.T, name string, options []string, command ...string) (pod, container string) {
	t.Helper()
	lab.Image(t, "clockwork:1")
	arguments := append([]string{"run", "--logs", t.TempDir(), "--name", name}, options...)
	arguments = append(append(arguments, lab.Reference("clockwork:1")), command...)
	ids := strings.Fields(meridian(t, arguments...))
	if len(ids) != 2 {
		t.Fatalf("meridian run printed %v, want two ids", ids)
	}
	t.Cleanup(func() {
		if _, err := lab.Node().CLI(context.Background(), "rm", "--force", ids[0]); err != nil && !strings.Contains(err.Error(), "there is no") {
			t.Errorf("rm: %v", err)
		}
	})
	return ids[0], ids[1]
}

func wants(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s lacks %q:\n%s", what, word, text)
		}
	}
}

func TestADayOnTheNode(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	pod, container := runPod(t, "day", "count")
	wants(t, "pods", meridian(t, "pods"), pod[:12], "day", "Ready")
	wants(t, "ps", meridian(t, "ps"), container[:12], "day", "Running")
	if got := meridian(t, "exec", "day", "echo", "hello"); got != "hello\n" {
		t.Errorf("exec printed %q", got)
	}
	time.Sleep(300 * time.Millisecond)
	lines := strings.Split(strings.TrimSpace(meridian(t, "logs", "--tail", "3", "day")), "\n")
	if len(lines) != 3 || len(strings.Fields(lines[0])) != 4 {
		t.Errorf("logs --tail 3: %q", lines)
	}
	wants(t, "ns", meridian(t, "ns", "day"), "net", "time", "uts", "ipc", "mnt", "pid", "cgroup", "user")
	wants(t, "inspect", meridian(t, "inspect", pod), pod)
	wants(t, "doctor", meridian(t, "doctor"), "criu")
	meridian(t, "stop", "--timeout", "1s", "day")
	if running := meridian(t, "ps"); strings.Contains(running, container[:12]) {
		t.Errorf("ps still lists it: %s", running)
	}
	wants(t, "ps --all", meridian(t, "ps", "--all"), container[:12], "Exited")
	meridian(t, "rm", pod)
	if left := meridian(t, "pods"); strings.Contains(left, pod[:12]) {
		t.Errorf("pods still lists it: %s", left)
	}
}

func TestImagesOnTheNode(t *testing.T) {
	reference := lab.Reference("busybox:plain")
	if got := meridian(t, "pull", reference); !strings.Contains(got, "sha256:") {
		t.Errorf("pull printed %q", got)
	}
	wants(t, "images", meridian(t, "images"), "meridian/busybox", "plain")
	var inspected any
	if err := json.Unmarshal([]byte(meridian(t, "inspect", reference)), &inspected); err != nil {
		t.Errorf("inspect of an image is not JSON: %v", err)
	}
}

func TestOutputIsJsonWhereAsked(t *testing.T) {
	pod, _ := runPod(t, "json", "pause")
	for _, arguments := range [][]string{{"pods"}, {"ps"}, {"images"}, {"ns", pod}, {"inspect", pod}, {"doctor"}} {
		var document any
		text := meridian(t, append(arguments, "--output", "json")...)
		if err := json.Unmarshal([]byte(text), &document); err != nil {
			t.Errorf("%v: %v: %s", arguments, err, text)
		}
	}
}

func TestExecCarriesTheExitCode(t *testing.T) {
	_, container := runPod(t, "code", "pause")
	for code, script := range map[int]string{0: "exit 0", 7: "exit 7", 137: "kill -9 $$"} {
		_, err := lab.Node().CLI(lab.Context(t), "exec", container, "sh", "-c", script)
		got := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			got = exit.ExitCode()
		}
		if got != code {
			t.Errorf("%q: exit code %d, want %d", script, got, code)
		}
	}
}

func TestErrorsNameTheCure(t *testing.T) {
	for _, test := range []struct {
		arguments []string
		words     []string
	}{
		{[]string{"inspect", "nonesuch"}, []string{"nonesuch", "meridian"}},
		{[]string{"exec", "nonesuch", "true"}, []string{"nonesuch", "meridian ps"}},
		{[]string{"pull", "127.0.0.1:1/x:1"}, []string{"127.0.0.1:1"}},
		{[]string{"run", lab.Reference("nonesuch:1")}, []string{"nonesuch"}},
		{[]string{"migrate", "nonesuch", "--to", "127.0.0.1:1"}, []string{"nonesuch"}},
		{[]string{"restore", "/no/such/directory"}, []string{"/no/such/directory"}},
		{[]string{"nonesuch"}, []string{"nonesuch"}},
	} {
		_, err := lab.Node().CLI(lab.Context(t), test.arguments...)
		if err == nil {
			t.Errorf("%v succeeded", test.arguments)
			continue
		}
		wants(t, strings.Join(test.arguments, " "), err.Error(), test.words...)
		if strings.Contains(err.Error(), "panicked") {
			t.Errorf("%v: %v", test.arguments, err)
		}
	}
	output, err := exec.Command(node.Binary("meridian"), "--socket", filepath.Join(t.TempDir(), "none.sock"), "ps").CombinedOutput()
	if err == nil {
		t.Error("ps without a daemon succeeded")
	}
	wants(t, "ps without a daemon", string(output), "none.sock", "meridiand")
}

func TestShellCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		wants(t, shell, meridian(t, "completion", shell), "migrate", "inspect", "attach", "port-forward")
	}
}
