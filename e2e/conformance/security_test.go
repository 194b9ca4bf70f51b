package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

type securityContext = runtimeapi.LinuxContainerSecurityContext

// segment makes a System V shared memory segment in the node's ipc namespace and returns its id.
func segment(t *testing.T) string {
	t.Helper()
	output, err := exec.Command("ipcmk", "-M", "4096").Output()
	if err != nil {
		t.Fatalf("ipcmk: %v", err)
	}
	words := strings.Fields(string(output))
	id := words[len(words)-1]
	t.Cleanup(func() { _ = exec.Command("ipcrm", "-m", id).Run() })
	return id
}

func TestSharedMemoryOfTheNode(t *testing.T) {
	id := segment(t)
	pod(t)
	for mode, want := range map[runtimeapi.NamespaceMode]bool{runtimeapi.NamespaceMode_POD: false, runtimeapi.NamespaceMode_NODE: true} {
		p := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Ipc = mode })
		table := p.Run("main", sleeper).Sh("awk 'NR > 1 { print $2 }' /proc/sysvipc/shm")
		if got := slices.Contains(strings.Fields(table), id); got != want {
			t.Errorf("ipc of the %s: segment %s is seen: %v, want %v", mode, id, got, want)
		}
	}
}

func TestProcessOneOfAPodWithOnePidNamespace(t *testing.T) {
	pod(t)
	for mode, want := range map[runtimeapi.NamespaceMode]bool{runtimeapi.NamespaceMode_CONTAINER: true, runtimeapi.NamespaceMode_POD: false} {
		p := lab.RunPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode })
		first := p.Run("main", sleeper).Sh("tr '\\0' ' ' </proc/1/cmdline")
		if got := strings.Contains(first, "exit 0"); got != want {
			t.Errorf("pid per %s: process 1 is %q", mode, first)
		}
	}
}

func TestGroupNeedsAUser(t *testing.T) {
	p := pod(t)
	group := &runtimeapi.Int64Value{Value: 1000}
	_, err := create(t, p, security(func(s *securityContext) { s.RunAsGroup = group }))
	wantCode(t, "run_as_group alone", err, codes.InvalidArgument, "run_as_group", "run_as_user")
	c := p.Run("both", sleeper, security(func(s *securityContext) { s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1001}, group }))
	if got := c.Sh("echo $(id -u):$(id -g)"); got != "1001:1000" {
		t.Errorf("ids %s", got)
	}
}

func TestStatusTellsTheUser(t *testing.T) {
	p := pod(t)
	for policy, groups := range map[runtimeapi.SupplementalGroupsPolicy][]int64{
		runtimeapi.SupplementalGroupsPolicy_Merge:  {1000, 1234, 50000},
		runtimeapi.SupplementalGroupsPolicy_Strict: {1000, 1234},
	} {
		c := p.Run(strings.ToLower(policy.String()), sleeper, security(func(s *securityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} // alice, whom the image puts into group 50000
			s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{1234}, policy
		}))
		user := c.Status().GetUser().GetLinux()
		if slices.Sort(user.GetSupplementalGroups()); user.GetUid() != 1000 || user.GetGid() != 1000 || !slices.Equal(user.GetSupplementalGroups(), groups) {
			t.Errorf("%s: user %v, want groups %v", policy, user, groups)
		}
		var words []string
		for _, group := range groups {
			words = append(words, fmt.Sprint(group))
		}
		seen := strings.Fields(c.Sh("id -G"))
		if slices.Sort(seen); !slices.Equal(seen, slices.Sorted(slices.Values(words))) {
			t.Errorf("%s: id -G says %v, want %v", policy, seen, words)
		}
	}
}

func TestRootFilesystemIsWritableUnlessAskedOtherwise(t *testing.T) {
	p := pod(t)
	for readonly, want := range map[bool]string{false: "written", true: "touch: /file: Read-only file system"} {
		c := p.Run(fmt.Sprint("readonly-", readonly), sleeper, security(func(s *securityContext) { s.ReadonlyRootfs = readonly }))
		if _, got := run(t, c, "touch /file && echo written"); got != want {
			t.Errorf("readonly_rootfs %v: %q", readonly, got)
		}
	}
}

// What a capability lets one do, and the lack of it not; that the bits are right is TestCapabilities of package cri.
func TestCapabilitiesAtWork(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	const bridge, raw = "ip link add b0 type bridge && ip link del b0", "arping -q -c 1 -w 1 -I lo 127.0.0.1 2>&1 | grep -q 'not permitted' && exit 1; exit 0"
	for _, test := range []struct {
		name       string
		add, drop  []string
		privileged bool
		bridge     bool
		raw        bool
	}{
		{name: "default", raw: true},
		{name: "net-admin", add: []string{"NET_ADMIN"}, bridge: true, raw: true},
		{name: "no-raw", drop: []string{"NET_RAW"}},
		{name: "all", add: []string{"ALL"}, bridge: true, raw: true},
		{name: "none", drop: []string{"ALL"}},
		{name: "privileged", privileged: true, bridge: true, raw: true},
	} {
		c := p.Run(test.name, sleeper, security(func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: test.add, DropCapabilities: test.drop}
			s.Privileged = test.privileged
		}))
		for script, want := range map[string]bool{bridge: test.bridge, raw: test.raw} {
			if code, output := run(t, c, script); (code == 0) != want {
				t.Errorf("%s: %s: exit code %d: %s", test.name, script, code, output)
			}
		}
		bound := strings.Fields(c.Sh("grep CapBnd /proc/self/status"))[1]
		if empty := strings.Trim(bound, "0") == ""; empty != (test.name == "none") {
			t.Errorf("%s: bounding set %s", test.name, bound)
		}
	}
}

// The kubelet sends paths below /proc and /sys only; any path of the image may be asked for.
func TestPathsOfTheImageMayBeMaskedAndReadonly(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, security(func(s *securityContext) {
		s.MaskedPaths, s.ReadonlyPaths = []string{"/bin/clockwork", "/var"}, []string{"/tmp"}
	}))
	for script, want := range map[string]string{
		"/bin/clockwork pause": "Permission denied",
		"ls -A /var | wc -l":   "0",
		"touch /tmp/test":      "touch: /tmp/test: Read-only file system",
	} {
		if _, got := run(t, c, script); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// profile writes a seccomp profile that refuses system calls and returns what a request for it says.
func profile(t *testing.T, calls string) *runtimeapi.SecurityProfile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profile.json")
	text := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [` + calls + `], "action": "SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}
}

func TestSeccompProfiles(t *testing.T) {
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	const change, rename = "chmod 400 /", "hostname changed"
	admin := &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	for _, test := range []struct {
		name       string
		profile    *runtimeapi.SecurityProfile
		privileged bool
		mode       string
		refused    string // of change and rename
	}{
		{"none", nil, false, "0", ""},
		{"unconfined", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, false, "0", ""},
		{"default", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, false, "2", ""},
		{"no-chmod", profile(t, `"chmod", "fchmod", "fchmodat"`), false, "2", change},
		{"no-hostname", profile(t, `"sethostname"`), false, "2", rename},
		{"privileged", profile(t, `"sethostname", "chmod"`), true, "0", ""},
	} {
		c := p.Run(test.name, sleeper, security(func(s *securityContext) {
			s.Seccomp, s.Privileged, s.Capabilities = test.profile, test.privileged, admin
		}))
		if got := c.Sh("awk '/^Seccomp:/ { print $2 }' /proc/self/status"); got != test.mode {
			t.Errorf("%s: seccomp mode %s, want %s", test.name, got, test.mode)
		}
		for _, script := range []string{change, rename} {
			code, output := run(t, c, script)
			if refused := code != 0; refused != (script == test.refused) || refused && !strings.Contains(output, "Operation not permitted") {
				t.Errorf("%s: %s: exit code %d: %s", test.name, script, code, output)
			}
		}
	}
}

func TestSetuidProgramsAndNoNewPrivileges(t *testing.T) {
	volume := t.TempDir()
	program := filepath.Join(volume, "effective-uid")
	compiled := exec.Command("gcc", "-O1", "-static", "-o", program, filepath.Join(node.Top(), "e2e/workloads/effective-uid.c"))
	if output, err := compiled.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, output)
	}
	if err := os.Chmod(program, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	p := pod(t)
	for forbidden, want := range map[bool]string{false: "Effective uid: 0", true: "Effective uid: 1000"} {
		c := p.Run(fmt.Sprint("no-new-privileges-", forbidden), sleeper, security(func(s *securityContext) {
			s.RunAsUser, s.NoNewPrivs = &runtimeapi.Int64Value{Value: 1000}, forbidden
		}), mounting(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/volume", Readonly: true}))
		if got := c.Sh("/volume/effective-uid"); got != want {
			t.Errorf("no_new_privs %v: %s, want %s", forbidden, got, want)
		}
	}
}

func TestUserNamespaceRequests(t *testing.T) {
	pod(t)
	one := []*runtimeapi.IDMapping{{HostId: 400000, ContainerId: 0, Length: 65536}}
	asking := func(mode runtimeapi.NamespaceMode, ids []*runtimeapi.IDMapping) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: mode, Uids: ids, Gids: ids}
		}
	}
	mapped := lab.RunPod(t, asking(runtimeapi.NamespaceMode_POD, one)).Run("main", "awk '{ print $1, $2, $3 }' /proc/self/uid_map; "+sleeper)
	if got := mapped.Sh("awk '{ print $1, $2, $3 }' /proc/self/uid_map /proc/self/gid_map"); got != "0 400000 65536\n0 400000 65536" {
		t.Errorf("mapped: %q", got)
	}
	own, _ := os.ReadFile("/proc/self/uid_map")
	unmapped := lab.RunPod(t, asking(runtimeapi.NamespaceMode_NODE, nil)).Run("main", sleeper)
	if got := unmapped.Sh("cat /proc/self/uid_map"); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(string(own)), " ") {
		t.Errorf("the node's: %q, want %q", got, own)
	}
	two := append(slices.Clone(one), &runtimeapi.IDMapping{HostId: 500000, ContainerId: 65536, Length: 65536})
	for what, option := range map[string]func(*runtimeapi.PodSandboxConfig){
		"two mappings":    asking(runtimeapi.NamespaceMode_POD, two),
		"0 is not mapped": asking(runtimeapi.NamespaceMode_POD, []*runtimeapi.IDMapping{{HostId: 400000, ContainerId: 1, Length: 65536}}),
		"mode CONTAINER":  asking(runtimeapi.NamespaceMode_CONTAINER, one),
		"mode TARGET":     asking(runtimeapi.NamespaceMode_TARGET, one),
	} {
		config := proto.Clone(mapped.Pod.Config).(*runtimeapi.PodSandboxConfig)
		config.Metadata.Name = "refused"
		option(config)
		_, err := lab.Node().Runtime.RunPodSandbox(lab.Context(t), &runtimeapi.RunPodSandboxRequest{Config: config})
		wantCode(t, what, err, codes.InvalidArgument)
	}
}
