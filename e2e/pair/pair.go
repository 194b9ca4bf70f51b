// Package pair runs two nodes that can move pods to each other, inside a world of package lab:
//
//	world:  registry on 198.18.0.1, bridge "fabric"
//	          ├── node a: own network and mount namespaces, 198.18.0.11
//	          └── node b: the same, 198.18.0.12, and a time namespace: its clocks run Ahead of a's
//
// Each trusts the other by certificates of one authority, made by `meridian certs init`.
package pair

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"meridian.dev/e2e/fabric"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// Ahead is how far node b's MONOTONIC and BOOTTIME run ahead of node a's.
const Ahead = 5_000_000 * time.Second

const port = 7070

// Pair is two running nodes and what they share.
type Pair struct {
	// A and B are the nodes.
	A, B *Node
	// Registry is the address of the registry that both reach.
	Registry string

	directory string
}

// Node is one of the two.
type Node struct {
	*node.Node
	// Peer is the address at which the other daemon reaches this one.
	Peer string
	// Namespace is the name of its network namespace.
	Namespace string

	plug string // its name in the fabric
}

// Options change the nodes.
type Options struct {
	// Environment is added to both daemons'.
	Environment []string
	// Only names the node ("a" or "b") that gets Environment; empty means both.
	Only string
	// Level is the daemons' log level; empty means debug.
	Level string
}

// Start makes the fabric, the registry and both nodes. Call Stop even after an error.
func Start(ctx context.Context, options Options) (*Pair, error) {
	directory, err := os.MkdirTemp("", "meridian-"+lab.Name()+"-pair-")
	if err != nil {
		return nil, err
	}
	p := &Pair{directory: directory}
	return p, p.start(ctx, options)
}

func (p *Pair) start(ctx context.Context, options Options) error {
	steps := []func() error{
		fabric.Up,
		p.startRegistry,
		p.certificates,
		func() (err error) { p.A, err = p.node("a", 11, 96, options); return },
		func() (err error) { p.B, err = p.node("b", 12, 97, options); return },
		func() error { return p.A.Start(ctx) },
		func() error { return p.B.Start(ctx) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends everything and removes its files.
func (p *Pair) Stop() error {
	if p == nil {
		return nil
	}
	var errs []error
	for _, n := range []*Node{p.A, p.B} {
		if n == nil {
			continue
		}
		if n.Client != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			errs = append(errs, n.Purge(ctx))
			cancel()
		}
		errs = append(errs, n.Node.Stop(), fabric.Unplug(n.plug), os.RemoveAll(n.Dir))
	}
	if p.Registry != "" {
		_, err := lab.ServeImages("stop", "pair")
		errs = append(errs, err)
	}
	return errors.Join(append(errs, fabric.Down(), os.RemoveAll(p.directory))...)
}

// Other is the node that n is not.
func (p *Pair) Other(n *Node) *Node {
	if n == p.A {
		return p.B
	}
	return p.A
}

// Reference is how an image of hack/images is called in the pair's registry.
func (p *Pair) Reference(image string) string { return p.Registry + "/meridian/" + image }

func (p *Pair) startRegistry() (err error) {
	p.Registry, err = lab.ServeImages("start", "pair", fabric.Reachable)
	return err
}

func (p *Pair) certificates() error {
	output, err := exec.Command(node.Binary("meridian"), "certs", "init", p.pki(),
		"--node", "a=198.18.0.11", "--node", "b=198.18.0.12").CombinedOutput()
	if err != nil {
		return fmt.Errorf("meridian certs init: %w: %s", err, output)
	}
	return nil
}

func (p *Pair) pki() string { return filepath.Join(p.directory, "pki") }

func (p *Pair) node(name string, host, subnet int, options Options) (*Node, error) {
	namespace, address := fabric.Namespace(name), fabric.Address(host)
	if err := fabric.Plug(name, address); err != nil {
		return nil, err
	}
	wrap := []string{"nsenter", "--net=/run/netns/" + namespace, "unshare", "--mount", "--propagation", "slave"}
	if name == "b" {
		seconds := fmt.Sprint(int(Ahead.Seconds()))
		wrap = append(wrap, "--time", "--monotonic", seconds, "--boottime", seconds)
	}
	var environment []string
	if options.Only == "" || options.Only == name {
		environment = options.Environment
	}
	peer := fmt.Sprintf("%s:%d", address, port)
	n, err := lab.NewNode(name, node.Options{Subnet: subnet, Wrap: wrap, Environment: environment,
		Level: options.Level, Extra: p.extra(name, peer)})
	if err != nil {
		return nil, err
	}
	return &Node{Node: n, Peer: peer, Namespace: namespace, plug: name}, nil
}

func (p *Pair) extra(name, listen string) string {
	return fmt.Sprintf("[image]\ninsecure = [%q]\n\n[peer]\nlisten = %q\nca = %q\ncertificate = %q\nkey = %q\n",
		p.Registry, listen, filepath.Join(p.pki(), "ca.crt"),
		filepath.Join(p.pki(), name+".crt"), filepath.Join(p.pki(), name+".key"))
}

// Result is what `meridian migrate --output json` prints: meridian.v1.MigrateResult.
type Result struct {
	MigrationID           string      `json:"migrationId"`
	SourcePod             string      `json:"sourcePod"`
	DestinationPod        string      `json:"destinationPod"`
	Phases                []Phase     `json:"phases"`
	Downtime              int64       `json:"downtimeNs,string"`
	MonotonicJump         int64       `json:"monotonicJumpNs,string"`
	BoottimeJump          int64       `json:"boottimeJumpNs,string"`
	Late                  int64       `json:"lateNs,string"`
	Bytes                 int64       `json:"bytes,string"`
	SourceNamespaces      []Namespace `json:"sourceNamespaces"`
	DestinationNamespaces []Namespace `json:"destinationNamespaces"`
}

// Phase is one step of a move, on one side.
type Phase struct {
	Role     string `json:"role"`
	Name     string `json:"name"`
	Start    int64  `json:"startNs,string"`
	Duration int64  `json:"durationNs,string"`
	Frozen   bool   `json:"frozen"`
}

// Namespace is one namespace of a pod, as `meridian ns --output json` prints it.
type Namespace struct {
	Kind    string `json:"kind"`
	Inode   uint64 `json:"inode,string"`
	Node    bool   `json:"node"`
	Pin     string `json:"pin"`
	Members []struct {
		Container string `json:"containerName"`
		Pid       int    `json:"pid"`
	} `json:"members"`
}

// Move moves a pod from n to the other node and returns the daemon's own record of it.
func (p *Pair) Move(ctx context.Context, n *Node, pod string, arguments ...string) (*Result, error) {
	call := append([]string{"migrate", pod, "--to", p.Other(n).Peer, "--output", "json"}, arguments...)
	output, err := n.CLI(ctx, call...)
	if err != nil {
		return nil, err
	}
	return ParseResult([]byte(output))
}

// ParseResult reads what `meridian migrate --output json` printed.
func ParseResult(output []byte) (*Result, error) {
	var result Result
	if err := json.Unmarshal(output, &result); err != nil {
		return nil, fmt.Errorf("meridian migrate printed %q: %w", output, err)
	}
	return &result, nil
}
