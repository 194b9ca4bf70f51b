// Package node runs a meridiand of its own for a test or the benchmark: own directories, socket, bridge, subnets and
// cgroup, so that any number of them share a machine. Its log is kept and can be asked for.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"

	"meridian.dev/e2e/census"
	"meridian.dev/e2e/client"
)

// Options shape a node. The zero value is a node with defaults and no migration peer.
type Options struct {
	// Name tells the node apart; at most 8 letters, digits and dashes.
	Name string
	// Dir holds all of the node's files; the caller removes it.
	Dir string
	// Subnet is the second byte of the pod network 10.N.0.0/16 and of fd00:N::/64; 0 means 88.
	Subnet int
	// Routed says that other nodes have routes to its pods, so that these keep their addresses on the way.
	Routed bool
	// CRIU is the argument vector that starts CRIU; nil means the one hack/install left.
	CRIU []string
	// Wrap is put before the daemon's command line, to start it in namespaces of its own.
	Wrap []string
	// Extra is appended to the configuration file.
	Extra string
	// Environment is added to the daemon's.
	Environment []string
	// Level is the log level; empty means debug.
	Level string
}

// Node is one daemon and what it leaves on the machine.
type Node struct {
	Options
	// Socket serves CRI and meridian.v1.
	Socket string
	// Root and Run are the daemon's --root and --run.
	Root, Run string
	// Bridge is the pod network's bridge; Cgroup the node's directory below each hierarchy, without leading slash.
	Bridge, Cgroup string
	// Log is the daemon's log file.
	Log string
	// Client is connected while the daemon runs.
	*client.Client

	daemon *exec.Cmd
	ended  chan struct{}
}

// Ready is how long a daemon may take until it answers.
const Ready = 30 * time.Second

// New prepares a node's directories and configuration; Start runs it.
func New(options Options) (*Node, error) {
	if options.Subnet == 0 {
		options.Subnet = 88
	}
	if options.Level == "" {
		options.Level = "debug"
	}
	if options.CRIU == nil {
		text, err := os.ReadFile(filepath.Join(Cache(), "criu/command.json"))
		if err != nil {
			return nil, fmt.Errorf("no CRIU: run hack/install: %w", err)
		}
		if err := json.Unmarshal(text, &options.CRIU); err != nil {
			return nil, fmt.Errorf("criu/command.json: %w", err)
		}
	}
	run := filepath.Join("/run", filepath.Base(options.Dir)) // a tmpfs, as on any machine
	n := &Node{
		Options: options,
		Socket:  filepath.Join(run, "meridian.sock"),
		Root:    filepath.Join(options.Dir, "root"),
		Run:     run,
		Log:     filepath.Join(options.Dir, "meridiand.log"),
		Bridge:  "mer-" + options.Name,
		Cgroup:  "meridian-" + options.Name,
	}
	for _, directory := range []string{n.Root, n.Run} {
		if err := os.MkdirAll(directory, 0o700); err != nil {
			return nil, err
		}
	}
	return n, n.configure()
}

var configuration = template.Must(template.New("config.toml").Funcs(template.FuncMap{"toml": func(list []string) string {
	text, _ := json.Marshal(list) // a JSON array of strings is a TOML one
	return string(text)
}}).Parse(`log = "{{.Level}}"
[network]
bridge = "{{.Bridge}}"
subnet4 = "10.{{.Subnet}}.0.0/16"
subnet6 = "fd00:{{.Subnet}}::/64"
masquerade = {{not .Routed}}

[cgroup]
root = "/{{.Cgroup}}"

[criu]
command = {{toml .CRIU}}

{{.Extra}}
`))

func (n *Node) configure() error {
	var text bytes.Buffer
	if err := configuration.Execute(&text, n); err != nil {
		return err
	}
	return os.WriteFile(n.Config(), text.Bytes(), 0o600)
}

// Config is the path of the configuration file.
func (n *Node) Config() string { return filepath.Join(n.Dir, "config.toml") }

// Start runs the daemon and waits until it answers.
func (n *Node) Start(ctx context.Context) error {
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	arguments := append(append([]string{}, n.Wrap...), Binary("meridiand"), "--config", n.Config(),
		"--root", n.Root, "--run", n.Run, "--socket", n.Socket)
	n.daemon = exec.Command(arguments[0], arguments[1:]...)
	n.daemon.Stdout, n.daemon.Stderr = log, log
	n.daemon.Env = append(os.Environ(), n.Environment...)
	// A group of its own, so that ^C on a test reaches the test alone, which then takes its nodes down in order.
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.daemon.Start(); err != nil {
		return fmt.Errorf("start %s: %w", arguments[0], err)
	}
	ended := make(chan struct{})
	n.ended = ended
	go func(daemon *exec.Cmd) {
		_ = daemon.Wait()
		close(ended)
	}(n.daemon)
	return n.connect(ctx)
}

func (n *Node) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Ready)
	defer cancel()
	for {
		if connection, err := client.Dial(ctx, n.Socket); err == nil {
			n.Client = connection
			return nil
		} else if ctx.Err() != nil {
			return fmt.Errorf("meridiand did not answer in %s: %w\n%s", Ready, err, n.Tail(20))
		}
		select {
		case <-n.ended:
			return fmt.Errorf("meridiand ended at start: %s\n%s", n.daemon.ProcessState, n.Tail(20))
		case <-time.After(2 * time.Millisecond):
		}
		if _, err := os.Stat(n.Socket); err != nil {
			continue
		}
	}
}

// Pid is the daemon's process id, or 0. Behind a wrapper that forks it is the wrapper's.
func (n *Node) Pid() int {
	if n.daemon == nil || n.daemon.Process == nil {
		return 0
	}
	return n.daemon.Process.Pid
}

// Kill sends SIGKILL and waits for the daemon, and for nothing else, to be gone.
func (n *Node) Kill() { n.end(syscall.SIGKILL) }

// Stop asks the daemon to end; pods run on.
func (n *Node) Stop() error {
	if n.daemon == nil {
		return nil
	}
	timer := time.AfterFunc(Ready, func() { _ = n.daemon.Process.Kill() })
	n.end(syscall.SIGTERM)
	if !timer.Stop() {
		return errors.New("meridiand did not end within " + Ready.String() + " of SIGTERM")
	}
	return nil
}

func (n *Node) end(signal syscall.Signal) {
	if n.daemon == nil {
		return
	}
	if n.Client != nil {
		n.Client.Close()
		n.Client = nil
	}
	_ = n.daemon.Process.Signal(signal)
	<-n.ended
	n.daemon = nil
}

// Purge stops and removes every pod. The daemon must run.
func (n *Node) Purge(ctx context.Context) error {
	pods, err := n.ListPodSandbox(ctx, nil)
	for _, pod := range pods {
		err = errors.Join(err, n.StopPodSandbox(ctx, pod.Id), n.RemovePodSandbox(ctx, pod.Id))
	}
	return err
}

// Discard removes what a stopped node leaves: its directories, with what is mounted in them (pins, CRIU's cache).
func (n *Node) Discard() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i := len(lines) - 1; i >= 0; i-- { // the last mounted first
		if point := strings.Fields(lines[i])[4]; strings.HasPrefix(point, n.Dir+"/") {
			if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", point, err)
			}
		}
	}
	return os.RemoveAll(n.Dir)
}

// Scope is what a census of this node counts.
func (n *Node) Scope() census.Scope {
	return census.Scope{Run: n.Run, Root: n.Root, Cgroup: n.Cgroup, Daemon: n.Pid()}
}

// Tail returns the last lines of the daemon's log.
func (n *Node) Tail(lines int) string {
	text, _ := os.ReadFile(n.Log)
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// CLI runs the meridian command against this node and returns its standard output.
func (n *Node) CLI(ctx context.Context, arguments ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, Binary("meridian"), append([]string{"--socket", n.Socket}, arguments...)...)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("meridian %s: %w: %s", strings.Join(arguments, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
