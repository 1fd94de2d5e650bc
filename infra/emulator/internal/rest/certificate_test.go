package rest_test

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
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/rest"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// selfSigned makes a certificate and its thumbprint.
func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "d"},
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	sum := sha1.Sum(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(sum[:])
}

// as is the fixture over TLS, for a client that shows the certificate.
func (f *fixture) as(certificate tls.Certificate) *fixture {
	f.t.Helper()
	server := httptest.NewUnstartedServer(rest.NewHandler(f.hub, &sas.Verifier{Hosts: []string{hubName}, Keys: f.hub}, nil))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	f.t.Cleanup(server.Close)
	server.Client().Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{certificate}
	return &fixture{t: f.t, hub: f.hub, server: server, telemetry: f.telemetry}
}

// TestCertificate has a device use its certificate in place of a token.
func TestCertificate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("other")
	certificate, thumbprint := selfSigned(t)
	_, err := f.hub.CreateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: hub.Authentication{
		Type: hub.AuthSelfSigned, X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: &thumbprint},
	}})
	must(t, err)
	d := f.as(certificate)
	none := []string{"Authorization", ""}
	if a := d.call("POST", events, "x", none...); a.status != 204 {
		t.Fatal(a)
	}
	if method, _ := d.nextEvent().ApplicationProperties[hub.PropertyAuthMethod].(string); !strings.Contains(method, `"type":"x509"`) {
		t.Errorf("authentication method %s", method)
	}
	if a := d.call("GET", deviceBound, "", none...); a.status != 204 {
		t.Errorf("receive: %s", a)
	}
	expectFailure(t, d.call("POST", "/devices/other/messages/events", "x", none...), hub.CodeUnauthorized)
	expectFailure(t, d.call("GET", "/devices/d", "", none...), hub.CodeUnauthorizedAccess)

	stranger, _ := selfSigned(t)
	expectFailure(t, f.as(stranger).call("POST", events, "x", none...), hub.CodeUnauthorized)
}
