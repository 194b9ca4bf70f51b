package storm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

const (
	layerSize = 128 << 20 // bytes
	layers    = 8
	peak      = 150e6 // bytes of the daemon's resident memory
)

// An image of a gigabyte goes through a daemon that may use a quarter of that; what an interrupted pull and a removed
// image took of the disk comes back.
func TestPullOfAGigabyte(t *testing.T) {
	weathered(t)
	registry := httptest.NewServer(large())
	t.Cleanup(registry.Close)
	reference := strings.TrimPrefix(registry.URL, "http://") + "/large/image:1"
	before := taken(t)
	interrupted, cancel := context.WithTimeout(lab.Context(t), time.Second)
	if id, err := lab.Node().Pull(interrupted, reference); err == nil {
		t.Errorf("pulled %s within a second", id)
	}
	cancel()
	lab.Eventually(t, "an interrupted pull leaves the disk as it was", func() bool { return taken(t) < before+1<<20 })

	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", lab.Node().Pid()), []byte("5"), 0); err != nil {
		t.Fatal(err) // 5 resets the peak, proc_pid_clear_refs(5)
	}
	began := time.Now()
	id, err := lab.Node().Pull(lab.Context(t), reference)
	if err != nil {
		t.Fatal(err)
	}
	used := resident(t)
	t.Logf("pulled in %s, peak %d MB", time.Since(began).Round(time.Millisecond), int(used/1e6))
	if used >= peak {
		t.Errorf("the daemon had %d bytes", int(used))
	}
	if full := taken(t); full < before+layers*layerSize {
		t.Errorf("an image of %d bytes takes %d", layers*layerSize, full-before)
	}
	if err := lab.Node().Images.RemoveImage(lab.Context(t), &runtimeapi.ImageSpec{Image: id}); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, "a removed image leaves the disk as it was", func() bool { return taken(t) < before+1<<20 })
}

// taken is what the node's images take on the disk, in bytes.
func taken(t *testing.T) (total int64) {
	t.Helper()
	for _, part := range []string{"layers", "content"} {
		err := filepath.WalkDir(filepath.Join(lab.Node().Root, part), func(_ string, entry fs.DirEntry, err error) error {
			if err != nil {
				return nil // removed meanwhile
			}
			if info, err := entry.Info(); err == nil {
				total += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return total
}

// resident is the peak of the daemon's resident memory, in bytes.
func resident(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", lab.Node().Pid()))
	if err != nil {
		t.Fatal(err)
	}
	var kilobytes float64
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		t.Fatal(err)
	}
	return kilobytes * 1024
}

// large serves one image. Its layers have the bulk of their bytes in common, but none has the other's digest: a gzip
// stream may have several members.
func large() http.Handler {
	noise := make([]byte, layerSize/2)
	rand.New(rand.NewSource(1)).Read(noise)
	bulk := archive("bulk", append(noise, bytes.Repeat([]byte("text, and more text, and "), layerSize/50)...))
	packed := zip(bulk)
	var descriptors []any
	var diffs []string
	answers := map[string][]byte{}
	add := func(kind string, blob []byte) any {
		digest := digest(blob)
		answers["/v2/large/image/blobs/"+digest] = blob
		return map[string]any{"mediaType": kind, "digest": digest, "size": len(blob)}
	}
	for n := range layers {
		own := archive(fmt.Sprint("layer", n), []byte("x"))
		descriptors = append(descriptors, add("application/vnd.oci.image.layer.v1.tar+gzip", append(zip(own), packed...)))
		diffs = append(diffs, digest(own, bulk))
	}
	config, _ := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	kind := "application/vnd.oci.image.manifest.v1+json"
	answers["/v2/large/image/manifests/1"], _ = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": kind,
		"config": add("application/vnd.oci.image.config.v1+json", config), "layers": descriptors})
	return http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		if answer, ok := answers[request.URL.Path]; ok {
			http.ServeContent(response, request, "", time.Time{}, bytes.NewReader(answer))
			return
		}
		http.NotFound(response, request)
	})
}

// archive is a tar of one file, without an end.
func archive(name string, content []byte) []byte {
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	_ = writer.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
	_, _ = writer.Write(content)
	_ = writer.Flush()
	return buffer.Bytes()
}

func zip(content []byte) []byte {
	var buffer bytes.Buffer
	writer, _ := gzip.NewWriterLevel(&buffer, gzip.BestSpeed)
	_, _ = writer.Write(content)
	_ = writer.Close()
	return buffer.Bytes()
}

func digest(parts ...[]byte) string {
	sum := sha256.New()
	for _, part := range parts {
		_, _ = io.Copy(sum, bytes.NewReader(part))
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil))
}
