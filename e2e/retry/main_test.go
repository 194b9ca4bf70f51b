// Package retry tests what a client relies on that gives up and asks again, or asks more than once at a time, as a kubelet
// does after a timeout or a restart: one object for one name, the same answer for the same question, and nobody who waits
// for an object he did not ask about.
package retry

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// gate is a file that keeps every CRIU waiting while it is there. Not in /run, where CRIU has its own.
func gate() string { return filepath.Join("/var/tmp", "meridian-"+lab.Name()+"-gate") }

func TestMain(m *testing.M) {
	lab.MainWith(m, func() node.Options {
		script := "while [ -e " + gate() + " ]; do sleep 0.1; done; exec \"$@\""
		return node.Options{CRIU: append([]string{"/bin/sh", "-c", script, "criu"}, criu()...)}
	})
}

// criu is the command that hack/install left.
func criu() (command []string) {
	text, _ := os.ReadFile(filepath.Join(node.Cache(), "criu/command.json"))
	_ = json.Unmarshal(text, &command) // the node says what is missing
	return command
}

// patient is a shell command line that counts the requests to stop it in its log and goes on.
const patient = "trap 'echo asked' TERM; echo started; while :; do sleep 0.05; done"

// chance is the same in every run unless MERIDIAN_SEED is another.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	seed, _ := strconv.ParseUint(os.Getenv("MERIDIAN_SEED"), 10, 64)
	t.Logf("MERIDIAN_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// atOnce calls a function many times at once.
func atOnce(times int, call func(int)) {
	var group sync.WaitGroup
	for i := range times {
		group.Go(func() { call(i) })
	}
	group.Wait()
}

// asked makes a call, gives it up after at most a while, and makes it again for as long as it takes.
func asked(t *testing.T, random *rand.Rand, what string, atMost time.Duration, call func(context.Context) error) {
	t.Helper()
	ctx, giveUp := context.WithTimeout(context.Background(), time.Duration(random.Int64N(int64(atMost))))
	_ = call(ctx)
	giveUp()
	if err := call(lab.Context(t)); err != nil {
		t.Fatalf("%s, asked again: %v", what, err)
	}
}

// sandboxes lists the pods of a name.
func sandboxes(t *testing.T, name string) []*runtimeapi.PodSandbox {
	t.Helper()
	filter := &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": name}}
	list, err := lab.Node().ListPodSandbox(lab.Context(t), filter)
	if err != nil {
		t.Fatalf("ListPodSandbox: %v", err)
	}
	return list
}

// containers lists the containers of a pod.
func containers(t *testing.T, pod string) []*runtimeapi.Container {
	t.Helper()
	list, err := lab.Node().ListContainers(lab.Context(t), &runtimeapi.ContainerFilter{PodSandboxId: pod})
	if err != nil {
		t.Fatalf("ListContainers: %v", err)
	}
	return list
}

// lines counts the lines of a CRI log that end in a text.
func lines(t *testing.T, path, text string) (count int) {
	t.Helper()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.HasSuffix(strings.TrimSpace(line), text) {
			count++
		}
	}
	return count
}

// within fails when a call takes longer.
func within(t *testing.T, limit time.Duration, what string, call func() error) {
	t.Helper()
	began := time.Now()
	if err := call(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if took := time.Since(began); took > limit {
		t.Errorf("%s took %s, want at most %s", what, took.Round(time.Millisecond), limit)
	}
}

// same fails unless all ids are one.
func same(t *testing.T, what string, ids []string) {
	t.Helper()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("%s: %s", what, fmt.Sprint(ids))
		}
	}
}
