package broker_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func properties(from, n int) map[string]any {
	m := make(map[string]any, n)
	for i := range n {
		m[fmt.Sprint(from+i)] = nil
	}
	return m
}

// A message with more properties than the codec reads back must not be stored.
func TestPropertiesAreBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q := newQueue(t, openStore(t, dir), broker.QueueOptions{})
	m := msg("many")
	m.ApplicationProperties = properties(0, 16385)
	if err := q.Send(t.Context(), m); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("sent: %v", err)
	}
	m.ApplicationProperties = properties(0, 16384)
	send(t, q, m)
	// Nor must a receiver bring it over the bound.
	c := newConsumer(t, q, broker.ConsumerOptions{})
	d := receive(t, c)
	more := broker.Settlement{Action: broker.Abandon, Properties: properties(20000, 16384)}
	if err := q.Settle(t.Context(), d.LockToken, more); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("modified: %v", err)
	}
	settle(t, q, d, broker.Settlement{Action: broker.DeadLetter, Reason: "r", Description: "d"})
	q = newQueue(t, afterKill(t, dir), broker.QueueOptions{})
	check(t, "dead", peek(q.DeadLetterQueue()), "many")
}

// Whoever stages a message has checked its size before he added to it.
func TestStagedMessagesMayBeLarger(t *testing.T) {
	t.Parallel()
	s := store.Memory()
	q := newQueue(t, s, broker.QueueOptions{MaxMessageSize: 10})
	tx := broker.NewTx(s)
	if err := q.Stage(tx, msg("more than ten")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, "staged", peek(q), "more than ten")
	if err := q.Send(t.Context(), msg("more than ten")); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("sent: %v", err)
	}
	if err := q.DeadLetterQueue().Stage(broker.NewTx(s), msg("x")); !errors.Is(err, broker.ErrNotAllowed) {
		t.Errorf("staged into the dead-letter queue: %v", err)
	}
}
