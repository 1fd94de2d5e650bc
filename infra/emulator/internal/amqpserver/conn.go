package amqpserver

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// Bounds on what one connection may make the server keep, whether or not its
// peer has shown a token.
const (
	// maxChannel is advertised in open. Clients open a session for each sender
	// and receiver, and one each time they renew a token.
	maxChannel = 4999
	// maxLinks is as many as Service Bus has concurrent receive requests for an
	// entity (Service Bus docs: "Service Bus quotas").
	maxLinks = 5000
	// maxName is the longest name of a link in bytes.
	maxName = 1 << 10
	// maxBuffered is how many bytes of incomplete messages are kept.
	maxBuffered = 32 << 20
)

// closeGrace is how long a peer that was told to close may take.
const closeGrace = time.Second

// conn is one connection. The fields below the blank line belong to the reading
// goroutine.
type conn struct {
	opts Options
	nc   net.Conn
	log  *slog.Logger
	out  *outbox
	wg   sync.WaitGroup // goroutines of links
	// frameSize limits what is sent, beat says how often at least; both are set
	// by the handshake.
	frameSize uint32
	beat      time.Duration

	mu      sync.Mutex
	closing bool // guarded by mu: the read deadline is final

	buffered atomic.Int64 // bytes of incomplete messages

	in       *bufio.Reader
	buf      []byte // of the frame that is being handled
	handler  Handler
	sessions map[uint16]*session
	names    map[linkKey]*link // live links by name
	links    int               // of all sessions, until the peer lets go of their handles
	lonely   *lonely
}

// linkKey identifies a link: one name may be used once in each direction
// (§2.6.1). By the letter of the specification that is within a connection, but
// the cloud counts the names of each session for themselves, and the IoT SDK for
// C# relies on it: it gives each device of a connection a session of its own, with
// links of the same names in each (AmqpIotSession.cs).
type linkKey struct {
	channel uint16
	name    string
	role    amqp.Role
}

func newConn(opts Options, nc net.Conn) *conn {
	return &conn{
		opts:     opts,
		nc:       nc,
		log:      opts.Logger,
		out:      newOutbox(),
		beat:     opts.Heartbeat,
		in:       bufio.NewReaderSize(nc, 16<<10),
		sessions: make(map[uint16]*session),
		names:    make(map[linkKey]*link),
	}
}

// serve runs the connection from the first byte to the last.
func (c *conn) serve(ctx context.Context) error {
	defer c.nc.Close()
	cut := context.AfterFunc(ctx, func() { c.nc.Close() })
	peer, err := c.handshake(ctx)
	if !cut() {
		return context.Cause(ctx)
	}
	if err != nil {
		return ended(err)
	}
	if c.handler, err = c.opts.NewHandler(peer); err != nil {
		e := c.asError(err)
		return errors.Join(e, c.writeFrame(&amqp.Close{Error: e}))
	}
	defer c.handler.Close()
	return c.run(ctx)
}

// run serves the open connection.
func (c *conn) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		c.shut(amqp.Errorf(amqp.CondConnectionForced, "the server is shutting down"))
	})
	defer stop()
	written := make(chan error, 1)
	go func() {
		err := c.out.write(c.nc, c.beat, c.opts.WriteTimeout)
		if err != nil {
			c.nc.Close() // wakes the reading goroutine
		}
		written <- err
	}()
	stopWatching := c.watchIdle()
	linkCtx, cancel := context.WithCancel(ctx)
	err := c.read(linkCtx)
	cancel()
	stopWatching()
	c.out.uncork()
	failed := c.out.failed() // if so, it was the writing goroutine that ended it
	for _, s := range c.sessions {
		s.drop()
	}
	c.wg.Wait()
	var reason *amqp.Error
	errors.As(err, &reason)
	c.out.close(&amqp.Close{Error: reason})
	cut := time.AfterFunc(closeGrace, func() { c.nc.Close() })
	defer cut.Stop()
	if reason != nil {
		// The peer may still be sending. A socket that is closed with unread
		// input resets the connection, and the reason would be lost.
		_, _ = io.Copy(io.Discard, c.nc)
	}
	if werr := <-written; failed {
		err = werr
	}
	return ended(err)
}

// ended turns the errors of a peer that just went away into none.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// shut sends a last close and gives the peer a moment to answer it.
func (c *conn) shut(reason *amqp.Error) {
	c.out.close(&amqp.Close{Error: reason})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	// If the deadline cannot be set, the connection is closed already.
	_ = c.nc.SetDeadline(time.Now().Add(closeGrace))
}

// extend gives the peer its full time for the next frame.
func (c *conn) extend() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil
	}
	return c.nc.SetReadDeadline(time.Now().Add(c.opts.IdleTimeout))
}

func (c *conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// read handles frames until the peer closes, or breaks the rules; then the error
// is an *amqp.Error for it.
func (c *conn) read(ctx context.Context) error {
	for {
		if err := c.ready(); err != nil {
			return err
		}
		f, err := c.readFrame()
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded) && c.isClosing():
			return nil // the peer took too long to answer our close
		case errors.Is(err, os.ErrDeadlineExceeded):
			return amqp.Errorf(amqp.CondConnectionForced, "nothing was received for %v", c.opts.IdleTimeout)
		case errors.Is(err, amqp.ErrMalformed):
			return amqp.Errorf(amqp.CondFramingError, "%v", err)
		case err != nil:
			return err
		}
		if _, ok := f.Body.(*amqp.Close); ok {
			return nil
		}
		if ctx.Err() != nil || c.isClosing() {
			continue // only the answer to our close matters
		}
		if err := c.handle(ctx, f); err != nil {
			return err
		}
		c.lonely.watch(c.links)
		// Without this, a peer that sends and never reads could fill the
		// memory with answers. The next round looks at the context.
		_ = c.out.await(ctx)
	}
}

// ready prepares for the next frame: while one is there already, answers wait for
// those to come; when the peer has to send one, they go out, and it has its full
// time.
func (c *conn) ready() error {
	if c.frameBuffered() {
		c.out.cork()
		return nil
	}
	c.out.uncork()
	return c.extend()
}

// frameBuffered reports whether the next frame can be read without the network.
func (c *conn) frameBuffered() bool {
	const sizeField = 4
	n := c.in.Buffered()
	if n < sizeField {
		return false
	}
	head, err := c.in.Peek(sizeField)
	return err == nil && uint64(binary.BigEndian.Uint32(head)) <= uint64(n)
}

// readFrame reads the next frame. It stays valid until the next call.
func (c *conn) readFrame() (amqp.Frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return amqp.Frame{}, err
	}
	size, err := amqp.FrameSize(head, c.opts.MaxFrameSize)
	if err != nil {
		return amqp.Frame{}, err
	}
	if cap(c.buf) < size {
		c.buf = make([]byte, size)
	}
	c.buf = c.buf[:size]
	copy(c.buf, head[:])
	if _, err := io.ReadFull(c.in, c.buf[len(head):]); err != nil {
		return amqp.Frame{}, fmt.Errorf("connection ended within a frame: %w", err)
	}
	return amqp.DecodeFrame(c.buf)
}

// handle handles one frame. An error ends the connection.
func (c *conn) handle(ctx context.Context, f amqp.Frame) error {
	if f.Type != amqp.FrameAMQP {
		return amqp.Errorf(amqp.CondFramingError, "frame of type %d after open", f.Type)
	}
	if f.Body == nil {
		return nil // a heartbeat
	}
	s := c.sessions[f.Channel]
	if b, ok := f.Body.(*amqp.Begin); ok {
		switch {
		case s != nil:
			return amqp.Errorf(amqp.CondIllegalState, "channel %d has a session", f.Channel)
		case f.Channel > maxChannel: // §2.7.1
			return amqp.Errorf(amqp.CondFramingError, "channel %d, the highest is %d", f.Channel, maxChannel)
		}
		return c.begin(f.Channel, b)
	}
	if s == nil {
		return amqp.Errorf(amqp.CondIllegalState, "%T on channel %d, which has no session", f.Body, f.Channel)
	}
	if e, ok := f.Body.(*amqp.End); ok {
		delete(c.sessions, f.Channel)
		s.end(e)
		return nil
	}
	return s.handle(ctx, f)
}

// begin answers a begin on the peer's own channel number: each side numbers its
// channels for itself (§2.5.1), so that number is always free.
func (c *conn) begin(channel uint16, b *amqp.Begin) error {
	s := newSession(c, channel, b)
	c.sessions[channel] = s
	return c.out.put(channel, &amqp.Begin{
		RemoteChannel:  &channel,
		NextOutgoingID: s.nextOutgoingID,
		IncomingWindow: incomingWindow,
		OutgoingWindow: outgoingWindow,
		HandleMax:      maxHandle,
	}, nil)
}

// put adds a frame to the outbox. One that cannot be encoded would leave the
// peer waiting for an answer, so the connection is closed instead.
func (c *conn) put(channel uint16, p amqp.Performative, payload []byte) {
	if err := c.out.put(channel, p, payload); err != nil {
		c.log.Error("amqp frame cannot be encoded", "frame", fmt.Sprintf("%T", p), "error", err)
		c.shut(amqp.Errorf(amqp.CondInternalError, "internal error"))
	}
}
