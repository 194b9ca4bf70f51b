package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listings is how often each list is asked for.
const listings = 200

// lists brings up a crowd of pods and asks for all of them at once, as the kubelet does every second (lists) and every
// ten (stats): how long its own client waits, and what the daemon computes. Peers are not asked: their pods take minutes.
func lists(ctx context.Context, b *bench) error {
	for _, c := range b.contenders {
		if c.name == meridian {
			return list(ctx, b, c)
		}
	}
	return nil
}

func list(ctx context.Context, b *bench, c *contender) (err error) {
	pods, err := many(ctx, c, b.crowd)
	defer func() { err = errors.Join(err, removeAll(ctx, pods)) }()
	if err != nil {
		return err
	}
	time.Sleep(6 * time.Second) // leftovers are given back every five
	b.report.value(fmt.Sprintf("daemon RSS at %d pods, MB", b.crowd), c.name, resident(c))
	for _, call := range []struct {
		name string
		ask  func(context.Context) (int, error)
	}{
		{"ListContainers", func(ctx context.Context) (int, error) {
			answer, err := c.client.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return len(answer.GetContainers()), err
		}},
		{"ListPodSandbox", func(ctx context.Context) (int, error) {
			answer, err := c.client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return len(answer.GetItems()), err
		}},
		{"ListContainerStats", func(ctx context.Context) (int, error) {
			answer, err := c.client.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return len(answer.GetStats()), err
		}},
		{"ListPodSandboxStats", func(ctx context.Context) (int, error) {
			answer, err := c.client.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return len(answer.GetStats()), err
		}},
	} {
		before := computed(c.daemon)
		for range listings {
			began := time.Now()
			count, err := call.ask(ctx)
			b.report.sample(fmt.Sprintf("%s of %d", call.name, b.crowd), c.name, time.Since(began))
			if err != nil || count != len(pods) {
				return fmt.Errorf("%s: %d of %d, %w", call.name, count, len(pods), err)
			}
		}
		spent := (computed(c.daemon) - before) / listings
		b.report.sample(fmt.Sprintf("daemon's CPU for %s of %d", call.name, b.crowd), c.name, spent)
	}
	b.report.value(fmt.Sprintf("daemon RSS after lists of %d pods, MB", b.crowd), c.name, resident(c))
	return nil
}

// computed is the processor time of a process's threads so far (Documentation/scheduler/sched-stats.rst). One that ended
// meanwhile is not counted: those that matter stay.
func computed(pid int) time.Duration {
	var sum int64
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, thread := range threads {
		text, _ := os.ReadFile(thread)
		if fields := strings.Fields(string(text)); len(fields) > 0 {
			nanoseconds, _ := strconv.ParseInt(fields[0], 10, 64)
			sum += nanoseconds
		}
	}
	return time.Duration(sum)
}
