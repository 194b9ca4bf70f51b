package kernels

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// policy lets everything be done but writing below /guarded.
const policy = `
profile e2e-guard flags=(attach_disconnected, mediate_deleted) {
  file, capability, network, signal, ptrace, umount, mount, pivot_root, unix,
  deny /guarded/** w,
}
profile e2e-lenient flags=(attach_disconnected, mediate_deleted, complain) {
  /bin/* rix,
}
`

// asked lists the ways to ask for a local profile: the field of today, the one of older kubelets, and both, of which
// the former counts.
var asked = map[string]func(name string) func(*runtimeapi.ContainerConfig){
	"new field": func(name string) func(*runtimeapi.ContainerConfig) {
		return profile(runtimeapi.SecurityProfile_Localhost, name)
	},
	"old field": func(name string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ApparmorProfile = "localhost/" + name }
	},
	"both": func(name string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			profile(runtimeapi.SecurityProfile_Localhost, name)(c)
			c.Linux.SecurityContext.ApparmorProfile = "localhost/e2e-other"
		}
	},
}

func profile(kind runtimeapi.SecurityProfile_ProfileType, name string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: name}
	}
}

// load puts a profile into the kernel.
func load(t *testing.T, text string) {
	t.Helper()
	parser := exec.Command("apparmor_parser", "--replace", "--skip-cache", "--config-file", os.DevNull)
	parser.Stdin = strings.NewReader(text)
	if output, err := parser.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser: %v: %s", err, output)
	}
}

const confinement = "cat /proc/1/attr/current /proc/self/attr/current"

func TestLocalProfileGuardsProcessAndExec(t *testing.T) {
	load(t, policy)
	p := pod(t)
	for how, ask := range asked {
		c := p.Run(strings.ReplaceAll(how, " ", "-"), "mkdir /guarded; "+sleeper, ask("e2e-guard"))
		if got := c.Sh(confinement); got != "e2e-guard (enforce)\ne2e-guard (enforce)" {
			t.Errorf("%s: confined by %q", how, got)
		}
		if got := c.Sh("touch /free && echo free; touch /guarded/x 2>&1 || true"); !strings.HasPrefix(got, "free\n") || !strings.Contains(got, "Permission denied") {
			t.Errorf("%s: got %q", how, got)
		}
	}
}

func TestPermissiveProfileOnlyComplains(t *testing.T) {
	load(t, policy)
	p := pod(t)
	for how, ask := range asked {
		c := p.Run(strings.ReplaceAll(how, " ", "-"), sleeper, ask("e2e-lenient"))
		if got := c.Sh("cat /proc/1/attr/current; touch /free && echo free"); got != "e2e-lenient (complain)\nfree" {
			t.Errorf("%s: got %q", how, got)
		}
	}
}

func TestUnconfined(t *testing.T) {
	c := pod(t).Run("main", sleeper, profile(runtimeapi.SecurityProfile_Unconfined, ""))
	if got := c.Sh(confinement); got != "unconfined\nunconfined" {
		t.Errorf("confined by %q", got)
	}
}

func TestProfileThatIsNotLoaded(t *testing.T) {
	p := pod(t)
	for how, ask := range asked {
		c := container(p.Config, lab.Image(t, "clockwork:1"), nil)
		ask("e2e-absent")(c)
		_, err := lab.Node().CreateContainer(lab.Context(t), p.ID, c, p.Config)
		if err == nil || !strings.Contains(err.Error(), "e2e-absent") {
			t.Errorf("%s: CreateContainer: %v", how, err)
		}
	}
}

func TestPrivilegedIsUnconfined(t *testing.T) {
	load(t, policy)
	privileged := func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
	c := pod(t, privileged).Run("main", sleeper, profile(runtimeapi.SecurityProfile_Localhost, "e2e-guard"),
		func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
	if got := c.Sh(confinement); got != "unconfined\nunconfined" {
		t.Errorf("confined by %q", got)
	}
}

// With every right of Linux a container still mounts nothing: the default profile is in force, asked for or not.
func TestDefaultProfile(t *testing.T) {
	p := pod(t)
	able := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	}
	for name, option := range map[string]func(*runtimeapi.ContainerConfig){
		"default": profile(runtimeapi.SecurityProfile_RuntimeDefault, ""),
		"unset":   func(*runtimeapi.ContainerConfig) {},
	} {
		c := p.Run(name, sleeper, able, option)
		if got := c.Sh(confinement); got != "meridian-default (enforce)\nmeridian-default (enforce)" {
			t.Errorf("%s: confined by %q", name, got)
		}
		if got := c.Sh("mount -t tmpfs none /mnt 2>&1; mount -t tmpfs none /tmp 2>&1; true"); !strings.Contains(got, "ermission denied") {
			t.Errorf("%s: mount said %q", name, got)
		}
	}
}
