// Package storm sends a node random requests, many at once, and clients that give up at any moment, while the daemon may
// use no more than 256 MiB of memory and 512 descriptors. Afterwards the daemon is the same process, nothing is left behind,
// and a good pod comes up at once.
package storm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

const (
	memory      = 256 << 20 // bytes
	descriptors = 512
)

func TestMain(m *testing.M) { lab.MainWith(m, confined) }

// confined starts the daemon in a memory cgroup of its own and with few descriptors.
func confined() node.Options {
	directory := cage()
	script := fmt.Sprintf(`mkdir -p %[1]s && echo %[2]d >%[1]s/%[3]s && echo $$ >%[1]s/cgroup.procs && exec prlimit --nofile=%[4]d:%[4]d "$@"`,
		directory, memory, limitFile(), descriptors)
	return node.Options{Wrap: []string{"/bin/sh", "-c", script, "confined"}, Level: "info"}
}

// cage is the daemon's memory cgroup; lab removes it, as all whose name begins so.
func cage() string {
	name := "meridian-" + lab.Name() + "-cage"
	if legacy() {
		return "/sys/fs/cgroup/memory/" + name
	}
	return "/sys/fs/cgroup/" + name
}

func legacy() bool {
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes")
	return err == nil
}

func limitFile() string {
	if legacy() {
		return "memory.limit_in_bytes"
	}
	return "memory.max"
}

// weathered wants that the daemon is the one it was and that what was there before the storm is as it was.
func weathered(t *testing.T) {
	t.Helper()
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	pid := lab.Node().Pid()
	bystander := lab.RunPod(t).Run("bystander", "exec clockwork pause")
	t.Cleanup(func() {
		sweep(t, bystander.Pod.ID)
		if got := bystander.Sh("echo alive"); got != "alive" || lab.Node().Pid() != pid {
			t.Errorf("the bystander says %q; the daemon is %d, was %d", got, lab.Node().Pid(), pid)
		}
		began := time.Now()
		probe := lab.RunPod(t)
		if got := probe.Run("probe", "exec clockwork pause").Sh("echo alive"); got != "alive" {
			t.Errorf("a good pod says %q", got)
		}
		probe.Remove()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a good pod took %s", took)
		}
		for _, name := range []string{"memory.max_usage_in_bytes", "memory.peak"} {
			if peak, err := os.ReadFile(filepath.Join(cage(), name)); err == nil {
				t.Logf("peak of the daemon's memory cgroup: %s bytes", strings.TrimSpace(string(peak)))
			}
		}
	})
}

// sweep removes every pod but one.
func sweep(t *testing.T, spared string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pods, err := lab.Node().ListPodSandbox(ctx, nil)
	if err != nil {
		t.Fatalf("the daemon does not answer: %v\n%s", err, lab.Node().Tail(20))
	}
	for _, pod := range pods {
		if pod.Id == spared {
			continue
		}
		if err := lab.Node().StopPodSandbox(ctx, pod.Id); err != nil {
			t.Errorf("StopPodSandbox %v: %v", pod.Metadata, err)
		}
		if err := lab.Node().RemovePodSandbox(ctx, pod.Id); err != nil {
			t.Errorf("RemovePodSandbox %v: %v", pod.Metadata, err)
		}
	}
}

// stranger is a connection of its own, as another client has it.
func stranger(t *testing.T) *client.Client {
	t.Helper()
	connection, err := client.Dial(lab.Context(t), lab.Node().Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(connection.Close)
	return connection
}
