package rest_test

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/rest"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/x509test"
)

// as is the fixture over TLS, for a client that shows the certificate.
func (f *fixture) as(certificate *tls.Certificate) *fixture {
	f.t.Helper()
	server := httptest.NewUnstartedServer(rest.NewHandler(f.hub, &sas.Verifier{Hosts: []string{hubName}, Keys: f.hub}, nil))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	f.t.Cleanup(server.Close)
	server.Client().Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{*certificate}
	return &fixture{t: f.t, hub: f.hub, server: server, telemetry: f.telemetry}
}

// TestCertificate has a device use its certificate in place of a token.
func TestCertificate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("other")
	certificate := x509test.Issue(t, "d", nil)
	_, err := f.hub.CreateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: hub.Authentication{
		Type: hub.AuthSelfSigned, X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: x509test.Thumbprint(certificate)},
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

	stranger := x509test.Issue(t, "d", nil)
	expectFailure(t, f.as(stranger).call("POST", events, "x", none...), hub.CodeUnauthorized)
}
