package tracing

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// scripted is a collector that keeps what it is sent, or does not answer.
type scripted struct {
	collector.UnimplementedTraceServiceServer
	server *grpc.Server

	lock     sync.Mutex
	spans    []*trace.Span
	resource []*common.KeyValue
	silent   bool
}

// listen starts a collector at the address that the node was told.
func listen(t *testing.T) *scripted {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{server: grpc.NewServer()}
	collector.RegisterTraceServiceServer(s.server, s)
	go func() { _ = s.server.Serve(listener) }()
	t.Cleanup(s.server.Stop)
	return s
}

func (s *scripted) Export(ctx context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.silent {
		s.lock.Unlock()
		<-ctx.Done()
		s.lock.Lock()
		return nil, ctx.Err()
	}
	for _, group := range request.ResourceSpans {
		s.resource = group.Resource.Attributes
		for _, scope := range group.ScopeSpans {
			s.spans = append(s.spans, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *scripted) hush(silent bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.silent = silent
}

// all are the spans of a trace that have come so far.
func (s *scripted) all(traceID string) []*trace.Span {
	s.lock.Lock()
	defer s.lock.Unlock()
	var found []*trace.Span
	for _, span := range s.spans {
		if hex.EncodeToString(span.TraceId) == traceID {
			found = append(found, span)
		}
	}
	return found
}

// await waits for a span by its trace and name.
func (s *scripted) await(t *testing.T, traceID, name string) *trace.Span {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, span := range s.all(traceID) {
			if span.Name == name {
				return span
			}
		}
	}
	t.Fatalf("no span %s of trace %s came, but %v", name, traceID, names(s.all(traceID)))
	return nil
}

func names(spans []*trace.Span) []string {
	var all []string
	for _, span := range spans {
		all = append(all, span.Name)
	}
	return all
}

// attributes are a span's or a resource's, as text.
func attributes(list []*common.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range list {
		switch value := a.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			all[a.Key] = value.StringValue
		case *common.AnyValue_IntValue:
			all[a.Key] = fmt.Sprint(value.IntValue)
		default:
			all[a.Key] = a.Value.String()
		}
	}
	return all
}
