package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificates writes an authority and a node's certificate with its key; each ends when told.
func certificates(t *testing.T, directory string, nodeEnd, authorityEnd time.Time) {
	t.Helper()
	authorityKey, nodeKey := key(t), key(t)
	authority := template("authority", authorityEnd)
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign
	sign(t, filepath.Join(directory, "ca.crt"), authority, authority, authorityKey, authorityKey)
	sign(t, filepath.Join(directory, "node.crt"), template("node", nodeEnd), authority, nodeKey, authorityKey)
	text, err := x509.MarshalPKCS8PrivateKey(nodeKey)
	must(t, err)
	save(t, filepath.Join(directory, "node.key"), "PRIVATE KEY", text)
}

func template(name string, end time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    end.Add(-1000 * time.Hour),
		NotAfter:     end,
	}
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return made
}

func sign(t *testing.T, path string, certificate, issuer *x509.Certificate, own, signer *ecdsa.PrivateKey) {
	t.Helper()
	text, err := x509.CreateCertificate(rand.Reader, certificate, issuer, &own.PublicKey, signer)
	must(t, err)
	save(t, path, "CERTIFICATE", text)
}

func save(t *testing.T, path, kind string, text []byte) {
	t.Helper()
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text}), 0o600))
}
