package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strings"
	"time"

	"archive/tar"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	pullLayers = 8
	// pullPeak is how much memory the daemon had at most, the pull's own peak.
	pullPeak = "peak RSS of the daemon in a pull, MB"
	pullCost = "CPU of the daemon in a pull, s"
)

// pulls measures how long an image of eight layers takes from the registry on loopback until it can be run, and the
// daemon's peak memory meanwhile. The contenders take turns; all of them start without it.
func pulls(ctx context.Context, b *bench) error {
	reference := fmt.Sprintf("%s/meridian/bench:%d", b.registry, b.layer)
	if err := pushLayers(b.registry, fmt.Sprint(b.layer), b.layer<<20); err != nil {
		return fmt.Errorf("push: %w", err)
	}
	what := fmt.Sprintf("pull of %d MiB", pullLayers*b.layer)
	for range b.rounds {
		for _, c := range b.contenders {
			if c.name == runc { // the same containerd as crun's
				continue
			}
			// Writing 5 sets the peak to what is used now (proc_pid_clear_refs(5)).
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.daemon), []byte("5"), 0); err != nil {
				return err
			}
			used, began := processorTimeOf(c.daemon), time.Now()
			id, err := c.client.Pull(ctx, reference)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			b.report.sample(what, c.name, time.Since(began))
			b.report.value(pullCost, c.name, (processorTimeOf(c.daemon) - used).Seconds())
			b.report.value(pullPeak, c.name, float64(statusBytes(c.daemon, "VmHWM:"))/1e6)
			if err := c.client.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: id}); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			time.Sleep(2 * time.Second) // containerd collects what is left
		}
	}
	return nil
}

// pushLayers puts an image of layers of so many bytes, made of files of all sizes, half of it noise, into the registry,
// unless it is there.
func pushLayers(registry, tag string, size int) error {
	manifestURL := fmt.Sprintf("http://%s/v2/meridian/bench/manifests/%s", registry, tag)
	if response, err := http.Head(manifestURL); err == nil {
		response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return nil
		}
	}
	var layers []any
	var diffs []string
	for n := range pullLayers {
		packed, diff := packLayer(n, size)
		descriptor, err := upload(registry, "application/vnd.oci.image.layer.v1.tar+gzip", packed)
		if err != nil {
			return err
		}
		layers, diffs = append(layers, descriptor), append(diffs, diff)
	}
	text, _ := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	config, err := upload(registry, "application/vnd.oci.image.config.v1+json", text)
	if err != nil {
		return err
	}
	kind := "application/vnd.oci.image.manifest.v1+json"
	manifest, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers})
	return put(manifestURL, kind, manifest)
}

// packLayer makes layer n: its blob and its diff id. The same n and size give the same layer.
func packLayer(n, size int) (packed []byte, diff string) {
	random := rand.New(rand.NewSource(int64(n)))
	var blob bytes.Buffer
	zip, _ := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
	sum := sha256.New()
	archive := tar.NewWriter(io.MultiWriter(zip, sum))
	words := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog, line after line\n", 64))
	for written, file := 0, 0; written < size; file++ {
		length := min(4<<10<<random.Intn(11), size-written)
		content := make([]byte, length)
		for at := 0; at < length; at += 4096 {
			page := content[at:min(at+4096, length)]
			if random.Intn(2) == 0 {
				random.Read(page)
			} else {
				copy(page, words[random.Intn(60):])
			}
		}
		_ = archive.WriteHeader(&tar.Header{Name: fmt.Sprintf("layer%d/%d/file%d", n, file%40, file), Mode: 0o644, Size: int64(length)})
		_, _ = archive.Write(content)
		written += length
	}
	_ = archive.Close()
	_ = zip.Close()
	return blob.Bytes(), "sha256:" + hex.EncodeToString(sum.Sum(nil))
}

// upload stores a blob and returns its descriptor.
func upload(registry, kind string, blob []byte) (map[string]any, error) {
	sum := sha256.Sum256(blob)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	response, err := http.Post(fmt.Sprintf("http://%s/v2/meridian/bench/blobs/uploads/", registry), "", nil)
	if err != nil {
		return nil, err
	}
	response.Body.Close()
	location, err := response.Location()
	if err != nil {
		return nil, err
	}
	query := location.Query()
	query.Set("digest", digest)
	location.RawQuery = query.Encode()
	return map[string]any{"mediaType": kind, "digest": digest, "size": len(blob)}, put(location.String(), "application/octet-stream", blob)
}

func put(url, kind string, content []byte) error {
	request, err := http.NewRequest(http.MethodPut, url, bytes.NewReader(content))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", kind)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return fmt.Errorf("PUT %s: %s: %s", url, response.Status, text)
	}
	return nil
}
