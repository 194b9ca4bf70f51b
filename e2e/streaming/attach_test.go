package streaming

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func attachURL(t *testing.T, request *runtimeapi.AttachRequest) string {
	t.Helper()
	response, err := lab.Node().Runtime.Attach(lab.Context(t), request)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return response.Url
}

// attach connects a typist and a screen to a container; the channel brings the session's end.
func attach(t *testing.T, connect func(string) (remotecommand.Executor, error), c *lab.Container, tty bool) (io.WriteCloser, *screen, chan error, context.CancelFunc) {
	t.Helper()
	executor, err := connect(attachURL(t, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(lab.Context(t))
	stdin, typing := io.Pipe()
	shown, ended := &screen{}, make(chan error, 1)
	options := remotecommand.StreamOptions{Stdin: stdin, Stdout: shown, Tty: tty}
	if !tty {
		options.Stderr = shown
	}
	go func() { ended <- executor.StreamWithContext(ctx, options) }()
	return typing, shown, ended, leave
}

func interactive(once, tty bool) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce, c.Tty = true, once, tty }
}

// Input of one session after another reaches the container, which ends when a session ends it and may.
func TestAttachToAShell(t *testing.T) {
	p := pod(t)
	each(t, func(t *testing.T, connect func(string) (remotecommand.Executor, error)) {
		c := p.Run("main-"+strings.ReplaceAll(t.Name()[len("TestAttachToAShell/"):], "_", "-"), "while read line; do echo got $line; echo bad $line >&2; done; echo end", interactive(false, false))
		typing, shown, ended, leave := attach(t, connect, c, false)
		_, _ = io.WriteString(typing, "one\n")
		eventually(t, "both outputs come", func() bool {
			return strings.Contains(shown.String(), "got one\n") && strings.Contains(shown.String(), "bad one\n")
		})
		leave()
		<-ended
		_ = typing.Close()
		typing, shown, ended, leave = attach(t, connect, c, false)
		defer leave()
		_, _ = io.WriteString(typing, "two\n")
		eventually(t, "a second session is served", func() bool { return strings.Contains(shown.String(), "got two\n") })
		if strings.Contains(shown.String(), "one") {
			t.Errorf("what was said before comes again: %q", shown.String())
		}
		c.Stop(0)
		if err := <-ended; err != nil {
			t.Errorf("the end of the container: %v", err)
		}
	})
}

func TestAttachEndsInputOnce(t *testing.T) {
	c := pod(t).Run("main", "cat; echo end", interactive(true, false))
	typing, shown, ended, leave := attach(t, protocols["websocket v5"], c, false)
	defer leave()
	_, _ = io.WriteString(typing, "hello\n")
	_ = typing.Close()
	if err := <-ended; err != nil || shown.String() != "hello\nend\n" {
		t.Errorf("ended with %v after %q", err, shown.String())
	}
	if got := c.Wait(); got.ExitCode != 0 {
		t.Errorf("exit code %d", got.ExitCode)
	}
}

func TestAttachToATerminal(t *testing.T) {
	c := pod(t).Run("main", "sh", interactive(false, true))
	each(t, func(t *testing.T, connect func(string) (remotecommand.Executor, error)) {
		typing, shown, ended, leave := attach(t, connect, c, true)
		_, _ = io.WriteString(typing, "echo $((6*7))\n")
		eventually(t, "the terminal answers", func() bool { return strings.Contains(shown.String(), "42") })
		leave()
		<-ended
		_ = typing.Close()
	})
}

// A reader that does not read holds up neither the container nor its log, and is told.
func TestAttachSlowReader(t *testing.T) {
	// More than all the buffers on the way could hold, and no log to fill the disk with.
	script := "read go; dd if=/dev/zero bs=1M count=96 2>/dev/null; echo >/wrote; while :; do sleep 0.05; done"
	c := pod(t).Run("main", script, interactive(false, false), func(c *runtimeapi.ContainerConfig) { c.LogPath = "" })
	executor, err := protocols["spdy"](attachURL(t, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true}))
	if err != nil {
		t.Fatal(err)
	}
	stuck, release := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- executor.StreamWithContext(lab.Context(t), remotecommand.StreamOptions{Stdin: strings.NewReader("go\n"), Stdout: &stuckWriter{stuck: stuck, release: release}})
	}()
	<-stuck
	eventually(t, "the container wrote all of it", func() bool {
		return strings.HasPrefix(c.Sh("test -e /wrote && echo yes || echo no"), "yes")
	})
	close(release)
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "too slowly") {
			t.Errorf("the reader was told %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the reader was not told")
	}
}

type stuckWriter struct{ stuck, release chan struct{} }

func (w *stuckWriter) Write(p []byte) (int, error) {
	if w.stuck != nil {
		close(w.stuck)
		w.stuck = nil
		<-w.release
	}
	return len(p), nil
}
