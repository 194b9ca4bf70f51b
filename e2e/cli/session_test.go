package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// command prepares a meridian command against the test's node.
func command(arguments ...string) *exec.Cmd {
	return exec.Command(node.Binary("meridian"), append([]string{"--socket", lab.Node().Socket}, arguments...)...)
}

func TestExecJoinsPipes(t *testing.T) {
	_, container := runPod(t, "pipes", "pause")
	var stdout, stderr bytes.Buffer
	both := command("exec", "-i", container, "sh", "-c", "wc -c; echo err >&2; exit 7")
	both.Stdin, both.Stdout, both.Stderr = strings.NewReader(strings.Repeat("x", 100_000)), &stdout, &stderr
	_ = both.Run()
	if code := both.ProcessState.ExitCode(); strings.TrimSpace(stdout.String()) != "100000" || stderr.String() != "err\n" || code != 7 {
		t.Errorf("stdout %q, stderr %q, code %d", stdout.String(), stderr.String(), code)
	}
	// More than all buffers hold, both ways at once: neither direction may wait for the other.
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	echo := command("exec", "-i", container, "cat")
	echo.Stdin = bytes.NewReader(sent)
	if got, err := echo.Output(); err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Errorf("of %d bytes came back %d, %v", len(sent), len(got), err)
	}
	// A reader that has had enough ends the command, as in any pipe.
	enough := exec.Command("sh", "-c", strings.Join(command("exec", "-i", container, "yes").Args, " ")+" </dev/null | head -n 1")
	if got, err := enough.Output(); err != nil || string(got) != "y\n" {
		t.Errorf("yes | head: %q, %v", got, err)
	}
}

func TestExecRefusals(t *testing.T) {
	_, container := runPod(t, "refusals", "pause")
	for what, test := range map[string]struct {
		arguments []string
		code      int
		words     string
	}{
		"no terminal":  {[]string{"exec", "-it", container, "true"}, 125, "--tty"},
		"no program":   {[]string{"exec", "-i", container, "/nonesuch"}, 125, "/nonesuch"},
		"no container": {[]string{"exec", "-i", "nonesuch", "true"}, 125, "nonesuch"},
		"no such pod":  {[]string{"port-forward", "nonesuch", "80"}, 4, "nonesuch"},
		"no port":      {[]string{"port-forward", "refusals", "0"}, 2, "65535"},
		"attach":       {[]string{"attach", "nonesuch"}, 4, "nonesuch"},
	} {
		run := command(test.arguments...)
		said, _ := run.CombinedOutput()
		if code := run.ProcessState.ExitCode(); code != test.code || !strings.Contains(string(said), test.words) {
			t.Errorf("%s: code %d, %q", what, code, said)
		}
	}
}

func TestExecInATerminal(t *testing.T) {
	_, container := runPod(t, "terminal", "pause")
	s := inTerminal(t, "exec", "-it", container, "sh")
	s.types("stty size\n")
	s.shows("33 77")
	s.resize(40, 100)
	s.types("sleep 0.3; stty size; echo in $((6*7))\n")
	s.shows("40 100")
	s.shows("in 42")
	s.types("sleep 4321\n")
	lab.Eventually(t, "it sleeps", func() bool { return strings.Contains(meridian(t, "exec", container, "ps", "-o", "args"), "sleep 4321") })
	s.types("\x03")
	s.types("echo on $((6*7)); exit 5\n")
	s.shows("on 42")
	s.ends(5)
}

// A signal ends the client, puts the terminal back and takes the command with it.
func TestExecEndsWithItsClient(t *testing.T) {
	_, container := runPod(t, "signal", "pause")
	s := inTerminal(t, "exec", "-it", container, "sh", "-c", "echo ready; exec sleep 4322")
	s.shows("ready")
	_ = s.command.Process.Signal(syscall.SIGTERM)
	s.ends(128 + int(syscall.SIGTERM))
	lab.Eventually(t, "the command is gone", func() bool {
		return !strings.Contains(meridian(t, "exec", container, "ps", "-o", "args"), "sleep 4322")
	})
}

func TestAttachAndLeave(t *testing.T) {
	_, container := runPodWith(t, "attach", []string{"-it", "--entrypoint", "sh"})
	s := inTerminal(t, "attach", "-it", container)
	s.types("echo hello from $((6*7))\n")
	s.shows("hello from 42")
	s.types("\x10\x11")
	s.ends(0)
	wants(t, "ps", meridian(t, "ps"), container[:12], "Running")
	s = inTerminal(t, "attach", "-it", container)
	s.types("exit 9\n")
	s.ends(9)
}

func TestAttachShowsBothOutputs(t *testing.T) {
	_, container := runPodWith(t, "outputs", []string{"-i", "--entrypoint", "sh"})
	attached := command("attach", "-i", container)
	input, err := attached.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	attached.Stdout, attached.Stderr = &stdout, &stderr
	if err := attached.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // what was written before it is attached is not its own to see
	_, _ = io.WriteString(input, "echo out; echo err >&2; exit 3\n")
	_ = attached.Wait()
	if code := attached.ProcessState.ExitCode(); stdout.String() != "out\n" || stderr.String() != "err\n" || code != 3 {
		t.Errorf("stdout %q, stderr %q, code %d", stdout.String(), stderr.String(), code)
	}
}

var forwardingTo = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> `)

// forwarded runs meridian port-forward until the test ends and returns where it listens and what it says later.
func forwarded(t *testing.T, pod, port string) (address string, said *screen) {
	t.Helper()
	run := command("port-forward", pod, ":"+port)
	stdout, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said = &screen{}
	run.Stderr = said
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = run.Process.Kill(); _ = run.Wait() })
	first := make([]byte, 200)
	count, _ := stdout.Read(first)
	found := forwardingTo.FindSubmatch(first[:count])
	if found == nil {
		t.Fatalf("it says %q, %q", first[:count], said.String())
	}
	return string(found[1]), said
}

func TestPortForward(t *testing.T) {
	script := "head -c 3000000 /dev/urandom >/page; printf '#!/bin/sh\\ncat; echo end\\n' >/echo; chmod +x /echo; " +
		"nc -ll -p 7000 -e /echo & exec httpd -f -p 80 -h /"
	pod, container := runPodWith(t, "forward", []string{"--entrypoint", "sh"}, "-c", script)
	lab.Eventually(t, "both listen", func() bool {
		return strings.Count(meridian(t, "exec", container, "netstat", "-ltn"), "LISTEN") == 2
	})
	want := strings.Fields(meridian(t, "exec", container, "sha256sum", "/page"))[0]
	web, _ := forwarded(t, pod, "80")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if page := sha256.Sum256([]byte(fetch("http://" + web + "/page"))); !strings.HasPrefix(want, hex.EncodeToString(page[:4])) {
				t.Errorf("the page's digest begins with %x, want %s", page[:4], want)
			}
		})
	}
	all.Wait()
	// Our half ends first, and the answer still comes.
	address, said := forwarded(t, pod, "7000")
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = connection.Write(bytes.Repeat([]byte("x"), 5_000_000))
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	answer, err := io.ReadAll(connection)
	if err != nil || len(answer) != 5_000_004 || !bytes.HasSuffix(answer, []byte("end\n")) {
		t.Errorf("%d bytes came back, %v; %s", len(answer), err, said.String())
	}
}

func TestPortForwardToNobody(t *testing.T) {
	pod, _ := runPod(t, "nobody", "pause")
	address, said := forwarded(t, pod, "81")
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(connection); len(answer) != 0 {
		t.Errorf("somebody answers: %q", answer)
	}
	lab.Eventually(t, "the user is told", func() bool { return strings.Contains(said.String(), "refused") })
}
