package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"meridian.dev/e2e/kube"
)

// up starts `cluster serve` in a session of its own and shows its progress until it is up. ^C takes it down again.
func up() error {
	if serving() != 0 {
		return errors.New("is already up; see: hack/cluster status")
	}
	if err := os.MkdirAll(directory(), 0o755); err != nil {
		return err
	}
	log, err := os.Create(file("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	server := exec.Command("/proc/self/exe", "serve")
	server.Stdout, server.Stderr = log, log
	server.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := server.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(file("pid"), fmt.Append(nil, server.Process.Pid), 0o600); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	for offset := int64(0); ; offset = show(offset) {
		select {
		case <-ended:
			show(offset)
			return errors.Join(errors.New("did not come up"), remove("pid"))
		case <-interrupted:
			show(offset)
			return errors.Join(errors.New("interrupted"), down())
		case <-time.After(100 * time.Millisecond):
		}
		if _, err := os.Stat(file("state.json")); err == nil {
			show(offset)
			return nil
		}
	}
}

// show prints what was added to the server's log and returns where it ends.
func show(offset int64) int64 {
	log, err := os.Open(file("log"))
	if err != nil {
		return offset
	}
	defer log.Close()
	if _, err := log.Seek(offset, io.SeekStart); err != nil {
		return offset
	}
	written, _ := io.Copy(os.Stdout, log)
	return offset + written
}

// down asks the server to take everything down, and waits.
func down() error {
	pid := serving()
	if pid == 0 {
		fmt.Println("is not up")
		return remove("pid")
	}
	end, _ := os.Stat(file("log"))
	target := child(child(pid)) // the process in the world that serves; its parents end after it
	if target == 0 {
		target = pid
	}
	if err := syscall.Kill(target, syscall.SIGTERM); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); serving() != 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d did not end within a minute; its log is %s", pid, file("log"))
		}
	}
	show(end.Size())
	return remove("pid")
}

// serving is the process id of a running `cluster serve`, or 0.
func serving() int {
	text, err := os.ReadFile(file("pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if pid == 0 || !serves(pid) {
		return 0
	}
	return pid
}

func serves(pid int) bool {
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.HasSuffix(strings.TrimRight(string(command), "\x00"), "\x00serve")
}

// child is the next stage of `cluster serve` below a process, whichever of its threads made it, or 0.
func child(pid int) int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			if found, _ := strconv.Atoi(field); found > 0 && serves(found) {
				return found
			}
		}
	}
	return 0
}

func kubectl(arguments ...string) error {
	s, enter, err := world()
	if err != nil {
		return err
	}
	command := exec.Command(enter[0], append(append(enter[1:], kube.Binary("kubectl")), arguments...)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig, "KUBECACHEDIR="+s.Logs+"/kubectl")
	return attached(command)
}

func onNode(name string, arguments []string) error {
	s, enter, err := world()
	if err != nil {
		return err
	}
	pid, ok := s.Nodes[name]
	if !ok {
		return fmt.Errorf("no node %q: use a or b", name)
	}
	inner := []string{"nsenter", "--target", fmt.Sprint(pid), "--mount", "--net", "--pid", "--uts", "--ipc", "--"}
	return attached(exec.Command(enter[0], append(append(enter[1:], inner...), arguments...)...))
}

// world is the running cluster's state, and the command line that runs another one inside its world.
func world() (s state, enter []string, err error) {
	text, err := os.ReadFile(file("state.json"))
	if err != nil || serving() == 0 {
		return s, nil, errors.New("is not up: hack/cluster up")
	}
	init := fmt.Sprint(child(serving()))
	return s, []string{"nsenter", "--target", init, "--mount", "--net", "--pid", "--wdns=" + here(), "--"}, json.Unmarshal(text, &s)
}

func attached(command *exec.Cmd) error {
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	signal.Ignore(os.Interrupt) // it is the command's
	return command.Run()
}

// here is the working directory, which the files that kubectl is told of are relative to.
func here() string {
	directory, err := os.Getwd()
	if err != nil {
		return "/"
	}
	return directory
}
