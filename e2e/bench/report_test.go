package main

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
	"time"
)

func sampled() *report {
	r := newReport()
	for i := range 100 {
		r.sample("pod up", meridian, time.Duration(8+i/50)*time.Millisecond)
		r.sample("pod up", runc, 140*time.Millisecond)
		r.sample("pod up", crun, 110*time.Millisecond)
	}
	r.value("pods per second", meridian, 80)
	r.value("pods per second", crun, 12)
	r.value("PSS per pod, MB", meridian, 0.15)
	r.value("PSS per pod, MB", crun, 5.3)
	r.sample(frozen(64), meridian, 33*time.Millisecond)
	r.sample(frozen(64), plain, 30*time.Millisecond)
	r.sample(jump(64), meridian, 6*time.Millisecond)
	r.sample("CheckpointPod, 64 MiB", meridian, 40*time.Millisecond)
	return r
}

func TestFiguresAreComparedAndJudged(t *testing.T) {
	want := map[string]struct {
		ratio float64
		met   string
	}{
		"pod up":                {12.2, "met"},
		"pods per second":       {6.7, "missed"},
		"PSS per pod, MB":       {35.3, "met"},
		frozen(64):              {0.9, "met"},
		jump(64):                {0, "missed"},
		"CheckpointPod, 64 MiB": {0, ""},
	}
	for _, f := range sampled().figures() {
		w := want[f.What]
		if f.Ratio < w.ratio-0.1 || f.Ratio > w.ratio+0.1 {
			t.Errorf("%s: ratio %.2f, want %.1f", f.What, f.Ratio, w.ratio)
		}
		got := ""
		if f.Met != nil {
			got = map[bool]string{true: "met", false: "missed"}[*f.Met]
		}
		if got != w.met {
			t.Errorf("%s: %q, want %q", f.What, got, w.met)
		}
	}
}

func TestSummaryTakesOrderStatistics(t *testing.T) {
	got := summarise([]float64{5, 1, 4, 2, 3})
	if got != (Summary{5, 3, 5, 5}) {
		t.Errorf("got %+v", got)
	}
}

func TestChartIsWellFormedAndShowsEveryComparison(t *testing.T) {
	svg := chart(sampled().figures())
	decoder := xml.NewDecoder(strings.NewReader(string(svg)))
	for {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, word := range []string{"pod up", "pods per second", frozen(64), "12.2x"} {
		if !strings.Contains(string(svg), word) {
			t.Errorf("the chart lacks %q", word)
		}
	}
}
