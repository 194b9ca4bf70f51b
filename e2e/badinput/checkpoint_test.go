package badinput

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// writing is a row that asks for a checkpoint of the table's pod into a fresh directory, good but for one change. The
// directory must be empty afterwards.
func writing(name string, change func(*scene, *runtimeapi.CheckpointPodRequest), codes []codes.Code, words ...string) row {
	return row{"checkpoint " + name, func(s *scene) error {
		directory := s.TempDir()
		request := &runtimeapi.CheckpointPodRequest{PodSandboxId: s.pod.ID, OutputPath: directory, ContainerIds: []string{s.container.ID}}
		change(s, request)
		_, err := s.Runtime.CheckpointPod(s.ctx, request)
		if left, readError := os.ReadDir(directory); readError != nil || len(left) > 0 && request.OutputPath == directory {
			s.Errorf("left in the directory: %v, %v", left, readError)
		}
		return err
	}, codes, words}
}

func TestCheckpointRequests(t *testing.T) {
	run(t, []row{
		writing("of an unknown pod", func(_ *scene, r *runtimeapi.CheckpointPodRequest) { r.PodSandboxId = unknown }, []codes.Code{codes.NotFound}, unknown[:12]),
		writing("into a relative path", func(_ *scene, r *runtimeapi.CheckpointPodRequest) { r.OutputPath = "out" }, refused, "output_path", "absolute"),
		writing("into nothing", func(_ *scene, r *runtimeapi.CheckpointPodRequest) { r.OutputPath = "" }, refused, "output_path"),
		writing("into a missing directory", func(s *scene, r *runtimeapi.CheckpointPodRequest) { r.OutputPath = s.canary + "/missing" }, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound}, "/missing", "existing directory"),
		writing("into a directory that is not empty", func(s *scene, r *runtimeapi.CheckpointPodRequest) { r.OutputPath = s.canary }, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "/canary-", "empty"),
		writing("into a file", func(s *scene, r *runtimeapi.CheckpointPodRequest) { r.OutputPath = s.canary + "/file" }, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "/file", "directory"),
		writing("through a link", func(s *scene, r *runtimeapi.CheckpointPodRequest) {
			link := filepath.Join(s.TempDir(), "link")
			if err := os.Symlink(r.OutputPath, link); err != nil {
				s.Fatal(err)
			}
			r.OutputPath = link
		}, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "/link", "symbolic link"),
		writing("of no container", func(_ *scene, r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = nil }, refused, "container_ids"),
		writing("of a container twice", func(_ *scene, r *runtimeapi.CheckpointPodRequest) {
			r.ContainerIds = append(r.ContainerIds, r.ContainerIds[0])
		}, refused, "container_ids"),
		writing("of an unknown container", func(_ *scene, r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = []string{unknown} }, []codes.Code{codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition}, "container_ids"),
		writing("of not all running containers", func(s *scene, r *runtimeapi.CheckpointPodRequest) {
			config := client.Container(s.pod.Config, "second", lab.Image(s.T, "clockwork:1"), []string{"clockwork", "pause"})
			created, err := s.CreateContainer(s.ctx, s.pod.ID, config, s.pod.Config)
			if err != nil {
				s.Fatal(err)
			}
			s.Cleanup(func() { _ = lab.Node().RemoveContainer(context.Background(), created) })
			if err := s.StartContainer(s.ctx, created); err != nil {
				s.Fatal(err)
			}
		}, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "container_ids"),
		writing("with an unknown option", func(_ *scene, r *runtimeapi.CheckpointPodRequest) { r.Options = map[string]string{"no-such-key": "1"} }, refused, "option", "no-such-key"),
		{"checkpoint without a deadline", func(s *scene) error {
			_, err := s.Runtime.CheckpointPod(context.Background(), &runtimeapi.CheckpointPodRequest{PodSandboxId: s.pod.ID, OutputPath: s.TempDir(), ContainerIds: []string{s.container.ID}})
			return err
		}, refused, []string{"deadline"}},
		{"container archive over an existing file", func(s *scene) error {
			_, err := s.Runtime.CheckpointContainer(s.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: s.container.ID, Location: s.canary + "/file", Timeout: 10})
			return err
		}, []codes.Code{codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition}, []string{"/file", "exist"}},
		{"container archive at a relative path", func(s *scene) error {
			_, err := s.Runtime.CheckpointContainer(s.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: s.container.ID, Location: "x.tar", Timeout: 10})
			return err
		}, refused, []string{"location"}},
		{"container archive in a missing directory", func(s *scene) error {
			_, err := s.Runtime.CheckpointContainer(s.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: s.container.ID, Location: s.canary + "/missing/x.tar", Timeout: 10})
			return err
		}, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound}, []string{"/missing/", "existing directory"}},
	})
}

// original is a good checkpoint and the requests that it was made from.
type original struct {
	directory string
	pod       *podConfig
	container *containerConfig
}

// reading is a row that restores a copy of a good checkpoint, with one change to the copy or to the request.
func reading(name string, good *original, damage func(*scene, string), change func(*scene, *runtimeapi.RestorePodRequest), codes []codes.Code, words ...string) row {
	return row{"restore " + name, func(s *scene) error {
		directory := s.TempDir()
		if err := os.CopyFS(directory, os.DirFS(good.directory)); err != nil {
			return err
		}
		config := proto.Clone(good.pod).(*podConfig)
		config.Metadata.Uid, config.LogDirectory = client.Unique(), s.TempDir()
		request := &runtimeapi.RestorePodRequest{CheckpointPath: directory, Config: config,
			ContainerConfigs: []*containerConfig{proto.Clone(good.container).(*containerConfig)}}
		if damage != nil {
			damage(s, directory)
		}
		if change != nil {
			change(s, request)
		}
		response, err := s.Runtime.RestorePod(s.ctx, request)
		if err == nil {
			_, _ = s.Runtime.RemovePodSandbox(s.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: response.PodSandboxId})
		}
		return err
	}, codes, words}
}

// pick finds the best regular file of a checkpoint.
func pick(s *scene, directory string, better func(a, b fs.FileInfo) bool) string {
	best := ""
	var chosen fs.FileInfo
	_ = filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil && (chosen == nil || better(info, chosen)) {
			best, chosen = path, info
		}
		return err
	})
	if best == "" {
		s.Fatalf("no file in %s", directory)
	}
	return best
}

func larger(a, b fs.FileInfo) bool { return a.Size() > b.Size() }

// manifest is the path of meridian.json.
func manifest(directory string) string { return filepath.Join(directory, "meridian.json") }

func flip(where func(size int) int) func(*scene, string) {
	return func(s *scene, directory string) {
		path := pick(s, directory, larger)
		text, err := os.ReadFile(path)
		if err != nil {
			s.Fatal(err)
		}
		text[where(len(text))] ^= 1
		if err := os.WriteFile(path, text, 0o600); err != nil {
			s.Fatal(err)
		}
	}
}

// edit replaces every top-level value whose key contains a word in meridian.json.
func edit(word string, value any) func(*scene, string) {
	return func(s *scene, directory string) {
		text, err := os.ReadFile(manifest(directory))
		if err != nil {
			s.Fatal(err)
		}
		var document map[string]any
		if err := json.Unmarshal(text, &document); err != nil {
			s.Fatal(err)
		}
		found := false
		for key := range document {
			if strings.Contains(strings.ToLower(key), word) {
				document[key], found = value, true
			}
		}
		if !found {
			s.Fatalf("no key with %q in %s", word, text)
		}
		text, _ = json.Marshal(document)
		if err := os.WriteFile(manifest(directory), text, 0o600); err != nil {
			s.Fatal(err)
		}
	}
}

func TestRestoreRequests(t *testing.T) {
	good := write(t)
	dataLoss := []codes.Code{codes.DataLoss, codes.InvalidArgument, codes.FailedPrecondition}
	mismatch := []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}
	run(t, []row{
		reading("from a missing directory", good, nil, func(s *scene, r *runtimeapi.RestorePodRequest) { r.CheckpointPath = s.canary + "/missing" }, []codes.Code{codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition}, "checkpoint_path"),
		reading("from a relative path", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "x" }, refused, "checkpoint_path"),
		reading("from any directory", good, nil, func(s *scene, r *runtimeapi.RestorePodRequest) { r.CheckpointPath = s.canary }, dataLoss, "meridian.json"),
		reading("without the manifest", good, func(s *scene, d string) { must(s, os.Remove(manifest(d))) }, nil, dataLoss, "meridian.json"),
		reading("with a manifest that is no JSON", good, func(s *scene, d string) { must(s, os.WriteFile(manifest(d), []byte("{"), 0o600)) }, nil, dataLoss, "meridian.json"),
		reading("of an unknown format version", good, edit("version", 999), nil, mismatch, "version", "999"),
		reading("with one bit flipped at the start", good, flip(func(int) int { return 0 }), nil, dataLoss),
		reading("with one bit flipped in the middle", good, flip(func(size int) int { return size / 2 }), nil, dataLoss, "digest"),
		reading("with one bit flipped at the end", good, flip(func(size int) int { return size - 1 }), nil, dataLoss, "digest"),
		reading("with a file cut short", good, func(s *scene, d string) {
			path := pick(s, d, larger)
			info, err := os.Stat(path)
			must(s, err)
			must(s, os.Truncate(path, info.Size()/2))
		}, nil, dataLoss),
		reading("with a missing file", good, func(s *scene, d string) { must(s, os.Remove(pick(s, d, larger))) }, nil, dataLoss),
		reading("with an extra file", good, func(s *scene, d string) {
			must(s, os.WriteFile(filepath.Join(d, "extra.img"), []byte("x"), 0o600))
		}, nil, dataLoss, "extra.img"),
		reading("with an extra directory", good, func(s *scene, d string) { must(s, os.Mkdir(filepath.Join(d, "extra"), 0o700)) }, nil, dataLoss, "extra"),
		reading("with a link in place of a file", good, func(s *scene, d string) {
			path := pick(s, d, larger)
			other := filepath.Join(s.TempDir(), "moved")
			must(s, os.Rename(path, other))
			must(s, os.Symlink(other, path))
		}, nil, dataLoss),
		reading("with a fifo", good, func(s *scene, d string) {
			path := pick(s, d, larger)
			must(s, os.Remove(path))
			must(s, mkfifo(path))
		}, nil, dataLoss),
		reading("with a link in place of the manifest", good, func(s *scene, d string) {
			must(s, os.Remove(manifest(d)))
			must(s, os.Symlink(filepath.Join(good.directory, "meridian.json"), manifest(d)))
		}, nil, dataLoss, "meridian.json"),
		reading("with a manifest of 64 MiB", good, func(s *scene, d string) {
			must(s, os.WriteFile(manifest(d), bytes.Repeat([]byte(" "), 64<<20), 0o600))
		}, nil, append(dataLoss, codes.ResourceExhausted), "meridian.json"),
		reading("under another name", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Metadata.Name = "other" }, mismatch, "other"),
		reading("of a container too many", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) {
			more := proto.Clone(r.ContainerConfigs[0]).(*containerConfig)
			more.Metadata.Name = "more"
			r.ContainerConfigs = append(r.ContainerConfigs, more)
		}, mismatch, "more"),
		reading("without its container", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = nil }, mismatch, "container_configs"),
		reading("with another image", good, nil, func(s *scene, r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Image.Image = lab.Image(s.T, "busybox:1")
		}, mismatch, "image"),
		reading("with another command", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Command = []string{"/bin/other"}
		}, mismatch, "command"),
		reading("with another argument", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Args = []string{"x"} }, mismatch, "args"),
		reading("with another variable", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Envs = []*runtimeapi.KeyValue{{Key: "NEW", Value: []byte("1")}}
		}, mismatch, "env"),
		reading("in another working directory", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].WorkingDir = "/tmp" }, mismatch, "working"),
		reading("as another user", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		}, mismatch, "user"),
		reading("with an unknown option", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.Options = map[string]string{"no-such-key": "1"} }, refused, "no-such-key"),
		reading("with an unknown handler", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "nonesuch" }, refused, "nonesuch"),
		reading("without a configuration", good, nil, func(_ *scene, r *runtimeapi.RestorePodRequest) { r.Config = nil }, refused, "config"),
		{"restore without a deadline", func(s *scene) error {
			_, err := s.Runtime.RestorePod(context.Background(), &runtimeapi.RestorePodRequest{CheckpointPath: good.directory, Config: good.pod, ContainerConfigs: []*containerConfig{good.container}})
			return err
		}, refused, []string{"deadline"}},
	})
}

// write makes a good checkpoint of a small pod that is then removed.
func write(t *testing.T) *original {
	t.Helper()
	lab.Image(t, "clockwork:1")
	lab.Image(t, "busybox:1")
	pod := lab.RunPod(t)
	container := pod.Run("app", "exec clockwork count 4")
	directory := t.TempDir()
	ctx, cancel := context.WithTimeout(lab.Context(t), 30*time.Second)
	defer cancel()
	err := lab.Node().CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: pod.ID, OutputPath: directory, ContainerIds: []string{container.ID}})
	if err != nil {
		t.Fatalf("CheckpointPod: %v", err)
	}
	pod.Remove()
	return &original{directory, pod.Config, container.Config}
}

func must(s *scene, err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}
