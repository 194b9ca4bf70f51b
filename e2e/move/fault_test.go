package move

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
	"meridian.dev/e2e/pair"
)

// with runs body on a pair of its own, of which one node has a fault built in.
func with(t *testing.T, only, fault string, body func()) {
	t.Helper()
	restart(t, pair.Options{Only: only, Environment: []string{"MERIDIAN_FAULT=" + fault}})
	t.Cleanup(func() { restart(t, pair.Options{}) })
	body()
}

func restart(t *testing.T, options pair.Options) {
	t.Helper()
	stop := nodes.Stop()
	fresh, err := pair.Start(context.Background(), options)
	nodes = fresh
	if err := errors.Join(stop, err); err != nil {
		t.Fatal(err)
	}
}

// goesOn wants the pod running on node a, and its counter and clocks without a break.
func (p *pod) goesOn() {
	p.t.Helper()
	p.at = nodes.A
	all := p.readings("count")
	p.await("count", fmt.Sprint(all[len(all)-1].Count+30, " "), len(all)-1)
	contiguous(p.t, p.readings("count"))
	p.noFaults("count")
	p.sh("count", "true")
}

// refused wants a move that fails with an error that holds every word.
func (p *pod) refused(words []string, arguments ...string) {
	p.t.Helper()
	_, err := nodes.Move(lab.Context(p.t), p.at, p.id(), arguments...)
	if err == nil {
		p.t.Fatal("the move succeeded")
	}
	for _, word := range words {
		if !strings.Contains(strings.ToLower(err.Error()), word) {
			p.t.Errorf("error %q does not say %q", err, word)
		}
	}
}

// What cannot be restored elsewhere is refused by name before anything is frozen, with the cure.
func TestPodsThatCannotBeMovedAreRefused(t *testing.T) {
	ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 100000, Length: 65536}}
	for name, row := range map[string]struct {
		options *runtimeapi.NamespaceOption
		words   []string
	}{
		"user namespace": {&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}}, []string{"user namespace", "userns_options node"}},
		"shared pids": {&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD},
			[]string{"container count", "pid mode container"}},
		"node's network": {&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER},
			[]string{"network", "network mode pod"}},
	} {
		t.Run(name, func(t *testing.T) {
			if row.options.UsernsOptions != nil {
				row.options.Pid = runtimeapi.NamespaceMode_CONTAINER
			}
			p := runWith(t, nodes.A, row.options, container{"count", []string{"count"}})
			p.await("count", "5 ", 0)
			p.refused(row.words)
			p.goesOn()
		})
	}
}

func counting(t *testing.T) *pod {
	t.Helper()
	p := run(t, nodes.A, container{"count", []string{"count", "8"}})
	p.await("count", "20 ", 0)
	return p
}

// The destination dies before it confirmed: the source runs on and the destination keeps nothing.
func TestDestinationDies(t *testing.T) {
	for _, point := range []string{"prepared", "before-confirm"} {
		t.Run(point, func(t *testing.T) {
			with(t, "b", "die-at="+point, func() {
				p := counting(t)
				p.refused([]string{nodes.B.Peer})
				p.goesOn()
				nodes.B.Kill()
				if err := nodes.B.Start(lab.Context(t)); err != nil {
					t.Fatal(err)
				}
				p.leavesNothing(nodes.B)
			})
		})
	}
}

// leavesNothing wants a node to have no copy of the pod any more, soon.
func (p *pod) leavesNothing(n *pair.Node) {
	p.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(p.running(n)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s keeps a second copy: %v", n.Namespace, p.running(n))
		}
	}
}

// The source's daemon is killed while the pod is frozen: the shim thaws it by itself.
func TestDaemonDiesWhileThePodIsFrozen(t *testing.T) {
	with(t, "a", "die-at=frozen", func() {
		p := counting(t)
		_, _ = nodes.A.CLI(lab.Context(t), "migrate", p.id(), "--to", nodes.B.Peer, "--timeout", "5s")
		nodes.A.Kill() // reaps it
		all := p.readings("count")
		p.await("count", fmt.Sprint(all[len(all)-1].Count+50, " "), len(all)-1)
		nodes.A.Environment = nil
		if err := nodes.A.Start(lab.Context(t)); err != nil {
			t.Fatal(err)
		}
		p.goesOn()
		if copies := p.running(nodes.B); len(copies) > 0 {
			t.Errorf("the destination runs a second copy: %v", copies)
		}
	})
}

// The source's daemon dies after the commit: the destination runs, and the source never again.
func TestSourceDiesAfterConfirm(t *testing.T) {
	with(t, "a", "die-at=after-confirm", func() {
		p := counting(t)
		_, _ = nodes.A.CLI(lab.Context(t), "migrate", p.id(), "--to", nodes.B.Peer)
		nodes.A.Kill()
		nodes.A.Environment = nil
		if err := nodes.A.Start(lab.Context(t)); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); len(p.running(nodes.A)) > 0; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the source still has the pod after the commit")
			}
		}
		p.at = nodes.B
		all := p.readings("count")
		p.await("count", fmt.Sprint(all[len(all)-1].Count+30, " "), len(all)-1)
		contiguous(t, p.readings("count"))
	})
}

// running lists the pod's containers that node n has and that may run.
func (p *pod) running(n *pair.Node) []string {
	var found []string
	for _, sandbox := range p.on(n) {
		found = append(found, sandbox.Id+" "+sandbox.State.String())
	}
	return found
}

// No time: an error that says so, and a running pod. The destination stops what it has begun, and the pod can come later.
func TestDeadlineTooShort(t *testing.T) {
	p := counting(t)
	p.refused([]string{"deadline"}, "--timeout", "20ms")
	p.leavesNothing(nodes.B)
	p.goesOn()
	if _, err := nodes.Move(lab.Context(t), p.at, p.id()); err != nil {
		t.Fatalf("move after one that was given up: %v", err)
	}
	p.at = nodes.B
	p.noFaults("count")
}

// Nobody listens there: an error that names the address, before anything is frozen.
func TestNobodyAtTheDestination(t *testing.T) {
	p := counting(t)
	_, err := nodes.A.CLI(lab.Context(t), "migrate", p.id(), "--to", "198.18.0.99:7070", "--timeout", "2s")
	if err == nil || !strings.Contains(err.Error(), "198.18.0.99:7070") {
		t.Errorf("error %v does not name the address", err)
	}
	p.goesOn()
}

// CRIU is missing on the source or on the destination: an error that names it, and a running pod.
func TestCriuMissing(t *testing.T) {
	for _, n := range []*pair.Node{nodes.A, nodes.B} {
		t.Run(n.Namespace, func(t *testing.T) {
			p := counting(t)
			reconfigure(t, n, func(text string) string {
				return strings.Replace(text, "command = [", `command = ["/nonexistent/criu", `, 1)
			})
			p.refused([]string{"criu"})
			p.goesOn()
		})
	}
}

// A node with another authority is refused by both sides.
func TestStrangersAreRefused(t *testing.T) {
	p := counting(t)
	pki := t.TempDir()
	if _, err := nodes.B.CLI(lab.Context(t), "certs", "init", filepath.Join(pki, "other"), "--node", "b=198.18.0.12"); err != nil {
		t.Fatal(err)
	}
	reconfigure(t, nodes.B, func(text string) string {
		for _, file := range []string{"ca.crt", "b.crt", "b.key"} {
			text = replaceFile(text, file, filepath.Join(pki, "other", file))
		}
		return text
	})
	p.refused([]string{"certificate"})
	p.goesOn()
}

func replaceFile(text, file, path string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if key, value, ok := strings.Cut(line, " = "); ok && strings.HasSuffix(value, "/"+file+`"`) {
			lines[i] = fmt.Sprintf("%s = %q", key, path)
		}
	}
	return strings.Join(lines, "\n")
}

// The destination's disk is full: an error that says so, a running pod, and nothing left at the destination.
func TestDiskFullAtTheDestination(t *testing.T) {
	p := run(t, nodes.A, container{"count", []string{"count", "64"}})
	p.await("count", "20 ", 0)
	small := filepath.Join(t.TempDir(), "root")
	if err := os.MkdirAll(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	root := nodes.B.Root
	reroot(t, nodes.B, small)
	t.Cleanup(func() { reroot(t, nodes.B, root) })
	p.refused([]string{"space"})
	p.goesOn()
	if copies := p.running(nodes.B); len(copies) > 0 {
		t.Errorf("left at the destination: %v", copies)
	}
}

// reconfigure restarts a node with a changed configuration file, and as it was when the test ends.
func reconfigure(t *testing.T, n *pair.Node, change func(string) string) {
	t.Helper()
	text, err := os.ReadFile(n.Config())
	if err != nil {
		t.Fatal(err)
	}
	apply := func(text string) {
		if err := errors.Join(n.Node.Stop(), os.WriteFile(n.Config(), []byte(text), 0o600), n.Start(lab.Context(t))); err != nil {
			t.Fatal(err)
		}
	}
	apply(change(string(text)))
	t.Cleanup(func() {
		if err := errors.Join(n.Node.Stop(), os.WriteFile(n.Config(), text, 0o600)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), node.Ready)
		defer cancel()
		if err := n.Start(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

// reroot restarts a node on another root directory.
func reroot(t *testing.T, n *pair.Node, root string) {
	t.Helper()
	stop := n.Node.Stop()
	n.Root = root
	ctx, cancel := context.WithTimeout(context.Background(), node.Ready)
	defer cancel()
	if err := errors.Join(stop, n.Start(ctx)); err != nil {
		t.Fatal(err)
	}
}
