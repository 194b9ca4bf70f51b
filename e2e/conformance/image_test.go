package conformance

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func pull(t *testing.T, reference string) string {
	t.Helper()
	id, err := lab.Node().Pull(lab.Context(t), reference)
	if err != nil || id == "" {
		t.Fatalf("pull %s: %q, %v", reference, id, err)
	}
	t.Cleanup(func() { remove(t, reference) })
	return id
}

func remove(t *testing.T, reference string) {
	t.Helper()
	if err := lab.Node().Images.RemoveImage(lab.Context(t), &runtimeapi.ImageSpec{Image: reference}); err != nil {
		t.Errorf("RemoveImage %s: %v", reference, err)
	}
}

// image is what ImageStatus says, nil when there is none, and the same as the list must say.
func image(t *testing.T, reference string) *runtimeapi.Image {
	t.Helper()
	response, err := lab.Node().Images.ImageStatus(lab.Context(t), &runtimeapi.ImageSpec{Image: reference}, false)
	if err != nil {
		t.Fatalf("ImageStatus %s: %v", reference, err)
	}
	list, err := lab.Node().Images.ListImages(lab.Context(t), &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: reference}})
	if err != nil {
		t.Fatalf("ListImages %s: %v", reference, err)
	}
	if (response.Image == nil) != (len(list) == 0) || len(list) > 0 && list[0].Id != response.Image.Id {
		t.Errorf("%s: status %v, list %v", reference, response.Image, list)
	}
	return response.Image
}

func TestTagsOfAPulledImage(t *testing.T) {
	r := newRegistry(t)
	tagged, latest := r.add("some/tagged:test", "user:uid"), r.add("some/untagged:latest", "user:name")
	pull(t, tagged)
	if got := image(t, tagged); !slices.Equal(got.GetRepoTags(), []string{tagged}) || got.GetSize() == 0 || got.GetId() == "" {
		t.Errorf("with a tag: %v", got)
	}
	pull(t, strings.TrimSuffix(latest, ":latest"))
	if got := image(t, strings.TrimSuffix(latest, ":latest")); !slices.Equal(got.GetRepoTags(), []string{latest}) {
		t.Errorf("without a tag: %v", got)
	}
	digest, _ := manifest(r.layouts["some/tagged:test"])
	byDigest := strings.TrimSuffix(tagged, ":test") + "@" + digest
	remove(t, tagged)
	pull(t, byDigest)
	if got := image(t, byDigest); len(got.GetRepoTags()) != 0 || !slices.Equal(got.GetRepoDigests(), []string{byDigest}) {
		t.Errorf("with a digest: %v", got)
	}
}

func TestAnyReferenceGivesTheSameStatus(t *testing.T) {
	r := newRegistry(t)
	reference := r.add("all/references:1", "config:1")
	id := pull(t, reference)
	want := image(t, reference)
	for _, name := range slices.Concat([]string{id, want.Id}, want.RepoTags, want.RepoDigests) {
		if got := image(t, name); !proto.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestUserOfAnImage(t *testing.T) {
	r := newRegistry(t)
	for name, want := range map[string]struct {
		uid      int64
		username string
	}{"user:uid": {uid: 1002}, "user:uid-gid": {uid: 1003}, "user:name": {username: "www-data"}, "user:member": {username: "alice"}} {
		reference := r.add("users/"+name, name)
		pull(t, reference)
		got := image(t, reference)
		if got.GetUid().GetValue() != want.uid || got.GetUsername() != want.username || (got.Uid != nil) == (got.Username != "") {
			t.Errorf("%s: uid %v, username %q", name, got.Uid, got.Username)
		}
	}
}

func TestDifferentImagesAndDifferentTags(t *testing.T) {
	r := newRegistry(t)
	ids := map[string]string{}
	for name, layout := range map[string]string{"one/image:latest": "user:uid", "two/image:latest": "user:name", "three/image:latest": "user:member"} {
		reference := r.add(name, layout)
		ids[pull(t, reference)] = reference
	}
	if len(ids) != 3 {
		t.Errorf("three images have ids %v", ids)
	}
	for id, reference := range ids {
		if got := image(t, id); !slices.Equal(got.GetRepoTags(), []string{reference}) {
			t.Errorf("%s: tags %v", reference, got.GetRepoTags())
		}
	}
	var tags []string
	for _, tag := range []string{"1", "2", "3"} {
		tags = append(tags, r.add("same/image:"+tag, "config:1"))
	}
	var id string
	for _, tag := range tags {
		if got := pull(t, tag); id != "" && got != id {
			t.Errorf("%s: id %s, want %s", tag, got, id)
		} else {
			id = got
		}
	}
	if got := image(t, id).GetRepoTags(); !slices.Equal(slices.Sorted(slices.Values(got)), tags) {
		t.Errorf("tags %v, want %v", got, tags)
	}
	remove(t, tags[0])
	for _, name := range append(tags, id) {
		if got := image(t, name); got != nil {
			t.Errorf("%s is left: %v", name, got)
		}
	}
}

func TestOneImageFromTwoRegistries(t *testing.T) {
	first := newRegistry(t).add("pause:3", "pause:1")
	second := newRegistry(t).add("pause:3", "pause:1")
	lab.Image(t, "clockwork:1")
	p := lab.RunPod(t) // without a census: connections to registries are kept for a while
	id := pull(t, first)
	if other := pull(t, second); other != id {
		t.Fatalf("ids %s and %s", id, other)
	}
	if got := image(t, second); got.Id != id || len(got.RepoTags) < 2 || !slices.Contains(got.RepoTags, first) || !slices.Contains(got.RepoTags, second) {
		t.Errorf("status: %v", got)
	}
	c := p.Create("main", "", func(c *runtimeapi.ContainerConfig) {
		c.Command, c.Image = nil, &runtimeapi.ImageSpec{Image: second, UserSpecifiedImage: second}
	}).Start()
	list, err := lab.Node().ListContainers(lab.Context(t), &runtimeapi.ContainerFilter{Id: c.ID})
	if err != nil || len(list) != 1 || list[0].ImageId != id || c.Status().ImageId != id {
		t.Errorf("image ids of the container: list %v, %v; status %q; want %s", list, err, c.Status().ImageId, id)
	}
	if err := lab.Node().RemoveContainer(lab.Context(t), c.ID); err != nil {
		t.Error(err)
	}
	remove(t, first)
	for _, name := range []string{first, second, id} {
		if got := image(t, name); got != nil {
			t.Errorf("%s is left: %v", name, got)
		}
	}
}

func TestImageIsThereAtOnceAndGoneAtOnce(t *testing.T) {
	reference := newRegistry(t).add("at/once:1", "user:uid")
	for range 5 {
		pull(t, reference)
		if image(t, reference) == nil {
			t.Fatal("not there when PullImage returned")
		}
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				remove(t, reference)
				if got := image(t, reference); got != nil {
					t.Errorf("there when RemoveImage returned: %v", got)
				}
			})
		}
		group.Wait()
	}
}

// Whoever's clock is first, the client's or the node's, the code is the same.
func TestPullEndsWithItsDeadline(t *testing.T) {
	reference := newRegistry(t).add("too/late:1", "clockwork:1")
	for range 20 {
		ctx, cancel := context.WithTimeout(lab.Context(t), time.Millisecond)
		_, err := lab.Node().Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: reference}, nil, nil)
		cancel()
		wantCode(t, "a pull of 1 ms", err, codes.DeadlineExceeded)
	}
	pull(t, reference)
}
