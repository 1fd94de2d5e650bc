package amqp_test

import (
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// queueMessage is a message as a queue gives it out: with what the server adds.
func queueMessage() *amqp.Message {
	to := "queue"
	return &amqp.Message{
		Header: &amqp.Header{Durable: true, Priority: amqp.DefaultPriority, DeliveryCount: 1},
		Annotations: map[string]any{
			"x-opt-sequence-number":         int64(4711),
			"x-opt-enqueue-sequence-number": int64(4711),
			"x-opt-enqueued-time":           time.UnixMilli(1700000000000),
			"x-opt-locked-until":            time.UnixMilli(1700000060000),
			"x-opt-message-state":           int32(0),
		},
		Properties:            &amqp.Properties{MessageID: "message-id", To: &to},
		ApplicationProperties: map[string]any{"kind": "update", "number": int64(42)},
		Data:                  [][]byte{make([]byte, 256)},
	}
}

func BenchmarkEncodeMessage(b *testing.B) {
	m := queueMessage()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.MarshalBinary(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeMessage(b *testing.B) {
	encoded, err := queueMessage().MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var m amqp.Message
		if err := m.UnmarshalBinary(encoded); err != nil {
			b.Fatal(err)
		}
	}
}

// benchmarkFrames are those that come and go for each message.
func benchmarkFrames(b *testing.B, run func(b *testing.B, p amqp.Performative)) {
	id, format := uint32(70000), uint32(0)
	for name, p := range map[string]amqp.Performative{
		"transfer":    &amqp.Transfer{Handle: 1, DeliveryID: &id, DeliveryTag: make([]byte, 16), MessageFormat: &format},
		"disposition": &amqp.Disposition{Role: amqp.RoleReceiver, First: id, Last: id, Settled: true, State: &amqp.Accepted{}},
		"flow":        &amqp.Flow{NextIncomingID: &id, IncomingWindow: 5000, NextOutgoingID: 1, OutgoingWindow: 1, Handle: &format, DeliveryCount: &id, LinkCredit: &id},
	} {
		b.Run(name, func(b *testing.B) { run(b, p) })
	}
}

func BenchmarkAppendFrame(b *testing.B) {
	benchmarkFrames(b, func(b *testing.B, p amqp.Performative) {
		buf := make([]byte, 0, 512)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := amqp.AppendFrame(buf, 1, p, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecodeFrame(b *testing.B) {
	benchmarkFrames(b, func(b *testing.B, p amqp.Performative) {
		frame, err := amqp.AppendFrame(nil, 1, p, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := amqp.DecodeFrame(frame); err != nil {
				b.Fatal(err)
			}
		}
	})
}
