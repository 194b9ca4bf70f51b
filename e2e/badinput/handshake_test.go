package badinput

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"
)

// plainImage is what every registry here has to offer.
func plainImage(e *evil) {
	e.serve([][]byte{layer(directory("bin"), file("bin/sh", e.name))}, nil)
}

// Every handshake that must fail fails before anything is asked.
func TestHandshakes(t *testing.T) {
	certificate := func(change func(*x509.Certificate)) func(*tls.Config) {
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{trusted.issue(change)} }
	}
	handshake := func(name string, change func(*tls.Config)) row {
		var registry *evil
		row := pullFrom("over TLS "+name, func() *evil { registry = newSecure(1, change); return registry }, login, func(_ *scene, e *evil) { plainImage(e) }, unserved, "RegistryUnavailable", "127.0.0.1")
		call := row.call
		row.call = func(s *scene) error {
			err := call(s)
			if registry.count("") > 0 {
				s.Errorf("the registry was asked: %v", registry.asked)
			}
			return err
		}
		return row
	}
	run(t, []row{
		pullFrom("over good TLS", func() *evil { return newSecure(1, nil) }, nil, func(_ *scene, e *evil) { plainImage(e) }, welcome),
		pullFrom("over HTTP/2", func() *evil { return newSecure(1, func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }) }, nil, func(_ *scene, e *evil) { plainImage(e) }, welcome),
		handshake("expired", certificate(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })),
		handshake("not valid yet", certificate(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })),
		handshake("of another address", certificate(func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 9)} })),
		handshake("of another name", certificate(func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"registry.example"} })),
		handshake("of a name for an address", certificate(func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"127.0.0.1"} })),
		handshake("of a common name alone", certificate(func(c *x509.Certificate) { c.IPAddresses, c.Subject.CommonName = nil, "127.0.0.1" })),
		handshake("of a client", certificate(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })),
		handshake("of an unknown authority", strange),
		handshake("signed by itself", func(c *tls.Config) {
			template := draft("itself")
			template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
			key, own := sign(template, nil, nil)
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{own.Raw}, PrivateKey: key}}
		}),
		handshake("signed by a registry", func(c *tls.Config) {
			middle := trusted.issue(nil) // no authority
			leaf, _ := x509.ParseCertificate(middle.Certificate[0])
			impostor := &authority{leaf, middle.PrivateKey.(*ecdsa.PrivateKey)}
			issued := impostor.issue(nil)
			issued.Certificate = append(issued.Certificate, middle.Certificate[0])
			c.Certificates = []tls.Certificate{issued}
		}),
		handshake("with another's key", func(c *tls.Config) {
			issued, other := trusted.issue(nil), trusted.issue(nil)
			issued.PrivateKey = other.PrivateKey
			c.Certificates = []tls.Certificate{issued}
		}),
		handshake("1.0 alone", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }),
		handshake("1.1 alone", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 }),
		handshake("with weak ciphers alone", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
		}),
		handshake("that wants a client certificate", func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert; c.MaxVersion = tls.VersionTLS12 }),
	})
}
