package cri

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// A daemon that cannot work says why in one line and ends, and the one that runs is not disturbed.
func TestDaemonRefusesToStart(t *testing.T) {
	lab.Clean(t, lab.Node())
	n := lab.Node()
	directory := t.TempDir()
	write(t, filepath.Join(directory, "unknown.toml"), "[network]\nbrige = \"x\"\n")
	write(t, filepath.Join(directory, "type.toml"), "[network]\nmtu = \"large\"\n")
	write(t, filepath.Join(directory, "syntax.toml"), "[network\n")
	fresh := func(arguments ...string) []string {
		return append([]string{"--config", n.Config(), "--root", filepath.Join(directory, "root"), "--run", filepath.Join(directory, "run")}, arguments...)
	}
	for _, test := range []struct {
		what      string
		arguments []string
		words     []string
	}{
		{"unknown key", fresh("--config", filepath.Join(directory, "unknown.toml"))[2:], []string{"unknown.toml", "brige"}},
		{"wrong type", fresh("--config", filepath.Join(directory, "type.toml"))[2:], []string{"type.toml", "mtu"}},
		{"syntax", fresh("--config", filepath.Join(directory, "syntax.toml"))[2:], []string{"syntax.toml"}},
		{"no configuration", fresh("--config", filepath.Join(directory, "missing.toml"))[2:], []string{"missing.toml"}},
		{"root in use", []string{"--config", n.Config(), "--root", n.Root, "--run", filepath.Join(directory, "run")}, []string{n.Root, "another meridiand"}},
		{"network in use", fresh(), []string{n.Bridge, "another meridiand"}},
		{"unknown flag", fresh("--nonesuch"), []string{"nonesuch"}},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		output, err := exec.CommandContext(ctx, node.Binary("meridiand"), test.arguments...).CombinedOutput()
		cancel()
		if err == nil || ctx.Err() == context.DeadlineExceeded {
			t.Errorf("%s: the daemon ran: %v: %s", test.what, err, output)
			continue
		}
		for _, word := range test.words {
			if !strings.Contains(string(output), word) {
				t.Errorf("%s: output %q does not say %q", test.what, output, word)
			}
		}
		if strings.Contains(string(output), "panicked") {
			t.Errorf("%s: %s", test.what, output)
		}
	}
	if _, err := n.Version(lab.Context(t), "v1"); err != nil {
		t.Errorf("the running daemon was disturbed: %v", err)
	}
}

func TestOnlyRootReachesTheDaemonsFiles(t *testing.T) {
	n := lab.Node()
	// The run directory may be passed through, by those who may use the socket in it, and not read.
	for path, denied := range map[string]os.FileMode{n.Socket: 0o117, n.Run: 0o066, n.Root: 0o077} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got&denied != 0 {
			t.Errorf("%s has mode %o, of which %o is too much", path, got, got&denied)
		}
	}
}

// SIGTERM ends the daemon soon, whatever clients are connected; pods run on and are found again.
func TestDaemonEndsOnSigtermAndPodsRunOn(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	pid := pidOf(t, c)
	began := time.Now()
	if err := lab.Node().Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if !alive(pid) {
		t.Error("the container died with the daemon")
	}
	if err := lab.Node().Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	if got := pidOf(t, c); got != pid {
		t.Errorf("process id %d became %d", pid, got)
	}
	c.Sh("true")
}
