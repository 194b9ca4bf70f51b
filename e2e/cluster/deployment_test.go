package main

import (
	"strings"
	"testing"
)

// The first thing anybody does with a cluster.
func TestDeployment(t *testing.T) {
	t.Parallel()
	apply(t, "deployment.yaml", "")
	call(t, "rollout", "status", "deployment/web", "--timeout=60s")
	nodes := strings.Fields(call(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"))
	wants(t, "nodes", strings.Join(nodes, " "), "a", "b")
	wants(t, "logs", call(t, "logs", "deployment/web"), "")

	// Every pod reaches the service, whichever node answers.
	address := field(t, "service/web", ".spec.clusterIP")
	for _, pod := range strings.Fields(call(t, "get", "pods", "-l", "app=web", "-o", "name")) {
		for range 4 {
			wants(t, "the service from "+pod, sh(t, pod, "wget -q -T 5 -O - http://"+address), "monotonic")
		}
	}

	call(t, "scale", "deployment/web", "--replicas=5")
	call(t, "rollout", "status", "deployment/web", "--timeout=60s")
	before := call(t, "get", "pods", "-l", "app=web", "-o", "name")
	call(t, "set", "env", "deployment/web", "COLOUR=blue")
	call(t, "rollout", "status", "deployment/web", "--timeout=60s")
	becomes(t, "5", "get", "deployment/web", "-o", "jsonpath={.status.updatedReplicas}")
	for _, pod := range strings.Fields(call(t, "get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o", "name")) {
		if !strings.Contains(before, pod) {
			equal(t, "environment of "+pod, sh(t, pod, "echo $COLOUR"), "blue")
		}
	}
	call(t, "rollout", "undo", "deployment/web")
	call(t, "rollout", "status", "deployment/web", "--timeout=60s")
}

func TestStatefulSet(t *testing.T) {
	t.Parallel()
	apply(t, "statefulset.yaml", "")
	call(t, "rollout", "status", "statefulset/store", "--timeout=60s")
	before := field(t, "pod/store-0", ".metadata.uid")
	equal(t, "hostname", sh(t, "store-0", "hostname"), "store-0")
	call(t, "delete", "pod", "store-0")
	call(t, "rollout", "status", "statefulset/store", "--timeout=60s")
	waitFor(t, "condition=Ready", "pod/store-0")
	equal(t, "hostname", sh(t, "store-0", "hostname"), "store-0")
	if after := field(t, "pod/store-0", ".metadata.uid"); after == before {
		t.Errorf("pod store-0 was not replaced: %s", after)
	}
	equal(t, "hostname of the other", sh(t, "store-1", "hostname -f | cut -d. -f1-2"), "store-1.store")
}

func TestDaemonSet(t *testing.T) {
	t.Parallel()
	apply(t, "daemonset.yaml", "")
	call(t, "rollout", "status", "daemonset/agent", "--timeout=60s")
	for _, pod := range strings.Fields(call(t, "get", "pods", "-l", "app=agent", "-o", "name")) {
		equal(t, "node of "+pod, sh(t, pod, "echo $NODE"), field(t, pod, ".spec.nodeName"))
	}
	becomes(t, "2", "get", "daemonset/agent", "-o", "jsonpath={.status.numberReady}")
}

func TestJobs(t *testing.T) {
	t.Parallel()
	apply(t, "jobs.yaml", "")
	waitFor(t, "condition=Complete", "job/good")
	wants(t, "logs", call(t, "logs", "job/good"), "done by good-")
	waitFor(t, "condition=Failed", "job/bad")
	wants(t, "logs", call(t, "logs", "job/bad"), "giving up")
	equal(t, "exit code", call(t, "get", "pods", "-l", "job-name=bad", "-o", "jsonpath={.items[0].status.containerStatuses[0].state.terminated.exitCode}"), "3")
}

func TestInitAndSidecar(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "init.yaml", node)
		pod := "init-" + node
		waitFor(t, "jsonpath={.status.phase}=Succeeded", "pod/"+pod)
		equal(t, "order", call(t, "logs", pod, "-c", "sidecar"), "first\nsidecar\nsecond\nmain\nmain ends")
	})
}
