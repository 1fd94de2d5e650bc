package sdks

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/x509test"
)

// save writes {name}.pem and {name}-key.pem.
func save(t *testing.T, c *tls.Certificate, dir, name string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem":     {Type: "CERTIFICATE", Bytes: c.Leaf.Raw},
		name + "-key.pem": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// deviceCertificates makes what devices show of themselves: certificates of their
// own, and one that an authority, which is returned, has signed for the device with
// the ID ca-signed.
func deviceCertificates(t *testing.T, dir string) *tls.Certificate {
	t.Helper()
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	authority := x509test.Issue(t, "device authority", nil, x509test.AsCA)
	for name, c := range map[string]*tls.Certificate{
		"self-signed": x509test.Issue(t, "self-signed", nil),
		"other":       x509test.Issue(t, "other", nil),
		"expired":     x509test.Issue(t, "expired", nil, expired),
		"ca-signed":   x509test.Issue(t, "ca-signed", authority, x509test.ForClients),
	} {
		save(t, c, dir, name)
	}
	return authority
}
