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

// Requests that break the contract of CheckpointPod are refused by name; the pod runs and the directory is as it was.
func TestCheckpointPodContract(t *testing.T) {
	s := run(t, []string{"count"}, []string{"serve"})
	await(t, s.Config, "count", "5 ", 0)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(full, "mine")
	empty := func() string { return t.TempDir() }
	ids := s.ids()
	for name, c := range map[string]struct {
		path    string
		ids     []string
		options map[string]string
		code    codes.Code
		says    string
	}{
		"relative path":     {"checkpoint", ids, nil, codes.InvalidArgument, "output_path"},
		"no path":           {"", ids, nil, codes.InvalidArgument, "output_path"},
		"missing directory": {filepath.Join(full, "none"), ids, nil, codes.InvalidArgument, "output_path"},
		"a file":            {file, ids, nil, codes.InvalidArgument, "output_path"},
		"not empty":         {full, ids, nil, codes.InvalidArgument, "empty"},
		"symbolic link":     {link, ids, nil, codes.InvalidArgument, "output_path"},
		"no containers":     {empty(), nil, nil, codes.InvalidArgument, "container_ids"},
		"twice the same":    {empty(), []string{ids[0], ids[0], ids[1]}, nil, codes.InvalidArgument, "container_ids"},
		"not all":           {empty(), ids[:1], nil, codes.InvalidArgument, "container_ids"},
		"unknown container": {empty(), append(ids[:1:1], strings.Repeat("a", 64)), nil, codes.NotFound, "aaaa"},
		"unknown option":    {empty(), ids, map[string]string{"tcp": "yes"}, codes.InvalidArgument, "tcp"},
	} {
		t.Run(name, func(t *testing.T) {
			err := s.try(c.path, c.options, c.ids...)
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %s and %q", err, c.code, c.says)
			}
			s.keepsCounting("count")
		})
	}
	t.Run("no deadline", func(t *testing.T) {
		_, err := lab.Node().Runtime.CheckpointPod(context.Background(), &runtimeapi.CheckpointPodRequest{
			PodSandboxId: s.ID, OutputPath: empty(), ContainerIds: ids})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "deadline") {
			t.Errorf("%v; want InvalidArgument and deadline", err)
		}
	})
}

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

// A checkpoint that is not what was written is refused before CRIU reads a byte, and nothing is left behind.
func TestHostileCheckpoints(t *testing.T) {
	s := run(t, []string{"count"})
	await(t, s.Config, "count", "5 ", 0)
	good := s.checkpoint()
	archive := func(directory string) string {
		found, _ := filepath.Glob(filepath.Join(directory, "*.tar"))
		return found[0]
	}
	for name, harm := range map[string]func(t *testing.T, directory string){
		"symbolic link": func(t *testing.T, directory string) {
			must(t, os.Rename(archive(directory), filepath.Join(filepath.Dir(directory), "elsewhere")))
			must(t, os.Symlink("../elsewhere", filepath.Join(directory, filepath.Base(archive(good)))))
		},
		"extra file": func(t *testing.T, directory string) {
			must(t, os.WriteFile(filepath.Join(directory, "extra"), []byte("x"), 0o600))
		},
		"missing archive":  func(t *testing.T, directory string) { must(t, os.Remove(archive(directory))) },
		"missing manifest": func(t *testing.T, directory string) { must(t, os.Remove(filepath.Join(directory, "meridian.json"))) },
		"fifo": func(t *testing.T, directory string) {
			must(t, os.Remove(archive(directory)))
			must(t, exec.Command("mkfifo", filepath.Join(directory, filepath.Base(archive(good)))).Run())
		},
		"truncated": func(t *testing.T, directory string) { must(t, os.Truncate(archive(directory), 4096)) },
		"flipped bit": func(t *testing.T, directory string) {
			text, err := os.ReadFile(archive(directory))
			must(t, err)
			text[len(text)/2] ^= 1
			must(t, os.WriteFile(archive(directory), text, 0o600))
		},
		"unknown version": func(t *testing.T, directory string) {
			path := filepath.Join(directory, "meridian.json")
			text, err := os.ReadFile(path)
			must(t, err)
			changed := strings.Replace(strings.Replace(string(text), `"version": 1`, `"version": 99`, 1), `"version":1`, `"version":99`, 1)
			must(t, os.WriteFile(path, []byte(changed), 0o600))
		},
		"manifest is no JSON": func(t *testing.T, directory string) {
			must(t, os.WriteFile(filepath.Join(directory, "meridian.json"), []byte("{"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			lab.Clean(t, lab.Node())
			directory := filepath.Join(t.TempDir(), "checkpoint")
			must(t, exec.Command("cp", "-a", good, directory).Run())
			harm(t, directory)
			_, err := restore(t, directory, s.anotherPod("hostile"), s.configs())
			switch status.Code(err) {
			case codes.InvalidArgument, codes.DataLoss, codes.FailedPrecondition:
				t.Log(err)
			default:
				t.Errorf("%v; want InvalidArgument, DataLoss or FailedPrecondition", err)
			}
		})
	}
	r, err := restore(t, good, s.anotherPod("sound"), s.configs())
	if err != nil {
		t.Fatalf("the sound checkpoint: %v", err)
	}
	r.start("count")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
