package broker_test

import (
	"sync"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// swapping hands the second of two changes to the store before the first, as
// happens to two senders between their numbers and the disk.
type swapping struct {
	store.Store

	mu   sync.Mutex
	held func() // submits the first change
}

func (s *swapping) Submit(done func(error), ops ...store.Op) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = func() { s.Store.Submit(done, ops...) }
		return
	}
	s.Store.Submit(done, ops...)
	s.held()
	s.held = nil
}

// inSwappedOrder sends two messages whose changes reach the disk in the wrong
// order, and returns the store as a new process finds it.
func inSwappedOrder(t *testing.T, open func(store.Store) func(done func(error), m *amqp.Message)) store.Store {
	t.Helper()
	dir := t.TempDir()
	s := openStore(t, dir)
	open(s) // makes what is made but once
	send := open(&swapping{Store: s})
	var stored sync.WaitGroup
	for _, m := range msgs("first", "second") {
		stored.Add(1)
		send(func(err error) {
			defer stored.Done()
			if err != nil {
				t.Error(err)
			}
		}, m)
	}
	stored.Wait()
	return afterKill(t, dir)
}

func TestNumbersStayUniqueWhateverTheOrderOnDisk(t *testing.T) {
	t.Parallel()
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		after := inSwappedOrder(t, func(s store.Store) func(func(error), *amqp.Message) {
			q := newQueue(t, s, broker.QueueOptions{})
			return func(done func(error), m *amqp.Message) { q.SendAsync(done, m) }
		})
		q := newQueue(t, after, broker.QueueOptions{})
		send(t, q, msg("third"))
		check(t, "messages", peek(q), "first second third")
	})
	t.Run("topic", func(t *testing.T) {
		t.Parallel()
		open := func(s store.Store) (*broker.Topic, *broker.Queue) {
			n := broker.NewNamespace(s)
			t.Cleanup(n.Close)
			topic, err := n.CreateTopic("t", broker.TopicOptions{})
			if err != nil {
				t.Fatal(err)
			}
			sub, err := n.CreateSubscription("t", "s", broker.QueueOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return topic, sub
		}
		after := inSwappedOrder(t, func(s store.Store) func(func(error), *amqp.Message) {
			topic, _ := open(s)
			return func(done func(error), m *amqp.Message) { topic.SendAsync(done, m) }
		})
		topic, sub := open(after)
		send(t, topic, msg("third"))
		check(t, "messages", peek(sub), "first second third")
		var numbers []int64
		for _, d := range sub.Peek(0, 3) {
			numbers = append(numbers, d.EnqueuedSequenceNumber)
		}
		check(t, "numbers of the topic", numbers, "[1 2 3]")
	})
	t.Run("event log", func(t *testing.T) {
		t.Parallel()
		open := func(s store.Store) *broker.EventLog {
			l, err := broker.OpenEventLog(s, "e", broker.EventLogOptions{Partitions: 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.Close)
			return l
		}
		after := inSwappedOrder(t, func(s store.Store) func(func(error), *amqp.Message) {
			l := open(s)
			return func(done func(error), m *amqp.Message) { l.AppendAsync(done, broker.AppendOptions{}, m) }
		})
		l := open(after)
		if err := l.Append(t.Context(), broker.AppendOptions{}, msg("third")); err != nil {
			t.Fatal(err)
		}
		r, err := l.OpenReader(broker.ReaderOptions{PartitionID: "0"})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		events, err := r.Next(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for i, e := range events {
			got += string(e.Message.Body()) + " "
			check(t, "sequence number", e.SequenceNumber, i)
		}
		check(t, "events", got, "first second third ")
	})
}

// A lock that expires while its message is completed may write last.
func TestStateOfACompletedMessageIsForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	q := newQueue(t, s, broker.QueueOptions{})
	send(t, q, msg("first"))
	c := newConsumer(t, q, broker.ConsumerOptions{})
	settle(t, q, receive(t, c), broker.Settlement{Action: broker.Abandon})
	var state store.Op
	if err := s.Load("q/q/s", func(key string, value []byte) error {
		state = store.Put(key, value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	settle(t, q, receive(t, c), broker.Settlement{Action: broker.Complete})
	if err := store.Commit(s, state); err != nil {
		t.Fatal(err)
	}

	after := afterKill(t, dir)
	newQueue(t, after, broker.QueueOptions{LockDuration: time.Minute})
	if err := store.Commit(after); err != nil { // behind what loading submitted
		t.Fatal(err)
	}
	if err := after.Load("q/q/s", func(key string, _ []byte) error {
		t.Errorf("%q is still there", key)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
