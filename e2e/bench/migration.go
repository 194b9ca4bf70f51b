package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/pair"
)

func downtime(size int) string { return fmt.Sprintf("downtime of a move, %d MiB", size) }
func jump(size int) string     { return fmt.Sprintf("clock jump of a move, %d MiB", size) }

// migrations moves a pod to and fro between two nodes whose clocks are 5,000,000 s apart. Its own tight loop over the
// clocks tells downtime (by REALTIME) and jump (by MONOTONIC and BOOTTIME, the larger).
func migrations(ctx context.Context, b *bench) (err error) {
	nodes, err := pair.Start(ctx, pair.Options{Level: "info"})
	defer func() { err = errors.Join(err, nodes.Stop()) }()
	if err != nil {
		return err
	}
	for _, size := range b.sizes {
		moves := b.moves
		if size > 64 {
			moves = max(2, b.moves/4) // each takes seconds
		}
		if err := migrate(ctx, b, nodes, size, moves); err != nil {
			return err
		}
	}
	return nil
}

func migrate(ctx context.Context, b *bench, nodes *pair.Pair, size, moves int) (err error) {
	logs, err := os.MkdirTemp("", "meridian-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(logs)
	at := nodes.A
	for _, n := range []*pair.Node{nodes.A, nodes.B} {
		if _, err := n.Pull(ctx, nodes.Reference("clockwork:1")); err != nil {
			return err
		}
	}
	image, err := at.Pull(ctx, nodes.Reference("clockwork:1"))
	if err != nil {
		return err
	}
	c := &contender{name: meridian, client: at.Client, logs: logs, image: image}
	p, _, err := c.up(ctx, "tight", fmt.Sprint(size))
	if err != nil {
		return err
	}
	id := p.id
	defer func() {
		err = errors.Join(err, at.StopPodSandbox(ctx, id), at.RemovePodSandbox(ctx, id))
	}()
	for range moves {
		watch, err := follow(ctx, at, id)
		if err != nil {
			return err
		}
		if err := watch.await("alive"); err != nil {
			return err
		}
		began := time.Now()
		result, err := nodes.Move(ctx, at, id)
		if err != nil {
			return err
		}
		b.report.sample(fmt.Sprintf("whole move, %d MiB", size), c.name, time.Since(began))
		from := watch.path
		at, id = nodes.Other(at), result.DestinationPod
		if watch.path, err = logOf(ctx, at, id); err != nil {
			return err
		}
		if watch.path != from {
			watch.seen = 0
		}
		gap, err := watch.gap()
		if err != nil {
			return err
		}
		b.report.sample(downtime(size), c.name, gap.Realtime)
		b.report.sample(jump(size), c.name, max(gap.Monotonic, gap.Boottime))
	}
	return nil
}

// follow returns a watcher of the pod's one container, past what it said so far.
func follow(ctx context.Context, n *pair.Node, id string) (*watcher, error) {
	path, err := logOf(ctx, n, id)
	w := &watcher{path: path, prefix: 4}
	w.seen = len(w.lines())
	return w, err
}

func logOf(ctx context.Context, n *pair.Node, id string) (string, error) {
	list, err := n.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: id})
	if err != nil || len(list) != 1 {
		return "", fmt.Errorf("containers of %s: %v, %w", id, list, err)
	}
	status, err := n.ContainerStatus(ctx, list[0].Id, false)
	if err != nil {
		return "", err
	}
	return filepath.Clean(status.Status.LogPath), nil
}
