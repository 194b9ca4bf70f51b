package kube

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/template"

	"golang.org/x/sys/unix"

	"meridian.dev/e2e/fabric"
	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// NodeOptions shape a node.
type NodeOptions struct {
	// Name is the node's name in Kubernetes; one or two letters.
	Name string
	// Gates are the kubelet's feature gates, beside the release's defaults.
	Gates map[string]bool
	// Containerd makes containerd with runc the kubelet's runtime, to compare with; such a node has no kube-proxy.
	Containerd bool
}

// Node is one machine of the cluster: namespaces of its own, a runtime, a kubelet and kube-proxy.
type Node struct {
	NodeOptions
	// Address is its InternalIP.
	Address string
	// Runtime, Kubelet and Proxy are its programs.
	Runtime, Kubelet, Proxy *Process
	// Socket is the runtime's, in the node's own mount namespace; Cgroup the node's directory in every hierarchy.
	Socket, Cgroup string
	// Dir is the node's disk.
	Dir string

	cluster  *Cluster
	meridian *node.Node
	subnet   int // the second byte of its pods' addresses
	first    *exec.Cmd
}

func (c *Cluster) newNode(options NodeOptions, host, subnet int) (*Node, error) {
	n := &Node{NodeOptions: options, Address: fabric.Address(host), cluster: c, subnet: subnet}
	var err error
	n.meridian, err = lab.NewNode(n.Name, node.Options{Subnet: subnet, Routed: true, Level: c.options.Level,
		Extra: fmt.Sprintf("[image]\nhosts = [%q]\n", c.Hosts())})
	if err != nil {
		return nil, err
	}
	n.Socket, n.Cgroup, n.Dir = n.meridian.Socket, n.meridian.Cgroup, n.meridian.Dir
	for _, directory := range []string{"log/pods", "kubelet", "etc"} {
		if err := os.MkdirAll(n.path(directory), 0o755); err != nil {
			return nil, err
		}
	}
	if n.Containerd {
		err = n.containerd()
	} else {
		n.Runtime = n.process("meridiand", node.Binary("meridiand"), "--config", n.meridian.Config(),
			"--root", n.meridian.Root, "--run", n.meridian.Run, "--socket", n.Socket)
		n.Proxy = n.process("kube-proxy", Binary("kube-proxy"), "--config", n.Etc("proxy.yaml"), "--hostname-override", n.Name)
	}
	n.Kubelet = n.process("kubelet", Binary("kubelet"), "--config", n.Etc("kubelet.yaml"), "--kubeconfig", n.Etc("kubelet.conf"),
		"--hostname-override", n.Name, "--node-ip", n.Address, "--root-dir", n.path("kubelet"), "--v", "2")
	return n, errors.Join(err, n.configure())
}

// Pid is the node's first process, or 0 while it is off.
func (n *Node) Pid() int {
	if n.first == nil {
		return 0
	}
	return n.first.Process.Pid
}

func (n *Node) path(file string) string { return filepath.Join(n.Dir, file) }

// process is a program in the node's namespaces.
func (n *Node) process(name string, command ...string) *Process {
	return &Process{Name: name + " of node " + n.Name, Log: logFile(n.cluster.directory, name+"-"+n.Name), command: command, forks: true}
}

// Enter is the command line that runs another one in the node's namespaces.
func (n *Node) Enter(command ...string) []string {
	return append([]string{"nsenter", "--target", fmt.Sprint(n.Pid()), "--mount", "--net", "--pid", "--uts", "--ipc", "--"}, command...)
}

// configuration is what a kubelet on cgroup v1 and on a machine that is not its own needs to be told, and what makes
// the suite quick: small logs, short back-offs.
var configuration = template.Must(template.New("kubelet").Parse(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{{.Socket}}
cgroupDriver: cgroupfs
cgroupRoot: /{{.Cgroup}}
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
address: {{.Address}}
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: {{.PKI "ca.crt"}}}}
authorization: {mode: Webhook}
tlsCertFile: {{.PKI (print "node-" .Name ".crt")}}
tlsPrivateKeyFile: {{.PKI (print "node-" .Name ".key")}}
resolvConf: {{.Etc "resolv.conf"}}
volumePluginDir: {{.Etc "volume-plugins"}}
serializeImagePulls: false
containerLogMaxSize: 64Ki
containerLogMonitorInterval: 3s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
featureGates: {KubeletCrashLoopBackOffMax: true{{range $gate, $on := .Gates}}, {{$gate}}: {{$on}}{{end}}}
`))

const proxy = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %q}
bindAddress: %q
healthzBindAddress: ""
metricsBindAddress: ""
masqueradeAll: true # pods of one node talk over its bridge: answers must come back by way of the node
conntrack: {maxPerCore: 0, min: 0}
`

// Etc is the path of one of the node's configuration files, PKI that of a certificate or key.
func (n *Node) Etc(file string) string { return n.path(filepath.Join("etc", file)) }

// PKI is the path of a certificate or key of the cluster.
func (n *Node) PKI(file string) string { return n.cluster.authority.path(file) }

func (n *Node) configure() error {
	var text strings.Builder
	err := configuration.Execute(&text, n)
	certificate := n.cluster.authority.issue(subject{"node-" + n.Name, "system:node:" + n.Name, []string{"system:nodes"}, []string{n.Address}})
	return errors.Join(err, certificate,
		os.WriteFile(n.Etc("kubelet.yaml"), []byte(text.String()), 0o600),
		os.WriteFile(n.Etc("kubelet.conf"), n.cluster.kubeconfig("node-"+n.Name), 0o600),
		os.WriteFile(n.Etc("proxy.yaml"), fmt.Appendf(nil, proxy, n.cluster.authority.path("kube-proxy.conf"), n.Address), 0o600),
		os.WriteFile(n.Etc("resolv.conf"), []byte("nameserver "+fabric.Gateway+"\n"), 0o644))
}

// Boot starts the node: its first process, its cable, and its programs.
func (n *Node) Boot() error {
	steps := []func() error{n.cgroups, n.boot, n.routes}
	for _, program := range n.programs() {
		steps = append(steps, func() error {
			program.command = n.Enter(program.command[slices.Index(program.command, "--")+1:]...)
			return program.Start()
		})
	}
	steps = slices.Insert(steps, 4, n.listens) // a kubelet that does not find its runtime ends
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return nil
}

// listens waits until the runtime accepts connections.
func (n *Node) listens() error {
	return n.Runtime.wait(func() error {
		connection, err := net.Dial("unix", fmt.Sprintf("/proc/%d/root%s", n.Pid(), n.Socket))
		if err == nil {
			err = connection.Close()
		}
		return err
	})
}

func (n *Node) programs() []*Process {
	if n.Proxy == nil {
		return []*Process{n.Runtime, n.Kubelet}
	}
	return []*Process{n.Runtime, n.Kubelet, n.Proxy}
}

// boot starts the node's first process and waits until it has made the node's mounts.
func (n *Node) boot() error {
	n.first = exec.Command("/proc/self/exe")
	n.first.Env = append(os.Environ(), booting+"="+n.Dir)
	if n.Containerd {
		n.first.Env = append(n.first.Env, foreign+"="+peers())
	}
	n.first.Stderr = os.Stderr
	n.first.SysProcAttr = &syscall.SysProcAttr{Setpgid: true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	booted, err := n.first.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.first.Start(); err != nil {
		return err
	}
	if line, err := bufio.NewReader(booted).ReadString('\n'); err != nil {
		return fmt.Errorf("did not boot (%q): %w", line, err)
	}
	return fabric.PlugProcess(n.Name, n.Address, n.first.Process.Pid)
}

// routes tells the world and the other nodes where this node's pods are, and this node where theirs are.
func (n *Node) routes() error {
	errs := []error{fabric.IP("route", "replace", n.pods(), "via", n.Address)}
	for _, other := range n.cluster.Nodes {
		if other == n || other.first == nil {
			continue
		}
		errs = append(errs,
			fabric.IP("-n", fabric.Namespace(n.Name), "route", "replace", other.pods(), "via", other.Address),
			fabric.IP("-n", fabric.Namespace(other.Name), "route", "replace", n.pods(), "via", n.Address))
	}
	return errors.Join(errs...)
}

func (n *Node) pods() string { return fmt.Sprintf("10.%d.0.0/16", n.subnet) }

// cgroups makes the directory that the kubelet wants to find in every hierarchy.
func (n *Node) cgroups() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if !strings.Contains(line, " - cgroup") {
			continue
		}
		err = errors.Join(err, os.MkdirAll(filepath.Join(fields[4], n.Cgroup), 0o755))
	}
	return err
}

// PowerOff ends the node as a power cut does: every process at once, and with them mounts, network and cgroups. What
// is on its disk stays.
func (n *Node) PowerOff() error {
	if n.first == nil {
		return nil
	}
	err := n.first.Process.Kill()
	_ = n.first.Wait()
	for _, program := range n.programs() {
		if program.running != nil {
			<-program.ended
		}
	}
	n.first = nil
	err = errors.Join(err, fabric.Unplug(n.Name))
	lab.RemoveCgroups(strings.TrimPrefix(n.Cgroup, "meridian-"))
	return err
}

// Discard removes the files of a node that is off.
func (n *Node) Discard() error {
	return errors.Join(n.meridian.Discard(), os.RemoveAll(n.meridian.Run))
}
