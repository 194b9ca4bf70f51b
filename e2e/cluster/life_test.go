package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func status(container, path string) string {
	return fmt.Sprintf("jsonpath={.status.containerStatuses[?(@.name==%q)]%s}", container, path)
}

// Probes of every kind, first those that succeed, then those that fail.
func TestProbes(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "probes.yaml", node)
		ready, sick := "ready-"+node, "sick-"+node
		waitFor(t, "condition=Ready", "pod/"+ready)
		for _, container := range []string{"exec", "slow", "http", "tcp"} {
			becomes(t, "1", "get", "pod", sick, "-o", status(container, ".restartCount"))
		}
		events := call(t, "get", "events", "--field-selector", "involvedObject.name="+sick, "-o", "jsonpath={.items[*].message}")
		wants(t, "events", events, "Liveness probe failed", "Startup probe failed", "timed out", "connection refused")

		// Not ready, and ready again, without a restart.
		sh(t, ready+"/exec", "rm /tmp/ready")
		waitFor(t, "condition=Ready=false", "pod/"+ready)
		sh(t, ready+"/exec", "touch /tmp/ready")
		waitFor(t, "condition=Ready", "pod/"+ready)
		for _, container := range []string{"exec", "http", "tcp", "grpc"} {
			equal(t, "restarts of "+container, call(t, "get", "pod", ready, "-o", status(container, ".restartCount")), "0")
		}
		// Sick, and restarted.
		sh(t, ready+"/exec", "touch /tmp/sick")
		becomes(t, "1", "get", "pod", ready, "-o", status("exec", ".restartCount"))
	})
}

func TestHooks(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		order := filepath.Join(apply(t, "hooks.yaml", node), "hooks-"+node, "order")
		hooked, stubborn := "hooks-"+node, "stubborn-"+node
		waitFor(t, "condition=Ready", "pod/"+hooked, "pod/"+stubborn)
		began := time.Now()
		call(t, "delete", "pod", hooked, stubborn)
		text, err := os.ReadFile(order)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "order", string(text), "started\nstopping\nstopped\nterm\n")
		if took := time.Since(began); took < 2*time.Second || took > 25*time.Second {
			t.Errorf("a pod with a grace of 2 s that does not heed SIGTERM went after %s", took)
		}
	})
}

func TestLogs(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "logs.yaml", node)
		pod := "logs-" + node
		waitFor(t, "condition=Ready", "pod/"+pod)
		first := call(t, "logs", pod, "-c", "once")
		wants(t, "both streams", first, "run ", "problem")
		wants(t, "timestamps", call(t, "logs", pod, "-c", "once", "--timestamps", "--tail=1"), time.Now().UTC().Format("2006-01-02T"))

		// Followed to the end, and read after a restart.
		follow := start(t, "logs", "--follow", pod, "-c", "once")
		defer follow.stop()
		follow.until("problem")
		sh(t, pod+"/once", "touch /tmp/end")
		follow.until("the end")
		becomes(t, "1", "get", "pod", pod, "-o", status("once", ".restartCount"))
		previous := call(t, "logs", "--previous", pod, "-c", "once")
		wants(t, "previous", previous, first, "the end")
		if now := call(t, "logs", pod, "-c", "once"); strings.Contains(now, first) {
			t.Errorf("the log after a restart is %q", now)
		}
		rotated(t, node, pod)
	})
}

// rotated follows a log over the kubelet's rotation: no line is lost or twice.
func rotated(t *testing.T, node, pod string) {
	follow := start(t, "logs", "--follow", "--tail=1", pod, "-c", "much")
	defer follow.stop()
	n := cluster.Node(node)
	pattern := fmt.Sprintf("%s/log/pods/default_%s_*/much/*", n.Dir, pod)
	for deadline := time.Now().Add(45 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if files, _ := filepath.Glob(pattern); len(files) > 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no log was rotated: %s", pattern)
		}
	}
	last := 0
	for range 500 {
		number, _ := strconv.Atoi(strings.Fields(follow.until("line "))[1])
		if last != 0 && number != last+1 {
			t.Fatalf("after line %d comes line %d", last, number)
		}
		last = number
	}
}

// What users see when something is wrong, in the words they search for.
func TestFailures(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "failures.yaml", node)
		pod := "failing-" + node
		for container, reason := range map[string]string{
			"missing": "ImagePullBackOff", "nowhere": "ImagePullBackOff", "never": "ErrImageNeverPull", "invalid": "InvalidImageName",
			"crash": "CrashLoopBackOff", "noconfig": "CreateContainerConfigError",
		} {
			becomes(t, reason, "get", "pod", pod, "-o", status(container, ".state.waiting.reason"))
		}
		equal(t, "exit code", call(t, "get", "pod", pod, "-o", status("crash", ".lastState.terminated.exitCode")), "7")
		becomes(t, "going down", "logs", pod, "-c", "crash")
		becomes(t, "find program /no/such/program: No such file", "get", "pod", pod, "-o", status("noprogram", ".state.waiting.message"))
		for _, message := range []string{"missing/manifests/1 does not exist", "Connection refused", "Back-off pulling image"} {
			becomes(t, message, "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
		}

		pod = "message-" + node
		waitFor(t, "jsonpath={.status.phase}=Failed", "pod/"+pod)
		equal(t, "message", call(t, "get", "pod", pod, "-o", status("written", ".state.terminated.message")), "because")
		equal(t, "message", call(t, "get", "pod", pod, "-o", status("logged", ".state.terminated.message")), "last words")
	})
}

// An urgent pod takes the room of a patient one.
func TestPriority(t *testing.T) {
	t.Parallel()
	capacity, err := strconv.Atoi(strings.TrimSuffix(field(t, "node/a", ".status.allocatable.memory"), "Ki"))
	if err != nil {
		t.Fatal(err)
	}
	most := fmt.Sprintf("%dKi", capacity*6/10)
	applyWith(t, "priority.yaml", "@most@", most)
	waitFor(t, "condition=Ready", "pod/patient")
	applyWith(t, "urgent.yaml", "@most@", most)
	waitFor(t, "condition=Ready", "pod/urgent")
	waitFor(t, "delete", "pod/patient")
}
