package amqpserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// errRefused ends a handshake after the peer was told why.
var errRefused = errors.New("refused")

// minBeat keeps a peer that can't wait from having the server do nothing else.
const minBeat = 50 * time.Millisecond

// SASL mechanisms (RFC 4505, RFC 4616, RFC 4422 appendix A).
const (
	mechAnonymous amqp.Symbol = "ANONYMOUS"
	mechPlain     amqp.Symbol = "PLAIN"
	mechExternal  amqp.Symbol = "EXTERNAL"
)

// handshake does all that comes before begin frames: protocol headers, SASL if
// the peer starts with it, and the exchange of open frames. It reads and writes
// the connection itself, step by step: go-amqp fails when the AMQP header comes
// together with the SASL outcome, while rhea sends header and open at once.
func (c *conn) handshake(ctx context.Context) (Peer, error) {
	deadline := time.Now().Add(c.opts.Handshake)
	if err := c.nc.SetDeadline(deadline); err != nil {
		return Peer{}, err
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	peer := Peer{
		RemoteAddr: c.nc.RemoteAddr().String(),
		Conn:       c.nc,
		Shut:       func(reason error) { c.shut(c.asError(reason)) },
	}
	head, err := c.readHeader()
	if err != nil {
		return peer, err
	}
	if head == amqp.SASLHeader {
		if peer.Identity, err = c.sasl(ctx); err != nil {
			return peer, err
		}
		if head, err = c.readHeader(); err != nil {
			return peer, err
		}
	}
	if head != amqp.AMQPHeader {
		// §2.2: answer with a header that is supported, and close.
		_, err := c.nc.Write(amqp.AMQPHeader[:])
		return peer, errors.Join(fmt.Errorf("%w: protocol header %q", errRefused, head[:]), err)
	}
	if _, err := c.nc.Write(amqp.AMQPHeader[:]); err != nil {
		return peer, err
	}
	return peer, c.open(&peer)
}

func (c *conn) readHeader() (amqp.ProtocolHeader, error) {
	var h amqp.ProtocolHeader
	_, err := io.ReadFull(c.in, h[:])
	return h, err
}

// open reads the peer's open frame and answers it.
func (c *conn) open(peer *Peer) error {
	f, err := c.readFrame()
	if err != nil {
		return err
	}
	o, ok := f.Body.(*amqp.Open)
	if !ok || f.Type != amqp.FrameAMQP {
		return c.refuse(amqp.Errorf(amqp.CondIllegalState, "open expected, got %T", f.Body))
	}
	if o.ContainerID == "" || o.MaxFrameSize < amqp.MinMaxFrameSize {
		return c.refuse(amqp.Errorf(amqp.CondInvalidField, "open needs a container-id and a max-frame-size of at least %d", amqp.MinMaxFrameSize))
	}
	c.frameSize = min(o.MaxFrameSize, c.opts.MaxFrameSize)
	if o.IdleTimeout > 0 {
		c.beat = min(c.beat, time.Duration(o.IdleTimeout)*time.Millisecond/2)
		c.beat = max(c.beat, minBeat)
	}
	peer.ContainerID, peer.Hostname, peer.Properties = o.ContainerID, o.Hostname, o.Properties
	peer.Certificates = PeerCertificates(c.nc)
	return c.writeFrame(c.openFrame())
}

// PeerCertificates returns the chain that the other end of a connection proved to
// own, or nil without TLS. The connection may be a *tls.Conn, or anything else
// that has the method ConnectionState of one. The TLS handshake must be over,
// which it is once something was read.
func PeerCertificates(nc net.Conn) []*x509.Certificate {
	if t, ok := nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		return t.ConnectionState().PeerCertificates
	}
	return nil
}

func (c *conn) openFrame() *amqp.Open {
	return &amqp.Open{
		ContainerID:  c.opts.ContainerID,
		MaxFrameSize: c.opts.MaxFrameSize,
		ChannelMax:   maxChannel,
		IdleTimeout:  uint32(c.opts.IdleTimeout.Milliseconds() / 2),
	}
}

// refuse answers a bad open with open and close (§2.4.1: close may only follow
// open).
func (c *conn) refuse(e *amqp.Error) error {
	if err := c.writeFrame(c.openFrame()); err != nil {
		return err
	}
	if err := c.writeFrame(&amqp.Close{Error: e}); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errRefused, e)
}

// writeFrame writes past the outbox; for the handshake only.
func (c *conn) writeFrame(p amqp.Performative) error {
	b, err := amqp.AppendFrame(nil, 0, p, nil)
	if err != nil {
		return err
	}
	_, err = c.nc.Write(b)
	return err
}

func (c *conn) writeSASL(prefix []byte, body amqp.SASLBody) error {
	b, err := amqp.AppendSASLFrame(prefix, body)
	if err != nil {
		return err
	}
	_, err = c.nc.Write(b)
	return err
}

func readSASL[T amqp.SASLBody](c *conn) (T, error) {
	var none T
	f, err := c.readFrame()
	if err != nil {
		return none, err
	}
	body, ok := f.Body.(T)
	if !ok {
		return none, fmt.Errorf("%w: SASL frame %T expected, got %T", amqp.ErrMalformed, none, f.Body)
	}
	return body, nil
}

// sasl runs the SASL layer (§5.3) and returns the identity that it proved.
func (c *conn) sasl(ctx context.Context) (any, error) {
	if err := c.writeSASL(amqp.SASLHeader[:], &amqp.SASLMechanisms{Mechanisms: c.mechanisms()}); err != nil {
		return nil, err
	}
	first, err := readSASL[*amqp.SASLInit](c)
	if err != nil {
		return nil, err
	}
	identity, err := c.authenticate(ctx, first)
	if err != nil {
		outcome := &amqp.SASLOutcome{Code: amqp.SASLAuth}
		return nil, errors.Join(fmt.Errorf("%w: SASL %s: %w", errRefused, first.Mechanism, err), c.writeSASL(nil, outcome))
	}
	return identity, c.writeSASL(nil, &amqp.SASLOutcome{Code: amqp.SASLOK})
}

func (c *conn) mechanisms() []amqp.Symbol {
	list := []amqp.Symbol{mechAnonymous}
	if c.opts.Plain != nil {
		list = append(list, mechPlain)
	}
	if c.opts.External != nil {
		list = append(list, mechExternal)
	}
	return list
}

func (c *conn) authenticate(ctx context.Context, first *amqp.SASLInit) (any, error) {
	switch {
	case first.Mechanism == mechAnonymous:
		return nil, nil
	case first.Mechanism == mechPlain && c.opts.Plain != nil:
		return c.plain(ctx, first.InitialResponse)
	case first.Mechanism == mechExternal && c.opts.External != nil:
		return c.opts.External(ctx, c.nc)
	}
	return nil, errors.New("mechanism is not offered")
}

func (c *conn) plain(ctx context.Context, response []byte) (any, error) {
	if response == nil {
		// RFC 4422 §3: a client without initial response gets an empty
		// challenge.
		if err := c.writeSASL(nil, &amqp.SASLChallenge{Challenge: []byte{}}); err != nil {
			return nil, err
		}
		r, err := readSASL[*amqp.SASLResponse](c)
		if err != nil {
			return nil, err
		}
		response = r.Response
	}
	parts := bytes.Split(response, []byte{0})
	if len(parts) != 3 {
		return nil, errors.New("response is not authorization ID, user and password with NULs between")
	}
	return c.opts.Plain(ctx, Credentials{
		AuthorizationID: string(parts[0]),
		User:            string(parts[1]),
		Password:        string(parts[2]),
	})
}
