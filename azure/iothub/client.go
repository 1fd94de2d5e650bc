package iothub

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/job"
)

// DefaultTimeout is how long one call may take when Config doesn't say.
const DefaultTimeout = 30 * time.Second

// Config says which hub to talk to, and as whom. Either ConnectionString or HostName with Credential is required.
type Config struct {
	ConnectionString string                 // of a shared access policy
	HostName         string                 // <hub>.azure-devices.net
	Credential       azcore.TokenCredential // with the roles IoT Hub Data Contributor and IoT Hub Registry Contributor

	HTTPSAddr string         // host:port to connect to instead of port 443 of the hub's host; certificates still name the host
	AMQPSAddr string         // the same instead of port 5671
	RootCAs   *x509.CertPool // nil: those of the system
	Timeout   time.Duration  // of one call with its retries; 0: DefaultTimeout
	Logger    *slog.Logger   // nil: no logs
}

// Client talks to one hub. Its methods may be called concurrently.
type Client struct {
	host     string
	timeout  time.Duration
	log      *slog.Logger
	http     *http.Transport
	pipeline runtime.Pipeline
	amqp     *connector
}

// New returns a client. It connects when it is first used. The error matches job.ErrInvalid.
func New(cfg Config) (*Client, error) {
	auth, err := newAuthenticator(cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{host: auth.hostName(), timeout: cfg.Timeout, log: cfg.Logger}
	if c.timeout <= 0 {
		c.timeout = DefaultTimeout
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	tlsConfig := &tls.Config{RootCAs: cfg.RootCAs, ServerName: c.host, MinVersion: tls.VersionTLS12}
	c.http = newTransport(cfg.HTTPSAddr, tlsConfig)
	c.pipeline = newPipeline(c.http, auth)
	c.amqp = newConnector(cfg.AMQPSAddr, tlsConfig, auth, c.log)
	return c, nil
}

func newAuthenticator(cfg Config) (authenticator, error) {
	const op = "configure the hub client"
	switch {
	case cfg.ConnectionString != "" && cfg.Credential != nil:
		return nil, &job.Error{Op: op, Kind: job.ErrInvalid, Err: errors.New("give a connection string or a credential, not both")}
	case cfg.ConnectionString != "":
		hub, err := credential.ParseHub(cfg.ConnectionString)
		if err != nil {
			return nil, err
		}
		return &policyKey{hub: hub, life: signatureLife}, nil
	case cfg.HostName == "" || cfg.Credential == nil:
		return nil, &job.Error{Op: op, Kind: job.ErrInvalid, Err: errors.New("give a connection string, or a host name and a credential")}
	}
	return &identity{host: cfg.HostName, cred: cfg.Credential}, nil
}

// HostName returns the hub's host name.
func (c *Client) HostName() string { return c.host }

// Close closes all connections and waits for what runs in the background. Calls under way fail.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	c.amqp.close()
	return nil
}
