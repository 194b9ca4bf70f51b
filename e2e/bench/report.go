package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"meridian.dev/e2e/node"
)

// report gathers samples by what was measured and on whom.
type report struct {
	order    []string
	unit     map[string]string
	samples  map[string]map[string][]float64
	Failures []string
}

func newReport() *report {
	return &report{unit: map[string]string{}, samples: map[string]map[string][]float64{}}
}

// sample adds a duration, kept in milliseconds. A nil report takes none: a warm-up.
func (r *report) sample(what, who string, duration time.Duration) {
	if r != nil {
		r.add(what, who, "ms", float64(duration)/1e6)
	}
}

// value adds a figure whose unit is in its name.
func (r *report) value(what, who string, value float64) { r.add(what, who, "", value) }

func (r *report) add(what, who, unit string, value float64) {
	if r.samples[what] == nil {
		r.order = append(r.order, what)
		r.unit[what] = unit
		r.samples[what] = map[string][]float64{}
	}
	r.samples[what][who] = append(r.samples[what][who], value)
}

// Figure is one line of the result.
type Figure struct {
	What string `json:"what"`
	// Unit is "ms" or empty, where the name tells it.
	Unit string             `json:"unit,omitempty"`
	Of   map[string]Summary `json:"of"`
	// Ratio is the reference's median by Meridian's, turned so that more is better; the reference is named.
	Ratio     float64 `json:"ratio,omitempty"`
	Reference string  `json:"reference,omitempty"`
	// Goal is the ratio, or for memory and clocks the figure, that issues 3 and 4 ask for.
	Goal string `json:"goal,omitempty"`
	Met  *bool  `json:"met,omitempty"`
}

// Summary is what samples come down to.
type Summary struct {
	Count int     `json:"n"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

func summarise(samples []float64) Summary {
	all := slices.Clone(samples)
	slices.Sort(all)
	at := func(share float64) float64 { return all[min(len(all)-1, int(share*float64(len(all))))] }
	return Summary{len(all), at(0.5), at(0.99), all[len(all)-1]}
}

// moreIsBetter tells throughput from everything else.
func moreIsBetter(what string) bool {
	return what == "pods per second" || strings.HasSuffix(what, ", MB/s")
}

func (r *report) figures() []Figure {
	var figures []Figure
	for _, what := range r.order {
		f := Figure{What: what, Unit: r.unit[what], Of: map[string]Summary{}}
		for who, samples := range r.samples[what] {
			f.Of[who] = summarise(samples)
		}
		f.compare()
		f.judge()
		figures = append(figures, f)
	}
	return figures
}

func (f *Figure) compare() {
	mine, ok := f.Of[meridian]
	if !ok {
		return
	}
	for _, reference := range []string{crun, plain, runc} {
		if theirs, ok := f.Of[reference]; ok && mine.P50 > 0 && theirs.P50 > 0 {
			f.Reference, f.Ratio = reference, theirs.P50/mine.P50
			if moreIsBetter(f.What) {
				f.Ratio = 1 / f.Ratio
			}
			return
		}
	}
}

// judge compares with the goals of issues 3, 4 and 6.
func (f *Figure) judge() {
	mine, ok := f.Of[meridian]
	if !ok {
		return
	}
	ratio := func(least float64) { f.set(fmt.Sprintf("%.3gx", least), f.Ratio >= least) }
	switch {
	case slices.Contains([]string{"pod up", "ExecSync", "CPU of an exec probe", "StopPodSandbox", "pods per second"}, f.What):
		ratio(8)
	case strings.Contains(f.What, "of a Deployment"), strings.HasPrefix(f.What, "CPU of kubelet and runtime"):
		ratio(2)
	case f.What == "PSS per pod, MB":
		f.set("<= 0.2 MB", mine.P50 <= 0.2)
	case strings.HasPrefix(f.What, "pull of "):
		ratio(2)
	case strings.HasPrefix(f.What, "exec over "):
		f.set(">= 400 MB/s", mine.P50 >= 400)
	case f.What == pullPeak:
		f.set("< 150 MB", mine.Max < 150)
	case f.What == "processes per pod":
		f.set("<= 1", mine.P50 <= 1)
	case strings.HasPrefix(f.What, "daemon RSS at "), strings.HasPrefix(f.What, "daemon RSS after "):
		f.set("<= 60 MB", mine.P50 <= 60)
	case strings.HasPrefix(f.What, "ListContainers of "), strings.HasPrefix(f.What, "ListPodSandbox of "):
		f.set("<= 3 ms", mine.P50 <= 3)
	case strings.HasPrefix(f.What, "ListContainerStats of "), strings.HasPrefix(f.What, "ListPodSandboxStats of "):
		f.set("<= 25 ms", mine.P50 <= 25)
	case strings.HasPrefix(f.What, "frozen for a checkpoint"):
		f.set("<= 1.15x plain", f.Ratio >= 1/1.15)
	case f.What == jump(64):
		f.set("1, 5, 5 ms", mine.P50 <= 1 && mine.P99 <= 5 && mine.Max <= 5)
	}
}

func (f *Figure) set(goal string, met bool) { f.Goal, f.Met = goal, &met }

// write prints the table and leaves it, the JSON and the chart in bench/results, under a name.
func (r *report) write(name string) error {
	directory := filepath.Join(node.Top(), "bench/results")
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	figures := r.figures()
	text := table(figures)
	fmt.Print(text)
	document, err := json.MarshalIndent(map[string]any{
		"when": time.Now().UTC().Format(time.RFC3339), "kernel": kernel(), "cpus": runtime.NumCPU(),
		"figures": figures, "failures": r.Failures,
	}, "", "  ")
	if err != nil {
		return err
	}
	for suffix, content := range map[string][]byte{".json": document, ".txt": []byte(text), ".svg": chart(figures)} {
		if err := os.WriteFile(filepath.Join(directory, name+suffix), content, 0o644); err != nil {
			return err
		}
	}
	say("written to %s", directory)
	return nil
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text))
}

func table(figures []Figure) string {
	var text strings.Builder
	fmt.Fprintf(&text, "kernel %s, %d CPUs; medians, with p99 after a slash; times in ms\n\n", kernel(), runtime.NumCPU())
	writer := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	who := []string{meridian, runc, crun, plain}
	fmt.Fprintf(writer, "\t%s\tratio\tgoal\t\t\n", strings.Join(who, "\t"))
	for _, f := range figures {
		fmt.Fprintf(writer, "%s\t", f.What)
		for _, name := range who {
			fmt.Fprintf(writer, "%s\t", f.Of[name])
		}
		ratio, verdict := "", ""
		if f.Ratio > 0 {
			ratio = fmt.Sprintf("%.2fx", f.Ratio)
		}
		if f.Met != nil {
			verdict = map[bool]string{true: "met", false: "MISSED"}[*f.Met]
		}
		fmt.Fprintf(writer, "%s\t%s\t%s\t\n", ratio, f.Goal, verdict)
	}
	_ = writer.Flush()
	return text.String()
}

// String is the median, and the 99th percentile where there are enough samples for one.
func (s Summary) String() string {
	switch {
	case s.Count == 0:
		return ""
	case s.Count < 10:
		return short(s.P50)
	}
	return short(s.P50) + " / " + short(s.P99)
}

func short(value float64) string {
	switch {
	case value >= 100:
		return fmt.Sprintf("%.0f", value)
	case value >= 1:
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf("%.3f", value)
}
