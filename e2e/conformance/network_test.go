package conformance

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// address is the pod's first address.
func address(t *testing.T, p *lab.Pod) string {
	t.Helper()
	got, err := lab.Node().PodSandboxStatus(lab.Context(t), p.ID, false)
	if err != nil || got.Status.GetNetwork().GetIp() == "" {
		t.Fatalf("no address: %v, %v", got, err)
	}
	return got.Status.Network.Ip
}

// get fetches a page once; anything but a good answer is "".
func get(t *testing.T, url string) string {
	t.Helper()
	caller := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := caller.Get(url)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return ""
	}
	return strings.TrimSpace(string(body))
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestNamesOfThePod(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = "a-name"
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.10.10.10"}, Searches: []string{"example.test"}, Options: []string{"ndots:8"}}
	})
	c := p.Run("main", sleeper)
	if got := c.Sh("hostname; cat /etc/hostname; cat /etc/resolv.conf"); got != "a-name\na-name\nsearch example.test\nnameserver 10.10.10.10\noptions ndots:8" {
		t.Errorf("names: %q", got)
	}
}

// A port mapping without a host port says only what the container listens on.
func TestContainerPortWithoutHostPort(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80}} })
	p.Run("server", "echo here >/page; exec httpd -f -p 80 -h /")
	eventually(t, "the page is served", func() bool { return get(t, "http://"+address(t, p)+"/page") == "here" })
}

func TestListenersAreThoseOfTheNetworkNamespace(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := fmt.Sprintf(":%d ", listener.Addr().(*net.TCPAddr).Port)
	own := pod(t)
	host := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	if seen := own.Run("own", sleeper).Sh("netstat -ln"); strings.Contains(seen, port) {
		t.Errorf("a pod's network shows the node's listeners: %s", seen)
	}
	if seen := host.Run("host", sleeper).Sh("netstat -ln"); !strings.Contains(seen, port) {
		t.Errorf("the node's network does not show its listener %s: %s", port, seen)
	}
}

func TestHostnameIsNeededOnlyWhereThereIsOne(t *testing.T) {
	lab.Clean(t, lab.Node())
	config := client.Pod("names", t.TempDir(), func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) })
	_, err := lab.Node().Runtime.RunPodSandbox(lab.Context(t), &runtimeapi.RunPodSandboxRequest{Config: config})
	wantCode(t, "a hostname of 65 letters", err, codes.InvalidArgument, "hostname")
}
