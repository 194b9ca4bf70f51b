package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Report is the part of ginkgo's JSON report that is read here.
type Report struct {
	RunTime     time.Duration
	SpecReports []Spec
}

// Spec is one spec of a report.
type Spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct{ Message string }
}

// The one spec that no stand-in image can satisfy: it names a digest that only the original image has.
const unreachable = "public image with digest should be pulled and removed"

func read(path string) (*Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var reports []Report
	if err := json.Unmarshal(text, &reports); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(reports) != 1 {
		return nil, errors.New(path + ": not the report of one suite")
	}
	return &reports[0], nil
}

// name is the spec's full text.
func (s *Spec) name() string {
	return strings.TrimPrefix(strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " "), "[k8s.io] ")
}

// counts reports whether the spec was asked for: not a benchmark, nor outside of -focus. What runs around the specs counts
// when it failed.
func (s *Spec) counts() bool {
	if s.LeafNodeType != "It" {
		return s.State == "failed"
	}
	return s.State != "skipped" || s.Failure.Message != ""
}

// excused reports whether the spec failed as it must without the original images.
func (s *Spec) excused() bool {
	return s.State == "failed" && strings.Contains(s.LeafNodeText, unreachable)
}

// print prints the report and returns how many specs failed without excuse.
func (r *Report) print(workers int) int {
	var passed, failed, excused, skipped int
	for _, spec := range r.SpecReports {
		if !spec.counts() {
			continue
		}
		word := "failed"
		switch {
		case spec.State == "passed":
			passed++
			continue
		case spec.State == "skipped":
			skipped++
			word = "skipped"
		case spec.excused():
			excused++
			word = "excused"
		default:
			failed++
		}
		reason, _, _ := strings.Cut(spec.Failure.Message, "\n")
		fmt.Printf("%s: %s: %s\n", word, spec.name(), reason)
	}
	fmt.Printf("critest, %d at a time: %d passed, %d failed, %d excused, %d skipped, in %.0f s\n",
		workers, passed, failed, excused, skipped, r.RunTime.Seconds())
	return failed
}
