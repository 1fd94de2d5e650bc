// Package endpoint says how the consoles reach a hub: whose certificates they trust and which address they dial for a host
// name. An IoT Hub in the cloud needs nothing of this; a hub on the own machine has its own certificate authority and
// listens on other ports.
package endpoint

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
)

// Roots reads the certificates of the PEM file that servers' certificates must be signed by. Without a file it returns
// nil, which means the roots of the operating system.
func Roots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read certificate authority: %s holds no PEM certificate", file)
	}
	return pool, nil
}

// TLS returns a configuration that accepts only a certificate for the host name, whatever address is dialled.
func TLS(roots *x509.CertPool, host string) *tls.Config {
	return &tls.Config{RootCAs: roots, ServerName: HostOnly(host), MinVersion: tls.VersionTLS12}
}

// HostOnly strips the port from "host:port"; a name without a port is returned as it is.
func HostOnly(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// Address returns what to dial: the override if there is one, else the host at the protocol's own port.
func Address(override, host, port string) string {
	if override != "" {
		return override
	}
	return net.JoinHostPort(HostOnly(host), port)
}

// CheckAddress says whether address, if not empty, has the form "host:port". The name is that of the setting, for the error.
func CheckAddress(name, address string) error {
	if address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%s must have the form host:port: %w", name, err)
	}
	return nil
}

// Explain adds to an error of connecting what a person can do about it, where that is known.
func Explain(err error) error {
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) {
		return fmt.Errorf("%w (for a hub with its own certificate authority set --ca-file or EMULATOR_CA_FILE)", err)
	}
	return err
}
