package badinput

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

type document = map[string]any

// Documents that could be read in two ways, or ask for more than any image needs.
func TestDocuments(t *testing.T) {
	good := [][]byte{layer(directory("bin"), file("bin/sh", "x"))}
	bent := func(name string, change func(e *evil, manifest, config document), codes []codes.Code, words ...string) row {
		return pull("document "+name, func(_ *scene, e *evil) {
			e.serve(good, func(manifest, config map[string]any) { change(e, manifest, config) })
		}, codes, words...)
	}
	text := func(name string, change func(e *evil, text string) string, codes []codes.Code, words ...string) row {
		return pull("document "+name, func(_ *scene, e *evil) {
			e.serve(good, nil)
			e.manifest = []byte(change(e, string(e.manifest)))
		}, codes, words...)
	}
	first := func(with string) func(*evil, string) string {
		return func(_ *evil, text string) string { return "{" + with + "," + text[1:] }
	}
	layerOf := func(manifest document) document { return manifest["layers"].([]any)[0].(document) }
	field := func(name string, value any) func(*evil, document, document) {
		return func(_ *evil, manifest, _ document) { layerOf(manifest)[name] = value }
	}
	configured := func(name string, value any) func(*evil, document, document) {
		return func(_ *evil, _, config document) { config[name] = value }
	}
	served := func(kind string) func(*evil, string) string {
		return func(e *evil, text string) string { e.mediaType = kind; return text }
	}
	run(t, []row{
		text("served as an index", served(ociIndex), refused, "serves"),
		text("served as Docker's list", served("application/vnd.docker.distribution.manifest.list.v2+json"), refused, "serves"),
		text("served as text", served("text/plain; charset=utf-8"), welcome),
		text("served as nothing", served(""), welcome),
		bent("called an index", func(_ *evil, m, _ document) { m["mediaType"] = ociIndex }, refused, "index"),
		bent("called a page", func(_ *evil, m, _ document) { m["mediaType"] = "text/html" }, refused, "text/html"),
		bent("without layers", func(_ *evil, m, _ document) { delete(m, "layers") }, refused, "layers"),
		bent("with layers null", func(_ *evil, m, _ document) { m["layers"] = nil }, refused, "layers"),
		bent("with layers that are none", func(_ *evil, m, _ document) { m["layers"] = "all" }, refused, "manifest"),
		bent("with 257 layers", func(e *evil, m, _ document) { m["layers"] = repeat(layerOf(m), 257) }, tooLarge, "256"),
		bent("with 300 diff ids", func(_ *evil, _, c document) {
			c["rootfs"] = document{"type": "layers", "diff_ids": strings.Split(strings.Repeat(diffIDs(good)[0]+" ", 300)[:300*72-1], " ")}
		}, tooLarge, "256"),
		bent("with more layers than diff ids", func(e *evil, m, _ document) { m["layers"] = repeat(layerOf(m), 2) }, refused, "configuration"),
		bent("whose configuration is an index", func(e *evil, m, _ document) {
			m["config"] = e.add(ociConfig, []byte(`{"schemaVersion":2,"manifests":[]}`))
		}, refused, "configuration"),
		bent("whose configuration is of 5 MiB", configured("comment", repeated(5<<20)), tooLarge, "limit"),
		bent("whose configuration is 100000 deep", func(e *evil, m, _ document) {
			m["config"] = e.add(ociConfig, []byte(strings.Repeat("[", 100_000)))
		}, refused, "configuration"),
		bent("for another processor", configured("architecture", "arm64"), []codes.Code{codes.NotFound}, "linux/amd64"),
		bent("for another system", configured("os", "windows"), []codes.Code{codes.NotFound}, "linux/amd64"),
		bent("for no system", configured("os", ""), []codes.Code{codes.NotFound, codes.InvalidArgument}),
		bent("without rootfs", configured("rootfs", nil), refused, "configuration"),
		bent("with a diff id of a weak kind", configured("rootfs", document{"type": "layers", "diff_ids": []string{"md5:" + strings.Repeat("0", 32)}}), refused, "diff id"),
		bent("with a diff id that climbs", configured("rootfs", document{"type": "layers", "diff_ids": []string{"sha256:../../etc/passwd"}}), refused, "diff id"),
		bent("with a layer at another host", func(e *evil, m, _ document) {
			lure := newEvil()
			layerOf(m)["urls"] = []string{lure.URL + "/layer"}
			layerOf(m)["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
			delete(e.blobs, layerOf(m)["digest"].(string))
			e.also = func() error {
				defer lure.Close()
				if lure.count("") > 0 {
					return fmt.Errorf("the other host was asked: %v", lure.asked)
				}
				return nil
			}
		}, []codes.Code{codes.NotFound}, "does not exist"),
		bent("with an encrypted layer", field("mediaType", "application/vnd.oci.image.layer.v1.tar+encrypted"), refused, "media type"),
		bent("with a layer of 2^63 bytes", field("size", json.Number("9223372036854775808")), damaged, "descriptor"),
		bent("with a layer of 2^64 bytes", field("size", json.Number("18446744073709551616")), refused, "manifest"),
		bent("with a layer of 1.5 bytes", field("size", 1.5), refused, "manifest"),
		bent("with a layer of no bytes", field("size", 0), damaged, "descriptor"),
		bent("with a layer that is its digest", field("digest", ""), refused, "digest"),
		bent("with a digest in capitals", func(_ *evil, m, _ document) {
			layerOf(m)["digest"] = strings.ToUpper(layerOf(m)["digest"].(string))
		}, refused, "digest"),
		bent("with 100000 annotations", func(_ *evil, m, _ document) {
			all := document{}
			for n := range 100_000 {
				all[fmt.Sprint(n)] = "x"
			}
			m["annotations"] = all
		}, []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted}),
		text("with layers twice", first(`"layers":[]`), refused, "manifest"),
		text("with a configuration twice", first(`"config":{}`), refused, "manifest"),
		text("of version 2 and 1", first(`"schemaVersion":1`), refused, "manifest"),
		text("of version 2.0", func(_ *evil, text string) string {
			return strings.Replace(text, `"schemaVersion":2`, `"schemaVersion":2.5`, 1)
		}, refused, "manifest"),
		text("with a byte order mark", func(_ *evil, text string) string { return "\ufeff" + text }, refused, "manifest"),
		text("with garbage behind", func(_ *evil, text string) string { return text + "x" }, refused, "manifest"),
		text("twice", func(_ *evil, text string) string { return text + text }, refused, "manifest"),
		text("cut", func(_ *evil, text string) string { return text[:len(text)-2] }, refused, "manifest"),
		text("that is empty", func(*evil, string) string { return "" }, refused, "manifest"),
		text("that is null", func(*evil, string) string { return "null" }, refused, "manifest"),
		text("that is a list", func(*evil, string) string { return "[]" }, refused, "manifest"),
		text("with NUL", func(_ *evil, text string) string { return strings.Replace(text, ":", ":\x00", 1) }, refused, "manifest"),
	})
}

func repeat(value any, times int) (list []any) {
	for range times {
		list = append(list, value)
	}
	return list
}

// Indexes that lead nowhere, around, or to too much.
func TestIndexes(t *testing.T) {
	here := document{"os": "linux", "architecture": "amd64"}
	index := func(name string, build func(e *evil, image document) []any, codes []codes.Code, words ...string) row {
		return pull("index "+name, func(_ *scene, e *evil) {
			e.serve([][]byte{layer(directory("bin"), file("bin/sh", "x"))}, nil)
			image := e.addManifest(ociManifest, e.manifest)
			image["platform"] = here
			e.manifest, e.mediaType = indexOf(build(e, image)), ociIndex
		}, codes, words...)
	}
	nested := func(depth int) func(*evil, document) []any {
		return func(e *evil, image document) []any {
			for range depth {
				image = e.addManifest(ociIndex, indexOf([]any{image}))
				image["platform"] = here
			}
			return []any{image}
		}
	}
	run(t, []row{
		index("of one image", func(_ *evil, image document) []any { return []any{image} }, welcome),
		index("of an index", nested(1), welcome),
		index("nested 5 deep", nested(5), refused, "nested"),
		index("of 10000 images", func(_ *evil, image document) []any {
			return append(repeat(document{"mediaType": ociManifest, "digest": "sha256:" + strings.Repeat("1", 64), "size": 1, "platform": document{"os": "linux", "architecture": "arm"}}, 10_000), image)
		}, welcome),
		index("of 100000 images", func(_ *evil, image document) []any {
			return append(repeat(document{"mediaType": ociManifest, "digest": "sha256:" + strings.Repeat("1", 64), "size": 1}, 100_000), image)
		}, tooLarge, "limit"),
		index("of nothing", func(*evil, document) []any { return []any{} }, []codes.Code{codes.NotFound}, "linux/amd64"),
		index("of two without a platform", func(_ *evil, image document) []any { delete(image, "platform"); return []any{image, image} }, []codes.Code{codes.NotFound}, "linux/amd64"),
		index("that calls an image an index", func(_ *evil, image document) []any { image["mediaType"] = ociIndex; return []any{image} }, []codes.Code{codes.OK, codes.InvalidArgument}),
		index("that lies about a length", func(_ *evil, image document) []any { image["size"] = 7; return []any{image} }, damaged, "descriptor says 7"),
		index("with a digest that climbs", func(_ *evil, image document) []any { image["digest"] = "sha256:../../x"; return []any{image} }, refused, "digest"),
		index("with a platform of numbers", func(_ *evil, image document) []any {
			image["platform"] = document{"os": 1, "architecture": 2}
			return []any{image}
		}, refused, "manifest"),
		index("whose image is another", func(e *evil, image document) []any {
			e.manifests[image["digest"].(string)] = []byte("{}")
			return []any{image}
		}, damaged, "sha256:"),
		index("whose image is gone", func(e *evil, image document) []any {
			delete(e.manifests, image["digest"].(string))
			return []any{image}
		}, []codes.Code{codes.NotFound}),
	})
}

func indexOf(manifests []any) []byte {
	text, _ := json.Marshal(document{"schemaVersion": 2, "mediaType": ociIndex, "manifests": manifests})
	return text
}
