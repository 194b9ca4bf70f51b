// Cluster keeps a two-node Kubernetes cluster on this machine whose kubelets run Meridian (package kube), until it is
// told to take it down:
//
//	cluster up              starts it and waits until both nodes are Ready
//	cluster status          shows nodes and pods
//	cluster kubectl ...     runs kubectl as administrator
//	cluster node a CMD ...  runs a command in node a's namespaces
//	cluster down            ends it; nothing is left
//
// The cluster lives in a world of its own (package lab) whose first process is a child of `cluster serve`, in the
// background: when that ends, however it ends, the kernel takes all of it away.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"meridian.dev/e2e/census"
	"meridian.dev/e2e/kube"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

const usage = "use: hack/cluster up | down | status | kubectl ARGUMENT... | node a|b COMMAND..."

func main() {
	kube.Boot()
	if err := run(os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		return errors.New(usage)
	}
	switch rest := arguments[1:]; {
	case arguments[0] == "serve":
		lab.Run(serve)
		return nil
	case arguments[0] == "up" && len(rest) == 0:
		return up()
	case arguments[0] == "down" && len(rest) == 0:
		return down()
	case arguments[0] == "status" && len(rest) == 0:
		if err := kubectl("get", "nodes", "-o", "wide"); err != nil {
			return err
		}
		return kubectl("get", "pods", "--all-namespaces", "-o", "wide")
	case arguments[0] == "kubectl":
		return kubectl(rest...)
	case arguments[0] == "node" && len(rest) > 1:
		return onNode(rest[0], rest[1:])
	default:
		return errors.New(usage)
	}
}

// state is what a running cluster tells the commands: process ids are those of its world.
type state struct {
	Kubeconfig string         `json:"kubeconfig"`
	Logs       string         `json:"logs"`
	Nodes      map[string]int `json:"nodes"`
}

func directory() string       { return filepath.Join(node.Top(), "target/cluster") }
func file(name string) string { return filepath.Join(directory(), name) }
func say(f string, v ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(f, v...))
}
func remove(name string) error { return ignoreMissing(os.Remove(file(name))) }

var began = time.Now()

// serve is the cluster's own process: up, wait for a signal, down, and an account of what is left.
func serve() (int, error) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := kube.Warm(); err != nil {
		return 1, err
	}
	before := census.Take(scope())
	cluster, err := kube.Start(ctx, kube.Options{Progress: func(step string) { say("%s", step) }})
	if err == nil {
		err = publish(cluster)
	}
	if err == nil {
		<-ctx.Done()
		say("taking everything down")
	}
	err = errors.Join(err, cluster.Stop(), remove("state.json"))
	for _, line := range census.Settle(before, scope(), 5*time.Second) {
		err = errors.Join(err, errors.New("left behind: "+line))
	}
	if err != nil {
		return 1, err
	}
	say("down; nothing is left")
	return 0, nil
}

func scope() census.Scope { return census.Scope{Cgroup: "meridian-" + lab.Name()} }

// publish writes the state that the other commands read, and what the cluster costs.
func publish(cluster *kube.Cluster) error {
	s := state{Kubeconfig: cluster.Kubeconfig(), Logs: cluster.Logs(), Nodes: map[string]int{}}
	for _, n := range cluster.Nodes {
		s.Nodes[n.Name] = n.Pid()
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file("state.json.new"), text, 0o600); err != nil {
		return err
	}
	for _, p := range cluster.Processes() {
		say("  %-24s %4d MB", p.Name, p.Memory()>>20)
	}
	say("up; logs are in %s", s.Logs)
	return os.Rename(file("state.json.new"), file("state.json"))
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
