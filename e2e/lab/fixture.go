package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/census"
	"meridian.dev/e2e/client"
	"meridian.dev/e2e/node"
)

// archives names a directory of OCI archives, IMAGE:TAG.tar, that serve where no registry runs: in hack/kernels'
// virtual machines.
const archives = "MERIDIAN_LAB_ARCHIVES"

var (
	registry string
	shared   *node.Node
)

// inside starts the registry and one node, runs the tests, and at the end wants the world as it was before the node.
func inside(m *testing.M, options node.Options) (code int, err error) {
	if Listing() {
		return m.Run(), nil
	}
	if os.Getenv(archives) != "" {
		registry = "localhost"
	} else if registry, err = ServeImages("start", "lab"); err != nil {
		return 1, err
	} else {
		defer func() {
			_, stop := ServeImages("stop", "lab")
			err = errors.Join(err, stop)
		}()
	}
	if options.Level == "" {
		options.Level = os.Getenv("MERIDIAN_LAB_LOG")
	}
	if shared, err = NewNode("t", options); err != nil {
		return 1, err
	}
	if err = shared.Start(context.Background()); err != nil {
		return 1, err
	}
	if err = warmUp(context.Background()); err != nil {
		return 1, err
	}
	code = m.Run()
	if code != 0 {
		keep := filepath.Join(os.TempDir(), "meridian-"+Name()+".log")
		if text, readError := os.ReadFile(shared.Log); readError == nil && os.WriteFile(keep, text, 0o600) == nil {
			fmt.Fprintln(os.Stderr, "lab: the node's log is in", keep)
		}
	}
	return code, errors.Join(shared.Stop(), shared.Discard())
}

// warmUp runs a pod and removes it, so that what a node makes once and keeps (cgroups, the bridge's own addresses) is
// in every census from the first.
func warmUp(ctx context.Context) error {
	config := client.Pod("warm-up", filepath.Join(shared.Dir, "logs"))
	id, err := shared.RunPodSandbox(ctx, config, "")
	if err != nil {
		return fmt.Errorf("the first pod: %w\n%s", err, shared.Tail(20))
	}
	return errors.Join(shared.StopPodSandbox(ctx, id), shared.RemovePodSandbox(ctx, id))
}

// NewNode prepares a node of this world. Its directory lies on the disk, where overlay upper layers work.
func NewNode(suffix string, options node.Options) (*node.Node, error) {
	directory, err := os.MkdirTemp("", "meridian-"+Name()+"-")
	if err != nil {
		return nil, err
	}
	options.Name, options.Dir = Name()+suffix, directory
	return node.New(options)
}

// Node is the daemon that all tests of a package share.
func Node() *node.Node { return shared }

// Reference is how an image of hack/images is called in this world's registry.
func Reference(image string) string { return registry + "/meridian/" + image }

// Registry is the address of this world's registry.
func Registry() string { return registry }

// Context lasts as long as a test may.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Image pulls one of hack/images, once, and returns its id.
func Image(t testing.TB, image string) string {
	t.Helper()
	if directory := os.Getenv(archives); directory != "" {
		return load(t, filepath.Join(directory, image+".tar"), Reference(image))
	}
	id, err := shared.Pull(Context(t), Reference(image))
	if err != nil {
		t.Fatalf("pull %s: %v", image, err)
	}
	return id
}

func load(t testing.TB, archive, name string) string {
	t.Helper()
	ctx := Context(t)
	for {
		response, err := shared.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: name}, false)
		if err != nil {
			t.Fatalf("status of %s: %v", name, err)
		}
		if response.Image != nil {
			return response.Image.Id
		}
		if _, err := shared.CLI(ctx, "image", "import", "--name", name, archive); err != nil {
			t.Fatal(err)
		}
	}
}

// Clean takes a census now, and another after the test and its clean-ups: they must be equal. Call it first.
func Clean(t testing.TB, n *node.Node) {
	t.Helper()
	pid, before := n.Pid(), settled(n.Scope())
	t.Cleanup(func() {
		scope := n.Scope()
		if n.Pid() != pid { // restarted: its descriptors and process id are new
			scope.Daemon, pid = 0, 0
			before = without(before, "descriptor ")
		}
		diff := census.Settle(before, scope, 5*time.Second)
		if pid == 0 {
			diff = exceptDaemon(diff)
		}
		if len(diff) > 0 {
			t.Errorf("left behind (+) or lost (-):\n  %s", strings.Join(diff, "\n  "))
		}
	})
}

// settled is a census that did not change for a while: the network of a pod before this test may still be going away.
func settled(scope census.Scope) census.Census {
	last := census.Take(scope)
	for range 30 {
		time.Sleep(60 * time.Millisecond)
		now := census.Take(scope)
		if maps.Equal(now, last) {
			return now
		}
		last = now
	}
	return last
}

func without(all census.Census, prefix string) census.Census {
	kept := census.Census{}
	for line, count := range all {
		if !strings.HasPrefix(line, prefix) {
			kept[line] = count
		}
	}
	return kept
}

func exceptDaemon(diff []string) []string {
	var kept []string
	for _, line := range diff {
		if !strings.Contains(line, " process ") || !strings.Contains(line, "/meridiand --config") {
			kept = append(kept, line)
		}
	}
	return kept
}

// Pod is a sandbox of a test, removed when the test ends.
type Pod struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig

	t    testing.TB
	node *node.Node
}

// RunPod runs a sandbox on the shared node.
func RunPod(t testing.TB, options ...func(*runtimeapi.PodSandboxConfig)) *Pod {
	t.Helper()
	return RunPodOn(t, shared, options...)
}

// RunPodOn runs a sandbox on a node.
func RunPodOn(t testing.TB, n *node.Node, options ...func(*runtimeapi.PodSandboxConfig)) *Pod {
	t.Helper()
	config := client.Pod("pod-"+client.Unique()[:5], t.TempDir(), options...)
	id, err := n.RunPodSandbox(Context(t), config, "")
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	pod := &Pod{ID: id, Config: config, t: t, node: n}
	t.Cleanup(pod.Remove)
	return pod
}

// Adopt takes over a sandbox of the shared node that was made otherwise, to be removed when the test ends.
func Adopt(t testing.TB, id string, config *runtimeapi.PodSandboxConfig) *Pod {
	t.Helper()
	pod := &Pod{ID: id, Config: config, t: t, node: shared}
	t.Cleanup(pod.Remove)
	return pod
}

// Remove stops and removes the sandbox; it may be called more than once.
func (p *Pod) Remove() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if p.node.Client == nil { // a test that failed half way; the next ones must not
		if err := p.node.Start(ctx); err != nil {
			p.t.Errorf("pod %s: its node is down: %v", p.ID, err)
			return
		}
	}
	if err := errors.Join(p.node.StopPodSandbox(ctx, p.ID), p.node.RemovePodSandbox(ctx, p.ID)); err != nil {
		p.t.Errorf("remove pod %s: %v", p.ID, err)
	}
}

// Container is a container of a test's pod.
type Container struct {
	ID     string
	Config *runtimeapi.ContainerConfig
	Pod    *Pod
}

// Create makes a container that runs a shell command line from the busybox image.
func (p *Pod) Create(name, script string, options ...func(*runtimeapi.ContainerConfig)) *Container {
	p.t.Helper()
	config := client.Container(p.Config, name, Image(p.t, "clockwork:1"), []string{"/bin/sh", "-c", script}, options...)
	id, err := p.node.CreateContainer(Context(p.t), p.ID, config, p.Config)
	if err != nil {
		p.t.Fatalf("CreateContainer %s: %v", name, err)
	}
	return &Container{ID: id, Config: config, Pod: p}
}

// Run makes a container and starts it.
func (p *Pod) Run(name, script string, options ...func(*runtimeapi.ContainerConfig)) *Container {
	p.t.Helper()
	return p.Create(name, script, options...).Start()
}

// Start starts the container.
func (c *Container) Start() *Container {
	c.Pod.t.Helper()
	if err := c.Pod.node.StartContainer(Context(c.Pod.t), c.ID); err != nil {
		c.Pod.t.Fatalf("StartContainer %s: %v", c.Config.Metadata.Name, err)
	}
	return c
}

// Stop stops the container within a grace period in seconds.
func (c *Container) Stop(grace int64) {
	c.Pod.t.Helper()
	if err := c.Pod.node.StopContainer(Context(c.Pod.t), c.ID, grace); err != nil {
		c.Pod.t.Fatalf("StopContainer %s: %v", c.Config.Metadata.Name, err)
	}
}

// Status is the container's ContainerStatus.
func (c *Container) Status() *runtimeapi.ContainerStatus {
	c.Pod.t.Helper()
	response, err := c.Pod.node.ContainerStatus(Context(c.Pod.t), c.ID, false)
	if err != nil {
		c.Pod.t.Fatalf("ContainerStatus %s: %v", c.Config.Metadata.Name, err)
	}
	return response.Status
}

// Wait waits until the container has exited.
func (c *Container) Wait() *runtimeapi.ContainerStatus {
	c.Pod.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		status := c.Status()
		if status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return status
		}
		if time.Now().After(deadline) {
			c.Pod.t.Fatalf("container %s is still %s", c.Config.Metadata.Name, status.State)
		}
	}
}

// Sh runs a shell command line in the container and returns its standard output without the last line feed.
func (c *Container) Sh(script string) string {
	c.Pod.t.Helper()
	stdout, stderr, err := c.Pod.node.ExecSync(Context(c.Pod.t), c.ID, []string{"/bin/sh", "-c", script}, 20*time.Second)
	if err != nil {
		c.Pod.t.Fatalf("exec %q: %v: %s%s", script, err, stdout, stderr)
	}
	return strings.TrimRight(string(stdout), "\n")
}

// LogPath is where the kubelet would look for the container's log.
func (c *Container) LogPath() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}
