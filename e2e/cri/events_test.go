package cri

import (
	"context"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// heard collects what a subscriber is told about some ids, until enough came.
func heard(t *testing.T, stream runtimeapi.RuntimeService_GetContainerEventsClient, want int, ids func() []string) []*runtimeapi.ContainerEventResponse {
	t.Helper()
	var events []*runtimeapi.ContainerEventResponse
	for len(events) < want {
		event, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d events: %v", len(events), err)
		}
		if slices.Contains(ids(), event.ContainerId) {
			events = append(events, event)
		}
	}
	return events
}

func TestEverySubscriberHearsEveryEvent(t *testing.T) {
	ctx, cancel := context.WithTimeout(lab.Context(t), 20*time.Second)
	defer cancel()
	var streams []runtimeapi.RuntimeService_GetContainerEventsClient
	for range 2 {
		stream, err := runtimeapi.NewRuntimeServiceClient(lab.Node().Client.Connection()).GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	p := lab.RunPod(t)
	c := p.Run("main", "exit 3")
	c.Wait()
	p.Remove()
	const created, started, stopped, deleted = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	for _, stream := range streams {
		told := map[string][]runtimeapi.ContainerEventType{}
		for _, event := range heard(t, stream, 8, func() []string { return []string{p.ID, c.ID} }) {
			told[event.ContainerId] = append(told[event.ContainerId], event.ContainerEventType)
			if event.PodSandboxStatus.GetId() != p.ID || event.CreatedAt == 0 {
				t.Errorf("event without its pod or time: %v", event)
			}
			if event.ContainerId != c.ID || event.ContainerEventType != stopped {
				continue
			}
			if len(event.ContainersStatuses) != 1 || event.ContainersStatuses[0].ExitCode != 3 {
				t.Errorf("statuses in the event of an end: %v", event.ContainersStatuses)
			}
		}
		all := []runtimeapi.ContainerEventType{created, started, stopped, deleted}
		if !slices.Equal(told[p.ID], all) {
			t.Errorf("of the pod: %v", told[p.ID])
		}
		// A container this quick may end before its start was answered.
		slices.Sort(told[c.ID])
		if !slices.Equal(told[c.ID], all) {
			t.Errorf("of the container: %v", told[c.ID])
		}
	}
}
