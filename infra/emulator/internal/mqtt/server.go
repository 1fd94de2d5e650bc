package mqtt

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/accept"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

const (
	defaultConnectTimeout = 30 * time.Second
	defaultWriteTimeout   = 30 * time.Second
	// willTimeout is how long the hub may take to store a last will.
	willTimeout = 10 * time.Second
)

// ErrServerClosed is what Serve returns after Close or the end of its context.
var ErrServerClosed = errors.New("MQTT server closed")

// Options tune a Server. The zero value is ready to use.
type Options struct {
	// ConnectTimeout is how long a client may take from connecting to the end
	// of its CONNECT, TLS handshake included; default 30 s.
	ConnectTimeout time.Duration
	// WriteTimeout is how long a write may wait for a client that doesn't read;
	// default 30 s.
	WriteTimeout time.Duration
	// Logger gets connections at level debug and refusals at level info; nil
	// means none.
	Logger *slog.Logger
}

// Server is the MQTT front end of one hub. It serves connections of any number
// of listeners until Close.
type Server struct {
	hub      *hub.Hub
	verifier *sas.Verifier
	opts     Options
	limits   limits
	kept     persistence

	mu        sync.Mutex // guards all below
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]context.CancelCauseFunc
	running   sync.WaitGroup // one for each connection; Add only under mu
}

// NewServer returns a server of the hub that checks tokens with the verifier. A
// nil opts means defaults.
func NewServer(h *hub.Hub, v *sas.Verifier, opts *Options) *Server {
	if opts == nil {
		opts = &Options{}
	}
	s := &Server{
		hub:      h,
		verifier: v,
		opts:     *opts,
		limits: limits{
			connect: maxConnectPacket,
			control: maxControlPacket,
			publish: hub.MaxD2CMessageSize + maxTopic + 4, // and the two lengths before the payload
		},
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[net.Conn]context.CancelCauseFunc),
	}
	s.opts.ConnectTimeout = cmp.Or(opts.ConnectTimeout, defaultConnectTimeout)
	s.opts.WriteTimeout = cmp.Or(opts.WriteTimeout, defaultWriteTimeout)
	if s.opts.Logger == nil {
		s.opts.Logger = slog.New(slog.DiscardHandler)
	}
	s.kept.alive = func(deviceID, generation string) bool {
		id, err := h.GetDevice(deviceID)
		return err == nil && id.GenerationID == generation
	}
	return s
}

// Serve accepts connections, TLS being the listener's business, until ctx ends
// or Close is called, and then returns ErrServerClosed; any other error is the
// listener's. It closes the listener, and its connections end with ctx.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if !s.addListener(l) {
		l.Close()
		return ErrServerClosed
	}
	defer s.removeListener(l)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	warn := func(err error) { s.opts.Logger.Warn("accept MQTT connection", "error", err) }
	for {
		nc, err := accept.Next(ctx, l, warn)
		switch {
		case err == nil:
			s.start(ctx, nc)
		case s.isClosed() || ctx.Err() != nil:
			return ErrServerClosed
		default:
			return err
		}
	}
}

// ServeConn serves one connection, such as one within a WebSocket, and returns
// when it has ended.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) {
	if ctx, ok := s.addConn(ctx, nc); ok {
		s.serve(ctx, nc)
	}
}

func (s *Server) start(ctx context.Context, nc net.Conn) {
	if ctx, ok := s.addConn(ctx, nc); ok {
		go s.serve(ctx, nc)
	}
}

// Close closes all listeners and connections and waits until nothing runs any
// more. Last wills of the devices are not sent.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for _, end := range s.conns {
		end(ErrServerClosed)
	}
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	l.Close()
}

// addConn registers a connection, to be removed by serve. The context that it
// returns ends with Close, and its end closes the connection.
func (s *Server) addConn(ctx context.Context, nc net.Conn) (context.Context, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nc.Close()
		return nil, false
	}
	ctx, end := context.WithCancelCause(ctx)
	s.conns[nc] = end
	s.running.Add(1)
	return ctx, true
}

// serve runs a connection from its first byte to its end.
func (s *Server) serve(ctx context.Context, nc net.Conn) {
	s.mu.Lock()
	end := s.conns[nc]
	s.mu.Unlock()
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(closed)
		nc.Close()
	})
	defer func() {
		end(nil)
		<-closed
		s.mu.Lock()
		delete(s.conns, nc)
		s.mu.Unlock()
		s.running.Done()
	}()
	c := newConn(s, nc, end)
	if err := c.connect(ctx); err != nil {
		c.log.Info("MQTT connection refused", "error", err)
		return
	}
	c.run(ctx)
}
