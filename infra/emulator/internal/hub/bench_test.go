package hub_test

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// benchmarkStores are a store without and one with a disk.
func benchmarkStores(b *testing.B, f func(b *testing.B, s store.Store)) {
	b.Run("memory", func(b *testing.B) { f(b, store.Memory()) })
	b.Run("file", func(b *testing.B) {
		s, err := store.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		f(b, s)
	})
}

func benchmarkHub(b *testing.B, s store.Store) (*hub.Hub, *broker.Queue) {
	b.Helper()
	q, err := broker.OpenQueue(s, "device-messages", broker.QueueOptions{})
	if err != nil {
		b.Fatal(err)
	}
	l, err := broker.OpenEventLog(s, "hub", broker.EventLogOptions{})
	if err != nil {
		b.Fatal(err)
	}
	h, err := hub.Open(s, hub.Options{Events: l, Routes: []hub.Route{{Endpoint: q}, {}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.Close(); l.Close(); q.Close() })
	return h, q
}

// BenchmarkTelemetry is the way of a message from the device to the receiver of
// the queue, from many devices with many messages under way.
func BenchmarkTelemetry(b *testing.B) {
	benchmarkStores(b, func(b *testing.B, s store.Store) {
		h, q := benchmarkHub(b, s)
		const devices = 100
		sessions := make([]*hub.Session, devices)
		for i := range sessions {
			id := fmt.Sprint("device-", i)
			if _, err := h.CreateDevice(b.Context(), hub.Identity{DeviceID: id}); err != nil {
				b.Fatal(err)
			}
			var err error
			if sessions[i], err = h.Connect(b.Context(), id, hub.ConnectOptions{}); err != nil {
				b.Fatal(err)
			}
		}
		payload := make([]byte, 256)
		var wg sync.WaitGroup
		wg.Go(func() { drain(b, q, b.N) })
		window := make(chan struct{}, 1000)
		for i := 0; b.Loop(); i++ {
			window <- struct{}{}
			m := &amqp.Message{
				Properties:            &amqp.Properties{MessageID: "id"},
				ApplicationProperties: map[string]any{"kind": "update"},
				Data:                  [][]byte{payload},
			}
			sessions[i%devices].PublishAsync(m, func(err error) {
				if err != nil {
					b.Error(err)
				}
				<-window
			})
		}
		wg.Wait()
	})
}

// drain completes n messages.
func drain(b *testing.B, q *broker.Queue, n int) {
	c := q.NewConsumer(broker.ConsumerOptions{})
	defer c.Close()
	for n > 0 {
		ds, err := c.Receive(b.Context(), 100)
		if err != nil {
			b.Error(err)
			return
		}
		for _, d := range ds {
			q.SettleAsync(d.LockToken, broker.Settlement{}, func(err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
		n -= len(ds)
	}
}

// BenchmarkIdleDevices tells what the hub needs for each device that is connected
// and listens, with nothing to do.
func BenchmarkIdleDevices(b *testing.B) {
	h, _ := benchmarkHub(b, store.Memory())
	before := heap()
	n := 0
	for b.Loop() {
		id := fmt.Sprint("device-", n)
		if _, err := h.CreateDevice(b.Context(), hub.Identity{DeviceID: id}); err != nil {
			b.Fatal(err)
		}
		s, err := h.Connect(b.Context(), id, hub.ConnectOptions{})
		if err != nil {
			b.Fatal(err)
		}
		c, err := s.Receive(broker.ConsumerOptions{HoldLocks: true})
		if err == nil {
			_, err = c.TryReceive(b.Context(), 1)
		}
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(heap()-before)/float64(n), "B/device")
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
