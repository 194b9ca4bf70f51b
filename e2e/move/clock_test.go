package move

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/pair"
)

// agreement is how far the jump that Meridian reports may be from the one that the task saw, beside what the machine
// lets a task wait that could run.
const agreement = time.Millisecond

// jump is what one move did to the clocks, as the task saw it and as Meridian reported it, and the longest that this
// program itself had to wait for a processor meanwhile.
type jump struct {
	seen     pair.Gap
	reported *pair.Result
	busy     time.Duration
}

// Twenty moves to and fro between clocks 5,000,000 s apart, watched by a task that reads them in a tight loop.
func TestClocksDoNotJumpInTwentyMoves(t *testing.T) {
	// With a share like anybody else's: what it waits for a processor is then what this program waits as well.
	p := runChanged(t, nodes.A, nil, func(config *runtimeapi.ContainerConfig) {
		config.Linux.Resources.CpuShares = 1024
	}, container{"tight", []string{"tight"}})
	p.await("tight", "tight", 0)
	var jumps []jump
	for range 20 {
		jumps = append(jumps, p.watchedMove())
	}
	p.noFaults("tight")
	for i, j := range jumps {
		if err := j.check(); err != nil {
			t.Errorf("move %d: %v", i+1, err)
		}
	}
	t.Logf("jump seen: monotonic %s, boottime %s; downtime %s",
		distribution(jumps, func(j jump) time.Duration { return j.seen.Monotonic }),
		distribution(jumps, func(j jump) time.Duration { return j.seen.Boottime }),
		distribution(jumps, func(j jump) time.Duration { return time.Duration(j.reported.Downtime) }))
}

// With policy suspend BOOTTIME advances by the wall-clock gap, MONOTONIC by nothing.
func TestSuspendPolicyAdvancesBoottime(t *testing.T) {
	p := run(t, nodes.A, container{"tight", []string{"tight"}})
	p.await("tight", "tight", 0)
	j := p.watchedMove("--clock", "suspend")
	if off := j.seen.Boottime - j.seen.Realtime; off < -5*time.Millisecond || off > 5*time.Millisecond {
		t.Errorf("BOOTTIME advanced %s, the wall clock %s", j.seen.Boottime, j.seen.Realtime)
	}
	if j.seen.Monotonic > j.seen.Realtime/2 {
		t.Errorf("MONOTONIC advanced %s of %s", j.seen.Monotonic, j.seen.Realtime)
	}
	p.noFaults("tight")
}

// Proof that the tests above can see: a daemon that takes itself to be in the initial time namespace shifts the clocks.
func TestIgnoringOneOwnTimeNamespaceIsSeen(t *testing.T) {
	healthy := nodes
	if err := healthy.Stop(); err != nil {
		t.Fatal(err)
	}
	blind, err := pair.Start(context.Background(), pair.Options{Only: "b",
		Environment: []string{"MERIDIAN_FAULT=ignore-time-namespace"}})
	nodes = blind
	t.Cleanup(func() {
		stop := blind.Stop()
		nodes, err = pair.Start(context.Background(), pair.Options{})
		if err := errors.Join(stop, err); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	p := run(t, nodes.A, container{"tight", []string{"tight"}})
	t.Cleanup(p.remove)
	p.await("tight", "tight", 0)
	if _, err = nodes.Move(context.Background(), p.at, p.id()); err != nil {
		return // it noticed by itself: as good
	}
	p.at = nodes.B
	time.Sleep(time.Second)
	gaps := p.gaps(0)
	if len(p.faults("tight")) == 0 && len(gaps) > 0 && pair.Largest(gaps).Monotonic < time.Hour {
		t.Errorf("no fault and no jump was seen: %v", tail(p.lines("tight"), 5))
	}
}

// watchedMove moves the pod and waits until its tight loop has written down what it saw.
func (p *pod) watchedMove(arguments ...string) jump {
	p.t.Helper()
	from := len(p.lines("tight"))
	p.await("tight", "alive", from)
	from = len(p.lines("tight"))
	busy := watchProcessor()
	result := p.move(arguments...)
	p.await("tight", "alive", from)
	return jump{pair.Largest(p.gaps(from)), result, busy()}
}

// watchProcessor sleeps for a moment over and over; what it returns stops that and says by how much it woke too late at
// most: what lies between the release of a task and its first instruction on a busy machine is nobody's jump.
func watchProcessor() func() time.Duration {
	done, worst := make(chan struct{}), make(chan time.Duration)
	go func() {
		runtime.LockOSThread()
		var most time.Duration
		for pause := (unix.Timespec{Nsec: int64(time.Millisecond)}); ; {
			select {
			case <-done:
				worst <- most
				return
			default:
				began := time.Now()
				_ = unix.Nanosleep(&pause, nil)
				most = max(most, time.Since(began)-time.Millisecond)
			}
		}
	}()
	return func() time.Duration { close(done); return <-worst }
}

func (p *pod) gaps(from int) []pair.Gap {
	p.t.Helper()
	var gaps []pair.Gap
	for _, line := range p.lines("tight")[from:] {
		if strings.HasPrefix(line, "gap") {
			gap, err := pair.ParseGap(line)
			if err != nil {
				p.t.Fatal(err)
			}
			gaps = append(gaps, gap)
		}
	}
	return gaps
}

// check wants a jump that is not negative and that is the one reported.
func (j jump) check() error {
	var errs []error
	for _, clock := range []struct {
		name     string
		seen     time.Duration
		reported int64
	}{
		{"monotonic", j.seen.Monotonic, j.reported.MonotonicJump},
		{"boottime", j.seen.Boottime, j.reported.BoottimeJump},
	} {
		reported := time.Duration(clock.reported)
		if clock.seen < 0 || reported < 0 {
			errs = append(errs, fmt.Errorf("%s stepped back: seen %s, reported %s", clock.name, clock.seen, reported))
		}
		if off := clock.seen - reported; off < -agreement || off > agreement+j.busy {
			errs = append(errs, fmt.Errorf("%s jumped %s, reported %s, and tasks waited %s at most",
				clock.name, clock.seen, reported, j.busy))
		}
	}
	if downtime := time.Duration(j.reported.Downtime); j.seen.Realtime < downtime/2 {
		errs = append(errs, fmt.Errorf("downtime %s reported, the task saw %s", downtime, j.seen.Realtime))
	}
	return errors.Join(errs...)
}

// distribution prints p50, p99 and the largest.
func distribution(jumps []jump, of func(jump) time.Duration) string {
	var all []time.Duration
	for _, j := range jumps {
		all = append(all, of(j))
	}
	sort.Slice(all, func(i, k int) bool { return all[i] < all[k] })
	at := func(share float64) time.Duration { return all[min(len(all)-1, int(share*float64(len(all))))] }
	round := 10 * time.Microsecond
	return fmt.Sprintf("p50 %s p99 %s max %s", at(0.5).Round(round), at(0.99).Round(round), all[len(all)-1].Round(round))
}
