package badinput

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"meridian.dev/e2e/node"
)

// authority issues certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// trusted is the only authority that the node under test knows.
var trusted = newAuthority()

// hostsDirectory is where the node looks for hosts.toml files.
var hostsDirectory string

// trusting shapes a node that knows the authority and reads hosts.toml files of this test's.
func trusting() node.Options {
	directory, err := os.MkdirTemp("/run", "badinput-") // goes with the world
	if err != nil {
		panic(err)
	}
	hostsDirectory = filepath.Join(directory, "hosts")
	file := filepath.Join(directory, "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: trusted.certificate.Raw})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		panic(err)
	}
	return node.Options{
		Extra:       fmt.Sprintf("[image]\nhosts = [%q]\n", hostsDirectory),
		Environment: []string{"SSL_CERT_FILE=" + file},
	}
}

func newAuthority() *authority {
	template := draft("an authority")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	a := &authority{}
	a.key, a.certificate = sign(template, nil, nil)
	return a
}

// issue makes a certificate for 127.0.0.1 to 127.0.0.3, good but for one change.
func (a *authority) issue(change func(*x509.Certificate)) tls.Certificate {
	template := draft("a registry")
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for last := range 3 {
		template.IPAddresses = append(template.IPAddresses, net.IPv4(127, 0, 0, byte(last+1)))
	}
	if change != nil {
		change(template)
	}
	key, certificate := sign(template, a.certificate, a.key)
	return tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key}
}

func draft(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

// sign has a certificate signed by a parent's key, or by its own.
func sign(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		panic(err)
	}
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		panic(err)
	}
	return key, certificate
}
