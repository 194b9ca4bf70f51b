// The benchmark: Meridian beside containerd with runc and with crun, through the same client, in one run, alternating.
//
//	bench [-quick] [-only PART,...]     parts: lifecycle, probes, concurrency, density, lists, growth, checkpoint, migration, pull,
//	                                    streaming; cluster, which wants Kubernetes and runs only when named
//
// Everything runs in a world of its own (package lab), so the network is the same for all and nothing else is counted.
// Each figure is taken from outside: by the client's clock, from /proc, or by a task that reads its own clocks in a tight
// loop. Results go to bench/results: latest.json with every sample's summary, latest.txt and latest.svg
// (cluster.* when only that part ran).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"meridian.dev/e2e/kube"
	"meridian.dev/e2e/lab"
)

// settings scale the run.
type settings struct {
	pods, execs, density, concurrent, rounds, moves, layer int
	sizes                                                  []int
	probing                                                time.Duration
	crowd, crowds                                          int
	streamed                                               int // MiB
}

var (
	full  = settings{pods: 60, execs: 3, density: 50, concurrent: 60, rounds: 3, moves: 20, layer: 128, sizes: []int{8, 64, 512}, probing: 10 * time.Second, crowd: 500, crowds: 10, streamed: 2048}
	quick = settings{pods: 8, execs: 2, density: 10, concurrent: 20, rounds: 1, moves: 4, layer: 16, sizes: []int{8, 64}, probing: 3 * time.Second, crowd: 50, crowds: 2, streamed: 512}
)

// part is one section of the benchmark.
type part struct {
	name string
	run  func(context.Context, *bench) error
	// named: runs only when asked for.
	named bool
}

var parts = []part{
	{name: "lifecycle", run: lifecycle},
	{name: "probes", run: probes},
	{name: "concurrency", run: concurrency},
	{name: "density", run: density},
	{name: "lists", run: lists},
	{name: "growth", run: growth},
	{name: "checkpoint", run: checkpoints},
	{name: "migration", run: migrations},
	{name: "pull", run: pulls},
	{name: "streaming", run: streaming},
	{name: "cluster", run: clusters, named: true},
}

// bench is a run under way.
type bench struct {
	settings
	contenders []*contender
	report     *report
	registry   string
}

func main() {
	kube.Boot()
	short := flag.Bool("quick", false, "few samples: shows that it works")
	only := flag.String("only", "", "comma-separated parts to run")
	flag.Parse()
	lab.Run(func() (int, error) {
		scale := full
		if *short {
			scale = quick
		}
		if err := measure(scale, strings.FieldsFunc(*only, func(r rune) bool { return r == ',' })); err != nil {
			return 1, err
		}
		return 0, nil
	})
}

func measure(scale settings, only []string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	stage, err := open(ctx)
	defer func() { err = errors.Join(err, stage.close()) }()
	if err != nil {
		return err
	}
	b := &bench{settings: scale, contenders: stage.contenders, report: newReport(), registry: stage.registry}
	for _, part := range parts {
		if !slices.Contains(only, part.name) && (len(only) > 0 || part.named) {
			continue
		}
		say("%s", part.name)
		began := time.Now()
		if err := part.run(ctx, b); err != nil {
			// One part that fails must not hide the figures of the others; the run fails all the same.
			say("%s failed: %v", part.name, err)
			b.report.Failures = append(b.report.Failures, part.name+": "+err.Error())
		}
		say("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
	name := "latest"
	if slices.Equal(only, []string{"cluster"}) {
		name = "cluster"
	}
	if err := b.report.write(name); err != nil {
		return err
	}
	if len(b.report.Failures) > 0 {
		return fmt.Errorf("%d parts failed", len(b.report.Failures))
	}
	return nil
}

func say(format string, values ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", values...)
}
