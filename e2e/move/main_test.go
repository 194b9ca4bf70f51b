// Package move tests pods that move between two nodes whose clocks are 5,000,000 s apart.
package move

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/pair"
)

// nodes is the pair that all tests share, unless they need one of their own.
var nodes *pair.Pair

func TestMain(m *testing.M) {
	lab.Run(func() (code int, err error) {
		if lab.Listing() {
			return m.Run(), nil
		}
		nodes, err = pair.Start(context.Background(), pair.Options{})
		if err == nil {
			code = m.Run()
		}
		if code != 0 && nodes != nil {
			keepLogs()
		}
		return code, errors.Join(err, nodes.Stop())
	})
}

func keepLogs() {
	for _, n := range []*pair.Node{nodes.A, nodes.B} {
		if n == nil {
			continue
		}
		keep := filepath.Join(os.TempDir(), "meridian-"+n.Name+".log")
		if text, err := os.ReadFile(n.Log); err == nil && os.WriteFile(keep, text, 0o600) == nil {
			fmt.Fprintln(os.Stderr, "move: the node's log is in", keep)
		}
	}
}

// pod is a pod of a test, wherever it runs at the moment.
type pod struct {
	t      *testing.T
	at     *pair.Node
	config *runtimeapi.PodSandboxConfig
	logs   string
}

// container is one container of a pod: its name, and its arguments to clockwork.
type container struct {
	name      string
	arguments []string
}

// run starts a pod of clockwork containers on a node; it is removed, wherever it is, when the test ends.
func run(t *testing.T, on *pair.Node, containers ...container) *pod {
	t.Helper()
	return runWith(t, on, nil, containers...)
}

// runWith does so in the namespaces that options say.
func runWith(t *testing.T, on *pair.Node, options *runtimeapi.NamespaceOption, containers ...container) *pod {
	t.Helper()
	return runChanged(t, on, options, func(*runtimeapi.ContainerConfig) {}, containers...)
}

// runChanged does so with containers that change says more about.
func runChanged(t *testing.T, on *pair.Node, options *runtimeapi.NamespaceOption,
	change func(*runtimeapi.ContainerConfig), containers ...container) *pod {
	t.Helper()
	ctx := lab.Context(t)
	logs := t.TempDir()
	p := &pod{t: t, at: on, logs: logs, config: client.Pod("mover-"+client.Unique()[:5], logs)}
	if options != nil {
		p.config.Linux.SecurityContext.NamespaceOptions = options
	}
	image, err := on.Pull(ctx, nodes.Reference("clockwork:1"))
	if err != nil {
		t.Fatalf("pull: %v", err)
	}
	id, err := on.RunPodSandbox(ctx, p.config, "")
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	t.Cleanup(p.remove)
	for _, c := range containers {
		config := client.Container(p.config, c.name, image, nil, func(config *runtimeapi.ContainerConfig) {
			config.Args = c.arguments
			if options != nil {
				config.Linux.SecurityContext.NamespaceOptions = options
			}
			change(config)
		})
		created, err := on.CreateContainer(ctx, id, config, p.config)
		if err != nil {
			t.Fatalf("CreateContainer %s: %v", c.name, err)
		}
		if err := on.StartContainer(ctx, created); err != nil {
			t.Fatalf("StartContainer %s: %v", c.name, err)
		}
	}
	return p
}

// remove removes the pod from both nodes.
func (p *pod) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range []*pair.Node{nodes.A, nodes.B} {
		for _, found := range p.on(n) {
			if err := errors.Join(n.StopPodSandbox(ctx, found.Id), n.RemovePodSandbox(ctx, found.Id)); err != nil {
				p.t.Errorf("remove pod from %s: %v", n.Namespace, err)
			}
		}
	}
}

// on lists what node n has under the pod's uid.
func (p *pod) on(n *pair.Node) []*runtimeapi.PodSandbox {
	p.t.Helper()
	all, err := n.ListPodSandbox(context.Background(), nil)
	if err != nil {
		p.t.Fatalf("ListPodSandbox: %v", err)
	}
	var found []*runtimeapi.PodSandbox
	for _, sandbox := range all {
		if sandbox.Metadata.Uid == p.config.Metadata.Uid {
			found = append(found, sandbox)
		}
	}
	return found
}

// id is the pod's id where it is now.
func (p *pod) id() string {
	p.t.Helper()
	found := p.on(p.at)
	if len(found) != 1 {
		p.t.Fatalf("%s has the pod %d times", p.at.Namespace, len(found))
	}
	return found[0].Id
}

// move moves the pod to the other node.
func (p *pod) move(arguments ...string) *pair.Result {
	p.t.Helper()
	result, err := nodes.Move(lab.Context(p.t), p.at, p.id(), arguments...)
	if err != nil {
		p.t.Fatalf("move from %s: %v\n%s", p.at.Namespace, err, nodes.Other(p.at).Tail(15))
	}
	p.at = nodes.Other(p.at)
	return result
}

// status is the status of the container with that name.
func (p *pod) status(name string) *runtimeapi.ContainerStatus {
	p.t.Helper()
	ctx := lab.Context(p.t)
	list, err := p.at.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: p.id()})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, c := range list {
		if c.Metadata.Name == name {
			response, err := p.at.ContainerStatus(ctx, c.Id, true)
			if err != nil {
				p.t.Fatal(err)
			}
			return response.Status
		}
	}
	p.t.Fatalf("no container %s in %v", name, list)
	return nil
}

// sh runs a shell command line in a container.
func (p *pod) sh(name, script string) string {
	p.t.Helper()
	stdout, stderr, err := p.at.ExecSync(lab.Context(p.t), p.status(name).Id, []string{"/bin/sh", "-c", script}, 20*time.Second)
	if err != nil {
		p.t.Fatalf("exec %q: %v %s", script, err, stderr)
	}
	return strings.TrimSpace(string(stdout))
}

// lines are the container's log so far, without timestamp, stream and tag.
func (p *pod) lines(name string) []string {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.config.LogDirectory, name+"_0.log"))
	if err != nil {
		p.t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		if parts := strings.SplitN(line, " ", 4); len(parts) == 4 {
			lines = append(lines, parts[3])
		}
	}
	return lines
}

// await waits until the container's log has a line with prefix beyond the first from lines.
func (p *pod) await(name, prefix string, from int) string {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if lines := p.lines(name); len(lines) > from {
			for _, line := range lines[from:] {
				if strings.HasPrefix(line, prefix) {
					return line
				}
			}
		}
	}
	p.t.Fatalf("container %s: no line %q within 20 s; last lines: %v", name, prefix, tail(p.lines(name), 5))
	return ""
}

// faults are the lines by which clockwork reports what must not happen.
func (p *pod) faults(name string) []string {
	var found []string
	for _, line := range p.lines(name) {
		for _, word := range []string{"BACK", "LOST", "DISAGREE", "FAILED"} {
			if strings.HasPrefix(line, word) {
				found = append(found, line)
			}
		}
	}
	return found
}

// noFaults fails the test if any container reported a fault.
func (p *pod) noFaults(names ...string) {
	p.t.Helper()
	for _, name := range names {
		if faults := p.faults(name); len(faults) > 0 {
			p.t.Errorf("container %s reports %d faults, first %q", name, len(faults), faults[0])
		}
	}
}

// reading is one line of `clockwork count` or answer of `clockwork serve`.
type reading struct {
	Count                         int64
	Monotonic, Boottime, Realtime int64
}

// readings are all lines of a counting container.
func (p *pod) readings(name string) []reading {
	p.t.Helper()
	var all []reading
	for _, line := range p.lines(name) {
		var words [4]int64
		fields := strings.Fields(line)
		if len(fields) != len(words) {
			continue
		}
		for i, field := range fields {
			words[i], _ = strconv.ParseInt(field, 10, 64)
		}
		all = append(all, reading{words[0], words[1], words[2], words[3]})
	}
	return all
}

// get asks the pod's HTTP server for the counter, from inside the network of the pod's node.
func (p *pod) get() (reading, error) {
	var answer reading
	status, err := p.at.PodSandboxStatus(context.Background(), p.id(), false)
	if err != nil {
		return answer, err
	}
	url := "http://" + net.JoinHostPort(status.Status.Network.Ip, "8080")
	// Not /proc/self/exe, which would be nsenter itself.
	self, err := os.Executable()
	if err != nil {
		return answer, err
	}
	output, err := exec.Command("nsenter", "--net=/run/netns/"+p.at.Namespace, self, fetchFlag, url).CombinedOutput()
	if err != nil {
		return answer, fmt.Errorf("GET %s: %w: %s", url, err, output)
	}
	return answer, json.Unmarshal(output, &answer)
}

// fetchFlag makes this test binary an HTTP client, which nsenter starts inside a node's network.
const fetchFlag = "-fetch-url"

func init() {
	if len(os.Args) == 3 && os.Args[1] == fetchFlag {
		os.Exit(fetch(os.Args[2]))
	}
}

func fetch(url string) int {
	response, err := (&http.Client{Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return 1
	}
	return 0
}

func tail[T any](list []T, n int) []T { return list[max(0, len(list)-n):] }
