package conformance

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meridian.dev/e2e/node"
)

// registry serves images of hack/images, straight from their layouts, under whatever names a test wants. Every one made
// is another host, as Meridian sees it.
type registry struct {
	*httptest.Server
	// layouts maps "repository:tag" to a layout's directory.
	layouts map[string]string
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{layouts: map[string]string{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// add serves one of hack/images under a name, and returns the name that Meridian is to pull.
func (r *registry) add(name, image string) string {
	repository, tag, _ := strings.Cut(image, ":")
	r.layouts[name] = filepath.Join(node.Cache(), "images", repository, tag)
	return strings.TrimPrefix(r.URL, "http://") + "/" + name
}

func (r *registry) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	path := strings.TrimPrefix(request.URL.Path, "/v2/")
	if repository, reference, ok := strings.Cut(path, "/manifests/"); ok {
		for name, layout := range r.layouts {
			digest, mediaType := manifest(layout)
			if name == repository+":"+reference || strings.HasPrefix(name, repository+":") && reference == digest {
				response.Header().Set("Content-Type", mediaType)
				response.Header().Set("Docker-Content-Digest", digest)
				http.ServeFile(response, request, blob(layout, digest))
				return
			}
		}
	}
	if _, digest, ok := strings.Cut(path, "/blobs/"); ok {
		for _, layout := range r.layouts {
			if _, err := os.Stat(blob(layout, digest)); err == nil {
				http.ServeFile(response, request, blob(layout, digest))
				return
			}
		}
	}
	if path != "" {
		http.NotFound(response, request)
	}
}

func blob(layout, digest string) string {
	return filepath.Join(layout, "blobs", strings.Replace(digest, ":", "/", 1))
}

// manifest is the digest and media type of a layout's one manifest.
func manifest(layout string) (digest, mediaType string) {
	var index struct {
		Manifests []struct{ Digest, MediaType string }
	}
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil || json.Unmarshal(text, &index) != nil || len(index.Manifests) != 1 {
		return "", ""
	}
	return index.Manifests[0].Digest, index.Manifests[0].MediaType
}
