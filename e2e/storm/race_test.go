package storm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// atOnce calls a function many times at once.
func atOnce(times int, call func(int)) {
	var group sync.WaitGroup
	for i := range times {
		group.Go(func() { call(i) })
	}
	group.Wait()
}

func named(t *testing.T, name string) []*runtimeapi.PodSandbox {
	t.Helper()
	list, err := lab.Node().ListPodSandbox(lab.Context(t), &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": name}})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestOneRequestManyTimesAtOnceIsOneObject(t *testing.T) {
	weathered(t)
	config := client.Pod("same", t.TempDir())
	image, ctx := lab.Image(t, "clockwork:1"), lab.Context(t)
	pods, containers := make([]string, 50), make([]string, 50)
	atOnce(len(pods), func(i int) {
		var err error
		if pods[i], err = lab.Node().RunPodSandbox(ctx, config, ""); err != nil || i > 0 && pods[i] == "" {
			t.Errorf("RunPodSandbox: %q, %v", pods[i], err)
		}
	})
	wanted := client.Container(config, "main", image, []string{"/bin/clockwork", "pause"})
	atOnce(len(containers), func(i int) {
		var err error
		if containers[i], err = lab.Node().CreateContainer(ctx, pods[0], wanted, config); err != nil {
			t.Errorf("CreateContainer: %v", err)
		}
	})
	for i := range pods {
		if pods[i] != pods[0] || containers[i] != containers[0] {
			t.Errorf("pods %s and %s, containers %s and %s", pods[0], pods[i], containers[0], containers[i])
		}
	}
	if list := named(t, "same"); len(list) != 1 {
		t.Errorf("%d pods are listed", len(list))
	}
}

// A client that gives up at any moment and asks again gets the one object; nothing else is left of its first attempt.
func TestClientsThatGiveUpAndAskAgain(t *testing.T) {
	weathered(t)
	image := lab.Image(t, "clockwork:1")
	atOnce(6, func(worker int) {
		for round := range 12 {
			name := fmt.Sprintf("again-%d-%d", worker, round)
			config := client.Pod(name, t.TempDir())
			impatient := func(call func(context.Context) error) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(12_000))*time.Microsecond)
				defer cancel()
				_ = call(ctx)
				if err := call(lab.Context(t)); err != nil {
					t.Errorf("%s: asked again: %v", name, err)
				}
			}
			var pod, container string
			impatient(func(ctx context.Context) (err error) {
				pod, err = lab.Node().RunPodSandbox(ctx, config, "")
				return err
			})
			impatient(func(ctx context.Context) (err error) {
				container, err = lab.Node().CreateContainer(ctx, pod, client.Container(config, "main", image, []string{"/bin/clockwork", "pause"}), config)
				return err
			})
			if list := named(t, name); len(list) != 1 || list[0].Id != pod {
				t.Errorf("%s: %v, want one pod %s", name, list, pod)
			}
			impatient(func(ctx context.Context) error { return lab.Node().StartContainer(ctx, container) })
			impatient(func(ctx context.Context) error { return lab.Node().StopPodSandbox(ctx, pod) })
			impatient(func(ctx context.Context) error { return lab.Node().RemovePodSandbox(ctx, pod) })
		}
	})
}

// Whatever is under way when the pod goes, it goes, and everybody gets an answer.
func TestPodGoesWhileMuchIsUnderWay(t *testing.T) {
	weathered(t)
	image := lab.Image(t, "clockwork:1")
	fine := []codes.Code{codes.OK, codes.NotFound, codes.FailedPrecondition, codes.DeadlineExceeded}
	judge := func(what string, err error) {
		for _, code := range fine {
			if status.Code(err) == code {
				return
			}
		}
		if err != nil && !strings.Contains(err.Error(), "exit") { // an exec that was killed
			t.Errorf("%s: %v", what, err)
		}
	}
	for round := range 15 {
		config := client.Pod(fmt.Sprint("going-", round), t.TempDir())
		n, ctx := lab.Node(), lab.Context(t)
		pod, err := n.RunPodSandbox(ctx, config, "")
		if err != nil {
			t.Fatal(err)
		}
		atOnce(8, func(i int) {
			name := fmt.Sprint("c", i)
			id, err := n.CreateContainer(ctx, pod, client.Container(config, name, image, []string{"/bin/sh", "-c", "while :; do sleep 0.01; done"}), config)
			judge("CreateContainer", err)
			if err != nil {
				return
			}
			judge("StartContainer", n.StartContainer(ctx, id))
			if i == 7 {
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				judge("StopPodSandbox", n.StopPodSandbox(ctx, pod))
				judge("RemovePodSandbox", n.RemovePodSandbox(ctx, pod))
				return
			}
			_, err = n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "1"}, Timeout: 3})
			judge("ExecSync", err)
			judge("StopContainer", n.StopContainer(ctx, id, 1))
			judge("RemoveContainer", n.RemoveContainer(ctx, id))
		})
		if list := named(t, config.Metadata.Name); len(list) != 0 {
			t.Errorf("still there: %v", list)
		}
	}
}

// More connections than the daemon has descriptors, none of which says a word.
func TestSilentConnections(t *testing.T) {
	weathered(t)
	var held []net.Conn
	for range 2 * descriptors {
		connection, err := net.DialTimeout("unix", lab.Node().Socket, time.Second)
		if err != nil {
			break // the backlog is full: they wait, as they should
		}
		held = append(held, connection)
	}
	t.Logf("%d connections", len(held))
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := lab.Node().Version(ctx, "v1"); err != nil { // over a connection that was there before
		t.Errorf("Version: %v", err)
	}
	for _, connection := range held {
		_ = connection.Close()
	}
	if _, err := lab.Node().ListPodSandbox(lab.Context(t), nil); err != nil {
		t.Errorf("ListPodSandbox: %v", err)
	}
	t.Logf("answered after %s", time.Since(began).Round(time.Millisecond))
}

func TestMessagesBeyondTheLimit(t *testing.T) {
	weathered(t)
	for _, size := range []int{17 << 20, 100 << 20} {
		request := &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: strings.Repeat("a", size)}}
		_, err := stranger(t).Runtime.ListContainers(lab.Context(t), request)
		if code := status.Code(err); code != codes.ResourceExhausted && code != codes.OutOfRange {
			t.Errorf("%d MiB: %v", size>>20, err)
		}
	}
}
