package kube

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is one program of the cluster, with a log of its own.
type Process struct {
	// Name tells it apart, and names its log.
	Name string
	// Log is the file its output is appended to.
	Log string

	command []string
	forks   bool // the command line begins with nsenter, whose child is the program
	running *exec.Cmd
	ended   chan struct{}
}

// patience is how long a program may take to end after SIGTERM.
const patience = 20 * time.Second

// Start runs the program in a process group of its own, so that ^C reaches only who takes the cluster down in order.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(p.command[0], p.command[1:]...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.running, p.ended = command, make(chan struct{})
	go func(ended chan struct{}) {
		_ = command.Wait()
		close(ended)
	}(p.ended)
	return nil
}

// Pid is the program's process id in the world, or 0.
func (p *Process) Pid() int {
	if p == nil || p.running == nil {
		return 0
	}
	pid := p.running.Process.Pid
	if !p.forks {
		return pid
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	child, _ := strconv.Atoi(strings.TrimSpace(string(children)))
	return child
}

// Memory is the program's resident set in bytes.
func (p *Process) Memory() int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Pid()))
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.Atoi(fields[1])
	return pages * os.Getpagesize()
}

// Running reports whether the program still runs.
func (p *Process) Running() bool {
	if p.running == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill sends SIGKILL and waits until the program is gone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// Stop asks the program to end and waits for it.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM) }

func (p *Process) end(signal syscall.Signal) error {
	if p == nil || !p.Running() {
		return nil
	}
	if pid := p.Pid(); pid > 0 {
		_ = syscall.Kill(pid, signal)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(patience):
		_ = syscall.Kill(p.Pid(), syscall.SIGKILL)
		return fmt.Errorf("%s did not end within %s of %s", p.Name, patience, signal)
	}
}

// Tail returns the last lines of the program's log.
func (p *Process) Tail(lines int) string {
	text, _ := os.ReadFile(p.Log)
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// wait polls until ready says so. A program that ends before is an error with the end of its log.
func (p *Process) wait(ready func() error) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := ready()
		switch {
		case err == nil:
			return nil
		case !p.Running():
			return fmt.Errorf("%s ended: %s\n%s", p.Name, p.running.ProcessState, p.Tail(15))
		case time.Now().After(deadline):
			return errors.Join(fmt.Errorf("%s is not ready: %w\n%s", p.Name, err, p.Tail(15)))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func logFile(directory, name string) string { return filepath.Join(directory, name+".log") }
