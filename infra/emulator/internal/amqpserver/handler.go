package amqpserver

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// Peer is what is known of a connection's other end after the exchange of open
// frames.
type Peer struct {
	// Identity is what Options.Plain or Options.External returned; nil without
	// SASL and with ANONYMOUS.
	Identity    any
	ContainerID string
	// Hostname is the name that the peer believes to have dialled, possibly
	// with a port.
	Hostname   string
	Properties map[string]any
	RemoteAddr string
	// Certificates is the chain that the peer proved to own in the TLS
	// handshake, its own first, as it sent them: nobody has verified the chain.
	Certificates []*x509.Certificate
	// Conn is the connection itself, for a handler to tell it, or what is below
	// it, whose it is. It is the server's to read, write and close.
	Conn net.Conn
	// Shut ends the connection with a reason, mapped as for a refused attach. It
	// doesn't wait for that, and is safe from any goroutine.
	Shut func(reason error)
}

// Handler decides what a connection's links lead to. Its methods are called from
// several goroutines.
type Handler interface {
	// OpenSource answers an attach of a link on which the peer receives. It may
	// block until ctx ends, which it does when the peer gives the link up.
	//
	// A refusal that is no *amqp.Error reaches the peer as an internal error
	// without its text.
	OpenSource(ctx context.Context, a *Attach) (Source, error)
	// OpenTarget answers an attach of a link on which the peer sends, in the
	// same way.
	OpenTarget(ctx context.Context, a *Attach) (Target, error)
	// Close is called once, when the connection has ended and all its links
	// are closed.
	Close()
}

// Attach is a peer's wish for a link, and the room for the answer.
type Attach struct {
	// Session tells the sessions of one connection apart.
	Session SessionID
	// Name is the link's name.
	Name string
	// Address is that of the wanted node: the source's when the peer
	// receives, the target's when it sends.
	Address string
	// PeerAddress is that of the peer's own end of the link, such as the address
	// that replies are to be sent to. It may be empty.
	PeerAddress string
	// Filter of the source; the values are usually of type amqp.Described.
	Filter     map[string]any
	Properties map[string]any
	// DesiredCapabilities are extensions that the peer would like to have.
	DesiredCapabilities []amqp.Symbol
	// SenderSettleMode is what the peer asks for.
	SenderSettleMode amqp.SenderSettleMode
	// ReceiverSettleMode is what the peer asks for.
	ReceiverSettleMode amqp.ReceiverSettleMode

	// Settled makes the server send its transfers settled. It is set beforehand
	// if the peer asked for that mode; a node whose peers never settle, whatever
	// they ask for, may set it too.
	Settled bool
	// MaxMessageSize, for targets, is the largest message accepted, in bytes, by
	// default DefaultMaxMessageSize. azservicebus makes no batches without it.
	MaxMessageSize uint64
	// Credit, for targets, is how many messages the peer may have under way; by
	// default DefaultCredit.
	Credit uint32
	// OfferedCapabilities are those of the desired ones that the node has.
	OfferedCapabilities []amqp.Symbol
	// ReplyProperties go into the answer.
	ReplyProperties map[string]any
	// ReplyFilter is the filter in force that goes into the answer; by default
	// the one that the peer asked for.
	ReplyFilter map[string]any

	link *link
}

// SessionID identifies a session within its connection.
type SessionID uint16

// Defaults for links on which the peer sends.
const (
	DefaultMaxMessageSize = 1 << 20
	DefaultCredit         = 250
)

// Detach ends the link from the server's side: with err as the reason, mapped as
// for a refusal. Called before the attach is answered, it takes effect right
// after. Calls after the first are ignored. It is safe from any goroutine.
func (a *Attach) Detach(err error) { a.link.detach(err) }

// Source gives out the messages of one link. All methods but those of its
// deliveries are called from one goroutine.
type Source interface {
	// Next returns a message that is there now, or nil if there is none. An
	// error detaches the link and is mapped as for a refusal. It may wait for
	// ctx-bound work but not for messages.
	Next(ctx context.Context) (*Outgoing, error)
	// Ready is signalled when Next may have a message, or an error, after it
	// returned none. The channel is asked for anew before each wait.
	Ready() <-chan struct{}
	// Close is called once, when the link has ended.
	Close()
}

// Outgoing is a message on its way to a peer.
type Outgoing struct {
	Message *amqp.Message
	// Tag identifies the delivery to the peer, in at most 32 bytes. If nil, the
	// server makes one.
	Tag []byte
	// Settler learns how the delivery ends; nil if nobody cares.
	Settler Settler
}

// Settler ends a delivery. Exactly one of its methods is called, unless the link
// ends with the delivery unsettled: then it is for Source.Close to decide.
type Settler interface {
	// Settle applies the outcome that the peer decided on, and calls done with
	// the state to confirm, possibly before it returns. It must not block. For
	// transfers that are sent settled, the outcome is Accepted and comes when the
	// transfer has been put on its way.
	Settle(outcome amqp.DeliveryState, done func(reply amqp.DeliveryState))
	// Return takes back a message that could not be put on its way.
	Return()
}

// Target takes the messages of one link.
type Target interface {
	// Deliver takes a message, and settles it at once or later. It must not
	// block: it runs on the goroutine that reads from the connection. Calls
	// come one at a time and in order.
	Deliver(ctx context.Context, in *Incoming)
	// Close is called once, when the link has ended. A last Deliver may still be
	// running.
	Close()
}

// Incoming is a message from a peer.
type Incoming struct {
	// Format is the transfer's message format: 0, or amqp.BatchFormat.
	Format uint32
	// Payload is the encoded message, for the target to keep.
	Payload []byte
	// Settled means that the peer doesn't wait for an outcome.
	Settled bool

	id   uint32
	link *link
}

// Message decodes the message. The error is an *amqp.Error.
func (in *Incoming) Message() (*amqp.Message, error) {
	m := new(amqp.Message)
	if err := m.UnmarshalBinary(in.Payload); err != nil {
		return nil, amqp.Errorf(amqp.CondDecodeError, "decode message: %v", err)
	}
	return m, nil
}

// Messages decodes the message, or the messages of a batch. The error is an
// *amqp.Error.
func (in *Incoming) Messages() ([]*amqp.Message, error) {
	m, err := in.Message()
	if err != nil {
		return nil, err
	}
	switch in.Format {
	case 0:
		return []*amqp.Message{m}, nil
	case amqp.BatchFormat:
		return unpack(m)
	}
	return nil, amqp.Errorf(amqp.CondNotImplemented, "message format 0x%x is not supported", in.Format)
}

func unpack(envelope *amqp.Message) ([]*amqp.Message, error) {
	if len(envelope.Data) == 0 {
		return nil, amqp.Errorf(amqp.CondDecodeError, "batch without messages")
	}
	msgs := make([]*amqp.Message, len(envelope.Data))
	for i, data := range envelope.Data {
		msgs[i] = new(amqp.Message)
		if err := msgs[i].UnmarshalBinary(data); err != nil {
			return nil, amqp.Errorf(amqp.CondDecodeError, "decode message %d of the batch: %v", i, err)
		}
	}
	return msgs, nil
}

// Settle ends the delivery with a state. It must be called exactly once, from any
// goroutine.
func (in *Incoming) Settle(state amqp.DeliveryState) { in.link.settleIncoming(in, state) }

// Accept settles with Accepted.
func (in *Incoming) Accept() { in.Settle(&amqp.Accepted{}) }

// Reject settles with Rejected and err, mapped as for a refused attach.
func (in *Incoming) Reject(err error) {
	in.Settle(&amqp.Rejected{Error: in.link.session.conn.asError(err)})
}

// asError maps an error to what the peer gets to see.
func (c *conn) asError(err error) *amqp.Error {
	if err == nil {
		return nil
	}
	var e *amqp.Error
	if !errors.As(err, &e) {
		c.log.Error("amqp handler failed", "error", err)
		e = amqp.Errorf(amqp.CondInternalError, "internal error")
	}
	// Descriptions may quote what a peer sent, percent-decoded; the encoder
	// refuses strings that are not UTF-8.
	clean := *e
	clean.Description = strings.ToValidUTF8(e.Description, "?")
	return &clean
}
