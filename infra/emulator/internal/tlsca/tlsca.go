// Package tlsca makes the certificates of a local hub: a certificate authority
// of its own and a server certificate signed by it, made once and kept.
//
// SDKs check the names in a certificate and nothing lets them skip that, so a
// local hub needs a real chain; its users put the CA in their trust roots.
package tlsca

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 397 * 24 * time.Hour // the longest that current TLS clients take
	// renewBefore is how long before its end a certificate is made anew.
	renewBefore = 30 * 24 * time.Hour
	// backdate covers clients whose clock is behind.
	backdate = time.Hour
)

// Names of the files in the directory. Keys have mode 0600.
const (
	CAFile        = "ca.pem"
	caKeyFile     = "ca-key.pem"
	serverFile    = "server.pem"
	serverKeyFile = "server-key.pem"
)

// Options tune Load. The zero value is ready to use.
type Options struct {
	// Names are further names and IP addresses of the server, beside localhost,
	// 127.0.0.1 and ::1.
	Names []string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Bundle is what a TLS server and its clients need.
type Bundle struct {
	// Certificate is the server's: chain and private key.
	Certificate tls.Certificate
	// CAPEM is the CA's certificate, for the trust roots of clients.
	CAPEM []byte
	// CAPath is the file that holds CAPEM; empty when nothing is kept.
	CAPath string
}

// Load returns the certificates kept in dir, and first makes those that are
// missing, near their end, or lack a name. The CA outlives changes of names, so
// that clients need to be told to trust it once. With an empty dir everything
// is made anew and kept in memory alone.
//
// Files that are there but unreadable or damaged are an error, never replaced.
func Load(dir string, opts *Options) (*Bundle, error) {
	if opts == nil {
		opts = &Options{}
	}
	now := time.Now
	if opts.Now != nil {
		now = opts.Now
	}
	m := maker{files: files{dir: dir}, names: serverNames(opts.Names), now: now()}
	ca, err := m.ca()
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	server, err := m.server(ca)
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	b := &Bundle{Certificate: server.tls(), CAPEM: encodeCertificate(ca.cert)}
	if dir != "" {
		b.CAPath = filepath.Join(dir, CAFile)
	}
	return b, nil
}

// ServerConfig returns a TLS server configuration with the certificate. It asks
// clients for a certificate of their own and takes whatever they have, or none:
// a device may show a self-signed one, and only the hub knows which device it is
// good for (IoT Hub docs: "Authenticate identities with X.509 certificates").
func (b *Bundle) ServerConfig() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{b.Certificate},
		ClientAuth:   tls.RequestClientCert,
		MinVersion:   tls.VersionTLS12,
	}
}

// Roots returns a pool with the CA alone, for clients in the same process.
func (b *Bundle) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b.CAPEM)
	return pool
}

// serverNames is the sorted set of what the certificate must be good for.
func serverNames(extra []string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	for _, name := range extra {
		if name = strings.ToLower(strings.TrimSpace(name)); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// maker makes and keeps pairs for one call of Load.
type maker struct {
	files files
	names []string
	now   time.Time
}

func (m maker) ca() (pair, error) {
	ca, found, err := m.files.load(CAFile, caKeyFile)
	if err != nil {
		return pair{}, err
	}
	if found && m.lasts(ca.cert) {
		return ca, nil
	}
	if ca, err = newCA(m.now); err != nil {
		return pair{}, err
	}
	return ca, m.files.save(CAFile, caKeyFile, ca)
}

func (m maker) server(ca pair) (pair, error) {
	server, found, err := m.files.load(serverFile, serverKeyFile)
	if err != nil {
		return pair{}, err
	}
	if found && m.serves(server.cert, ca.cert) {
		return server, nil
	}
	if server, err = newServer(m.now, m.names, ca); err != nil {
		return pair{}, err
	}
	return server, m.files.save(serverFile, serverKeyFile, server)
}

func (m maker) lasts(cert *x509.Certificate) bool {
	return !m.now.Before(cert.NotBefore) && m.now.Add(renewBefore).Before(cert.NotAfter)
}

// serves reports whether a kept server certificate is still what Load would
// make. Names that are no longer wanted also make it anew.
func (m maker) serves(cert, ca *x509.Certificate) bool {
	have := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		have = append(have, ip.String())
	}
	slices.Sort(have)
	return m.lasts(cert) && slices.Equal(have, canonical(m.names)) && cert.CheckSignatureFrom(ca) == nil
}

// canonical rewrites IP addresses as net.IP prints them.
func canonical(names []string) []string {
	out := make([]string, 0, len(names))
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			name = ip.String()
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
