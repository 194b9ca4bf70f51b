package streaming

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
	"meridian.dev/e2e/node"
)

// authority makes a certificate authority, and a certificate of it for the loopback address in two files.
func authority(t *testing.T, directory string) (ca []byte, certificate, key string) {
	t.Helper()
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		}
	}
	root, leaf := template(1, "authority"), template(2, "streaming")
	root.IsCA, root.KeyUsage = true, x509.KeyUsageCertSign
	leaf.IPAddresses, leaf.ExtKeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, kind string, der []byte, err error) (string, []byte) {
		if err != nil {
			t.Fatal(err)
		}
		path, text := filepath.Join(directory, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path, text
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	_, ca = file("ca.crt", "CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	certificate, _ = file("tls.crt", "CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(leafKey)
	key, _ = file("tls.key", "PRIVATE KEY", der, err)
	return ca, certificate, key
}

// tlsNode is a daemon that streams over TLS, with a running container; ca is what its clients have to trust.
func tlsNode(t *testing.T) (n *node.Node, container string, ca []byte) {
	t.Helper()
	ca, certificate, key := authority(t, t.TempDir())
	n, err := lab.NewNode("s", node.Options{Subnet: 89, Extra: fmt.Sprintf("[streaming]\ncertificate = %q\nkey = %q\n", certificate, key)})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	t.Cleanup(func() {
		if n.Client != nil {
			if err := errors.Join(n.Purge(ctx), n.Stop()); err != nil {
				t.Error(err)
			}
		}
		_ = n.Discard()
	})
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CLI(ctx, "run", "--logs", t.TempDir(), "--name", "tls", lab.Reference("clockwork:1"), "pause"); err != nil {
		t.Fatal(err)
	}
	containers, err := n.Client.ListContainers(ctx, nil)
	if err != nil || len(containers) != 1 {
		t.Fatalf("%d containers, %v", len(containers), err)
	}
	return n, containers[0].Id, ca
}

func TestStreamingOverTLS(t *testing.T) {
	n, container, ca := tlsNode(t)
	stranger, _, _ := authority(t, t.TempDir())
	echo := func(connect func(*rest.Config, string) (remotecommand.Executor, error), trusted []byte) (string, error) {
		response, err := n.Runtime.Exec(lab.Context(t), &runtimeapi.ExecRequest{ContainerId: container, Cmd: []string{"sh", "-c", "cat; echo $((6*7))"}, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(response.Url, "https://127.0.0.1:") {
			t.Errorf("URL %q", response.Url)
		}
		config := &rest.Config{}
		config.CAData = trusted
		executor, err := connect(config, response.Url)
		if err != nil {
			t.Fatal(err)
		}
		var shown bytes.Buffer
		err = executor.StreamWithContext(lab.Context(t), remotecommand.StreamOptions{Stdin: strings.NewReader(strings.Repeat("x", 300_000)), Stdout: &shown})
		return shown.String(), err
	}
	for name, connect := range map[string]func(*rest.Config, string) (remotecommand.Executor, error){
		"spdy": func(config *rest.Config, address string) (remotecommand.Executor, error) {
			parsed, err := url.Parse(address)
			if err != nil {
				return nil, err
			}
			return remotecommand.NewSPDYExecutor(config, http.MethodPost, parsed)
		},
		"websocket": func(config *rest.Config, address string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(config, http.MethodGet, address)
		},
	} {
		if got, err := echo(connect, ca); err != nil || got != strings.Repeat("x", 300_000)+"42\n" {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if got, err := echo(connect, stranger); err == nil || !strings.Contains(err.Error(), "unknown authority") || got != "" {
			t.Errorf("%s, with another authority: %q, %v", name, got, err)
		}
	}
	// Who speaks plainly is cut off, and the daemon serves on.
	response, err := n.Runtime.Exec(lab.Context(t), &runtimeapi.ExecRequest{ContainerId: container, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := http.Get(strings.Replace(response.Url, "https:", "http:", 1)); err == nil { //nolint:noctx // answered at once
		_ = answer.Body.Close()
		t.Errorf("without TLS: %s", answer.Status)
	}
	if _, err := n.Runtime.Version(lab.Context(t), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
}
