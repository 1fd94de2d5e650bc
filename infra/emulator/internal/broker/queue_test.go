package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMessagesComeInOrder(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	c := newConsumer(t, q, broker.ConsumerOptions{})
	send(t, q, msgs("a", "b")...)
	send(t, q, msg("c"))
	for i, want := range []string{"a", "b", "c"} {
		d := receive(t, c)
		check(t, "body", string(d.Message.Body()), want)
		check(t, "sequence number", d.SequenceNumber, i+1)
		settle(t, q, d, broker.Settlement{})
	}
	check(t, "messages left", q.Len(), 0)
}

func TestSettlement(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		settlement                    broker.Settlement
		available, deadLettered, peek string
		count                         uint32
	}{
		"complete": {settlement: broker.Settlement{Action: broker.Complete}},
		"abandon":  {settlement: broker.Settlement{Action: broker.Abandon}, available: "a", peek: "a", count: 1},
		"release":  {settlement: broker.Settlement{Action: broker.Release}, available: "a", peek: "a"},
		"defer":    {settlement: broker.Settlement{Action: broker.Defer}, peek: "a"},
		"dead-letter": {
			settlement:   broker.Settlement{Action: broker.DeadLetter, Reason: "r", Description: "d"},
			deadLettered: "a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newQueue(t, store.Memory(), broker.QueueOptions{})
			send(t, q, msg("a"))
			settle(t, q, receive(t, newConsumer(t, q, broker.ConsumerOptions{})), tc.settlement)
			check(t, "peeked", peek(q), tc.peek)
			check(t, "dead-lettered", peek(q.DeadLetterQueue()), tc.deadLettered)
			c := newConsumer(t, q, broker.ConsumerOptions{})
			if tc.available == "" {
				check(t, "available", receiveAll(t, c), "")
				return
			}
			d := receive(t, c)
			check(t, "available", string(d.Message.Body()), tc.available)
			check(t, "delivery count", d.DeliveryCount, tc.count)
		})
	}
}

func TestAbandonedMessageKeepsItsPlace(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	c := newConsumer(t, q, broker.ConsumerOptions{})
	send(t, q, msgs("a", "b", "c")...)
	a, b := receive(t, c), receive(t, c)
	settle(t, q, b, broker.Settlement{Action: broker.Abandon})
	settle(t, q, a, broker.Settlement{Action: broker.Abandon})
	check(t, "available", receiveAll(t, c), "a b c")
}

func TestMessageIsSettledOnce(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	send(t, q, msg("a"))
	d := receive(t, newConsumer(t, q, broker.ConsumerOptions{}))
	settle(t, q, d, broker.Settlement{})
	for _, action := range []broker.Action{broker.Complete, broker.Abandon, broker.Release, broker.DeadLetter, broker.Defer} {
		if err := q.Settle(t.Context(), d.LockToken, broker.Settlement{Action: action}); !errors.Is(err, broker.ErrLockLost) {
			t.Errorf("action %d after completion: %v", action, err)
		}
	}
	if _, err := q.RenewLock(d.LockToken); !errors.Is(err, broker.ErrLockLost) {
		t.Errorf("renew after completion: %v", err)
	}
}

func TestLockOutlivesItsConsumer(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	send(t, q, msg("a"))
	c := q.NewConsumer(broker.ConsumerOptions{})
	d := receive(t, c)
	c.Close()
	check(t, "available to others", receiveAll(t, newConsumer(t, q, broker.ConsumerOptions{})), "")
	settle(t, q, d, broker.Settlement{})
}

func TestHeldLockEndsWithItsConsumer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{CountAbandonOnly: true})
		send(t, q, msg("a"))
		c := q.NewConsumer(broker.ConsumerOptions{HoldLocks: true})
		d := receive(t, c)
		if !d.LockedUntil.IsZero() {
			t.Errorf("a held lock has an end: %v", d.LockedUntil)
		}
		time.Sleep(time.Hour)
		other := newConsumer(t, q, broker.ConsumerOptions{HoldLocks: true})
		check(t, "available while held", receiveAll(t, other), "")
		c.Close()
		again := receive(t, other)
		check(t, "body", string(again.Message.Body()), "a")
		check(t, "delivery count", again.DeliveryCount, 0)
		if err := q.Settle(t.Context(), d.LockToken, broker.Settlement{}); !errors.Is(err, broker.ErrLockLost) {
			t.Errorf("settling under the old lock: %v", err)
		}
	})
}

func TestLockExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{LockDuration: time.Minute})
		send(t, q, msg("a"))
		c := newConsumer(t, q, broker.ConsumerOptions{})
		d := receive(t, c)
		check(t, "lock duration", time.Until(d.LockedUntil), time.Minute)

		time.Sleep(50 * time.Second)
		until, err := q.RenewLock(d.LockToken)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "renewed for", time.Until(until), time.Minute)
		time.Sleep(59 * time.Second)
		check(t, "available while locked", receiveAll(t, c), "")

		again, err := c.Next(t.Context()) // wakes up when the lock expires
		if err != nil {
			t.Fatal(err)
		}
		check(t, "waited until", time.Now().Equal(until), true)
		check(t, "delivery count", again.DeliveryCount, 1)
		if err := q.Settle(t.Context(), d.LockToken, broker.Settlement{}); !errors.Is(err, broker.ErrLockLost) {
			t.Errorf("settling after expiry: %v", err)
		}
	})
}

func TestTooManyDeliveriesDeadLetter(t *testing.T) {
	t.Parallel()
	for name, giveBack := range map[string]func(*testing.T, *broker.Queue, *broker.Delivery){
		"abandoned": func(t *testing.T, q *broker.Queue, d *broker.Delivery) {
			settle(t, q, d, broker.Settlement{Action: broker.Abandon})
		},
		"lock expired": func(*testing.T, *broker.Queue, *broker.Delivery) { time.Sleep(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var ended outcomes
				q := newQueue(t, store.Memory(), broker.QueueOptions{MaxDeliveryCount: 3, OnOutcome: ended.add})
				send(t, q, msgs("a")...)
				c := newConsumer(t, q, broker.ConsumerOptions{})
				for i := range 3 {
					d := receive(t, c)
					check(t, "delivery count", d.DeliveryCount, i)
					giveBack(t, q, d)
				}
				check(t, "available", receiveAll(t, c), "")
				check(t, "outcomes", ended, "[a exceeded]")
				dead := receive(t, newConsumer(t, q.DeadLetterQueue(), broker.ConsumerOptions{}))
				check(t, "reason", dead.Message.ApplicationProperties[broker.PropertyDeadLetterReason], "MaxDeliveryCountExceeded")
				check(t, "source", dead.DeadLetterSource, "q")
				check(t, "enqueued sequence number", dead.EnqueuedSequenceNumber, 1)
				check(t, "delivery count", dead.DeliveryCount, 3)
			})
		})
	}
}

func TestDeadLetteringKeepsReasonAndProperties(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	original := msg("a")
	original.ApplicationProperties = map[string]any{"kept": "1", "changed": "1"}
	send(t, q, original)
	settle(t, q, receive(t, newConsumer(t, q, broker.ConsumerOptions{})), broker.Settlement{
		Action: broker.DeadLetter, Reason: "DeviceNotFound", Description: "no such device",
		Properties: map[string]any{"changed": "2"},
	})
	dead := receive(t, newConsumer(t, q.DeadLetterQueue(), broker.ConsumerOptions{}))
	check(t, "properties", dead.Message.ApplicationProperties,
		"map[DeadLetterErrorDescription:no such device DeadLetterReason:DeviceNotFound changed:2 kept:1]")
	check(t, "original", original.ApplicationProperties, "map[changed:1 kept:1]")
}

func TestDeadLetterQueueTakesNothingDirectly(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	dlq := q.DeadLetterQueue()
	if err := dlq.Send(t.Context(), msg("a")); !errors.Is(err, broker.ErrNotAllowed) {
		t.Errorf("send: %v", err)
	}
	send(t, q, msg("b"))
	settle(t, q, receive(t, newConsumer(t, q, broker.ConsumerOptions{})), broker.Settlement{Action: broker.DeadLetter})
	c := newConsumer(t, dlq, broker.ConsumerOptions{})
	for range 20 { // no limit of deliveries
		settle(t, dlq, receive(t, c), broker.Settlement{Action: broker.Abandon})
	}
	d := receive(t, c)
	if err := dlq.Settle(t.Context(), d.LockToken, broker.Settlement{Action: broker.DeadLetter}); !errors.Is(err, broker.ErrNotAllowed) {
		t.Errorf("dead-letter: %v", err)
	}
	settle(t, dlq, d, broker.Settlement{Action: broker.Complete})
	check(t, "messages left", dlq.Len(), 0)
}

func TestDeferredMessageComesByNumberOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{})
		send(t, q, msgs("a", "b")...)
		c := newConsumer(t, q, broker.ConsumerOptions{})
		settle(t, q, receive(t, c), broker.Settlement{Action: broker.Defer, Properties: map[string]any{"why": "later"}})
		check(t, "available", receiveAll(t, c), "b")
		for _, seqs := range [][]int64{{1, 2}, {99, 1}, {1, 1}} {
			if ds, err := q.ReceiveDeferred(t.Context(), broker.PeekLock, seqs...); !errors.Is(err, broker.ErrNotFound) || len(ds) != 0 {
				t.Errorf("messages %d, not all of them deferred: %v %v", seqs, ds, err)
			}
		}
		ds, err := q.ReceiveDeferred(t.Context(), broker.PeekLock, 1)
		if err != nil || len(ds) != 1 {
			t.Fatalf("deferred: %v %v", ds, err)
		}
		check(t, "state", ds[0].State, broker.Deferred)
		check(t, "properties", ds[0].Message.ApplicationProperties, "map[why:later]")
		time.Sleep(time.Minute) // the lock expires: still deferred
		check(t, "available", receiveAll(t, c), "b")
		ds, err = q.ReceiveDeferred(t.Context(), broker.ReceiveAndDelete, 1)
		if err != nil || len(ds) != 1 {
			t.Fatalf("deferred again: %v %v", ds, err)
		}
		check(t, "peeked", peek(q), "b")
	})
}

func TestDeferredMessageExpiresWhenAskedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{DefaultTTL: time.Hour, DeadLetterOnExpiry: true})
		send(t, q, msgs("a", "b")...)
		c := newConsumer(t, q, broker.ConsumerOptions{})
		for range 2 {
			settle(t, q, receive(t, c), broker.Settlement{Action: broker.Defer})
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		check(t, "there after its time", peek(q), "a b")
		if ds, err := q.ReceiveDeferred(t.Context(), broker.PeekLock, 1); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("an expired message: %v %v", ds, err)
		}
		check(t, "there after it was asked for", peek(q), "b")
		check(t, "dead-lettered", peek(q.DeadLetterQueue()), "a")
	})
}

func TestScheduledMessageArrivesAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{})
		if _, err := q.Schedule(t.Context(), time.Now().Add(time.Minute), msg("scheduled")); err != nil {
			t.Fatal(err)
		}
		send(t, q, msg("sent later"))
		time.Sleep(time.Minute)
		synctest.Wait()
		check(t, "order", receiveAll(t, newConsumer(t, q, broker.ConsumerOptions{})), "sent later scheduled")
		check(t, "new number", q.Peek(3, 1)[0].EnqueuedSequenceNumber, 3)
	})
}

func TestTimeToLive(t *testing.T) {
	t.Parallel()
	soon := time.Date(2000, 1, 1, 0, 0, 30, 0, time.UTC) // 30 s after a synctest bubble begins
	for name, tc := range map[string]struct {
		opts broker.QueueOptions
		msg  *amqp.Message
		want time.Duration // 0 = never
	}{
		"none":                        {msg: msg("a")},
		"of the queue":                {opts: broker.QueueOptions{DefaultTTL: time.Minute}, msg: msg("a"), want: time.Minute},
		"of the message":              {msg: withTTL(msg("a"), time.Second), want: time.Second},
		"message shorter":             {opts: broker.QueueOptions{DefaultTTL: time.Minute}, msg: withTTL(msg("a"), time.Second), want: time.Second},
		"queue shorter":               {opts: broker.QueueOptions{DefaultTTL: time.Second}, msg: withTTL(msg("a"), time.Minute), want: time.Second},
		"absolute, not looked at":     {msg: &amqp.Message{Properties: &amqp.Properties{AbsoluteExpiryTime: &soon}}},
		"absolute":                    {opts: broker.QueueOptions{DefaultTTL: time.Second, AbsoluteExpiry: true}, msg: &amqp.Message{Properties: &amqp.Properties{AbsoluteExpiryTime: &soon}}, want: 30 * time.Second},
		"absolute, zero time of Go":   {opts: broker.QueueOptions{DefaultTTL: time.Second, AbsoluteExpiry: true}, msg: &amqp.Message{Properties: &amqp.Properties{AbsoluteExpiryTime: new(time.Time)}}, want: time.Second},
		"absolute, zero time of Unix": {opts: broker.QueueOptions{AbsoluteExpiry: true}, msg: &amqp.Message{Properties: &amqp.Properties{AbsoluteExpiryTime: new(time.Unix(0, 0))}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, store.Memory(), tc.opts)
				send(t, q, tc.msg)
				if tc.want == 0 {
					time.Sleep(1000 * time.Hour)
					check(t, "messages after 1000 h", q.Len(), 1)
					return
				}
				time.Sleep(tc.want - time.Nanosecond)
				synctest.Wait()
				check(t, "messages just before", q.Len(), 1)
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				check(t, "messages then", q.Len(), 0)
			})
		})
	}
}

func TestExpiredMessages(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		opts broker.QueueOptions
		dead string
	}{
		"dropped":       {},
		"dead-lettered": {opts: broker.QueueOptions{DeadLetterOnExpiry: true}, dead: "a"},
		"no such queue": {opts: broker.QueueOptions{DeadLetterOnExpiry: true, NoDeadLetter: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var ended outcomes
				tc.opts.OnOutcome = ended.add
				q := newQueue(t, store.Memory(), tc.opts)
				send(t, q, withTTL(msg("a"), time.Minute), msg("b"))
				time.Sleep(time.Minute)
				check(t, "available", receiveAll(t, newConsumer(t, q, broker.ConsumerOptions{})), "b")
				check(t, "outcomes", ended, "[a expired]")
				if tc.opts.NoDeadLetter {
					check(t, "has a dead-letter queue", q.DeadLetterQueue() != nil, false)
					return
				}
				check(t, "dead-lettered", peek(q.DeadLetterQueue()), tc.dead)
				if tc.dead != "" {
					d := receive(t, newConsumer(t, q.DeadLetterQueue(), broker.ConsumerOptions{}))
					check(t, "reason", d.Message.ApplicationProperties[broker.PropertyDeadLetterReason], "TTLExpiredException")
					check(t, "expires", d.ExpiresAt.IsZero(), true)
				}
			})
		})
	}
}

func TestLockedMessageExpiresWhenGivenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{})
		send(t, q, withTTL(msg("a"), time.Second), withTTL(msg("b"), time.Second))
		c := newConsumer(t, q, broker.ConsumerOptions{})
		a, b := receive(t, c), receive(t, c)
		time.Sleep(30 * time.Second)
		settle(t, q, a, broker.Settlement{Action: broker.Complete})
		settle(t, q, b, broker.Settlement{Action: broker.Release})
		check(t, "available", receiveAll(t, c), "")
	})
}

func TestScheduledMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{DefaultTTL: time.Hour})
		at := time.Now().Add(time.Minute)
		annotated := msg("annotated")
		annotated.Annotations = map[string]any{"x-opt-scheduled-enqueue-time": at}
		send(t, q, annotated)
		seqs, err := q.Schedule(t.Context(), at.Add(time.Second), msgs("later", "never")...)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "sequence numbers", seqs, "[2 3]")
		check(t, "state", q.Peek(0, 1)[0].State, broker.Scheduled)
		if err := q.CancelScheduled(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		if err := q.CancelScheduled(t.Context(), 2, 3); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("cancel of a cancelled message: %v", err)
		}
		c := newConsumer(t, q, broker.ConsumerOptions{})
		d, err := c.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check(t, "arrived at", time.Now().Equal(at), true)
		check(t, "enqueued", d.EnqueuedTime.Equal(at), true)
		check(t, "expires", d.ExpiresAt.Equal(at.Add(time.Hour)), true)
		d, err = c.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check(t, "second", string(d.Message.Body()), "later")
		if err := q.CancelScheduled(t.Context(), 2); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("cancel of a message that has arrived: %v", err)
		}
	})
}

func TestDuplicatesAreAcceptedAndDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{DuplicateWindow: time.Minute})
		send(t, q, withID(msg("a"), "1"), withID(msg("b"), "1"), withID(msg("c"), "2"), msg("d"), msg("e"))
		send(t, q, withID(msg("f"), "2"))
		check(t, "kept", peek(q), "a c d e")
		time.Sleep(59 * time.Second)
		send(t, q, withID(msg("g"), "1"))
		check(t, "kept within the window", peek(q), "a c d e")
		time.Sleep(time.Second)
		send(t, q, withID(msg("h"), "1"))
		check(t, "kept after the window", peek(q), "a c d e h")
		if err := q.Stage(broker.NewTx(store.Memory()), msg("i")); err == nil {
			t.Error("a queue with duplicate detection took part in a transaction")
		}
	})
}

func TestRefusedMessageIsNoDuplicate(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{DuplicateWindow: time.Minute, MaxMessages: 1})
	send(t, q, withID(msg("a"), "1"))
	if err := q.Send(t.Context(), withID(msg("b"), "2")); !errors.Is(err, broker.ErrFull) {
		t.Fatalf("send to a full queue: %v", err)
	}
	settle(t, q, receive(t, newConsumer(t, q, broker.ConsumerOptions{})), broker.Settlement{})
	send(t, q, withID(msg("b"), "2"))
	check(t, "kept", peek(q), "b")
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		opts broker.QueueOptions
		msgs []*amqp.Message
		want error
	}{
		"at the message limit":    {opts: broker.QueueOptions{MaxMessages: 2}, msgs: msgs("a", "b")},
		"beyond it":               {opts: broker.QueueOptions{MaxMessages: 2}, msgs: msgs("a", "b", "c"), want: broker.ErrFull},
		"at the byte limit":       {opts: broker.QueueOptions{MaxBytes: 4}, msgs: msgs("aa", "bb")},
		"beyond the bytes":        {opts: broker.QueueOptions{MaxBytes: 4}, msgs: msgs("aa", "bbb"), want: broker.ErrFull},
		"at the message size":     {opts: broker.QueueOptions{MaxMessageSize: 3}, msgs: msgs("aaa")},
		"beyond the message size": {opts: broker.QueueOptions{MaxMessageSize: 3}, msgs: msgs("a", "bbbb"), want: broker.ErrTooLarge},
		"properties count too": {
			opts: broker.QueueOptions{MaxMessageSize: 3},
			msgs: []*amqp.Message{{ApplicationProperties: map[string]any{"ab": "cd"}}}, want: broker.ErrTooLarge,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newQueue(t, store.Memory(), tc.opts)
			if err := q.Send(t.Context(), tc.msgs...); !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			want := len(tc.msgs)
			if tc.want != nil {
				want = 0 // all or none
			}
			check(t, "messages", q.Len(), want)
		})
	}
}

func TestReceiveAndDelete(t *testing.T) {
	t.Parallel()
	var ended outcomes
	q := newQueue(t, store.Memory(), broker.QueueOptions{OnOutcome: ended.add})
	send(t, q, msgs("a", "b", "c")...)
	ds, err := newConsumer(t, q, broker.ConsumerOptions{Mode: broker.ReceiveAndDelete}).Receive(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "received", names(ds), "a b")
	check(t, "lock token", ds[0].LockToken, amqp.UUID{})
	check(t, "left", peek(q), "c")
	check(t, "outcomes", ended, "[a completed b completed]")
}

func TestPurge(t *testing.T) {
	t.Parallel()
	var ended outcomes
	q := newQueue(t, store.Memory(), broker.QueueOptions{OnOutcome: ended.add})
	send(t, q, msgs("locked", "a", "b")...)
	d := receive(t, newConsumer(t, q, broker.ConsumerOptions{}))
	n, err := q.Purge(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, "purged", n, 2)
	check(t, "outcomes", ended, "[a purged b purged]")
	settle(t, q, d, broker.Settlement{})
}

func TestPeekSeesAllStates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, store.Memory(), broker.QueueOptions{})
		send(t, q, msgs("deferred", "locked", "active")...)
		if _, err := q.Schedule(t.Context(), time.Now().Add(time.Hour), msg("scheduled")); err != nil {
			t.Fatal(err)
		}
		c := newConsumer(t, q, broker.ConsumerOptions{})
		settle(t, q, receive(t, c), broker.Settlement{Action: broker.Defer})
		receive(t, c)
		check(t, "all", peek(q), "deferred locked active scheduled")
		check(t, "two from 2", names(q.Peek(2, 2)), "locked active")
		check(t, "lock token of a peeked message", q.Peek(2, 1)[0].LockToken, amqp.UUID{})
	})
}

func TestConsumersCompete(t *testing.T) {
	t.Parallel()
	const consumers, total = 8, 400
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	seen := make(map[string]int)
	var wg sync.WaitGroup
	for range consumers {
		c := newConsumer(t, q, broker.ConsumerOptions{})
		wg.Go(func() {
			for {
				d, err := c.Next(ctx)
				if err != nil {
					return
				}
				if err := q.Settle(t.Context(), d.LockToken, broker.Settlement{}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				seen[string(d.Message.Body())]++
				if len(seen) == total {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	for i := range total {
		send(t, q, msg(fmt.Sprint(i)))
	}
	wg.Wait()
	check(t, "different messages", len(seen), total)
	for body, n := range seen {
		if n != 1 {
			t.Errorf("message %s was delivered %d times", body, n)
		}
	}
}

// A message that wakes a consumer which then doesn't take it must wake another.
func TestWakeIsPassedOn(t *testing.T) {
	t.Parallel()
	for name, giveUp := range map[string]func(first *broker.Consumer, cancel context.CancelFunc){
		"closed":        func(first *broker.Consumer, _ context.CancelFunc) { first.Close() },
		"context ended": func(_ *broker.Consumer, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, store.Memory(), broker.QueueOptions{})
				first, second := newConsumer(t, q, broker.ConsumerOptions{}), newConsumer(t, q, broker.ConsumerOptions{})
				check(t, "available", receiveAll(t, first), "")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan string, 1)
				go func() {
					d, err := second.Next(t.Context())
					if err != nil {
						got <- err.Error()
						return
					}
					got <- string(d.Message.Body())
				}()
				synctest.Wait()
				send(t, q, msg("a")) // signals first, the longest idle
				giveUp(first, cancel)
				if name == "context ended" {
					if _, err := first.Receive(ctx, 1); !errors.Is(err, context.Canceled) {
						t.Errorf("receive with an ended context: %v", err)
					}
				}
				check(t, "the other got", <-got, "a")
			})
		})
	}
}

func TestReleasedMessageGoesToAnotherConsumer(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	first, second := newConsumer(t, q, broker.ConsumerOptions{}), newConsumer(t, q, broker.ConsumerOptions{})
	send(t, q, msg("a"))
	d := receive(t, first)
	check(t, "available to both", receiveAll(t, first)+receiveAll(t, second), "")
	settle(t, q, d, broker.Settlement{Action: broker.Release})
	select {
	case <-second.Ready():
	case <-first.Ready():
		t.Error("the consumer that released the message was woken for it")
	}
}

func TestClosingEndsConsumers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(*broker.Queue, *broker.Consumer)
		want error
	}{
		"consumer closed": {func(_ *broker.Queue, c *broker.Consumer) { c.Close() }, broker.ErrClosed},
		"queue closed":    {func(q *broker.Queue, _ *broker.Consumer) { q.Close() }, broker.ErrClosed},
		"queue deleted": {func(q *broker.Queue, _ *broker.Consumer) {
			tx := broker.NewTx(store.Memory())
			q.Delete(tx)
			_ = tx.Commit(context.Background())
		}, broker.ErrDeleted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, store.Memory(), broker.QueueOptions{})
				c := newConsumer(t, q, broker.ConsumerOptions{})
				result := make(chan error, 1)
				go func() {
					_, err := c.Next(context.Background())
					result <- err
				}()
				synctest.Wait()
				tc.end(q, c)
				if err := <-result; !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				if name == "consumer closed" {
					return
				}
				if err := q.Send(context.Background(), msg("a")); !errors.Is(err, tc.want) {
					t.Errorf("send: got %v, want %v", err, tc.want)
				}
			})
		})
	}
}

func TestAbortedTransactionLeavesNothing(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{MaxMessages: 1})
	tx := broker.NewTx(store.Memory())
	if err := q.Stage(tx, msg("a")); err != nil {
		t.Fatal(err)
	}
	check(t, "visible before the commit", peek(q), "")
	tx.Abort()
	check(t, "messages", q.Len(), 0)
	send(t, q, msg("b")) // there is room again
}

func TestDoneMayCallTheQueueAgain(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{DuplicateWindow: time.Minute})
	done := make(chan error, 1)
	q.SendAsync(func(err error) {
		if err != nil {
			done <- err
			return
		}
		q.SendAsync(func(err error) { done <- err }, msg("b"))
	}, msg("a"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	check(t, "messages", peek(q), "a b")
}
