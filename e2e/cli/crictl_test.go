package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// crictl runs against the shared node. It comes from no package registry, so it is used only where someone put it.
type crictl struct {
	*testing.T
	program, directory string
}

func newCrictl(t *testing.T) *crictl {
	t.Helper()
	program, err := exec.LookPath("crictl")
	if err != nil {
		t.Skip("crictl is not on PATH")
	}
	lab.Image(t, "clockwork:1")
	return &crictl{t, program, t.TempDir()}
}

func (c *crictl) command(arguments ...string) *exec.Cmd {
	return exec.CommandContext(lab.Context(c), c.program, append([]string{"--runtime-endpoint", "unix://" + lab.Node().Socket}, arguments...)...)
}

// try runs crictl and returns its output.
func (c *crictl) try(arguments ...string) (stdout, stderr string, err error) {
	command := c.command(arguments...)
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	err = command.Run()
	return strings.TrimSpace(out.String()), problems.String(), err
}

// call runs crictl and wants it to succeed.
func (c *crictl) call(arguments ...string) string {
	c.Helper()
	stdout, stderr, err := c.try(arguments...)
	if err != nil {
		c.Fatalf("crictl %v: %v: %s", arguments, err, stderr)
	}
	return stdout
}

// ask runs crictl and reads the JSON that it prints.
func (c *crictl) ask(arguments ...string) document {
	c.Helper()
	var value any
	text := c.call(arguments...)
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		c.Fatalf("crictl %v: %v: %s", arguments, err, text)
	}
	return document{c.T, value}
}

// document is JSON that a script would read with jq.
type document struct {
	*testing.T
	value any
}

// at follows keys and indices, as jq does: at("info", "runtimeSpec").
func (d document) at(path ...any) document {
	d.Helper()
	value := d.value
	for _, step := range path {
		switch key := step.(type) {
		case string:
			object, _ := value.(map[string]any)
			value = object[key]
		case int:
			list, _ := value.([]any)
			if key >= len(list) {
				d.Fatalf("%v: %d elements", path, len(list))
			}
			value = list[key]
		}
	}
	if value == nil {
		text, _ := json.Marshal(d.value)
		d.Fatalf("no %v in %s", path, text)
	}
	return document{d.T, value}
}

func (d document) String() string { return fmt.Sprint(d.value) }

func (c *crictl) write(name, text string) string {
	c.Helper()
	path := filepath.Join(c.directory, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
	return path
}

// podFile writes a pod's configuration as people write it for crictl.
func (c *crictl) podFile(name string) string {
	return c.write(name+"-pod.json", fmt.Sprintf(`{"metadata": {"name": %q, "namespace": "default", "uid": %q},
		"hostname": %[1]q, "log_directory": %[3]q, "linux": {}}`, name, client.Unique(), c.directory))
}

// containerFile writes the configuration of a container that runs a shell command line.
func (c *crictl) containerFile(name, script string, more string) string {
	command, _ := json.Marshal([]string{"/bin/sh", "-c", script})
	return c.write(name+".json", fmt.Sprintf(`{"metadata": {"name": %q}, "image": {"image": %q}, "command": %s,
		"log_path": "0.log", "linux": {} %[4]s}`, name, lab.Reference("clockwork:1"), command, more))
}

// pod runs a pod with one container, removed when the test ends.
func (c *crictl) pod(name, script, more string) (pod, container string) {
	c.Helper()
	podFile := c.podFile(name)
	pod = c.call("runp", podFile)
	c.Cleanup(func() { c.call("rmp", "--force", pod) })
	container = c.call("create", pod, c.containerFile(name, script, more), podFile)
	c.call("start", container)
	return pod, container
}

const sleeper = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

func TestCrictlPodsAndContainers(t *testing.T) {
	c := newCrictl(t)
	lab.Clean(t, lab.Node())
	pod, container := c.pod("crictl", sleeper, `, "labels": {"kind": "shown"}, "envs": [{"key": "WORD", "value": "w"}]`)
	wants(t, "pods", c.call("pods", "--name", "crictl"), pod[:13], "crictl", "Ready", "default")
	wants(t, "pods --state", c.call("pods", "--state", "ready", "--quiet"), pod)
	wants(t, "ps", c.call("ps", "--label", "kind=shown"), container[:13], "Running", "crictl")
	if got := c.call("ps", "--quiet", "--pod", pod[:10]); got != container {
		t.Errorf("ps --pod PREFIX: %q", got)
	}
	inspected := c.ask("inspect", container)
	wants(t, "inspect", inspected.at("status", "state").String(), "CONTAINER_RUNNING")
	if _, err := os.Stat("/proc/" + inspected.at("info", "pid").String()); err != nil {
		t.Errorf(".info.pid: %v", err)
	}
	wants(t, ".info.runtimeSpec", inspected.at("info", "runtimeSpec", "process", "env").String(), "WORD=w")
	wants(t, ".info.config", inspected.at("info", "config", "envs", 0, "key").String(), "WORD")
	wants(t, ".info.sandboxID", inspected.at("info", "sandboxID").String(), pod)
	wants(t, "inspect by template", c.call("inspect", "--output", "go-template", "--template", "{{.status.metadata.name}}", container), "crictl")
	shown := c.ask("inspectp", pod)
	wants(t, "inspectp", shown.at("status", "state").String(), "SANDBOX_READY")
	wants(t, "inspectp .info.config", shown.at("info", "config", "metadata", "name").String(), "crictl")
	c.entersNetwork(shown)

	c.call("stop", "--timeout", "5", container)
	wants(t, "ps -a", c.call("ps", "-a", "--state", "exited"), container[:13], "Exited")
	c.call("rm", container)
	if got := c.call("ps", "-a", "--quiet", "--pod", pod); got != "" {
		t.Errorf("after rm: %s", got)
	}
	c.call("stopp", pod)
	wants(t, "pods", c.call("pods", "--id", pod[:10]), "NotReady")
}

// entersNetwork does what network tools do with a pod: it enters the namespace that inspectp names.
func (c *crictl) entersNetwork(shown document) {
	c.Helper()
	address := shown.at("status", "network", "ip").String()
	for _, entry := range shown.at("info", "runtimeSpec", "linux", "namespaces").value.([]any) {
		namespace := document{c.T, entry}
		if namespace.at("type").String() == "network" {
			output, err := exec.Command("nsenter", "--net="+namespace.at("path").String(), "ip", "-o", "address").CombinedOutput()
			if err != nil {
				c.Errorf("nsenter: %v: %s", err, output)
			}
			wants(c.T, "addresses", string(output), address+"/")
			return
		}
	}
	c.Errorf("inspectp names no network namespace: %v", shown)
}

func TestCrictlRun(t *testing.T) {
	c := newCrictl(t)
	lab.Clean(t, lab.Node())
	id := c.call("run", "--no-pull", c.containerFile("run", "echo ran; "+sleeper, ""), c.podFile("run"))
	pod := c.ask("inspect", id).at("info", "sandboxID").String()
	t.Cleanup(func() { c.call("rmp", "--force", pod) })
	wants(t, "ps", c.call("ps", "--id", id), "Running")
	if got := c.call("exec", "--sync", id, "echo", "hello"); got != "hello" {
		t.Errorf("exec --sync: %q", got)
	}
	if _, stderr, err := c.try("exec", "--sync", id, "sh", "-c", "exit 7"); err == nil || !strings.Contains(stderr, "7") {
		t.Errorf("exec --sync of exit 7: %v, %s", err, stderr)
	}
}

func TestCrictlLogs(t *testing.T) {
	c := newCrictl(t)
	pod, id := c.pod("logs", "for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done; echo problem >&2; exec sleep 0.3", "")
	followed := c.call("logs", "--follow", id) // ends with the container
	if got := strings.Count(followed, "line "); got != 5 {
		t.Errorf("--follow: %q", followed)
	}
	if got := c.call("logs", "--tail", "3", id); got != "line 4\nline 5" { // the third is on stderr
		t.Errorf("--tail 2: %q", got)
	}
	if _, stderr, err := c.try("logs", "--stream", "stderr", id); err != nil || !strings.Contains(stderr, "problem\n") {
		t.Errorf("--stream stderr: %v, %q", err, stderr)
	}
	if got := c.call("logs", "--since", "1h", id); strings.Count(got, "line ") != 5 {
		t.Errorf("--since 1h: %q", got)
	}
	if got := c.call("logs", "--since", time.Now().Add(time.Hour).Format(time.RFC3339), id); got != "" {
		t.Errorf("--since a time to come: %q", got)
	}
	first := strings.Fields(strings.Split(c.call("logs", "--timestamps", id), "\n")[0])
	if _, err := time.Parse(time.RFC3339Nano, first[0]); err != nil {
		t.Errorf("--timestamps: %v", first)
	}
	// The next attempt of the same container, as the kubelet restarts it: attempt and log path count up.
	text := strings.Replace(c.read(c.containerFile("logs", "echo second; sleep 100", "")), `{"name": "logs"}`, `{"name": "logs", "attempt": 1}`, 1)
	again := c.write("again.json", strings.Replace(text, "0.log", "1.log", 1))
	second := c.call("create", pod, again, filepath.Join(c.directory, "logs-pod.json"))
	c.call("start", second)
	time.Sleep(100 * time.Millisecond)
	if got := c.call("logs", second); got != "second" {
		t.Errorf("second attempt: %q", got)
	}
	if got := c.call("logs", "--previous", second); !strings.HasPrefix(got, "line 1\n") {
		t.Errorf("--previous: %q", got)
	}
	c.call("logs", "--reopen", second)
}

func (c *crictl) read(path string) string {
	c.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		c.Fatal(err)
	}
	return string(text)
}

func TestCrictlCheckpoint(t *testing.T) {
	c := newCrictl(t)
	_, id := c.pod("checkpoint", sleeper, "")
	archive := filepath.Join(c.directory, "checkpoint.tar")
	c.call("checkpoint", "--export", archive, id)
	if info, err := os.Stat(archive); err != nil || info.Size() < 10_000 {
		t.Errorf("checkpoint: %v, %v", info, err)
	}
	wants(t, "ps", c.call("ps", "--id", id), "Running")
}
