package amqpserver_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	client "github.com/Azure/go-amqp"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds every wait of a test, so that a hang becomes a failure.
const testTimeout = 20 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// node is a queue without persistence that both ends of a link can lead to. It
// records how deliveries ended.
type node struct {
	mu       sync.Mutex
	messages []*amqp.Message
	outcomes []amqp.DeliveryState
	returned int
	changed  chan struct{} // closed and replaced at each change
	fail     error         // given by Next, once set
	closed   int

	verdict func(m *amqp.Message) error // of Deliver; nil accepts
	onOpen  func(a *amqpserver.Attach) error
	reply   amqp.DeliveryState // to settlements; nil echoes
}

func newNode() *node { return &node{changed: make(chan struct{})} }

func (n *node) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// wait waits until cond, called under the lock, holds.
func (n *node) wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	timeout := time.After(testTimeout)
	for {
		n.mu.Lock()
		ok, changed := cond(), n.changed
		n.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

func (n *node) push(msgs ...*amqp.Message) {
	n.change(func() { n.messages = append(n.messages, msgs...) })
}

func (n *node) Next(context.Context) (*amqpserver.Outgoing, error) {
	var out *amqpserver.Outgoing
	var err error
	n.mu.Lock()
	defer n.mu.Unlock()
	if err = n.fail; err == nil && len(n.messages) > 0 {
		out = &amqpserver.Outgoing{Message: n.messages[0], Settler: &settler{n, n.messages[0]}}
		n.messages = n.messages[1:]
	}
	return out, err
}

func (n *node) Ready() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.messages) > 0 || n.fail != nil {
		ready := make(chan struct{})
		close(ready)
		return ready
	}
	return n.changed
}

func (n *node) Deliver(_ context.Context, in *amqpserver.Incoming) {
	msgs, err := in.Messages()
	if err == nil && n.verdict != nil {
		err = n.verdict(msgs[0])
	}
	if err != nil {
		in.Reject(err)
		return
	}
	n.push(msgs...)
	in.Accept()
}

func (n *node) Close() { n.change(func() { n.closed++ }) }

type settler struct {
	n *node
	m *amqp.Message
}

func (s *settler) Settle(outcome amqp.DeliveryState, done func(amqp.DeliveryState)) {
	reply := s.n.reply
	if reply == nil {
		reply = outcome
	}
	done(reply)
	s.n.change(func() { s.n.outcomes = append(s.n.outcomes, outcome) })
}

func (s *settler) Return() {
	s.n.change(func() {
		s.n.returned++
		s.n.messages = append([]*amqp.Message{s.m}, s.n.messages...)
	})
}

// nodes is a handler that knows its nodes by address.
type nodes map[string]*node

func (h nodes) open(a *amqpserver.Attach) (*node, error) {
	n := h[a.Address]
	if n == nil {
		return nil, amqp.Errorf(amqp.CondNotFound, "no node %q", a.Address)
	}
	if n.onOpen != nil {
		if err := n.onOpen(a); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (h nodes) OpenSource(_ context.Context, a *amqpserver.Attach) (amqpserver.Source, error) {
	n, err := h.open(a)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (h nodes) OpenTarget(_ context.Context, a *amqpserver.Attach) (amqpserver.Target, error) {
	n, err := h.open(a)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (h nodes) Close() {}

// serve starts a server for h and returns the client's end of a connection.
func serve(t *testing.T, h amqpserver.Handler, opts amqpserver.Options) net.Conn {
	t.Helper()
	if opts.NewHandler == nil {
		opts.NewHandler = func(amqpserver.Peer) (amqpserver.Handler, error) { return h, nil }
	}
	s := amqpserver.New(opts)
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.ServeConn(context.Background(), theirs); err != nil {
			t.Logf("connection ended: %v", err)
		}
	}()
	t.Cleanup(func() {
		ours.Close()
		if err := s.Close(testContext(t)); err != nil {
			t.Error(err)
		}
		<-done
	})
	return ours
}

// dial connects go-amqp to h and opens a session.
func dial(t *testing.T, h amqpserver.Handler) *client.Session {
	t.Helper()
	ctx := testContext(t)
	conn, err := client.NewConn(ctx, serve(t, h, amqpserver.Options{}), &client.ConnOptions{SASLType: client.SASLTypeAnonymous()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func text(s string) *client.Message { return client.NewMessage([]byte(s)) }

func TestMessageGoesInAndOut(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	session := dial(t, nodes{"q": q})
	sender, err := session.NewSender(ctx, "q", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Send(ctx, text("hello"), nil); err != nil {
		t.Fatal(err)
	}
	receiver, err := session.NewReceiver(ctx, "q", nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := receiver.Receive(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if string(m.GetData()) != "hello" {
		t.Errorf("body: %q", m.GetData())
	}
	if err := receiver.AcceptMessage(ctx, m); err != nil {
		t.Fatal(err)
	}
	q.wait(t, "the message is settled", func() bool { return len(q.outcomes) == 1 })
	if _, ok := q.outcomes[0].(*amqp.Accepted); !ok {
		t.Errorf("outcome: %T", q.outcomes[0])
	}
}
