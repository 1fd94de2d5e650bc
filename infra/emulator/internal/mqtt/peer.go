package mqtt

import (
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/netconn"
)

// peerCertificates returns the certificates that the client showed in its TLS
// handshake, its own first; none without TLS. The connection is a *tls.Conn or,
// for a WebSocket, one that answers for the TLS connection below it.
func peerCertificates(nc net.Conn) []*x509.Certificate {
	if c, ok := nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		return c.ConnectionState().PeerCertificates
	}
	return nil
}

// identify tells the connection, or one below it, whose it is, if it wants to
// know. A listener that breaks the connections of one device in a test does.
func identify(nc net.Conn, t hub.Target) {
	if c, ok := netconn.As[interface{ SetPeer(hub.Target) }](nc); ok {
		c.SetPeer(t)
	}
}
