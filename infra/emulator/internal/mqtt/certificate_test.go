package mqtt_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/x509test"
)

// dialWith opens a TLS connection with client certificates.
func (f *fixture) dialWith(addr string, certificates ...*tls.Certificate) *client {
	f.t.Helper()
	config := &tls.Config{RootCAs: f.roots(), ServerName: hubName}
	for _, c := range certificates {
		config.Certificates = append(config.Certificates, *c)
	}
	nc, err := tls.Dial("tcp", addr, config)
	must(f.t, err)
	return newClient(f.t, nc)
}

func (f *fixture) roots() *x509.CertPool {
	f.t.Helper()
	bundle, err := certificates()
	must(f.t, err)
	return bundle.Roots()
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	ca := x509test.Issue(t, "devices", nil, x509test.AsCA)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	f := newFixture(t, store.Memory(), nil, func(o *hub.Options) { o.DeviceCAs = roots })
	own, spare := x509test.Issue(t, "own", nil), x509test.Issue(t, "spare", nil)
	foreign := x509test.Issue(t, "foreign", nil, x509test.AsCA)
	add := func(id string, a hub.Authentication) hub.Target {
		_, err := f.hub.CreateDevice(t.Context(), hub.Identity{DeviceID: id, Authentication: a})
		must(t, err)
		return hub.Target{DeviceID: id}
	}
	pinned := add("pinned", hub.Authentication{
		Type:           hub.AuthSelfSigned,
		X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: x509test.Thumbprint(own), SecondaryThumbprint: x509test.Thumbprint(spare)},
	})
	signed := add("signed", hub.Authentication{Type: hub.AuthAuthority})
	pinnedModule := hub.Target{DeviceID: deviceID, ModuleID: "pinned"}
	_, err := f.hub.CreateModule(t.Context(), hub.Module{DeviceID: deviceID, ModuleID: "pinned", Authentication: hub.Authentication{
		Type: hub.AuthSelfSigned, X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: x509test.Thumbprint(own)},
	}})
	must(t, err)
	ofSigned := x509test.Issue(t, "signed", ca)
	addr := f.listen()
	tests := map[string]struct {
		certificates []*tls.Certificate
		change       func(*packets.ConnectPacket)
		want         byte
	}{
		"thumbprint":             {[]*tls.Certificate{own}, f.as(pinned, ""), 0},
		"secondary thumbprint":   {[]*tls.Certificate{spare}, f.as(pinned, ""), 0},
		"module's thumbprint":    {[]*tls.Certificate{own}, f.as(pinnedModule, ""), 0},
		"signed by the CA":       {[]*tls.Certificate{ofSigned}, f.as(signed, ""), 0},
		"another certificate":    {[]*tls.Certificate{foreign}, f.as(pinned, ""), 5},
		"no certificate":         {nil, f.as(pinned, ""), 5},
		"of another device":      {[]*tls.Certificate{x509test.Issue(t, "other", ca)}, f.as(signed, ""), 5},
		"of another authority":   {[]*tls.Certificate{x509test.Issue(t, "signed", foreign)}, f.as(signed, ""), 5},
		"device with keys":       {[]*tls.Certificate{own}, f.as(self, ""), 5},
		"token of such a device": {[]*tls.Certificate{own}, f.as(pinned, f.key), 5},
		"token, unasked":         {[]*tls.Certificate{foreign}, f.as(self, f.key), 0},
		"empty password": {[]*tls.Certificate{own}, func(p *packets.ConnectPacket) {
			f.as(pinned, "")(p)
			p.PasswordFlag = true
		}, 0},
		"user name, other host": {[]*tls.Certificate{own}, func(p *packets.ConnectPacket) {
			f.as(pinned, "")(p)
			p.Username = "elsewhere/pinned"
		}, 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := f.dialWith(addr, tt.certificates...)
			c.t = t
			if ack := f.login(c, tt.change); ack.ReturnCode != tt.want {
				t.Errorf("CONNACK %d, want %d", ack.ReturnCode, tt.want)
			}
		})
	}

	c := f.dialWith(addr, own)
	f.login(c, f.as(pinned, ""))
	c.publish(1, "devices/pinned/messages/events/", "x")
	if got := f.nextTelemetry().ApplicationProperties[hub.PropertyAuthMethod]; got != `{"scope":"device","type":"x509","issuer":"iothub","acceptingIpFilterRule":null}` {
		t.Errorf("authentication method %v", got)
	}
}

// wrapped is a connection over another one, such as a WebSocket.
type wrapped struct {
	net.Conn
	below net.Conn
}

func (w wrapped) NetConn() net.Conn { return w.below }

// marked is a connection that wants to know whose it is.
type marked struct {
	net.Conn
	peers chan hub.Target
}

func (m marked) SetPeer(t hub.Target) { m.peers <- t }

// TestPeer looks for who is told whose connection it is, and when.
func TestPeer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	bundle, err := certificates()
	must(t, err)
	for name, wrap := range map[string]func(net.Conn, chan hub.Target) (server net.Conn, client func(net.Conn) net.Conn){
		"itself": func(nc net.Conn, peers chan hub.Target) (net.Conn, func(net.Conn) net.Conn) {
			return marked{nc, peers}, func(nc net.Conn) net.Conn { return nc }
		},
		"below TLS": func(nc net.Conn, peers chan hub.Target) (net.Conn, func(net.Conn) net.Conn) {
			return tls.Server(marked{nc, peers}, bundle.ServerConfig()), func(nc net.Conn) net.Conn {
				return tls.Client(nc, &tls.Config{RootCAs: bundle.Roots(), ServerName: hubName})
			}
		},
		"two below": func(nc net.Conn, peers chan hub.Target) (net.Conn, func(net.Conn) net.Conn) {
			return wrapped{nc, wrapped{nil, marked{nc, peers}}}, func(nc net.Conn) net.Conn { return nc }
		},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			peers := make(chan hub.Target, 2)
			server, client := wrap(theirs, peers)
			done := make(chan struct{})
			go func() {
				defer close(done)
				f.server.ServeConn(t.Context(), server)
			}()
			c := newClient(t, client(ours))
			if ack := f.login(c); ack.ReturnCode != packets.Accepted {
				t.Fatalf("CONNACK %d", ack.ReturnCode)
			}
			select { // told before the CONNACK
			case got := <-peers:
				if got != self {
					t.Errorf("peer %v", got)
				}
			default:
				t.Error("not told")
			}
			c.conn.Close()
			<-done
			if len(peers) != 0 {
				t.Errorf("told again: %v", <-peers)
			}
		})
	}
}
