// Package device connects a simulated device to a hub over MQTT, on the transport of amenzhinsky/iothub.
//
// The transport is used without the library's client on top of it, for two reasons: the client acknowledges a
// cloud-to-device message before anyone has seen it, and it answers only direct methods whose names were registered.
package device

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amenzhinsky/iothub/common"
	"github.com/amenzhinsky/iothub/iotdevice"
	"github.com/amenzhinsky/iothub/iotdevice/transport/mqtt"
	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
)

// mqttPort is that of MQTT over TLS.
const mqttPort = "8883"

const defaultTimeout = 30 * time.Second

// subscriptionRefused is the return code of a SUBACK for a refused subscription (MQTT 3.1.1 §3.9.3).
const subscriptionRefused = 0x80

// ErrUnconfirmed is the kind of error that says that the hub did not confirm a message in time. The message may still
// arrive: it is sent again when the connection is back.
var ErrUnconfirmed = errors.New("the hub did not confirm the message")

// ErrRefused is the kind of error that says that the hub knows no such device, or not with this key, or has disabled it.
var ErrRefused = errors.New("the hub refused the device: is its identity still registered and enabled?")

// Handlers take what comes from the hub. All are required, and called from goroutines of the session. One that is running
// while the session is closed may return after [Session.Close] did.
type Handlers struct {
	// Message takes a cloud-to-device message, one after the other. The message is acknowledged when it returns.
	Message func(*common.Message)
	// Method answers a direct method call. The payload is valid JSON. Calls may overlap.
	Method func(name string, payload []byte) Answer
	// Up is called each time that the connection to the host is made, before messages come over it.
	Up func(host string)
	// Down is called when the connection was lost, and for each failed attempt to make it again.
	Down func(error)
	// Warning takes what went wrong without ending the session, such as a message that the library could not read.
	Warning func(error)
}

// Options are the settings of a session that have defaults.
type Options struct {
	// Roots are the certificate authorities that the hub's certificate must be signed by; nil for the system's.
	Roots *x509.CertPool
	// Address is dialled in place of the hub's host name, as host:port; empty for the host name at port 8883. The
	// certificate is checked against the host name all the same.
	Address string
	// Timeout bounds connecting with its subscriptions, and each message; 30 seconds if zero.
	Timeout time.Duration
}

// Session is a device's connection. It reconnects by itself until it is closed.
type Session struct {
	id, host  string
	transport *mqtt.Transport
	handlers  Handlers
	outbox    *outbox
	timeout   time.Duration

	ready atomic.Bool // set when the connection is up for the first time; before, Connect returns what goes wrong

	mu     sync.Mutex
	closed bool           // guarded by mu: no call is added to calls any more
	calls  sync.WaitGroup // direct methods that are being answered

	// stop ends what the transport does on reconnecting. The transport keeps the context of the first subscription for
	// all later ones, so this must be the session's and not the caller's.
	stop context.CancelFunc
	done <-chan struct{} // closed by stop
}

// Connect connects the device of the connection string and subscribes to cloud-to-device messages and direct methods. The
// context bounds connecting alone: the session then lasts until it is closed.
func Connect(ctx context.Context, connectionString string, handlers Handlers, options *Options) (*Session, error) {
	if options == nil {
		options = &Options{}
	}
	credentials, err := iotdevice.ParseConnectionString(connectionString)
	if err != nil {
		return nil, fmt.Errorf("device connection string: %w", err)
	}
	if credentials.GetHostName() == "" {
		return nil, errors.New("device connection string: HostName is required")
	}
	lifetime, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Session{
		id: credentials.GetDeviceID(), host: credentials.GetHostName(),
		handlers: handlers, outbox: newOutbox(), timeout: options.Timeout, stop: stop, done: lifetime.Done(),
	}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	if err := s.open(ctx, lifetime, credentials, options); err != nil {
		_ = s.Close() // the error of connecting says more
		return nil, fmt.Errorf("connect %q to %s: %w", s.id, s.host, endpoint.Explain(err))
	}
	return s, nil
}

// open makes the connection and its subscriptions. What must not outlive ctx waits for it; what must is given lifetime.
func (s *Session) open(ctx, lifetime context.Context, credentials *iotdevice.SharedAccessKeyCredentials, options *Options) error {
	subscribed := make(chan error, 1)
	s.transport = mqtt.New(mqtt.WithLogger(warnings(s.handlers.Warning)),
		mqtt.WithClientOptionsConfig(func(o *paho.ClientOptions) { s.configure(lifetime, o, options, subscribed) }))
	connecting, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := s.transport.Connect(connecting, credentials); err != nil {
		return classify(err)
	}
	select {
	case err := <-subscribed:
		if err != nil {
			return fmt.Errorf("subscribe to direct methods: %w", err)
		}
	case <-connecting.Done():
		return fmt.Errorf("subscribe to direct methods: %w", connecting.Err())
	}
	s.ready.Store(true)
	s.handlers.Up(s.host)
	if err := s.subscribeMessages(connecting, lifetime); err != nil {
		return fmt.Errorf("subscribe to cloud-to-device messages: %w", err)
	}
	return nil
}

// configure changes the library's MQTT settings, in which port and certificate authorities are fixed. lifetime ends with
// the session; subscribed gets the outcome of the first subscription to direct methods.
func (s *Session) configure(lifetime context.Context, o *paho.ClientOptions, options *Options, subscribed chan<- error) {
	o.SetTLSConfig(endpoint.TLS(options.Roots, s.host))
	o.Servers = nil
	o.AddBroker("tls://" + endpoint.Address(options.Address, s.host, mqttPort))
	o.SetStore(s.outbox)
	o.SetConnectTimeout(s.timeout)
	o.SetWriteTimeout(s.timeout)
	var first sync.Once
	resubscribe := o.OnConnect
	o.SetOnConnectHandler(func(client paho.Client) {
		if lifetime.Err() != nil {
			client.Disconnect(0) // connected after Connect had given up, so that nobody else would
			return
		}
		report, err := s.reconnected, s.subscribeMethods(client)
		first.Do(func() { report = func(err error) { subscribed <- err } })
		report(err)
		resubscribe(client) // to messages, which so come after the report that the connection is up
	})
	o.SetConnectionNotificationHandler(func(_ paho.Client, n paho.ConnectionNotification) { s.notify(n) })
}

// subscribeMessages subscribes within ctx, by means of a context that goes on after it. See [Session.stop].
func (s *Session) subscribeMessages(ctx, lifetime context.Context) error {
	defer context.AfterFunc(ctx, s.stop)()
	return s.transport.SubscribeEvents(lifetime, messageHandler(s.handlers.Message))
}

func (s *Session) subscribeMethods(client paho.Client) error {
	token := client.Subscribe(methodFilter, atMostOnce, s.onMethod)
	if !token.WaitTimeout(s.timeout) {
		return fmt.Errorf("no answer within %s", s.timeout)
	}
	if err := token.Error(); err != nil {
		return err
	}
	if granted := token.(*paho.SubscribeToken).Result()[methodFilter]; granted == subscriptionRefused {
		return errors.New("refused by the hub")
	}
	return nil
}

func (s *Session) reconnected(err error) {
	if err != nil {
		s.handlers.Warning(fmt.Errorf("subscribe to direct methods: %w", err))
		return
	}
	s.handlers.Up(s.host)
}

func (s *Session) notify(n paho.ConnectionNotification) {
	if !s.ready.Load() {
		return
	}
	switch n := n.(type) {
	case paho.ConnectionNotificationLost:
		s.handlers.Down(n.Reason)
	case paho.ConnectionNotificationFailed:
		s.handlers.Down(endpoint.Explain(classify(n.Reason)))
	}
}

// ID returns the device's ID.
func (s *Session) ID() string { return s.id }

// Host returns the hub's host name.
func (s *Session) Host() string { return s.host }

// Send sends the message and waits until the hub confirmed that it has it, and all that were sent before. While the
// connection is down it waits too.
// The error is of kind [ErrTooLarge] or [ErrUnconfirmed] where that is the reason.
func (s *Session) Send(ctx context.Context, message Outgoing) error {
	m, err := message.libraryMessage()
	if err != nil {
		return err
	}
	sending, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err = s.transport.Send(sending, m); err == nil {
		err = s.outbox.wait(sending)
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("%w within %s", ErrUnconfirmed, s.timeout)
	}
	return err
}

// Close ends the connection and waits for the methods that are being answered.
func (s *Session) Close() error {
	s.ready.Store(false)
	s.stop()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.transport.Close()
	s.calls.Wait()
	return err
}

// classify names the errors that mean the same at every hub.
func classify(err error) error {
	if errors.Is(err, packets.ErrorRefusedNotAuthorised) || errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) {
		return fmt.Errorf("%w (%w)", ErrRefused, err)
	}
	return err
}

// messageHandler is the library's MessageDispatcher.
type messageHandler func(*common.Message)

// Dispatch takes a message; the MQTT client acknowledges it afterwards.
func (h messageHandler) Dispatch(m *common.Message) { h(m) }

// warnings is the library's logger: it keeps the warnings and errors, which often are the only trace of a message that the
// library could not read, and drops the rest.
type warnings func(error)

func (w warnings) Errorf(format string, values ...any) { w(fmt.Errorf(format, values...)) }
func (w warnings) Warnf(format string, values ...any)  { w(fmt.Errorf(format, values...)) }
func (w warnings) Infof(string, ...any)                {}

// Debugf keeps what the library thinks little of: a subscription that could not be made again.
func (w warnings) Debugf(format string, values ...any) {
	if strings.HasPrefix(format, "on-connect error") {
		w(fmt.Errorf(format, values...))
	}
}
