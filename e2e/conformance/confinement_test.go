package conformance

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// looked prints what confines the process that reads it, and process 1 next to it, line by line.
const looked = `for p in self 1; do
	grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/$p/status
	cat /proc/$p/oom_score_adj /proc/$p/cgroup /proc/$p/limits /proc/$p/uid_map
	cat /proc/$p/attr/current 2>/dev/null
	for n in mnt pid net ipc uts user cgroup time; do readlink /proc/$p/ns/$n; done
	echo ----
done`

// A process that comes later is no freer than the first: not in its rights, nor where it is, nor in what it inherits.
func TestExecIsConfinedAsTheContainerIs(t *testing.T) {
	ids := []*runtimeapi.IDMapping{{HostId: 600000, ContainerId: 0, Length: 65536}}
	pod(t)
	for name, change := range map[string]struct {
		pod       podOption
		container func(*securityContext)
	}{
		"default":  {container: func(*securityContext) {}},
		"user":     {container: func(s *securityContext) { s.RunAsUser, s.NoNewPrivs = &runtimeapi.Int64Value{Value: 1000}, true }},
		"readonly": {container: func(s *securityContext) { s.ReadonlyRootfs = true }},
		"dropped": {container: func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"KILL"}}
			s.SupplementalGroups = []int64{7, 8}
		}},
		"userns": {container: func(*securityContext) {}, pod: func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
		}},
	} {
		var options []podOption
		if change.pod != nil {
			options = append(options, change.pod)
		}
		c := lab.RunPod(t, options...).Run(name, sleeper, security(change.container))
		parts := strings.SplitN(c.Sh(looked), "----\n", 2)
		own, first := parts[0], strings.TrimSuffix(strings.TrimSpace(parts[1]), "----")
		if strings.TrimSpace(own) != strings.TrimSpace(first) {
			t.Errorf("%s: an exec is confined thus:\n%s\nthe first process thus:\n%s", name, own, first)
		}
		if got := c.Sh("cd / && for f in /proc/self/fd/*; do [ -e $f ] && echo ${f##*/}; done | sort -n | tr '\\n' ' '"); got != "0 1 2 " {
			t.Errorf("%s: an exec has descriptors %q", name, got)
		}
		if got := c.Sh("ls /proc/1/fd | sort -n | tr '\\n' ' '"); !strings.HasPrefix(got, "0 1 2 ") || len(strings.Fields(got)) > 4 { // 10: the shell's own
			t.Errorf("%s: the first process has descriptors %q", name, got)
		}
		if got := c.Sh("readlink /proc/self/cwd; readlink /proc/1/cwd; readlink /proc/1/root"); got != "/\n/\n/" {
			t.Errorf("%s: directories %q", name, got)
		}
	}
}
