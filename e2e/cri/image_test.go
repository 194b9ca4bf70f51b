package cri

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

func imageStatus(t *testing.T, reference string) *runtimeapi.Image {
	t.Helper()
	response, err := lab.Node().Images.ImageStatus(lab.Context(t), &runtimeapi.ImageSpec{Image: reference}, false)
	if err != nil {
		t.Fatalf("ImageStatus %s: %v", reference, err)
	}
	return response.Image
}

func remove(t *testing.T, reference string) {
	t.Helper()
	if err := lab.Node().Images.RemoveImage(lab.Context(t), &runtimeapi.ImageSpec{Image: reference}); err != nil {
		t.Errorf("RemoveImage %s: %v", reference, err)
	}
}

func TestPullByTagAndByDigest(t *testing.T) {
	id := lab.Image(t, "user:uid-gid")
	reference := lab.Reference("user:uid-gid")
	byTag := imageStatus(t, reference)
	if byTag == nil || byTag.Id != id || !slices.Contains(byTag.RepoTags, reference) || len(byTag.RepoDigests) != 1 || byTag.Size == 0 {
		t.Fatalf("status by tag = %v", byTag)
	}
	if byTag.Uid.GetValue() != 1003 || byTag.Username != "" {
		t.Errorf("uid %v, username %q", byTag.Uid, byTag.Username)
	}
	again, err := lab.Node().Pull(lab.Context(t), byTag.RepoDigests[0])
	if err != nil || again != id {
		t.Errorf("pull by digest: %q, %v; want %q", again, err, id)
	}
	for _, name := range []string{id, byTag.RepoDigests[0], strings.TrimPrefix(id, "sha256:")[:16]} {
		if got := imageStatus(t, name); got == nil || got.Id != id {
			t.Errorf("status by %s = %v", name, got)
		}
	}
	if named := imageStatus(t, mustPull(t, "user:name")); named.Username != "www-data" || named.Uid != nil {
		t.Errorf("username %q, uid %v", named.Username, named.Uid)
	}
}

func mustPull(t *testing.T, image string) string { return lab.Image(t, image) }

func TestMissingImageHasAnEmptyStatus(t *testing.T) {
	if got := imageStatus(t, lab.Reference("nonesuch:1")); got != nil {
		t.Errorf("status = %v", got)
	}
	_, err := lab.Node().Pull(lab.Context(t), lab.Reference("nonesuch:1"))
	if err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("pull: %v", err)
	}
	wantCode(t, "pull of a missing image", err, codes.NotFound)
	_, err = lab.Node().Pull(lab.Context(t), "127.0.0.1:1/meridian/busybox:1")
	if err == nil || !strings.Contains(err.Error(), "RegistryUnavailable") {
		t.Errorf("pull from a registry that is down: %v; the kubelet looks for RegistryUnavailable", err)
	}
}

func TestRemoveImageTakesAllItsTags(t *testing.T) {
	id := lab.Image(t, "busybox:plain")
	remove(t, lab.Reference("busybox:plain"))
	remove(t, lab.Reference("busybox:plain")) // idempotent
	if got := imageStatus(t, id); got != nil {
		t.Errorf("still there: %v", got)
	}
	list, err := lab.Node().Images.ListImages(lab.Context(t), &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: lab.Reference("busybox:plain")}})
	if err != nil || len(list) != 0 {
		t.Errorf("listed: %v, %v", list, err)
	}
}

func TestListImagesByName(t *testing.T) {
	id := lab.Image(t, "pause:1")
	list, err := lab.Node().Images.ListImages(lab.Context(t), &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: lab.Reference("pause:1")}})
	if err != nil || len(list) != 1 || list[0].Id != id {
		t.Errorf("filtered: %v, %v", list, err)
	}
	all, err := lab.Node().Images.ListImages(lab.Context(t), nil)
	if err != nil || !slices.ContainsFunc(all, func(image *runtimeapi.Image) bool { return image.Id == id }) {
		t.Errorf("all: %v, %v", all, err)
	}
}

// tree prints what hack/images says the layers must add up to.
const tree = "cd /data && find . | sort && cat removed replaced turns back hard opaque/new kept/both link && stat -c '%n %a %u:%g' setuid owned && stat -c %h back"

// The line of contents: removed 4, replaced 3, turns "now a file", back 3, hard 3, opaque/new 2, kept/both 1, link 1.
const wantTree = `.
./back
./hard
./kept
./kept/both
./link
./opaque
./opaque/new
./owned
./removed
./replaced
./setuid
./turns
43now a file33211setuid 4755 0:0
owned 640 1000:33
2`

func TestLayersAndWhiteoutsInEveryCompression(t *testing.T) {
	for _, image := range []string{"layers:1", "layers:zstd"} {
		lab.Image(t, image)
	}
	p := pod(t)
	for _, image := range []string{"layers:1", "layers:zstd"} {
		name := strings.ReplaceAll(image, ":", "-")
		c := p.Run(name, sleeper, func(c *runtimeapi.ContainerConfig) { c.Image.Image = lab.Image(t, image) })
		if got := c.Sh(tree); got != wantTree {
			t.Errorf("%s:\n%s\nwant\n%s", image, got, wantTree)
		}
	}
}

func TestImportOciArchiveAndDockerSave(t *testing.T) {
	directory := t.TempDir()
	layout := filepath.Join(node.Cache(), "images/pause/1") + ":1"
	for kind, target := range map[string]string{
		"oci":    "oci-archive:" + filepath.Join(directory, "oci.tar") + ":example.test/imported/oci:1",
		"docker": "docker-archive:" + filepath.Join(directory, "docker.tar") + ":example.test/imported/docker:1",
	} {
		copied := exec.Command(filepath.Join(node.Cache(), "bin/skopeo"), "--insecure-policy", "copy", "-q", "oci:"+layout, target)
		if output, err := copied.CombinedOutput(); err != nil {
			t.Fatalf("skopeo: %v: %s", err, output)
		}
		if _, err := lab.Node().CLI(lab.Context(t), "image", "import", filepath.Join(directory, kind+".tar")); err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		reference := "example.test/imported/" + kind + ":1"
		if got := imageStatus(t, reference); got == nil || !slices.Contains(got.RepoTags, reference) || got.Pinned != (reference == pinned) {
			t.Errorf("%s: status = %v", kind, got)
		}
		remove(t, reference)
	}
}

func TestImageFsInfo(t *testing.T) {
	lab.Image(t, "clockwork:1")
	info, err := lab.Node().Images.ImageFsInfo(lab.Context(t))
	if err != nil || len(info.ImageFilesystems) == 0 {
		t.Fatalf("%v, %v", info, err)
	}
	first := info.ImageFilesystems[0]
	if first.UsedBytes.GetValue() == 0 || first.InodesUsed.GetValue() == 0 || first.Timestamp == 0 || !exists(first.FsId.GetMountpoint()) {
		t.Errorf("image filesystem = %v", first)
	}
	writable := func() *runtimeapi.FilesystemUsage {
		info, err := lab.Node().Images.ImageFsInfo(lab.Context(t))
		if err != nil || len(info.ContainerFilesystems) != 1 {
			t.Fatalf("%v, %v", info, err)
		}
		return info.ContainerFilesystems[0]
	}
	before := writable()
	if !exists(before.FsId.GetMountpoint()) || before.Timestamp == 0 {
		t.Errorf("container filesystem = %v", before)
	}
	writer := pod(t).Run("writer", "for n in 1 2 3 4; do dd if=/dev/urandom of=/file$n bs=1M count=2; done 2>/dev/null; touch /done; "+sleeper)
	writer.Sh("while ! test -e /done; do sleep 0.02; done") // what was measured once is not measured again for 10 s
	now := writable()
	if now.UsedBytes.GetValue() < before.UsedBytes.GetValue()+8<<20 || now.InodesUsed.GetValue() < before.InodesUsed.GetValue()+4 {
		t.Errorf("writable layers with 8 MiB more: %v, before %v", now, before)
	}
	writer.Pod.Remove()
	if now := writable(); now.UsedBytes.GetValue() >= before.UsedBytes.GetValue()+8<<20 {
		t.Errorf("writable layers without the container: %v, before %v", now, before)
	}
}

func TestRemovedImageLeavesNoLayer(t *testing.T) {
	id := lab.Image(t, "user:member")
	before, _ := os.ReadDir(filepath.Join(lab.Node().Root, "content/blobs/sha256"))
	remove(t, id)
	eventually(t, "fewer blobs", func() bool {
		after, _ := os.ReadDir(filepath.Join(lab.Node().Root, "content/blobs/sha256"))
		return len(after) < len(before)
	})
}
