package iotdevice

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/job"
)

const (
	// apiVersion is the newest stable version of the device API (azure-iot-sdk-node, azure-iot-device-mqtt).
	apiVersion = "2021-04-12"

	connectTimeout = 30 * time.Second
	writeTimeout   = 15 * time.Second
	// ackTimeout exceeds the delays of traffic shaping (IoT Hub docs, "IoT Hub quotas and throttling").
	ackTimeout = time.Minute
	// disconnectTimeout is how long a DISCONNECT may take to be written.
	disconnectTimeout = time.Second
)

var (
	errLost  = errors.New("the connection was lost")
	errNoAck = errors.New("the hub did not acknowledge in time")
)

// connection is one MQTT connection, from CONNECT until it is lost or closed.
type connection struct {
	mqtt    mqtt.Client
	device  credential.Device
	opened  time.Time
	expires time.Time // of the token

	publishing *tracker
	handling   *tracker

	failOnce sync.Once
	lost     chan struct{} // closed by fail
	reason   error         // why; read after lost is closed

	refusedOnce sync.Once
	refused     chan struct{} // closed by refuse: Handle failed, and nothing more is handled here
}

// arrival is a message and the connection that it came over.
type arrival struct {
	conn    *connection
	message mqtt.Message
}

// connect opens a connection and subscribes. Messages go to arrivals from the first moment: with a persistent session
// the hub may send them before the subscription is confirmed.
func connect(ctx context.Context, device credential.Device, o Options, arrivals *queue[arrival]) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	op := "connect device " + device.DeviceID
	c := &connection{
		device: device, opened: time.Now(),
		expires:    time.Now().Add(o.TokenLifetime).Truncate(time.Second), // which is how a token says it
		publishing: newTracker(), handling: newTracker(), lost: make(chan struct{}), refused: make(chan struct{}),
	}
	token, err := device.Token(c.expires)
	if err != nil {
		return nil, err
	}
	settings := c.clientOptions(o, token, arrivals)
	keep := func() bool { return true }
	settings.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		conn, err := dial(ctx, device, o)
		if err != nil {
			return nil, err
		}
		// The handshake that follows knows nothing of ctx.
		keep = context.AfterFunc(ctx, func() { _ = conn.Close() })
		return deadlineConn{conn}, nil
	})
	c.mqtt = mqtt.NewClient(settings)
	handshake := c.mqtt.Connect()
	<-handshake.Done() // soon after ctx at the latest: the network connection ends with it until it may be kept
	if err := handshake.Error(); err != nil || !keep() {
		c.close()
		return nil, connectError(ctx, op, err)
	}
	if err := c.subscribe(ctx, o); err != nil {
		c.close()
		return nil, connectError(ctx, op, err)
	}
	return c, nil
}

func (c *connection) clientOptions(o Options, token string, arrivals *queue[arrival]) *mqtt.ClientOptions {
	s := mqtt.NewClientOptions()
	s.AddBroker("tls://" + address(c.device, o))
	s.SetProtocolVersion(4) // said explicitly, or paho tries MQTT 3.1 after every refusal
	s.SetClientID(c.device.DeviceID)
	s.SetUsername(c.device.HostName + "/" + c.device.DeviceID + "/?api-version=" + apiVersion)
	s.SetPassword(token)
	s.SetCleanSession(false)
	s.SetAutoReconnect(false)
	s.SetAutoAckDisabled(true)
	s.SetKeepAlive(o.KeepAlive)
	s.SetConnectTimeout(connectTimeout)
	s.SetWriteTimeout(writeTimeout)
	s.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { arrivals.push(arrival{c, m}) })
	s.SetConnectionLostHandler(func(_ mqtt.Client, err error) { c.fail(err) })
	return s
}

// address returns the host:port to dial.
func address(device credential.Device, o Options) string {
	switch {
	case o.Addr != "":
		return o.Addr
	case device.Gateway == "":
		return net.JoinHostPort(device.HostName, "8883") // MQTT over TLS (IANA)
	}
	if _, _, err := net.SplitHostPort(device.Gateway); err == nil {
		return device.Gateway
	}
	return net.JoinHostPort(device.Gateway, "8883")
}

func dial(ctx context.Context, device credential.Device, o Options) (net.Conn, error) {
	name := device.HostName
	if device.Gateway != "" {
		name = device.Gateway
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
	}
	d := tls.Dialer{Config: &tls.Config{RootCAs: o.RootCAs, ServerName: name, MinVersion: tls.VersionTLS12}}
	return d.DialContext(ctx, "tcp", address(device, o))
}

// deadlineConn bounds every write: paho does so for PUBLISH only, and a peer that has stopped reading would block its
// keep-alive too.
type deadlineConn struct{ net.Conn }

func (c deadlineConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// subscribe asks for what the options handle. It is done on every connection: the hub may have lost the session.
func (c *connection) subscribe(ctx context.Context, o Options) error {
	filters := make(map[string]byte)
	if o.Handle != nil {
		filters[topicDevicebound(c.device.DeviceID)+"#"] = 1
	}
	if o.Method != nil {
		filters[topicMethods+"#"] = 0
	}
	for filter, qos := range filters {
		t, err := await(ctx, c, func() *mqtt.SubscribeToken {
			return c.mqtt.Subscribe(filter, qos, nil).(*mqtt.SubscribeToken)
		})
		if err != nil {
			return err
		}
		if granted := t.Result()[filter]; granted > 1 { // 0x80: failure (MQTT 3.1.1 §3.9.3)
			return fmt.Errorf("the hub refused the subscription to %s", filter)
		}
	}
	return nil
}

// publish sends one message at QoS 1 and waits for its PUBACK, for as long as timeout.
func (c *connection) publish(ctx context.Context, timeout time.Duration, topic string, payload []byte) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := await(limited, c, func() mqtt.Token { return c.mqtt.Publish(topic, 1, false, payload) })
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return errNoAck
	}
	return err
}

// await starts an exchange and waits until it is done, the connection is lost, or ctx ends. paho may block for the
// write timeout when the connection breaks while it starts, so it gets a goroutine.
func await[T mqtt.Token](ctx context.Context, c *connection, start func() T) (t T, err error) {
	started := make(chan T, 1)
	go func() { started <- start() }()
	select {
	case t = <-started:
	case <-c.lost:
		return t, errLost
	case <-ctx.Done():
		return t, ctx.Err()
	}
	select {
	case <-t.Done():
		return t, t.Error()
	case <-c.lost:
		return t, errLost
	case <-ctx.Done():
		return t, ctx.Err()
	}
}

// fail ends the connection's use; the first reason counts.
func (c *connection) fail(reason error) {
	c.failOnce.Do(func() {
		c.reason = reason
		close(c.lost)
	})
}

// refuse keeps everything that has not been handled at the hub until the next connection.
func (c *connection) refuse() { c.refusedOnce.Do(func() { close(c.refused) }) }

func (c *connection) isRefused() bool {
	select {
	case <-c.refused:
		return true
	default:
		return false
	}
}

func (c *connection) open() bool {
	select {
	case <-c.lost:
		return false
	default:
		return c.mqtt.IsConnectionOpen()
	}
}

// close sends DISCONNECT when there is someone to send it to, and closes the network connection.
func (c *connection) close() {
	c.mqtt.Disconnect(uint(disconnectTimeout / time.Millisecond))
	c.fail(errLost)
}

// connectError classifies why there is no connection.
func connectError(ctx context.Context, op string, err error) error {
	kind := job.ErrUnavailable
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword), errors.Is(err, packets.ErrorRefusedNotAuthorised):
		kind = job.ErrUnauthorized
		err = fmt.Errorf("the hub refused the device's key, or there is no such enabled device (%w)", err)
	case errors.Is(err, packets.ErrorRefusedBadProtocolVersion), errors.Is(err, packets.ErrorRefusedIDRejected):
		kind = job.ErrInvalid
	case errors.Is(err, packets.ErrorRefusedServerUnavailable):
		kind = job.ErrThrottled
	}
	return &job.Error{Op: op, Kind: kind, Err: err}
}
