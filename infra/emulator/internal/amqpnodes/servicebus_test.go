package amqpnodes_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

func sender(t *testing.T, c *azservicebus.Client, entity string) *azservicebus.Sender {
	t.Helper()
	s, err := c.NewSender(entity, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(testContext(t)) })
	return s
}

func receiver(t *testing.T, c *azservicebus.Client, queue string, opts *azservicebus.ReceiverOptions) *azservicebus.Receiver {
	t.Helper()
	r, err := c.NewReceiverForQueue(queue, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(testContext(t)) })
	return r
}

func subscriber(t *testing.T, c *azservicebus.Client, topic, name string) *azservicebus.Receiver {
	t.Helper()
	r, err := c.NewReceiverForSubscription(topic, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(testContext(t)) })
	return r
}

func deadLetters(t *testing.T, c *azservicebus.Client, queue string) *azservicebus.Receiver {
	t.Helper()
	return receiver(t, c, queue, &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
}

func send(t *testing.T, s *azservicebus.Sender, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		id := "id-" + body
		if err := s.SendMessage(testContext(t), &azservicebus.Message{Body: []byte(body), MessageID: &id}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// receive receives n messages, whatever batches they come in.
func receive(t *testing.T, r *azservicebus.Receiver, n int) []*azservicebus.ReceivedMessage {
	t.Helper()
	ctx := testContext(t)
	var all []*azservicebus.ReceivedMessage
	for len(all) < n {
		got, err := r.ReceiveMessages(ctx, n-len(all), nil)
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(all), n, err)
		}
		all = append(all, got...)
	}
	return all
}

func receiveOne(t *testing.T, r *azservicebus.Receiver) *azservicebus.ReceivedMessage {
	t.Helper()
	return receive(t, r, 1)[0]
}

func complete(t *testing.T, r *azservicebus.Receiver, m *azservicebus.ReceivedMessage) {
	t.Helper()
	if err := r.CompleteMessage(testContext(t), m, nil); err != nil {
		t.Fatal(err)
	}
}

// queueLen is what the broker holds.
func (e *emulator) queueLen(t *testing.T, address string) int {
	t.Helper()
	q, err := e.namespace.Source(address)
	if err != nil {
		t.Fatal(err)
	}
	return q.Len()
}

func (e *emulator) wantLen(t *testing.T, address string, want int) {
	t.Helper()
	if got := e.queueLen(t, address); got != want {
		t.Errorf("%s holds %d messages, want %d", address, got, want)
	}
}

func TestSendReceiveComplete(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	ttl, id, subject := time.Hour, "m1", "hello"
	err := sender(t, c, "queue").SendMessage(testContext(t), &azservicebus.Message{
		Body: []byte("body"), MessageID: &id, CorrelationID: &subject, Subject: &subject, TimeToLive: &ttl,
		ApplicationProperties: map[string]any{"text": "x", "number": int32(7)},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := receiver(t, c, "queue", nil)
	m := receiveOne(t, r)
	if string(m.Body) != "body" || m.MessageID != "m1" || *m.Subject != "hello" || *m.CorrelationID != "hello" {
		t.Errorf("message: %+v", m)
	}
	if m.ApplicationProperties["text"] != "x" || m.ApplicationProperties["number"] != int32(7) {
		t.Errorf("application properties: %v", m.ApplicationProperties)
	}
	if *m.SequenceNumber != 1 || *m.EnqueuedSequenceNumber != 1 || m.DeliveryCount != 1 || *m.TimeToLive != ttl {
		t.Errorf("sequence %d, enqueued %d, delivery %d, TTL %v", *m.SequenceNumber, *m.EnqueuedSequenceNumber, m.DeliveryCount, *m.TimeToLive)
	}
	if m.LockedUntil == nil || m.EnqueuedTime == nil || m.ExpiresAt == nil || m.State != azservicebus.MessageStateActive {
		t.Errorf("locked until %v, enqueued at %v, expires at %v, state %v", m.LockedUntil, m.EnqueuedTime, m.ExpiresAt, m.State)
	}
	complete(t, r, m)
	e.wantLen(t, "queue", 0)
}

func lockLost(err error) bool {
	var e *azservicebus.Error
	return errors.As(err, &e) && e.Code == azservicebus.CodeLockLost
}

func TestBatchIsStored(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	ctx := testContext(t)
	s := sender(t, c, "queue")
	batch, err := s.NewMessageBatch(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	const n = 100
	for i := range n {
		if err := batch.AddMessage(&azservicebus.Message{Body: fmt.Append(nil, i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SendMessageBatch(ctx, batch, nil); err != nil {
		t.Fatal(err)
	}
	queue := must[*broker.Queue](t)(e.namespace.Source("queue"))
	for i, d := range queue.Peek(0, n) {
		if string(d.Message.Body()) != fmt.Sprint(i) {
			t.Fatalf("position %d: message %s", i, d.Message.Body())
		}
	}
	// Their order is not looked at: on a busy machine, azservicebus returns some
	// messages before the rest is there, and then gives the rest back.
	r := receiver(t, c, "queue", nil)
	for _, m := range receive(t, r, n) {
		complete(t, r, m)
	}
	e.wantLen(t, "queue", 0)
}

func TestBatchKnowsTheLimit(t *testing.T) {
	t.Parallel()
	e := start(t)
	s := sender(t, e.serviceBus(t), "queue")
	batch, err := s.NewMessageBatch(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = batch.AddMessage(&azservicebus.Message{Body: make([]byte, broker256K)}, nil)
	if !errors.Is(err, azservicebus.ErrMessageTooLarge) {
		t.Errorf("adding a message of 256 KiB: %v", err)
	}
}

const broker256K = 256 << 10

func TestAbandonCountsUntilDeadLettered(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	send(t, sender(t, c, "queue"), "a")
	r := receiver(t, c, "queue", nil)
	for try := uint32(1); try <= 3; try++ {
		m := receiveOne(t, r)
		if m.DeliveryCount != try {
			t.Errorf("delivery count %d at try %d", m.DeliveryCount, try)
		}
		opts := &azservicebus.AbandonMessageOptions{PropertiesToModify: map[string]any{"try": int64(try)}}
		if err := r.AbandonMessage(testContext(t), m, opts); err != nil {
			t.Fatal(err)
		}
	}
	m := receiveOne(t, deadLetters(t, c, "queue"))
	if *m.DeadLetterReason != "MaxDeliveryCountExceeded" || m.ApplicationProperties["try"] != int64(3) {
		t.Errorf("reason %q, properties %v", *m.DeadLetterReason, m.ApplicationProperties)
	}
}

func TestDeadLetterWithReason(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	send(t, sender(t, c, "queue"), "a")
	r := receiver(t, c, "queue", nil)
	reason, description := "DeviceNotFound", "no device d1"
	err := r.DeadLetterMessage(testContext(t), receiveOne(t, r), &azservicebus.DeadLetterOptions{
		Reason: &reason, ErrorDescription: &description, PropertiesToModify: map[string]any{"extra": "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	dead := deadLetters(t, c, "queue")
	m := receiveOne(t, dead)
	if *m.DeadLetterReason != reason || *m.DeadLetterErrorDescription != description || m.ApplicationProperties["extra"] != "x" {
		t.Errorf("reason %q, description %q, properties %v", *m.DeadLetterReason, *m.DeadLetterErrorDescription, m.ApplicationProperties)
	}
	if m.DeadLetterSource == nil || *m.DeadLetterSource != "queue" {
		t.Errorf("source: %v", m.DeadLetterSource)
	}
	complete(t, dead, m)
	e.wantLen(t, "queue/$DeadLetterQueue", 0)
}

func TestRenewAndLoseLock(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	send(t, sender(t, c, "queue"), "a")
	r := receiver(t, c, "queue", nil)
	m := receiveOne(t, r)
	before := *m.LockedUntil
	if err := r.RenewMessageLock(testContext(t), m, nil); err != nil {
		t.Fatal(err)
	}
	if m.LockedUntil.Before(before) {
		t.Errorf("locked until %v, before renewal %v", m.LockedUntil, before)
	}
	complete(t, r, m)
	if err := r.RenewMessageLock(testContext(t), m, nil); !lockLost(err) {
		t.Errorf("renewal after completion: %v", err)
	}
}

func TestReceiveAndDelete(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	send(t, sender(t, c, "queue"), "a", "b")
	r := receiver(t, c, "queue", &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	for i, m := range receive(t, r, 2) {
		if want := []string{"a", "b"}[i]; string(m.Body) != want {
			t.Errorf("message %d: %s", i, m.Body)
		}
	}
	e.wantLen(t, "queue", 0)
}

func TestSettleOnAnotherReceiver(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	s := sender(t, c, "queue")
	ctx := testContext(t)
	first, err := c.NewReceiverForQueue("queue", nil)
	if err != nil {
		t.Fatal(err)
	}
	send(t, s, "complete", "abandon", "dead-letter", "defer")
	got := receive(t, first, 4)
	if err := first.Close(ctx); err != nil {
		t.Fatal(err)
	}
	// The link that the messages came over is gone: this goes to $management.
	second := receiver(t, c, "queue", nil)
	complete(t, second, got[0])
	if err := second.AbandonMessage(ctx, got[1], nil); err != nil {
		t.Fatal(err)
	}
	reason := "because"
	if err := second.DeadLetterMessage(ctx, got[2], &azservicebus.DeadLetterOptions{Reason: &reason}); err != nil {
		t.Fatal(err)
	}
	if err := second.DeferMessage(ctx, got[3], nil); err != nil {
		t.Fatal(err)
	}
	if m := receiveOne(t, second); string(m.Body) != "abandon" || m.DeliveryCount != 2 {
		t.Errorf("message %q, delivery count %d", m.Body, m.DeliveryCount)
	}
	if m := receiveOne(t, deadLetters(t, c, "queue")); *m.DeadLetterReason != reason {
		t.Errorf("reason: %q", *m.DeadLetterReason)
	}
	deferred, err := second.ReceiveDeferredMessages(ctx, []int64{*got[3].SequenceNumber}, nil)
	if err != nil || len(deferred) != 1 {
		t.Fatalf("%d deferred messages, error %v", len(deferred), err)
	}
	complete(t, second, deferred[0])
	e.wantLen(t, "queue", 1) // the abandoned one
}

func TestPeek(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	r := receiver(t, c, "queue", nil)
	if none, err := r.PeekMessages(testContext(t), 10, nil); err != nil || len(none) != 0 {
		t.Fatalf("%d messages in an empty queue, error %v", len(none), err)
	}
	send(t, sender(t, c, "queue"), "a", "b", "c")
	from := int64(2)
	got, err := r.PeekMessages(testContext(t), 10, &azservicebus.PeekMessagesOptions{FromSequenceNumber: &from})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || string(got[0].Body) != "b" || *got[1].SequenceNumber != 3 {
		t.Errorf("%d messages: %+v", len(got), got)
	}
	e.wantLen(t, "queue", 3)
}

func TestScheduledMessages(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	ctx := testContext(t)
	s := sender(t, c, "queue")
	later := time.Now().Add(time.Hour)
	numbers, err := s.ScheduleMessages(ctx, []*azservicebus.Message{{Body: []byte("a")}, {Body: []byte("b")}}, later, nil)
	if err != nil || len(numbers) != 2 {
		t.Fatalf("sequence numbers %v, error %v", numbers, err)
	}
	if err := s.SendMessage(ctx, &azservicebus.Message{Body: []byte("c"), ScheduledEnqueueTime: &later}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.CancelScheduledMessages(ctx, numbers[:1], nil); err != nil {
		t.Fatal(err)
	}
	peeked, err := receiver(t, c, "queue", nil).PeekMessages(ctx, 10, nil)
	if err != nil || len(peeked) != 2 {
		t.Fatalf("%d scheduled messages, error %v", len(peeked), err)
	}
	for _, m := range peeked {
		if m.State != azservicebus.MessageStateScheduled || !m.ScheduledEnqueueTime.Equal(later.Truncate(time.Millisecond)) {
			t.Errorf("message %s: state %v, scheduled for %v", m.Body, m.State, m.ScheduledEnqueueTime)
		}
	}
	if err := s.CancelScheduledMessages(ctx, []int64{99}, nil); err == nil {
		t.Error("an unknown message was cancelled")
	}
	soon := time.Now().Add(50 * time.Millisecond)
	if err := s.SendMessage(ctx, &azservicebus.Message{Body: []byte("soon"), ScheduledEnqueueTime: &soon}, nil); err != nil {
		t.Fatal(err)
	}
	if m := receiveOne(t, receiver(t, c, "queue", nil)); string(m.Body) != "soon" {
		t.Errorf("message: %s", m.Body)
	}
}

func TestTopicCopiesToSubscriptions(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	send(t, sender(t, c, "topic"), "a", "a") // the same message ID twice
	for _, name := range []string{"first", "second"} {
		r := subscriber(t, c, "topic", name)
		m := receiveOne(t, r)
		if string(m.Body) != "a" {
			t.Errorf("%s: message %s", name, m.Body)
		}
		complete(t, r, m)
		e.wantLen(t, "topic/Subscriptions/"+name, 0)
	}
}

// An idle receiver gives back what arrives between its calls; that must neither
// count as a delivery nor keep the message from others.
func TestReleasedMessageReachesAnotherReceiver(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.serviceBus(t)
	idle := receiver(t, c, "queue", nil)
	ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
	defer cancel()
	if got, err := idle.ReceiveMessages(ctx, 5, nil); err == nil {
		t.Fatalf("%d messages in an empty queue", len(got))
	}
	other := e.serviceBus(t)
	busy := receiver(t, other, "queue", nil)
	const n = 20 // more than the idle receiver has credit for
	s := sender(t, other, "queue")
	for i := range n {
		send(t, s, fmt.Sprint(i))
		m := receiveOne(t, busy)
		if m.DeliveryCount != 1 {
			t.Errorf("message %d: delivery count %d", i, m.DeliveryCount)
		}
		complete(t, busy, m)
	}
	e.wantLen(t, "queue", 0)
}

func TestUnknownEntityIsNotFound(t *testing.T) {
	t.Parallel()
	c := start(t).serviceBus(t)
	_, err := receiver(t, c, "missing", nil).ReceiveMessages(testContext(t), 1, nil)
	var e *azservicebus.Error
	if !errors.As(err, &e) || e.Code != azservicebus.CodeNotFound {
		t.Errorf("receive: %v", err)
	}
	err = sender(t, c, "missing").SendMessage(testContext(t), &azservicebus.Message{}, nil)
	if !errors.As(err, &e) || e.Code != azservicebus.CodeNotFound {
		t.Errorf("send: %v", err)
	}
}

func TestKeysAreChecked(t *testing.T) {
	t.Parallel()
	e := start(t)
	unauthorized := func(t *testing.T, err error) {
		t.Helper()
		var e *azservicebus.Error
		if !errors.As(err, &e) || e.Code != azservicebus.CodeUnauthorizedAccess {
			t.Errorf("error: %v", err)
		}
	}
	t.Run("wrong key", func(t *testing.T) {
		t.Parallel()
		c := e.serviceBusAs(t, rootName, "not the key")
		unauthorized(t, sender(t, c, "queue").SendMessage(testContext(t), &azservicebus.Message{}, nil))
	})
	t.Run("unknown policy", func(t *testing.T) {
		t.Parallel()
		c := e.serviceBusAs(t, "nobody", rootKey)
		unauthorized(t, sender(t, c, "queue").SendMessage(testContext(t), &azservicebus.Message{}, nil))
	})
	t.Run("hub policy", func(t *testing.T) {
		t.Parallel()
		c := e.serviceBusAs(t, "iothubowner", e.policyKey(t, "iothubowner"))
		unauthorized(t, sender(t, c, "queue").SendMessage(testContext(t), &azservicebus.Message{}, nil))
	})
	t.Run("no permission to listen", func(t *testing.T) {
		t.Parallel()
		c := e.serviceBusAs(t, sendName, sendKey)
		send(t, sender(t, c, "queue"), "a")
		_, err := receiver(t, c, "queue", nil).ReceiveMessages(testContext(t), 1, nil)
		unauthorized(t, err)
	})
}

func TestSessionsAreRefused(t *testing.T) {
	t.Parallel()
	c := start(t).serviceBus(t)
	_, err := c.AcceptSessionForQueue(testContext(t), "queue", "s1", nil)
	if err == nil {
		t.Fatal("a session of a queue without sessions was accepted")
	}
	contains(t, err.Error(), "amqp:not-allowed")
}
