package amqpserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	client "github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

// These tests drive the server with go-amqp, on which the Azure SDKs for Go
// stand.

func newSender(t *testing.T, s *client.Session, target string, opts *client.SenderOptions) *client.Sender {
	t.Helper()
	l, err := s.NewSender(testContext(t), target, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newReceiver(t *testing.T, s *client.Session, source string, opts *client.ReceiverOptions) *client.Receiver {
	t.Helper()
	l, err := s.NewReceiver(testContext(t), source, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func receive(t *testing.T, r *client.Receiver) *client.Message {
	t.Helper()
	m, err := r.Receive(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func data(s string) *amqp.Message { return &amqp.Message{Data: [][]byte{[]byte(s)}} }

func wantCondition(t *testing.T, err error, want amqp.Symbol) {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Condition != client.ErrCond(want) {
		t.Errorf("error %v, want condition %s", err, want)
	}
}

func TestLargeMessagesAreSplit(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	q.onOpen = func(a *amqpserver.Attach) error { a.MaxMessageSize = 4 << 20; return nil }
	conn, err := client.NewConn(ctx, serve(t, nodes{"q": q}, amqpserver.Options{}), &client.ConnOptions{MaxFrameSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Repeat("0123456789", 200_000)
	if err := newSender(t, session, "q", nil).Send(ctx, text(body), nil); err != nil {
		t.Fatal(err)
	}
	// 2 MB in frames of 1000 bytes also need several session windows.
	if got := receive(t, newReceiver(t, session, "q", nil)); string(got.GetData()) != body {
		t.Errorf("body of %d bytes, want %d", len(got.GetData()), len(body))
	}
}

// More messages than credit and windows allow at once, both ways.
func TestCreditAndWindowsAreGivenAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	session := dial(t, nodes{"q": q})
	const n = 12_000
	sender := newSender(t, session, "q", &client.SenderOptions{SettlementMode: client.SenderSettleModeSettled.Ptr()})
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			if err := sender.Send(ctx, text(fmt.Sprint(i)), nil); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	receiver := newReceiver(t, session, "q", &client.ReceiverOptions{Credit: 100})
	for i := range n {
		m := receive(t, receiver)
		if got := string(m.GetData()); got != fmt.Sprint(i) {
			t.Fatalf("message %q at position %d", got, i)
		}
		if err := receiver.AcceptMessage(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	q.wait(t, "all are settled", func() bool { return len(q.outcomes) == n })
}

func TestOutcomesInTwoSteps(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	receiver := newReceiver(t, dial(t, nodes{"q": q}), "q", &client.ReceiverOptions{
		SettlementMode: client.ReceiverSettleModeSecond.Ptr(),
	})
	for name, settle := range map[string]func(*client.Message) error{
		"*amqp.Accepted": func(m *client.Message) error { return receiver.AcceptMessage(ctx, m) },
		"*amqp.Released": func(m *client.Message) error { return receiver.ReleaseMessage(ctx, m) },
		"*amqp.Rejected": func(m *client.Message) error { return receiver.RejectMessage(ctx, m, nil) },
		"*amqp.Modified": func(m *client.Message) error {
			return receiver.ModifyMessage(ctx, m, &client.ModifyMessageOptions{UndeliverableHere: true})
		},
	} {
		q.push(data("x"))
		if err := settle(receive(t, receiver)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The call came back, so the node has settled.
		q.wait(t, "settled", func() bool { return len(q.outcomes) > 0 })
		if got := fmt.Sprintf("%T", q.outcomes[0]); got != name {
			t.Errorf("outcome %s, want %s", got, name)
		}
		q.change(func() { q.outcomes = nil })
	}
}

func TestRefusedSettlementReachesTheReceiver(t *testing.T) {
	t.Parallel()
	q := newNode()
	q.reply = &amqp.Rejected{Error: amqp.Errorf("com.microsoft:message-lock-lost", "too late")}
	receiver := newReceiver(t, dial(t, nodes{"q": q}), "q", &client.ReceiverOptions{
		SettlementMode: client.ReceiverSettleModeSecond.Ptr(),
	})
	q.push(data("x"))
	err := receiver.AcceptMessage(testContext(t), receive(t, receiver))
	wantCondition(t, err, "com.microsoft:message-lock-lost")
}

func TestSettledTransfers(t *testing.T) {
	t.Parallel()
	q := newNode()
	session := dial(t, nodes{"q": q})
	sender := newSender(t, session, "q", &client.SenderOptions{SettlementMode: client.SenderSettleModeSettled.Ptr()})
	if err := sender.Send(testContext(t), text("x"), nil); err != nil {
		t.Fatal(err)
	}
	receiver := newReceiver(t, session, "q", &client.ReceiverOptions{
		RequestedSenderSettleMode: client.SenderSettleModeSettled.Ptr(),
	})
	if m := receive(t, receiver); string(m.GetData()) != "x" {
		t.Errorf("message: %q", m.GetData())
	}
	q.wait(t, "the node knows that it was sent", func() bool { return len(q.outcomes) == 1 })
}

func TestRejectionReachesTheSender(t *testing.T) {
	t.Parallel()
	q := newNode()
	q.verdict = func(m *amqp.Message) error {
		if string(m.Body()) == "secret" {
			return errors.New("the handler's own affair")
		}
		return &amqp.Error{Condition: amqp.CondNotAllowed, Description: "bad \xff", Info: map[string]any{"code": int32(7)}}
	}
	sender := newSender(t, dial(t, nodes{"q": q}), "q", nil)
	err := sender.Send(testContext(t), text("x"), nil)
	wantCondition(t, err, amqp.CondNotAllowed)
	var e *client.Error
	if errors.As(err, &e) && (e.Description != "bad ?" || e.Info["code"] != int32(7)) {
		t.Errorf("error: %+v", e)
	}
	err = sender.Send(testContext(t), text("secret"), nil)
	wantCondition(t, err, amqp.CondInternalError)
	if strings.Contains(err.Error(), "own affair") {
		t.Errorf("the peer was told %v", err)
	}
}

func TestUnreadableMessageIsRejected(t *testing.T) {
	t.Parallel()
	sender := newSender(t, dial(t, nodes{"q": newNode()}), "q", nil)
	for name, m := range map[string]*client.Message{
		"unknown format": {Format: 5, Data: [][]byte{nil}},
		"empty batch":    {Format: amqp.BatchFormat, Value: "no data"},
		"bad batch":      {Format: amqp.BatchFormat, Data: [][]byte{{0x40}}},
	} {
		if err := sender.Send(testContext(t), m, nil); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := sender.Send(testContext(t), text("fine"), nil); err != nil {
		t.Errorf("the link did not survive: %v", err)
	}
}

func TestBatchIsUnpacked(t *testing.T) {
	t.Parallel()
	q := newNode()
	batch := &client.Message{Format: amqp.BatchFormat}
	for _, s := range []string{"a", "b", "c"} {
		b, err := text(s).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		batch.Data = append(batch.Data, b)
	}
	if err := newSender(t, dial(t, nodes{"q": q}), "q", nil).Send(testContext(t), batch, nil); err != nil {
		t.Fatal(err)
	}
	if len(q.messages) != 3 || string(q.messages[2].Body()) != "c" {
		t.Errorf("messages: %v", q.messages)
	}
}

// go-amqp asks to drain with a credit of 0; TestDrainSendsWhatIsThere is the
// specification's way.
func TestDrain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	receiver := newReceiver(t, dial(t, nodes{"q": q}), "q", &client.ReceiverOptions{Credit: -1})
	if err := receiver.DrainCredit(ctx, nil); err != nil { // without any credit
		t.Fatal(err)
	}
	if err := receiver.IssueCredit(10); err != nil {
		t.Fatal(err)
	}
	q.push(data("a"))
	receive(t, receiver) // so the credit has reached the server
	if err := receiver.DrainCredit(ctx, nil); err != nil {
		t.Fatal(err)
	}
	q.push(data("b"))
	if err := receiver.DrainCredit(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if m := receiver.Prefetched(); m != nil {
		t.Errorf("message %s without credit", m.GetData())
	}
	if err := receiver.IssueCredit(1); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, receiver); string(m.GetData()) != "b" {
		t.Errorf("message: %s", m.GetData())
	}
}

func TestRefusedAttach(t *testing.T) {
	t.Parallel()
	session := dial(t, nodes{"q": newNode()})
	for range 3 { // handles are free again each time
		_, err := session.NewReceiver(testContext(t), "nowhere", nil)
		wantCondition(t, err, amqp.CondNotFound)
		_, err = session.NewSender(testContext(t), "nowhere", nil)
		wantCondition(t, err, amqp.CondNotFound)
	}
	newSender(t, session, "q", nil)
}

func TestAttachSeesAndAnswers(t *testing.T) {
	t.Parallel()
	var seen *amqpserver.Attach
	q := newNode()
	q.onOpen = func(a *amqpserver.Attach) error {
		seen = a
		a.ReplyProperties = map[string]any{"answer": int64(42)}
		return nil
	}
	receiver := newReceiver(t, dial(t, nodes{"q": q}), "q", &client.ReceiverOptions{
		TargetAddress: "me",
		Name:          "the link",
		Properties:    map[string]any{"question": int32(6)},
		Filters:       []client.LinkFilter{client.NewSelectorFilter("x > 1")},
	})
	if seen.Name != "the link" || seen.Address != "q" || seen.PeerAddress != "me" || seen.Properties["question"] != int32(6) {
		t.Errorf("attach: %+v", seen)
	}
	if f, _ := seen.Filter["apache.org:selector-filter:string"].(amqp.Described); f.Value != "x > 1" {
		t.Errorf("filter: %v", seen.Filter)
	}
	if receiver.Properties()["answer"] != int64(42) {
		t.Errorf("reply properties: %v", receiver.Properties())
	}
	if got := receiver.LinkSourceFilterValue("apache.org:selector-filter:string"); got != "x > 1" {
		t.Errorf("reply filter: %v", got)
	}
}

func TestDetachByTheServer(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	var attach *amqpserver.Attach
	source, target, early := newNode(), newNode(), newNode()
	target.onOpen = func(a *amqpserver.Attach) error { attach = a; return nil }
	early.onOpen = func(a *amqpserver.Attach) error {
		a.Detach(amqp.Errorf(amqp.CondStolen, "taken"))
		a.Detach(amqp.Errorf(amqp.CondInternalError, "not the first"))
		return nil
	}
	session := dial(t, nodes{"source": source, "target": target, "early": early})

	receiver := newReceiver(t, session, "source", nil)
	source.change(func() { source.fail = amqp.Errorf(amqp.CondResourceDeleted, "gone") })
	_, err := receiver.Receive(ctx, nil)
	wantCondition(t, err, amqp.CondResourceDeleted)

	sender := newSender(t, session, "target", nil)
	attach.Detach(amqp.Errorf(amqp.CondUnauthorizedAccess, "expired"))
	for err = nil; err == nil; {
		err = sender.Send(ctx, text("x"), nil)
	}
	wantCondition(t, err, amqp.CondUnauthorizedAccess)

	_, err = newReceiver(t, session, "early", nil).Receive(ctx, nil)
	wantCondition(t, err, amqp.CondStolen)
	for _, n := range []*node{source, target, early} {
		n.wait(t, "the node is closed", func() bool { return n.closed == 1 })
	}
}

// The IoT SDK for C# names the links of each session the same.
func TestSessionsShareLinkNames(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a, b := newNode(), newNode()
	conn, err := client.NewConn(ctx, serve(t, nodes{"a": a, "b": b}, amqpserver.Options{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var receivers []*client.Receiver
	for _, address := range []string{"a", "b"} {
		session, err := conn.NewSession(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		receivers = append(receivers, newReceiver(t, session, address, &client.ReceiverOptions{Name: "same"}))
	}
	a.push(data("x"))
	b.push(data("y"))
	for i, want := range []string{"x", "y"} {
		if got := string(receive(t, receivers[i]).GetData()); got != want {
			t.Errorf("link %d: %q, want %q", i, got, want)
		}
	}
}

func TestSessionEndDropsItsLinks(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	conn, err := client.NewConn(ctx, serve(t, nodes{"q": q}, amqpserver.Options{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	newReceiver(t, session, "q", nil)
	newSender(t, session, "q", nil)
	if err := session.Close(ctx); err != nil {
		t.Fatal(err)
	}
	q.wait(t, "both links are closed", func() bool { return q.closed == 2 })
	// The connection lives on.
	if session, err = conn.NewSession(ctx, nil); err != nil {
		t.Fatal(err)
	}
	newSender(t, session, "q", nil)
}

func TestManyLinks(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	h := nodes{"q": q}
	session := dial(t, h)
	const n = 200
	for i := range n {
		h[fmt.Sprint(i)] = newNode()
	}
	senders := make([]*client.Sender, n)
	receivers := make([]*client.Receiver, n)
	for i := range n {
		senders[i] = newSender(t, session, fmt.Sprint(i), nil)
		receivers[i] = newReceiver(t, session, fmt.Sprint(i), nil)
	}
	for i := range n {
		if err := senders[i].Send(ctx, text(fmt.Sprint(i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if m := receive(t, receivers[i]); string(m.GetData()) != fmt.Sprint(i) {
			t.Errorf("receiver %d: message %s", i, m.GetData())
		}
	}
	for i := range n {
		if err := receivers[i].Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestServerCloseTellsThePeer(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	ours, theirs := pipe(t)
	s := amqpserver.New(amqpserver.Options{NewHandler: func(amqpserver.Peer) (amqpserver.Handler, error) { return nodes{"q": q}, nil }})
	done := make(chan error, 1)
	go func() { done <- s.ServeConn(context.Background(), theirs) }()
	conn, err := client.NewConn(ctx, ours, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	receiver := newReceiver(t, session, "q", nil)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = receiver.Receive(ctx, nil)
	var connErr *client.ConnError
	if !errors.As(err, &connErr) || connErr.RemoteErr == nil || connErr.RemoteErr.Condition != client.ErrCond(amqp.CondConnectionForced) {
		t.Errorf("error: %v", err)
	}
	<-done
	if q.closed != 1 {
		t.Error("the link was not closed")
	}
	if err := s.ServeConn(ctx, theirs); !errors.Is(err, amqpserver.ErrServerClosed) {
		t.Errorf("connection after Close: %v", err)
	}
}

func TestSASL(t *testing.T) {
	t.Parallel()
	peers := make(chan amqpserver.Peer, 1)
	opts := amqpserver.Options{
		NewHandler: func(p amqpserver.Peer) (amqpserver.Handler, error) { peers <- p; return nodes{}, nil },
		Plain: func(_ context.Context, c amqpserver.Credentials) (any, error) {
			if c.Password != "right" {
				return nil, errors.New("wrong")
			}
			return "plain " + c.User, nil
		},
	}
	for name, tt := range map[string]struct {
		sasl client.SASLType
		want any
		fail bool
	}{
		"none":           {nil, nil, false},
		"anonymous":      {client.SASLTypeAnonymous(), nil, false},
		"plain":          {client.SASLTypePlain("u", "right"), "plain u", false},
		"wrong password": {client.SASLTypePlain("u", "wrong"), nil, true},
		"external":       {client.SASLTypeExternal(""), "external", false},
		"not offered":    {client.SASLTypeExternal(""), nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			opts := opts
			if name == "external" {
				opts.External = func(context.Context, net.Conn) (any, error) { return "external", nil }
			}
			conn, err := client.NewConn(testContext(t), serve(t, nil, opts), &client.ConnOptions{
				SASLType: tt.sasl, HostName: "host:1", ContainerID: "me",
			})
			if tt.fail {
				if err == nil {
					t.Error("the connection was accepted")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			peer := <-peers
			if peer.Identity != tt.want || peer.Hostname != "host:1" || peer.ContainerID != "me" {
				t.Errorf("peer: %+v", peer)
			}
		})
	}
}

func TestCredentialsDoNotShowPasswords(t *testing.T) {
	t.Parallel()
	c := amqpserver.Credentials{User: "u", Password: "secret"}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %s", c, c, c), c.LogValue().String()} {
		if strings.Contains(s, "secret") {
			t.Errorf("text: %s", s)
		}
	}
}

func TestHandlerMayRefuseConnection(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	conn, err := client.NewConn(ctx, serve(t, nil, amqpserver.Options{
		NewHandler: func(amqpserver.Peer) (amqpserver.Handler, error) {
			return nil, amqp.Errorf(amqp.CondNotAllowed, "not you")
		},
	}), nil)
	if err == nil {
		_, err = conn.NewSession(ctx, nil)
		conn.Close()
	}
	if err == nil {
		t.Error("the connection works")
	}
}

// A receiver that goes away while a message is on its way to it must not lose
// the message.
func TestUnsentMessagesAreReturned(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	q := newNode()
	session := dial(t, nodes{"q": q})
	const n = 50
	for range n {
		q.push(&amqp.Message{Data: [][]byte{bytes.Repeat([]byte("x"), 50_000)}})
	}
	receiver := newReceiver(t, session, "q", &client.ReceiverOptions{Credit: n})
	receive(t, receiver)
	if err := receiver.Close(ctx); err != nil {
		t.Fatal(err)
	}
	q.wait(t, "the link is closed", func() bool { return q.closed == 1 })
	// What was not begun is back; what was begun stays with the peer.
	second := newReceiver(t, session, "q", &client.ReceiverOptions{Credit: n})
	q.mu.Lock()
	left := len(q.messages)
	q.mu.Unlock()
	for range left {
		receive(t, second)
	}
}
