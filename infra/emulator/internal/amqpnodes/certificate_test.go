package amqpnodes_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"

	client "github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/x509test"
)

// dialTLS connects with a certificate, unless that is nil.
func dialTLS(t *testing.T, addr string, own *tls.Certificate, sasl client.SASLType) (*client.Conn, error) {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true} // it is the client's that is tested
	if own != nil {
		config.Certificates = []tls.Certificate{*own}
	}
	conn, err := client.Dial(testContext(t), "amqps://"+addr, &client.ConnOptions{TLSConfig: config, SASLType: sasl})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	authority, stranger := x509test.Issue(t, "authority", nil, x509test.AsCA), x509test.Issue(t, "stranger", nil, x509test.AsCA)
	selfSigned := x509test.Issue(t, "any name", nil)
	e := startWith(t, func(o *hub.Options) {
		o.DeviceCAs = x509.NewCertPool()
		o.DeviceCAs.AddCert(authority.Leaf)
	})
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	e.serve(t, tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*x509test.Issue(t, "server", nil)}, ClientAuth: tls.RequestClientCert}))
	for _, id := range []hub.Identity{
		{DeviceID: "self-signed", Authentication: hub.Authentication{X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: x509test.Thumbprint(selfSigned)}}},
		{DeviceID: "signed", Authentication: hub.Authentication{Type: hub.AuthAuthority}},
		{DeviceID: "by-key"},
	} {
		must[hub.Identity](t)(e.hub.CreateDevice(testContext(t), id))
	}
	external, anonymous := client.SASLTypeExternal(""), client.SASLTypeAnonymous()
	for name, tt := range map[string]struct {
		own  *tls.Certificate
		sasl client.SASLType
		id   string
		want client.ErrCond
	}{
		"thumbprint, EXTERNAL":    {selfSigned, external, "self-signed", ""},
		"thumbprint, ANONYMOUS":   {selfSigned, anonymous, "self-signed", ""},
		"thumbprint, no SASL":     {selfSigned, nil, "self-signed", ""},
		"other thumbprint":        {stranger, external, "self-signed", client.ErrCondUnauthorizedAccess},
		"authority, EXTERNAL":     {x509test.Issue(t, "signed", authority), external, "signed", ""},
		"authority, no SASL":      {x509test.Issue(t, "signed", authority), nil, "signed", ""},
		"authority, another name": {x509test.Issue(t, "by-key", authority), external, "signed", client.ErrCondUnauthorizedAccess},
		"unknown authority":       {x509test.Issue(t, "signed", stranger), external, "signed", client.ErrCondUnauthorizedAccess},
		"device with a key":       {selfSigned, external, "by-key", client.ErrCondUnauthorizedAccess},
		"no certificate":          {nil, anonymous, "self-signed", client.ErrCondUnauthorizedAccess},
	} {
		t.Run(name, func(t *testing.T) {
			conn := must[*client.Conn](t)(dialTLS(t, l.Addr().String(), tt.own, tt.sasl))
			sender, err := newSession(t, conn).NewSender(testContext(t), address(hub.Target{DeviceID: tt.id}, nodeEvents), nil)
			wantCondition(t, err, tt.want)
			if err != nil {
				return
			}
			if err := sender.Send(testContext(t), client.NewMessage([]byte("x")), nil); err != nil {
				t.Error(err)
			}
		})
	}
	for _, event := range e.stored(t, 5) {
		contains(t, event.Message.Annotations[hub.PropertyAuthMethod].(string), `"type":"x509"`)
	}
	if _, err := dialTLS(t, l.Addr().String(), nil, external); err == nil {
		t.Error("EXTERNAL was accepted without a certificate")
	}
	if _, err := e.dial(t, external); err == nil {
		t.Error("EXTERNAL was accepted without TLS")
	}
}
