package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/kube"
	"meridian.dev/e2e/lab"
)

func TestStreams(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "streams.yaml", node)
		pod := "streams-" + node
		waitFor(t, "condition=Ready", "pod/"+pod)
		for name, test := range map[string]func(*testing.T, string){
			"exec": execs, "attach": attaches, "port-forward": forwards, "cp": copies, "debug": debugs,
		} {
			t.Run(name, func(t *testing.T) { test(t, pod) })
		}
	})
}

func execs(t *testing.T, pod string) {
	equal(t, "output", sh(t, pod, "echo hello"), "hello")
	_, err := cluster.Kubectl(lab.Context(t), "exec", pod, "--", "sh", "-c", "echo wrong >&2; exit 42")
	if err == nil {
		t.Fatal("exit 42 is no error")
	}
	wants(t, "error", err.Error(), "exit status 42", "wrong")
	input := strings.Repeat("0123456789abcdef", 1<<16)
	output, err := cluster.KubectlWith(lab.Context(t), input, "exec", "-i", pod, "--", "cat")
	if err != nil || output != input {
		t.Errorf("cat of %d bytes: %d bytes, %v", len(input), len(output), err)
	}
	output, err = cluster.KubectlWith(lab.Context(t), "", "exec", "-i", pod, "--", "tty")
	wants(t, "tty without -t", output+fmt.Sprint(err), "not a tty")
	fails(t, []string{"/no/such/program"}, "exec", pod, "--", "/no/such/program")
}

func attaches(t *testing.T, pod string) {
	attached := start(t, "attach", "-i", pod, "-c", "shell")
	defer attached.stop()
	fmt.Fprintln(attached.in, "a line")
	attached.until("got a line")
	becomes(t, "got a line", "logs", pod, "-c", "shell")
}

func forwards(t *testing.T, pod string) {
	forward := start(t, "port-forward", "--address=127.0.0.1", "pod/"+pod, ":8080")
	defer forward.stop()
	line := forward.until("Forwarding from")
	port := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(line)[1]
	for range 5 {
		response, err := http.Get("http://127.0.0.1:" + port)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		wants(t, "body", string(body), "monotonic")
	}
}

func copies(t *testing.T, pod string) {
	there, back := filepath.Join(t.TempDir(), "there"), filepath.Join(t.TempDir(), "back")
	content := strings.Repeat("to and fro\n", 1<<16)
	if err := os.WriteFile(there, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	call(t, "cp", there, pod+":/tmp/there", "-c", "shell")
	call(t, "cp", pod+":/tmp/there", back, "-c", "shell")
	if got, err := os.ReadFile(back); err != nil || string(got) != content {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

// debugs looks at a running container's processes from an ephemeral one.
func debugs(t *testing.T, pod string) {
	call(t, "debug", pod, "--image=registry.example/meridian/busybox:1", "--target=web", "-c", "look", "--attach=false",
		"--", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; echo; exec sleep 3600")
	becomes(t, "clockwork serve", "logs", pod, "-c", "look")
}

// session is a kubectl that goes on until it is stopped.
type session struct {
	t      *testing.T
	in     io.WriteCloser
	lines  *bufio.Scanner
	cancel context.CancelFunc
	done   func() error
}

func start(t *testing.T, arguments ...string) *session {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	command := exec.CommandContext(ctx, kube.Binary("kubectl"), arguments...)
	command.Env = cluster.Environment()
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	return &session{t, in, bufio.NewScanner(out), cancel, command.Wait}
}

// until reads lines up to one that says what is wanted, and returns it.
func (s *session) until(want string) string {
	s.t.Helper()
	for s.lines.Scan() {
		if strings.Contains(s.lines.Text(), want) {
			return s.lines.Text()
		}
	}
	s.t.Fatalf("ended before it said %q", want)
	return ""
}

// rest reads to the end.
func (s *session) rest() []string {
	var lines []string
	for s.lines.Scan() {
		lines = append(lines, s.lines.Text())
	}
	return lines
}

func (s *session) stop() {
	s.cancel()
	_ = s.done()
}
