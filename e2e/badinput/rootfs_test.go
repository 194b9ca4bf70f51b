package badinput

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// busybox are the layers, unpacked, of an image that runs.
var busybox = sync.OnceValue(func() (layers [][]byte) {
	repository := "http://" + lab.Registry() + "/v2/meridian/clockwork/"
	var manifest struct{ Layers []struct{ Digest string } }
	if err := json.Unmarshal(fetch(repository+"manifests/1"), &manifest); err != nil {
		panic(err)
	}
	for _, layer := range manifest.Layers {
		blob := fetch(repository + "blobs/" + layer.Digest)
		if reader, err := gzip.NewReader(bytes.NewReader(blob)); err == nil {
			blob, _ = io.ReadAll(reader)
		}
		layers = append(layers, blob)
	}
	return layers
})

func fetch(url string) []byte {
	request, _ := http.NewRequest(http.MethodGet, url, nil)
	request.Header.Set("Accept", ociManifest)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		panic(err)
	}
	return content
}

// booted is a row that runs a shell of an image that is good but for one layer on top and what its configuration says.
func booted(name string, entries func(*scene) []entry, settings map[string]any, codes []codes.Code, words ...string) row {
	return row{"booted " + name, func(s *scene) error {
		registry := newEvil()
		defer registry.Close()
		layers := busybox()
		if entries != nil {
			layers = append(layers[:len(layers):len(layers)], layer(entries(s)...))
		}
		registry.serve(layers, func(_, config map[string]any) {
			if settings != nil {
				config["config"] = settings
			}
		})
		response, err := s.Image.PullImage(s.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: registry.reference()}})
		if err != nil {
			return err
		}
		defer func() {
			_, _ = s.Image.RemoveImage(s.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: response.ImageRef}})
		}()
		return boot(s, response.ImageRef)
	}, codes, words}
}

// boot runs a container that touches what a root filesystem has, and removes it.
func boot(s *scene, image string) error {
	config := client.Container(s.pod.Config, "boot-"+client.Unique()[:5], image, []string{"/bin/sh", "-c", "echo x >/dev/null; echo x >/etc/made; echo x >/run/made; : </proc/self/status"})
	created, err := s.Runtime.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod.ID, Config: config, SandboxConfig: s.pod.Config})
	if err != nil {
		return err
	}
	defer func() {
		_, _ = s.Runtime.RemoveContainer(s.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: created.ContainerId})
	}()
	if _, err := s.Runtime.StartContainer(s.ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		status, err := s.Runtime.ContainerStatus(s.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: created.ContainerId})
		if err != nil || status.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return err
		}
	}
	return fmt.Errorf("the container did not end")
}

// Root filesystems whose directories are something else: what is mounted and written must stay inside.
func TestRootFilesystems(t *testing.T) {
	inside := []codes.Code{codes.OK, codes.InvalidArgument, codes.FailedPrecondition}
	kinds := map[string]func(s *scene, name string) []entry{
		"a link to the node":        func(s *scene, name string) []entry { return []entry{symlink(name, s.canary)} },
		"a climbing link":           func(s *scene, name string) []entry { return []entry{symlink(name, "../../../../../../.."+s.canary)} },
		"a link into the image":     func(_ *scene, name string) []entry { return []entry{directory("other"), symlink(name, "/other")} },
		"a link to itself":          func(_ *scene, name string) []entry { return []entry{symlink(name, name)} },
		"a link through a process":  func(s *scene, name string) []entry { return []entry{symlink(name, "/proc/1/root"+s.canary)} },
		"a file":                    func(_ *scene, name string) []entry { return []entry{file(name, "x")} },
		"a fifo":                    func(_ *scene, name string) []entry { return []entry{{name: name, kind: '6'}} },
		"a directory without modes": func(_ *scene, name string) []entry { return []entry{{name: name, kind: '5', mode: 0o1000}} },
	}
	var rows []row
	for _, name := range []string{"dev", "proc", "sys", "etc", "run", "tmp"} {
		for kind, entries := range kinds {
			rows = append(rows, booted("with /"+name+" as "+kind, func(s *scene) []entry { return entries(s, name) }, nil, inside))
		}
	}
	for _, name := range []string{"etc/hosts", "etc/resolv.conf", "etc/hostname", "dev/null", "dev/shm", "dev/pts", "dev/termination-log"} {
		rows = append(rows, booted("with /"+name+" as a link to the node", func(s *scene) []entry {
			return []entry{directory("dev"), directory("etc"), symlink(name, s.canary+"/file")}
		}, nil, inside))
	}
	run(t, rows)
}

// What an image's configuration asks for.
func TestImageConfigurations(t *testing.T) {
	either := []codes.Code{codes.OK, codes.InvalidArgument, codes.FailedPrecondition}
	working := func(path string) map[string]any { return map[string]any{"WorkingDir": path} }
	user := func(name string, codes []codes.Code, words ...string) row {
		return booted(fmt.Sprintf("as user %.40q", name), func(*scene) []entry {
			return []entry{directory("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:\n0x0:x:0:0::/:\nsome:x:7:7::/:\n"), file("etc/group", "root:x:0:\nsome:x:7:\n")}
		}, map[string]any{"User": name}, codes, words...)
	}
	passwd := func(name string, entries ...entry) row {
		return booted("whose passwd is "+name, func(*scene) []entry { return append([]entry{directory("etc")}, entries...) }, map[string]any{"User": "some"}, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "passwd")
	}
	rows := []row{
		user("0", welcome), user("7", welcome), user("7:7", welcome), user("some", welcome), user("some:some", welcome),
		user("2147483648", refused, "user"), user("4294967295", refused, "user"), user("4294967296", refused, "user"),
		user("99999999999999999999", refused, "user"), user("-1", refused, "user"), user("0x0", either), user("1:-1", refused, "-1"),
		user("1:4294967296", refused, "4294967296"), user("nonesuch", refused, "nonesuch"), user("some:nonesuch", refused, "nonesuch"),
		user("a\nb", refused), user("a:b:c", refused), user(repeated(100_000), refused), user("+0", either), user(" 0", either),
		passwd("a directory", directory("etc/passwd/")),
		passwd("a device", entry{name: "etc/passwd", kind: '3'}),
		passwd("12 MiB long", file("etc/passwd", strings.Repeat("a:x:1:1::/:\n", 1<<20))),
		passwd("one line of 12 MiB", file("etc/passwd", repeated(12<<20))),
		passwd("a link to a process's", symlink("etc/passwd", "/proc/self/environ")),
		passwd("a link to itself", symlink("etc/passwd", "passwd")),
		booted("with 100000 variables", nil, map[string]any{"Env": strings.Split(strings.Repeat("A=b ", 100_000), " ")}, []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted}),
		booted("with a variable without a name", nil, map[string]any{"Env": []string{"=x"}}, either),
		booted("with a variable that is none", nil, map[string]any{"Env": []string{"novalue"}}, either),
		booted("with NUL in a variable", nil, map[string]any{"Env": []string{"A=x\x00y"}}, either),
		booted("with a variable of 3 MiB", nil, map[string]any{"Env": []string{"A=" + repeated(3<<20)}}, either),
		booted("with volumes that climb", nil, map[string]any{"Volumes": map[string]any{"": map[string]any{}, "/../../etc": map[string]any{}, "..": map[string]any{}}}, either),
		booted("with a stop signal of nonsense", nil, map[string]any{"StopSignal": "SIG\n9"}, either),
		booted("with stop signal 99999", nil, map[string]any{"StopSignal": "99999"}, either),
		booted("with labels that pods have", nil, map[string]any{"Labels": map[string]any{"io.kubernetes.pod.uid": "x", "io.cri-containerd.kind": "sandbox"}}, welcome),
	}
	for _, path := range []string{"relative", "../../..", "/../../etc", "/proc/self/fd/7", "/proc/self/cwd", "/a\x00b", "/a\nb", repeated(5000)} {
		rows = append(rows, booted(fmt.Sprintf("in the directory %.40q", path), nil, working(path), either))
	}
	rows = append(rows, booted("in a directory that links to the node", func(s *scene) []entry { return []entry{symlink("job", s.canary)} }, working("/job/new"), either))
	run(t, rows)
}
