package streaming

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

const (
	// crowd is how many sessions there are at once, half of them over each protocol.
	crowd = 1000
	// leftover is how many MiB more than after the first crowd the daemon may have after the last.
	leftover = 4
)

// Crowds of sessions come and go, and leave the daemon as it was after the first of them.
func TestSessionsLeaveNothing(t *testing.T) {
	crowds := 3
	if said, err := strconv.Atoi(os.Getenv("MERIDIAN_CROWDS")); err == nil {
		crowds = said
	}
	c := pod(t).Run("main", sleeper)
	run(t, protocols["spdy"], c, "true", nil)
	open, began := descriptors(t), memory(t)
	var after []int
	for range crowds {
		peak := gather(t, c)
		eventually(t, "the daemon closed all", func() bool { return descriptors(t) <= open })
		after = append(after, settledMemory(t))
		t.Logf("resident: %d MiB at first, %d with %d sessions, %d after", began, peak, crowd, after[len(after)-1])
	}
	if first, last := after[0], after[len(after)-1]; last > first+leftover {
		t.Errorf("resident after each crowd: %v MiB: it grows", after)
	}
}

// gather starts a crowd, lets every session say something both ways while all are there, and ends them. It returns the
// daemon's memory with all of them there.
func gather(t *testing.T, c *lab.Container) (peak int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var here, all sync.WaitGroup
	here.Add(crowd)
	leave := make(chan struct{})
	for i := range crowd {
		url := execURL(t, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"cat"}, Stdin: true, Stdout: true})
		executor, err := protocols[[]string{"spdy", "websocket v5"}[i%2]](url)
		if err != nil {
			t.Fatal(err)
		}
		input, typing := io.Pipe()
		echo := &greeted{want: fmt.Sprintf("session %d\n", i), done: here.Done}
		all.Go(func() {
			if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: input, Stdout: echo}); err != nil {
				t.Errorf("session %d: %v", i, err)
			}
			echo.end()
		})
		all.Go(func() {
			_, _ = io.WriteString(typing, echo.want)
			<-leave
			_ = typing.Close()
		})
	}
	here.Wait()
	peak = memory(t)
	close(leave)
	all.Wait()
	return peak
}

// greeted is a session's screen: done is called once what was typed has come back, or will not.
type greeted struct {
	text strings.Builder
	want string
	once sync.Once
	done func()
}

func (g *greeted) Write(text []byte) (int, error) {
	g.text.Write(text)
	if g.text.String() == g.want {
		g.end()
	}
	return len(text), nil
}

func (g *greeted) end() { g.once.Do(g.done) }

// settledMemory waits for what the daemon gives back every few seconds.
func settledMemory(t *testing.T) int {
	t.Helper()
	least := memory(t)
	for range 7 {
		time.Sleep(time.Second)
		least = min(least, memory(t))
	}
	return least
}
