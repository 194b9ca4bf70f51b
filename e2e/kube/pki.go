package kube

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one cluster. Each of them serves and is a client's, whatever it is used for.
type authority struct {
	directory   string
	certificate *x509.Certificate
	key         crypto.Signer
	serial      int64
}

// subject is who a certificate is for: user and groups as Kubernetes reads them, and addresses where it serves.
type subject struct {
	file, user string
	groups     []string
	addresses  []string
}

func newAuthority(directory string) (*authority, error) {
	a := &authority{directory: directory, serial: 1}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a.certificate = template
	var err error
	if a.key, err = a.sign("ca", template); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(a.path("ca.crt"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	a.certificate, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

func (a *authority) path(file string) string { return filepath.Join(a.directory, file) }

// issue writes FILE.crt and FILE.key.
func (a *authority) issue(s subject) error {
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: s.user, Organization: s.groups},
		NotBefore: a.certificate.NotBefore, NotAfter: a.certificate.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, address := range s.addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	_, err := a.sign(s.file, template)
	return err
}

// sign makes a key, and the certificate that template describes for it. Without a key of its own yet, it signs itself.
func (a *authority) sign(file string, template *x509.Certificate) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := a.write(file+".crt", "CERTIFICATE", certificate); err != nil {
		return nil, err
	}
	return key, a.write(file+".key", "PRIVATE KEY", private)
}

func (a *authority) write(file, kind string, content []byte) error {
	return os.WriteFile(a.path(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600)
}
