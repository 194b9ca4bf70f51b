package cri

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func mapping(ports ...*runtimeapi.PortMapping) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = ports }
}

// talk sends a line to an address and returns the line that comes back; "" for none.
func talk(network, address string) string {
	connection, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return ""
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(time.Second))
	_, _ = connection.Write([]byte("hello\n"))
	answer := make([]byte, 100)
	count, _ := connection.Read(answer)
	return strings.TrimSpace(string(answer[:count]))
}

// portTable is what nft shows of the node's host ports; "" when there is no such table.
func portTable() string {
	output, err := exec.Command("nft", "list", "table", "inet", "meridian_"+lab.Node().Bridge+"_ports").Output()
	if err != nil {
		return ""
	}
	return string(output)
}

// inside runs work in a thread that is in a pod's network namespace meanwhile.
func inside(t *testing.T, p *lab.Pod, work func() error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	pin, err := os.Open(filepath.Join(lab.Node().Run, "ns", p.ID, "net"))
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Close()
	if err := unix.Setns(int(pin.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	failed := work()
	if err := errors.Join(failed, unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)); err != nil {
		t.Fatal(err)
	}
}

// serve answers "served" on TCP port 70 of the pod, and what it gets on UDP port 71, until the test ends.
func serve(t *testing.T, p *lab.Pod) {
	t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	inside(t, p, func() (err error) {
		if listener, err = net.Listen("tcp", ":70"); err == nil {
			packets, err = net.ListenPacket("udp", ":71")
		}
		return err
	})
	t.Cleanup(func() { _, _ = listener.Close(), packets.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = connection.Write([]byte("served\n"))
			_ = connection.Close()
		}
	}()
	go func() {
		packet := make([]byte, 100)
		for {
			count, from, err := packets.ReadFrom(packet)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(packet[:count], from)
		}
	}()
}

func TestHostPorts(t *testing.T) {
	p := pod(t, mapping(
		&runtimeapi.PortMapping{ContainerPort: 70, HostPort: 12070},
		&runtimeapi.PortMapping{ContainerPort: 71, HostPort: 12071, Protocol: runtimeapi.Protocol_UDP},
		&runtimeapi.PortMapping{ContainerPort: 70, HostPort: 12072, HostIp: "127.0.0.1"},
		&runtimeapi.PortMapping{ContainerPort: 72, HostPort: 12073, Protocol: runtimeapi.Protocol_SCTP},
		&runtimeapi.PortMapping{ContainerPort: 70},
	))
	serve(t, p)
	server := p.Run("server", sleeper)
	other := lab.RunPod(t).Run("other", sleeper)
	gateway := strings.Fields(server.Sh("ip route show default"))[2]
	if got := talk("udp", "127.0.0.1:12071"); got != "hello" {
		t.Errorf("UDP: %q", got)
	}
	for what, address := range map[string]string{
		"the node's loopback": "127.0.0.1:12070", "an address of the node": gateway + ":12070", "the mapping of one address": "127.0.0.1:12072", "IPv6": "[" + gateway6(t, server) + "]:12070",
	} {
		if got := talk("tcp", address); got != "served" {
			t.Errorf("%s, %s: %q", what, address, got)
		}
	}
	if got := talk("tcp", gateway+":12072"); got != "" {
		t.Errorf("the mapping of 127.0.0.1 answers on %s: %q", gateway, got)
	}
	for name, c := range map[string]*lab.Container{"another pod": other, "the pod itself": server} {
		if got := c.Sh("echo | nc -w 2 " + gateway + " 12070"); got != "served" {
			t.Errorf("from %s: %q", name, got)
		}
	}
	if table := portTable(); !strings.Contains(table, "sctp dport 12073") {
		t.Errorf("no rule for SCTP: %s", table)
	}
	p.Remove()
	if table := portTable(); table != "" {
		t.Errorf("left behind: %s", table)
	}
}

// gateway6 is the node's IPv6 address as the pod sees it.
func gateway6(t *testing.T, c *lab.Container) string {
	t.Helper()
	words := strings.Fields(c.Sh("ip -6 route show default"))
	if len(words) < 3 {
		t.Fatalf("no IPv6 default route: %v", words)
	}
	return words[2]
}

// The way in for 127.0.0.1 must not be one for pods to what listens on the node's loopback (CVE-2020-8558).
func TestPodsDoNotReachTheNodesLoopback(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	p := pod(t, mapping(&runtimeapi.PortMapping{ContainerPort: 70, HostPort: 12070}))
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = false
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	})
	gateway := strings.Fields(c.Sh("ip route show default"))[2]
	c.Sh("ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via " + gateway + " dev eth0; ip route del local 127.0.0.0/8 table local 2>/dev/null; true")
	port := listener.Addr().(*net.TCPAddr).Port
	if got := c.Sh(fmt.Sprintf("echo | nc -w 1 127.0.0.1 %d >/dev/null 2>&1 && echo reached; true", port)); got != "" {
		t.Error("a pod reached a listener on the node's loopback")
	}
}

func TestHostPortHasOnePod(t *testing.T) {
	one := &runtimeapi.PortMapping{ContainerPort: 70, HostPort: 12070}
	p := pod(t, mapping(one))
	second := client.Pod("second", t.TempDir(), mapping(one))
	_, err := lab.Node().Runtime.RunPodSandbox(lab.Context(t), &runtimeapi.RunPodSandboxRequest{Config: second})
	wantCode(t, "a port that is taken", err, codes.FailedPrecondition, "12070", "tcp")
	if err := lab.Node().StopPodSandbox(lab.Context(t), p.ID); err != nil {
		t.Fatal(err)
	}
	id, err := lab.Node().RunPodSandbox(lab.Context(t), second, "") // the stopped pod has given it back
	if err != nil {
		t.Fatal(err)
	}
	lab.Adopt(t, id, second)
}

// A client that goes on sending from one socket reaches whoever has the port: nobody, then a pod, then the next.
func TestUDPClientsFollowTheHostPort(t *testing.T) {
	lab.Clean(t, lab.Node())
	client, err := net.Dial("udp", "127.0.0.1:12076")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	answered := func() bool {
		answer := make([]byte, 100)
		_ = client.SetDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = client.Write([]byte("hello\n"))
		count, err := client.Read(answer)
		return err == nil && string(answer[:count]) == "hello\n"
	}
	for _, name := range []string{"first", "second"} {
		if answered() {
			t.Errorf("somebody answers before the %s pod", name)
		}
		t.Run(name, func(t *testing.T) {
			p := pod(t, mapping(&runtimeapi.PortMapping{ContainerPort: 71, HostPort: 12076, Protocol: runtimeapi.Protocol_UDP}))
			serve(t, p)
			eventually(t, "the pod answers", answered)
		})
	}
}

func TestHostPortsSurviveARestart(t *testing.T) {
	p := pod(t, mapping(&runtimeapi.PortMapping{ContainerPort: 70, HostPort: 12070}))
	serve(t, p)
	lab.Node().Kill()
	if got := talk("tcp", "127.0.0.1:12070"); got != "served" {
		t.Errorf("without a daemon: %q", got)
	}
	if err := lab.Node().Start(lab.Context(t)); err != nil {
		t.Fatal(err)
	}
	for range 20 { // while the new daemon goes through the rules
		if got := talk("tcp", "127.0.0.1:12070"); got != "served" {
			t.Errorf("with a new daemon: %q", got)
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.Remove()
	eventually(t, "the table is gone", func() bool { return portTable() == "" })
}
