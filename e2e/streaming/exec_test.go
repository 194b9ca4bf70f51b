package streaming

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func TestExecOutputsAndCodes(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	each(t, func(t *testing.T, connect func(string) (remotecommand.Executor, error)) {
		if got, want := run(t, connect, c, "echo out; echo err >&2; exit 7", nil), (said{"out\n", "err\n", 7}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got := run(t, connect, c, "kill -9 $$", nil); got.code != 137 {
			t.Errorf("killed: code %d, want 137", got.code)
		}
		if got, want := run(t, connect, c, "true", nil), (said{}); got != want {
			t.Errorf("true: %+v", got)
		}
	})
}

// A command that reads to its end shows that the end of a client's input reaches it.
func TestExecInputEnds(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	each(t, func(t *testing.T, connect func(string) (remotecommand.Executor, error)) {
		got := run(t, connect, c, "cat; echo done", strings.NewReader("some input\n"))
		if want := (said{stdout: "some input\ndone\n"}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}, "websocket v4") // only version 5 can end input

	t.Run("nobody reads it", func(t *testing.T) {
		got := run(t, protocols["spdy"], c, "exec <&-; sleep 0.2; echo fine", bytes.NewReader(make([]byte, 4<<20)))
		if want := (said{stdout: "fine\n"}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestExecLargeTransfers(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	const size = 24 << 20
	input := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(input)
	digest := fmt.Sprintf("%x", sha256.Sum256(input))
	each(t, func(t *testing.T, connect func(string) (remotecommand.Executor, error)) {
		if got := run(t, connect, c, "sha256sum", bytes.NewReader(input)); !strings.HasPrefix(got.stdout, digest) {
			t.Errorf("the command read something else: %q", got.stdout)
		}
		got := run(t, connect, c, "cat", bytes.NewReader(input))
		if back := fmt.Sprintf("%x", sha256.Sum256([]byte(got.stdout))); back != digest {
			t.Errorf("%d bytes came back, want the same %d", len(got.stdout), size)
		}
	}, "websocket v4")
}

// sizes is a terminal that is resized once.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func TestExecTerminal(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	each(t, func(t *testing.T, connect func(string) (remotecommand.Executor, error)) {
		request := &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true}
		executor, err := connect(execURL(t, request))
		if err != nil {
			t.Fatal(err)
		}
		stdin, typing := io.Pipe()
		stdout := &screen{}
		queue := make(sizes, 2)
		ended := make(chan error, 1)
		go func() {
			ended <- executor.StreamWithContext(lab.Context(t), remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout, Tty: true, TerminalSizeQueue: queue})
		}()
		queue <- remotecommand.TerminalSize{Width: 101, Height: 37}
		eventually(t, "the terminal has its size", func() bool {
			_, _ = io.WriteString(typing, "stty size\n")
			time.Sleep(50 * time.Millisecond)
			return strings.Contains(stdout.String(), "37 101")
		})
		_, _ = io.WriteString(typing, "test -t 0 && test -t 2 && exit 3\n")
		if err := <-ended; code(t, err) != 3 {
			t.Errorf("ended with %v; the screen: %q", err, stdout.String())
		}
		close(queue)
		_ = typing.Close()
	})
}

// screen is a buffer that may be read while it is written.
type screen struct {
	lock sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.text.String()
}

func TestExecManyAtOnce(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	run(t, protocols["spdy"], c, "true", nil)
	before := descriptors(t)
	var all sync.WaitGroup
	for i := range 120 {
		all.Go(func() {
			connect := protocols[[]string{"spdy", "websocket v5"}[i%2]]
			want := said{fmt.Sprintf("%d\n", i), "", i % 100}
			if got := run(t, connect, c, fmt.Sprintf("read x; echo $x; exit %d", i%100), strings.NewReader(want.stdout)); got != want {
				t.Errorf("session %d: %+v, want %+v", i, got, want)
			}
		})
	}
	all.Wait()
	eventually(t, "the daemon closed all", func() bool { return descriptors(t) <= before })
}

// A client that leaves takes its command along.
func TestExecClientLeaves(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	each(t, func(t *testing.T, connect func(string) (remotecommand.Executor, error)) {
		executor, err := connect(execURL(t, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "sleep 4322 & sleep 4321"}, Stdout: true, Stderr: true}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(context.Background())
		go func() {
			for !strings.Contains(c.Sh("ps -o args"), "sleep 4322") {
				time.Sleep(20 * time.Millisecond)
			}
			leave()
		}()
		_ = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
		eventually(t, "the command is gone", func() bool { return !strings.Contains(c.Sh("ps -o args"), "sleep 432") })
	})
}

func TestExecTokens(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	address := execURL(t, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Stdout: true, Stderr: true})
	if !strings.HasPrefix(address, "http://127.0.0.1:") {
		t.Errorf("URL %q is not absolute", address)
	}
	get := func(address string) int {
		response, err := http.Get(address) //nolint:noctx // answered at once
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	if got := get(address); got != http.StatusBadRequest {
		t.Errorf("without an upgrade: %d, want 400", got)
	}
	executor, err := protocols["spdy"](address)
	if err != nil {
		t.Fatal(err)
	}
	if err := executor.StreamWithContext(lab.Context(t), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard}); err == nil {
		t.Error("a token was good twice")
	}
	for _, wrong := range []string{"/", "/exec", "/exec/", "/exec/00000000000000000000000000000000", "/exec/../../etc/passwd"} {
		base := address[:strings.LastIndex(address, "/exec/")]
		if got := get(base + wrong); got != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", wrong, got)
		}
	}
}
