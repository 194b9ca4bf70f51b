package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// contender is one runtime under measurement.
type contender struct {
	name, handler string
	client        *client.Client
	// logs is a directory that the runtime can write to.
	logs string
	// image is the id of the application's image.
	image string
	// cgroup is the parent of its pods' cgroups.
	cgroup string
	// daemon is the process id of the daemon.
	daemon int
}

const (
	meridian = "Meridian"
	runc     = "containerd runc"
	crun     = "containerd crun"
)

// stage is everything that runs for the benchmark.
type stage struct {
	directory, registry string
	node                *node.Node
	containerd          *exec.Cmd
	contenders          []*contender
}

// open starts the registry and both daemons, pulls the image into each and connects.
func open(ctx context.Context) (*stage, error) {
	s := &stage{}
	for _, step := range []func(context.Context) error{s.startRegistry, s.startMeridian, s.startContainerd} {
		if err := step(ctx); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *stage) startRegistry(context.Context) (err error) {
	if s.directory, err = os.MkdirTemp("", "meridian-bench-"); err != nil {
		return err
	}
	s.registry, err = lab.ServeImages("start", "bench")
	return err
}

func (s *stage) startMeridian(ctx context.Context) (err error) {
	if s.node, err = lab.NewNode("m", node.Options{Level: "info"}); err != nil {
		return err
	}
	if err := s.node.Start(ctx); err != nil {
		return err
	}
	return s.add(ctx, meridian, "", s.node.Client, filepath.Join(s.directory, "logs"), s.node.Pid())
}

func (s *stage) startContainerd(ctx context.Context) error {
	directory := filepath.Join(s.directory, "containerd")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(s.directory, "containerd.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.containerd = exec.Command(filepath.Join(node.Top(), "hack/containerd"), directory, s.registry)
	s.containerd.Stdout, s.containerd.Stderr = log, log
	s.containerd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.containerd.Start(); err != nil {
		return err
	}
	var connection *client.Client
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if connection, err = client.Dial(ctx, filepath.Join(directory, "containerd.sock")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("containerd: %w: %s", err, text)
		}
	}
	logs := filepath.Join(directory, "logs") // its root is another tree: only its own directory is common
	pid := s.containerd.Process.Pid
	return errors.Join(
		s.add(ctx, runc, "runc", connection, logs, pid),
		s.add(ctx, crun, "crun", connection, logs, pid))
}

func (s *stage) add(ctx context.Context, name, handler string, connection *client.Client, logs string, daemon int) error {
	image, err := connection.Pull(ctx, s.registry+"/meridian/clockwork:1")
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.contenders = append(s.contenders, &contender{name, handler, connection, logs, image, "/meridian-" + lab.Name() + "bench", daemon})
	return nil
}

func (s *stage) close() error {
	var errs []error
	if s.node != nil && s.node.Client != nil {
		errs = append(errs, s.node.Purge(context.Background()), s.node.Stop(), s.node.Discard())
	}
	if s.containerd != nil && s.containerd.Process != nil {
		_ = s.containerd.Process.Kill()
		_ = s.containerd.Wait()
	}
	if s.registry != "" {
		_, err := lab.ServeImages("stop", "bench")
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(s.directory))...)
}

// pod is one application that runs on a contender.
type pod struct {
	on            *contender
	id, container string
	config        *runtimeapi.PodSandboxConfig
}

// durations of the three calls that bring a pod up.
type durations struct{ sandbox, create, start time.Duration }

func (d durations) total() time.Duration { return d.sandbox + d.create + d.start }

// up brings up a pod with one container that runs the workload in a mode of its own.
func (c *contender) up(ctx context.Context, mode ...string) (*pod, durations, error) {
	config := client.Pod("bench-"+client.Unique()[:6], c.logs, func(config *runtimeapi.PodSandboxConfig) {
		config.Linux.CgroupParent = c.cgroup
	})
	p, taken := &pod{on: c, config: config}, durations{}
	began := time.Now()
	id, err := c.client.RunPodSandbox(ctx, config, c.handler)
	if err != nil {
		return nil, taken, fmt.Errorf("%s: RunPodSandbox: %w", c.name, err)
	}
	p.id, taken.sandbox = id, time.Since(began)
	container := client.Container(config, "app", c.image, append([]string{"clockwork"}, mode...))
	began = time.Now()
	if p.container, err = c.client.CreateContainer(ctx, id, container, config); err != nil {
		return p, taken, fmt.Errorf("%s: CreateContainer: %w", c.name, err)
	}
	taken.create, began = time.Since(began), time.Now()
	if err := c.client.StartContainer(ctx, p.container); err != nil {
		return p, taken, fmt.Errorf("%s: StartContainer: %w", c.name, err)
	}
	taken.start = time.Since(began)
	return p, taken, nil
}

// remove takes the pod down.
func (p *pod) remove(ctx context.Context) error {
	return errors.Join(p.on.client.StopPodSandbox(ctx, p.id), p.on.client.RemovePodSandbox(ctx, p.id))
}

// log is where the container's CRI log is.
func (p *pod) log() string { return filepath.Join(p.config.LogDirectory, "app_0.log") }
