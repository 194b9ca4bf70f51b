package cri

import (
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"meridian.dev/e2e/lab"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func sorted(words []string) string {
	sort.Strings(words)
	return strings.Join(words, " ")
}

func TestLogTellsStreamsApart(t *testing.T) {
	p := pod(t)
	c := p.Run("main", "echo out; echo err >&2; printf 'no line feed'")
	c.Wait()
	lines := readLog(t, c.LogPath())
	if got := output(lines, "stdout"); !strings.HasPrefix(got, "out\nno line feed") {
		t.Errorf("stdout = %q", got)
	}
	if got := output(lines, "stderr"); got != "err\n" {
		t.Errorf("stderr = %q", got)
	}
	for i := 1; i < len(lines); i++ {
		if lines[i].stream == lines[i-1].stream && lines[i].time.Before(lines[i-1].time) {
			t.Errorf("line %d is older than the one before", i)
		}
	}
	info, err := os.Stat(c.LogPath())
	if err != nil || info.Mode().Perm()&0o137 != 0 {
		t.Errorf("log file mode %v, %v; want 0640 or less", info.Mode(), err)
	}
}

func TestLongLinesAreSplit(t *testing.T) {
	const length = 100_000
	p := pod(t)
	c := p.Run("main", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo after")
	c.Wait()
	lines := readLog(t, c.LogPath())
	if got, want := output(lines, "stdout"), strings.Repeat("x", length)+"\nafter\n"; got != want {
		t.Errorf("joined output has %d bytes, want %d", len(got), len(want))
	}
	for _, line := range lines {
		if len(line.text) > 16<<10 {
			t.Errorf("a line of %d bytes", len(line.text))
		}
	}
	if len(lines) < 7 || lines[0].full {
		t.Errorf("%d lines, first full: %v", len(lines), lines[0].full)
	}
}

// All output is in the file when the container is first seen as exited.
func TestLogIsCompleteWhenExitIsVisible(t *testing.T) {
	p := pod(t)
	for range 5 {
		c := p.Run("main", "seq 20000")
		c.Wait()
		if got := strings.Count(output(readLog(t, c.LogPath()), "stdout"), "\n"); got != 20000 {
			t.Fatalf("%d lines, want 20000", got)
		}
		if err := lab.Node().RemoveContainer(lab.Context(t), c.ID); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(c.LogPath()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReopenContainerLog(t *testing.T) {
	p := pod(t)
	c := p.Run("main", "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.005; done")
	eventually(t, "output", func() bool { return exists(c.LogPath()) && len(readLog(t, c.LogPath())) > 20 })
	rotated := c.LogPath() + ".1"
	if err := os.Rename(c.LogPath(), rotated); err != nil {
		t.Fatal(err)
	}
	if err := lab.Node().ReopenContainerLog(lab.Context(t), c.ID); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	text := output(readLog(t, rotated), "stdout") + output(readLog(t, c.LogPath()), "stdout")
	if got := strings.Count(text, "\n"); got != 400 || !strings.HasSuffix(text, "\n399\n") {
		t.Errorf("%d lines over both files, want 400", got)
	}
	if err := os.Remove(c.LogPath()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "reopen of an exited container", lab.Node().ReopenContainerLog(lab.Context(t), c.ID), codes.FailedPrecondition)
	if exists(c.LogPath()) {
		t.Error("a failed reopen made a file")
	}
}

func TestAFullPipeDoesNotLoseOutput(t *testing.T) {
	p := pod(t)
	began := time.Now()
	c := p.Run("main", "yes 0123456789abcdef | head -n 400000")
	c.Wait()
	if got := strings.Count(output(readLog(t, c.LogPath()), "stdout"), "0123456789abcdef\n"); got != 400000 {
		t.Errorf("%d lines, want 400000", got)
	}
	t.Logf("6.8 MB of log in %s", time.Since(began).Round(time.Millisecond))
}
