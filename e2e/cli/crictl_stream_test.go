package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// transports are crictl's two ways of streaming. Of WebSocket it speaks v5.channel.k8s.io alone.
var transports = []string{"spdy", "websocket"}

func TestCrictlExec(t *testing.T) {
	c := newCrictl(t)
	_, id := c.pod("exec", sleeper, "")
	c.offered("exec", id, "true")
	for _, transport := range transports {
		if got := c.call("exec", "-r", transport, id, "echo", "hello"); got != "hello" {
			t.Errorf("%s: %q", transport, got)
		}
		stdout, stderr, err := c.try("exec", "-r", transport, id, "sh", "-c", "echo out; echo err >&2; exit 7")
		if stdout != "out" || !strings.Contains(stderr, "err\n") || err == nil || !strings.Contains(stderr, "7") {
			t.Errorf("%s: stdout %q, stderr %q, %v", transport, stdout, stderr, err)
		}
		command := c.command("exec", "-i", "-r", transport, id, "wc", "-c")
		command.Stdin = strings.NewReader(strings.Repeat("x", 100_000))
		if output, err := command.Output(); strings.TrimSpace(string(output)) != "100000" {
			t.Errorf("%s: of 100000 bytes of input arrived %q, %v", transport, output, err)
		}
		// script(1) gives crictl the terminal that it wants to see and to measure.
		line := fmt.Sprintf("stty rows 33 cols 77; %s exec -it -r %s %s sh -c 'tty; sleep 0.3; stty size'", strings.Join(c.command().Args, " "), transport, id)
		output, err := exec.Command("script", "-qec", line, "/dev/null").CombinedOutput()
		if err != nil || !strings.Contains(string(output), "/dev/pts/") || !strings.Contains(string(output), "33 77") {
			t.Errorf("%s: terminal: %q, %v", transport, output, err)
		}
	}
}

func TestCrictlAttach(t *testing.T) {
	c := newCrictl(t)
	for _, transport := range transports {
		_, id := c.pod("attach-"+transport, "exec sh", `, "stdin": true, "stdin_once": true`)
		c.offered("exec", id, "true")
		command := c.command("attach", "-i", "-r", transport, id)
		input, err := command.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var output bytes.Buffer
		command.Stdout = &output
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // what was written before it is attached is not its own to see
		_, _ = io.WriteString(input, "echo hello from $((6 * 7))\nexit\n")
		_ = input.Close()
		if err := command.Wait(); err != nil || !strings.Contains(output.String(), "hello from 42") {
			t.Errorf("%s: %q, %v", transport, output.String(), err)
		}
	}
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+)`)

func TestCrictlPortForward(t *testing.T) {
	c := newCrictl(t)
	pod, id := c.pod("forward", "echo from the pod >/page; exec httpd -f -p 80 -h /", "")
	c.offered("exec", id, "true")
	for _, transport := range transports {
		command := c.command("port-forward", "-r", transport, pod, ":80")
		said, err := command.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 200)
		count, _ := said.Read(first)
		found := forwarding.FindSubmatch(first[:count])
		if found == nil {
			t.Errorf("%s: says %q", transport, first[:count])
		} else if page := fetch("http://" + string(found[1]) + "/page"); page != "from the pod\n" {
			t.Errorf("%s: page %q", transport, page)
		}
		_ = command.Process.Kill()
		_ = command.Wait()
	}
}

func fetch(url string) string {
	caller := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := caller.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return string(body)
}
