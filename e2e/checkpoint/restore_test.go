package checkpoint

import (
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// Two containers are written down and go on as another pod: memory, shared memory, files, hostname, clocks.
func TestPodIsRestoredAsAnotherPod(t *testing.T) {
	lab.Clean(t, lab.Node())
	s := run(t, []string{"count", "8"}, []string{"serve"})
	await(t, s.Config, "8", "30 ", 0)
	s.containers[0].Sh("echo kept > /root/note; rm /etc/group")
	directory := s.checkpoint()
	s.keepsCounting("8")

	r := s.restore(directory)
	for name := range r.ids {
		if state := r.state(name); state != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Errorf("%s is %s before StartContainer", name, state)
		}
	}
	time.Sleep(300 * time.Millisecond)
	if printed := lines(r.config, "8"); len(printed) != 0 {
		t.Errorf("the restored process ran before StartContainer: %v", printed)
	}
	r.start("8", "serve")
	await(t, r.config, "8", "", 20)

	all := counts(t, r.config, "8")
	for i, now := range all[1:] {
		if last := all[i]; now[0] != last[0]+1 || now[1] < last[1] || now[2] < last[2] {
			t.Errorf("%v follows %v", now, last)
		}
	}
	original := counts(t, s.Config, "8")
	cut := original[all[0][0]-1] // the last line before the cut: the counter counts from 0, a line each
	if cut[0]+1 != all[0][0] {
		t.Fatalf("restored at %d, but the original counted %d before", all[0][0], cut[0])
	}
	for clock, name := range map[int]string{1: "MONOTONIC", 2: "BOOTTIME"} {
		if gap := time.Duration(all[0][clock] - cut[clock]); gap < 0 || gap > 100*time.Millisecond {
			t.Errorf("%s went on by %s over the restore", name, gap)
		}
	}
	if note := r.sh("8", "cat /root/note; test -e /etc/group || echo gone"); note != "kept\ngone" {
		t.Errorf("root filesystem: %q", note)
	}
	if host := r.sh("serve", "hostname"); host != r.config.Hostname {
		t.Errorf("hostname %q, the request said %q", host, r.config.Hostname)
	}
	if same := r.sh("8", "readlink /proc/1/ns/time"); same != r.sh("serve", "readlink /proc/1/ns/time") {
		t.Error("the containers' time namespaces differ")
	}
	served := r.sh("serve", `printf 'GET / HTTP/1.0\r\n\r\n' | nc 127.0.0.1 8080`)
	if !strings.Contains(served, `"count":`) {
		t.Errorf("the restored server answers %q", served)
	}
	s.keepsCounting("8")
}

// The cut is one instant: a restored question and answer agree.
func TestCutIsConsistent(t *testing.T) {
	s := run(t, []string{"pair", "ask"}, []string{"pair", "answer"})
	await(t, s.Config, "ask", "agree", 0)
	for round := range 3 {
		r := s.restore(s.checkpoint())
		r.start("ask", "answer")
		await(t, r.config, "ask", "agree", 0)
		for _, name := range []string{"ask", "answer"} {
			for _, line := range append(lines(r.config, name), lines(s.Config, name)...) {
				if strings.HasPrefix(line, "DISAGREE") {
					t.Fatalf("round %d, %s: %s", round, name, line)
				}
			}
		}
	}
}

// One checkpoint may become several pods, each with its own identity.
func TestSeveralPodsFromOneCheckpoint(t *testing.T) {
	s := run(t, []string{"count"})
	await(t, s.Config, "count", "10 ", 0)
	directory := s.checkpoint()
	first, second := s.restore(directory), s.restore(directory)
	first.start("count")
	second.start("count")
	await(t, first.config, "count", "", 10)
	await(t, second.config, "count", "", 10)
	if a, b := first.sh("count", "readlink /proc/1/ns/net"), second.sh("count", "readlink /proc/1/ns/net"); a == b {
		t.Errorf("both pods are in %s", a)
	}
}

// A restored pod can be written down and restored again.
func TestCheckpointOfARestoredPod(t *testing.T) {
	s := run(t, []string{"count", "4"})
	await(t, s.Config, "4", "10 ", 0)
	r := s.restore(s.checkpoint())
	r.start("4")
	await(t, r.config, "4", "", 10)
	directory := t.TempDir()
	if _, err := lab.Node().Runtime.CheckpointPod(lab.Context(t), &runtimeapi.CheckpointPodRequest{
		PodSandboxId: r.id, OutputPath: directory, ContainerIds: []string{r.ids["4"]}}); err != nil {
		t.Fatal(err)
	}
	again := s.restore(directory)
	again.start("4")
	await(t, again.config, "4", "", 10)
	if a, b := counts(t, r.config, "4"), counts(t, again.config, "4"); b[0][0] < a[0][0] {
		t.Errorf("the second generation began at %d, the first at %d", b[0][0], a[0][0])
	}
}

// What the request says must be what was written down.
func TestRestoreRefusesAnotherProcess(t *testing.T) {
	s := run(t, []string{"count"})
	await(t, s.Config, "count", "5 ", 0)
	directory := s.checkpoint()
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"image":   func(c *runtimeapi.ContainerConfig) { c.Image.Image = lab.Image(t, "pause:1") },
		"command": func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/bin/other"} },
		"args":    func(c *runtimeapi.ContainerConfig) { c.Args = append(c.Args, "1") },
		"env":     func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "NEW", Value: []byte("1")}} },
		"working_dir": func(c *runtimeapi.ContainerConfig) {
			c.WorkingDir = "/tmp"
		},
		"user": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		},
		"name": func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			lab.Clean(t, lab.Node())
			configs := s.configs()
			change(configs[0])
			_, err := restore(t, directory, s.anotherPod("refused"), configs)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), name) {
				t.Errorf("error %q does not name %s", err, name)
			}
		})
	}
	t.Run("missing container", func(t *testing.T) {
		lab.Clean(t, lab.Node())
		if _, err := restore(t, directory, s.anotherPod("refused"), nil); err == nil {
			t.Fatal("accepted")
		}
	})
	s.keepsCounting("count")
}
