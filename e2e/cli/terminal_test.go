package cli

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// terminal is a person's: a pty of this test whose other side the meridian command has as its controlling terminal.
type terminal struct {
	t       *testing.T
	command *exec.Cmd
	master  *os.File
	slave   *os.File
	before  unix.Termios
	shown   screen
}

// screen keeps what a command says while it runs.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(text)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// inTerminal runs a meridian command in a terminal of 33 lines and 77 columns.
func inTerminal(t *testing.T, arguments ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &terminal{t: t, master: master, slave: slave}
	s.resize(33, 77)
	s.before = s.termios()
	s.command = exec.Command(node.Binary("meridian"), append([]string{"--socket", lab.Node().Socket}, arguments...)...)
	s.command.Stdin, s.command.Stdout, s.command.Stderr = slave, slave, slave
	s.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(&s.shown, master) }()
	t.Cleanup(func() { _ = s.command.Process.Kill(); _ = slave.Close(); _ = master.Close() })
	return s
}

func (s *terminal) resize(rows, columns uint16) {
	s.t.Helper()
	if err := unix.IoctlSetWinsize(int(s.slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *terminal) termios() unix.Termios {
	s.t.Helper()
	settings, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *settings
}

func (s *terminal) types(text string) {
	s.t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// shows waits for words on the screen.
func (s *terminal) shows(words string) {
	s.t.Helper()
	lab.Eventually(s.t, fmt.Sprintf("the terminal shows %q", words), func() bool { return strings.Contains(s.shown.String(), words) })
}

// ends waits for the command's end, wants its exit code and the terminal as it was.
func (s *terminal) ends(code int) {
	s.t.Helper()
	ended := make(chan struct{})
	go func() { _ = s.command.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		s.t.Fatalf("the command does not end; shown: %q", s.shown.String())
	}
	if got := s.command.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d, want %d; shown: %q", got, code, s.shown.String())
	}
	if after := s.termios(); after != s.before {
		s.t.Errorf("the terminal is left as %+v, was %+v", after, s.before)
	}
}
