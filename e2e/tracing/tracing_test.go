// Package tracing tests what a collector of OpenTelemetry is told, with one that this test scripts.
package tracing

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// address is free in the world of this package.
const address = "127.0.0.1:4317"

func TestMain(m *testing.M) {
	lab.MainWith(m, func() node.Options {
		return node.Options{Extra: "[tracing]\nendpoint = \"http://" + address + "\"\nsampling = 0.0\n"}
	})
}

// caller is the kubelet's span, as its gRPC client names it: W3C Trace Context.
type caller struct {
	ctx           context.Context
	traceID, span string
}

func call(t *testing.T, sampled bool) caller {
	t.Helper()
	traceID, span, flags := random(16), random(8), "00"
	if sampled {
		flags = "01"
	}
	ctx := metadata.AppendToOutgoingContext(lab.Context(t), "traceparent", "00-"+traceID+"-"+span+"-"+flags)
	return caller{ctx, traceID, span}
}

func random(bytes int) string {
	text := make([]byte, bytes)
	_, _ = rand.Read(text)
	return hex.EncodeToString(text)
}

// A pod and its container are made under two spans of a kubelet, whose children the daemon's become.
func TestSpansAreTheKubeletsChildren(t *testing.T) {
	image := lab.Image(t, "clockwork:1")
	collector, n := listen(t), lab.Node()
	run := call(t, true)
	config := client.Pod("traced", t.TempDir())
	pod, err := n.Runtime.RunPodSandbox(run.ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	lab.Adopt(t, pod.PodSandboxId, config)
	root := collector.await(t, run.traceID, "RunPodSandbox")
	if hex.EncodeToString(root.ParentSpanId) != run.span || root.Kind != trace.Span_SPAN_KIND_SERVER {
		t.Errorf("parent %x, kind %s; want %s and a server's", root.ParentSpanId, root.Kind, run.span)
	}
	has(t, root, map[string]string{"pod": pod.PodSandboxId[:13], "code": "Ok", "rpc": "RunPodSandbox"})
	isolate := collector.await(t, run.traceID, "isolate")
	for _, step := range []string{"reserve", "isolate", "network", "ready"} {
		child(t, collector.await(t, run.traceID, step), root)
	}
	for _, step := range []string{"spawn", "namespaces", "pin"} {
		child(t, collector.await(t, run.traceID, step), isolate)
	}
	collector.lock.Lock()
	if got := attributes(collector.resource); got["service.name"] != "meridiand" || got["host.name"] == "" {
		t.Errorf("resource %v", got)
	}
	collector.lock.Unlock()

	create := call(t, true)
	container, err := n.Runtime.CreateContainer(create.ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: config,
		Config: client.Container(config, "main", image, []string{"/bin/sleep", "60"})})
	if err != nil {
		t.Fatal(err)
	}
	root = collector.await(t, create.traceID, "CreateContainer")
	has(t, root, map[string]string{"pod": pod.PodSandboxId[:13], "container": container.ContainerId[:13], "image": image[:20], "code": "Ok"})
	child(t, collector.await(t, create.traceID, "prepare"), root)
	child(t, collector.await(t, create.traceID, "shim"), root) // what the executor takes

	refused := call(t, true)
	_, err = n.Runtime.StartContainer(refused.ctx, &runtimeapi.StartContainerRequest{ContainerId: strings.Repeat("a", 64)})
	if status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	has(t, collector.await(t, refused.traceID, "StartContainer"), map[string]string{"code": "NotFound"})

	// The kubelet's sampling is followed; what has no caller is sampled by the node's own rate, here none.
	unsampled, last := call(t, false), call(t, true)
	for _, ctx := range []context.Context{unsampled.ctx, lab.Context(t), last.ctx} {
		if _, err := n.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	collector.await(t, last.traceID, "Version")
	if came := collector.all(unsampled.traceID); len(came) > 0 {
		t.Errorf("of a trace that is not sampled came %v", names(came))
	}
	collector.lock.Lock()
	defer collector.lock.Unlock()
	for _, span := range collector.spans {
		if known := []string{run.traceID, create.traceID, refused.traceID, last.traceID}; !slices.Contains(known, hex.EncodeToString(span.TraceId)) {
			t.Errorf("span %s of trace %x came unasked", span.Name, span.TraceId)
		}
	}
}

// A collector that is away, then one that does not answer: RPCs are as fast as ever, and the log says it once.
func TestCollectorAway(t *testing.T) {
	n := lab.Node()
	worst := func(calls int) time.Duration {
		var longest time.Duration
		for range calls {
			began := time.Now()
			if _, err := n.Runtime.Version(call(t, true).ctx, &runtimeapi.VersionRequest{}); err != nil {
				t.Fatal(err)
			}
			longest = max(longest, time.Since(began))
		}
		return longest
	}
	const said = "the collector takes no spans"
	lost := func() int { return strings.Count(n.Tail(1<<20), said) }
	before := lost()
	if longest := worst(500); longest > time.Second {
		t.Errorf("without a collector an RPC took %s", longest)
	}
	lab.Eventually(t, "the loss is told", func() bool { return lost() == before+1 })

	silent := listen(t)
	silent.hush(true)
	if longest := worst(5000); longest > time.Second { // more than the queue holds
		t.Errorf("with a silent collector an RPC took %s", longest)
	}
	silent.hush(false)
	lab.Eventually(t, "spans are taken again", func() bool {
		last := call(t, true)
		_, err := n.Runtime.Version(last.ctx, &runtimeapi.VersionRequest{})
		time.Sleep(100 * time.Millisecond)
		return err == nil && strings.Contains(n.Tail(1<<20), "the collector takes spans again")
	})
	if again := lost(); again != before+1 {
		t.Errorf("the loss was told %d times", again-before)
	}
}

func has(t *testing.T, span *trace.Span, want map[string]string) {
	t.Helper()
	got := attributes(span.Attributes)
	for key, value := range want {
		if got[key] != value {
			t.Errorf("span %s: %s is %q, want %q", span.Name, key, got[key], value)
		}
	}
}

// child wants a span to be a child of another, and to lie in its time.
func child(t *testing.T, span, parent *trace.Span) {
	t.Helper()
	if hex.EncodeToString(span.ParentSpanId) != hex.EncodeToString(parent.SpanId) {
		t.Errorf("span %s is a child of %x, not of %s", span.Name, span.ParentSpanId, parent.Name)
	}
	if span.StartTimeUnixNano < parent.StartTimeUnixNano || span.EndTimeUnixNano > parent.EndTimeUnixNano {
		t.Errorf("span %s is not within %s", span.Name, parent.Name)
	}
}
