// Demo runs Meridian's main job on one machine: two nodes, a pod of two containers, and its move from one to the other.
//
// Everything happens in a world of its own (package lab): when the program ends, by itself or by ^C, the kernel takes
// all of it away.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
	"meridian.dev/e2e/pair"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == fetchFlag {
		os.Exit(fetch(os.Args[2]))
	}
	lab.Run(func() (int, error) {
		ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer cancel()
		if err := demo(ctx); err != nil {
			return 1, err
		}
		return 0, nil
	})
}

// show is what the table at the end is made of.
type show struct {
	nodes  *pair.Pair
	logs   string
	config *runtimeapi.PodSandboxConfig
	pod    string
	ids    map[string]string

	source, destination map[string]string
	before, after       answer
	result              *pair.Result
}

func demo(ctx context.Context) (err error) {
	s := &show{ids: map[string]string{}}
	step("two nodes: a, and b whose clocks run %d s ahead", int(pair.Ahead.Seconds()))
	s.nodes, err = pair.Start(ctx, pair.Options{Level: "info"})
	defer func() {
		step("taking everything down")
		err = errors.Join(err, s.nodes.Stop(), os.RemoveAll(s.logs))
	}()
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{s.up, s.look, s.move, s.lookAgain} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return s.table()
}

// up pulls the image on node a and runs the pod there.
func (s *show) up(ctx context.Context) (err error) {
	if s.logs, err = os.MkdirTemp("", "meridian-demo-logs-"); err != nil {
		return err
	}
	reference := s.nodes.Reference("clockwork:1")
	step("node a pulls %s, made from Debian's busybox package", reference)
	image, err := s.nodes.A.Pull(ctx, reference)
	if err != nil {
		return err
	}
	step("node a runs pod \"clockwork\": container count (64 MiB of changing memory), container serve (HTTP)")
	s.config = client.Pod("clockwork", s.logs)
	if s.pod, err = s.nodes.A.RunPodSandbox(ctx, s.config, ""); err != nil {
		return err
	}
	for name, arguments := range map[string][]string{"count": {"count", "64"}, "serve": {"serve"}} {
		config := client.Container(s.config, name, image, nil, func(c *runtimeapi.ContainerConfig) { c.Args = arguments })
		id, err := s.nodes.A.CreateContainer(ctx, s.pod, config, s.config)
		if err != nil {
			return err
		}
		if err := s.nodes.A.StartContainer(ctx, id); err != nil {
			return err
		}
		s.ids[name] = id
	}
	return wait(ctx, 2*time.Second)
}

// look asks the pod on node a: an exec, its namespaces, its counter over HTTP.
func (s *show) look(ctx context.Context) (err error) {
	stdout, _, err := s.nodes.A.ExecSync(ctx, s.ids["count"], []string{"/bin/sh", "-c", "echo $(hostname), PID 1 is $(cat /proc/1/comm)"}, 5*time.Second)
	if err != nil {
		return err
	}
	step("exec into count: %s", strings.TrimSpace(string(stdout)))
	if s.source, err = inodes(ctx, s.nodes.A, s.ids["count"]); err != nil {
		return err
	}
	s.before, err = get(ctx, s.nodes.A, s.pod)
	return err
}

// move is the main job, with the command's own progress on the terminal.
func (s *show) move(ctx context.Context) error {
	step("meridian migrate %s --to %s", s.pod[:13], s.nodes.B.Peer)
	command := exec.CommandContext(ctx, node.Binary("meridian"), "--socket", s.nodes.A.Socket,
		"migrate", s.pod, "--to", s.nodes.B.Peer, "--output", "json")
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return fmt.Errorf("meridian migrate: %w\n%s", err, s.nodes.B.Tail(10))
	}
	s.result, err = pair.ParseResult(output)
	return err
}

// lookAgain asks the pod on node b the same questions.
func (s *show) lookAgain(ctx context.Context) error {
	if err := wait(ctx, time.Second); err != nil {
		return err
	}
	list, err := s.nodes.B.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: s.result.DestinationPod})
	if err != nil {
		return err
	}
	for _, c := range list {
		s.ids[c.Metadata.Name] = c.Id
	}
	if s.destination, err = inodes(ctx, s.nodes.B, s.ids["count"]); err != nil {
		return err
	}
	if s.after, err = get(ctx, s.nodes.B, s.result.DestinationPod); err != nil {
		return err
	}
	left, err := s.nodes.A.ListPodSandbox(ctx, nil)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("node a still has %v", left)
	}
	return err
}

// inodes reads a container's namespaces from inside.
func inodes(ctx context.Context, n *pair.Node, id string) (map[string]string, error) {
	found := map[string]string{}
	for _, kind := range kinds {
		stdout, _, err := n.ExecSync(ctx, id, []string{"/bin/readlink", "/proc/1/ns/" + kind}, 5*time.Second)
		if err != nil {
			return nil, err
		}
		found[kind] = strings.Trim(strings.TrimPrefix(strings.TrimSpace(string(stdout)), kind+":"), "[]")
	}
	return found, nil
}

var kinds = []string{"net", "ipc", "uts", "time", "mnt", "pid", "cgroup"}

// logPath is the CRI log that both nodes append to.
func (s *show) logPath() string { return filepath.Join(s.config.LogDirectory, "count_0.log") }

func wait(ctx context.Context, duration time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(duration):
		return nil
	}
}

var began = time.Now()

func step(format string, values ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, values...))
}
