package cri

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

func imageVolume(image, path, subPath string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: path, Readonly: true, Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: subPath}
}

func TestImageVolumes(t *testing.T) {
	id := lab.Image(t, "layers:1")
	p := pod(t)
	c := p.Run("main", sleeper, mounting(
		imageVolume(id, "/image", ""),
		imageVolume(lab.Reference("layers:1"), "/sub/path", "data/kept"),
		imageVolume(id, "/single", "data/replaced"),
		imageVolume(id, "/linked", "data/link"),
	))
	if got := c.Sh("cat /image/data/replaced /sub/path/both /single /linked; ls /image/data/removed; stat -c '%a %u:%g' /image/data/owned"); got != "3131/image/data/removed\n640 1000:33" {
		t.Errorf("volumes hold %q", got)
	}
	if got := c.Sh("touch /image/x 2>&1; touch /sub/path/x 2>&1; echo x 2>&1 >/single; mount -o remount,rw /image 2>&1; true"); strings.Count(got, "Read-only file system") < 2 {
		t.Errorf("written: %q", got)
	}
	if got := c.Sh("/image/bin/busybox true && echo runs"); got != "runs" {
		t.Errorf("a program of the volume: %q", got)
	}
	for _, mount := range c.Status().Mounts {
		if mount.Image.GetImageRef() != id {
			t.Errorf("%s: image_ref %q, want %q", mount.ContainerPath, mount.Image.GetImageRef(), id)
		}
	}
	// Removed under the container's feet, it stays until the container goes.
	remove(t, id)
	if got := c.Sh("cat /image/data/replaced"); got != "3" {
		t.Errorf("after RemoveImage: %q", got)
	}
}

func TestImageVolumesOfPodsWithUserNamespaces(t *testing.T) {
	id := lab.Image(t, "layers:1")
	ids := []*runtimeapi.IDMapping{{HostId: 327680, ContainerId: 0, Length: 65536}}
	p := pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
	c := p.Run("main", sleeper, mounting(imageVolume(id, "/image", ""), imageVolume(id, "/sub", "data")))
	if got := c.Sh("stat -c '%u:%g' /image/data/owned /sub/owned /image"); got != "1000:33\n1000:33\n0:0" {
		t.Errorf("owners through the pod's map: %q", got)
	}
}

func tryCreate(t *testing.T, p *lab.Pod, option func(*runtimeapi.ContainerConfig)) error {
	t.Helper()
	config := client.Container(p.Config, "refused", lab.Image(t, "clockwork:1"), []string{"/bin/sh"}, option)
	_, err := lab.Node().CreateContainer(lab.Context(t), p.ID, config, p.Config)
	return err
}

func TestImageVolumesThatCannotBe(t *testing.T) {
	id := lab.Image(t, "layers:1")
	p := pod(t)
	writable := imageVolume(id, "/image", "")
	writable.Readonly = false
	for _, c := range []struct {
		what  string
		mount *runtimeapi.Mount
		code  codes.Code
		word  string
	}{
		{"writable", writable, codes.InvalidArgument, "readonly"},
		{"missing sub-path", imageVolume(id, "/image", "data/nonesuch"), codes.Unknown, "ImageVolumeMountFailed"},
		{"sub-path with ..", imageVolume(id, "/image", "../etc"), codes.InvalidArgument, "image_sub_path"},
		{"absolute sub-path", imageVolume(id, "/image", "/data"), codes.InvalidArgument, "image_sub_path"},
		{"missing image", imageVolume("nonesuch.test/x:1", "/image", ""), codes.Unknown, "ImageVolumeMountFailed"},
	} {
		err := tryCreate(t, p, mounting(c.mount))
		wantCode(t, c.what, err, c.code, c.word)
	}
}

// artifact serves an OCI artifact as ORAS pushes it: files named by annotations, no root filesystem.
func artifact(t *testing.T, files map[string]string) string {
	t.Helper()
	served := map[string][]byte{}
	digest := func(content []byte) string {
		sum := sha256.Sum256(content)
		return "sha256:" + hex.EncodeToString(sum[:])
	}
	blob := func(kind, title string, content []byte) map[string]any {
		served["/v2/models/small/blobs/"+digest(content)] = content
		return map[string]any{"mediaType": kind, "digest": digest(content), "size": len(content),
			"annotations": map[string]string{"org.opencontainers.image.title": title}}
	}
	var layers []any
	for title, content := range files {
		layers = append(layers, blob("application/vnd.test.weights", title, []byte(content)))
	}
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/vnd.test.model",
		"config": blob("application/vnd.oci.empty.v1+json", "", []byte("{}")), "layers": layers,
	})
	served["/v2/models/small/manifests/1"] = manifest
	server := httptest.NewServer(http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		content, known := served[request.URL.Path]
		if !known {
			http.NotFound(response, request)
			return
		}
		_, _ = response.Write(content)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/models/small:1"
}

func TestArtifactVolumes(t *testing.T) {
	reference := artifact(t, map[string]string{"weights.bin": "0123", "config/model.json": "{}"})
	id, err := lab.Node().Pull(lab.Context(t), reference)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, id) })
	if status := imageStatus(t, reference); status == nil || status.Id != id || status.Size < 6 {
		t.Errorf("status %v, want id %s", status, id)
	}
	p := pod(t)
	c := p.Run("main", sleeper, mounting(imageVolume(id, "/model", ""), imageVolume(id, "/weights", "weights.bin")))
	want := fmt.Sprintln("config config/model.json weights.bin") + "0123{}0123"
	if got := c.Sh("cd /model; echo $(find * | sort); cat weights.bin config/model.json /weights"); got != want {
		t.Errorf("artifact holds %q, want %q", got, want)
	}
	err = tryCreate(t, p, func(c *runtimeapi.ContainerConfig) { c.Image.Image = id })
	wantCode(t, "artifact as a container", err, codes.InvalidArgument, "artifact")
}
