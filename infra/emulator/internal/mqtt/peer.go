package mqtt

import (
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
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
	for nc != nil {
		if c, ok := nc.(interface{ SetPeer(hub.Target) }); ok {
			c.SetPeer(t)
			return
		}
		below, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		nc = below.NetConn()
	}
}
