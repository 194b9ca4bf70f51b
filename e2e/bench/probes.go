package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	// probed is how many pods are probed, each by a client of its own.
	probed = 10
	// pace is how often each is: a hundred probes per second together.
	pace = 100 * time.Millisecond
)

// probes measures the processor time that an exec probe costs: what the daemon, its shims and everything they started
// used up while pods were probed a hundred times per second, by the number of probes. A runtime that cannot keep up gets
// as many as it answers.
func probes(ctx context.Context, b *bench) error {
	for _, c := range b.contenders {
		if err := probe(ctx, b, c); err != nil {
			return err
		}
	}
	return nil
}

func probe(ctx context.Context, b *bench, c *contender) (err error) {
	pods, err := many(ctx, c, probed)
	defer func() { err = errors.Join(err, removeAll(ctx, pods)) }()
	if err != nil {
		return err
	}
	applications, err := applications(ctx, pods)
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // what bringing them up left to do
	before, count := processorTime(applications), 0
	count, err = shower(ctx, b, c, pods)
	used := processorTime(applications) - before
	b.report.sample("CPU of an exec probe", c.name, used/time.Duration(max(count, 1)))
	return err
}

// shower probes every pod at its pace for as long as the settings say, and counts the answers.
func shower(ctx context.Context, b *bench, c *contender, pods []*pod) (count int, err error) {
	var group sync.WaitGroup
	var lock sync.Mutex
	end := time.Now().Add(b.probing)
	for i, p := range pods {
		group.Go(func() {
			time.Sleep(pace * time.Duration(i) / time.Duration(len(pods)))
			for next := time.Now(); next.Before(end); next = later(next.Add(pace)) {
				time.Sleep(time.Until(next))
				began := time.Now()
				_, _, failure := c.client.ExecSync(ctx, p.container, []string{"/bin/true"}, 10*time.Second)
				took := time.Since(began)
				lock.Lock()
				count++
				b.report.sample("ExecSync at 100 per second", c.name, took)
				if failure != nil {
					err = errors.Join(err, fmt.Errorf("%s: ExecSync: %w", c.name, failure))
				}
				lock.Unlock()
			}
		})
	}
	group.Wait()
	return count, err
}

// later is t, or now when t has passed: a probe that was late is not made up for.
func later(t time.Time) time.Time {
	if now := time.Now(); t.Before(now) {
		return now
	}
	return t
}

// processorTime sums up what the processes of this pid namespace and the children they waited for have used, without the
// benchmark itself and the processes named.
func processorTime(without map[int]bool) (used time.Duration) {
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && pid != 1 && pid != os.Getpid() && !without[pid] {
			used += processorTimeOf(pid)
		}
	}
	return used
}

// processorTimeOf is what a process and the children it waited for have used.
func processorTimeOf(pid int) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture we run on
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// After the name, which may hold anything: state is the first field, utime to cstime are 12 to 15 (proc(5)).
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return 0
	}
	var ticks int64
	for _, value := range fields[11:15] {
		used, _ := strconv.ParseInt(string(value), 10, 64)
		ticks += used
	}
	return time.Duration(ticks) * tick
}
