// Package fabric connects the nodes of a world of package lab: a bridge, and a network namespace per node with a cable
// to it.
//
//	world:  bridge "fabric", 198.18.0.1
//	          ├── fab-a ── up-a 198.18.0.11 in namespace node-a
//	          └── fab-b ── up-b 198.18.0.12 in namespace node-b
package fabric

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Gateway is the world's own address on the bridge, and the nodes' default route.
const Gateway = "198.18.0.1"

// Reachable lets hack/registry listen where the nodes reach it.
const Reachable = "MERIDIAN_REGISTRY_HOST=" + Gateway

// Address is the address of the node with a number from 2 to 254.
func Address(host int) string { return fmt.Sprintf("198.18.0.%d", host) }

// Up makes the bridge.
func Up() error {
	return errors.Join(
		IP("link", "add", "fabric", "type", "bridge"),
		IP("addr", "add", Gateway+"/24", "dev", "fabric"),
		IP("link", "set", "fabric", "up"))
}

// Down removes the bridge.
func Down() error { return IP("link", "del", "fabric") }

// Namespace is the name of a node's network namespace below /run/netns.
func Namespace(node string) string { return "node-" + node }

// Plug makes a node's network namespace and connects it.
func Plug(node, address string) error {
	return errors.Join(IP("netns", "add", Namespace(node)), connect(node, address))
}

// PlugProcess connects the network namespace that a process, the first of its node, was made in.
func PlugProcess(node, address string, pid int) error {
	return errors.Join(IP("netns", "attach", Namespace(node), fmt.Sprint(pid)), connect(node, address))
}

func connect(node, address string) error {
	namespace, inside := Namespace(node), "up-"+node
	for _, step := range [][]string{
		{"link", "add", cable(node), "type", "veth", "peer", "name", inside, "netns", namespace},
		{"link", "set", cable(node), "master", "fabric", "up"},
		{"-n", namespace, "addr", "add", address + "/24", "dev", inside},
		{"-n", namespace, "link", "set", inside, "up"},
		{"-n", namespace, "link", "set", "lo", "up"},
		{"-n", namespace, "route", "add", "default", "via", Gateway},
	} {
		if err := IP(step...); err != nil {
			return errors.Join(err, Unplug(node))
		}
	}
	return nil
}

// Unplug removes a node's namespace; its cable first, which the kernel would otherwise remove some time later.
func Unplug(node string) error {
	return errors.Join(IP("link", "del", cable(node)), IP("netns", "del", Namespace(node)))
}

func cable(node string) string { return "fab-" + node }

// IP runs ip(8).
func IP(arguments ...string) error {
	output, err := exec.Command("ip", arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(arguments, " "), err, output)
	}
	return nil
}
