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

	mu        sync.Mutex // guards all below
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
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
		conns:     make(map[*conn]struct{}),
	}
	s.opts.ConnectTimeout = cmp.Or(opts.ConnectTimeout, defaultConnectTimeout)
	s.opts.WriteTimeout = cmp.Or(opts.WriteTimeout, defaultWriteTimeout)
	if s.opts.Logger == nil {
		s.opts.Logger = slog.New(slog.DiscardHandler)
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
// when it has ended. If nc says whose certificates a client has shown, by a
// method ConnectionState, devices can connect with those. If nc, or what its
// method NetConn leads to, has a method SetPeer(hub.Target), it is called once
// the device has proved who it is.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) {
	if c, ctx := s.add(ctx, nc); c != nil && s.greet(ctx, c) {
		s.run(ctx, c)
	}
}

// start serves a connection in the background.
func (s *Server) start(ctx context.Context, nc net.Conn) {
	c, ctx := s.add(ctx, nc)
	if c == nil {
		return
	}
	go func() {
		if s.greet(ctx, c) {
			// In a goroutine of its own, because the handshake leaves a large
			// stack behind, and an idle connection would keep that.
			go s.run(ctx, c)
		}
	}()
}

// greet takes the CONNECT of a connection; false if it was refused, and the
// connection is gone.
func (s *Server) greet(ctx context.Context, c *conn) bool {
	err := c.connect(ctx)
	if err != nil {
		c.log().Info("MQTT connection refused", "error", err)
		s.remove(c)
	}
	return err == nil
}

// run serves a connection after its CONNECT.
func (s *Server) run(ctx context.Context, c *conn) {
	defer s.remove(c)
	c.run(ctx)
}

// Close closes all listeners and connections and waits until nothing runs any
// more. It publishes no last will: the end of the server is none of the reasons
// for which one must be (MQTT 3.1.1 §3.1.2.5), and the devices are still there.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.end(ErrServerClosed)
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

// add registers a connection, to be removed by remove; nil after Close. The
// context that it returns ends with Close or the connection, and its end closes
// the connection.
func (s *Server) add(ctx context.Context, nc net.Conn) (*conn, context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nc.Close()
		return nil, nil
	}
	ctx, end := context.WithCancelCause(ctx)
	c := newConn(s, nc, end)
	s.conns[c] = struct{}{}
	s.running.Add(1)
	context.AfterFunc(ctx, func() {
		defer close(c.closed)
		c.close()
	})
	return c, ctx
}

func (s *Server) remove(c *conn) {
	c.end(nil)
	<-c.closed
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.running.Done()
}
