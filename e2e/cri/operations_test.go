package cri

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// Prometheus is told how many RPCs were answered, and what is on the node at that moment.
func TestMetricsTellWhatTheNodeDoes(t *testing.T) {
	p := pod(t)
	p.Run("main", sleeper)
	if _, err := lab.Node().Version(lab.Context(t), "v1"); err != nil {
		t.Fatal(err)
	}
	code, text := scrape(t, http.MethodGet, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("GET /metrics: %d %s", code, text)
	}
	for _, line := range []string{
		`meridian_pods{state="ready"} 1`, `meridian_containers{state="running"} 1`,
		`meridian_rpc_seconds_bucket{le="+Inf",rpc="Version",code="Ok"}`, "\nmeridian_images_bytes ",
		"\nprocess_resident_memory_bytes ", "\n# EOF\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	documented(t, text)
	if code, _ := scrape(t, http.MethodPost, "/metrics"); code != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %d", code)
	}
	if code, _ := scrape(t, http.MethodGet, "/"); code != http.StatusNotFound {
		t.Errorf("GET /: %d", code)
	}
}

// documented wants each metric in the manual with its kind, and named as Prometheus wants it.
func documented(t *testing.T, text string) {
	t.Helper()
	manual, err := os.ReadFile(filepath.Join(node.Top(), "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != 4 || words[0] != "#" || words[1] != "TYPE" {
			continue
		}
		name, kind := words[2], words[3]
		if kind == "counter" {
			name += "_total"
		}
		if !strings.Contains(string(manual), "| `"+name+"` | "+kind+" |") {
			t.Errorf("docs/operations.md does not list the %s %s", kind, name)
		}
		if kind == "histogram" && !strings.HasSuffix(name, "_seconds") || !strings.HasPrefix(name, "meridian_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("the %s %s has no unit or no prefix", kind, name)
		}
	}
}

func scrape(t *testing.T, method, path string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(lab.Context(t), method, "http://"+metricsAddress+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// SIGHUP changes mirrors and log level at once, names what has to wait, and leaves all as it was if the file is broken.
func TestReload(t *testing.T) {
	n := lab.Node()
	original, err := os.ReadFile(n.Config())
	if err != nil {
		t.Fatal(err)
	}
	reload := func(text, said string) {
		t.Helper()
		before := len(n.Tail(1 << 20))
		write(t, n.Config(), text)
		if err := syscall.Kill(n.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, said, func() bool { return strings.Contains(n.Tail(1 << 20)[before:], said) })
	}
	t.Cleanup(func() { reload(string(original), "SIGHUP: the configuration was read again") })
	mirror := "\n[[image.mirror]]\nhost = \"registry.invalid\"\nendpoint = \"http://" + lab.Registry() + "\"\n"
	reload("shim = \"/elsewhere\"\n"+string(original)+mirror, `keys="shim"`)
	if _, err := n.Pull(lab.Context(t), "registry.invalid/meridian/clockwork:1"); err != nil {
		t.Errorf("through the mirror that was added: %v", err)
	}
	_ = n.Images.RemoveImage(lab.Context(t), &runtimeapi.ImageSpec{Image: "registry.invalid/meridian/clockwork:1"})
	lab.Image(t, "clockwork:1")

	reload(strings.Replace(string(original), `log = "debug"`, `log = "info"`, 1), "SIGHUP: the configuration was read again")
	before := n.Tail(1 << 20)
	if _, err := n.Version(lab.Context(t), "v1"); err != nil {
		t.Fatal(err)
	}
	if now := n.Tail(1 << 20)[len(before):]; strings.Contains(now, "DEBUG") {
		t.Errorf("at level info the log got %q", now)
	}
	reload("[network\n", "SIGHUP: the configuration stays as it was: configuration "+n.Config())
	if _, err := n.Version(lab.Context(t), "v1"); err != nil {
		t.Errorf("after a broken file: %v", err)
	}
}

// The daemon's own view of a file, without a daemon.
func TestConfigCommand(t *testing.T) {
	shown, err := exec.CommandContext(lab.Context(t), node.Binary("meridiand"), "config", "default").Output()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "c.toml")
	write(t, file, string(shown))
	check := func() (string, error) {
		output, err := exec.CommandContext(lab.Context(t), node.Binary("meridiand"), "config", "check", file).CombinedOutput()
		return string(output), err
	}
	if output, err := check(); err != nil {
		t.Errorf("the default is refused: %v: %s", err, output)
	}
	write(t, file, "[network]\nmtu = \"large\"\n")
	if output, err := check(); err == nil || !strings.Contains(output, "mtu") || strings.Count(output, "meridiand: ") != 1 {
		t.Errorf("a wrong type: %v: %q", err, output)
	}
}
