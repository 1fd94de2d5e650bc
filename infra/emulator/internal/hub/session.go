package hub

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// AuthMethod is how the device or module of a session proved who it is. The hub
// stamps it on messages.
type AuthMethod struct {
	// Scope is device or module for the identity's own key or certificate, hub
	// for a policy.
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

// ByToken is how whoever showed a token proved who it is.
func ByToken(c sas.Claims) AuthMethod {
	scope := Target{DeviceID: c.DeviceID, ModuleID: c.ModuleID}.scope()
	if c.Policy != "" {
		scope = "hub"
	}
	return AuthMethod{Scope: scope, Type: "sas"}
}

// ConnectOptions describe a connection.
type ConnectOptions struct {
	// ModuleID makes the session one of a module of the device.
	ModuleID string
	// Auth defaults to type sas, with scope device or module.
	Auth AuthMethod
	// Transient sessions, of HTTP requests, don't show as connected and don't
	// replace the device's connection.
	Transient bool
	// OnEnd, if not nil, is called once when the session has ended, with the
	// reason, possibly before Connect returns. It must not block.
	OnEnd func(error)
}

// Session is one connection of a device or module that has proved who it is. It
// is safe for concurrent use.
type Session struct {
	principal  *principal
	opts       ConnectOptions
	authMethod string
	generation string
	stamps     map[string]any // on its messages; not to be modified
	events     string         // address that its messages are sent to
	done       chan struct{}

	mu        sync.Mutex // guards all below
	err       error
	consumers map[*broker.Consumer]struct{}
	deliver   func(MethodRequest)
	desired   func(patch []byte, version int64)
	calls     map[string]chan<- MethodResult
}

// Connect opens a session, to be closed by the caller. It ends the earlier
// session of the same device or module with CodeConnectionReplaced.
//
// Errors: CodeDeviceNotFound, CodeModuleNotFound, CodeUnauthorized if the device
// is disabled.
func (h *Hub) Connect(ctx context.Context, deviceID string, opts ConnectOptions) (*Session, error) {
	t := Target{DeviceID: deviceID, ModuleID: opts.ModuleID}
	if !opts.Transient {
		if err := h.admit(OpConnect, t, 0); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := h.principal(t)
	if err != nil {
		return nil, err
	}
	if opts.Auth == (AuthMethod{}) {
		opts.Auth = AuthMethod{Scope: t.scope(), Type: "sas"}
	}
	s := &Session{principal: p, opts: opts, authMethod: opts.Auth.json(), done: make(chan struct{})}
	earlier, err := p.attach(s)
	if err != nil {
		return nil, err
	}
	if earlier != nil {
		earlier.end(Errorf(CodeConnectionReplaced, "%s opened another connection", t))
	}
	return s, nil
}

// attach makes s the session of the principal and returns the one before.
func (p *principal) attach(s *Session) (*Session, error) {
	// The hub's mutex is held so that no session is opened behind Close.
	p.hub.mu.RLock()
	defer p.hub.mu.RUnlock()
	if p.hub.closed {
		return nil, Errorf(CodeServiceUnavailable, "the hub is shutting down")
	}
	if d := p.device; p.ModuleID != "" {
		// Held too, so that no module connects behind the end of its device.
		d.mu.Lock()
		defer d.mu.Unlock()
		if err := d.usable(); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return nil, err
	}
	s.generation = p.identity.GenerationID
	s.stamps, s.events = s.newStamps(), p.address()+"/messages/events"
	if s.opts.Transient {
		return nil, nil
	}
	p.touch()
	earlier := p.session
	p.session = s
	if earlier == nil {
		p.showConnected(1)
	}
	return earlier, nil
}

// showConnected notes a change of the connection state; n is 1 or -1. The caller
// holds mu. Only devices are counted (IoT Hub docs: "Get service statistics").
func (p *principal) showConnected(n int64) {
	p.stateUpdated = time.Now().UTC()
	if p.ModuleID == "" {
		p.hub.connected.Add(n)
	}
}

// detach ends s being the session of the principal, unless another one took
// over.
func (p *principal) detach(s *Session) {
	p.mu.Lock()
	current := p.session == s
	if current {
		p.session = nil
		p.showConnected(-1)
	}
	p.mu.Unlock()
	if current {
		p.recordActivity()
	}
}

// Target returns whose session it is.
func (s *Session) Target() Target { return s.principal.Target }

// Done is closed when the session has ended: by Close, by another connection of
// the device, because the device was disabled or deleted, or with the hub.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why the session ended: nil before, ErrSessionClosed after Close.
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
	s.consumers, s.deliver, s.calls, s.desired = nil, nil, nil, nil
	close(s.done)
	s.mu.Unlock()
	for c := range consumers {
		c.Close()
	}
	s.principal.detach(s)
	if s.opts.OnEnd != nil {
		s.opts.OnEnd(cause)
	}
}

// Touch notes activity other than a message. The requests of transient sessions
// are none (IoT Hub docs: "Understand the identity registry").
func (s *Session) Touch() {
	if !s.opts.Transient {
		s.principal.touch()
	}
}

// Queue returns the device's cloud-to-device queue, where the messages that the
// session's consumers receive are settled. CodeInvalidOperation for a module,
// which has none.
func (s *Session) Queue() (*broker.Queue, error) {
	if s.principal.ModuleID != "" {
		return nil, Errorf(CodeInvalidOperation, "modules don't receive cloud-to-device messages")
	}
	return s.principal.device.c2d()
}

// Receive returns a consumer of the device's cloud-to-device queue. It ends
// with the session, and may be closed before.
func (s *Session) Receive(opts broker.ConsumerOptions) (*broker.Consumer, error) {
	q, err := s.Queue()
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
