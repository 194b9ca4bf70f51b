package applications

import (
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// Kernel objects that a pod may hold, each looked at all the time by the process that holds it.
func TestKernelObjectsMove(t *testing.T) {
	for _, kinds := range []string{"files events", "threads", "processes", "stopped", "unix", "seccomp memfd shm"} {
		t.Run(strings.ReplaceAll(kinds, " ", "-"), func(t *testing.T) {
			p := run(t, "menagerie:1", append([]string{"menagerie"}, strings.Fields(kinds)...))
			p.well(kinds)
			p.move()
			p.well(kinds)
			if kinds == "processes" {
				return // each costs CRIU some 10 ms
			}
			p.move()
			p.well(kinds)
		})
	}
}

// A checkpoint on disk holds the same.
func TestKernelObjectsComeBackFromDisk(t *testing.T) {
	const kinds = "files events unix stopped seccomp memfd shm"
	p := run(t, "menagerie:1", append([]string{"menagerie"}, strings.Fields(kinds)...))
	p.well(kinds)
	p.reborn()
	p.well(kinds)
}

// well waits until each kind has found itself well twice more, and wants no fault.
func (p *pod) well(kinds string) {
	p.t.Helper()
	count := func(kind string) (n int) {
		for _, line := range p.lines("main") {
			if strings.HasPrefix(line, "ok "+kind+" ") {
				n++
			}
		}
		return n
	}
	before := map[string]int{}
	for _, kind := range strings.Fields(kinds) {
		before[kind] = count(kind)
	}
	for kind, n := range before {
		eventually(p.t, kind+" is well twice more", func() bool { return count(kind) >= n+2 || p.fault() != "" })
	}
	if fault := p.fault(); fault != "" {
		p.t.Fatal(fault)
	}
}

func (p *pod) fault() string {
	for _, line := range p.lines("main") {
		if strings.HasPrefix(line, "FAILED") {
			return line
		}
	}
	return ""
}

// A program that installs no handlers and sleeps in one system call goes on sleeping.
func TestPlainSleepMoves(t *testing.T) {
	p := run(t, "menagerie:1", []string{"sleep", "1000"})
	p.move()
	p.reborn()
	p.move()
	if name := p.sh("main", "cat /proc/1/comm"); name != "sleep" {
		t.Errorf("process 1 is %q", name)
	}
}

// A shell with a terminal and a pipeline of several processes in a job of its own.
func TestPipelineWithTerminalMoves(t *testing.T) {
	const script = `terminal=$(tty)
n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done | while read -r n; do echo a$n; done | while read -r line; do echo "$line $terminal"; done`
	p := run(t, "menagerie:1", []string{"sh", "-c", script}, func(config *runtimeapi.ContainerConfig) { config.Tty = true })
	eventually(t, "the pipeline speaks", func() bool { return len(p.lines("main")) > 5 })
	p.move()
	before := len(p.lines("main"))
	eventually(t, "the pipeline goes on", func() bool { return len(p.lines("main")) > before+5 })
	for i, line := range p.lines("main") {
		if want := fmt.Sprintf("a%d /dev/pts/0", i+1); line != want {
			t.Fatalf("line %d is %q, want %q", i+1, line, want)
		}
	}
}

// What would be lost is refused by name, before anything stands still.
func TestWhatWouldBeLostIsRefused(t *testing.T) {
	for kind, words := range map[string]string{
		"sysv":    "System V",
		"mqueue":  "message queue",
		"inotify": "inotify watch",
		"users":   "CAP_SYS_RESOURCE",
	} {
		t.Run(kind, func(t *testing.T) {
			p := run(t, "menagerie:1", []string{"menagerie", kind})
			p.well(kind)
			_, err := nodes.Move(lab.Context(t), p.at, p.id())
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("move: %v, want a refusal that says %q", err, words)
			}
			output, err := p.at.CLI(lab.Context(t), "checkpoint", "--check", p.id())
			if err == nil || !strings.Contains(output+err.Error(), words) {
				t.Errorf("checkpoint --check: %q, %v, want %q", output, err, words)
			}
			p.well(kind)
		})
	}
}
