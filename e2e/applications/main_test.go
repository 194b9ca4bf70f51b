// Package applications moves what people run between two nodes, each watched by a client that knows what must not be lost.
// Its images are those of hack/workloads.
package applications

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
	"meridian.dev/e2e/pair"
)

var nodes *pair.Pair

func TestMain(m *testing.M) {
	store := filepath.Join(node.Cache(), "workload-registry")
	if _, err := os.Stat(store); err != nil && !lab.Listing() {
		fmt.Fprintln(os.Stderr, "applications: no images: run hack/install workloads and hack/workloads")
		os.Exit(1)
	}
	os.Setenv("MERIDIAN_REGISTRY_STORE", store)
	lab.Run(func() (code int, err error) {
		if lab.Listing() {
			return m.Run(), nil
		}
		nodes, err = pair.Start(context.Background(), pair.Options{})
		if err == nil {
			code = m.Run()
		}
		return code, errors.Join(err, nodes.Stop())
	})
}

// pod is a pod of a test, wherever it runs at the moment.
type pod struct {
	t      *testing.T
	at     *pair.Node
	config *runtimeapi.PodSandboxConfig
	image  string
}

// sandbox runs a pod without containers on node a; it is removed, wherever it is, when the test ends.
func sandbox(t *testing.T, image string, options ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	p := &pod{t: t, at: nodes.A, config: client.Pod("app-"+client.Unique()[:5], t.TempDir(), options...)}
	var err error
	if p.image, err = p.at.Pull(lab.Context(t), nodes.Reference(image)); err != nil {
		t.Fatalf("pull: %v", err)
	}
	if _, err = p.at.RunPodSandbox(lab.Context(t), p.config, ""); err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	t.Cleanup(p.remove)
	return p
}

// run runs a pod of one container, "main".
func run(t *testing.T, image string, command []string, options ...func(*runtimeapi.ContainerConfig)) *pod {
	t.Helper()
	p := sandbox(t, image)
	p.start("main", command, options...)
	return p
}

// start starts a container in the pod.
func (p *pod) start(name string, command []string, options ...func(*runtimeapi.ContainerConfig)) {
	p.t.Helper()
	config := client.Container(p.config, name, p.image, command, options...)
	id, err := p.at.CreateContainer(lab.Context(p.t), p.id(), config, p.config)
	if err == nil {
		err = p.at.StartContainer(lab.Context(p.t), id)
	}
	if err != nil {
		p.t.Fatalf("container %s: %v", name, err)
	}
}

func (p *pod) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range []*pair.Node{nodes.A, nodes.B} {
		if id := p.on(n); id != "" {
			if err := errors.Join(n.StopPodSandbox(ctx, id), n.RemovePodSandbox(ctx, id)); err != nil {
				p.t.Errorf("remove pod from %s: %v", n.Namespace, err)
			}
		}
	}
}

// on is the pod's id on a node, or empty.
func (p *pod) on(n *pair.Node) string {
	all, err := n.ListPodSandbox(context.Background(), nil)
	if err != nil {
		p.t.Errorf("ListPodSandbox: %v", err)
	}
	for _, found := range all {
		if found.Metadata.Name == p.config.Metadata.Name { // a restored pod has another uid
			return found.Id
		}
	}
	return ""
}

func (p *pod) id() string { return p.on(p.at) }

// container is the id of a container of the pod.
func (p *pod) container(name string) string {
	p.t.Helper()
	list, err := p.at.ListContainers(lab.Context(p.t), &runtimeapi.ContainerFilter{PodSandboxId: p.id()})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, c := range list {
		if c.Metadata.Name == name {
			return c.Id
		}
	}
	p.t.Fatalf("no container %s", name)
	return ""
}

// move moves the pod to the other node.
func (p *pod) move() *pair.Result {
	p.t.Helper()
	result, err := nodes.Move(lab.Context(p.t), p.at, p.id())
	if err != nil {
		p.t.Fatalf("move from %s: %v\n%s", p.at.Namespace, err, nodes.Other(p.at).Tail(8))
	}
	p.at = nodes.Other(p.at)
	p.t.Logf("moved %d MiB, downtime %s", result.Bytes>>20, time.Duration(result.Downtime).Round(time.Millisecond))
	return result
}

// reborn checkpoints the pod to disk, removes it, and restores it from there on the same node.
func (p *pod) reborn() {
	p.t.Helper()
	directory := filepath.Join(p.t.TempDir(), "checkpoint")
	if _, err := p.at.CLI(lab.Context(p.t), "checkpoint", p.id(), directory); err != nil {
		p.t.Fatalf("checkpoint: %v", err)
	}
	p.remove()
	if _, err := p.at.CLI(lab.Context(p.t), "restore", directory); err != nil {
		p.t.Fatalf("restore: %v", err)
	}
}

// sh runs a shell command line in a container.
func (p *pod) sh(name, script string) string {
	p.t.Helper()
	stdout, stderr, err := p.at.ExecSync(lab.Context(p.t), p.container(name), []string{"/bin/sh", "-c", script}, 30*time.Second)
	if err != nil {
		p.t.Fatalf("exec %q: %v %s", script, err, stderr)
	}
	return strings.TrimSpace(string(stdout))
}

// lines are the container's log so far, without timestamp, stream and tag.
func (p *pod) lines(name string) []string {
	status, err := p.at.ContainerStatus(lab.Context(p.t), p.container(name), false)
	if err != nil {
		p.t.Fatal(err)
	}
	text, err := os.ReadFile(status.Status.LogPath)
	if err != nil {
		p.t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		if parts := strings.SplitN(line, " ", 4); len(parts) == 4 {
			lines = append(lines, strings.TrimRight(parts[3], "\r"))
		}
	}
	return lines
}

// address is where the pod listens now; empty while it is between two nodes.
func (p *pod) address(port int) (*pair.Node, string) {
	for _, n := range []*pair.Node{nodes.A, nodes.B} {
		if id := p.on(n); id != "" {
			status, err := n.PodSandboxStatus(context.Background(), id, false)
			if err == nil && status.Status.Network.GetIp() != "" {
				return n, net.JoinHostPort(status.Status.Network.Ip, fmt.Sprint(port))
			}
		}
	}
	return nil, ""
}

// dial connects to the pod from inside the network of the node where it is, trying for a while.
func (p *pod) dial(port int) (net.Conn, error) {
	var connection net.Conn
	err := errors.New("the pod has no address")
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		n, address := p.address(port)
		if n == nil {
			continue
		}
		if connection, err = dialIn(n.Namespace, address); err == nil {
			return connection, nil
		}
	}
	return nil, fmt.Errorf("connect to the pod: %w", err)
}

// dialIn connects from inside a network namespace: a socket stays where it was made.
func dialIn(namespace, address string) (connection net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var file *os.File
		if file, err = os.Open("/run/netns/" + namespace); err != nil {
			return
		}
		defer file.Close()
		if err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err == nil {
			connection, err = net.DialTimeout("tcp", address, time.Second)
		}
	}()
	<-done
	return connection, err
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
