// Critest runs cri-tools' critest, found on PATH, against a meridiand of its own, serially and in parallel, and prints
// what passed, failed and was skipped, with the reasons.
//
// Daemon, registry and critest share a world of their own (package lab). The registry holds the stand-ins of
// hack/critest-images; Meridian reaches them under their original names through its own mirror configuration.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

var (
	focus    = flag.String("focus", "", "run only the specs whose text matches this pattern")
	serial   = flag.Bool("serial", true, "run the specs one after another")
	parallel = flag.Int("parallel", 4, "then run them again, so many at a time; 0 leaves that out")
	keep     = flag.String("keep", "", "directory for critest's reports and the daemon's log")
)

func main() {
	flag.Parse()
	critest, err := exec.LookPath("critest")
	if err != nil {
		fmt.Fprintln(os.Stderr, "skipped: critest is not on PATH. No package registry has it; cri-tools' sources build it: make critest there.")
		return
	}
	lab.Run(func() (int, error) { return run(critest) })
}

// mirrored are the registries that critest's images come from.
var mirrored = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"}

func run(critest string) (code int, err error) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	address, err := registry("start")
	if err != nil {
		return 1, err
	}
	defer func() {
		_, stop := registry("stop")
		err = errors.Join(err, stop)
	}()
	var mirrors strings.Builder
	for _, host := range mirrored {
		fmt.Fprintf(&mirrors, "[[image.mirror]]\nhost = %q\nendpoint = %q\n", host, "http://"+address)
	}
	n, err := lab.NewNode("c", node.Options{Extra: mirrors.String()})
	if err != nil {
		return 1, err
	}
	if err := n.Start(ctx); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, saveLog(n), n.Purge(context.Background()), n.Stop(), n.Discard()) }()
	for _, workers := range runs() {
		failed, err := once(ctx, critest, n, workers)
		if err != nil {
			return 1, err
		}
		code = max(code, min(failed, 1))
	}
	return code, nil
}

// registry serves critest's images.
func registry(action string) (string, error) {
	return lab.ServeImages(action, "critest", "MERIDIAN_REGISTRY_STORE="+filepath.Join(node.Cache(), "critest-registry"))
}

// runs lists the number of workers of each run.
func runs() []int {
	var workers []int
	if *serial {
		workers = append(workers, 1)
	}
	if *parallel > 1 {
		workers = append(workers, *parallel)
	}
	return workers
}

// once runs critest and prints its report; the number of specs that failed and are not excused is returned.
func once(ctx context.Context, critest string, n *node.Node, workers int) (int, error) {
	directory := *keep
	if directory == "" {
		directory = n.Dir
	}
	path := filepath.Join(directory, fmt.Sprintf("critest-%d.json", workers))
	arguments := []string{"-runtime-endpoint", "unix://" + n.Socket, "-ginkgo.json-report=" + path, "-ginkgo.no-color", "-ginkgo.succinct"}
	if workers > 1 {
		arguments = append(arguments, fmt.Sprintf("-parallel=%d", workers))
	}
	if *focus != "" {
		arguments = append(arguments, "-ginkgo.focus="+*focus)
	}
	log, err := os.Create(filepath.Join(directory, fmt.Sprintf("critest-%d.log", workers)))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	command := exec.CommandContext(ctx, critest, arguments...)
	command.Stdout, command.Stderr = log, log
	ended := command.Run() // not zero when a spec failed; the report tells
	report, err := read(path)
	if err != nil {
		return 0, fmt.Errorf("critest left no report: %w", errors.Join(ended, err))
	}
	return report.print(workers), nil
}

func saveLog(n *node.Node) error {
	if *keep == "" {
		return nil
	}
	text, err := os.ReadFile(n.Log)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(*keep, "meridiand.log"), text, 0o600)
}
