// Package badinput sends a node what no honest client sends. Every case is a row: what is asked, the code that must come
// back, and the words its message must contain, which name the field or file and the rule. Around every row a census
// shows that nothing was left behind, a canary that nothing outside was touched, and a bystander pod that others live on.
package badinput

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func TestMain(m *testing.M) { lab.MainWith(m, trusting) }

// row is one bad input.
type row struct {
	name string
	// call sends it and returns what came back.
	call func(*scene) error
	// codes lists the acceptable codes; OK among them means that the input may be made harmless instead.
	codes []codes.Code
	// words must all be in the message, whatever their case.
	words []string
}

// scene is what a row may use.
type scene struct {
	*testing.T
	*client.Client
	ctx    context.Context
	canary string
	// pod is ready, with one running container; both belong to the whole table.
	pod       *lab.Pod
	container *lab.Container
}

func invalid(words ...string) ([]codes.Code, []string) {
	return []codes.Code{codes.InvalidArgument}, words
}

// run runs a table. Rows share a pod, which must come out of it unharmed.
func run(t *testing.T, rows []row) {
	lab.Image(t, "clockwork:1")
	pod := lab.RunPod(t)
	container := pod.Run("bystander", "exec clockwork pause") // no child processes that come and go
	// The first census must find it under its last name.
	container.Sh("while grep -q exec /proc/1/cmdline || ! grep -q pause /proc/1/cmdline; do sleep 0.01; done")
	pid := lab.Node().Pid()
	t.Logf("%d cases", len(rows))
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			canary := plant(t)
			before := digest(t, canary)
			lab.Clean(t, lab.Node())
			err := row.call(&scene{t, lab.Node().Client, lab.Context(t), canary, pod, container})
			judge(t, row, err)
			if after := digest(t, canary); after != before {
				t.Errorf("the canary changed: %s", after)
			}
			if got := container.Sh("echo alive"); got != "alive" {
				t.Error("the bystander does not answer")
			}
			if lab.Node().Pid() != pid {
				t.Error("the daemon was replaced")
			}
		})
	}
}

func judge(t *testing.T, row row, err error) {
	t.Helper()
	code := status.Code(err)
	if !slices.Contains(row.codes, code) {
		t.Errorf("code %s (%v), want one of %v", code, err, row.codes)
	}
	if err == nil {
		return
	}
	message := strings.ToLower(status.Convert(err).Message())
	for _, word := range row.words {
		if !strings.Contains(message, strings.ToLower(word)) {
			t.Errorf("message %q does not say %q", message, word)
		}
	}
	if len(message) > 4096 {
		t.Errorf("the message has %d bytes", len(message))
	}
}

// plant makes a directory that no request may change. It lies beside the node's own directories.
func plant(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "canary-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	for _, name := range []string{"file", "etc/passwd", "cron.d/job"} {
		path := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(client.Unique()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}

// digest covers names, modes, owners, change times and contents below a directory.
func digest(t *testing.T, directory string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, path, info.Mode(), info.ModTime().UnixNano(), info.Size())
		if entry.Type().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum.Write(text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// sandbox is a row that asks for a pod whose configuration is good but for one change.
func sandbox(name string, change func(*runtimeapi.PodSandboxConfig), codes []codes.Code, words []string) row {
	return row{"sandbox " + name, func(s *scene) error {
		config := client.Pod("bad-"+client.Unique()[:5], s.TempDir())
		change(config)
		response, err := s.Runtime.RunPodSandbox(s.ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		if err == nil {
			_, _ = s.Runtime.RemovePodSandbox(s.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: response.PodSandboxId})
		}
		return err
	}, codes, words}
}

// container is a row that asks for a container, good but for one change, in the table's pod. A fault that only the start
// can show may show there.
func container(name string, change func(*scene, *runtimeapi.ContainerConfig), codes []codes.Code, words []string) row {
	return row{"container " + name, func(s *scene) error {
		config := client.Container(s.pod.Config, "bad-"+client.Unique()[:5], lab.Image(s.T, "clockwork:1"), []string{"/bin/sleep", "1"})
		change(s, config)
		response, err := s.Runtime.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod.ID, Config: config, SandboxConfig: s.pod.Config})
		if err == nil {
			_, _ = s.Runtime.RemoveContainer(s.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: response.ContainerId})
		}
		return err
	}, codes, words}
}

// repeated is a text of n letters.
func repeated(n int) string { return strings.Repeat("x", n) }

// within bounds one call of a row.
func within(s *scene, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, limit)
}
