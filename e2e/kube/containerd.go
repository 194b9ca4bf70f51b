package kube

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"meridian.dev/e2e/node"
)

// peers is the tree of hack/install that holds containerd, runc and CNI's plugins. A node with containerd has its /usr,
// so that they run with the libraries they were built for.
func peers() string { return filepath.Join(node.Cache(), "peers") }

var containerdConfiguration = template.Must(template.New("containerd").Parse(`version = 3
root = "{{.Dir}}/containerd"
state = "/run/containerd"

[grpc]
address = "{{.Socket}}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.example/meridian/pause:1"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{{.Hosts}}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{{.Etc "cni"}}"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
`))

// bridge is the cheapest network that gives a pod an address that the other nodes have a route to.
const bridge = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "SUBNET"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

// Hosts is Cluster.Hosts.
func (n *Node) Hosts() string { return n.cluster.Hosts() }

// containerd prepares the node for containerd in Meridian's place.
func (n *Node) containerd() error {
	if _, err := os.Stat(filepath.Join(peers(), ".complete")); err != nil {
		return errors.New("no containerd: run hack/install peers")
	}
	n.Socket = "/run/containerd.sock"
	n.Runtime = n.process("containerd", "/usr/bin/containerd", "--config", n.Etc("containerd.toml"), "--log-level", "warn")
	var text strings.Builder
	err := containerdConfiguration.Execute(&text, n)
	for file, content := range map[string]string{
		"containerd.toml":        text.String(),
		"cni/10-bridge.conflist": strings.Replace(bridge, "SUBNET", n.pods(), 1),
	} {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(n.Etc(file)), 0o755), os.WriteFile(n.Etc(file), []byte(content), 0o644))
	}
	return err
}
