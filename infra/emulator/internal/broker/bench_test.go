package broker_test

import (
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// benchmarkStores are a store without and one with a disk.
func benchmarkStores(b *testing.B, run func(b *testing.B, s store.Store)) {
	b.Run("memory", func(b *testing.B) { run(b, store.Memory()) })
	b.Run("disk", func(b *testing.B) {
		s, err := store.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		run(b, s)
	})
}

func benchmarkMessage() *amqp.Message {
	return &amqp.Message{
		Properties:            &amqp.Properties{MessageID: "id"},
		ApplicationProperties: map[string]any{"kind": "update"},
		Data:                  [][]byte{make([]byte, 256)},
	}
}

// benchmarkWindow is how many calls are under way.
const benchmarkWindow = 200

// BenchmarkQueue sends, receives under peek-lock and completes.
func BenchmarkQueue(b *testing.B) {
	benchmarkStores(b, func(b *testing.B, s store.Store) {
		q, err := broker.OpenQueue(s, "q", broker.QueueOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer q.Close()
		c := q.NewConsumer(broker.ConsumerOptions{})
		window := make(chan struct{}, benchmarkWindow)
		done := func(err error) {
			if err != nil {
				b.Error(err)
			}
			<-window
		}
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			window <- struct{}{}
			q.SendAsync(func(err error) {
				if err != nil {
					b.Error(err)
				}
			}, benchmarkMessage())
			d, err := c.Next(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			q.SettleAsync(d.LockToken, broker.Settlement{}, done)
		}
		for range benchmarkWindow {
			window <- struct{}{}
		}
	})
}

// BenchmarkEventLog appends events.
func BenchmarkEventLog(b *testing.B) {
	benchmarkStores(b, func(b *testing.B, s store.Store) {
		l, err := broker.OpenEventLog(s, "hub", broker.EventLogOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		window := make(chan struct{}, benchmarkWindow)
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			window <- struct{}{}
			l.AppendAsync(func(err error) {
				if err != nil {
					b.Error(err)
				}
				<-window
			}, broker.AppendOptions{PartitionKey: "device"}, benchmarkMessage())
		}
		for range benchmarkWindow {
			window <- struct{}{}
		}
	})
}
