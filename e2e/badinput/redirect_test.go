package badinput

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// strange has a certificate of an authority that the node does not know.
func strange(c *tls.Config) { c.Certificates = []tls.Certificate{newAuthority().issue(nil)} }

// objects are what a pull asks for: a piece of the path, and whether the blob of this digest is it.
var objects = map[string]func(*evil, string) bool{
	"manifest":      func(_ *evil, path string) bool { return strings.Contains(path, "/manifests/") },
	"configuration": func(e *evil, path string) bool { return isBlob(e, path, '{') },
	"layer":         func(e *evil, path string) bool { return isBlob(e, path, 0x1f) },
}

func isBlob(e *evil, path string, first byte) bool {
	_, digest, ok := strings.Cut(path, "/blobs/")
	return ok && e.blobs[digest] != nil && e.blobs[digest][0] == first
}

// Where redirects must not lead. The registry knows the user by then, so a credential could go along.
func TestRedirects(t *testing.T) {
	destinations := []struct {
		name  string
		to    func(home, other, plain *evil, path string) string
		codes []codes.Code
	}{
		{"to another host", func(_, other, _ *evil, path string) string { return other.URL + path }, welcome},
		{"to plain HTTP", func(_, _, plain *evil, path string) string { return plain.URL + path }, unserved},
		{"to plain HTTP of the same address", func(home, _, _ *evil, path string) string { return "http://" + home.Listener.Addr().String() + path }, unserved},
		{"to a file", func(_, _, _ *evil, _ string) string { return "file:///etc/passwd" }, unserved},
		{"to a socket", func(_, _, _ *evil, _ string) string { return "unix:///run/meridian.sock" }, unserved},
		{"to a script", func(_, _, _ *evil, _ string) string { return "javascript:alert(1)" }, unserved},
		{"to data", func(_, _, _ *evil, _ string) string { return "data:,{}" }, unserved},
		{"to no host", func(_, _, _ *evil, _ string) string { return "https://" }, unserved},
		{"to a broken address", func(_, _, _ *evil, _ string) string { return "https://[::1" }, unserved},
		{"to nowhere", func(_, _, _ *evil, _ string) string { return "" }, unserved},
		{"in a circle", func(home, _, _ *evil, path string) string { return home.URL + path }, unserved},
		{"to what is not there", func(_, other, _ *evil, _ string) string { return other.URL + "/x" }, []codes.Code{codes.NotFound}},
	}
	var rows []row
	for object, is := range objects {
		for _, d := range destinations {
			rows = append(rows, redirected(object, d.name, is, d.to, d.codes))
		}
	}
	run(t, rows)
}

func redirected(object, name string, is func(*evil, string) bool, to func(home, other, plain *evil, path string) string, codes []codes.Code) row {
	return credential(fmt.Sprintf("a redirect of the %s %s", object, name), login, func(s *scene, e *evil) {
		guarded(e, `Basic realm="x"`, basic)
		other, plain := newSecure(3, nil), newEvil()
		other.blobs, other.manifest, plain.blobs, plain.manifest = e.blobs, e.manifest, e.blobs, e.manifest
		s.Cleanup(func() {
			if other.count("Basic")+plain.count("") > 0 {
				s.Errorf("a credential or a request leaked: %v %v", other.asked, plain.asked)
			}
			other.Close()
			plain.Close()
		})
		known := e.behave
		e.behave = func(w http.ResponseWriter, r *http.Request) bool {
			if known(w, r) {
				return true
			}
			if !is(e, r.URL.Path) {
				return false
			}
			if location := to(e, other, plain, r.URL.Path); location != "" {
				w.Header().Set("Location", location)
			}
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}
	}, codes)
}
