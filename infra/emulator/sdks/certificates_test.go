package sdks

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

// identity is a certificate with its key.
type identity struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newIdentity makes a certificate until a time, that the issuer signs, or the
// certificate itself if there is none.
func newIdentity(t *testing.T, name string, until time.Time, issuer *identity, authority bool) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             until.Add(-24 * time.Hour),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  authority,
	}
	if authority {
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageCertSign, nil
	}
	parent := &identity{cert: template, key: key}
	if issuer != nil {
		parent = issuer
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return identity{cert: cert, key: key}
}

func (i identity) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

// save writes {name}.pem and {name}-key.pem.
func (i identity) save(t *testing.T, dir, name string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{
		name + ".pem":     i.pem(),
		name + "-key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// deviceCertificates makes what devices show of themselves: certificates of their
// own, and one that an authority, which is returned, has signed for the device with
// the ID ca-signed.
func deviceCertificates(t *testing.T, dir string) identity {
	t.Helper()
	now := time.Now()
	later := now.Add(time.Hour)
	authority := newIdentity(t, "device authority", later, nil, true)
	newIdentity(t, "self-signed", later, nil, false).save(t, dir, "self-signed")
	newIdentity(t, "other", later, nil, false).save(t, dir, "other")
	newIdentity(t, "expired", now.Add(-time.Hour), nil, false).save(t, dir, "expired")
	newIdentity(t, "ca-signed", later, &authority, false).save(t, dir, "ca-signed")
	return authority
}
