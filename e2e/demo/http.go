package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"meridian.dev/e2e/pair"
)

// fetchFlag makes this program an HTTP client, which nsenter starts inside a node's network.
const fetchFlag = "-fetch-url"

// answer is what `clockwork serve` says.
type answer struct {
	Count, Monotonic, Boottime, Realtime int64
}

// get asks the pod's HTTP server from the node's own network.
func get(ctx context.Context, n *pair.Node, pod string) (answer, error) {
	var a answer
	status, err := n.PodSandboxStatus(ctx, pod, false)
	if err != nil {
		return a, err
	}
	url := "http://" + net.JoinHostPort(status.Status.Network.Ip, "8080")
	// Not /proc/self/exe, which would be nsenter itself.
	self, err := os.Executable()
	if err != nil {
		return a, err
	}
	output, err := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+n.Namespace, self, fetchFlag, url).Output()
	if err != nil {
		return a, fmt.Errorf("GET %s on %s: %w", url, n.Namespace, err)
	}
	step("GET %s on %s: %s", url, n.Namespace, output)
	return a, json.Unmarshal(output, &a)
}

func fetch(url string) int {
	response, err := (&http.Client{Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fmt.Print(string(body[:max(0, len(body)-1)]))
	if err != nil {
		return 1
	}
	return 0
}
