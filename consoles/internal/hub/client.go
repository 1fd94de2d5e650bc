// Package hub is the cloud side of an IoT hub: counters, device list and device messages, on amenzhinsky/iothub.
package hub

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/amenzhinsky/iothub/common"
	"github.com/amenzhinsky/iothub/iotservice"

	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
	"github.com/hubjobs/hubjobs/consoles/internal/event"
)

// Ports of an IoT hub and of its built-in event stream.
const (
	httpsPort = "443"
	amqpsPort = "5671"
)

const defaultTimeout = 30 * time.Second

// ErrRefused is the kind of error that says that the hub does not accept the credentials for what was asked.
var ErrRefused = errors.New("the hub refused the credentials of the connection string: its policy needs registry read and service connect")

// Options are the settings of a client that have defaults.
type Options struct {
	// Roots are the certificate authorities that the hub's certificate must be signed by; nil for the system's.
	Roots *x509.CertPool
	// HTTPSAddress and AMQPSAddress are dialled in place of the hub's host name, as host:port; empty for the host name at
	// ports 443 and 5671. Certificates are checked against the host name all the same.
	HTTPSAddress, AMQPSAddress string
	// Timeout bounds each request and each step of connecting; 30 seconds if zero.
	Timeout time.Duration
	// Warn takes what the library reports without failing; nil drops it.
	Warn func(error)
}

// Client calls one hub with the rights of a service.
type Client struct {
	key     common.SharedAccessKey
	options Options
	http    *http.Client
	service *iotservice.Client
}

// New returns a client for the hub of a service connection string. It connects when it is used.
func New(connectionString string, options *Options) (*Client, error) {
	key, err := iotservice.ParseConnectionString(connectionString)
	if err != nil {
		return nil, fmt.Errorf("hub connection string: %w", err)
	}
	c := &Client{key: *key}
	if options != nil {
		c.options = *options
	}
	if c.options.Timeout <= 0 {
		c.options.Timeout = defaultTimeout
	}
	if c.options.Warn == nil {
		c.options.Warn = func(error) {}
	}
	c.http = c.newHTTPClient()
	c.service, err = iotservice.New(key, iotservice.WithHTTPClient(c.http), iotservice.WithLogger(warnings(c.options.Warn)))
	if err != nil {
		return nil, fmt.Errorf("hub client: %w", err)
	}
	return c, nil
}

// newHTTPClient returns a client that dials the address of the settings but speaks to, and checks the certificate of, the
// hub's host name.
func (c *Client) newHTTPClient() *http.Client {
	address := endpoint.Address(c.options.HTTPSAddress, c.key.HostName, httpsPort)
	return &http.Client{
		Timeout: c.options.Timeout,
		Transport: &http.Transport{
			TLSClientConfig: endpoint.TLS(c.options.Roots, c.key.HostName),
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var dialer net.Dialer
				return dialer.DialContext(ctx, network, address)
			},
		},
	}
}

// Close closes the connections that are kept for further requests.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Host returns the hub's host name.
func (c *Client) Host() string { return c.key.HostName }

// Statistics returns the hub's counters.
func (c *Client) Statistics(ctx context.Context) (event.Statistics, error) {
	devices, err := c.service.DeviceStats(ctx)
	if err != nil {
		return event.Statistics{}, fmt.Errorf("device statistics: %w", classify(err))
	}
	service, err := c.service.ServiceStats(ctx)
	if err != nil {
		return event.Statistics{}, fmt.Errorf("service statistics: %w", classify(err))
	}
	return event.Statistics{
		Connected: int(service.ConnectedDeviceCount),
		Total:     int(devices.TotalDeviceCount),
		Enabled:   int(devices.EnabledDeviceCount),
		Disabled:  int(devices.DisabledDeviceCount),
	}, nil
}

// allDevices asks for the twins, which other than the identities come in pages and without keys.
const allDevices = "SELECT * FROM devices"

// Devices calls yield for each device identity of the hub.
func (c *Client) Devices(ctx context.Context, yield func(event.Device)) error {
	err := c.service.QueryDevices(ctx, allDevices, func(twin map[string]any) error {
		yield(fromTwin(twin))
		return nil
	})
	if err != nil {
		return fmt.Errorf("list devices: %w", classify(err))
	}
	return nil
}

// fromTwin picks the state of the device out of its twin (IoT Hub docs: "Understand and use device twins").
func fromTwin(twin map[string]any) event.Device {
	text := func(field string) string {
		value, _ := twin[field].(string)
		return value
	}
	waiting, _ := twin["cloudToDeviceMessageCount"].(float64)
	return event.Device{
		DeviceID:        text("deviceId"),
		ConnectionState: text("connectionState"),
		Status:          text("status"),
		LastActivity:    parseTime(text("lastActivityTime")),
		Waiting:         int(waiting),
	}
}

// parseTime reads the hub's times, some of which have no zone and are UTC. "Never" is the first of January of the year 1,
// which is Go's zero time; what is no time counts as never.
func parseTime(s string) time.Time {
	t, err := time.Parse("2006-01-02T15:04:05", strings.TrimSuffix(s, "Z"))
	if err != nil {
		return time.Time{}
	}
	return t
}

// classify names the errors that mean the same for all requests.
func classify(err error) error {
	var request *iotservice.RequestError
	if errors.As(err, &request) && (request.Code == http.StatusUnauthorized || request.Code == http.StatusForbidden) {
		return fmt.Errorf("%w (%w)", ErrRefused, err)
	}
	return endpoint.Explain(err)
}

// warnings is the library's logger: it keeps warnings and errors, and drops the rest, which includes the tokens in the
// headers of requests.
type warnings func(error)

func (w warnings) Errorf(format string, values ...any) { w(fmt.Errorf(format, values...)) }
func (w warnings) Warnf(format string, values ...any)  { w(fmt.Errorf(format, values...)) }
func (w warnings) Infof(string, ...any)                {}
func (w warnings) Debugf(string, ...any)               {}
