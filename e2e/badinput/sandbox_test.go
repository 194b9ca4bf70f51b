package badinput

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

type podConfig = runtimeapi.PodSandboxConfig

func options(config *podConfig) *runtimeapi.NamespaceOption {
	return config.Linux.SecurityContext.NamespaceOptions
}

func userns(config *podConfig, uids, gids []*runtimeapi.IDMapping) {
	options(config).UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: uids, Gids: gids}
}

func idmap(container, host, length uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: container, HostId: host, Length: length}}
}

func sandboxRow(name string, change func(*podConfig), words ...string) row {
	codes, words := invalid(words...)
	return sandbox(name, change, codes, words)
}

func TestSandboxRequests(t *testing.T) {
	rows := []row{
		sandboxRow("without metadata", func(c *podConfig) { c.Metadata = nil }, "metadata"),
		sandboxRow("without name", func(c *podConfig) { c.Metadata.Name = "" }, "name"),
		sandboxRow("without namespace", func(c *podConfig) { c.Metadata.Namespace = "" }, "namespace"),
		sandboxRow("without uid", func(c *podConfig) { c.Metadata.Uid = "" }, "uid"),
		sandboxRow("name is a path", func(c *podConfig) { c.Metadata.Name = "../../etc/cron.d/x" }, "name", "../"),
		sandboxRow("namespace is a path", func(c *podConfig) { c.Metadata.Namespace = "a/b" }, "namespace"),
		sandboxRow("uid has a line feed", func(c *podConfig) { c.Metadata.Uid = "a\nb" }, "uid"),
		sandboxRow("name of 100000 letters", func(c *podConfig) { c.Metadata.Name = repeated(100_000) }, "name"),
		sandboxRow("name with NUL", func(c *podConfig) { c.Metadata.Name = "a\x00b" }, "name"),
		sandboxRow("hostname has a line feed", func(c *podConfig) { c.Hostname = "a\n127.0.0.1 bank" }, "hostname"),
		sandboxRow("hostname of 65 letters", func(c *podConfig) { c.Hostname = repeated(65) }, "hostname", "64"),
		sandboxRow("hostname with a space", func(c *podConfig) { c.Hostname = "a b" }, "hostname"),
		sandboxRow("dns server is no address", func(c *podConfig) { c.DnsConfig.Servers = []string{"ns.example"} }, "dns", "ns.example"),
		sandboxRow("dns server has a line feed", func(c *podConfig) { c.DnsConfig.Servers = []string{"192.0.2.1\nnameserver 192.0.2.2"} }, "dns"),
		sandboxRow("dns search has a line feed", func(c *podConfig) { c.DnsConfig.Searches = []string{"a\nnameserver 192.0.2.2"} }, "search"),
		sandboxRow("dns option has a line feed", func(c *podConfig) { c.DnsConfig.Options = []string{"ndots:1\nnameserver 192.0.2.2"} }, "option"),
		sandboxRow("log directory is relative", func(c *podConfig) { c.LogDirectory = "logs" }, "log_directory", "absolute"),
		sandboxRow("log directory climbs", func(c *podConfig) { c.LogDirectory = "/tmp/../../etc" }, "log_directory"),
		sandboxRow("cgroup parent climbs", func(c *podConfig) { c.Linux.CgroupParent = "/a/../../b" }, "cgroup_parent"),
		sandboxRow("cgroup parent is relative", func(c *podConfig) { c.Linux.CgroupParent = "a/b" }, "cgroup_parent"),
		sandboxRow("cgroup parent of 5000 letters", func(c *podConfig) { c.Linux.CgroupParent = "/" + repeated(5000) }, "cgroup_parent"),
		sandboxRow("sysctl of the node", func(c *podConfig) { c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "|/x"} }, "sysctl", "kernel.core_pattern"),
		sandboxRow("sysctl climbs", func(c *podConfig) { c.Linux.Sysctls = map[string]string{"net/../kernel/core_pattern": "|/x"} }, "sysctl"),
		sandboxRow("sysctl with a line feed", func(c *podConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward\n": "1"} }, "sysctl"),
		sandboxRow("net sysctl on the node's network", func(c *podConfig) {
			c.Hostname = ""
			options(c).Network = runtimeapi.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, "sysctl", "net.ipv4.ip_forward"),
		sandboxRow("ipc sysctl on the node's ipc", func(c *podConfig) {
			options(c).Ipc = runtimeapi.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"kernel.shmmax": "1"}
		}, "sysctl", "kernel.shmmax"),
		sandboxRow("container port 70000", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 70000, HostPort: 80}}
		}, "container_port", "70000"),
		sandboxRow("host port 70000", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 70000}}
		}, "host_port", "70000"),
		sandboxRow("host ip is no address", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 80, HostIp: "localhost"}}
		}, "host_ip", "localhost"),
		sandboxRow("unknown protocol", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 80, Protocol: 99}}
		}, "protocol", "99"),
		sandboxRow("group without user", func(c *podConfig) { c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1} }, "run_as_group", "run_as_user"),
		sandboxRow("negative user", func(c *podConfig) { c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: -1} }, "run_as_user"),
		sandboxRow("unknown network mode", func(c *podConfig) { options(c).Network = 42 }, "network", "42"),
		sandboxRow("network per container", func(c *podConfig) { options(c).Network = runtimeapi.NamespaceMode_CONTAINER }, "network"),
		sandboxRow("ipc per container", func(c *podConfig) { options(c).Ipc = runtimeapi.NamespaceMode_CONTAINER }, "ipc"),
		sandboxRow("target without pid mode", func(c *podConfig) { options(c).TargetId = "abc" }, "target"),
		sandboxRow("user namespace without id 0", func(c *podConfig) { userns(c, idmap(1, 200000, 65536), idmap(1, 200000, 65536)) }, "userns"),
		sandboxRow("user namespace of two ranges", func(c *podConfig) {
			two := append(idmap(0, 200000, 10), idmap(10, 300000, 10)...)
			userns(c, two, two)
		}, "userns"),
		sandboxRow("uids and gids differ", func(c *podConfig) { userns(c, idmap(0, 200000, 65536), idmap(0, 300000, 65536)) }, "userns"),
		sandboxRow("user namespace of length 0", func(c *podConfig) { userns(c, idmap(0, 200000, 0), idmap(0, 200000, 0)) }, "userns", "length"),
		sandboxRow("user namespace past the last id", func(c *podConfig) { userns(c, idmap(0, 4294967000, 65536), idmap(0, 4294967000, 65536)) }, "userns"),
		// No process of a pod is its own, so a profile for it may go unread.
		sandbox("seccomp profile is missing", func(c *podConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json"}
		}, []codes.Code{codes.InvalidArgument, codes.OK}, []string{"seccomp", "/no/such/profile.json"}),
		sandboxRow("seccomp profile is relative", func(c *podConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "../profile.json"}
		}, "seccomp"),
		{"sandbox request is empty", func(s *scene) error {
			_, err := s.Runtime.RunPodSandbox(s.ctx, &runtimeapi.RunPodSandboxRequest{})
			return err
		}, []codes.Code{codes.InvalidArgument}, []string{"config"}},
		{"sandbox handler is a path", func(s *scene) error {
			_, err := s.Runtime.RunPodSandbox(s.ctx, &runtimeapi.RunPodSandboxRequest{Config: client.Pod("handler", s.TempDir()), RuntimeHandler: "../runc"})
			return err
		}, []codes.Code{codes.InvalidArgument}, []string{"handler", "../runc"}},
		{"sandbox hostname is not UTF-8", func(s *scene) error {
			config := client.Pod("utf8", s.TempDir())
			config.Hostname = ""
			return rawRun(s, config, 2, []byte("a\xff\xfeb"))
		}, []codes.Code{codes.InvalidArgument, codes.Internal}, []string{"hostname", "utf-8"}},
		{"sandbox log directory is not UTF-8", func(s *scene) error {
			config := client.Pod("utf8", s.TempDir())
			config.LogDirectory = ""
			return rawRun(s, config, 3, []byte("/tmp/\xff"))
		}, []codes.Code{codes.InvalidArgument, codes.Internal}, []string{"log_directory", "utf-8"}},
	}
	run(t, rows)
}

// rawRun sends RunPodSandbox with one more field of PodSandboxConfig, given as bytes that Go's own encoder refuses.
func rawRun(s *scene, config *podConfig, field protowire.Number, value []byte) error {
	text, err := marshal(config)
	if err != nil {
		return err
	}
	text = protowire.AppendBytes(protowire.AppendTag(text, field, protowire.BytesType), value)
	request := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), text)
	return rawCall(s, "RunPodSandbox", request)
}

// A bad neighbour must not keep a good pod from coming up at the same time.
func TestGoodPodsComeUpAmongBadRequests(t *testing.T) {
	lab.Image(t, "clockwork:1")
	lab.Clean(t, lab.Node())
	ctx := lab.Context(t)
	stop, done := make(chan struct{}), make(chan int)
	for range 8 {
		go func() {
			sent := 0
			for {
				select {
				case <-stop:
					done <- sent
					return
				default:
					config := client.Pod("bad", "/nowhere")
					config.Linux.CgroupParent = "/../x"
					_, _ = lab.Node().Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
					sent++
				}
			}
		}()
	}
	for range 3 {
		p := lab.RunPod(t)
		p.Run("main", "exec clockwork pause").Sh("true")
	}
	close(stop)
	total := 0
	for range 8 {
		total += <-done
	}
	t.Logf("%d bad requests meanwhile", total)
}
