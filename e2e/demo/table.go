package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"
)

// table prints what happened, and fails if the log shows a lost count or a clock that stepped back.
func (s *show) table() error {
	cut, err := s.cut()
	if err != nil {
		return err
	}
	heading("namespaces", "node a", "node b")
	for _, kind := range kinds {
		row(kind, s.source[kind], s.destination[kind])
	}
	heading("the pod's own log", "last line on a", "first line on b")
	row("counter", cut.last.Count, cut.first.Count)
	row("MONOTONIC", seconds(cut.last.Monotonic), seconds(cut.first.Monotonic))
	row("BOOTTIME", seconds(cut.last.Boottime), seconds(cut.first.Boottime))
	heading("between the two lines", "", "")
	row("real time", "", duration(cut.first.Realtime-cut.last.Realtime))
	row("MONOTONIC", "", duration(cut.first.Monotonic-cut.last.Monotonic)+" (the program sleeps 10 ms between lines)")
	row("BOOTTIME", "", duration(cut.first.Boottime-cut.last.Boottime))
	heading("phase", "took", "")
	for _, phase := range s.result.Phases {
		mark := ""
		if phase.Frozen {
			mark = "frozen"
		}
		row(phase.Role+" "+phase.Name, duration(phase.Duration), mark)
	}
	heading("result", "", "")
	row("downtime", duration(s.result.Downtime), "")
	row("clock jump, MONOTONIC", duration(s.result.MonotonicJump), "beyond the policy, measured at the release")
	row("clock jump, BOOTTIME", duration(s.result.BoottimeJump), "")
	row("moved", fmt.Sprintf("%.1f MiB", float64(s.result.Bytes)/(1<<20)), "")
	row("HTTP counter", s.before.Count, s.after.Count)
	fmt.Println()
	return nil
}

// cutLines are the last line the pod printed on node a and the first on node b.
type cutLines struct{ last, first answer }

// cut finds the move in the log: the largest step in real time. Everything else must be contiguous.
func (s *show) cut() (cutLines, error) {
	file, err := os.Open(s.logPath())
	if err != nil {
		return cutLines{}, err
	}
	defer file.Close()
	var cut cutLines
	var last *answer
	for lines := bufio.NewScanner(file); lines.Scan(); {
		now := &answer{}
		words := strings.SplitN(lines.Text(), " ", 4)
		if _, err := fmt.Sscan(words[len(words)-1], &now.Count, &now.Monotonic, &now.Boottime, &now.Realtime); err != nil {
			return cut, fmt.Errorf("the pod reports %q", lines.Text())
		}
		if last != nil {
			if now.Count != last.Count+1 || now.Monotonic < last.Monotonic || now.Boottime < last.Boottime {
				return cut, fmt.Errorf("the pod's log breaks between %+v and %+v", *last, *now)
			}
			if now.Realtime-last.Realtime > cut.first.Realtime-cut.last.Realtime {
				cut = cutLines{*last, *now}
			}
		}
		last = now
	}
	return cut, nil
}

func heading(left, middle, right string) {
	fmt.Printf("\n  %-24s %-22s %s\n  %s\n", left, middle, right, strings.Repeat("─", 70))
}

func row(left string, middle, right any) { fmt.Printf("  %-24s %-22v %v\n", left, middle, right) }

func seconds(ns int64) string { return fmt.Sprintf("%.6f s", float64(ns)/1e9) }

func duration(ns int64) string { return time.Duration(ns).Round(10 * time.Microsecond).String() }
