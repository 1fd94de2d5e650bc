package broker_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// greedy are messages that take much more memory than their values have bytes.
func greedy() map[string]any {
	const n = 10_000
	maps, lists := make([]any, n), make([]any, n)
	for i := range n {
		maps[i], lists[i] = map[string]any{"": nil}, []any{nil}
	}
	return map[string]any{
		"nothing": make([]any, n), "maps": maps, "lists": lists, "texts": make([]string, n), "binaries": make([][]byte, n),
		"array of lists": make([][]any, n), "mixed maps": []any{map[any]any{int8(1): make([]any, n)}},
		"described": amqp.Described{Descriptor: uint64(1), Value: make([]any, n)},
	}
}

// TestLimitsCountMemory fills a queue and an event hub with messages whose values
// have next to no bytes.
func TestLimitsCountMemory(t *testing.T) {
	t.Parallel()
	for name, value := range greedy() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const limit, most = 1 << 20, 20 // messages of more than 50 KiB
				m := func() *amqp.Message {
					return &amqp.Message{ApplicationProperties: map[string]any{"a": value, "b": value}}
				}
				q, err := broker.OpenQueue(store.Memory(), "q", broker.QueueOptions{MaxBytes: limit})
				if err != nil {
					t.Fatal(err)
				}
				defer q.Close()
				for err == nil && q.Len() <= most {
					err = q.Send(t.Context(), m())
				}
				if !errors.Is(err, broker.ErrFull) {
					t.Errorf("the queue took %d messages: %v", q.Len(), err)
				}
				l, err := broker.OpenEventLog(store.Memory(), "e", broker.EventLogOptions{Partitions: 1, MaxBytes: limit / 10})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				for range most {
					if err := l.Append(t.Context(), broker.AppendOptions{}, m()); err != nil {
						t.Fatal(err)
					}
				}
				if p, err := l.Partition("0"); err != nil || p.BeginSequenceNumber == 0 {
					t.Errorf("the event hub kept everything: %+v, %v", p, err)
				}
			})
		})
	}
}
