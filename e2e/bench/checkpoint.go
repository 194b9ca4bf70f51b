package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/node"
	"meridian.dev/e2e/pair"
)

// plain is CRIU by itself on the same workload: no pod, no root filesystem, no namespaces, no network, no transfer.
const plain = "plain CRIU"

// scratch is where both write their images: memory, so that no disk is measured. A world's /run is a tmpfs.
const scratch = "/run/bench"

// checkpoints measures how long the workload stood still while it was written down and went on, and how long it takes
// to bring it back. The workload itself tells the first: it reads its clocks in a tight loop and holds so much memory.
func checkpoints(ctx context.Context, b *bench) error {
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return err
	}
	for _, size := range b.sizes {
		for range b.rounds {
			if err := checkpointPod(ctx, b, size); err != nil {
				return err
			}
			if err := checkpointPlain(ctx, b, size); err != nil {
				return err
			}
		}
	}
	return nil
}

func frozen(size int) string   { return fmt.Sprintf("frozen for a checkpoint, %d MiB", size) }
func restored(size int) string { return fmt.Sprintf("restore, %d MiB", size) }

func checkpointPod(ctx context.Context, b *bench, size int) (err error) {
	c := b.contenders[0]
	p, _, err := c.up(ctx, "tight", fmt.Sprint(size))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove(ctx)) }()
	directory, err := os.MkdirTemp(scratch, "pod-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	watch := watcher{path: p.log(), prefix: 4}
	if err := watch.await("alive"); err != nil {
		return err
	}
	began := time.Now()
	request := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: directory, ContainerIds: []string{p.container}}
	if err := c.client.CheckpointPod(ctx, request); err != nil {
		return fmt.Errorf("CheckpointPod of %d MiB: %w", size, err)
	}
	b.report.sample(fmt.Sprintf("CheckpointPod, %d MiB", size), c.name, time.Since(began))
	gap, err := watch.gap()
	if err != nil {
		return err
	}
	b.report.sample(frozen(size), c.name, gap.Realtime)
	if err := p.remove(ctx); err != nil {
		return err
	}
	return restorePod(ctx, b, p, directory, size)
}

func restorePod(ctx context.Context, b *bench, p *pod, directory string, size int) error {
	c := p.on
	config := client.Pod(p.config.Metadata.Name, c.logs, func(config *runtimeapi.PodSandboxConfig) {
		config.Linux.CgroupParent = c.cgroup
	})
	container := client.Container(config, "app", c.image, []string{"clockwork", "tight", fmt.Sprint(size)})
	began := time.Now()
	response, err := c.client.RestorePod(ctx, &runtimeapi.RestorePodRequest{
		CheckpointPath: directory, Config: config, ContainerConfigs: []*runtimeapi.ContainerConfig{container},
	})
	if err != nil {
		return fmt.Errorf("RestorePod of %d MiB: %w", size, err)
	}
	again := &pod{on: c, id: response.PodSandboxId, config: config, container: response.RestoredContainers[0].ContainerId}
	err = c.client.StartContainer(ctx, again.container)
	b.report.sample(restored(size), c.name, time.Since(began))
	watch := watcher{path: again.log(), prefix: 4}
	if err == nil {
		err = watch.await("alive")
	}
	return errors.Join(err, again.remove(ctx))
}

// checkpointPlain does the same with the workload as a bare process and CRIU from the command line.
func checkpointPlain(ctx context.Context, b *bench, size int) error {
	directory, err := os.MkdirTemp(scratch, "plain-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	task, watch, err := bare(directory, size)
	if err != nil {
		return err
	}
	defer func() {
		_ = task.Process.Kill()
		_ = task.Wait()
	}()
	if err := watch.await("alive"); err != nil {
		return err
	}
	if err := criu(ctx, directory, "dump", "--leave-running", "-t", fmt.Sprint(task.Process.Pid)); err != nil {
		return err
	}
	gap, err := watch.gap()
	if err != nil {
		return err
	}
	b.report.sample(frozen(size), plain, gap.Realtime)
	return movePlain(ctx, b, directory, size, task, watch)
}

// movePlain dumps the process so that it ends, and restores it at once from the same memory: its downtime is what a move
// would cost if nothing had to be sent anywhere.
func movePlain(ctx context.Context, b *bench, directory string, size int, task *exec.Cmd, watch *watcher) error {
	images, err := os.MkdirTemp(directory, "images-")
	if err != nil {
		return err
	}
	if err := criu(ctx, images, "dump", "-t", fmt.Sprint(task.Process.Pid)); err != nil {
		return err
	}
	_ = task.Wait()
	began := time.Now()
	if err := criu(ctx, images, "restore", "-d"); err != nil {
		return err
	}
	b.report.sample(restored(size), plain, time.Since(began))
	defer func() { _ = syscall.Kill(task.Process.Pid, syscall.SIGKILL) }()
	gap, err := watch.gap()
	if err != nil {
		return err
	}
	b.report.sample(downtime(size), plain, gap.Realtime)
	b.report.sample(jump(size), plain, gap.Monotonic)
	return nil
}

// bare starts the workload as a process of its own session with its output in a file.
func bare(directory string, size int) (*exec.Cmd, *watcher, error) {
	path := filepath.Join(directory, "output")
	output, err := os.Create(path)
	if err != nil {
		return nil, nil, err
	}
	defer output.Close()
	task := exec.Command(filepath.Join(node.Cache(), "clockwork"), "tight", fmt.Sprint(size))
	task.Stdout, task.Stderr = output, output
	task.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return task, &watcher{path: path}, task.Start()
}

func criu(ctx context.Context, directory, action string, arguments ...string) error {
	text, err := os.ReadFile(filepath.Join(node.Cache(), "criu/command.json"))
	if err != nil {
		return err
	}
	var command []string
	if err := json.Unmarshal(text, &command); err != nil {
		return err
	}
	command = append(append(command, action, "--images-dir", directory, "--log-file", "criu.log"), arguments...)
	if output, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(directory, "criu.log"))
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		return fmt.Errorf("criu %s: %w: %s%s", action, err, output, strings.Join(lines[max(0, len(lines)-5):], "\n"))
	}
	return nil
}

// watcher follows what a tight loop prints. In a CRI log every line has fields before the workload's own: prefix of them,
// counting spaces from the left, are cut off.
type watcher struct {
	path   string
	prefix int
	seen   int
}

// lines returns what was printed since the last call of await or gap.
func (w *watcher) lines() []string {
	file, err := os.Open(w.path)
	if err != nil {
		return nil
	}
	defer file.Close()
	var lines []string
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		line := scanner.Text()
		if w.prefix > 0 {
			parts := strings.SplitN(line, " ", w.prefix)
			line = parts[len(parts)-1]
		}
		lines = append(lines, line)
	}
	return lines[min(w.seen, len(lines)):]
}

// await waits for a line that begins with a word, and forgets all up to now.
func (w *watcher) await(word string) error {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		lines := w.lines()
		for _, line := range lines {
			if strings.HasPrefix(line, word) {
				w.seen += len(lines)
				return nil
			}
		}
	}
	return fmt.Errorf("%s: no line %q in 20 s", w.path, word)
}

// gap waits until the loop runs again and returns the largest interruption since the last look. A step back of a clock
// is an error.
func (w *watcher) gap() (pair.Gap, error) {
	from := w.seen
	if err := w.await("alive"); err != nil {
		return pair.Gap{}, err
	}
	w.seen = from
	lines := w.lines()
	w.seen += len(lines)
	var gaps []pair.Gap
	for _, line := range lines {
		switch word, _, _ := strings.Cut(line, " "); word {
		case "BACK":
			return pair.Gap{}, fmt.Errorf("a clock stepped back: %s", line)
		case "gap":
			gap, err := pair.ParseGap(line)
			if err != nil {
				return pair.Gap{}, err
			}
			gaps = append(gaps, gap)
		}
	}
	return pair.Largest(gaps), nil
}
