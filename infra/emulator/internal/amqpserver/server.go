package amqpserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// ErrServerClosed is returned by ServeConn after Close.
var ErrServerClosed = errors.New("amqp server is closed")

// Options configure a Server.
type Options struct {
	// NewHandler returns the handler of a new connection; required. An error
	// closes the connection.
	NewHandler func(p Peer) (Handler, error)
	// ContainerID names the server to its peers; default "emulator".
	ContainerID string
	// Plain checks the credentials of SASL PLAIN and returns the identity that
	// they prove. If nil, the mechanism is not offered. Its errors are not
	// shown to the peer.
	Plain func(ctx context.Context, c Credentials) (identity any, err error)
	// External returns the identity that the connection proves by itself, such
	// as by a TLS client certificate. If nil, SASL EXTERNAL is not offered.
	External func(ctx context.Context, nc net.Conn) (identity any, err error)
	// MaxFrameSize is the largest frame, either way, in bytes; at least 512,
	// default 65536.
	MaxFrameSize uint32
	// IdleTimeout closes connections from which nothing was heard for so long;
	// default 4 minutes. Peers are asked to be heard from in half that time.
	IdleTimeout time.Duration
	// Heartbeat is how often a peer that gets nothing else gets an empty frame;
	// default 15 seconds. go-amqp advertises an idle time-out of 30 s. A peer
	// that advertises less than twice the heartbeat gets them more often.
	Heartbeat time.Duration
	// Handshake limits the time from the first byte to the open frames; default
	// 30 seconds.
	Handshake time.Duration
	// WriteTimeout is how long a peer may refuse to read; default 1 minute.
	WriteTimeout time.Duration
	// FirstLinkTimeout closes connections that have no link so long after they
	// were opened, and NoLinkTimeout those whose last link is gone for so long;
	// default 1 and 5 minutes (Service Bus docs: "AMQP errors in Azure Service
	// Bus").
	FirstLinkTimeout, NoLinkTimeout time.Duration
	// TokenTimeout closes connections whose handler is an Authorizer and has seen
	// no token in that time; default 20 seconds (Service Bus docs: "AMQP 1.0 in
	// Azure Service Bus and Event Hubs protocol guide", claims-based security).
	TokenTimeout time.Duration
	// Logger gets what an operator wants to know; nil means none.
	Logger *slog.Logger
}

// Credentials are those of SASL PLAIN (RFC 4616).
type Credentials struct {
	AuthorizationID, User, Password string
}

// LogValue keeps the password out of logs.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.User) }

// String keeps the password out of formatted text.
func (c Credentials) String() string { return c.User }

func (o Options) withDefaults() Options {
	setDefault(&o.ContainerID, "emulator")
	setDefault(&o.MaxFrameSize, 65536)
	o.MaxFrameSize = max(o.MaxFrameSize, amqp.MinMaxFrameSize)
	setDefault(&o.IdleTimeout, 4*time.Minute)
	setDefault(&o.Heartbeat, 15*time.Second)
	setDefault(&o.Handshake, 30*time.Second)
	setDefault(&o.WriteTimeout, time.Minute)
	setDefault(&o.FirstLinkTimeout, time.Minute)
	setDefault(&o.NoLinkTimeout, 5*time.Minute)
	setDefault(&o.TokenTimeout, 20*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server serves AMQP connections that its caller accepts.
type Server struct {
	opts Options

	mu     sync.Mutex
	closed bool
	conns  map[*conn]context.CancelFunc
	wg     sync.WaitGroup // counts conns
}

// New returns a server.
func New(opts Options) *Server {
	return &Server{opts: opts.withDefaults(), conns: make(map[*conn]context.CancelFunc)}
}

// ServeConn serves one connection until it ends, and closes nc. When ctx ends,
// the peer is told so (amqp:connection:forced) and has a second to close. The
// result is nil if the peer closed the connection or went away between frames.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := newConn(s.opts, nc)
	if !s.add(c, cancel) {
		nc.Close()
		return ErrServerClosed
	}
	defer s.remove(c)
	return c.serve(ctx)
}

func (s *Server) add(c *conn, cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = cancel
	s.wg.Add(1)
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.wg.Done()
}

// Close ends all connections and waits for them. When ctx ends first, they are
// cut off. It is safe to call it more than once.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for _, cancel := range s.conns {
		cancel()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.nc.Close()
	}
	s.mu.Unlock()
	<-done
	return fmt.Errorf("connections were cut off: %w", ctx.Err())
}
