package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// lifecycle measures one pod at a time, from nothing to nothing, the contenders taking turns.
func lifecycle(ctx context.Context, b *bench) error {
	for _, c := range b.contenders { // once unmeasured: caches, first-use set-up
		if err := once(ctx, b, c, nil); err != nil {
			return err
		}
	}
	for i := range b.pods {
		for turn := range b.contenders {
			c := b.contenders[(i+turn)%len(b.contenders)]
			if err := once(ctx, b, c, b.report); err != nil {
				return err
			}
		}
	}
	return nil
}

func once(ctx context.Context, b *bench, c *contender, r *report) error {
	p, taken, err := c.up(ctx, "pause")
	if err != nil {
		return err
	}
	r.sample("pod up", c.name, taken.total())
	r.sample("RunPodSandbox", c.name, taken.sandbox)
	r.sample("CreateContainer", c.name, taken.create)
	r.sample("StartContainer", c.name, taken.start)
	for range b.execs {
		began := time.Now()
		if _, _, err := c.client.ExecSync(ctx, p.container, []string{"/bin/true"}, 10*time.Second); err != nil {
			return fmt.Errorf("%s: ExecSync: %w", c.name, err)
		}
		r.sample("ExecSync", c.name, time.Since(began))
	}
	for _, step := range []struct {
		name string
		call func() error
	}{
		{"StopContainer", func() error { return c.client.StopContainer(ctx, p.container, 10) }},
		{"RemoveContainer", func() error { return c.client.RemoveContainer(ctx, p.container) }},
		{"StopPodSandbox", func() error { return c.client.StopPodSandbox(ctx, p.id) }},
		{"RemovePodSandbox", func() error { return c.client.RemovePodSandbox(ctx, p.id) }},
	} {
		began := time.Now()
		if err := step.call(); err != nil {
			return fmt.Errorf("%s: %s: %w", c.name, step.name, err)
		}
		r.sample(step.name, c.name, time.Since(began))
	}
	return nil
}

// workers is how many pods are brought up at the same time.
const workers = 10

// concurrency measures how many pods per second come up, ten at a time.
func concurrency(ctx context.Context, b *bench) error {
	for round := range b.rounds {
		for turn := range b.contenders {
			c := b.contenders[(round+turn)%len(b.contenders)]
			began := time.Now()
			pods, err := many(ctx, c, b.concurrent)
			took := time.Since(began)
			err = errors.Join(err, removeAll(ctx, pods))
			if err != nil {
				return err
			}
			b.report.value("pods per second", c.name, float64(b.concurrent)/took.Seconds())
		}
	}
	return nil
}

// many brings up count pods, some at the same time.
func many(ctx context.Context, c *contender, count int) ([]*pod, error) {
	type outcome struct {
		pod *pod
		err error
	}
	tickets, outcomes := make(chan struct{}, count), make(chan outcome)
	for range count {
		tickets <- struct{}{}
	}
	close(tickets)
	for range workers {
		go func() {
			for range tickets {
				p, _, err := c.up(ctx, "pause")
				outcomes <- outcome{p, err}
			}
		}()
	}
	var pods []*pod
	var errs []error
	for range count {
		o := <-outcomes
		if o.pod != nil {
			pods = append(pods, o.pod)
		}
		errs = append(errs, o.err)
	}
	return pods, errors.Join(errs...)
}

func removeAll(ctx context.Context, pods []*pod) error {
	errs := make(chan error)
	queue := make(chan *pod)
	for range workers {
		go func() {
			for p := range queue {
				errs <- p.remove(ctx)
			}
		}()
	}
	go func() {
		for _, p := range pods {
			queue <- p
		}
		close(queue)
	}()
	var all []error
	for range pods {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}
