// Package network tests a node whose pods are connected by CNI plugins: the reference ones of Debian's
// containernetworking-plugins, and one at the end of the list that misbehaves as it is told.
package network

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// Everything lies on the tmpfs that a world has on /run.
const (
	base    = "/run/cni-lab"
	list    = base + "/net.d/10-lab.conflist"
	ipam    = base + "/ipam/lab"
	journal = base + "/journal"
	mode    = base + "/mode"
	answer  = base + "/answer"
)

// stub answers with the result it is given; it journals each operation with its arguments and configuration.
const stub = `#!/bin/sh
input=$(cat)
echo "$CNI_COMMAND netns=$CNI_NETNS $CNI_ARGS $(echo "$input" | tr -d '\n')" >>` + journal + `
case $CNI_COMMAND,$(cat ` + mode + `) in
DEL,keep) echo '{"code": 11, "msg": "not now"}'; exit 1 ;;
esac
[ "$CNI_COMMAND" = ADD ] || exit 0
case $(cat ` + mode + `) in
hang) sleep 600 & sleep 600 ;;
garbage) echo hello ;;
flood) exec cat /dev/zero ;;
signal) kill -9 $$ ;;
refuse) echo '{"cniVersion": "1.0.0", "code": 100, "msg": "no room", "details": "on this node"}'; exit 1 ;;
lie) echo '{"cniVersion": "1.0.0", "code": 100, "msg": "no room"}' ;;
result) cat ` + answer + ` ;;
leaves) sleep 600 & echo "$input" | jq .prevResult ;;
exit) exit 255 ;;
*) echo "$input" | jq .prevResult ;;
esac
`

const conflist = `{"cniVersion": "1.0.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni-lab", "isGateway": true, "ipam": {"type": "host-local",
    "dataDir": "` + base + `/ipam", "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "stub", "capabilities": {"portMappings": true, "bandwidth": true, "ipRanges": true}}]}`

func TestMain(m *testing.M) {
	lab.MainWith(m, func() node.Options {
		for path, text := range map[string]string{list: conflist, mode: "ok", journal: "", base + "/bin/stub": stub} {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				panic(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
				panic(err)
			}
		}
		return node.Options{Extra: "[cni]\nconfig_dir = \"" + base + "/net.d\"\ntimeout_seconds = 2\n" +
			"plugin_dirs = [\"" + base + "/bin\", \"/usr/lib/cni\"]\n"}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// leases are the addresses that host-local holds.
func leases(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(ipam)
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "10.") {
			held = append(held, entry.Name())
		}
	}
	return held
}

// calls are the lines of the journal since it was emptied.
func calls(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// configuration is what a journal's line says that the plugin read.
func configuration(t *testing.T, line string) map[string]any {
	t.Helper()
	_, text, _ := strings.Cut(line, " {")
	var keys map[string]any
	if err := json.Unmarshal([]byte("{"+text), &keys); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return keys
}
