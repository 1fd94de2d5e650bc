package broker_test

import (
	"errors"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func complete(t *testing.T, q *broker.Queue, d *broker.Delivery) {
	t.Helper()
	if err := q.Settle(t.Context(), d.LockToken, broker.Settlement{Action: broker.Complete}); err != nil {
		t.Fatal(err)
	}
}

func TestExpireLocks(t *testing.T) {
	t.Parallel()
	q := newQueue(t, store.Memory(), broker.QueueOptions{})
	send(t, q, msg("one"), msg("two"), msg("three"))
	c, holding := newConsumer(t, q, broker.ConsumerOptions{}), newConsumer(t, q, broker.ConsumerOptions{HoldLocks: true})
	locked, held := receive(t, c), receive(t, holding)
	check(t, "locks", q.ExpireLocks(), 1)
	if err := q.Settle(t.Context(), locked.LockToken, broker.Settlement{Action: broker.Complete}); !errors.Is(err, broker.ErrLockLost) {
		t.Errorf("settled without a lock: %v", err)
	}
	complete(t, q, held)
	again := receive(t, c)
	check(t, "again", again.SequenceNumber, locked.SequenceNumber)
	check(t, "deliveries before", again.DeliveryCount, 1)
	check(t, "left", q.Len(), 2)
}

func TestExpireLocksOfNamespace(t *testing.T) {
	t.Parallel()
	n := broker.NewNamespace(store.Memory())
	t.Cleanup(n.Close)
	for _, name := range []string{"Queue", "other"} {
		q, err := n.CreateQueue(name, broker.QueueOptions{MaxDeliveryCount: 10})
		if err != nil {
			t.Fatal(err)
		}
		send(t, q, msg("x"), msg("y"))
		c := newConsumer(t, q, broker.ConsumerOptions{})
		d := receive(t, c)
		if err := q.Settle(t.Context(), d.LockToken, broker.Settlement{Action: broker.DeadLetter}); err != nil {
			t.Fatal(err)
		}
		receive(t, c)
		receive(t, newConsumer(t, q.DeadLetterQueue(), broker.ConsumerOptions{}))
	}
	topic, err := n.CreateTopic("topic", broker.TopicOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := n.CreateSubscription("topic", "Sub", broker.QueueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := topic.Send(t.Context(), msg("x")); err != nil {
		t.Fatal(err)
	}
	receive(t, newConsumer(t, sub, broker.ConsumerOptions{}))
	for name, want := range map[string]int{
		"Queue": 1, "Queue/$DeadLetterQueue": 1, "topic/Subscriptions/Sub": 1, "topic": 0, "none": 0,
	} {
		check(t, name, n.ExpireLocks(func(other string) bool { return other == name }), want)
		check(t, name+" again", n.ExpireLocks(func(other string) bool { return other == name }), 0)
	}
	check(t, "all that is left", n.ExpireLocks(func(string) bool { return true }), 2)
}

func TestCompletedMessagesThatRepeat(t *testing.T) {
	t.Parallel()
	for _, hold := range []bool{false, true} {
		ended := 0
		q := newQueue(t, store.Memory(), broker.QueueOptions{
			Repeat:    func() bool { return true },
			OnOutcome: func(*broker.Tx, broker.Outcome) { ended++ },
		})
		c := newConsumer(t, q, broker.ConsumerOptions{HoldLocks: hold})
		send(t, q, msg("one"), msg("two"))
		for i, want := range []int64{1, 1, 2, 2} {
			d := receive(t, c)
			check(t, "number", d.SequenceNumber, want)
			check(t, "deliveries before", d.DeliveryCount, 0)
			complete(t, q, d)
			check(t, "ended", ended, (i+1)/2)
		}
		check(t, "left", q.Len(), 0)
	}
}
