package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/census"
	"meridian.dev/e2e/kube"
	"meridian.dev/e2e/lab"
)

// cluster is what all tests share: node a with the release's feature gates, node b with every one that asks more of CRI.
var cluster *kube.Cluster

var gates = map[string]bool{"EventedPLEG": true, "CRIListStreaming": true, "PodAndContainerStatsFromCRI": true}

func TestMain(m *testing.M) {
	kube.Boot()
	lab.Run(func() (int, error) {
		if lab.Listing() {
			return m.Run(), nil
		}
		return inside(m)
	})
}

// inside runs the tests in a cluster and wants the world as it was before.
func inside(m *testing.M) (code int, err error) {
	if err := kube.Warm(); err != nil {
		return 1, err
	}
	before := census.Take(scope())
	cluster, err = kube.Start(context.Background(), kube.Options{Nodes: []kube.NodeOptions{{Name: "a"}, {Name: "b", Gates: gates}}, Level: os.Getenv("MERIDIAN_LAB_LOG"), Progress: func(step string) { say("%s", step) }})
	if err == nil {
		code = m.Run()
	}
	if code != 0 || err != nil {
		keep := filepath.Join(os.TempDir(), "meridian-"+lab.Name()+"-cluster")
		if copied := os.CopyFS(keep, os.DirFS(cluster.Logs())); copied == nil {
			fmt.Fprintln(os.Stderr, "the cluster's logs are in", keep)
		}
	}
	err = errors.Join(err, cluster.Stop())
	for _, line := range census.Settle(before, scope(), 5*time.Second) {
		err = errors.Join(err, errors.New("left behind: "+line))
	}
	return code, err
}

// onEach runs a test on both nodes: they have different feature gates.
func onEach(t *testing.T, test func(t *testing.T, node string)) {
	t.Parallel()
	for _, n := range cluster.Nodes {
		t.Run(n.Name, func(t *testing.T) {
			t.Parallel()
			test(t, n.Name)
		})
	}
}

// apply creates what a manifest of testdata describes, for a node where it says @node@, and deletes it after the test.
// Returned is the directory on the machine that is @scratch@ in it.
func apply(t *testing.T, manifest, node string) string {
	t.Helper()
	scratch := t.TempDir()
	applyWith(t, manifest, "@node@", node, "@scratch@", scratch, "@kubernetes@", filepath.Dir(kube.Binary("etcd")))
	return scratch
}

// applyWith is apply with words of its own replaced: pairs of old and new.
func applyWith(t *testing.T, manifest string, words ...string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", manifest))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(words...).Replace(string(raw))
	t.Cleanup(func() {
		if _, err := cluster.KubectlWith(context.Background(), text, "delete", "--ignore-not-found", "--wait", "--timeout=60s", "-f", "-"); err != nil {
			t.Error(err)
		}
	})
	if _, err := cluster.KubectlWith(lab.Context(t), text, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// call runs kubectl and returns its standard output without the last line feed.
func call(t *testing.T, arguments ...string) string {
	t.Helper()
	output, err := cluster.Kubectl(lab.Context(t), arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(output, "\n")
}

// fails wants an error from kubectl that says all the words.
func fails(t *testing.T, words []string, arguments ...string) {
	t.Helper()
	_, err := cluster.Kubectl(lab.Context(t), arguments...)
	if err == nil {
		t.Errorf("kubectl %v did not fail", arguments)
		return
	}
	wants(t, fmt.Sprint(arguments), err.Error(), words...)
}

// sh runs a shell command line in a container: "pod" or "pod/container".
func sh(t *testing.T, where, script string) string {
	t.Helper()
	pod, container, named := strings.Cut(strings.TrimPrefix(where, "pod/"), "/")
	arguments := []string{"exec", pod, "--", "sh", "-c", script}
	if named {
		arguments = []string{"exec", pod, "-c", container, "--", "sh", "-c", script}
	}
	return call(t, arguments...)
}

// field is one value of an object, by JSONPath.
func field(t *testing.T, object, path string) string {
	t.Helper()
	return call(t, "get", object, "-o", "jsonpath={"+path+"}")
}

// waitFor waits until objects have a condition, as `kubectl wait` does.
func waitFor(t *testing.T, condition string, objects ...string) {
	t.Helper()
	_, err := cluster.Kubectl(lab.Context(t), append([]string{"wait", "--timeout=60s", "--for=" + condition}, objects...)...)
	if err != nil {
		described, _ := cluster.Kubectl(lab.Context(t), append([]string{"describe"}, objects...)...)
		t.Fatalf("%v\n%s", err, described)
	}
}

// becomes polls a call until its output is as wanted.
func becomes(t *testing.T, want string, arguments ...string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(45 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		var err error
		if last, err = cluster.Kubectl(lab.Context(t), arguments...); err == nil && strings.Contains(last, want) {
			return
		}
	}
	t.Fatalf("kubectl %v never said %q, but %q", arguments, want, last)
}

// wants wants all words in a text.
func wants(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s: %q does not say %q", what, text, word)
		}
	}
}

// equal wants one text to be another.
func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
