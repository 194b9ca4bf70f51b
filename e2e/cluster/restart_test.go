package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"meridian.dev/e2e/node"
)

// Restarts of what the pods do not depend on: nothing of a pod changes, and what follows works. Not parallel: it is
// about whole nodes.
func TestRestarts(t *testing.T) {
	for _, n := range cluster.Nodes {
		apply(t, "streams.yaml", n.Name)
		apply(t, "logs.yaml", n.Name)
	}
	waitFor(t, "condition=Ready", "pod/streams-a", "pod/streams-b", "pod/logs-a", "pod/logs-b")
	before := lives(t)
	for _, restart := range []struct {
		what string
		do   func() error
	}{
		{"kubelets end and start", func() error {
			for _, n := range cluster.Nodes {
				if err := n.Kubelet.Stop(); err != nil {
					return err
				}
				if err := n.Kubelet.Start(); err != nil {
					return err
				}
			}
			return nil
		}},
		{"daemons are killed and start", func() error {
			for _, n := range cluster.Nodes {
				if err := n.Runtime.Kill(); err != nil {
					return err
				}
				if err := n.Runtime.Start(); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		if err := restart.do(); err != nil {
			t.Fatalf("%s: %v", restart.what, err)
		}
		for _, n := range cluster.Nodes {
			becomes(t, "web-"+n.Name, "exec", "streams-"+n.Name, "-c", "shell", "--", "echo", "web-"+n.Name)
			apply(t, "daemonset.yaml", "")
			call(t, "rollout", "status", "daemonset/agent", "--timeout=60s")
		}
		waitFor(t, "condition=Ready", "node/a", "node/b", "pod/streams-a", "pod/streams-b")
		if after := lives(t); after != before {
			t.Errorf("%s: containers were\n%s\nand are\n%s", restart.what, before, after)
		}
	}
}

// lives tells containers from their successors.
func lives(t *testing.T) string {
	return call(t, "get", "pods", "streams-a", "streams-b", "logs-a", "logs-b", "-o",
		`jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{"\n"}{end}`)
}

// A power cut: the pods of the node start again, the same pods with new containers, and those of the other node go on.
func TestReboot(t *testing.T) {
	for _, n := range cluster.Nodes {
		apply(t, "streams.yaml", n.Name)
	}
	waitFor(t, "condition=Ready", "pod/streams-a", "pod/streams-b")
	uid := field(t, "pod/streams-b", ".metadata.uid")
	boot := field(t, "node/b", ".status.nodeInfo.bootID")
	b := cluster.Node("b")
	if err := b.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := b.Boot(); err != nil {
		t.Fatal(err)
	}
	becomes(t, "1", "get", "pod", "streams-b", "-o", status("web", ".restartCount"))
	waitFor(t, "condition=Ready", "node/b", "pod/streams-b")
	equal(t, "uid", field(t, "pod/streams-b", ".metadata.uid"), uid)
	wants(t, "web", sh(t, "streams-b/shell", "wget -q -O - http://127.0.0.1:8080"), "monotonic")
	if field(t, "node/b", ".status.nodeInfo.bootID") == boot {
		t.Error("the node did not notice that it was rebooted")
	}
	equal(t, "restarts on node a", call(t, "get", "pod", "streams-a", "-o", status("web", ".restartCount")), "0")
}

// runTool runs one of the programs that hack/install fetched.
func runTool(name string, arguments ...string) (string, error) {
	output, err := exec.Command(filepath.Join(node.Cache(), "bin", name), arguments...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, output)
	}
	return string(output), nil
}
