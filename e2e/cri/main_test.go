// Package cri tests a node through CRI alone, beside what anyone can read in /proc, /sys and over netlink: the points
// of a kubelet's contract, each namespace kind, and what a daemon restart may not break.
package cri

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
	"meridian.dev/e2e/pair"
)

// metricsAddress is free in every world of this package.
const metricsAddress = "127.0.0.1:9177"

// pinned is an image that the node's configuration pins.
const pinned = "example.test/imported/docker:1"

func TestMain(m *testing.M) {
	lab.MainWith(m, func() node.Options {
		return node.Options{Extra: "[metrics]\nlisten = \"" + metricsAddress + "\"\n[image]\npinned = [\"" + pinned + "\"]\n"}
	})
}

// pod runs a sandbox under a census.
func pod(t *testing.T, options ...func(*runtimeapi.PodSandboxConfig)) *lab.Pod {
	t.Helper()
	lab.Image(t, "clockwork:1") // before the census: an unpacked image stays
	lab.Clean(t, lab.Node())
	return lab.RunPod(t, options...)
}

// sleeper is a shell command line that stays and ends at once on SIGTERM.
const sleeper = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

var wantCode, eventually = lab.WantCode, lab.Eventually

// information is the verbose info of a container, as crictl inspect shows it.
func information(t *testing.T, c *lab.Container) map[string]any {
	t.Helper()
	response, err := lab.Node().ContainerStatus(lab.Context(t), c.ID, true)
	if err != nil {
		t.Fatalf("ContainerStatus verbose: %v", err)
	}
	var info map[string]any
	if err := json.Unmarshal([]byte(response.Info["info"]), &info); err != nil {
		t.Fatalf("info %q: %v", response.Info["info"], err)
	}
	return info
}

// pidOf is the process id of the container's first process in the node's pid namespace.
func pidOf(t *testing.T, c *lab.Container) int {
	t.Helper()
	pid, ok := information(t, c)["pid"].(float64)
	if !ok || pid < 2 {
		t.Fatalf("info of %s has no pid: %v", c.Config.Metadata.Name, information(t, c))
	}
	return int(pid)
}

// namespace is the "kind:[inode]" of one of a process's namespaces.
func namespace(t *testing.T, pid int, kind string) string {
	t.Helper()
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatalf("namespace of %d: %v", pid, err)
	}
	return target
}

// procStatus is one field of /proc/PID/status.
func procStatus(t *testing.T, pid int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("status of %d: %v", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, field)
	return ""
}

// processesIn lists the pids whose namespace of a kind is the given one.
func processesIn(kind, namespace string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil && target == namespace {
			pids = append(pids, pid)
		}
	}
	return pids
}

// logLine is one line of a CRI log.
type logLine struct {
	time   time.Time
	stream string
	full   bool
	text   string
}

// readLog parses a whole CRI log strictly: RFC3339Nano stdout|stderr P|F text.
func readLog(t *testing.T, path string) []logLine {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("log: %v", err)
	}
	var lines []logLine
	for raw := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSuffix(raw, "\n"), " ", 4)
		if len(parts) != 4 || !slices.Contains([]string{"stdout", "stderr"}, parts[1]) || !slices.Contains([]string{"P", "F"}, parts[2]) {
			t.Fatalf("log line %q is not CRI's", raw)
		}
		stamp, err := time.Parse(time.RFC3339Nano, parts[0])
		if err != nil {
			t.Fatalf("log line %q: %v", raw, err)
		}
		lines = append(lines, logLine{stamp, parts[1], parts[2] == "F", parts[3]})
	}
	return lines
}

// output joins a log's text of one stream, partial lines put together.
func output(lines []logLine, stream string) string {
	var text strings.Builder
	for _, line := range lines {
		if line.stream == stream {
			text.WriteString(line.text)
			if line.full {
				text.WriteByte('\n')
			}
		}
	}
	return text.String()
}

func itoa(number int) string { return strconv.Itoa(number) }

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	parent, err := strconv.Atoi(procStatus(t, pid, "PPid"))
	if err != nil || parent < 2 {
		t.Fatalf("parent of %d: %d, %v", pid, parent, err)
	}
	return parent
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func parseGap(line string) (pair.Gap, error) { return pair.ParseGap(line) }
