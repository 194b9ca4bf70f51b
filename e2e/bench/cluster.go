package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"meridian.dev/e2e/kube"
)

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %[1]s}
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers:
      - name: app
        image: registry.example/meridian/clockwork:1
        args: [pause]
%[3]s`

const probed1s = "        livenessProbe: {exec: {command: [/bin/true]}, periodSeconds: 1, timeoutSeconds: 30}\n"

// machines are the cluster's nodes: alike but for the runtime.
var machines = []struct {
	who  string
	node kube.NodeOptions
}{
	{meridian, kube.NodeOptions{Name: "m"}},
	{runc, kube.NodeOptions{Name: "c", Containerd: true}},
}

// clusters measures what a kubelet makes of the runtime: the time until every pod of a Deployment is Ready, the image
// being there, and the processor time of kubelet and runtime while the pods idle with an exec probe each second.
func clusters(ctx context.Context, b *bench) (err error) {
	options := kube.Options{Progress: func(step string) { say("cluster: %s", step) }}
	for _, m := range machines {
		options.Nodes = append(options.Nodes, m.node)
	}
	cluster, err := kube.Start(ctx, options)
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d pods of a Deployment Ready", b.density)
	for round := range b.rounds + 1 { // the first is a warm-up: it pulls the image
		for _, m := range machines {
			took, err := deploy(ctx, cluster, m.node.Name, b.density, "")
			if err != nil {
				return err
			}
			if round > 0 {
				b.report.sample(what, m.who, took)
			}
			if err := undeploy(ctx, cluster, m.node.Name); err != nil {
				return err
			}
		}
	}
	for _, m := range machines {
		if err := idle(ctx, b, cluster, m.node.Name, m.who); err != nil {
			return err
		}
	}
	return nil
}

// deploy creates the Deployment of a node and waits until all of its pods are Ready.
func deploy(ctx context.Context, cluster *kube.Cluster, name string, pods int, probe string) (time.Duration, error) {
	began := time.Now()
	if _, err := cluster.KubectlWith(ctx, fmt.Sprintf(deployment, name, pods, probe), "apply", "-f", "-"); err != nil {
		return 0, err
	}
	_, err := cluster.Kubectl(ctx, "rollout", "status", "deployment/"+name, "--timeout=180s")
	return time.Since(began), err
}

// undeploy removes it and waits until no pod is left.
func undeploy(ctx context.Context, cluster *kube.Cluster, name string) error {
	_, err := cluster.Kubectl(ctx, "delete", "deployment", name, "--cascade=foreground", "--timeout=180s")
	return err
}

// idle runs probed pods and takes the processor time of the node's own processes, those that ended included.
func idle(ctx context.Context, b *bench, cluster *kube.Cluster, name, who string) error {
	if _, err := deploy(ctx, cluster, name, b.density, probed1s); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // what bringing them up left to do
	n := cluster.Node(name)
	before, began := nodeTime(n), time.Now()
	time.Sleep(b.probing)
	used, took := nodeTime(n)-before, time.Since(began)
	b.report.value(fmt.Sprintf("CPU of kubelet and runtime, %d probes per second, %%", b.density), who, 100*used.Seconds()/took.Seconds())
	return undeploy(ctx, cluster, name)
}

// nodeTime is processorTime of a node's processes without the pods' own.
func nodeTime(n *kube.Node) time.Duration {
	without := map[int]bool{}
	space, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.Pid()))
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		var pid int
		if _, err := fmt.Sscan(entry.Name(), &pid); err != nil {
			continue
		}
		own, _ := os.Readlink(filepath.Join("/proc", entry.Name(), "ns/pid"))
		name, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if own != space || strings.TrimSpace(string(name)) == "clockwork" {
			without[pid] = true
		}
	}
	return processorTime(without)
}
