package broker_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func openStore(t *testing.T, dir string) store.Store {
	t.Helper()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// afterKill opens what another process would find if this one were killed now:
// a copy of the files as they are, with nothing closed.
func afterKill(t *testing.T, dir string) store.Store {
	t.Helper()
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return openStore(t, other)
}

func TestQueueSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := broker.QueueOptions{DuplicateWindow: time.Hour}
	q := newQueue(t, openStore(t, dir), opts)
	full := withID(msg("full"), "id-1")
	full.ApplicationProperties = map[string]any{"s": "x", "n": int64(7), "b": true}
	full.Annotations = map[string]any{"a": "y"}
	send(t, q, append(msgs("completed", "abandoned", "deferred", "dead", "locked", "changed"), full)...)
	scheduledFor := time.Now().Add(time.Hour).UTC()
	if _, err := q.Schedule(t.Context(), scheduledFor, msg("scheduled")); err != nil {
		t.Fatal(err)
	}
	c := newConsumer(t, q, broker.ConsumerOptions{})
	for _, s := range []broker.Settlement{
		{Action: broker.Complete},
		{Action: broker.Abandon},
	} {
		settle(t, q, receive(t, c), s)
	}
	first := receive(t, c) // "abandoned" again, and locked when the process is killed
	settle(t, q, receive(t, c), broker.Settlement{Action: broker.Defer})
	settle(t, q, receive(t, c), broker.Settlement{Action: broker.DeadLetter, Reason: "why"})
	receive(t, c)
	settle(t, q, receive(t, c), broker.Settlement{Action: broker.Abandon, Properties: map[string]any{"p": "q"}})

	q = newQueue(t, afterKill(t, dir), opts)
	check(t, "all", peek(q), "abandoned deferred locked changed full scheduled")
	check(t, "dead", peek(q.DeadLetterQueue()), "dead")
	dead := q.DeadLetterQueue().Peek(0, 1)[0]
	check(t, "dead reason", dead.Message.ApplicationProperties, "map[DeadLetterReason:why]")
	check(t, "dead source", dead.DeadLetterSource, "q")
	ds, err := newConsumer(t, q, broker.ConsumerOptions{}).TryReceive(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "available", names(ds), "abandoned locked changed full")
	check(t, "sequence number", ds[0].SequenceNumber, first.SequenceNumber)
	check(t, "enqueued", ds[0].EnqueuedTime.Equal(first.EnqueuedTime), true)
	check(t, "counts", fmt.Sprint(ds[0].DeliveryCount, ds[1].DeliveryCount, ds[2].DeliveryCount), "1 0 1")
	check(t, "changed properties", ds[2].Message.ApplicationProperties, "map[p:q]")
	check(t, "properties", ds[3].Message.ApplicationProperties, "map[b:true n:7 s:x]")
	check(t, "annotations", ds[3].Message.Annotations, "map[a:y]")
	check(t, "scheduled for", q.Peek(8, 1)[0].ScheduledTime.Equal(scheduledFor), true)
	deferred, err := q.ReceiveDeferred(t.Context(), broker.PeekLock, 3)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "deferred", names(deferred), "deferred")

	send(t, q, withID(msg("again"), "id-1"), msg("new"))
	check(t, "next sequence number", q.Peek(9, 10)[0].SequenceNumber, 9)
	check(t, "sent after the restart", names(q.Peek(9, 10)), "new")
}

func TestScheduledMessageArrivesOnceOverRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	restarted := func(use func(q *broker.Queue)) {
		s, err := store.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		use(newQueue(t, s, broker.QueueOptions{}))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	restarted(func(q *broker.Queue) {
		if _, err := q.Schedule(t.Context(), time.Now().Add(2*time.Second), msg("scheduled")); err != nil {
			t.Fatal(err)
		}
		send(t, q, msg("sent later"))
	})
	for range 3 { // it may have arrived before the first of them
		restarted(func(q *broker.Queue) {
			c := newConsumer(t, q, broker.ConsumerOptions{})
			check(t, "first", string(receive(t, c).Message.Body()), "sent later")
			d, err := c.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			check(t, "second", string(d.Message.Body()), "scheduled")
			check(t, "its number", d.SequenceNumber, 3)
			q.Close()
		})
	}
}

func TestSequenceNumbersGoOnAfterAllIsGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q := newQueue(t, openStore(t, dir), broker.QueueOptions{})
	send(t, q, msgs("a", "b")...)
	c := newConsumer(t, q, broker.ConsumerOptions{Mode: broker.ReceiveAndDelete})
	check(t, "received", receiveAll(t, c), "a b")
	q = newQueue(t, afterKill(t, dir), broker.QueueOptions{})
	check(t, "left", q.Len(), 0)
	send(t, q, msg("c"))
	check(t, "sequence number", q.Peek(0, 1)[0].SequenceNumber, 3)
}

// Transactions may reach the disk in another order than they got their numbers.
func TestSequenceNumbersAreGivenOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	q := newQueue(t, s, broker.QueueOptions{})
	first, second := broker.NewTx(s), broker.NewTx(s)
	for _, tx := range []*broker.Tx{first, second} {
		if err := q.Stage(tx, msg("m")); err != nil {
			t.Fatal(err)
		}
	}
	for _, tx := range []*broker.Tx{second, first} {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c := newConsumer(t, q, broker.ConsumerOptions{Mode: broker.ReceiveAndDelete})
	check(t, "numbers", receive(t, c).SequenceNumber+receive(t, c).SequenceNumber, 1+2)
	q = newQueue(t, afterKill(t, dir), broker.QueueOptions{})
	send(t, q, msg("m"))
	check(t, "next number", receive(t, newConsumer(t, q, broker.ConsumerOptions{})).SequenceNumber, 3)
}

func TestExpiryIsKeptOverRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q := newQueue(t, openStore(t, dir), broker.QueueOptions{DefaultTTL: time.Hour})
	send(t, q, msg("a"))
	// Another default must not change messages that are there.
	restarted := newQueue(t, afterKill(t, dir), broker.QueueOptions{})
	check(t, "expires", restarted.Peek(0, 1)[0].ExpiresAt.Equal(q.Peek(0, 1)[0].ExpiresAt), true)
}

func TestDeletedQueueLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	q := newQueue(t, s, broker.QueueOptions{})
	send(t, q, msgs("a", "b")...)
	settle(t, q, receive(t, newConsumer(t, q, broker.ConsumerOptions{})), broker.Settlement{Action: broker.DeadLetter})
	tx := broker.NewTx(s)
	q.Delete(tx)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := afterKill(t, dir).Load("", func(key string, _ []byte) error { return fmt.Errorf("left: %q", key) })
	if err != nil {
		t.Error(err)
	}
}

func TestTransactionIsAllOrNothingOnDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	q := newQueue(t, s, broker.QueueOptions{})
	l := newLog(t, s, broker.EventLogOptions{Partitions: 1})
	tx := broker.NewTx(s)
	if err := q.Stage(tx, msg("a")); err != nil {
		t.Fatal(err)
	}
	if err := l.Stage(tx, broker.AppendOptions{}, msg("a")); err != nil {
		t.Fatal(err)
	}
	before := afterKill(t, dir)
	check(t, "in the queue before", newQueue(t, before, broker.QueueOptions{}).Len(), 0)
	check(t, "in the log before", events(t, newLog(t, before, broker.EventLogOptions{Partitions: 1}), broker.Position{}), "")
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := afterKill(t, dir)
	check(t, "in the queue after", newQueue(t, after, broker.QueueOptions{}).Len(), 1)
	check(t, "in the log after", events(t, newLog(t, after, broker.EventLogOptions{Partitions: 1}), broker.Position{}), "a")
}

// Many senders and receivers at once, and then a kill: what was acknowledged as
// sent is there or was received, and what was acknowledged as settled is gone.
func TestConcurrentUseSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q := newQueue(t, openStore(t, dir), broker.QueueOptions{})
	const senders, each = 8, 50
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				if err := q.Send(t.Context(), msg(fmt.Sprintf("%d/%d", i, j))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	completed := make(chan string, senders*each)
	for range 4 {
		c := newConsumer(t, q, broker.ConsumerOptions{})
		wg.Go(func() {
			for range senders * each / 8 {
				d, err := c.Next(t.Context())
				if err == nil {
					err = q.Settle(t.Context(), d.LockToken, broker.Settlement{})
				}
				if err != nil {
					t.Error(err)
					return
				}
				completed <- string(d.Message.Body())
			}
		})
	}
	wg.Wait()
	close(completed)
	left := make(map[string]bool)
	for _, d := range newQueue(t, afterKill(t, dir), broker.QueueOptions{}).Peek(0, senders*each) {
		left[string(d.Message.Body())] = true
	}
	check(t, "left", len(left), senders*each/2)
	for body := range completed {
		if left[body] {
			t.Errorf("%s was completed and came back", body)
		}
	}
}

func TestTopicSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(s store.Store) (*broker.Namespace, *broker.Topic) {
		n := broker.NewNamespace(s)
		t.Cleanup(n.Close)
		topic, err := n.CreateTopic("Jobs", broker.TopicOptions{DuplicateWindow: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.CreateSubscription("jobs", "Jobs", broker.QueueOptions{}); err != nil {
			t.Fatal(err)
		}
		return n, topic
	}
	_, topic := open(openStore(t, dir))
	send(t, topic, withID(msg("a"), "1"), withID(msg("b"), "2"))
	n, topic := open(afterKill(t, dir))
	send(t, topic, withID(msg("c"), "2"), withID(msg("d"), "3"))
	sub, err := n.Source("jobs/subscriptions/jobs")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "in the subscription", peek(sub), "a b d")
	check(t, "number at the topic", sub.Peek(3, 1)[0].EnqueuedSequenceNumber, 3)
}

func TestEventLogSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := broker.EventLogOptions{Partitions: 2}
	l := newLog(t, openStore(t, dir), opts)
	m := msg("a")
	m.Annotations = map[string]any{"iothub-connection-device-id": "d", "t": time.Unix(1000, 0).UTC()}
	for _, e := range []*amqp.Message{m, msg("b")} {
		if err := l.Append(t.Context(), broker.AppendOptions{PartitionID: "1", PartitionKey: "k"}, e); err != nil {
			t.Fatal(err)
		}
	}
	before, err := l.Partition("1")
	if err != nil {
		t.Fatal(err)
	}
	restarted := newLog(t, afterKill(t, dir), opts)
	after, err := restarted.Partition("1")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "properties", fmt.Sprint(after), fmt.Sprint(before))
	check(t, "created", restarted.CreatedAt().Equal(l.CreatedAt()), true)
	r := newReader(t, restarted, broker.ReaderOptions{PartitionID: "1"})
	es, err := r.Next(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "events", len(es), 2)
	check(t, "annotations", es[0].Message.Annotations, m.Annotations)
	check(t, "partition key", es[0].PartitionKey, "k")
}

func TestPartitionsAreFixed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	newLog(t, openStore(t, dir), broker.EventLogOptions{Partitions: 2})
	_, err := broker.OpenEventLog(afterKill(t, dir), "hub", broker.EventLogOptions{Partitions: 4})
	if err == nil || err.Error() != "event hub hub: it was made with 2 partitions and can't have 4; the number is fixed at creation" {
		t.Errorf("got %v", err)
	}
}

func TestDuplicateDetectionSwitchedOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	send(t, newQueue(t, openStore(t, dir), broker.QueueOptions{DuplicateWindow: time.Hour}), withID(msg("a"), "1"))
	s := afterKill(t, dir)
	q := newQueue(t, s, broker.QueueOptions{})
	send(t, q, withID(msg("b"), "1"))
	check(t, "kept", peek(q), "a b")
	err := s.Load("q/q/i", func(key string, _ []byte) error { return fmt.Errorf("left: %q", key) })
	if err != nil {
		t.Error(err)
	}
}

// hooked is a store that calls a function with the first submission from now on,
// before it takes it.
type hooked struct {
	store.Store
	hook chan func()
}

func (h *hooked) Submit(done func(error), ops ...store.Op) {
	select {
	case f := <-h.hook:
		f()
	default:
	}
	h.Store.Submit(done, ops...)
}

// A message whose lock ends is available at once, and what a receiver does to it
// then reaches the store behind the end of the lock.
func TestEndOfLockIsStoredBeforeWhatFollows(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*broker.Queue, *broker.Consumer){
		"expired":         func(q *broker.Queue, _ *broker.Consumer) { q.ExpireLocks() },
		"consumer closed": func(_ *broker.Queue, c *broker.Consumer) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := &hooked{Store: openStore(t, dir), hook: make(chan func(), 1)}
			q := newQueue(t, s, broker.QueueOptions{})
			send(t, q, msg("m"))
			first := newConsumer(t, q, broker.ConsumerOptions{HoldLocks: name != "expired"})
			number := receive(t, first).SequenceNumber
			next := newConsumer(t, q, broker.ConsumerOptions{})
			deferred := make(chan struct{})
			s.hook <- func() {
				go func() {
					defer close(deferred)
					settle(t, q, receive(t, next), broker.Settlement{Action: broker.Defer})
				}()
				select {
				case <-deferred: // it was faster than the store
				case <-time.After(50 * time.Millisecond): // it has to wait for this
				}
			}
			end(q, first)
			<-deferred
			if err := store.Commit(s); err != nil { // all before it is on the disk
				t.Fatal(err)
			}
			q = newQueue(t, afterKill(t, dir), broker.QueueOptions{})
			d, err := q.ReceiveDeferred(t.Context(), broker.PeekLock, number)
			if err != nil {
				t.Fatalf("it was deferred, and is not any more: %v", err)
			}
			check(t, "delivery count", d[0].DeliveryCount, 1)
		})
	}
}

// An ID that can't be part of a key is refused, and nothing else comes of it.
func TestLongMessageID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := broker.NewNamespace(openStore(t, dir))
	t.Cleanup(n.Close)
	q, err := n.CreateQueue("queue", broker.QueueOptions{DuplicateWindow: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	topic, err := n.CreateTopic("topic", broker.TopicOptions{DuplicateWindow: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []broker.Target{q, topic} {
		for id, want := range map[string]error{
			strings.Repeat("ä", 128):    nil,
			strings.Repeat("a", 129):    broker.ErrNotAllowed,
			strings.Repeat("a", 40_000): broker.ErrNotAllowed,
		} {
			if err := to.Send(t.Context(), withID(msg("m"), id)); !errors.Is(err, want) {
				t.Errorf("%s, ID of %d bytes: %v", to.Name(), len(id), err)
			}
			if _, err := to.Schedule(t.Context(), time.Now().Add(time.Hour), withID(msg("m"), id)); !errors.Is(err, want) {
				t.Errorf("%s, scheduled with an ID of %d bytes: %v", to.Name(), len(id), err)
			}
		}
	}
	check(t, "sent", peek(q), "m")
	afterKill(t, dir)
}
