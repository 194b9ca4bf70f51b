package checkpoint

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// Whenever the deadline strikes, the pod runs and the directory is there, and empty unless the call succeeded.
func TestDeadlineSweep(t *testing.T) {
	s := run(t, []string{"count", "32"})
	await(t, s.Config, "32", "5 ", 0)
	for _, timeout := range []time.Duration{1, 5, 10, 20, 30, 40, 60, 80, 120, 200} {
		directory := t.TempDir()
		ctx, cancel := context.WithTimeout(context.Background(), timeout*time.Millisecond)
		_, err := lab.Node().Runtime.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{
			PodSandboxId: s.ID, OutputPath: directory, ContainerIds: s.ids()})
		cancel()
		// Whose clock strikes first decides between the first two; the third is said while the call before is cleaned up.
		switch status.Code(err) {
		case codes.OK, codes.DeadlineExceeded, codes.Canceled, codes.FailedPrecondition:
		default:
			t.Errorf("%d ms: %v", timeout, err)
		}
		s.keepsCounting("32")
		if err != nil {
			settlesEmpty(t, directory)
		}
	}
}

func settlesEmpty(t *testing.T, directory string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		entries, err := os.ReadDir(directory)
		if err == nil && len(entries) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("partial files are left: %v %v", entries, err)
		}
	}
}

// checkpointctl reads what was written, for the whole pod and for a single container.
func TestCheckpointctlReads(t *testing.T) {
	s := run(t, []string{"count", "4"}, []string{"serve"})
	await(t, s.Config, "4", "5 ", 0)
	directory := s.checkpoint()
	archives, err := filepath.Glob(filepath.Join(directory, "*.tar"))
	if err != nil || len(archives) != 2 {
		t.Fatalf("archives %v, %v; want one tar for each container", archives, err)
	}
	single := filepath.Join(t.TempDir(), "checkpoint-single.tar")
	if err := lab.Node().CheckpointContainer(lab.Context(t), &runtimeapi.CheckpointContainerRequest{
		ContainerId: s.containers[0].ID, Location: single}); err != nil {
		t.Fatal(err)
	}
	s.keepsCounting("4")
	for _, archive := range append(archives, single) {
		for _, arguments := range [][]string{{"show", archive}, {"inspect", "--all", archive}} {
			output, err := exec.Command(filepath.Join(node.Cache(), "bin/checkpointctl"), arguments...).CombinedOutput()
			if err != nil {
				t.Errorf("checkpointctl %v: %v\n%s", arguments, err, output)
			} else if !strings.Contains(string(output), s.containers[0].Config.Image.Image) {
				t.Errorf("checkpointctl %v does not show the image:\n%s", arguments, output)
			}
		}
		entries(t, archive, "config.dump", "spec.dump", "status.dump", "checkpoint/inventory.img", "rootfs-diff.tar")
	}
}

// entries wants an archive to hold each name, and regular files and directories only.
func entries(t *testing.T, archive string, names ...string) {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	found := map[string]bool{}
	for reader := tar.NewReader(file); ; {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeReg && header.Typeflag != tar.TypeDir {
			t.Errorf("%s is of type %c", header.Name, header.Typeflag)
		}
		found[strings.TrimPrefix(header.Name, "./")] = true
	}
	for _, name := range names {
		if !found[name] {
			t.Errorf("%s lacks %s", filepath.Base(archive), name)
		}
	}
}
