// Package lab gives a program a world of its own: mount, network, pid, ipc and uts namespaces made for it alone.
//
//	go test, demo ──> stage "outside": same process, starts itself again in new namespaces, waits, removes cgroups
//	                    └──> stage "init":  PID 1; lo up, /proc, tmpfs on /run, mounts shared; reaps orphans
//	                           └──> stage "inside": the tests, the registry and the nodes
//
// So nothing a test does reaches the machine, the tests of several checkouts run side by side, whatever a crashed test
// left is killed with PID 1, and a census (package census) sees only what the node under test made.
package lab

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/node"
)

const (
	stage = "MERIDIAN_LAB_STAGE"
	name  = "MERIDIAN_LAB_NAME"
)

// Main runs a package's tests inside a world of their own, with a registry and one node. Call it from TestMain.
func Main(m *testing.M) { MainWith(m, func() node.Options { return node.Options{} }) }

// MainWith is Main with a node of a certain shape, asked for inside the world.
func MainWith(m *testing.M, options func() node.Options) {
	Run(func() (int, error) { return inside(m, options()) })
}

// Run runs body inside a world of its own and ends the program with body's exit code.
func Run(body func() (int, error)) {
	var code int
	var err error
	switch os.Getenv(stage) {
	case "":
		code, err = outside()
	case "init":
		code, err = initialise()
	default:
		code, err = body()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Name tells this world from any other on the machine; it is part of the names of nodes and cgroups.
func Name() string { return os.Getenv(name) }

func outside() (int, error) {
	runtime.LockOSThread() // Pdeathsig is about the thread that started the child
	if os.Getuid() != 0 {
		return 1, errors.New("needs root: pods need namespaces, mounts and cgroups")
	}
	// What the shell left open would be in every process of the world, and CRIU dumps no file of a foreign mount.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 1, err
	}
	word := client.Unique()[:6]
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), stage+"=init", name+"="+word)
	self.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	code, err := exitCode(self.Run())
	RemoveCgroups(word)
	return code, err
}

// initialise is PID 1 of the world.
func initialise() (int, error) {
	if err := errors.Join(mounts(), loopbackUp()); err != nil {
		return 1, err
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), stage+"=inside")
	if err := self.Start(); err != nil {
		return 1, err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid == self.Process.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == self.Process.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// mounts cuts the world off from the machine's mounts and makes it a peer group of its own, as systemd makes "/".
func mounts() error {
	steps := []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"", "/", "", unix.MS_REC | unix.MS_SHARED},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	}
	for _, step := range steps {
		if err := unix.Mount(step.source, step.target, step.kind, step.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", step.kind, step.target, err)
		}
	}
	return nil
}

func loopbackUp() error {
	if output, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, output)
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		return err
	}
	return nil
}

// RemoveCgroups removes the empty cgroups that a killed world, or one node of it, left. Deepest first.
func RemoveCgroups(word string) {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		roots, _ := filepath.Glob(pattern + "/meridian-" + word + "*")
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					found = append(found, path)
				}
				return nil
			})
		}
	}
	for i := len(found) - 1; i >= 0; i-- {
		_ = unix.Rmdir(found[i])
	}
}

func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Listing reports whether go test was only asked which tests there are.
func Listing() bool {
	for _, argument := range os.Args[1:] {
		if strings.HasPrefix(argument, "-test.list") {
			return true
		}
	}
	return false
}
