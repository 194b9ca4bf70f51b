// Package kernels tests what depends on the kernel and cannot be had on the machine itself: limits of cgroup v2, its
// OOM killer, AppArmor, and what needs CAP_SYS_RESOURCE. hack/kernels runs it in virtual machines with other kernels,
// beside the suites of package cri that depend on the kernel too.
package kernels

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func TestMain(m *testing.M) {
	if os.Getenv("MERIDIAN_LAB_ARCHIVES") == "" {
		fmt.Println("left to hack/kernels, whose machines have what these tests need")
		return
	}
	lab.Main(m)
}

// container is a container of the pod with these entries of the unified map.
func container(pod *runtimeapi.PodSandboxConfig, image string, unified map[string]string) *runtimeapi.ContainerConfig {
	return client.Container(pod, "main", image, []string{"/bin/sh", "-c", sleeper}, resources(&runtimeapi.LinuxContainerResources{Unified: unified}))
}

// removeDirectories removes the directories of a relative path, the innermost first.
func removeDirectories(t *testing.T, root, path string) {
	t.Helper()
	for ; path != "."; path = filepath.Dir(path) {
		if err := os.Remove(filepath.Join(root, path)); err != nil {
			t.Error(err)
		}
	}
}
