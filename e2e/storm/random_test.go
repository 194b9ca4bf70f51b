package storm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// methods are all of CRI's.
func methods(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	var all []protoreflect.MethodDescriptor
	for _, name := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		service := found.(protoreflect.ServiceDescriptor).Methods()
		for i := range service.Len() {
			all = append(all, service.Get(i))
		}
	}
	return all
}

func message(t *testing.T, descriptor protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

// send calls a method by its name; of a stream it reads what comes within a moment.
func send(ctx context.Context, to grpc.ClientConnInterface, method protoreflect.MethodDescriptor, request, response proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	if !method.IsStreamingServer() {
		return to.Invoke(ctx, path, request, response)
	}
	ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	stream, err := to.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil {
		return err
	}
	_ = stream.CloseSend()
	for range 100 {
		if err := stream.RecvMsg(response); err != nil {
			return nil
		}
	}
	return nil
}

// blame are the codes by which the daemon would say that the fault is its own.
var blame = []codes.Code{codes.Unknown, codes.Internal, codes.Unavailable, codes.Canceled}

// excused reports an answer that names somebody else's fault: a registry that cannot be reached.
func excused(err error) bool { return strings.Contains(err.Error(), "RegistryUnavailable") }

const (
	rounds  = 20_000
	callers = 8
)

func TestRandomRequests(t *testing.T) {
	weathered(t)
	// The same storm in every run, unless asked for another: a failure must be one that the change brought.
	seed := uint64(1)
	if text := os.Getenv("MERIDIAN_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("seed %d", seed)
	target := lab.RunPod(t)
	container := target.Run("target", "trap 'exit 0' TERM; while :; do sleep 0.05; done")
	words := slices.Concat(hostile, []string{target.ID, target.ID[:12], container.ID, container.ID[:12], target.Config.Metadata.Name, "target",
		lab.Image(t, "clockwork:1"), lab.Reference("clockwork:1"), "/bin/true", "true", t.TempDir(), filepath.Join(t.TempDir(), "missing")})
	all := methods(t)
	rich := slices.DeleteFunc(slices.Clone(all), func(method protoreflect.MethodDescriptor) bool {
		return (&generator{}).good(string(method.Name()), target, container) == nil
	})
	connection := stranger(t).Connection()
	var group sync.WaitGroup
	var lock sync.Mutex
	answers, made := map[codes.Code]int{}, &made{}
	for caller := range callers {
		group.Go(func() {
			g := &generator{rand.New(rand.NewPCG(seed, uint64(caller))), words, made}
			for range rounds / callers {
				method := all[g.IntN(len(all))]
				if g.IntN(4) == 0 {
					method = rich[g.IntN(len(rich))]
				}
				request := g.request(t, method, target, container)
				began := time.Now()
				response := message(t, method.Output())
				err := send(lab.Context(t), connection, method, request, response)
				switch r := response.(type) {
				case *runtimeapi.RunPodSandboxResponse:
					made.add(r.PodSandboxId)
				case *runtimeapi.CreateContainerResponse:
					made.add(r.ContainerId)
				}
				lock.Lock()
				answers[status.Code(err)]++
				lock.Unlock()
				if slices.Contains(blame, status.Code(err)) && !excused(err) {
					t.Errorf("%s: %v\n  %.600v", method.Name(), err, request)
				}
				if took := time.Since(began); took > 15*time.Second {
					t.Errorf("%s took %s:\n  %.600v", method.Name(), took, request)
				}
			}
		})
	}
	group.Wait()
	t.Logf("answers: %v", answers)
}

// request is a random message, or a good one that is bent.
func (g *generator) request(t *testing.T, method protoreflect.MethodDescriptor, target *lab.Pod, container *lab.Container) proto.Message {
	if good := g.good(string(method.Name()), target, container); good != nil && g.IntN(3) > 0 {
		good = proto.Clone(good) // it shares parts with the target's own configuration
		g.bend(good)
		return tamed(good, target, container)
	}
	request := message(t, method.Input())
	g.any(request.ProtoReflect(), 0)
	return tamed(request, target, container)
}

// good is a request that would be granted, for the methods that want much.
func (g *generator) good(method string, target *lab.Pod, container *lab.Container) proto.Message {
	switch method {
	case "RunPodSandbox":
		return &runtimeapi.RunPodSandboxRequest{Config: client.Pod("storm-"+client.Unique()[:4], target.Config.LogDirectory)}
	case "CreateContainer":
		config := client.Container(target.Config, "c-"+client.Unique()[:4], container.Config.Image.Image, []string{"/bin/true"})
		return &runtimeapi.CreateContainerRequest{PodSandboxId: target.ID, Config: config, SandboxConfig: target.Config}
	case "ExecSync":
		return &runtimeapi.ExecSyncRequest{ContainerId: container.ID, Cmd: []string{"/bin/true"}, Timeout: 1}
	case "ContainerStatus":
		return &runtimeapi.ContainerStatusRequest{ContainerId: container.ID, Verbose: true}
	case "UpdateContainerResources":
		return &runtimeapi.UpdateContainerResourcesRequest{ContainerId: container.ID, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}}
	}
	return nil
}

// tamed takes out what would be done as asked and end the test's own target, litter the machine, or take forever.
func tamed(request proto.Message, target *lab.Pod, container *lab.Container) proto.Message {
	spare := func(id *string) {
		for _, own := range []string{target.ID, container.ID} {
			if *id != "" && strings.HasPrefix(own, *id) {
				*id = "spared"
			}
		}
	}
	switch r := request.(type) {
	case *runtimeapi.StopPodSandboxRequest:
		spare(&r.PodSandboxId)
	case *runtimeapi.RemovePodSandboxRequest:
		spare(&r.PodSandboxId)
	case *runtimeapi.RemoveContainerRequest:
		spare(&r.ContainerId)
	case *runtimeapi.StopContainerRequest:
		spare(&r.ContainerId)
		r.Timeout = min(r.Timeout, 1)
	case *runtimeapi.RunPodSandboxRequest:
		if r.GetConfig().GetLogDirectory() == "/" {
			r.Config.LogDirectory = ""
		}
	case *runtimeapi.ExecSyncRequest:
		if r.Timeout == 0 || r.Timeout > 2 {
			r.Timeout = 1
		}
	case *runtimeapi.CheckpointContainerRequest:
		r.Timeout = min(r.Timeout, 2)
	}
	return request
}
