// Package kube runs a Kubernetes cluster inside a world of package lab, from plain processes:
//
//	world:  etcd, kube-apiserver, kube-controller-manager, kube-scheduler and a registry on 198.18.0.1
//	          ├── node a: 198.18.0.11, pods 10.96.0.0/16: meridiand, kubelet, kube-proxy
//	          └── node b: 198.18.0.12, pods 10.97.0.0/16: the same
//
// A node has mount, network, pid, uts and ipc namespaces of its own: killing its first process is a power cut. The
// nodes route each other's pods; nothing is masqueraded between them. The programs are those of `hack/install
// kubernetes`, and one authority, made anew for each cluster, signs what they show each other.
package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"meridian.dev/e2e/fabric"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

const (
	// Registry is the name under which the nodes know the registry: registry.example/meridian/busybox:1.
	Registry = "registry.example"

	services   = "10.100.0.0/24"
	apiservice = "10.100.0.1"
	apiport    = 6443
)

// Options shape a cluster.
type Options struct {
	// Level is meridiand's log level; empty means info.
	Level string
	// Nodes are the machines; nil means a and b, alike.
	Nodes []NodeOptions
	// Progress is told of each step; nil means nobody.
	Progress func(step string)
}

// Cluster is a control plane and its nodes.
type Cluster struct {
	// Nodes are those of the options.
	Nodes []*Node
	// Registry is the address of the registry.
	Registry string

	options   Options
	directory string
	authority *authority
	plane     []*Process
}

// Binary is the path of one of Kubernetes' programs.
func Binary(name string) string { return filepath.Join(node.Cache(), "kubernetes", name) }

// Start brings the cluster up until both nodes are Ready. Call Stop even after an error.
func Start(ctx context.Context, options Options) (*Cluster, error) {
	if options.Level == "" {
		options.Level = "info"
	}
	if options.Progress == nil {
		options.Progress = func(string) {}
	}
	if _, err := os.Stat(Binary("etcd")); err != nil {
		return nil, fmt.Errorf("no Kubernetes: run hack/install kubernetes: %w", err)
	}
	directory, err := os.MkdirTemp("", "meridian-"+lab.Name()+"-kube-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{options: options, directory: directory}
	return c, c.start(ctx)
}

func (c *Cluster) start(ctx context.Context) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"bridge and registry", func() error { return errors.Join(fabric.Up(), c.startRegistry()) }},
		{"certificates", c.certificates},
		{"etcd", c.etcd},
		{"kube-apiserver", c.apiserver},
		{"kube-controller-manager and kube-scheduler", c.controllers},
		{"nodes", c.boot},
		{"nodes Ready", func() error { return c.ready(ctx) }},
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.options.Progress(step.what)
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

func (c *Cluster) certificates() (err error) {
	if c.authority, err = newAuthority(c.directory); err != nil {
		return err
	}
	for _, s := range []subject{
		{"apiserver", "kube-apiserver", []string{"system:masters"}, []string{fabric.Gateway, apiservice}},
		{"service-accounts", "service-accounts", nil, nil},
		{"admin", "admin", []string{"system:masters"}, nil},
		{"controller-manager", "system:kube-controller-manager", nil, nil},
		{"scheduler", "system:kube-scheduler", nil, nil},
		{"kube-proxy", "system:kube-proxy", nil, nil},
	} {
		err = errors.Join(err, c.authority.issue(s), os.WriteFile(c.authority.path(s.file+".conf"), c.kubeconfig(s.file), 0o600))
	}
	return err
}

// kubeconfig is that of the user whose certificate is in file.
func (c *Cluster) kubeconfig(file string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: meridian, cluster: {server: "https://%s:%d", certificate-authority: %q}}]
users: [{name: user, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: meridian, context: {cluster: meridian, user: user}}]
current-context: meridian
`, fabric.Gateway, apiport, c.authority.path("ca.crt"), c.authority.path(file+".crt"), c.authority.path(file+".key"))
}

func (c *Cluster) boot() error {
	wanted := c.options.Nodes
	if wanted == nil {
		wanted = []NodeOptions{{Name: "a"}, {Name: "b"}}
	}
	for i, options := range wanted {
		n, err := c.newNode(options, 11+i, 96+i)
		if err != nil {
			return err
		}
		c.Nodes = append(c.Nodes, n)
		if err := n.Boot(); err != nil {
			return err
		}
	}
	return nil
}

// ready waits for the nodes, and for the account that every pod runs under.
func (c *Cluster) ready(ctx context.Context) error {
	condition := []string{"wait", "--for=condition=Ready", "--timeout=60s"}
	for _, n := range c.Nodes {
		condition = append(condition, "node/"+n.Name)
	}
	for _, call := range [][]string{condition, {"get", "serviceaccount", "default"}} {
		if err := c.eventually(ctx, call); err != nil {
			return err
		}
	}
	return nil
}

// eventually repeats a call of kubectl until it succeeds: what it asks for may not exist yet.
func (c *Cluster) eventually(ctx context.Context, call []string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_, err := c.Kubectl(ctx, call...)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Now().After(deadline) {
			for _, n := range c.Nodes {
				err = fmt.Errorf("%w\n%s\n%s", err, n.Kubelet.Tail(8), n.Runtime.Tail(8))
			}
			return err
		}
	}
}

// Node is the node with a name.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Processes are the programs of the control plane and of the nodes.
func (c *Cluster) Processes() []*Process {
	all := append([]*Process{}, c.plane...)
	for _, n := range c.Nodes {
		all = append(all, n.programs()...)
	}
	return all
}

// Stop ends everything and removes its files.
func (c *Cluster) Stop() error {
	if c == nil {
		return nil
	}
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.PowerOff(), n.Discard())
	}
	for i := len(c.plane) - 1; i >= 0; i-- {
		errs = append(errs, c.plane[i].Kill()) // nothing of it is kept
	}
	if c.Registry != "" {
		_, err := lab.ServeImages("stop", "kube")
		errs = append(errs, err)
	}
	return errors.Join(append(errs, fabric.Down(), os.RemoveAll(c.directory))...)
}

// Kubeconfig is the path of the administrator's configuration of kubectl.
func (c *Cluster) Kubeconfig() string { return c.authority.path("admin.conf") }

// Logs is the directory with the programs' logs.
func (c *Cluster) Logs() string { return c.directory }

func (c *Cluster) startRegistry() (err error) {
	if c.Registry, err = lab.ServeImages("start", "kube", fabric.Reachable); err != nil {
		return err
	}
	directory := filepath.Join(c.Hosts(), Registry)
	text := fmt.Sprintf("server = %[1]q\n[host.%[1]q]\ncapabilities = [\"pull\", \"resolve\"]\n", "http://"+c.Registry)
	return errors.Join(os.MkdirAll(directory, 0o755), os.WriteFile(filepath.Join(directory, "hosts.toml"), []byte(text), 0o644))
}

// Hosts is a directory in the layout of containerd's certs.d that gives Registry's name to the cluster's registry.
func (c *Cluster) Hosts() string { return filepath.Join(c.directory, "hosts") }

// Environment is what kubectl needs to reach the cluster from inside the world.
func (c *Cluster) Environment() []string {
	return append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(c.directory, "kubectl"))
}

// Kubectl runs kubectl as the cluster's administrator and returns its standard output.
func (c *Cluster) Kubectl(ctx context.Context, arguments ...string) (string, error) {
	return c.KubectlWith(ctx, "", arguments...)
}

// KubectlWith is Kubectl with something on standard input.
func (c *Cluster) KubectlWith(ctx context.Context, input string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, Binary("kubectl"), arguments...)
	command.Env = c.Environment()
	command.WaitDelay = time.Second
	var stdout, stderr strings.Builder
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Warm makes what the first use of ip(8)'s namespaces leaves in a world for good, so that a census has it from the start.
func Warm() error {
	return errors.Join(fabric.IP("netns", "add", "warm"), fabric.IP("netns", "del", "warm"))
}
