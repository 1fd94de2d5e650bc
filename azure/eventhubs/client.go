package eventhubs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azeventhubs "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/hubjobs/hubjobs/azure/internal/fault"
	"github.com/hubjobs/hubjobs/job"
)

// DefaultConsumerGroup is the consumer group that every event hub has.
const DefaultConsumerGroup = azeventhubs.DefaultConsumerGroup

const (
	callTimeout  = 30 * time.Second
	closeTimeout = 5 * time.Second
)

// Config says which event hub to read, and as whom. Either ConnectionString or Namespace with Credential is required.
type Config struct {
	ConnectionString string                 // of the built-in endpoint
	Namespace        string                 // host of the built-in endpoint: <name>.servicebus.windows.net
	Credential       azcore.TokenCredential // with the role Azure Event Hubs Data Receiver

	// EventHub is the event hub-compatible name. It is required unless the connection string has an EntityPath.
	EventHub string

	Addr    string         // host:port to connect to instead of the namespace's; certificates still name the namespace
	RootCAs *x509.CertPool // nil: those of the system
	Logger  *slog.Logger   // nil: no logs
}

// Client reads one event hub. Its methods may be called concurrently.
type Client struct {
	open func(consumerGroup string) (*azeventhubs.ConsumerClient, error)
	log  *slog.Logger
}

// New returns a client. It connects when it is used. The error matches job.ErrInvalid.
func New(cfg Config) (*Client, error) {
	open, err := newOpener(cfg)
	if err != nil {
		return nil, &job.Error{Op: "configure the Event Hubs client", Kind: job.ErrInvalid, Err: err}
	}
	c := &Client{open: open, log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// newOpener checks the configuration: opening doesn't connect yet.
func newOpener(cfg Config) (func(string) (*azeventhubs.ConsumerClient, error), error) {
	options := &azeventhubs.ConsumerClientOptions{
		ApplicationID:  "hubjobs",
		CustomEndpoint: cfg.Addr,
		TLSConfig:      &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		RetryOptions: azeventhubs.RetryOptions{
			MaxRetries: 3, RetryDelay: 300 * time.Millisecond, MaxRetryDelay: 5 * time.Second,
		},
	}
	switch {
	case cfg.ConnectionString != "" && cfg.Credential != nil:
		return nil, errors.New("give a connection string or a credential, not both")
	case cfg.ConnectionString == "" && (cfg.Namespace == "" || cfg.EventHub == "" || cfg.Credential == nil):
		return nil, errors.New("give a connection string, or a namespace, an event hub and a credential")
	case cfg.ConnectionString == "":
		return func(group string) (*azeventhubs.ConsumerClient, error) {
			return azeventhubs.NewConsumerClient(cfg.Namespace, cfg.EventHub, group, cfg.Credential, options)
		}, nil
	}
	properties, err := azeventhubs.ParseConnectionString(cfg.ConnectionString)
	if err != nil {
		return nil, err // it names keys, not values
	}
	name := cfg.EventHub
	switch path := properties.EntityPath; {
	case path == nil && name == "":
		return nil, errors.New("the connection string has no EntityPath and no event hub is named")
	case path != nil && name != "" && *path != name:
		return nil, errors.New("the connection string's EntityPath is another event hub than the one named")
	case path != nil:
		name = "" // the SDK refuses to be told twice
	}
	return func(group string) (*azeventhubs.ConsumerClient, error) {
		return azeventhubs.NewConsumerClientFromConnectionString(cfg.ConnectionString, name, group, options)
	}, nil
}

// Partitions returns the IDs of the event hub's partitions.
func (c *Client) Partitions(ctx context.Context) ([]string, error) {
	sdk, err := c.open(DefaultConsumerGroup)
	if err != nil {
		return nil, classify("list the partitions", err)
	}
	defer c.closeSDK(ctx, sdk)
	return c.partitions(ctx, sdk)
}

func (c *Client) partitions(ctx context.Context, sdk *azeventhubs.ConsumerClient) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	properties, err := sdk.GetEventHubProperties(ctx, nil)
	if err != nil {
		return nil, classify("list the partitions", err)
	}
	return properties.PartitionIDs, nil
}

// closeSDK closes one of the SDK's clients. azeventhubs v2.0.2 leaves a goroutine of a consumer client's management link
// behind, which ends when the link's token would be renewed, after some minutes.
func (c *Client) closeSDK(ctx context.Context, sdk interface{ Close(context.Context) error }) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := sdk.Close(ctx); err != nil {
		c.log.DebugContext(ctx, "the Event Hubs client was not closed properly", "error", err)
	}
}

// codes are the SDK's own classification. Its errors hide their cause, so there is nothing more to find in them.
var codes = map[azeventhubs.ErrorCode]error{
	azeventhubs.ErrorCodeUnauthorizedAccess: job.ErrUnauthorized,
	azeventhubs.ErrorCodeConnectionLost:     job.ErrUnavailable,
	azeventhubs.ErrorCodeOwnershipLost:      job.ErrUnavailable,
}

func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	var sdk *azeventhubs.Error
	if errors.As(err, &sdk) {
		if kind, ok := codes[sdk.Code]; ok {
			return fault.Of(op, kind, err)
		}
	}
	return fault.Wrap(op, err, nil)
}
