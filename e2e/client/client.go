// Package client speaks CRI to a runtime's socket the way the kubelet does.
//
// Client embeds k8s.io/cri-client's runtime service, the code inside kubelet, crictl and critest, so that what it
// accepts is what they accept. The bare gRPC stubs stand beside it for requests that the client would not send.
package client

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

// Client is a connection to one runtime.
type Client struct {
	internalapi.RuntimeService
	// Images is the kubelet's image client.
	Images internalapi.ImageManagerService
	// Runtime and Image are the generated stubs, without the checks and deadlines of the kubelet's client.
	Runtime runtimeapi.RuntimeServiceClient
	Image   runtimeapi.ImageServiceClient

	conn *grpc.ClientConn
}

// requestTimeout is the kubelet's --runtime-request-timeout.
const requestTimeout = 2 * time.Minute

// Dial connects to the socket at path; the runtime must already answer. On error no connection stays open.
func Dial(ctx context.Context, path string) (client *Client, err error) {
	quieten()
	var opened []func()
	defer func() {
		if err != nil {
			for _, end := range opened {
				end()
			}
		}
	}()
	endpoint := "unix://" + path
	runtime, err := criclient.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(requestTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("runtime service at %s: %w", path, err)
	}
	opened = append(opened, func() { _ = runtime.Close(context.Background()) })
	images, err := criclient.NewRemoteImageServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(requestTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("image service at %s: %w", path, err)
	}
	opened = append(opened, func() { _ = images.Close(context.Background()) })
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	opened = append(opened, func() { _ = conn.Close() })
	c := &Client{
		RuntimeService: runtime,
		Images:         images,
		Runtime:        runtimeapi.NewRuntimeServiceClient(conn),
		Image:          runtimeapi.NewImageServiceClient(conn),
		conn:           conn,
	}
	// Connected now and not at first use, so that a count of the daemon's descriptors stays as it is.
	if _, err := c.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return nil, fmt.Errorf("version of %s: %w", path, err)
	}
	return c, nil
}

// Connection is what the bare stubs use, for calls by name.
func (c *Client) Connection() grpc.ClientConnInterface { return c.conn }

// Close ends all connections.
func (c *Client) Close() {
	ctx := context.Background()
	_ = c.RuntimeService.Close(ctx)
	_ = c.Images.Close(ctx)
	_ = c.conn.Close()
}

// quieten stops the kubelet's client from printing each error that a test provokes.
func quieten() {
	flags := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(flags)
	_ = flags.Set("logtostderr", "false")
	_ = flags.Set("stderrthreshold", "FATAL") // errors go there too, unless told not to
	klog.SetOutput(io.Discard)
}

// Pull pulls an image and returns its id, which is what CreateContainer wants to be given.
func (c *Client) Pull(ctx context.Context, reference string) (string, error) {
	return c.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: reference}, nil, nil)
}
