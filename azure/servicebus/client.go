package servicebus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/job"
)

// DefaultTimeout is how long one call may take when Config doesn't say.
const DefaultTimeout = 30 * time.Second

// closeTimeout bounds the farewell to the service.
const closeTimeout = 5 * time.Second

// Config says which namespace to talk to, and as whom. Either ConnectionString or Namespace with Credential is required.
type Config struct {
	ConnectionString string                 // of a shared access policy
	Namespace        string                 // <namespace>.servicebus.windows.net
	Credential       azcore.TokenCredential // with the roles Azure Service Bus Data Sender and Receiver, as needed

	Addr    string         // host:port to connect to instead of the namespace's; certificates still name the namespace
	RootCAs *x509.CertPool // nil: those of the system
	Timeout time.Duration  // of one call with its retries; 0: DefaultTimeout
	Logger  *slog.Logger   // nil: no logs
}

// Client talks to one namespace. Its methods may be called concurrently.
type Client struct {
	sdk     *azservicebus.Client
	timeout time.Duration
	log     *slog.Logger
}

// New returns a client. It connects when it is first used. The error matches job.ErrInvalid.
func New(cfg Config) (*Client, error) {
	options := &azservicebus.ClientOptions{
		ApplicationID:  "hubjobs",
		CustomEndpoint: cfg.Addr,
		TLSConfig:      &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		RetryOptions: azservicebus.RetryOptions{
			MaxRetries: 3, RetryDelay: 300 * time.Millisecond, MaxRetryDelay: 5 * time.Second,
		},
	}
	sdk, err := newSDK(cfg, options)
	if err != nil {
		return nil, &job.Error{Op: "configure the Service Bus client", Kind: job.ErrInvalid, Err: err}
	}
	c := &Client{sdk: sdk, timeout: cfg.Timeout, log: cfg.Logger}
	if c.timeout <= 0 {
		c.timeout = DefaultTimeout
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func newSDK(cfg Config, options *azservicebus.ClientOptions) (*azservicebus.Client, error) {
	switch {
	case cfg.ConnectionString != "" && cfg.Credential != nil:
		return nil, errors.New("give a connection string or a credential, not both")
	case cfg.ConnectionString != "":
		return azservicebus.NewClientFromConnectionString(cfg.ConnectionString, options) // its errors name keys, not values
	case cfg.Namespace == "" || cfg.Credential == nil:
		return nil, errors.New("give a connection string, or a namespace and a credential")
	}
	return azservicebus.NewClient(cfg.Namespace, cfg.Credential, options)
}

// Close closes all connections of the client, with its senders.
func (c *Client) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	return classify("close the Service Bus client", c.sdk.Close(ctx))
}
