package checkpoint

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// A shell is written down with its terminal and goes on with it: size, input, output to the log, another terminal beside.
func TestTerminalIsRestored(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	s := &source{Pod: lab.RunPod(t), t: t}
	shell := s.Run("shell", "while read line; do echo got $line $(stty size); done; echo hung up", func(c *runtimeapi.ContainerConfig) {
		c.Stdin, c.Tty = true, true
	})
	s.containers = append(s.containers, shell)
	sized := func(size string) string {
		return `until [ "$(stty size < /proc/1/fd/0 2>&1)" = "` + size + `" ]; do sleep 0.01; done`
	}
	before := sit(t, shell.ID, 40, 100)
	shell.Sh(sized("40 100"))
	before.types("one")
	await(t, s.Config, "shell", "got one 40 100", 0)
	before.leave()

	r := s.restore(s.checkpoint())
	r.start("shell")
	after := sit(t, r.ids["shell"], 0, 0)
	after.types("two")
	await(t, r.config, "shell", "got two 40 100", 0)
	after.sizes <- remotecommand.TerminalSize{Height: 30, Width: 90}
	r.sh("shell", sized("30 90"))
	after.types("three")
	await(t, r.config, "shell", "got three 30 90", 0)
	after.leave()
	wait := `until [ "$(stty size 2>&1)" = "24 80" ]; do sleep 0.01; done; `
	if tty := ask(t, r.ids["shell"], wait+"stty size; tty"); tty != "24 80\r\n/dev/pts/1\r\n" {
		t.Errorf("exec with a terminal of its own in the restored container: %q", tty)
	}
	last := sit(t, r.ids["shell"], 0, 0)
	defer last.leave()
	last.types("\x04") // the end of input, as a terminal's user gives it
	await(t, r.config, "shell", "hung up", 0)
}

// seat is somebody at a container's terminal.
type seat struct {
	t     *testing.T
	typed *io.PipeWriter
	sizes sizes
	leave func()
}

type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, more := <-s
	if !more {
		return nil
	}
	return &size
}

func websocket(t *testing.T, url string) remotecommand.Executor {
	t.Helper()
	executor, err := remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, url)
	if err != nil {
		t.Fatal(err)
	}
	return executor
}

// sit attaches to a container's terminal and gives it a size; zeroes leave the one it has.
func sit(t *testing.T, container string, height, width uint16) *seat {
	t.Helper()
	response, err := lab.Node().Runtime.Attach(lab.Context(t), &runtimeapi.AttachRequest{ContainerId: container, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	ctx, cancel := context.WithCancel(lab.Context(t))
	stdin, typed := io.Pipe()
	s := &seat{t: t, typed: typed, sizes: make(sizes, 1)}
	if height > 0 {
		s.sizes <- remotecommand.TerminalSize{Height: height, Width: width}
	}
	ended := make(chan struct{})
	executor := websocket(t, response.Url)
	go func() {
		defer close(ended)
		_ = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: io.Discard, Tty: true, TerminalSizeQueue: s.sizes})
	}()
	s.leave = func() {
		cancel()
		<-ended
		close(s.sizes)
		_ = typed.Close()
	}
	return s
}

// types ends the line.
func (s *seat) types(line string) {
	s.t.Helper()
	if line != "\x04" {
		line += "\n"
	}
	if _, err := io.WriteString(s.typed, line); err != nil {
		s.t.Errorf("typing %q: %v", line, err)
	}
}

// ask runs a shell command line in a container, at a terminal of 24 lines by 80, and returns what that shows.
func ask(t *testing.T, container, script string) string {
	t.Helper()
	response, err := lab.Node().Runtime.Exec(lab.Context(t), &runtimeapi.ExecRequest{
		ContainerId: container, Cmd: []string{"sh", "-c", script}, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	var shown bytes.Buffer
	size := make(sizes, 1)
	size <- remotecommand.TerminalSize{Height: 24, Width: 80}
	close(size)
	stdin, typed := io.Pipe()
	defer typed.Close()
	err = websocket(t, response.Url).StreamWithContext(lab.Context(t), remotecommand.StreamOptions{Stdin: stdin, Stdout: &shown, Tty: true, TerminalSizeQueue: size})
	if err != nil {
		t.Errorf("exec %q: %v", script, err)
	}
	return shown.String()
}
