package hub

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// AuthMethod is how the device of a session proved who it is. The hub stamps it
// on messages.
type AuthMethod struct {
	// Scope is device for the device's own key, hub for a policy.
	Scope string
	// Type is sas, symkey or x509.
	Type string
}

// json is the text of the property iothub-connection-auth-method (IoT Hub docs:
// "Create and read IoT Hub messages").
func (a AuthMethod) json() string {
	text, err := json.Marshal(struct {
		Scope    string  `json:"scope"`
		Type     string  `json:"type"`
		Issuer   string  `json:"issuer"`
		IPFilter *string `json:"acceptingIpFilterRule"`
	}{a.Scope, a.Type, "iothub", nil})
	if err != nil {
		return "" // strings only: it never fails
	}
	return string(text)
}

// ConnectOptions describe a connection.
type ConnectOptions struct {
	// Auth defaults to scope device, type sas.
	Auth AuthMethod
	// Transient sessions, of HTTP requests, don't show as connected and don't
	// replace the device's connection.
	Transient bool
}

// Session is one connection of a device that has proved who it is. It is safe
// for concurrent use.
type Session struct {
	device     *device
	opts       ConnectOptions
	authMethod string
	generation string
	done       chan struct{}

	mu        sync.Mutex // guards all below
	err       error
	consumers map[*broker.Consumer]struct{}
	deliver   func(MethodRequest)
	calls     map[string]chan<- MethodResult
}

// Connect opens a session, to be closed by the caller; CodeDeviceNotFound, or
// CodeUnauthorized if the device is disabled. It ends the device's earlier
// session with CodeConnectionReplaced.
func (h *Hub) Connect(ctx context.Context, deviceID string, opts ConnectOptions) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d, err := h.find(deviceID)
	if err != nil {
		return nil, err
	}
	if opts.Auth == (AuthMethod{}) {
		opts.Auth = AuthMethod{Scope: "device", Type: "sas"}
	}
	s := &Session{device: d, opts: opts, authMethod: opts.Auth.json(), done: make(chan struct{})}
	earlier, err := d.attach(s)
	if err != nil {
		return nil, err
	}
	if earlier != nil {
		earlier.end(refuse(CodeConnectionReplaced, "device %q opened another connection", deviceID))
	}
	return s, nil
}

// attach makes s the session of the device and returns the one before.
func (d *device) attach(s *Session) (*Session, error) {
	// The hub's mutex is held so that no session is opened behind Close.
	d.hub.mu.RLock()
	defer d.hub.mu.RUnlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.hub.closed:
		return nil, refuse(CodeServiceUnavailable, "the hub is shutting down")
	case !d.exists:
		return nil, notFound(d.id)
	case d.identity.Status != StatusEnabled:
		return nil, refuse(CodeUnauthorized, "device %q is disabled", d.id)
	}
	s.generation = d.identity.GenerationID
	d.touch()
	if s.opts.Transient {
		return nil, nil
	}
	earlier := d.session
	d.session = s
	if earlier == nil {
		d.stateUpdated = time.Now().UTC()
		d.hub.connected.Add(1)
	}
	return earlier, nil
}

// detach ends s being the session of the device, unless another one took over.
func (d *device) detach(s *Session) {
	d.mu.Lock()
	current := d.session == s
	if current {
		d.session = nil
		d.stateUpdated = time.Now().UTC()
		d.hub.connected.Add(-1)
	}
	d.mu.Unlock()
	if current {
		d.recordActivity()
	}
}

// DeviceID returns the device's ID.
func (s *Session) DeviceID() string { return s.device.id }

// GenerationID returns the device's generation ID.
func (s *Session) GenerationID() string { return s.generation }

// Done is closed when the session has ended: by Close, by another connection of
// the device, because the device was disabled or deleted, or with the hub.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why the session ended: nil before, errSessionClosed after Close.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// ErrSessionClosed is the reason of a session that was ended by Close.
var ErrSessionClosed = errors.New("session closed")

// Close ends the session. Messages that its consumers hold become available
// again.
func (s *Session) Close() { s.end(ErrSessionClosed) }

func (s *Session) end(cause error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = cause
	consumers := s.consumers
	s.consumers, s.deliver, s.calls = nil, nil, nil
	close(s.done)
	s.mu.Unlock()
	for c := range consumers {
		c.Close()
	}
	s.device.detach(s)
}

// Touch notes activity of the device other than a message.
func (s *Session) Touch() { s.device.touch() }

// Queue returns the device's cloud-to-device queue, where the messages that the
// session's consumers receive are settled.
func (s *Session) Queue() (*broker.Queue, error) { return s.device.c2d() }

// Receive returns a consumer of the device's cloud-to-device queue. It ends
// with the session, and may be closed before.
func (s *Session) Receive(opts broker.ConsumerOptions) (*broker.Consumer, error) {
	q, err := s.device.c2d()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	c := q.NewConsumer(opts)
	if s.consumers == nil {
		s.consumers = make(map[*broker.Consumer]struct{})
	}
	s.consumers[c] = struct{}{}
	return c, nil
}
