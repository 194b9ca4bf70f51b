package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// density brings up many pods and counts what the runtime needs for them: memory as PSS of every process that is not the
// application, the daemon's own growth included, and processes.
func density(ctx context.Context, b *bench) error {
	for _, c := range b.contenders {
		if err := dense(ctx, b, c); err != nil {
			return err
		}
	}
	return nil
}

func dense(ctx context.Context, b *bench, c *contender) (err error) {
	before := footprint(nil)
	pods, err := many(ctx, c, b.density)
	defer func() { err = errors.Join(err, removeAll(ctx, pods)) }()
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	applications, err := applications(ctx, pods)
	if err != nil {
		return err
	}
	after, count := footprint(applications), float64(len(pods))
	b.report.value("PSS per pod, MB", c.name, float64(after.pss-before.pss)/count/1e6)
	b.report.value("processes per pod", c.name, float64(after.processes-before.processes)/count)
	b.report.value("daemon RSS, MB", c.name, float64(statusBytes(c.daemon, "VmRSS:"))/1e6)
	for range 20 {
		began := time.Now()
		list, err := c.client.ListContainerStats(ctx, nil)
		if err != nil || len(list) != len(pods) {
			return fmt.Errorf("%s: ListContainerStats: %d of %d, %w", c.name, len(list), len(pods), err)
		}
		b.report.sample(fmt.Sprintf("ListContainerStats of %d", b.density), c.name, time.Since(began))
	}
	return nil
}

// applications are the process ids of the pods' own processes, as the runtimes tell them.
func applications(ctx context.Context, pods []*pod) (map[int]bool, error) {
	pids := map[int]bool{}
	for _, p := range pods {
		response, err := p.on.client.ContainerStatus(ctx, p.container, true)
		if err != nil {
			return nil, err
		}
		var info struct{ Pid int }
		if err := json.Unmarshal([]byte(response.Info["info"]), &info); err != nil || info.Pid == 0 {
			return nil, fmt.Errorf("%s: no pid in %q: %w", p.on.name, response.Info["info"], err)
		}
		pids[info.Pid] = true
	}
	return pids, nil
}

type use struct{ pss, processes int64 }

// footprint sums up this pid namespace without the benchmark itself and the processes named.
func footprint(without map[int]bool) use {
	var total use
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == 1 || pid == os.Getpid() || without[pid] {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil || len(text) == 0 {
			continue
		}
		total.pss += field(text, "Pss:")
		total.processes++
	}
	return total
}

func statusBytes(pid int, name string) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return field(text, name)
}

// field is a value in kB of a /proc file, in bytes.
func field(text []byte, name string) int64 {
	for line := range bytes.Lines(text) {
		if rest, ok := strings.CutPrefix(string(line), name); ok {
			kilobytes, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kilobytes * 1024
		}
	}
	return 0
}
