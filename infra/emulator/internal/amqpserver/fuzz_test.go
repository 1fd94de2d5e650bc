package amqpserver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

// strict is a handler of nodes that checks what the server promises them.
type strict struct {
	nodes
	t      *testing.T
	opened atomic.Int32
	ended  atomic.Int32
}

func newStrict(t *testing.T) *strict {
	h := &strict{t: t, nodes: nodes{"q": newNode(), "small": newNode()}}
	h.nodes["small"].onOpen = func(a *amqpserver.Attach) error {
		a.MaxMessageSize, a.Credit = 16, 2
		return nil
	}
	return h
}

func (h *strict) OpenSource(_ context.Context, a *amqpserver.Attach) (amqpserver.Source, error) {
	n, err := h.open(a)
	if err != nil {
		return nil, err
	}
	h.opened.Add(1)
	return strictSource{n, h.t}, nil
}

func (h *strict) OpenTarget(_ context.Context, a *amqpserver.Attach) (amqpserver.Target, error) {
	n, err := h.open(a)
	if err != nil {
		return nil, err
	}
	h.opened.Add(1)
	return n, nil
}

func (h *strict) Close() { h.ended.Add(1) }

type strictSource struct {
	*node
	t *testing.T
}

func (s strictSource) Next(ctx context.Context) (*amqpserver.Outgoing, error) {
	out, err := s.node.Next(ctx)
	if out != nil {
		out.Settler = &strictSettler{Settler: out.Settler, t: s.t}
	}
	return out, err
}

// strictSettler fails the test when a delivery ends twice.
type strictSettler struct {
	amqpserver.Settler
	t     *testing.T
	ended atomic.Bool
}

func (s *strictSettler) Settle(outcome amqp.DeliveryState, done func(amqp.DeliveryState)) {
	s.end()
	s.Settler.Settle(outcome, done)
}

func (s *strictSettler) Return() {
	s.end()
	s.Settler.Return()
}

func (s *strictSettler) end() {
	if s.ended.Swap(true) {
		s.t.Error("a delivery ended twice")
	}
}

// converse lets say talk to a server and then falls silent, which the server has
// to end. It returns what the server said. It is for a bubble.
func converse(t *testing.T, h *strict, say func(write func([]byte))) []byte {
	s := amqpserver.New(amqpserver.Options{
		NewHandler: func(amqpserver.Peer) (amqpserver.Handler, error) { return h, nil },
		Plain: func(context.Context, amqpserver.Credentials) (any, error) {
			return nil, errors.New("nobody")
		},
		IdleTimeout: 2 * time.Second, // a peer may ask for a frame each millisecond
	})
	ours, theirs := net.Pipe()
	var heard []byte
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.ServeConn(t.Context(), theirs) })
	wg.Go(func() { heard, _ = io.ReadAll(ours) })
	say(func(b []byte) {
		_, _ = ours.Write(b) // fails once the server has closed
		synctest.Wait()
	})
	wg.Wait()
	var opened, closed int32
	for _, n := range h.nodes {
		n.mu.Lock()
		closed += int32(n.closed)
		n.mu.Unlock()
	}
	if opened = h.opened.Load(); opened != closed {
		t.Errorf("%d nodes were opened and %d closed", opened, closed)
	}
	if h.ended.Load() > 1 {
		t.Error("the handler was closed twice")
	}
	return heard
}

// wantFrames fails the test if the server said what is no AMQP.
func wantFrames(t *testing.T, b []byte) {
	t.Helper()
	for len(b) > 0 {
		if bytes.HasPrefix(b, amqp.AMQPHeader[:]) || bytes.HasPrefix(b, amqp.SASLHeader[:]) {
			b = b[amqp.ProtocolHeadSize:]
			continue
		}
		size, err := amqp.FrameSize([4]byte(append(slices.Clip(b), 0, 0, 0, 0)), 1<<16)
		if err != nil || size > len(b) {
			t.Fatalf("%d bytes that are no frame: %x (%v)", len(b), b[:min(len(b), 32)], err)
		}
		if _, err := amqp.DecodeFrame(b[:size]); err != nil {
			t.Fatalf("%x: %v", b[:size], err)
		}
		b = b[size:]
	}
}

// greeting is what a client begins with: header, open and begin.
func greeting(tb testing.TB) []byte {
	return append(amqp.AMQPHeader[:], encode(tb, 0, nil,
		&amqp.Open{ContainerID: "fuzz", MaxFrameSize: 512, ChannelMax: 3},
		&amqp.Begin{IncomingWindow: 100, OutgoingWindow: 100},
	)...)
}

// FuzzStream sends any bytes, in two pieces.
func FuzzStream(f *testing.F) {
	hello := greeting(f)
	attach := encode(f, 0, nil,
		&amqp.Attach{Name: "in", Handle: 0, Role: amqp.RoleSender, Target: &amqp.Target{Address: "q"}},
		&amqp.Attach{Name: "out", Handle: 1, Role: amqp.RoleReceiver, Source: &amqp.Source{Address: "q"}},
		&amqp.Flow{IncomingWindow: 100, Handle: ptr(uint32(1)), LinkCredit: ptr(uint32(10))},
	)
	payload, err := data("hello").MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	transfer := encode(f, 0, payload, &amqp.Transfer{DeliveryID: ptr(uint32(0)), DeliveryTag: []byte("1")})
	settle := encode(f, 0, nil, &amqp.Disposition{Role: amqp.RoleReceiver, State: &amqp.Accepted{}}, &amqp.Detach{Closed: true}, &amqp.End{})
	sasl, err := amqp.AppendSASLFrame(amqp.SASLHeader[:], &amqp.SASLInit{Mechanism: "PLAIN", InitialResponse: []byte("\x00a\x00b")})
	if err != nil {
		f.Fatal(err)
	}
	anonymous, err := amqp.AppendSASLFrame(amqp.SASLHeader[:], &amqp.SASLInit{Mechanism: "ANONYMOUS"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slices.Concat(hello, attach, transfer, settle), uint16(60))
	f.Add(slices.Concat(anonymous, hello, attach), uint16(9))
	f.Add(sasl, uint16(3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(0))
	f.Add(slices.Concat(hello, []byte{0x7f, 0xff, 0xff, 0xff, 2, 0, 0, 0}), uint16(4))
	f.Fuzz(func(t *testing.T, stream []byte, cut uint16) {
		synctest.Test(t, func(t *testing.T) {
			at := min(int(cut), len(stream))
			wantFrames(t, converse(t, newStrict(t), func(write func([]byte)) {
				write(stream[:at])
				write(stream[at:])
			}))
		})
	})
}

// script reads frames from the bytes of a fuzz test, so that most of them get
// past the decoder: each value is small, or close to a limit.
type script struct{ rest []byte }

func (s *script) octet() byte {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return b
}

func (s *script) flag() bool { return s.octet()&1 == 1 }

func (s *script) number() uint32 {
	b := s.octet()
	switch b & 0xe0 {
	case 0xe0:
		return uint32(0) - uint32(b&0x1f)
	case 0xc0:
		return 1<<31 - uint32(b&0x1f)
	case 0xa0:
		return 1<<16 - uint32(b&0x1f)
	}
	return uint32(b)
}

func (s *script) maybe() *uint32 {
	if s.flag() {
		return nil
	}
	return ptr(s.number())
}

func (s *script) handle() uint32 { return uint32(s.octet() & 3) }

func (s *script) address() string {
	return []string{"q", "small", "", "elsewhere"}[s.octet()&3]
}

func (s *script) state() amqp.DeliveryState {
	return []amqp.DeliveryState{
		nil, &amqp.Accepted{}, &amqp.Rejected{}, &amqp.Released{}, &amqp.Modified{DeliveryFailed: true}, &amqp.Received{},
	}[s.octet()%6]
}

// frame returns the next one; a nil performative is a heartbeat.
func (s *script) frame() (p amqp.Performative, payload []byte) {
	switch s.octet() % 9 {
	case 0:
		return &amqp.Begin{NextOutgoingID: s.number(), IncomingWindow: s.number(), OutgoingWindow: s.number()}, nil
	case 1:
		return &amqp.End{}, nil
	case 2:
		return s.attach(), nil
	case 3:
		return &amqp.Flow{
			NextIncomingID: s.maybe(), IncomingWindow: s.number(), NextOutgoingID: s.number(), OutgoingWindow: s.number(),
			Handle: s.maybe(), DeliveryCount: s.maybe(), LinkCredit: s.maybe(), Drain: s.flag(), Echo: s.flag(),
		}, nil
	case 4, 5:
		return s.transfer()
	case 6:
		return &amqp.Disposition{Role: amqp.Role(s.flag()), First: s.number(), Last: s.number(), Settled: s.flag(), State: s.state()}, nil
	case 7:
		return &amqp.Detach{Handle: s.handle(), Closed: s.flag()}, nil
	}
	return nil, nil
}

func (s *script) attach() *amqp.Attach {
	return &amqp.Attach{
		Name: string(rune('a' + s.octet()&3)), Handle: s.handle(), Role: amqp.Role(s.flag()),
		SenderSettleMode: amqp.SenderSettleMode(s.octet() % 3), ReceiverSettleMode: amqp.ReceiverSettleMode(s.octet() & 1),
		Source: &amqp.Source{Address: s.address()}, Target: &amqp.Target{Address: s.address(), Coordinator: s.octet() == 0xff},
		InitialDeliveryCount: s.number(),
	}
}

func (s *script) transfer() (amqp.Performative, []byte) {
	t := &amqp.Transfer{
		Handle: s.handle(), DeliveryID: s.maybe(), DeliveryTag: []byte{s.octet()}, Settled: s.flag(),
		More: s.flag(), Aborted: s.octet() == 0xff, MessageFormat: s.maybe(), State: s.state(),
	}
	n := min(int(s.octet()), len(s.rest))
	payload := s.rest[:n]
	s.rest = s.rest[n:]
	return t, payload
}

// FuzzConversation sends frames that are each well formed, in any order.
func FuzzConversation(f *testing.F) {
	// A link each way, and a message that goes through both.
	through := []byte{
		0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0,
		0, 3, 0, 0, 100, 0, 100, 0, 1, 0, 0, 0, 10, 0, 1,
		0, 4, 0, 0, 0, 7, 0, 0, 0, 1, 1, 8, 0, 0x53, 0x75, 0xa0, 3, 'a', 'b', 'c',
		0, 6, 1, 0, 0, 0, 1,
		0, 7, 0, 1,
	}
	f.Add(through)
	f.Add(append(slices.Clone(through), 0, 1, 1, 0, 9, 9, 9, 1, 2, 0, 2, 1, 0, 0, 1, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		synctest.Test(t, func(t *testing.T) {
			h := newStrict(t)
			s := &script{rest: b[:min(len(b), 4096)]}
			heard := converse(t, h, func(write func([]byte)) {
				write(greeting(t))
				for len(s.rest) > 0 {
					channel := uint16(s.octet())
					if channel&0xf0 == 0xf0 {
						h.nodes["q"].push(data("pushed"))
						continue
					}
					p, payload := s.frame()
					frame, err := amqp.AppendFrame(nil, channel&3, p, payload)
					if err != nil {
						continue // such as text that is not UTF-8
					}
					write(frame)
				}
			})
			wantFrames(t, heard)
		})
	})
}
