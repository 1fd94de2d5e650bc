package amqpserver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

// These tests send single frames, for what a well-behaved client never does.

func pipe(t *testing.T) (ours, theirs net.Conn) {
	ours, theirs = net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// raw is a client that speaks frames.
type raw struct {
	t      *testing.T
	conn   net.Conn
	frames chan amqp.Frame // closed at the end of the stream
}

// newRaw connects, and exchanges protocol headers and open frames.
func newRaw(t *testing.T, h amqpserver.Handler) *raw {
	t.Helper()
	r := &raw{t: t, conn: serve(t, h, amqpserver.Options{})}
	r.write(amqp.AMQPHeader[:])
	r.readHeader(amqp.AMQPHeader)
	r.send(&amqp.Open{ContainerID: "raw", MaxFrameSize: 512, ChannelMax: 65535})
	r.start()
	expect[*amqp.Open](r)
	return r
}

func (r *raw) write(b []byte) {
	r.t.Helper()
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatalf("write: %v", err)
	}
}

func (r *raw) readHeader(want amqp.ProtocolHeader) {
	r.t.Helper()
	var got amqp.ProtocolHeader
	if _, err := io.ReadFull(r.conn, got[:]); err != nil || got != want {
		r.t.Fatalf("header %q, error %v; want %q", got[:], err, want[:])
	}
}

// start reads frames in the background, so that the server never waits for the
// test.
func (r *raw) start() {
	r.frames = make(chan amqp.Frame, 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(r.frames)
		for {
			f, err := readFrame(r.conn)
			if err != nil {
				return
			}
			r.frames <- f
		}
	})
	r.t.Cleanup(func() { r.conn.Close(); wg.Wait() })
}

func readFrame(in io.Reader) (amqp.Frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return amqp.Frame{}, err
	}
	size, err := amqp.FrameSize(head, 1<<20)
	if err != nil {
		return amqp.Frame{}, err
	}
	b := append(head[:], make([]byte, size-4)...)
	if _, err := io.ReadFull(in, b[4:]); err != nil {
		return amqp.Frame{}, err
	}
	return amqp.DecodeFrame(b)
}

func encode(t testing.TB, channel uint16, payload []byte, ps ...amqp.Performative) []byte {
	t.Helper()
	var b []byte
	var err error
	for _, p := range ps {
		if b, err = amqp.AppendFrame(b, channel, p, payload); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (r *raw) send(ps ...amqp.Performative) {
	r.t.Helper()
	r.write(encode(r.t, 0, nil, ps...))
}

// next returns the next frame with a body.
func (r *raw) next() amqp.Frame {
	r.t.Helper()
	timeout := time.After(testTimeout)
	for {
		select {
		case f, ok := <-r.frames:
			if !ok {
				r.t.Fatal("the server closed the connection")
			}
			if f.Body != nil {
				return f
			}
		case <-timeout:
			r.t.Fatal("timed out waiting for a frame")
		}
	}
}

func expect[T any](r *raw) T {
	r.t.Helper()
	f := r.next()
	p, ok := f.Body.(T)
	if !ok {
		r.t.Fatalf("frame %T %+v, want %T", f.Body, f.Body, p)
	}
	return p
}

// wantEnd waits for the end of the stream.
func (r *raw) wantEnd() {
	r.t.Helper()
	timeout := time.After(testTimeout)
	for {
		select {
		case _, ok := <-r.frames:
			if !ok {
				return
			}
		case <-timeout:
			r.t.Fatal("the connection stays open")
		}
	}
}

func (r *raw) begin() {
	r.t.Helper()
	r.send(&amqp.Begin{IncomingWindow: 100, OutgoingWindow: 100})
	if b := expect[*amqp.Begin](r); b.RemoteChannel == nil || *b.RemoteChannel != 0 {
		r.t.Fatalf("begin: %+v", b)
	}
}

// attachSender attaches a link on which the test sends, and returns its credit.
func (r *raw) attachSender(handle uint32, address string) uint32 {
	r.t.Helper()
	r.send(&amqp.Attach{Name: address, Handle: handle, Role: amqp.RoleSender, Source: &amqp.Source{}, Target: &amqp.Target{Address: address}})
	if a := expect[*amqp.Attach](r); a.Target == nil || a.Role != amqp.RoleReceiver || a.MaxMessageSize == 0 {
		r.t.Fatalf("attach: %+v", a)
	}
	f := expect[*amqp.Flow](r)
	if f.NextIncomingID == nil || f.LinkCredit == nil || f.DeliveryCount == nil {
		r.t.Fatalf("flow: %+v", f)
	}
	return *f.LinkCredit
}

func (r *raw) attachReceiver(handle uint32, address string) {
	r.t.Helper()
	r.send(&amqp.Attach{Name: address, Handle: handle, Role: amqp.RoleReceiver, Source: &amqp.Source{Address: address}, Target: &amqp.Target{}})
	if a := expect[*amqp.Attach](r); a.Source == nil || a.Role != amqp.RoleSender {
		r.t.Fatalf("attach: %+v", a)
	}
}

func ptr[T any](v T) *T { return &v }

// credit gives the link of handle 0 credit.
func (r *raw) credit(n uint32, change ...func(*amqp.Flow)) {
	r.t.Helper()
	f := &amqp.Flow{NextIncomingID: ptr(uint32(0)), IncomingWindow: 100, OutgoingWindow: 100, Handle: ptr(uint32(0)), DeliveryCount: ptr(uint32(0)), LinkCredit: &n}
	for _, c := range change {
		c(f)
	}
	r.send(f)
}

func (r *raw) transfer(t *amqp.Transfer, payload []byte) {
	r.t.Helper()
	r.write(encode(r.t, 0, payload, t))
}

func payload(t *testing.T, s string) []byte {
	t.Helper()
	b, err := data(s).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantReason(t *testing.T, got *amqp.Error, want amqp.Symbol) {
	t.Helper()
	if got == nil || got.Condition != want {
		t.Errorf("reason: %v, want %s", got, want)
	}
}

func TestProtocolHeaders(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]amqp.ProtocolHeader{
		"TLS": amqp.TLSHeader, "HTTP": {'G', 'E', 'T', ' ', '/', ' ', 'H', 'T'}, "AMQP 0.9.1": {'A', 'M', 'Q', 'P', 0, 0, 9, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &raw{t: t, conn: serve(t, nodes{}, amqpserver.Options{})}
			r.write(header[:])
			r.readHeader(amqp.AMQPHeader)
			r.start()
			r.wantEnd()
		})
	}
}

// rhea writes everything up to its first attach without waiting for answers, and
// TCP may cut it anywhere.
func TestPipelinedAndSplitFrames(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"at once": 1 << 20, "byte by byte": 1, "in threes": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newNode()
			q.push(data("x"))
			r := &raw{t: t, conn: serve(t, nodes{"q": q}, amqpserver.Options{})}
			stream := append(amqp.AMQPHeader[:], encode(t, 0, nil,
				&amqp.Open{ContainerID: "rhea", MaxFrameSize: 1<<32 - 1, ChannelMax: 65535},
				&amqp.Begin{IncomingWindow: 2048, OutgoingWindow: 1<<32 - 1},
				&amqp.Attach{Name: "l", Role: amqp.RoleReceiver, Source: &amqp.Source{Address: "q"}, Target: &amqp.Target{}},
				&amqp.Flow{IncomingWindow: 2048, OutgoingWindow: 1, Handle: ptr(uint32(0)), LinkCredit: ptr(uint32(1000))},
			)...)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				for part := range slices.Chunk(stream, size) {
					if _, err := r.conn.Write(part); err != nil {
						t.Error(err)
						return
					}
				}
			})
			r.readHeader(amqp.AMQPHeader)
			r.start()
			expect[*amqp.Open](r)
			expect[*amqp.Begin](r)
			expect[*amqp.Attach](r)
			if f := r.next(); !bytes.Equal(f.Payload, payload(t, "x")) {
				t.Errorf("frame: %+v", f)
			}
		})
	}
}

func TestPlainWithoutInitialResponse(t *testing.T) {
	t.Parallel()
	identity := make(chan any, 1)
	r := &raw{t: t, conn: serve(t, nil, amqpserver.Options{
		Plain:      func(_ context.Context, c amqpserver.Credentials) (any, error) { return c, nil },
		NewHandler: func(p amqpserver.Peer) (amqpserver.Handler, error) { identity <- p.Identity; return nodes{}, nil },
	})}
	sasl := func(b amqp.SASLBody) {
		t.Helper()
		frame, err := amqp.AppendSASLFrame(nil, b)
		if err != nil {
			t.Fatal(err)
		}
		r.write(frame)
	}
	r.write(amqp.SASLHeader[:])
	r.readHeader(amqp.SASLHeader)
	if f, err := readFrame(r.conn); err != nil || len(f.Body.(*amqp.SASLMechanisms).Mechanisms) != 2 {
		t.Fatalf("mechanisms: %+v, error %v", f.Body, err)
	}
	sasl(&amqp.SASLInit{Mechanism: "PLAIN"})
	if f, err := readFrame(r.conn); err != nil || len(f.Body.(*amqp.SASLChallenge).Challenge) != 0 {
		t.Fatalf("challenge: %+v, error %v", f.Body, err)
	}
	sasl(&amqp.SASLResponse{Response: []byte("z\x00u\x00p")})
	if f, err := readFrame(r.conn); err != nil || f.Body.(*amqp.SASLOutcome).Code != amqp.SASLOK {
		t.Fatalf("outcome: %+v, error %v", f.Body, err)
	}
	// Nothing more comes before the second header: go-amqp would fail on it.
	r.write(amqp.AMQPHeader[:])
	r.readHeader(amqp.AMQPHeader)
	r.send(&amqp.Open{ContainerID: "c", MaxFrameSize: 512})
	r.start()
	expect[*amqp.Open](r)
	if got := <-identity; got != (amqpserver.Credentials{AuthorizationID: "z", User: "u", Password: "p"}) {
		t.Errorf("identity: %v", got)
	}
}

func TestBadOpen(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]amqp.Performative{
		"no container":     &amqp.Open{MaxFrameSize: 512},
		"frames too small": &amqp.Open{ContainerID: "c", MaxFrameSize: 511},
		"not an open":      &amqp.Begin{},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &raw{t: t, conn: serve(t, nodes{}, amqpserver.Options{})}
			r.write(amqp.AMQPHeader[:])
			r.readHeader(amqp.AMQPHeader)
			r.send(p)
			r.start()
			expect[*amqp.Open](r)
			if expect[*amqp.Close](r).Error == nil {
				t.Error("closed without a reason")
			}
			r.wantEnd()
		})
	}
}

func TestConnectionBreaches(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		bytes []byte
		want  amqp.Symbol
	}{
		"garbage":             {bytes.Repeat([]byte{0xff}, 16), amqp.CondFramingError},
		"SASL frame":          {[]byte{0, 0, 0, 12, 2, 1, 0, 0, 0, 0x53, 0x42, 0x45}, amqp.CondFramingError},
		"frame too large":     {[]byte{0, 1, 0, 1}, amqp.CondFramingError},
		"unknown channel":     {encode(t, 9, nil, &amqp.Detach{}), amqp.CondIllegalState},
		"session begun twice": {encode(t, 0, nil, &amqp.Begin{}, &amqp.Begin{}), amqp.CondIllegalState},
		"second open":         {encode(t, 0, nil, &amqp.Begin{}, &amqp.Open{ContainerID: "c"}), amqp.CondIllegalState},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRaw(t, nodes{})
			r.write(tt.bytes)
			for {
				f := r.next()
				if c, ok := f.Body.(*amqp.Close); ok {
					wantReason(t, c.Error, tt.want)
					break
				}
			}
			r.wantEnd()
		})
	}
}

func TestSessionBreaches(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		p    amqp.Performative
		want amqp.Symbol
	}{
		"flow for no link":     {&amqp.Flow{Handle: ptr(uint32(9))}, amqp.CondUnattachedHandle},
		"transfer for no link": {&amqp.Transfer{Handle: 9}, amqp.CondUnattachedHandle},
		"detach for no link":   {&amqp.Detach{Handle: 9}, amqp.CondUnattachedHandle},
		"handle in use":        {&amqp.Attach{Name: "other", Handle: 0}, amqp.CondHandleInUse},
		"handle out of range":  {&amqp.Attach{Name: "other", Handle: 1 << 20}, amqp.CondHandleInUse},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newNode()
			r := newRaw(t, nodes{"q": q})
			r.begin()
			r.attachReceiver(0, "q")
			r.send(tt.p)
			wantReason(t, expect[*amqp.End](r).Error, tt.want)
			q.wait(t, "the link is closed", func() bool { return q.closed == 1 })
			// What the peer sent before it knew is ignored; then its end frees
			// the channel.
			r.send(&amqp.Detach{Handle: 0}, &amqp.Transfer{}, &amqp.Flow{}, &amqp.Disposition{Role: amqp.RoleReceiver}, &amqp.End{})
			r.begin()
		})
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	r := newRaw(t, nodes{})
	r.send(&amqp.Close{})
	if c := expect[*amqp.Close](r); c.Error != nil {
		t.Errorf("reason: %v", c.Error)
	}
	r.wantEnd()
}

func TestEcho(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q, "sink": newNode()})
	r.begin()
	r.attachReceiver(0, "q")
	credit := r.attachSender(1, "sink")
	r.send(&amqp.Flow{NextIncomingID: ptr(uint32(0)), IncomingWindow: 100, OutgoingWindow: 1, Echo: true})
	if f := expect[*amqp.Flow](r); f.Handle != nil || f.NextIncomingID == nil {
		t.Errorf("session flow: %+v", f)
	}
	r.credit(5, func(f *amqp.Flow) { f.Echo = true })
	if f := expect[*amqp.Flow](r); *f.Handle != 0 || *f.LinkCredit != 5 || *f.DeliveryCount != 0 {
		t.Errorf("flow of the receiver: %+v", f)
	}
	r.send(&amqp.Flow{NextIncomingID: ptr(uint32(0)), IncomingWindow: 100, OutgoingWindow: 1, Handle: ptr(uint32(1)), Echo: true})
	if f := expect[*amqp.Flow](r); *f.Handle != 1 || *f.LinkCredit != credit {
		t.Errorf("flow of the sender: %+v", f)
	}
}

func TestTransferWithoutCredit(t *testing.T) {
	t.Parallel()
	q := newNode()
	q.onOpen = func(a *amqpserver.Attach) error { a.Credit = 2; return nil }
	q.verdict = func(*amqp.Message) error { return nil }
	r := newRaw(t, nodes{"q": q})
	r.begin()
	if credit := r.attachSender(0, "q"); credit != 2 {
		t.Fatalf("credit: %d", credit)
	}
	for i := range uint32(3) { // never complete, so the credit is not given again
		r.transfer(&amqp.Transfer{DeliveryID: &i, More: true}, nil)
		r.transfer(&amqp.Transfer{More: false, Settled: true}, payload(t, "x"))
	}
	// Each delivery was settled at once, so credit came back: no breach yet.
	q.wait(t, "three messages are there", func() bool { return len(q.messages) == 3 })

	slow := newNode()
	slow.onOpen = q.onOpen
	held := &holdingTarget{}
	r = newRaw(t, targetHandler{held})
	r.begin()
	r.attachSender(0, "any")
	for i := range uint32(300) {
		r.transfer(&amqp.Transfer{DeliveryID: &i, DeliveryTag: []byte{1}}, payload(t, "x"))
	}
	wantReason(t, expect[*amqp.Detach](r).Error, amqp.CondTransferLimitExceeded)
}

// holdingTarget never settles.
type holdingTarget struct{}

func (*holdingTarget) Deliver(context.Context, *amqpserver.Incoming) {}
func (*holdingTarget) Close()                                        {}

// targetHandler leads every sender to one target.
type targetHandler struct{ target amqpserver.Target }

func (h targetHandler) OpenTarget(context.Context, *amqpserver.Attach) (amqpserver.Target, error) {
	return h.target, nil
}

func (h targetHandler) OpenSource(context.Context, *amqpserver.Attach) (amqpserver.Source, error) {
	return nil, errors.New("no source")
}

func (h targetHandler) Close() {}

func TestMultiFrameTransfers(t *testing.T) {
	t.Parallel()
	q := newNode()
	q.onOpen = func(a *amqpserver.Attach) error { a.MaxMessageSize = 100; return nil }
	r := newRaw(t, nodes{"q": q})
	r.begin()
	r.attachSender(0, "q")
	whole := payload(t, "hello")
	id := func(n uint32) *uint32 { return &n }

	r.transfer(&amqp.Transfer{DeliveryID: id(0), More: true}, whole[:3])
	r.transfer(&amqp.Transfer{Aborted: true}, nil) // as if it had not been sent

	r.transfer(&amqp.Transfer{DeliveryID: id(1), DeliveryTag: []byte("t"), More: true}, whole[:3])
	r.transfer(&amqp.Transfer{More: true}, nil)
	r.transfer(&amqp.Transfer{}, whole[3:])
	d := expect[*amqp.Disposition](r)
	if _, ok := d.State.(*amqp.Accepted); !ok || d.First != 1 || !d.Settled || d.Role != amqp.RoleReceiver {
		t.Errorf("disposition: %+v", d)
	}
	if len(q.messages) != 1 || string(q.messages[0].Body()) != "hello" {
		t.Errorf("messages: %v", q.messages)
	}

	r.transfer(&amqp.Transfer{DeliveryID: id(2), More: true}, make([]byte, 60))
	r.transfer(&amqp.Transfer{More: true}, make([]byte, 60))
	r.transfer(&amqp.Transfer{}, make([]byte, 60))
	d = expect[*amqp.Disposition](r)
	if state, ok := d.State.(*amqp.Rejected); !ok || d.First != 2 {
		t.Errorf("disposition: %+v", d)
	} else {
		wantReason(t, state.Error, amqp.CondMessageSizeExceeded)
	}

	r.transfer(&amqp.Transfer{DeliveryID: id(3), Settled: true}, make([]byte, 120))
	wantReason(t, expect[*amqp.Detach](r).Error, amqp.CondMessageSizeExceeded)
}

func TestTransferWithoutDeliveryID(t *testing.T) {
	t.Parallel()
	r := newRaw(t, nodes{"q": newNode()})
	r.begin()
	r.attachSender(0, "q")
	r.transfer(&amqp.Transfer{}, payload(t, "x"))
	wantReason(t, expect[*amqp.Detach](r).Error, amqp.CondInvalidField)
	// The detach awaits its answer; then the handle is free.
	r.transfer(&amqp.Transfer{DeliveryID: ptr(uint32(1))}, payload(t, "x"))
	r.send(&amqp.Detach{Handle: 0, Closed: true})
	r.attachSender(0, "q")
}

// One disposition may cover many deliveries, some of them settled or never sent.
func TestDispositionRanges(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q})
	r.begin()
	r.attachReceiver(0, "q")
	for range 5 {
		q.push(data("x"))
	}
	r.credit(5)
	for i := range uint32(5) {
		if x := expect[*amqp.Transfer](r); *x.DeliveryID != i || len(x.DeliveryTag) == 0 || *x.MessageFormat != 0 {
			t.Fatalf("transfer: %+v", x)
		}
	}
	accepted := &amqp.Accepted{}
	r.send(
		&amqp.Disposition{Role: amqp.RoleReceiver, First: 7, Last: 1 << 31, Settled: true, State: accepted},    // never sent
		&amqp.Disposition{Role: amqp.RoleReceiver, First: 0, Last: 0, State: &amqp.Received{SectionNumber: 1}}, // not decided
		&amqp.Disposition{Role: amqp.RoleSender, First: 0, Last: 4, Settled: true, State: accepted},            // the other direction
		&amqp.Disposition{Role: amqp.RoleReceiver, First: 1, Last: 2, State: &amqp.Released{}},
		&amqp.Disposition{Role: amqp.RoleReceiver, First: 0, Last: 1<<32 - 1, Settled: true}, // the rest, without a state
	)
	for _, id := range []uint32{1, 2} {
		d := expect[*amqp.Disposition](r)
		if d.First != id || d.Role != amqp.RoleSender || !d.Settled {
			t.Errorf("disposition: %+v", d)
		}
	}
	q.wait(t, "all are settled", func() bool { return len(q.outcomes) == 5 })
	for _, o := range q.outcomes {
		if _, ok := o.(*amqp.Released); !ok {
			t.Errorf("outcome: %T", o)
		}
	}
}

func TestSessionWindowStopsTransfers(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q})
	r.send(&amqp.Begin{IncomingWindow: 2, OutgoingWindow: 1})
	expect[*amqp.Begin](r)
	r.attachReceiver(0, "q")
	q.push(data(string(bytes.Repeat([]byte("x"), 1200)))) // four frames of 512 bytes
	window := func(next, size uint32) func(*amqp.Flow) {
		return func(f *amqp.Flow) { f.NextIncomingID, f.IncomingWindow = &next, size }
	}
	r.credit(1, window(0, 2))
	var body []byte
	for range 2 {
		f := r.next()
		if x := f.Body.(*amqp.Transfer); !x.More {
			t.Fatalf("transfer: %+v", x)
		}
		body = append(body, f.Payload...)
	}
	// An echo shows that nothing else was sent.
	r.send(&amqp.Flow{NextIncomingID: ptr(uint32(2)), IncomingWindow: 0, OutgoingWindow: 1, Echo: true})
	expect[*amqp.Flow](r)
	r.send(&amqp.Flow{NextIncomingID: ptr(uint32(2)), IncomingWindow: 10, OutgoingWindow: 1})
	for more := true; more; {
		f := r.next()
		x := f.Body.(*amqp.Transfer)
		more = x.More
		body = append(body, f.Payload...)
	}
	m := new(amqp.Message)
	if err := m.UnmarshalBinary(body); err != nil || len(m.Body()) != 1200 {
		t.Errorf("message of %d bytes, error %v", len(m.Body()), err)
	}
}

func TestWindowViolationEndsSession(t *testing.T) {
	t.Parallel()
	r := newRaw(t, targetHandler{&holdingTarget{}})
	r.send(&amqp.Begin{IncomingWindow: 100, OutgoingWindow: 100})
	window := expect[*amqp.Begin](r).IncomingWindow
	r.attachSender(0, "q")
	// Half of it is told again on the way.
	frames := bytes.Repeat(encode(t, 0, nil, &amqp.Transfer{DeliveryID: ptr(uint32(0)), More: true}), int(window/2))
	r.write(frames)
	if f := expect[*amqp.Flow](r); f.Handle != nil || f.IncomingWindow != window {
		t.Errorf("flow: %+v", f)
	}
}

func TestCreditTakenBack(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q})
	r.begin()
	r.attachReceiver(0, "q")
	r.credit(5)
	r.credit(0, func(f *amqp.Flow) { f.Echo = true })
	if f := expect[*amqp.Flow](r); *f.LinkCredit != 0 {
		t.Errorf("flow: %+v", f)
	}
	// The node signalled this link for the message, so it has to give it back.
	q.push(data("x"))
	q.wait(t, "the message is returned", func() bool { return q.returned == 1 || len(q.messages) == 1 })
	r.credit(1)
	expect[*amqp.Transfer](r)
}

func TestDrainSendsWhatIsThere(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q})
	r.begin()
	r.attachReceiver(0, "q")
	q.push(data("a"), data("b"))
	r.credit(10, func(f *amqp.Flow) { f.Drain = true })
	expect[*amqp.Transfer](r)
	expect[*amqp.Transfer](r)
	f := expect[*amqp.Flow](r)
	if !f.Drain || *f.LinkCredit != 0 || *f.DeliveryCount != 10 {
		t.Errorf("flow: %+v", f)
	}
}

// blockingHandler answers attaches when it is told to.
type blockingHandler struct {
	nodes
	release chan struct{}
	ended   chan error
}

func (h blockingHandler) OpenSource(ctx context.Context, a *amqpserver.Attach) (amqpserver.Source, error) {
	select {
	case <-h.release:
	case <-ctx.Done():
		h.ended <- ctx.Err()
	}
	return h.nodes.OpenSource(ctx, a)
}

func TestDetachBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	q := newNode()
	h := blockingHandler{nodes{"q": q}, make(chan struct{}), make(chan error, 1)}
	r := newRaw(t, h)
	r.begin()
	r.send(&amqp.Attach{Name: "l", Role: amqp.RoleReceiver, Source: &amqp.Source{Address: "q"}}, &amqp.Detach{Closed: true})
	// Both are answered, so that the peer can pair and free its handle.
	if a := expect[*amqp.Attach](r); a.Source != nil || a.Name != "l" {
		t.Errorf("attach: %+v", a)
	}
	if d := expect[*amqp.Detach](r); !d.Closed {
		t.Errorf("detach: %+v", d)
	}
	if err := <-h.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("context ended with %v", err)
	}
	q.wait(t, "the source is closed", func() bool { return q.closed == 1 })
	close(h.release)
	r.attachReceiver(0, "q")
}

// run serves one end of a pipe in a bubble of virtual time, and returns the
// other end, opened, with the result of ServeConn to come.
func run(t *testing.T, opts amqpserver.Options, idle uint32) (*raw, chan error) {
	t.Helper()
	if opts.NewHandler == nil {
		opts.NewHandler = func(amqpserver.Peer) (amqpserver.Handler, error) { return nodes{}, nil }
	}
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- amqpserver.New(opts).ServeConn(context.Background(), theirs) }()
	r := &raw{t: t, conn: ours}
	r.write(amqp.AMQPHeader[:])
	r.readHeader(amqp.AMQPHeader)
	r.send(&amqp.Open{ContainerID: "raw", MaxFrameSize: 512, IdleTimeout: idle})
	f, err := readFrame(ours)
	if err != nil || f.Body.(*amqp.Open).IdleTimeout != 120_000 {
		t.Fatalf("open: %+v, error %v", f.Body, err)
	}
	return r, done
}

func TestSameLinkNameTakesOver(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q})
	r.begin()
	r.attachReceiver(0, "q")
	r.send(&amqp.Attach{Name: "q", Handle: 1, Role: amqp.RoleReceiver, Source: &amqp.Source{Address: "q"}, Target: &amqp.Target{}})
	if d := expect[*amqp.Detach](r); d.Handle != 0 || d.Error == nil || d.Error.Condition != amqp.CondStolen {
		t.Errorf("detach: %+v", d)
	}
	if a := expect[*amqp.Attach](r); a.Handle != 1 || a.Source == nil {
		t.Errorf("attach: %+v", a)
	}
}

func TestHeartbeats(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		idle uint32
		want time.Duration
	}{
		"go-amqp":         {30_000, 15 * time.Second},
		"no idle timeout": {0, 15 * time.Second},
		"impatient":       {4_000, 2 * time.Second},
		"unreasonable":    {1, 50 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, done := run(t, amqpserver.Options{}, tt.idle)
				for range 3 {
					start := time.Now()
					f, err := readFrame(r.conn)
					if err != nil || f.Body != nil {
						t.Fatalf("frame %+v, error %v", f, err)
					}
					if got := time.Since(start); got != tt.want {
						t.Errorf("heartbeat after %v, want %v", got, tt.want)
					}
				}
				r.conn.Close()
				if err := <-done; err != nil {
					t.Errorf("result: %v", err)
				}
			})
		})
	}
}

func TestSilentPeerIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, done := run(t, amqpserver.Options{FirstLinkTimeout: time.Hour}, 0)
		r.start()
		time.Sleep(3 * time.Minute)             // of virtual time
		r.write([]byte{0, 0, 0, 8, 2, 0, 0, 0}) // a heartbeat
		start := time.Now()
		closed := make(chan *amqp.Close, 1)
		go func() {
			for f := range r.frames {
				if c, ok := f.Body.(*amqp.Close); ok {
					closed <- c
				}
			}
		}()
		wantReason(t, (<-closed).Error, amqp.CondConnectionForced)
		if got := time.Since(start); got != 4*time.Minute {
			t.Errorf("closed after %v", got)
		}
		if err := <-done; err == nil {
			t.Error("no error for a silent peer")
		}
	})
}

func TestHandshakeHasALimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		start := time.Now()
		err := amqpserver.New(amqpserver.Options{}).ServeConn(context.Background(), theirs)
		if err == nil || time.Since(start) != 30*time.Second {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
	})
}

// A peer that never reads must not keep the server from closing.
func TestPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, done := run(t, amqpserver.Options{FirstLinkTimeout: time.Hour}, 0)
		err := <-done // the first heartbeat is never read
		if err == nil {
			t.Error("no error for a peer that doesn't read")
		}
		r.conn.Close()
	})
}

// failingConn is a connection whose writes fail after some bytes.
type failingConn struct {
	net.Conn
	mu   sync.Mutex
	left int
}

var errBroken = errors.New("broken wire")

func (c *failingConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left -= len(b); c.left < 0 {
		return 0, errBroken
	}
	return c.Conn.Write(b)
}

func TestFailedWritesEndTheConnection(t *testing.T) {
	t.Parallel()
	ours, theirs := pipe(t)
	q := newNode()
	q.push(data(string(make([]byte, 2000))))
	s := amqpserver.New(amqpserver.Options{NewHandler: func(amqpserver.Peer) (amqpserver.Handler, error) { return nodes{"q": q}, nil }})
	done := make(chan error, 1)
	go func() { done <- s.ServeConn(context.Background(), &failingConn{Conn: theirs, left: 700}) }()
	r := &raw{t: t, conn: ours}
	r.write(amqp.AMQPHeader[:])
	r.readHeader(amqp.AMQPHeader)
	r.send(&amqp.Open{ContainerID: "raw", MaxFrameSize: 512})
	r.start()
	expect[*amqp.Open](r)
	r.begin()
	r.attachReceiver(0, "q")
	r.credit(1)
	if err := <-done; !errors.Is(err, errBroken) {
		t.Errorf("result: %v", err)
	}
	q.wait(t, "the link is closed", func() bool { return q.closed == 1 })
}

func TestConnectionLostWithinAFrame(t *testing.T) {
	t.Parallel()
	ours, theirs := pipe(t)
	q := newNode()
	s := amqpserver.New(amqpserver.Options{NewHandler: func(amqpserver.Peer) (amqpserver.Handler, error) { return nodes{"q": q}, nil }})
	done := make(chan error, 1)
	go func() { done <- s.ServeConn(context.Background(), theirs) }()
	r := &raw{t: t, conn: ours}
	r.write(amqp.AMQPHeader[:])
	r.readHeader(amqp.AMQPHeader)
	r.send(&amqp.Open{ContainerID: "raw", MaxFrameSize: 512})
	r.start()
	expect[*amqp.Open](r)
	r.begin()
	r.attachSender(0, "q")
	r.transfer(&amqp.Transfer{DeliveryID: ptr(uint32(0)), More: true}, payload(t, "half a message"))
	r.write([]byte{0, 0, 0, 20, 2})
	ours.Close()
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("result: %v", err)
	}
	if len(q.messages) != 0 || q.closed != 1 {
		t.Errorf("%d messages, closed %d times", len(q.messages), q.closed)
	}
}
