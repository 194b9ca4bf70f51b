package conformance

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRootOfAPodRulesItsOwnNamespacesOnly(t *testing.T) {
	netAdmin := security(func(s *securityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_TIME"}}
	})
	c := pod(t, mapped(500000)).Run("main", sleeper, netAdmin)
	if _, got := run(t, c, "ip link add v0 type veth peer name v1 && ip link set lo down && ip link set lo up && echo own"); !strings.HasSuffix(got, "own") {
		t.Errorf("its own network: %q", got)
	}
	for what, script := range map[string]string{
		"the node's clock":    "date -s 2001-01-01",
		"the node's hostname": "echo x >/proc/sys/kernel/domainname",
		"the node's modules":  "echo 1 >/proc/sys/kernel/modules_disabled",
	} {
		if code, got := run(t, c, script); code == 0 {
			t.Errorf("%s: %q", what, got)
		}
	}
}

func TestNamespacesWithinAPod(t *testing.T) {
	// Flatpak and Chromium make namespaces of their own; a pod with a user namespace and an unmasked /proc lets them.
	c := pod(t, mapped(600000)).Run("main", sleeper, security(func(s *securityContext) {
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		s.MaskedPaths, s.ReadonlyPaths = nil, nil
	}))
	if _, got := run(t, c, "unshare -U -r -p -f -m --mount-proc sh -c 'echo $$; ls /proc | grep -c ^[0-9]'"); !strings.HasPrefix(got, "1\n") {
		t.Errorf("nested namespaces: %q", got)
	}
}

func TestContainersOfOnePidNamespaceEndApart(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	stays := p.Run("stays", "tail -f /dev/null & wait")
	ends := p.Run("ends", "(sleep 300 &) ; exit 7")
	if got := ends.Wait().GetExitCode(); got != 7 {
		t.Errorf("exit code %d", got)
	}
	if state := stays.Status().GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container is %s", state)
	}
	// What the ended one left behind goes with its cgroup and is reaped by the pod's process 1.
	eventually(t, "the orphan is gone", func() bool { return stays.Sh("ps -o stat,args | grep -c '[s]leep 300' || true") == "0" })
	if got := stays.Sh("ps -o stat | grep -c Z || true"); got != "0" {
		t.Errorf("%s zombies", got)
	}
}
