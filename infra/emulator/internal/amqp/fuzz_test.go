package amqp_test

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// FuzzDecodeValue checks that whatever decodes also encodes, and then means the
// same.
func FuzzDecodeValue(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, _, err := amqp.DecodeValue(b)
		if err != nil {
			return
		}
		first, err := amqp.AppendValue(nil, v)
		if err != nil {
			t.Fatalf("%#v was decoded and can't be encoded: %v", v, err)
		}
		again, rest, err := amqp.DecodeValue(first)
		if err != nil || len(rest) > 0 {
			t.Fatalf("%#v was encoded as %x and can't be decoded: %v", v, first, err)
		}
		// Compared as bytes: a NaN differs from itself.
		if second, err := amqp.AppendValue(nil, again); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%#v changed from %x to %x (error %v)", v, first, second, err)
		}
	})
}

// FuzzMessage does the same for messages.
func FuzzMessage(f *testing.F) {
	for _, m := range messages() {
		f.Add(marshal(f, m))
	}
	for _, r := range recordedFrames(f) {
		if frame, err := amqp.DecodeFrame(r.frame); err == nil && len(frame.Payload) > 0 {
			f.Add(bytes.Clone(frame.Payload))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m amqp.Message
		if err := m.UnmarshalBinary(b); err != nil {
			return
		}
		first := marshal(t, m.Clone())
		var again amqp.Message
		if err := again.UnmarshalBinary(first); err != nil {
			t.Fatalf("%+v was encoded as %x and can't be decoded: %v", m, first, err)
		}
		if second := marshal(t, &again); !bytes.Equal(first, second) {
			t.Fatalf("%x became %x", first, second)
		}
	})
}

// FuzzFrame does the same for frames.
func FuzzFrame(f *testing.F) {
	for _, r := range recordedFrames(f) {
		f.Add(r.frame)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := amqp.DecodeFrame(b)
		if err != nil {
			return
		}
		first := encodeFrame(t, frame)
		again, err := amqp.DecodeFrame(first)
		if err != nil {
			t.Fatalf("%+v was encoded as %x and can't be decoded: %v", frame, first, err)
		}
		if second := encodeFrame(t, again); !bytes.Equal(first, second) {
			t.Fatalf("%x became %x", first, second)
		}
		if frame.Channel != again.Channel || reflect.TypeOf(frame.Body) != reflect.TypeOf(again.Body) {
			t.Fatalf("%+v became %+v", frame, again)
		}
	})
}

// Not parallel: it measures what the whole process allocates.
func TestDecodersAllocateInProportion(t *testing.T) {
	nested := func(inner []byte, n int) []byte {
		for range n {
			list := append([]byte{0xd0, 0, 0, 0, 0, 0, 0, 0, 1}, inner...)
			size := len(list) - 5
			list[1], list[2], list[3], list[4] = byte(size>>24), byte(size>>16), byte(size>>8), byte(size)
			inner = list
		}
		return inner
	}
	// A list of arrays that each claim as many elements as are allowed, all of
	// them without content.
	var arrays []byte
	const count = 5000
	for range count {
		arrays = append(arrays, 0xf0, 0, 0, 0, 5, 0, 1, 0, 0, 0x41)
	}
	size := len(arrays) + 4
	greedy := append([]byte{0xd0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size), 0, 0, count >> 8, count & 0xff}, arrays...)
	for name, b := range map[string][]byte{
		"arrays of nothing": greedy,
		"claimed string":    {0xb1, 0x7f, 0xff, 0xff, 0xff},
		"claimed list":      {0xd0, 0, 0, 0, 5, 0, 1, 0, 0, 0x40},
		"deep":              nested([]byte{0x40}, 1000),
		"random":            random(1 << 16),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, _ = amqp.DecodeValue(b)
		var m amqp.Message
		_ = m.UnmarshalBinary(append([]byte{0, 0x53, 0x77}, b...))
		runtime.ReadMemStats(&after)
		if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(1<<20+64*len(b)); got > limit {
			t.Errorf("%s: %d bytes allocated for %d of input, at most %d are in proportion", name, got, len(b), limit)
		}
	}
}

func random(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
