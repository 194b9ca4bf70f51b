package streaming

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// dialers are the ways to reach a pod's ports.
var dialers = map[string]func(*url.URL) (httpstream.Dialer, error){
	"spdy": func(address *url.URL) (httpstream.Dialer, error) {
		transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
		return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, address), err
	},
	"websocket": func(address *url.URL) (httpstream.Dialer, error) {
		return portforward.NewSPDYOverWebsocketDialer(address, &rest.Config{})
	},
}

// forward brings a port of a pod to the returned address, until the test ends.
func forward(t *testing.T, name string, p *lab.Pod, port int) string {
	t.Helper()
	response, err := lab.Node().Runtime.PortForward(lab.Context(t), &runtimeapi.PortForwardRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatalf("PortForward: %v", err)
	}
	address, err := url.Parse(response.Url)
	if err != nil {
		t.Fatal(err)
	}
	dialer, err := dialers[name](address)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- forwarder.ForwardPorts() }()
	t.Cleanup(func() { close(stop); <-ended })
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("forward: %v", err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}

func TestPortForward(t *testing.T) {
	p := pod(t)
	c := p.Run("web", "head -c 3000000 /dev/urandom >/page; exec httpd -f -p 127.0.0.1:80 -h /")
	eventually(t, "the server serves", func() bool {
		return c.Sh("wget -q -O /dev/null http://127.0.0.1/page 2>/dev/null && echo yes || true") == "yes"
	})
	want := strings.Fields(c.Sh("sha256sum /page"))[0]
	for name := range dialers {
		t.Run(name, func(t *testing.T) {
			address := forward(t, name, p, 80)
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					response, err := http.Get("http://" + address + "/page") //nolint:noctx // bounded by the test
					if err != nil {
						t.Errorf("get: %v", err)
						return
					}
					defer func() { _ = response.Body.Close() }()
					page, err := io.ReadAll(response.Body)
					if got := fmt.Sprintf("%x", sha256.Sum256(page)); err != nil || got != want {
						t.Errorf("%d bytes, %v", len(page), err)
					}
				})
			}
			all.Wait()
		})
	}
}

// The client's half ends first, and the answer still comes.
func TestPortForwardHalfClose(t *testing.T) {
	p := pod(t)
	c := p.Run("echo", "printf '#!/bin/sh\\ncat; echo end\\n' >/echo; chmod +x /echo; exec nc -ll -p 7000 -e /echo")
	// The forwarder of client-go gives up at the first connection that is refused.
	eventually(t, "the program listens", func() bool { return strings.Contains(c.Sh("netstat -ltn"), ":7000 ") })
	for name := range dialers {
		t.Run(name, func(t *testing.T) {
			address := forward(t, name, p, 7000)
			connection, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = connection.Close() }()
			_ = connection.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = connection.Write(bytes.Repeat([]byte("x"), 100_000))
			_ = connection.(*net.TCPConn).CloseWrite()
			answer, _ := io.ReadAll(connection)
			if len(answer) != 100_004 || !bytes.HasSuffix(answer, []byte("end\n")) {
				t.Errorf("%d bytes came back", len(answer))
			}
		})
	}
}

// What listens on the node's loopback is not the pod's.
func TestPortForwardStaysInThePod(t *testing.T) {
	p := pod(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	seen := make(chan struct{}, 16)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			seen <- struct{}{}
			_ = connection.Close()
		}
	}()
	told := &screen{}
	runtime.ErrorHandlers = append(runtime.ErrorHandlers, func(_ context.Context, err error, _ string, _ ...any) {
		_, _ = fmt.Fprintln(told, err)
	})
	address := forward(t, "spdy", p, listener.Addr().(*net.TCPAddr).Port)
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(connection)
	_ = connection.Close()
	eventually(t, "the client is told", func() bool { return strings.Contains(told.String(), "refused") })
	select {
	case <-seen:
		t.Error("a port of the node was reached through a pod")
	case <-time.After(200 * time.Millisecond):
	}
}

// A pod that has the node's network has its ports.
func TestPortForwardHostNetwork(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "node") })}
	go func() { _ = server.Serve(listener) }()
	defer func() { _ = server.Close() }()
	address := forward(t, "spdy", p, listener.Addr().(*net.TCPAddr).Port)
	response, err := http.Get("http://" + address) //nolint:noctx // bounded by the test
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if text, _ := io.ReadAll(response.Body); string(text) != "node" {
		t.Errorf("got %q", text)
	}
}

func TestStreamingRequestsAreChecked(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	node, ctx := lab.Node().Runtime, lab.Context(t)
	exec := func(request *runtimeapi.ExecRequest) error { _, err := node.Exec(ctx, request); return err }
	attach := func(request *runtimeapi.AttachRequest) error { _, err := node.Attach(ctx, request); return err }
	forward := func(request *runtimeapi.PortForwardRequest) error {
		_, err := node.PortForward(ctx, request)
		return err
	}
	for what, check := range map[string]struct {
		err  error
		want codes.Code
	}{
		"no command":      {exec(&runtimeapi.ExecRequest{ContainerId: c.ID, Stdout: true}), codes.InvalidArgument},
		"no stream":       {exec(&runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}}), codes.InvalidArgument},
		"tty with stderr": {exec(&runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Tty: true, Stdout: true, Stderr: true}), codes.InvalidArgument},
		"no container":    {exec(&runtimeapi.ExecRequest{ContainerId: strings.Repeat("0", 64), Cmd: []string{"true"}, Stdout: true}), codes.NotFound},
		"attach to none":  {attach(&runtimeapi.AttachRequest{ContainerId: strings.Repeat("0", 64), Stdout: true}), codes.NotFound},
		"attach without":  {attach(&runtimeapi.AttachRequest{ContainerId: c.ID}), codes.InvalidArgument},
		"no pod":          {forward(&runtimeapi.PortForwardRequest{PodSandboxId: strings.Repeat("0", 64)}), codes.NotFound},
		"port 0":          {forward(&runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{0}}), codes.InvalidArgument},
		"port 65536":      {forward(&runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{65536}}), codes.InvalidArgument},
		"a negative port": {forward(&runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{-1}}), codes.InvalidArgument},
	} {
		if got := status.Code(check.err); got != check.want {
			t.Errorf("%s: %s (%v), want %s", what, got, check.err, check.want)
		}
	}
	c.Stop(0)
	if err := exec(&runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Stdout: true}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("in a container that has ended: %v", err)
	}
}
