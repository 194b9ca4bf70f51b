package retry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// A client that gives up at any moment of any call of a pod's life and asks again gets the one object, and what it asked
// for happens once.
func TestCallsThatAreGivenUpAndAskedAgain(t *testing.T) {
	image := lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	seeds := chance(t)
	const workers, rounds = 4, 5
	for worker := range workers {
		random := rand.New(rand.NewPCG(seeds.Uint64(), 1))
		t.Run(fmt.Sprint(worker), func(t *testing.T) {
			t.Parallel()
			for round := range rounds {
				live(t, random, image, fmt.Sprintf("repeat-%d-%d", worker, round))
			}
		})
	}
}

// live brings a pod up, uses it and takes it down, each call given up once.
func live(t *testing.T, random *rand.Rand, image, name string) {
	t.Helper()
	n, config := lab.Node(), client.Pod(name, t.TempDir())
	var pod, container string
	asked(t, random, "RunPodSandbox", 15*time.Millisecond, func(ctx context.Context) (err error) {
		pod, err = n.RunPodSandbox(ctx, config, "")
		return err
	})
	if list := sandboxes(t, name); len(list) != 1 || list[0].Id != pod {
		t.Fatalf("pods named %s: %v, want %s alone", name, list, pod)
	}
	wanted := client.Container(config, "main", image, []string{"/bin/sh", "-c", patient})
	asked(t, random, "CreateContainer", 12*time.Millisecond, func(ctx context.Context) (err error) {
		container, err = n.CreateContainer(ctx, pod, wanted, config)
		return err
	})
	if list := containers(t, pod); len(list) != 1 || list[0].Id != container {
		t.Fatalf("containers of %s: %v, want %s alone", name, list, container)
	}
	asked(t, random, "StartContainer", 4*time.Millisecond, func(ctx context.Context) error { return n.StartContainer(ctx, container) })
	log := config.LogDirectory + "/" + wanted.LogPath
	lab.Eventually(t, "the container says so", func() bool { return lines(t, log, "started") > 0 })
	asked(t, random, "StopContainer", 150*time.Millisecond, func(ctx context.Context) error { return n.StopContainer(ctx, container, 1) })
	status, err := n.ContainerStatus(lab.Context(t), container, false)
	if err != nil || status.Status.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("after StopContainer: %v, %v", status, err)
	}
	if starts, stops := lines(t, log, "started"), lines(t, log, "asked"); starts != 1 || stops != 1 {
		t.Errorf("%s was started %d times and asked to stop %d times, want once each", name, starts, stops)
	}
	asked(t, random, "RemoveContainer", 4*time.Millisecond, func(ctx context.Context) error { return n.RemoveContainer(ctx, container) })
	if list := containers(t, pod); len(list) != 0 {
		t.Errorf("containers of %s after their removal: %v", name, list)
	}
	asked(t, random, "StopPodSandbox", 6*time.Millisecond, func(ctx context.Context) error { return n.StopPodSandbox(ctx, pod) })
	asked(t, random, "RemovePodSandbox", 4*time.Millisecond, func(ctx context.Context) error { return n.RemovePodSandbox(ctx, pod) })
	if list := sandboxes(t, name); len(list) != 0 {
		t.Errorf("pods named %s after their removal: %v", name, list)
	}
}

// Nobody reads what a command says whose caller has left: it ends with all that it started, at whatever moment he leaves.
func TestCommandEndsWithItsCaller(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	c := lab.RunPod(t).Run("main", "exec clockwork pause")
	random, n := chance(t), lab.Node()
	commands := func() int { return strings.Count(c.Sh("ps -o args"), "sleep 471") }
	ctx, giveUp := context.WithCancel(context.Background())
	go func() { _, _, _ = n.ExecSync(ctx, c.ID, []string{"sleep", "4710"}, time.Minute) }()
	lab.Eventually(t, "a command is seen", func() bool { return commands() == 1 })
	giveUp()
	for range 40 {
		ctx, giveUp := context.WithTimeout(context.Background(), time.Duration(random.Int64N(int64(20*time.Millisecond))))
		_, _, _ = n.ExecSync(ctx, c.ID, []string{"/bin/sh", "-c", "sleep 4711 & sleep 4712"}, time.Minute)
		giveUp()
	}
	lab.Eventually(t, "no command is left", func() bool { return commands() == 0 })
	if got := c.Sh("echo alive"); got != "alive" {
		t.Errorf("the container says %q", got)
	}
}

// A pull that was given up leaves nothing that stands in the way of the next, or that stays when the image goes.
func TestPullThatIsGivenUpAndAskedAgain(t *testing.T) {
	lab.Image(t, "clockwork:1")
	random, n, ctx := chance(t), lab.Node(), lab.Context(t)
	image := &runtimeapi.ImageSpec{Image: lab.Reference("layers:1")}
	var ids []string
	for range 8 {
		asked(t, random, "PullImage", 40*time.Millisecond, func(ctx context.Context) error {
			id, err := n.Images.PullImage(ctx, image, nil, nil)
			if err == nil {
				ids = append(ids, id)
			}
			return err
		})
		for range 2 { // a removal is as safe to repeat
			if err := n.Images.RemoveImage(ctx, image); err != nil {
				t.Fatalf("RemoveImage: %v", err)
			}
		}
	}
	same(t, "ids of the image", ids)
	if list, err := n.Images.ListImages(ctx, &runtimeapi.ImageFilter{Image: image}); err != nil || len(list) != 0 {
		t.Errorf("images after their removal: %v, %v", list, err)
	}
}

// RunPodSandbox promises a pod that is up: the same request for one that has ended is told so, and how to go on.
func TestPodThatHasEndedIsNotTheAnswer(t *testing.T) {
	lab.Clean(t, lab.Node())
	p, n, ctx := lab.RunPod(t), lab.Node(), lab.Context(t)
	if err := n.StopPodSandbox(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	_, err := n.RunPodSandbox(ctx, p.Config, "")
	lab.WantCode(t, "the same request again", err, codes.AlreadyExists, p.ID, "remove it")
	if err := n.RemovePodSandbox(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	id, err := n.RunPodSandbox(ctx, p.Config, "")
	if err != nil || slices.Contains([]string{"", p.ID}, id) {
		t.Fatalf("once it is removed: %q, %v", id, err)
	}
	lab.Adopt(t, id, p.Config)
}

// A daemon that dies in the middle of a call is asked again when it is back.
func TestCallsOverTheEndOfTheDaemon(t *testing.T) {
	image := lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	random, n := chance(t), lab.Node()
	for round := range 3 {
		name := fmt.Sprint("outlived-", round)
		config := client.Pod(name, t.TempDir())
		wanted := client.Container(config, "main", image, []string{"/bin/clockwork", "pause"})
		var pod, container string
		up := func(ctx context.Context) (err error) {
			if pod, err = n.RunPodSandbox(ctx, config, ""); err != nil {
				return err
			}
			if container, err = n.CreateContainer(ctx, pod, wanted, config); err != nil {
				return err
			}
			return n.StartContainer(ctx, container)
		}
		ended := make(chan error)
		go func() { ended <- up(lab.Context(t)) }()
		time.Sleep(time.Duration(random.Int64N(int64(25 * time.Millisecond))))
		n.Kill()
		<-ended
		if err := n.Start(lab.Context(t)); err != nil {
			t.Fatal(err)
		}
		if err := up(lab.Context(t)); err != nil {
			t.Fatalf("asked again: %v", err)
		}
		lab.Adopt(t, pod, config)
		if list := sandboxes(t, name); len(list) != 1 || len(containers(t, pod)) != 1 {
			t.Errorf("pods %v with containers %v, want one of each", list, containers(t, pod))
		}
	}
}
