package move

import (
	"fmt"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/census"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/pair"
)

// A pod of two containers goes on at the other node: counter, memory, shared memory, files, HTTP, exec, logs.
func TestPodGoesOnAtTheOtherNode(t *testing.T) {
	p := run(t, nodes.A, container{"count", []string{"count", "64"}}, container{"serve", []string{"serve"}})
	p.await("count", "50 ", 0)
	p.sh("count", "echo written on a > /root/note; rm /etc/group; hostname")
	host := p.sh("count", "hostname")
	source, before := p.namespaces(), len(p.readings("count"))

	result := p.move()

	at := p.readings("count")
	p.await("count", fmt.Sprint(at[len(at)-1].Count+50, " "), len(at)-1)
	contiguous(t, p.readings("count"))
	p.noFaults("count", "serve")
	if len(p.readings("count")) < before {
		t.Error("the log lost lines")
	}
	if note := p.sh("count", "cat /root/note; test -e /etc/group || echo gone"); note != "written on a\ngone" {
		t.Errorf("root filesystem at the destination: %q", note)
	}
	if now := p.sh("serve", "hostname"); now != host {
		t.Errorf("hostname %q became %q", host, now)
	}
	first, err := p.get()
	if err != nil {
		t.Fatalf("the server does not answer at the destination: %v", err)
	}
	time.Sleep(100 * time.Millisecond)
	if second, err := p.get(); err != nil || second.Count <= first.Count {
		t.Errorf("shared memory does not connect the containers: %v then %v, %v", first, second, err)
	}
	if left := p.on(nodes.A); len(left) != 0 {
		t.Errorf("the source still lists %v", left)
	}
	for kind, inode := range p.namespaces() {
		if inode == source[kind] {
			t.Errorf("%s is %s on both nodes", kind, inode)
		}
	}
	if result.Bytes < 64<<20 {
		t.Errorf("%d bytes moved, but the pod holds 64 MiB that do not compress", result.Bytes)
	}
	if result.DestinationPod != p.id() {
		t.Errorf("result names pod %s, the node lists %s", result.DestinationPod, p.id())
	}
}

// Nothing of a moved pod stays on the source, and nothing of a removed one on the destination.
func TestMoveLeavesNothingBehind(t *testing.T) {
	thereAndBack(t) // a node makes its root cgroup with its first pod, and keeps connections for the next request
	before := map[*pair.Node]census.Census{}
	for _, n := range []*pair.Node{nodes.A, nodes.B} {
		before[n] = census.Take(n.Scope())
	}
	thereAndBack(t)
	if diff := census.Settle(before[nodes.A], nodes.A.Scope(), 5*time.Second); len(diff) > 0 {
		t.Errorf("left on the source:\n  %s", strings.Join(diff, "\n  "))
	}
	if diff := census.Settle(before[nodes.B], nodes.B.Scope(), 5*time.Second); len(diff) > 0 {
		t.Errorf("left on the destination:\n  %s", strings.Join(diff, "\n  "))
	}
}

// thereAndBack moves a pod to node b and back, and removes it: the nodes share a process table, so what still ran on
// one would be counted on the other.
func thereAndBack(t *testing.T) {
	t.Helper()
	p := run(t, nodes.A, container{"count", []string{"count", "1"}})
	p.await("count", "10 ", 0)
	p.move()
	p.move()
	p.remove()
}

// The cut is one instant for all containers: question and answer in shared memory never disagree.
func TestCutIsOneInstant(t *testing.T) {
	p := run(t, nodes.A, container{"ask", []string{"pair", "ask"}}, container{"answer", []string{"pair", "answer"}})
	for range 6 {
		from := len(p.lines("ask"))
		p.await("ask", "agree", from)
		p.move()
	}
	p.await("ask", "agree", len(p.lines("ask")))
	p.noFaults("ask", "answer")
}

// Status, limits and restart of the moved container are those of an ordinary one; limits that were changed come along.
func TestMovedPodIsAnOrdinaryPod(t *testing.T) {
	p := run(t, nodes.B, container{"count", []string{"count"}})
	p.await("count", "5 ", 0)
	resize := func(bytes int64) {
		t.Helper()
		limits := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: bytes, MemorySwapLimitInBytes: bytes}
		request := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: p.status("count").Id, Linux: limits}
		if _, err := p.at.Runtime.UpdateContainerResources(lab.Context(t), request); err != nil {
			t.Fatal(err)
		}
	}
	resize(96 << 20)
	p.move()
	status := p.status("count")
	if got := status.Resources.GetLinux().GetMemoryLimitInBytes(); got != 96<<20 {
		t.Errorf("memory limit after the move: %d", got)
	}
	resize(48 << 20)
	if status.State != runtimeapi.ContainerState_CONTAINER_RUNNING || status.StartedAt == 0 {
		t.Errorf("status %v started %d", status.State, status.StartedAt)
	}
	if err := p.at.StopContainer(lab.Context(t), status.Id, 0); err != nil {
		t.Fatal(err)
	}
	if status = p.status("count"); status.ExitCode != 137 {
		t.Errorf("a killed moved container has exit code %d, want 137", status.ExitCode)
	}
}

// namespaces maps each kind to its inode as the kernel shows it for the first container's process.
func (p *pod) namespaces() map[string]string {
	p.t.Helper()
	links := map[string]string{}
	for _, kind := range []string{"net", "ipc", "uts", "time", "mnt", "pid", "cgroup"} {
		links[kind] = p.sh("count", "readlink /proc/1/ns/"+kind)
	}
	return links
}

// contiguous wants a counter that never skips and clocks that never step back.
func contiguous(t *testing.T, all []reading) {
	t.Helper()
	if len(all) == 0 {
		t.Fatal("no readings")
	}
	for i, now := range all[1:] {
		last := all[i]
		if now.Count != last.Count+1 {
			t.Errorf("counter went from %d to %d", last.Count, now.Count)
		}
		if now.Monotonic < last.Monotonic || now.Boottime < last.Boottime {
			t.Errorf("clocks stepped back at %d: monotonic %d -> %d, boottime %d -> %d",
				now.Count, last.Monotonic, now.Monotonic, last.Boottime, now.Boottime)
		}
	}
}
