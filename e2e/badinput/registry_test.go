package badinput

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
)

// evil is a registry that serves what it is told, lies included. It listens on loopback over plain HTTP.
type evil struct {
	*httptest.Server
	// manifest is served for every tag and digest; blobs by digest.
	manifest  []byte
	mediaType string
	blobs     map[string][]byte
	// length, if set, is sent as Content-Length of blobs, whatever their true size.
	length int64
}

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

func newEvil() *evil {
	registry := &evil{blobs: map[string][]byte{}, mediaType: ociManifest}
	registry.Server = httptest.NewServer(registry)
	return registry
}

func (e *evil) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	_, name, isBlob := strings.Cut(request.URL.Path, "/blobs/")
	switch {
	case request.URL.Path == "/v2/":
	case isBlob:
		blob, ok := e.blobs[name]
		if !ok {
			http.NotFound(response, request)
			return
		}
		if e.length > 0 {
			response.Header().Set("Content-Length", fmt.Sprint(e.length))
		}
		_, _ = response.Write(blob)
	case strings.Contains(request.URL.Path, "/manifests/"):
		response.Header().Set("Content-Type", e.mediaType)
		response.Header().Set("Docker-Content-Digest", digestOf(e.manifest))
		_, _ = response.Write(e.manifest)
	default:
		http.NotFound(response, request)
	}
}

// reference names the registry's one image.
func (e *evil) reference() string { return strings.TrimPrefix(e.URL, "http://") + "/evil/image:1" }

func digestOf(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// add stores a blob and returns its descriptor.
func (e *evil) add(mediaType string, blob []byte) map[string]any {
	e.blobs[digestOf(blob)] = blob
	return map[string]any{"mediaType": mediaType, "digest": digestOf(blob), "size": len(blob)}
}

// serve makes an image of uncompressed layers; change may then bend the manifest and the configuration.
func (e *evil) serve(layers [][]byte, change func(manifest, config map[string]any)) {
	config := map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs(layers)},
	}
	manifest := map[string]any{"schemaVersion": 2, "mediaType": ociManifest}
	var descriptors []any
	for _, layer := range layers {
		descriptors = append(descriptors, e.add(ociLayer, zip(layer)))
	}
	manifest["layers"] = descriptors
	if change != nil {
		change(manifest, config)
	}
	text, _ := json.Marshal(config)
	if manifest["config"] == nil {
		manifest["config"] = e.add(ociConfig, text)
	}
	e.manifest, _ = json.Marshal(manifest)
}

func diffIDs(layers [][]byte) []string {
	var ids []string
	for _, layer := range layers {
		ids = append(ids, digestOf(layer))
	}
	return ids
}

func zip(data []byte) []byte {
	var buffer bytes.Buffer
	writer := gzip.NewWriter(&buffer)
	_, _ = writer.Write(data)
	_ = writer.Close()
	return buffer.Bytes()
}

// entry is one tar entry.
type entry struct {
	name, target, content string
	kind                  byte
	mode                  int64
}

func layer(entries ...entry) []byte {
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, e := range entries {
		if e.mode == 0 {
			e.mode = 0o755
		}
		_ = writer.WriteHeader(&tar.Header{Name: e.name, Linkname: e.target, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.content))})
		_, _ = writer.Write([]byte(e.content))
	}
	_ = writer.Close()
	return buffer.Bytes()
}

func file(name, content string) entry { return entry{name: name, content: content, kind: tar.TypeReg} }
func directory(name string) entry     { return entry{name: name, kind: tar.TypeDir} }
func symlink(name, target string) entry {
	return entry{name: name, target: target, kind: tar.TypeSymlink}
}
func hardlink(name, target string) entry {
	return entry{name: name, target: target, kind: tar.TypeLink}
}
