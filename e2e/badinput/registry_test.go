package badinput

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"meridian.dev/e2e/client"
)

// evil is a registry that serves what it is told, lies included. It listens on loopback, over plain HTTP or TLS.
type evil struct {
	*httptest.Server
	// name is what images are named after; empty means the address.
	name string
	// behave, if set, answers what it says it has answered.
	behave func(http.ResponseWriter, *http.Request) bool
	// manifest is served for every tag and digest; blobs by digest.
	manifest  []byte
	mediaType string
	blobs     map[string][]byte
	// length, if set, is sent as Content-Length of blobs, whatever their true size.
	length int64
	// manifests by digest, if set; else manifest is under every name.
	manifests map[string][]byte
	// also, if set, is asked at the end of a row.
	also func() error

	lock sync.Mutex
	// asked lists what came: method, path and Authorization.
	asked []string
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

// newSecure listens on 127.0.0.LAST over TLS, as change has it. The node is told by a hosts.toml file.
func newSecure(last int, change func(*tls.Config)) *evil {
	registry := &evil{blobs: map[string][]byte{}, mediaType: ociManifest, name: "secure-" + client.Unique()[:8] + ".test"}
	registry.Server = httptest.NewUnstartedServer(registry)
	registry.Config.ErrorLog = log.New(io.Discard, "", 0)
	registry.Listener.Close()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:0", last))
	if err != nil {
		panic(err)
	}
	registry.Listener = listener
	registry.TLS = &tls.Config{Certificates: []tls.Certificate{trusted.issue(nil)}}
	if change != nil {
		change(registry.TLS)
	}
	registry.EnableHTTP2 = slices.Contains(registry.TLS.NextProtos, "h2")
	registry.StartTLS()
	registry.announce("")
	return registry
}

// announce writes the registry's hosts.toml, with more lines.
func (e *evil) announce(more string) {
	place := filepath.Join(hostsDirectory, e.name)
	text := fmt.Sprintf("server = %q\n%s", e.URL, more)
	if err := errors.Join(os.MkdirAll(place, 0o700), os.WriteFile(filepath.Join(place, "hosts.toml"), []byte(text), 0o600)); err != nil {
		panic(err)
	}
}

// count tells how often something was asked whose line contains all parts.
func (e *evil) count(parts ...string) (count int) {
	e.lock.Lock()
	defer e.lock.Unlock()
	for _, line := range e.asked {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
			count++
		}
	}
	return count
}

func (e *evil) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	e.lock.Lock()
	e.asked = append(e.asked, strings.Join([]string{request.Method, request.URL.Path, request.Header.Get("Authorization")}, " "))
	e.lock.Unlock()
	if e.behave != nil && e.behave(response, request) {
		return
	}
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
	case strings.Contains(request.URL.Path, "/manifests/sha256:") && e.manifests != nil:
		text, ok := e.manifests[filepath.Base(request.URL.Path)]
		if !ok {
			http.NotFound(response, request)
			return
		}
		_, _ = response.Write(text)
	case strings.Contains(request.URL.Path, "/manifests/"):
		response.Header().Set("Content-Type", e.mediaType)
		response.Header().Set("Docker-Content-Digest", digestOf(e.manifest))
		_, _ = response.Write(e.manifest)
	default:
		http.NotFound(response, request)
	}
}

// reference names the registry's one image.
func (e *evil) reference() string {
	if e.name != "" {
		return e.name + "/evil/image:1"
	}
	return strings.TrimPrefix(e.URL, "http://") + "/evil/image:1"
}

func digestOf(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// add stores a blob and returns its descriptor.
func (e *evil) add(mediaType string, blob []byte) map[string]any {
	e.blobs[digestOf(blob)] = blob
	return map[string]any{"mediaType": mediaType, "digest": digestOf(blob), "size": len(blob)}
}

// addManifest stores a manifest or index under its digest and returns its descriptor.
func (e *evil) addManifest(mediaType string, text []byte) map[string]any {
	if e.manifests == nil {
		e.manifests = map[string][]byte{}
	}
	e.manifests[digestOf(text)] = text
	return map[string]any{"mediaType": mediaType, "digest": digestOf(text), "size": len(text)}
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

// zipped remembers what is packed once per row.
var zipped = map[string][]byte{}

func zip(data []byte) []byte {
	digest := digestOf(data)
	if packed, ok := zipped[digest]; ok {
		return packed
	}
	var buffer bytes.Buffer
	writer := gzip.NewWriter(&buffer)
	_, _ = writer.Write(data)
	_ = writer.Close()
	zipped[digest] = buffer.Bytes()
	return zipped[digest]
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
