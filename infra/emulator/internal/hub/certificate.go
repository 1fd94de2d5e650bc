package hub

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"time"
)

// VerifyCertificate checks the certificates that a client showed in the TLS
// handshake, its own first, against what the identity of a device or module asks
// for: one of two thumbprints, or a chain to one of Options.DeviceCAs. The
// handshake has proved that the client holds the key.
//
// Of a certificate that is known by its thumbprint nothing but its dates is
// looked at (Azure/iotedge, pull request 621). One that is signed by an
// authority names the device, or {device}/{module}, as its common name (IoT Hub
// docs: "Authenticate identities with X.509 certificates").
//
// Every refusal is CodeUnauthorized.
func (h *Hub) VerifyCertificate(t Target, chain []*x509.Certificate) (AuthMethod, error) {
	if len(chain) == 0 {
		return AuthMethod{}, Errorf(CodeUnauthorized, "%s showed no certificate", t)
	}
	p, err := h.principal(t)
	if err != nil {
		return AuthMethod{}, Errorf(CodeUnauthorized, "%s is not registered", t)
	}
	if err := p.device.enabled(); err != nil {
		return AuthMethod{}, err
	}
	identity, _ := p.current()
	switch a := identity.Authentication; a.Type {
	case AuthSelfSigned:
		err = a.X509Thumbprint.matches(t, chain[0])
	case AuthAuthority:
		err = h.verifyChain(t, chain)
	default:
		err = Errorf(CodeUnauthorized, "%s has authentication type %s, not one with certificates", t, a.Type)
	}
	if err != nil {
		return AuthMethod{}, err
	}
	return AuthMethod{Scope: t.scope(), Type: "x509"}, nil
}

// enabled reports why the device can't be used, if it can't.
func (d *device) enabled() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usable()
}

// matches returns an error unless the certificate has one of the thumbprints.
func (x X509Thumbprint) matches(t Target, leaf *x509.Certificate) error {
	if now := time.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return Errorf(CodeUnauthorized, "the certificate of %s is valid from %s to %s", t,
			leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	sha1Sum, sha256Sum := sha1.Sum(leaf.Raw), sha256.Sum256(leaf.Raw)
	for _, known := range []*string{x.PrimaryThumbprint, x.SecondaryThumbprint} {
		if known == nil {
			continue
		}
		for _, sum := range [][]byte{sha1Sum[:], sha256Sum[:]} {
			if strings.EqualFold(*known, hex.EncodeToString(sum)) {
				return nil
			}
		}
	}
	return Errorf(CodeUnauthorized, "the certificate of %s has neither of its thumbprints", t)
}

// verifyChain checks that an authority of the hub signed the first certificate,
// for this target.
func (h *Hub) verifyChain(t Target, chain []*x509.Certificate) error {
	if h.opts.DeviceCAs == nil {
		return Errorf(CodeUnauthorized, "%s needs a certificate authority, and the hub has none", t)
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         h.opts.DeviceCAs,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Errorf(CodeUnauthorized, "the certificate of %s: %v", t, err)
	}
	name := t.DeviceID
	if t.ModuleID != "" {
		name += "/" + t.ModuleID
	}
	if chain[0].Subject.CommonName != name {
		return Errorf(CodeUnauthorized, "the certificate of %s has common name %q", t, chain[0].Subject.CommonName)
	}
	return nil
}
