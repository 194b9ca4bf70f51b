package cri

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/lab"
)

// get fetches http://address:8080/ from the node and returns the counter it tells.
func get(t *testing.T, address string) float64 {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	var last error
	for range 200 {
		response, err := client.Get("http://" + net.JoinHostPort(address, "8080") + "/")
		if err != nil {
			last = err
			time.Sleep(10 * time.Millisecond)
			continue
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		var reply map[string]float64
		if err := json.Unmarshal(body, &reply); err != nil {
			t.Fatalf("reply %q: %v", body, err)
		}
		return reply["count"]
	}
	t.Fatalf("no answer from %s: %v", address, last)
	return 0
}

func TestPodsAreReachedOnBothFamilies(t *testing.T) {
	p := pod(t)
	other := lab.RunPod(t)
	p.Run("count", "exec clockwork count")
	p.Run("serve", "exec clockwork serve")
	asker := other.Run("asker", sleeper)
	status := sandboxStatus(t, p.ID)
	addresses := []string{status.Network.Ip}
	for _, additional := range status.Network.AdditionalIps {
		addresses = append(addresses, additional.Ip)
	}
	for _, address := range addresses {
		first := get(t, address)
		time.Sleep(50 * time.Millisecond)
		if second := get(t, address); second <= first {
			t.Errorf("counter at %s: %v, then %v", address, first, second)
		}
		if got := asker.Sh("wget -q -O - http://" + net.JoinHostPort(address, "8080") + "/"); !strings.Contains(got, "count") {
			t.Errorf("from another pod: %q", got)
		}
	}
	own := p.Run("own", sleeper)
	if got := own.Sh("wget -q -O - http://127.0.0.1:8080/"); !strings.Contains(got, "count") {
		t.Errorf("over the pod's loopback: %q", got)
	}
}

func TestAddressesAreUniqueAndReused(t *testing.T) {
	lab.Clean(t, lab.Node())
	seen := map[string]bool{}
	for range 5 {
		ip := sandboxStatus(t, lab.RunPod(t).ID).Network.Ip
		if seen[ip] {
			t.Errorf("%s given twice", ip)
		}
		seen[ip] = true
	}
	for _, ip := range []string{"first", "second"} {
		p := lab.RunPod(t)
		status := sandboxStatus(t, p.ID)
		if seen[status.Network.Ip] {
			t.Errorf("%s pod got an address in use: %s", ip, status.Network.Ip)
		}
		p.Remove()
	}
}

// Beyond the bridge pods appear under the node's address. A second network namespace plays the world outside.
func TestMasquerade(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	script := func(lines string) {
		t.Helper()
		for line := range strings.Lines(lines) {
			if output, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", strings.TrimSpace(line), err, output)
			}
		}
	}
	script(`mkdir -p /run/netns && ip netns add outside
ip link add out0 type veth peer name in0 netns outside
ip addr add 198.51.100.1/24 dev out0 && ip link set out0 up
ip -n outside addr add 198.51.100.2/24 dev in0 && ip -n outside link set in0 up && ip -n outside link set lo up
`)
	t.Cleanup(func() {
		script("ip netns delete outside; ip link delete out0 2>/dev/null; umount /run/netns 2>/dev/null; rmdir /run/netns\n")
	})
	server := exec.Command("ip", "netns", "exec", "outside", "python3", "-c", `
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("198.51.100.2", 9000)); s.listen()
print("ready", flush=True)
c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()`)
	output, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	if _, err := fmt.Fscanln(output, new(string)); err != nil {
		t.Fatal(err)
	}
	if got := c.Sh("nc -w 5 198.51.100.2 9000 </dev/null"); got != "198.51.100.1" {
		t.Errorf("the world outside saw %q, want the node's 198.51.100.1", got)
	}
}
