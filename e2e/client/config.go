package client

import (
	"crypto/rand"
	"encoding/hex"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Unique returns a word that no other call returns, for names and uids.
func Unique() string {
	var word [6]byte
	_, _ = rand.Read(word[:])
	return hex.EncodeToString(word[:])
}

// Pod returns the configuration the kubelet would send for a plain pod: pod network, pod ipc, pid per container.
// Container logs go below logs. Options change it before it is returned.
func Pod(name, logs string, options ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	uid := Unique()
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: uid},
		Hostname:     name,
		LogDirectory: filepath.Join(logs, uid),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"e2e.svc"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "e2e", "io.kubernetes.pod.uid": uid},
		Annotations:  map[string]string{"e2e.example/origin": "test"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
	for _, option := range options {
		option(config)
	}
	return config
}

// Container returns the configuration the kubelet would send for one container of pod, running command.
func Container(pod *runtimeapi.PodSandboxConfig, name, image string, command []string, options ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	config := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: name},
		Image:       &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: image},
		Command:     command,
		LogPath:     name + "_0.log",
		Labels:      map[string]string{"io.kubernetes.container.name": name},
		Annotations: map[string]string{"e2e.example/kind": "test"},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: pod.GetLinux().GetSecurityContext().GetNamespaceOptions(),
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths:      MaskedPaths,
				ReadonlyPaths:    ReadonlyPaths,
			},
		},
	}
	for _, option := range options {
		option(config)
	}
	return config
}

// MaskedPaths and ReadonlyPaths are what the kubelet sends for ProcMount Default.
var (
	MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)
