package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// executors are the ways in which all contenders stream; nobody else speaks the fifth version of the channels.
var executors = []struct {
	name    string
	connect func(address string) (remotecommand.Executor, error)
}{
	{"SPDY", func(address string) (remotecommand.Executor, error) {
		parsed, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, parsed)
	}},
	{"WebSocket", func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, address, "v4.channel.k8s.io")
	}},
}

// streaming measures how fast what a command writes reaches client-go over loopback, and the processor time that the
// runtime spends on it; the client's own is most of the rest.
func streaming(ctx context.Context, b *bench) error {
	for _, c := range b.contenders {
		p, _, err := c.up(ctx, "pause")
		for _, executor := range executors {
			for range b.rounds {
				if err == nil {
					err = transfer(ctx, b, p, executor.name, executor.connect)
				}
			}
		}
		if p != nil {
			err = errors.Join(err, p.remove(ctx))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func transfer(ctx context.Context, b *bench, p *pod, name string, connect func(string) (remotecommand.Executor, error)) error {
	command := []string{"dd", "if=/dev/zero", "bs=1M", fmt.Sprintf("count=%d", b.streamed)}
	response, err := p.on.client.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: p.container, Cmd: command, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	executor, err := connect(response.Url)
	if err != nil {
		return err
	}
	var taken counter
	before, began := processorTimeOf(p.on.daemon), time.Now()
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &taken, Stderr: io.Discard})
	took, used := time.Since(began), processorTimeOf(p.on.daemon)-before
	if want := counter(b.streamed) << 20; err != nil || taken != want {
		return fmt.Errorf("%s: %d of %d bytes: %w", name, taken, want, err)
	}
	b.report.value(fmt.Sprintf("exec over %s, MB/s", name), p.on.name, float64(taken)/1e6/took.Seconds())
	b.report.sample(fmt.Sprintf("daemon's CPU for a GiB over %s", name), p.on.name, used*1024/time.Duration(b.streamed))
	return nil
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(text []byte) (int, error) {
	*c += counter(len(text))
	return len(text), nil
}
