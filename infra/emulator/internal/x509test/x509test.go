// Package x509test makes certificates of devices and their authorities for tests.
package x509test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"testing"
	"time"
)

// Issue makes a certificate with its key, and with a name as common name, that
// parent signs, or that signs itself if parent is nil. It is valid from an hour ago
// for two hours, for whatever purpose, unless changes say otherwise.
func Issue(t testing.TB, name string, parent *tls.Certificate, changes ...func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(time.Hour),
	}
	for _, change := range changes {
		change(template)
	}
	issuer, signer := template, any(key)
	if parent != nil {
		issuer, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// AsCA makes a certificate that of an authority.
func AsCA(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
}

// ForClients makes a certificate good for clients only.
func ForClients(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

// Thumbprint returns the SHA-1 of a certificate in hexadecimal, as an identity has
// it.
func Thumbprint(c *tls.Certificate) *string {
	sum := sha1.Sum(c.Leaf.Raw)
	return new(hex.EncodeToString(sum[:]))
}
