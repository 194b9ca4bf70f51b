package cli

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"meridian.dev/e2e/lab"
)

func TestCrictlInformation(t *testing.T) {
	c := newCrictl(t)
	wants(t, "version", c.call("version"), "RuntimeName", "meridian", "RuntimeApiVersion", "v1")
	info := c.ask("info")
	conditions := info.at("status", "conditions").String()
	wants(t, "info", conditions, "RuntimeReady", "NetworkReady")
	wants(t, "info .config.stateDir", info.at("config", "stateDir").String(), "/")
	wants(t, "runtime-config", c.call("runtime-config"), "CGROUPFS")
	if status := c.call("update-runtime-config", "--pod-cidr", "10.88.0.0/16,fd00:88::/64"); status != "" {
		wants(t, "update-runtime-config", status, "pdated")
	}
	if _, stderr, err := c.try("update-runtime-config", "--pod-cidr", "10.88.0.1/16"); err == nil {
		t.Error("update-runtime-config takes an address for a subnet")
	} else {
		wants(t, "update-runtime-config", stderr, "pod_cidr", "10.88.0.0/16")
	}
	wants(t, "imagefsinfo", c.ask("imagefsinfo").at("status", "imageFilesystems", 0, "fsId", "mountpoint").String(), "/")
}

func TestCrictlImages(t *testing.T) {
	c := newCrictl(t)
	reference := lab.Reference("user:uid")
	wants(t, "pull", c.call("pull", reference), "sha256:")
	wants(t, "images", c.call("images", "--digests"), "meridian/user", "uid", "DIGEST")
	inspected := c.ask("inspecti", reference)
	wants(t, "inspecti", inspected.at("status", "repoTags", 0).String(), reference)
	wants(t, "inspecti .info.imageSpec", inspected.at("info", "imageSpec", "config", "User").String(), "1002")
	wants(t, "rmi", c.call("rmi", reference), "Deleted")
	if _, stderr, err := c.try("inspecti", reference); err == nil {
		t.Errorf("inspecti of a removed image: %s", stderr)
	}
	// --prune leaves what is in use, and takes the rest.
	c.call("pull", reference)
	_, id := c.pod("prune", sleeper, "")
	c.call("rmi", "--prune")
	listed := c.call("images")
	if !strings.Contains(listed, "meridian/clockwork") || strings.Contains(listed, "meridian/user") {
		t.Errorf("after rmi --prune: %s", listed)
	}
	wants(t, "ps", c.call("ps", "--id", id), "Running")
}

// guarded is a registry that wants a name and a password, and passes on what it is asked to the world's own.
func guarded(t *testing.T, name, password string) string {
	t.Helper()
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: lab.Registry()})
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
	server := httptest.NewServer(http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		if request.Header.Get("Authorization") != want {
			response.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			response.WriteHeader(http.StatusUnauthorized)
			return
		}
		request.Header.Del("Authorization")
		behind.ServeHTTP(response, request)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestCrictlPullWithCredentials(t *testing.T) {
	c := newCrictl(t)
	reference := guarded(t, "alice", "s3cret:word") + "/meridian/user:name"
	if _, stderr, err := c.try("pull", reference); err == nil {
		t.Errorf("without credentials: %s", stderr)
	}
	if _, stderr, err := c.try("pull", "--creds", "alice:guess", reference); err == nil || strings.Contains(stderr, "guess") {
		t.Errorf("with wrong ones: %v, %s", err, stderr)
	}
	wants(t, "pull --creds", c.call("pull", "--creds", "alice:s3cret:word", reference), "sha256:")
	c.call("rmi", reference)
	wants(t, "pull --auth", c.call("pull", "--auth", base64.StdEncoding.EncodeToString([]byte("alice:s3cret:word")), reference), "sha256:")
	c.call("rmi", reference)
}
