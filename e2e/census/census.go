// Package census lists everything a node holds, so that a test can show that nothing was left behind.
//
// A Census is a set of lines, one per object: mounts, namespaces, network links, firewall rules, cgroups, processes,
// files and open descriptors. Objects are named so that the same state gives the same lines; two censuses are compared
// by Diff. It is meant for a process that lives in namespaces of its own (package lab): there, every object that
// appears was made by the node under test.
package census

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Scope says which node is counted.
type Scope struct {
	// Run and Root are the daemon's directories.
	Run, Root string
	// Cgroup is the directory below every cgroup hierarchy that holds the node's pods, without the leading slash.
	Cgroup string
	// Daemon is the daemon's process id; 0 leaves out its descriptors and memory maps.
	Daemon int
	// Temporary lists directories where nothing may be left.
	Temporary []string
}

// Census counts each line.
type Census map[string]int

// source lists the objects of one kind.
type source struct {
	kind string
	list func(Scope) ([]string, error)
}

var sources = []source{
	{"mount", mounts},
	{"namespace", namespaces},
	{"link", links},
	{"route", routes},
	{"firewall", firewall},
	{"cgroup", cgroups},
	{"process", processes},
	{"file", files},
	{"descriptor", descriptors},
	{"ipc", systemV},
}

// Take lists everything now. A kind that cannot be read is itself a line, so that it never passes unseen.
func Take(scope Scope) Census {
	census := Census{}
	for _, source := range sources {
		lines, err := source.list(scope)
		if err != nil {
			lines = append(lines, "unreadable: "+err.Error())
		}
		for _, line := range lines {
			census[source.kind+" "+line]++
		}
	}
	return census
}

// Diff lists what after has more ("+") or less ("-") than before.
func Diff(before, after Census) []string {
	var lines []string
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if delta := after[key] - before[key]; delta != 0 {
			lines = append(lines, fmt.Sprintf("%+d %s", delta, key))
		}
	}
	return lines
}

// Settle takes censuses until one equals before or patience runs out, and returns the last difference. The kernel
// destroys network namespaces and veths some 40 ms after their last user is gone, so a first look may be too early.
func Settle(before Census, scope Scope, patience time.Duration) []string {
	deadline := time.Now().Add(patience)
	for {
		diff := Diff(before, Take(scope))
		if len(diff) == 0 || time.Now().After(deadline) {
			return diff
		}
		time.Sleep(20 * time.Millisecond)
	}
}
