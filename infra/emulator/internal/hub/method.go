package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"
)

// Timeouts of direct methods (IoT Hub docs: "Understand and invoke direct
// methods from IoT Hub").
const (
	DefaultMethodResponseTimeout = 30 * time.Second
	MinMethodResponseTimeout     = 5 * time.Second
	MaxMethodTimeout             = 300 * time.Second
	// MaxMethodPayload is the largest payload in bytes, either way.
	MaxMethodPayload = 128 << 10
)

// MethodCall is a call of a direct method.
type MethodCall struct {
	Name string
	// Payload is JSON; nil when the caller gave none.
	Payload json.RawMessage
	// ResponseTimeout is how long the device may take; 0 means 30 s.
	ResponseTimeout time.Duration
	// ConnectTimeout is how long to wait for the device to come; 0 means that
	// an absent device fails the call at once.
	ConnectTimeout time.Duration
}

// CloudToDeviceMethod is a call as the REST API and jobs have it (swagger
// iothubservice 2020-09-30).
type CloudToDeviceMethod struct {
	Name            string          `json:"methodName"`
	Payload         json.RawMessage `json:"payload"`
	ResponseTimeout int             `json:"responseTimeoutInSeconds"`
	ConnectTimeout  int             `json:"connectTimeoutInSeconds"`
}

// Call returns the call in the hub's own form.
func (m CloudToDeviceMethod) Call() MethodCall {
	return MethodCall{
		Name:            m.Name,
		Payload:         m.Payload,
		ResponseTimeout: methodTimeout(m.ResponseTimeout),
		ConnectTimeout:  methodTimeout(m.ConnectTimeout),
	}
}

// methodTimeout keeps numbers that are far too large from turning into small ones.
func methodTimeout(seconds int) time.Duration {
	const limit = 1 << 30
	return time.Duration(max(-limit, min(seconds, limit))) * time.Second
}

// MethodResult is the device's answer. Its status is the device's own business.
type MethodResult struct {
	Status  int             `json:"status"`
	Payload json.RawMessage `json:"payload"`
}

// MethodRequest is a call as the device gets it.
type MethodRequest struct {
	// RequestID goes back with the response: lower-case hexadecimal.
	RequestID string
	Name      string
	// Payload is nil when the caller gave none.
	Payload json.RawMessage
}

// Check returns what the hub would refuse of the call whatever the device:
// CodeArgumentInvalid, CodeMessageTooLarge, CodeFormatError.
func (c MethodCall) Check() error {
	c.ResponseTimeout = cmp.Or(c.ResponseTimeout, DefaultMethodResponseTimeout)
	switch {
	case c.Name == "":
		return Errorf(CodeArgumentInvalid, "method name is missing")
	case c.ResponseTimeout < MinMethodResponseTimeout || c.ResponseTimeout > MaxMethodTimeout:
		return Errorf(CodeArgumentInvalid, "response timeout %s is not between %s and %s", c.ResponseTimeout, MinMethodResponseTimeout, MaxMethodTimeout)
	case c.ConnectTimeout < 0 || c.ConnectTimeout > MaxMethodTimeout:
		return Errorf(CodeArgumentInvalid, "connect timeout %s is not between 0s and %s", c.ConnectTimeout, MaxMethodTimeout)
	case len(c.Payload) > MaxMethodPayload:
		return Errorf(CodeMessageTooLarge, "method payload has %d bytes of at most %d", len(c.Payload), MaxMethodPayload)
	case c.Payload != nil && !json.Valid(c.Payload):
		return Errorf(CodeFormatError, "method payload is not JSON")
	}
	return nil
}

// InvokeMethod calls a method of a device or module and waits for the answer.
//
// Errors: CodeDeviceNotFound, CodeModuleNotFound, CodeDeviceNotOnline,
// CodeConnectionClosed when the device went away, CodeGatewayTimeout, and those
// of Check.
func (h *Hub) InvokeMethod(ctx context.Context, t Target, call MethodCall) (MethodResult, error) {
	if err := h.admit(OpMethod, t, len(call.Payload)); err != nil {
		return MethodResult{}, err
	}
	if err := call.Check(); err != nil {
		return MethodResult{}, err
	}
	call.ResponseTimeout = cmp.Or(call.ResponseTimeout, DefaultMethodResponseTimeout)
	p, err := h.principal(t)
	if err != nil {
		return MethodResult{}, err
	}
	connectBy := time.Now().Add(call.ConnectTimeout)
	for {
		s, err := p.awaitMethods(ctx, time.Until(connectBy))
		if err != nil {
			return MethodResult{}, err
		}
		if id, answer := s.begin(call); answer != nil {
			result, err := s.await(ctx, call, id, answer)
			if err == nil {
				h.meter(OpMethod, t, len(result.Payload))
			}
			return result, err
		}
		// The session ended or gave up methods in between: wait for the next.
	}
}

// awaitMethods waits until a session of the principal handles methods.
func (p *principal) awaitMethods(ctx context.Context, timeout time.Duration) (*Session, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		p.mu.Lock()
		s := p.session
		exists := p.exists
		if p.methodsAwaited == nil {
			p.methodsAwaited = make(chan struct{})
		}
		changed := p.methodsAwaited
		p.mu.Unlock()
		switch {
		case !exists:
			return nil, notFound(p.Target)
		case s != nil && s.handlesMethods():
			return s, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, Errorf(CodeDeviceNotOnline, "%s is not connected, or not listening for methods", p.Target)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Session) handlesMethods() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deliver != nil
}

// begin hands a call to the device. It returns the call's ID and where the
// answer will come, or nil if the session doesn't handle methods.
func (s *Session) begin(call MethodCall) (string, <-chan MethodResult) {
	s.mu.Lock()
	deliver := s.deliver
	if deliver == nil {
		s.mu.Unlock()
		return "", nil
	}
	id := fmt.Sprintf("%x", rand.Uint64())
	answer := make(chan MethodResult, 1)
	if s.calls == nil {
		s.calls = make(map[string]chan<- MethodResult)
	}
	s.calls[id] = answer
	s.mu.Unlock()
	deliver(MethodRequest{RequestID: id, Name: call.Name, Payload: call.Payload})
	return id, answer
}

func (s *Session) await(ctx context.Context, call MethodCall, id string, answer <-chan MethodResult) (MethodResult, error) {
	defer s.forgetCall(id)
	timer := time.NewTimer(call.ResponseTimeout)
	defer timer.Stop()
	select {
	case result := <-answer:
		return result, nil
	case <-timer.C:
		return MethodResult{}, Errorf(CodeGatewayTimeout, "%s didn't answer method %q within %s", s.principal.Target, call.Name, call.ResponseTimeout)
	case <-s.done:
		return MethodResult{}, Errorf(CodeConnectionClosed, "%s disconnected before it answered method %q", s.principal.Target, call.Name)
	case <-ctx.Done():
		return MethodResult{}, ctx.Err()
	}
}

func (s *Session) forgetCall(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, id)
}

// HandleMethods makes deliver the way to give the session method calls, until
// the session ends or it is called with nil. deliver must not block.
func (s *Session) HandleMethods(deliver func(MethodRequest)) {
	s.mu.Lock()
	if s.err == nil {
		s.deliver = deliver
	}
	s.mu.Unlock()
	p := s.principal
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakeMethods()
}

// wakeMethods makes calls that wait for a session look again. The caller holds
// mu.
func (p *principal) wakeMethods() {
	if p.methodsAwaited != nil {
		close(p.methodsAwaited)
		p.methodsAwaited = nil
	}
}

// RespondMethod takes the device's answer. One to an unknown request, such as a
// late one, is ignored.
func (s *Session) RespondMethod(requestID string, result MethodResult) {
	s.Touch()
	s.mu.Lock()
	answer := s.calls[requestID]
	delete(s.calls, requestID)
	s.mu.Unlock()
	if answer != nil {
		answer <- result // has room for its one answer
	}
}
