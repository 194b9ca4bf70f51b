package badinput

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

type containerConfig = runtimeapi.ContainerConfig

func containerRow(name string, change func(*scene, *containerConfig), words ...string) row {
	codes, words := invalid(words...)
	return container(name, change, codes, words)
}

func mount(m *runtimeapi.Mount) func(*scene, *containerConfig) {
	return func(_ *scene, c *containerConfig) { c.Mounts = []*runtimeapi.Mount{m} }
}

func device(d *runtimeapi.Device) func(*scene, *containerConfig) {
	return func(_ *scene, c *containerConfig) { c.Devices = []*runtimeapi.Device{d} }
}

func security(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*scene, *containerConfig) {
	return func(_ *scene, c *containerConfig) { change(c.Linux.SecurityContext) }
}

func resources(change func(*runtimeapi.LinuxContainerResources)) func(*scene, *containerConfig) {
	return func(_ *scene, c *containerConfig) { change(c.Linux.Resources) }
}

func env(key, value string) func(*scene, *containerConfig) {
	return func(_ *scene, c *containerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: key, Value: []byte(value)}}
	}
}

func TestContainerRequests(t *testing.T) {
	rows := []row{
		containerRow("without metadata", func(_ *scene, c *containerConfig) { c.Metadata = nil }, "metadata"),
		containerRow("without name", func(_ *scene, c *containerConfig) { c.Metadata.Name = "" }, "name"),
		containerRow("name is a path", func(_ *scene, c *containerConfig) { c.Metadata.Name = "../x" }, "name"),
		containerRow("without image", func(_ *scene, c *containerConfig) { c.Image = nil }, "image"),
		container("image is unknown", func(_ *scene, c *containerConfig) { c.Image.Image = "sha256:" + strings.Repeat("ab", 32) }, []codes.Code{codes.NotFound}, []string{"image"}),
		containerRow("log path is absolute", func(_ *scene, c *containerConfig) { c.LogPath = "/etc/cron.d/x" }, "log_path"),
		containerRow("log path climbs", func(_ *scene, c *containerConfig) { c.LogPath = "../../x.log" }, "log_path"),
		containerRow("log path has a line feed", func(_ *scene, c *containerConfig) { c.LogPath = "a\nb" }, "log_path"),
		containerRow("env without key", env("", "x"), "env"),
		containerRow("env key with =", env("A=B", "x"), "env", "="),
		containerRow("env key with NUL", env("A\x00B", "x"), "env"),
		containerRow("env value with NUL", env("A", "x\x00y"), "env", "A"),
		containerRow("env key with a line feed", env("A\nB", "x"), "env"),
		containerRow("argument with NUL", func(_ *scene, c *containerConfig) { c.Args = []string{"a\x00b"} }, "args"),
		containerRow("working directory is relative", func(_ *scene, c *containerConfig) { c.WorkingDir = "var" }, "working_dir", "absolute"),
		containerRow("mount source is relative", mount(&runtimeapi.Mount{HostPath: "etc", ContainerPath: "/x"}), "host_path"),
		containerRow("mount without source", mount(&runtimeapi.Mount{ContainerPath: "/x"}), "host_path"),
		containerRow("mount source is missing", mount(&runtimeapi.Mount{HostPath: "/no/such/path", ContainerPath: "/x"}), "host_path", "/no/such/path"),
		containerRow("mount source climbs", mount(&runtimeapi.Mount{HostPath: "/tmp/../etc", ContainerPath: "/x"}), "host_path"),
		containerRow("mount target is relative", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "x"}), "container_path"),
		containerRow("mount target climbs", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/x/../../y"}), "container_path"),
		containerRow("mount over the root", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/"}), "container_path"),
		containerRow("mount of a path and an image", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "x"}}), "image", "host_path"),
		containerRow("unknown propagation", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/x", Propagation: 9}), "propagation", "9"),
		containerRow("recursive without read-only", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/x", RecursiveReadOnly: true}), "recursive_read_only"),
		containerRow("unknown mount option", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/x", MountOptions: []string{"suid"}}), "mount_options", "suid"),
		containerRow("uid mappings without gid mappings", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/x", UidMappings: idmap(0, 1, 1)}), "mapping"),
		containerRow("device is missing", device(&runtimeapi.Device{HostPath: "/dev/nonesuch", ContainerPath: "/dev/x", Permissions: "r"}), "device", "/dev/nonesuch"),
		containerRow("device is a file", func(s *scene, c *containerConfig) {
			device(&runtimeapi.Device{HostPath: filepath.Join(s.canary, "file"), ContainerPath: "/dev/x", Permissions: "r"})(s, c)
		}, "device"),
		containerRow("device is a link to a file", func(s *scene, c *containerConfig) {
			link := filepath.Join(s.TempDir(), "link")
			if err := os.Symlink(filepath.Join(s.canary, "file"), link); err != nil {
				s.Fatal(err)
			}
			device(&runtimeapi.Device{HostPath: link, ContainerPath: "/dev/x", Permissions: "r"})(s, c)
		}, "device"),
		containerRow("device permissions", device(&runtimeapi.Device{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rwz"}), "permissions", "rwz"),
		containerRow("device target climbs", device(&runtimeapi.Device{HostPath: "/dev/null", ContainerPath: "/dev/../x", Permissions: "r"}), "container_path"),
		containerRow("cpu period 10", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpuPeriod = 10 }), "cpu_period", "10"),
		containerRow("cpu quota -5", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpuQuota = -5 }), "cpu_quota", "-5"),
		containerRow("cpu shares -1", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpuShares = -1 }), "cpu_shares", "-1"),
		containerRow("memory limit -7", resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = -7 }), "memory_limit_in_bytes", "-7"),
		containerRow("swap below memory", resources(func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 64<<20, 32<<20
		}), "memory_swap_limit_in_bytes"),
		containerRow("oom score 5000", resources(func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = 5000 }), "oom_score_adj", "5000"),
		containerRow("cpuset is no list", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "all" }), "cpuset_cpus", "all"),
		containerRow("cpuset with a line feed", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "0\n1" }), "cpuset_cpus"),
		containerRow("cpuset of a cpu that is not there", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "4000" }), "cpuset"),
		containerRow("unified key climbs", resources(func(r *runtimeapi.LinuxContainerResources) {
			r.Unified = map[string]string{"../cgroup.procs": "1"}
		}), "unified", "../cgroup.procs"),
		containerRow("hugepage size", resources(func(r *runtimeapi.LinuxContainerResources) {
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "../2MB", Limit: 1}}
		}), "page_size"),
		containerRow("negative user", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: -1} }), "run_as_user", "-1"),
		containerRow("user past 32 bits", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 33}
		}), "run_as_user"),
		containerRow("user twice", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &runtimeapi.Int64Value{Value: 1}, "daemon"
		}), "run_as_user", "run_as_username"),
		containerRow("group without user", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 1} }), "run_as_group"),
		containerRow("negative supplemental group", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{-1} }), "supplemental_groups"),
		containerRow("unknown capability", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
		}), "capabilit", "FLY"),
		containerRow("privileged in a pod that is not", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }), "privileged"),
		containerRow("masked path is relative", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc/keys"} }), "masked_paths"),
		containerRow("read-only path climbs", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/proc/../etc"} }), "readonly_paths"),
		containerRow("seccomp profile is missing", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such.json"}
		}), "seccomp", "/no/such.json"),
		containerRow("seccomp profile is no JSON", func(s *scene, c *containerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: filepath.Join(s.canary, "file")}
		}, "seccomp"),
		container("AppArmor profile without AppArmor", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "some-profile"}
		}), []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, []string{"apparmor", "some-profile"}),
		container("target is unknown", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: unknown}
		}), []codes.Code{codes.InvalidArgument, codes.NotFound}, []string{unknown[:12]}),
		containerRow("target is missing", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET}
		}), "target"),
		{"container in an unknown sandbox", func(s *scene) error {
			config := client.Container(s.pod.Config, "x", lab.Image(s.T, "clockwork:1"), nil)
			_, err := s.Runtime.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: strings.Repeat("0", 64), Config: config, SandboxConfig: s.pod.Config})
			return err
		}, []codes.Code{codes.NotFound}, []string{"sandbox"}},
		{"container target in another pod", func(s *scene) error {
			other := lab.RunPod(s.T)
			config := client.Container(other.Config, "debug", lab.Image(s.T, "clockwork:1"), []string{"sleep", "1"})
			config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: s.container.ID}
			_, err := s.Runtime.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: other.ID, Config: config, SandboxConfig: other.Config})
			return err
		}, []codes.Code{codes.InvalidArgument, codes.NotFound}, []string{"in this pod"}},
		{"container in a stopped sandbox", func(s *scene) error {
			other := lab.RunPod(s.T)
			if err := lab.Node().StopPodSandbox(s.ctx, other.ID); err != nil {
				return err
			}
			config := client.Container(other.Config, "late", lab.Image(s.T, "clockwork:1"), []string{"sleep", "1"})
			_, err := s.Runtime.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: other.ID, Config: config, SandboxConfig: other.Config})
			return err
		}, []codes.Code{codes.FailedPrecondition}, []string{"pod", "stopped"}},
		{"container env key is not UTF-8", func(s *scene) error {
			config := client.Container(s.pod.Config, "utf8", lab.Image(s.T, "clockwork:1"), []string{"sleep", "1"})
			text, err := marshal(config)
			if err != nil {
				return err
			}
			pair := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("A\xff"))
			text = protowire.AppendBytes(protowire.AppendTag(text, 6, protowire.BytesType), pair)
			request := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), s.pod.ID)
			request = protowire.AppendBytes(protowire.AppendTag(request, 2, protowire.BytesType), text)
			return rawCall(s, "CreateContainer", request)
		}, []codes.Code{codes.InvalidArgument, codes.Internal}, []string{"key", "utf-8"}},
	}
	run(t, rows)
}
