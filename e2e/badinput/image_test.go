package badinput

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/client"
	"meridian.dev/e2e/lab"
)

// pull is a row that pulls from a registry of its own. An image that comes through is run once, so that what it does only
// at its first mount shows as well, and removed.
func pull(name string, bend func(*scene, *evil), codes []codes.Code, words ...string) row {
	return pullFrom(name, newEvil, nil, bend, codes, words...)
}

// pullFrom is pull from another kind of registry, with a credential.
func pullFrom(name string, start func() *evil, auth *runtimeapi.AuthConfig, bend func(*scene, *evil), codes []codes.Code, words ...string) row {
	return row{"image " + name, func(s *scene) error {
		registry := start()
		defer registry.Close()
		bend(s, registry)
		if registry.also != nil {
			defer func() {
				if err := registry.also(); err != nil {
					s.Error(err)
				}
			}()
		}
		ctx, cancel := within(s, 30*time.Second)
		defer cancel()
		response, err := s.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: registry.reference()}, Auth: auth})
		if err != nil {
			return err
		}
		defer func() {
			_, _ = s.Image.RemoveImage(s.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: response.ImageRef}})
		}()
		config := client.Container(s.pod.Config, "evil-"+client.Unique()[:5], response.ImageRef, []string{"/bin/sh"})
		created, err := s.Runtime.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod.ID, Config: config, SandboxConfig: s.pod.Config})
		if err != nil && strings.Contains(err.Error(), "find program") {
			return nil // mounted, and found to hold no shell
		}
		if err != nil {
			return err
		}
		_, err = s.Runtime.RemoveContainer(s.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: created.ContainerId})
		return err
	}, codes, words}
}

var (
	refused  = []codes.Code{codes.InvalidArgument}
	damaged  = []codes.Code{codes.DataLoss}
	either   = []codes.Code{codes.InvalidArgument, codes.DataLoss}
	harmless = []codes.Code{codes.OK, codes.InvalidArgument, codes.DataLoss}
	tooLarge = []codes.Code{codes.ResourceExhausted, codes.InvalidArgument}
	// unserved is what kubelet reads RegistryUnavailable from.
	unserved = []codes.Code{codes.Unknown}
	// unknown to the registry, or kept from this user.
	forbidden = []codes.Code{codes.PermissionDenied}
	welcome   = []codes.Code{codes.OK}
)

// tree serves one layer.
func tree(entries func(*scene) []entry) func(*scene, *evil) {
	return func(s *scene, e *evil) { e.serve([][]byte{layer(entries(s)...)}, nil) }
}

// layers serves several.
func layers(list func(*scene) [][]entry) func(*scene, *evil) {
	return func(s *scene, e *evil) {
		var built [][]byte
		for _, entries := range list(s) {
			built = append(built, layer(entries...))
		}
		e.serve(built, nil)
	}
}

func TestImages(t *testing.T) {
	good := [][]byte{layer(directory("bin"), file("bin/sh", "x"))}
	run(t, []row{
		pull("entry climbs", tree(func(s *scene) []entry { return []entry{file("../../../../../.."+s.canary+"/new", "x")} }), harmless),
		pull("entry is absolute", tree(func(s *scene) []entry { return []entry{file(s.canary+"/new", "x")} }), harmless),
		pull("write through an absolute link", tree(func(s *scene) []entry { return []entry{symlink("link", s.canary), file("link/file", "x")} }), harmless),
		pull("write through a climbing link", tree(func(s *scene) []entry {
			return []entry{symlink("link", "../../../../../../../../.."+s.canary), file("link/file", "x"), directory("link/dir")}
		}), harmless),
		pull("write through a link of a lower layer", layers(func(s *scene) [][]entry {
			return [][]entry{{symlink("link", s.canary)}, {file("link/file", "x"), directory("link/etc")}}
		}), harmless),
		pull("hard link to the node's file", tree(func(s *scene) []entry { return []entry{hardlink("got", s.canary+"/file"), file("got", "x")} }), harmless),
		pull("hard link that climbs", tree(func(s *scene) []entry {
			return []entry{hardlink("got", "../../../../../../../.."+s.canary+"/file"), {name: "got", kind: '0', mode: 0o777}}
		}), harmless),
		pull("hard link through a link", tree(func(s *scene) []entry {
			return []entry{symlink("link", s.canary), hardlink("got", "link/file"), file("got", "x")}
		}), harmless),
		pull("whiteout through a link", layers(func(s *scene) [][]entry {
			return [][]entry{{symlink("link", s.canary)}, {file("link/.wh.file", ""), file("link/.wh..wh..opq", "")}}
		}), harmless),
		pull("whiteout of ..", tree(func(*scene) []entry { return []entry{file("a/.wh...", ""), file(".wh..", "")} }), harmless),
		pull("directory over a link, with another mode", tree(func(s *scene) []entry {
			return []entry{symlink("link", s.canary), {name: "link", kind: '5', mode: 0o777}, {name: "link/etc", kind: '5', mode: 0o777}}
		}), harmless),
		pull("entry without a name", tree(func(*scene) []entry { return []entry{directory("./"), file("", "x")} }), harmless),
		pull("flipped bit in a layer", func(_ *scene, e *evil) {
			e.serve(good, nil)
			for digest, blob := range e.blobs {
				if len(blob) > 2 && blob[0] == 0x1f {
					e.blobs[digest] = append(slices.Clone(blob[:len(blob)-1]), blob[len(blob)-1]^1)
				}
			}
		}, damaged, "digest"),
		pull("truncated layer", func(_ *scene, e *evil) {
			e.serve(good, nil)
			for digest, blob := range e.blobs {
				if len(blob) > 2 && blob[0] == 0x1f {
					e.blobs[digest] = blob[:len(blob)/2]
				}
			}
		}, damaged),
		pull("layer longer than it says", func(_ *scene, e *evil) {
			e.serve(good, nil)
			for digest, blob := range e.blobs {
				if len(blob) > 2 && blob[0] == 0x1f {
					e.blobs[digest] = append(slices.Clone(blob), make([]byte, 4096)...)
				}
			}
		}, damaged),
		pull("wrong diff id", func(_ *scene, e *evil) {
			e.serve(good, func(_, config map[string]any) {
				config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + strings.Repeat("0", 64)}}
			})
		}, either, "configuration"),
		pull("more diff ids than layers", func(_ *scene, e *evil) {
			e.serve(good, func(_, config map[string]any) {
				config["rootfs"] = map[string]any{"type": "layers", "diff_ids": append(diffIDs(good), diffIDs(good)...)}
			})
		}, either, "configuration"),
		pull("flipped bit in the configuration", func(_ *scene, e *evil) {
			e.serve(good, nil)
			for digest, blob := range e.blobs {
				if blob[0] == '{' {
					e.blobs[digest] = []byte(strings.Replace(string(blob), "linux", "Linux", 1))
				}
			}
		}, damaged, "sha256:"),
		pull("configuration is no JSON", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) { manifest["config"] = e.add(ociConfig, []byte("\x00\x01")) })
		}, either, "config"),
		pull("digest climbs", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) {
				manifest["layers"] = []any{map[string]any{"mediaType": ociLayer, "digest": "sha256:../../../../etc/passwd", "size": 10}}
			})
		}, refused, "digest"),
		pull("digest of a weak kind", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) {
				manifest["layers"] = []any{map[string]any{"mediaType": ociLayer, "digest": "md5:" + strings.Repeat("0", 32), "size": 10}}
			})
		}, refused, "digest"),
		pull("digest is too short", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) {
				manifest["layers"] = []any{map[string]any{"mediaType": ociLayer, "digest": "sha256:abcd", "size": 10}}
			})
		}, refused, "digest"),
		pull("negative size", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) {
				manifest["layers"].([]any)[0].(map[string]any)["size"] = -1
			})
		}, either, "-1"),
		pull("unknown layer type", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) {
				manifest["layers"].([]any)[0].(map[string]any)["mediaType"] = "application/x-evil"
			})
		}, refused, "application/x-evil"),
		pull("layers and manifests in one document", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) { manifest["manifests"] = []any{e.add(ociManifest, []byte("{}"))} })
		}, refused, "manifests"),
		pull("manifest of 64 MiB", func(_ *scene, e *evil) {
			e.serve(good, func(manifest, _ map[string]any) {
				manifest["annotations"] = map[string]string{"x": strings.Repeat("x", 64<<20)}
			})
		}, tooLarge, "manifest"),
		pull("manifest nested 100000 deep", func(_ *scene, e *evil) {
			e.manifest = []byte(`{"schemaVersion":2,"x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}")
		}, refused, "manifest"),
		pull("manifest is no JSON", func(_ *scene, e *evil) { e.manifest = []byte("<html>") }, refused, "manifest"),
		pull("manifest of schema 1", func(_ *scene, e *evil) {
			e.mediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
			e.manifest, _ = json.Marshal(map[string]any{"schemaVersion": 1, "name": "evil/image", "tag": "1", "fsLayers": []any{}})
		}, refused, "version 1"),
		pull("index that names itself in a circle", func(_ *scene, e *evil) {
			e.mediaType = ociIndex
			e.manifest, _ = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{map[string]any{
				"mediaType": ociIndex, "digest": "sha256:" + strings.Repeat("1", 64), "size": 100, "platform": map[string]any{"os": "linux", "architecture": "amd64"}}}})
		}, either),
		pull("index without this platform", func(_ *scene, e *evil) {
			e.mediaType = ociIndex
			e.manifest, _ = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{map[string]any{
				"mediaType": ociManifest, "digest": "sha256:" + strings.Repeat("1", 64), "size": 100, "platform": map[string]any{"os": "plan9", "architecture": "mips"}}}})
		}, []codes.Code{codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition}, "linux/"),
		pull("user -1", userOf("-1"), refused, "user", "-1"),
		pull("user past 32 bits", userOf("4294967296"), refused, "user", "4294967296"),
		pull("user in hexadecimal", userOf("0x0"), refused, "user"),
		pull("passwd is a link to the node's", func(s *scene, e *evil) {
			e.serve([][]byte{layer(directory("etc"), symlink("etc/passwd", s.canary+"/etc/passwd"))}, func(_, config map[string]any) {
				config["config"] = map[string]any{"User": "somebody"}
			})
		}, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "passwd"),
		pull("passwd is a fifo", func(_ *scene, e *evil) {
			e.serve([][]byte{layer(directory("etc"), entry{name: "etc/passwd", kind: '6'})}, func(_, config map[string]any) {
				config["config"] = map[string]any{"User": "somebody"}
			})
		}, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "passwd"),
		pull("/proc and /dev are links to the node", func(s *scene, e *evil) {
			e.serve([][]byte{layer(symlink("proc", s.canary), symlink("dev", s.canary), symlink("sys", s.canary), symlink("etc", s.canary))}, nil)
		}, []codes.Code{codes.OK, codes.InvalidArgument, codes.FailedPrecondition}),
	})
}

func userOf(user string) func(*scene, *evil) {
	return func(_ *scene, e *evil) {
		e.serve([][]byte{layer(directory("bin"), file("bin/sh", "x"))}, func(_, config map[string]any) {
			config["config"] = map[string]any{"User": user, "Cmd": []string{"sh"}}
		})
	}
}

func TestReferences(t *testing.T) {
	var rows []row
	for _, reference := range []string{"", ":", "UPPER/Case:1", "a//b", "127.0.0.1:5000/x:tag:tag", "127.0.0.1:5000/x@sha256:abc", "127.0.0.1:5000/x@md5:" + strings.Repeat("0", 32), "../../etc/passwd", "a b", "x\ny", repeated(5000)} {
		name := "reference " + reference[:min(len(reference), 30)]
		rows = append(rows, row{name, func(s *scene) error {
			ctx, cancel := within(s, 10*time.Second)
			defer cancel()
			_, err := s.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: reference}})
			return err
		}, refused, []string{"image", "name"}})
	}
	rows = append(rows, row{"pull by a digest that the registry does not have", func(s *scene) error {
		_, err := s.Image.PullImage(s.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: lab.Registry() + "/meridian/busybox@sha256:" + strings.Repeat("0", 64)}})
		return err
	}, []codes.Code{codes.NotFound}, nil}, row{"pull by a digest that the manifest is not", func(s *scene) error {
		registry := newEvil()
		defer registry.Close()
		registry.serve([][]byte{layer(directory("bin"))}, nil)
		reference := strings.TrimSuffix(registry.reference(), ":1") + "@sha256:" + strings.Repeat("2", 64)
		_, err := s.Image.PullImage(s.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: reference}})
		return err
	}, damaged, []string{"sha256:"}})
	run(t, rows)
}

// Archives for `meridian image import`, which the command line sends; its message is the daemon's.
func TestArchives(t *testing.T) {
	archive := func(name string, entries func(*scene) []entry, words ...string) row {
		return row{"archive " + name, func(s *scene) error {
			path := filepath.Join(s.TempDir(), "archive.tar")
			if err := os.WriteFile(path, layer(entries(s)...), 0o600); err != nil {
				return err
			}
			if _, err := lab.Node().CLI(s.ctx, "image", "import", path); err != nil {
				return status.Error(codes.InvalidArgument, err.Error())
			}
			return nil
		}, refused, words}
	}
	blob := "blobs/sha256/" + strings.Repeat("3", 64)
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"` + ociManifest + `","digest":"sha256:` + strings.Repeat("3", 64) + `","size":2}]}`
	run(t, []row{
		archive("is empty", func(*scene) []entry { return nil }, "index.json"),
		archive("has no index", func(*scene) []entry { return []entry{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)} }, "index.json"),
		archive("lacks a blob", func(*scene) []entry {
			return []entry{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("index.json", index)}
		}, strings.Repeat("3", 12)),
		archive("has a blob of another digest", func(*scene) []entry {
			return []entry{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("index.json", index), file(blob, "{}")}
		}, "digest"),
		archive("has a blob that is a link to the node", func(s *scene) []entry {
			return []entry{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("index.json", index), symlink(blob, s.canary+"/file")}
		}, strings.Repeat("3", 12)),
		archive("climbs", func(s *scene) []entry {
			return []entry{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("../../../../../.."+s.canary+"/new", "x")}
		}),
	})
}
