package cri

import (
	"errors"
	"io"
	"slices"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// drain reads a stream to its end; each message holds at least one object.
func drain[M, T any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T) []T {
	t.Helper()
	var all []T
	for err == nil {
		var message *M
		if message, err = stream.Recv(); err == nil {
			if len(items(message)) == 0 {
				t.Error("an empty message")
			}
			all = append(all, items(message)...)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return all
}

// A stream brings what the list of the same name does.
func TestListsComeAsStreamsToo(t *testing.T) {
	p := pod(t)
	ids := []string{p.Run("one", sleeper).ID, p.Run("two", sleeper).ID}
	slices.Sort(ids)
	ctx, connection := lab.Context(t), lab.Node().Client.Connection()
	runtime, images := runtimeapi.NewRuntimeServiceClient(connection), runtimeapi.NewImageServiceClient(connection)

	pods, err := runtime.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: p.ID}})
	if found := drain(t, pods, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes); len(found) != 1 || found[0].Id != p.ID {
		t.Errorf("pods = %v", found)
	}
	containers, err := runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.ID}})
	var found []string
	for _, c := range drain(t, containers, err, (*runtimeapi.StreamContainersResponse).GetContainers) {
		found = append(found, c.Id)
	}
	if slices.Sort(found); !slices.Equal(found, ids) {
		t.Errorf("containers = %v, want %v", found, ids)
	}
	stats, err := runtime.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: p.ID}})
	if found := drain(t, stats, err, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats); len(found) != 2 || found[0].Memory.GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats = %v", found)
	}
	all, err := images.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
	if found := drain(t, all, err, (*runtimeapi.StreamImagesResponse).GetImages); len(found) == 0 {
		t.Error("no images")
	}
	none, err := runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: "0000000000"}})
	if found := drain(t, none, err, (*runtimeapi.StreamContainersResponse).GetContainers); len(found) != 0 {
		t.Errorf("containers of nobody = %v", found)
	}
}
