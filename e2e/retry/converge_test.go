package retry

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// One request twenty times at once, for every call of a pod's life.
func TestDuplicatesConverge(t *testing.T) {
	image := lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	const times = 20
	n, ctx, config := lab.Node(), lab.Context(t), client.Pod("duplicates", t.TempDir())
	wanted := client.Container(config, "main", image, []string{"/bin/sh", "-c", patient})
	pods, created := make([]string, times), make([]string, times)
	all := func(what string, call func(int) error) {
		t.Helper()
		atOnce(times, func(i int) {
			if err := call(i); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	all("RunPodSandbox", func(i int) (err error) { pods[i], err = n.RunPodSandbox(ctx, config, ""); return err })
	same(t, "pods", pods)
	all("CreateContainer", func(i int) (err error) {
		created[i], err = n.CreateContainer(ctx, pods[0], wanted, config)
		return err
	})
	same(t, "containers", created)
	all("StartContainer", func(int) error { return n.StartContainer(ctx, created[0]) })
	log := filepath.Join(config.LogDirectory, wanted.LogPath)
	lab.Eventually(t, "the container says so", func() bool { return lines(t, log, "started") > 0 })
	within(t, 3*time.Second, "stopping", func() error {
		all("StopContainer", func(int) error { return n.StopContainer(ctx, created[0], 1) })
		return nil
	})
	if starts, stops := lines(t, log, "started"), lines(t, log, "asked"); starts != 1 || stops != 1 {
		t.Errorf("started %d times, asked to stop %d times, want once each", starts, stops)
	}
	all("RemoveContainer", func(int) error { return n.RemoveContainer(ctx, created[0]) })
	all("StopPodSandbox", func(int) error { return n.StopPodSandbox(ctx, pods[0]) })
	all("RemovePodSandbox", func(int) error { return n.RemovePodSandbox(ctx, pods[0]) })
	if list := sandboxes(t, "duplicates"); len(list) != 0 {
		t.Errorf("still there: %v", list)
	}
}

// Limits that are changed at once are all in force in the end: none is set from what was before another.
func TestUpdatesAtOnceAddUp(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	c := lab.RunPod(t).Run("main", "exec clockwork pause")
	ctx := lab.Context(t)
	for round := range int64(5) {
		shares, quota, bytes := 100+round, 20_000+1000*round, (64+round)<<20
		updates := []*runtimeapi.LinuxContainerResources{
			{CpuShares: shares}, {CpuQuota: quota, CpuPeriod: 100_000}, {MemoryLimitInBytes: bytes, MemorySwapLimitInBytes: bytes},
		}
		atOnce(4*len(updates), func(i int) {
			request := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: updates[i%len(updates)]}
			if _, err := lab.Node().Runtime.UpdateContainerResources(ctx, request); err != nil {
				t.Errorf("UpdateContainerResources: %v", err)
			}
		})
		got := c.Status().Resources.GetLinux()
		if got.CpuShares != shares || got.CpuQuota != quota || got.MemoryLimitInBytes != bytes {
			t.Errorf("in the status: %v, want %d shares, a quota of %d and %d bytes", got, shares, quota, bytes)
		}
		if in := inKernel(t, c, "memory", "memory.limit_in_bytes", "memory.max"); in != fmt.Sprint(bytes) {
			t.Errorf("memory in the kernel: %s, want %d", in, bytes)
		}
		if in := inKernel(t, c, "cpu", "cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(in, fmt.Sprint(quota)) {
			t.Errorf("quota in the kernel: %s, want %d", in, quota)
		}
	}
}

// inKernel is a limit of a container's cgroup, where v1 or v2 has it.
func inKernel(t *testing.T, c *lab.Container, controller, v1, v2 string) string {
	t.Helper()
	for _, pattern := range []string{controller + "/*/" + c.Pod.ID + "/" + c.ID + "/" + v1, "*/" + c.Pod.ID + "/" + c.ID + "/" + v2} {
		if found, _ := filepath.Glob("/sys/fs/cgroup/" + pattern); len(found) == 1 {
			text, err := os.ReadFile(found[0])
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(text))
		}
	}
	t.Fatalf("no %s of container %s", v1, c.ID)
	return ""
}

// counter passes requests on to a registry, and counts how often each blob was asked for.
type counter struct {
	sync.Mutex
	address string
	blobs   map[string]int
}

func countingRegistry(t *testing.T) *counter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{address: listener.Addr().String(), blobs: map[string]int{}}
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: lab.Registry()})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, digest, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet {
			c.Lock()
			c.blobs[digest]++
			c.Unlock()
		}
		behind.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return c
}

func TestPullsAtOnceDownloadOnce(t *testing.T) {
	registry, n, ctx := countingRegistry(t), lab.Node(), lab.Context(t)
	image := &runtimeapi.ImageSpec{Image: registry.address + "/meridian/layers:zstd"}
	ids := make([]string, 10)
	atOnce(len(ids), func(i int) {
		var err error
		if ids[i], err = n.Images.PullImage(ctx, image, nil, nil); err != nil {
			t.Errorf("PullImage: %v", err)
		}
	})
	same(t, "ids", ids)
	status, err := n.Images.ImageStatus(ctx, image, false)
	if err != nil || status.Image.GetId() != ids[0] {
		t.Fatalf("ImageStatus: %v, %v", status, err)
	}
	if len(registry.blobs) < 2 {
		t.Errorf("downloaded: %v, want layers too", registry.blobs)
	}
	for digest, times := range registry.blobs {
		if times != 1 && digest != ids[0] { // each asks what the image is: its configuration, some hundred bytes
			t.Errorf("%s was downloaded %d times", digest, times)
		}
	}
	if err := n.Images.RemoveImage(ctx, image); err != nil {
		t.Error(err)
	}
}
