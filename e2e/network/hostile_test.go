package network

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func result(ips string) string { return `{"cniVersion": "1.0.0", "ips": [` + ips + `]}` }

// hostile are answers that a plugin gives with exit code 0 instead of its result, and what the caller is told.
var hostile = []struct{ name, answer, said string }{
	{"nothing", "", "no CNI result"},
	{"no object", "[]", "no CNI result"},
	{"half", `{"cniVersion": "1.0.0", "ips": [{"address"`, "no CNI result"},
	{"deep lists", strings.Repeat("[", 500000), "no CNI result"},
	{"deep objects", strings.Repeat(`{"ips":`, 100000), "no CNI result"},
	{"huge", `{"cniVersion": "1.0.0", "x": "` + strings.Repeat("x", 1<<20) + `"}`, "more than 1048576 bytes"},
	{"zero bytes", strings.Repeat("\x00", 1000), "no CNI result"},
	{"no UTF-8", "{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"\xff\xfe/24\"}]}", "no CNI result"},
	{"terminal codes", "\x1b[2J\x1b]0;x\a", "no CNI result"},
	{"an old version", `{"cniVersion": "0.2.0", "ip4": {"ip": "10.77.0.9/24"}}`, "cniVersion"},
	{"a new version", `{"cniVersion": "9.9.9", "ips": [{"address": "10.77.0.9/24"}]}`, "cniVersion"},
	{"no version", `{"cniVersion": {}, "ips": []}`, "cniVersion"},
	{"no address", result(""), "no address"},
	{"the node's address", `{"cniVersion": "1.0.0", "interfaces": [{"name": "br"}], "ips": [{"address": "10.77.0.9/24", "interface": 0}]}`, "no address"},
	{"a name", result(`{"address": "localhost/8"}`), `address "localhost/8"`},
	{"no prefix", result(`{"address": "10.77.0.9"}`), `address "10.77.0.9"`},
	{"a long prefix", result(`{"address": "10.77.0.9/33"}`), `address "10.77.0.9/33"`},
	{"a negative prefix", result(`{"address": "10.77.0.9/-1"}`), `address "10.77.0.9/-1"`},
	{"another line", result(`{"address": "10.77.0.9/24\n127.0.0.1 kubernetes"}`), "address"},
	{"loopback", result(`{"address": "127.0.0.1/8"}`), `address "127.0.0.1/8"`},
	{"unspecified", result(`{"address": "::/0"}`), `address "::/0"`},
	{"multicast", result(`{"address": "224.0.0.1/4"}`), `address "224.0.0.1/4"`},
	{"a number", result(`{"address": 7}`), "no CNI result"},
	{"a negative interface", result(`{"address": "10.77.0.9/24", "interface": -1}`), "no CNI result"},
	{"10000 addresses", result(strings.TrimSuffix(strings.Repeat(`{"address": "10.77.0.9/24"},`, 10000), ",")), "10000 addresses"},
	{"an error with code 0", `{"code": 0, "msg": "no"}`, "no"},
	{"a negative code", `{"code": -1, "msg": "full"}`, "full"},
	{"a code as text", `{"code": "7", "msg": "full"}`, "full"},
	{"an error without words", `{"code": 7, "msg": {}}`, "plugin stub, ADD"},
}

// Whatever a plugin answers, the pod is refused in words that name plugin and fault, nothing stays, and the node goes on.
func TestHostileResults(t *testing.T) {
	lab.Image(t, "clockwork:1")
	probe := lab.RunPod(t)
	running := probe.Run("main", "exec sleep 999")
	lab.Clean(t, lab.Node())
	held := len(leases(t))
	t.Cleanup(func() { write(t, mode, "ok") })
	refused := func(name, said string) {
		t.Helper()
		began := time.Now()
		_, err := lab.Node().RunPodSandbox(lab.Context(t), client.Pod("hostile-"+client.Unique()[:5], t.TempDir()), "")
		lab.WantCode(t, name, err, codes.Internal, "plugin stub, ADD", said)
		if err != nil && (len(err.Error()) > 3000 || strings.ContainsAny(err.Error(), "\x1b\x00\n")) {
			t.Errorf("%s: %d bytes: %.200q", name, len(err.Error()), err.Error())
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
		if now := leases(t); len(now) != held {
			t.Errorf("%s: leases %v", name, now)
		}
	}
	for _, row := range hostile {
		write(t, mode, "result")
		write(t, answer, row.answer)
		refused(row.name, row.said)
	}
	write(t, mode, "exit")
	refused("exit code -1", "exit code 255")
	if got := running.Sh("echo alive"); !strings.Contains(got, "alive") {
		t.Errorf("the pod that was there: %q", got)
	}
}

// A child that keeps the plugin's pipes is not waited for, and does not outlive it.
func TestPluginsThatLeaveAChild(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	write(t, mode, "leaves")
	t.Cleanup(func() { write(t, mode, "ok") })
	began := time.Now()
	lab.RunPod(t)
	if took := time.Since(began); took > 1500*time.Millisecond { // the deadline is 2 s
		t.Errorf("took %s", took)
	}
	lab.Eventually(t, "no sleep is left", func() bool {
		output, _ := exec.Command("pgrep", "-fx", "sleep 600").Output()
		return len(output) == 0
	})
}

// A list cannot name a program elsewhere (CVE-2021-20206), neither as a plugin nor as its address management.
func TestPathsAreNoPlugins(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	t.Cleanup(func() { write(t, list, conflist) })
	link(t, "/bin/sh")
	for _, plugin := range []string{
		`{"type": "../../bin/sh"}`, `{"type": "/bin/sh"}`, `{"type": "./stub"}`, `{"type": "x/../stub"}`, `{"type": ".."}`, `{"type": ""}`,
		`{"type": "stub\u0000"}`, `{"type": 7}`, `{"type": "bridge", "ipam": {"type": "../host-local"}}`,
	} {
		write(t, list, `{"cniVersion": "1.0.0", "name": "lab", "plugins": [`+plugin+`]}`)
		_, err := lab.Node().RunPodSandbox(lab.Context(t), client.Pod("path", t.TempDir()), "")
		lab.WantCode(t, plugin, err, codes.Internal, "plugins must be", "no path")
	}
	// A name that leads elsewhere is the operator's own choice; it must still answer as a plugin does.
	write(t, list, `{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "shell"}]}`)
	_, err := lab.Node().RunPodSandbox(lab.Context(t), client.Pod("path", t.TempDir()), "")
	lab.WantCode(t, "a link to a shell", err, codes.Internal, "plugin shell, ADD")
	link(t, base+"/bin/stub") // DEL, which is asked again, gets an answer
	lab.Eventually(t, "no record is left", func() bool {
		records, err := os.ReadDir(lab.Node().Root + "/cni")
		return err == nil && len(records) == 0
	})
}

// link makes the plugin "shell" another name of a program.
func link(t *testing.T, to string) {
	t.Helper()
	_ = os.Remove(base + "/bin/shell")
	if err := os.Symlink(to, base+"/bin/shell"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(base + "/bin/shell") })
}
