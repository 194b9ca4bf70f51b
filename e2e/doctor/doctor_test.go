// Package doctor tests `meridian doctor` on a healthy node and on nodes that were broken in one way each.
package doctor

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

func TestMain(m *testing.M) { lab.Main(m) }

// check is a line of the doctor's.
type check struct{ Name, Verdict, Object, Found, Cure string }

// examine asks the doctor about a node and returns the checks and the exit code.
func examine(t *testing.T, n *node.Node) ([]check, int) {
	t.Helper()
	output, err := exec.CommandContext(lab.Context(t), node.Binary("meridian"), "--socket", n.Socket, "doctor", "--output", "json").Output()
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Checks []check }
	if err := json.Unmarshal(output, &answer); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	for _, c := range answer.Checks {
		if c.Name == "" || c.Object == "" || c.Found == "" || (c.Verdict == "OK") != (c.Cure == "") {
			t.Errorf("%+v: a check needs an object and what was found, and one that is not well a cure", c)
		}
	}
	return answer.Checks, code
}

// names wants a check with a verdict, whose object and finding hold a word each.
func names(t *testing.T, n *node.Node, name, verdict, object, found string) {
	t.Helper()
	checks, code := examine(t, n)
	if failed := slices.ContainsFunc(checks, func(c check) bool { return c.Verdict == "FAIL" }); (code == 1) != failed || code > 1 {
		t.Errorf("exit code %d, though a check failed: %v", code, failed)
	}
	for _, c := range checks {
		if c.Name == name && c.Verdict == verdict && strings.Contains(c.Object, object) && strings.Contains(c.Found, found) {
			return
		}
	}
	t.Errorf("no %s %s about %q that says %q:\n%+v", verdict, name, object, found, checks)
}

// circumstances are what a machine that runs these tests may lack, and whose want is no mistake of the node's.
var circumstances = []string{"apparmor", "cap-sys-resource", "clock-sync", "descriptors", "disk-space", "inotify", "memory", "soft-dirty", "userfaultfd", "authorities"}

func TestHealthyNode(t *testing.T) {
	p := lab.RunPod(t)
	p.Run("main", "sleep 60")
	checks, code := examine(t, lab.Node())
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, c := range checks {
		if c.Verdict == "FAIL" || c.Verdict == "WARN" && !slices.Contains(circumstances, c.Name) {
			t.Errorf("on a healthy node: %+v", c)
		}
	}
	for _, name := range []string{"daemon", "kernel", "time-namespaces", "criu", "run-tmpfs", "disk-space", "clock-sync",
		"descriptors", "tasks", "keyrings", "inotify", "memory", "configuration", "shim", "bridge", "forwarding", "remains"} {
		if !slices.ContainsFunc(checks, func(c check) bool { return c.Name == name }) {
			t.Errorf("nothing is said about %s", name)
		}
	}
	text, err := lab.Node().CLI(lab.Context(t), "doctor")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if err != nil || len(lines) != len(checks)+2 || !strings.HasPrefix(lines[len(lines)-1], "0 failed, ") {
		t.Errorf("as text, with %d checks: %v\n%s", len(checks), err, text)
	}
}

func TestNoDaemon(t *testing.T) {
	names(t, &node.Node{Socket: "/nonexistent/socket"}, "daemon", "FAIL", "/nonexistent/socket", "no daemon answers")
}

// What breaks while the daemon runs is named; mended, it is well again.
func TestWhatBreaksIsNamed(t *testing.T) {
	n := lab.Node()
	lab.RunPod(t) // the bridge has been used
	stray := client.Unique() + strings.Repeat("0", 52)
	config, err := os.ReadFile(n.Config())
	must(t, err)
	edit := func(text string) func() error {
		return func() error { return os.WriteFile(n.Config(), []byte(text), 0o600) }
	}
	mend := edit(string(config))
	make := func(path string) (func() error, func() error) {
		return func() error { return os.MkdirAll(path, 0o700) }, func() error { return os.Remove(path) }
	}
	layer, noLayer := make(filepath.Join(n.Root, "containers", stray))
	pins, noPins := make(filepath.Join(n.Run, "ns", stray))
	cgroup, noCgroup := make(filepath.Join("/sys/fs/cgroup/unified", n.Cgroup, stray))
	for _, row := range []struct {
		break_, mend                 func() error
		name, verdict, object, found string
	}{
		{edit("[network]\nmtu = true\n"), mend, "configuration", "FAIL", n.Config(), "mtu"},
		{edit(strings.Replace(string(config), "[cgroup]", "[cgroup]\n# moved\n", 1) + "\n[metrics]\nlisten = \"127.0.0.1:1\"\n"), mend, "configuration", "WARN", n.Config(), "metrics"},
		{run("ip", "link", "set", n.Bridge, "down"), run("ip", "link", "set", n.Bridge, "up"), "bridge", "FAIL", n.Bridge, "down"},
		{run("sysctl", "-qw", "net.ipv4.ip_forward=0"), run("sysctl", "-qw", "net.ipv4.ip_forward=1"), "forwarding", "FAIL", "net.ipv4.ip_forward", "off"},
		{layer, noLayer, "remains", "WARN", stray, "writable layer"},
		{pins, noPins, "remains", "WARN", stray, "namespace pins"},
		{cgroup, noCgroup, "remains", "WARN", stray, "cgroup"},
	} {
		t.Run(row.name+" "+row.found, func(t *testing.T) {
			must(t, row.break_())
			names(t, n, row.name, row.verdict, row.object, row.found)
			must(t, row.mend())
			for _, c := range first(examine(t, n)) {
				if c.Name == row.name && c.Verdict != "OK" {
					t.Errorf("when it was mended: %+v", c)
				}
			}
		})
	}
}

func first(checks []check, _ int) []check { return checks }

// A node that was set up badly is told all of it at once.
func TestNodeThatWasSetUpBadly(t *testing.T) {
	keys := t.TempDir()
	certificates(t, keys, time.Now().Add(-50*time.Hour), time.Now().Add(73*time.Hour))
	shim := filepath.Join(keys, "shim")
	must(t, exec.Command("cp", node.Binary("meridian-shim"), shim).Run())
	n, err := lab.NewNode("sick", node.Options{
		Subnet:      89,
		CRIU:        []string{"/nonexistent/criu"},
		Wrap:        []string{"prlimit", "--nofile=1024:1024"},
		Environment: []string{"MERIDIAN_SHIM=" + shim},
		Extra: "[peer]\nlisten = \"127.0.0.1:7070\"\nca = \"" + keys + "/ca.crt\"\ncertificate = \"" + keys + "/node.crt\"\nkey = \"" + keys + "/node.key\"\n" +
			"[[image.mirror]]\nhost = \"registry.example\"\nendpoint = \"http://127.0.0.1:1\"\n",
	})
	must(t, err)
	must(t, os.RemoveAll(n.Run))
	must(t, os.MkdirAll(n.Run, 0o700))
	must(t, syscall.Mount("small", n.Run, "tmpfs", 0, "size=16m"))
	must(t, n.Start(lab.Context(t)))
	t.Cleanup(func() {
		must(t, errors.Join(n.Stop(), n.Discard()))
		_ = syscall.Unmount(n.Run, syscall.MNT_DETACH)
	})
	must(t, os.Remove(shim))
	must(t, os.WriteFile(filepath.Join(n.Run, "full"), make([]byte, 16<<20-256<<10), 0o600))
	for _, row := range [][4]string{
		{"criu", "WARN", "node", "/nonexistent/criu"},
		{"descriptors", "WARN", "meridiand", "at most 1024"},
		{"certificate", "FAIL", "node.crt", "ended 3 days ago"},
		{"certificate", "WARN", "ca.crt", "ends in 3 days"},
		{"mirror", "WARN", "http://127.0.0.1:1", "refused"},
		{"shim", "FAIL", shim, "No such file"},
		{"disk-space", "FAIL", n.Run, "free"},
	} {
		names(t, n, row[0], row[1], row[2], row[3])
	}
}

func run(command ...string) func() error {
	return func() error { return exec.Command(command[0], command[1:]...).Run() }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
