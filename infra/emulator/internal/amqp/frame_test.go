package amqp_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// recorded is one block of testdata/frames.txt.
type recorded struct {
	name  string
	frame []byte
	want  string
}

func recordedFrames(t testing.TB) []recorded {
	t.Helper()
	text, err := os.ReadFile("testdata/frames.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []recorded
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		lines := strings.Split(block, "\n")
		if len(lines) != 3 || !strings.HasPrefix(lines[0], "# ") {
			t.Fatalf("block %q is not a name, bytes and a form", block)
		}
		list = append(list, recorded{lines[0][2:], unhex(t, lines[1]), lines[2]})
	}
	return list
}

// frameForm writes a frame in one line.
func frameForm(t testing.TB, f amqp.Frame) string {
	t.Helper()
	body, err := json.Marshal(f.Body)
	if err != nil {
		t.Fatal(err)
	}
	s := fmt.Sprintf("type %d, channel %d, %T %s", f.Type, f.Channel, f.Body, body)
	if d, ok := f.Body.(*amqp.Disposition); ok {
		s += fmt.Sprintf(", state %T", d.State)
	}
	if len(f.Payload) > 0 {
		s += fmt.Sprintf(", payload of %d bytes", len(f.Payload))
	}
	return s
}

// encodeFrame encodes a decoded frame again.
func encodeFrame(t testing.TB, f amqp.Frame) []byte {
	t.Helper()
	var b []byte
	var err error
	if body, ok := f.Body.(amqp.SASLBody); ok && f.Type == amqp.FrameSASL {
		b, err = amqp.AppendSASLFrame(nil, body)
	} else {
		p, _ := f.Body.(amqp.Performative)
		b, err = amqp.AppendFrame(nil, f.Channel, p, f.Payload)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Frames as real clients write them.
func TestRecordedFrames(t *testing.T) {
	t.Parallel()
	for _, r := range recordedFrames(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			f, err := amqp.DecodeFrame(r.frame)
			if err != nil {
				t.Fatal(err)
			}
			if got := frameForm(t, f); got != r.want {
				t.Errorf("decoded %s\nwant    %s", got, r.want)
			}
			again, err := amqp.DecodeFrame(encodeFrame(t, f))
			if err != nil || !reflect.DeepEqual(again, f) {
				t.Errorf("encoded and decoded again %+v, error %v", again, err)
			}
		})
	}
}

// Frames as the server writes them, byte by byte.
func TestFrameGoldenBytes(t *testing.T) {
	t.Parallel()
	info := &amqp.Error{Condition: "c", Description: "d", Info: map[string]any{"k": int32(1)}}
	for name, tt := range map[string]struct {
		p       amqp.Performative
		payload string
		want    string
	}{
		"empty frame": {nil, "", "00000008 02 00 0003"},
		"open": {
			&amqp.Open{ContainerID: "c", MaxFrameSize: 65536, ChannelMax: 65535, IdleTimeout: 120000}, "",
			"0000001f 02 00 0003 00 53 10 c0 12 05 a1 01 63 40 70 00010000 60 ffff 70 0001d4c0",
		},
		"begin": {
			&amqp.Begin{RemoteChannel: ptr(uint16(3)), IncomingWindow: 5000, OutgoingWindow: 7, HandleMax: 1<<32 - 1}, "",
			"00000019 02 00 0003 00 53 11 c0 0c 04 60 0003 43 70 00001388 52 07",
		},
		"attach of a receiver": {
			&amqp.Attach{Name: "n", Handle: 1, Role: amqp.RoleReceiver, SenderSettleMode: amqp.SenderMixed, Target: &amqp.Target{Address: "a"}, MaxMessageSize: 256}, "",
			"0000002e 02 00 0003 00 53 12 c0 21 0b a1 01 6e 52 01 41 50 02 50 00 40 00 53 29 c0 04 01 a1 01 61 40 40 40 80 0000000000000100",
		},
		"attach refused": {
			&amqp.Attach{Name: "n", SenderSettleMode: amqp.SenderSettled, ReceiverSettleMode: amqp.ReceiverSecond}, "",
			"0000001c 02 00 0003 00 53 12 c0 0f 0a a1 01 6e 43 42 50 01 50 01 40 40 40 40 43",
		},
		"flow": {
			&amqp.Flow{NextIncomingID: ptr(uint32(0)), IncomingWindow: 1, NextOutgoingID: 2, OutgoingWindow: 3, Handle: ptr(uint32(0)), DeliveryCount: ptr(uint32(0)), LinkCredit: ptr(uint32(0)), Drain: true}, "",
			"0000001a 02 00 0003 00 53 13 c0 0d 09 43 52 01 52 02 52 03 43 43 43 40 41",
		},
		"transfer": {
			&amqp.Transfer{Handle: 1, DeliveryID: ptr(uint32(2)), DeliveryTag: []byte{9}, MessageFormat: ptr(uint32(0)), Settled: true, More: true}, "beef",
			"0000001a 02 00 0003 00 53 14 c0 0b 06 52 01 52 02 a0 01 09 43 41 41 beef",
		},
		"disposition": {
			&amqp.Disposition{Role: amqp.RoleSender, First: 4, Last: 4, Settled: true, State: &amqp.Accepted{}}, "",
			"00000017 02 00 0003 00 53 15 c0 0a 05 42 52 04 40 41 00 53 24 45",
		},
		"rejection": {
			&amqp.Disposition{Role: amqp.RoleReceiver, First: 4, Last: 5, Settled: true, State: &amqp.Rejected{Error: info}}, "",
			"0000002e 02 00 0003 00 53 15 c0 21 05 41 52 04 52 05 41 00 53 25 c0 15 01 00 53 1d c0 0f 03 a3 01 63 a1 01 64 c1 06 02 a3 01 6b 54 01",
		},
		"detach": {
			&amqp.Detach{Handle: 1, Closed: true}, "",
			"00000011 02 00 0003 00 53 16 c0 04 02 52 01 41",
		},
		"end":   {&amqp.End{}, "", "0000000c 02 00 0003 00 53 17 45"},
		"close": {&amqp.Close{}, "", "0000000c 02 00 0003 00 53 18 45"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := amqp.AppendFrame(nil, 3, tt.p, unhex(t, tt.payload))
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, tt.want); !bytes.Equal(got, want) {
				t.Errorf("encoded %x\nwant    %x", got, want)
			}
		})
	}
}

func TestSASLGoldenBytes(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		body amqp.SASLBody
		want string
	}{
		"mechanisms": {&amqp.SASLMechanisms{Mechanisms: []amqp.Symbol{"PLAIN"}}, "0000001b 02 01 0000 00 53 40 c0 0e 01 e0 0b 01 b3 00000005 504c41494e"},
		"challenge":  {&amqp.SASLChallenge{Challenge: []byte{}}, "00000010 02 01 0000 00 53 42 c0 03 01 a0 00"},
		"outcome":    {&amqp.SASLOutcome{Code: amqp.SASLAuth}, "00000010 02 01 0000 00 53 44 c0 03 01 50 01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := amqp.AppendSASLFrame(nil, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, tt.want); !bytes.Equal(got, want) {
				t.Errorf("encoded %x\nwant    %x", got, want)
			}
			if f, err := amqp.DecodeFrame(got); err != nil || !reflect.DeepEqual(f.Body, tt.body) {
				t.Errorf("decoded %+v, error %v", f.Body, err)
			}
		})
	}
}

// frame puts a header before a body given in hexadecimal.
func frame(t testing.TB, head, body string) []byte {
	t.Helper()
	b := append(make([]byte, 4), unhex(t, head+body)...)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestFrameForms(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		head, body string
		want       any
	}{
		"heartbeat":               {"02 00 0000", "", nil},
		"extended header":         {"03 00 0000 00000000", "00 53 17 45", &amqp.End{}},
		"trailing fields missing": {"02 00 0000", "00 53 16 c0 02 01 43", &amqp.Detach{}},
		"wide descriptor":         {"02 00 0000", "00 80 0000000000000017 45", &amqp.End{}},
		"one capability":          {"02 00 0000", "00 53 10 c0 0d 08 a1 01 63 40 40 40 40 40 40 a3 01 78", &amqp.Open{ContainerID: "c", MaxFrameSize: 1<<32 - 1, ChannelMax: 65535, OfferedCapabilities: []amqp.Symbol{"x"}}},
		"unsettled map, skipped":  {"02 00 0000", "00 53 12 c0 13 08 a1 01 6e 43 42 40 40 40 40 c1 07 02 a0 01 01 00 53 45", nil},
		"coordinator":             {"02 00 0000", "00 53 12 c0 10 07 a1 01 6e 43 42 40 40 40 00 53 30 c0 02 01 40", &amqp.Attach{Name: "n", SenderSettleMode: amqp.SenderMixed, Target: &amqp.Target{Coordinator: true}}},
		"states of a disposition": {"02 00 0000", "00 53 15 c0 09 05 41 43 40 42 00 53 26 45", &amqp.Disposition{Role: amqp.RoleReceiver, State: &amqp.Released{}}},
		"received":                {"02 00 0000", "00 53 15 c0 0d 05 41 43 40 42 00 53 23 c0 03 02 43 44", &amqp.Disposition{Role: amqp.RoleReceiver, State: &amqp.Received{}}},
		"modified":                {"02 00 0000", "00 53 15 c0 0d 05 41 43 40 42 00 53 27 c0 03 02 41 41", &amqp.Disposition{Role: amqp.RoleReceiver, State: &amqp.Modified{DeliveryFailed: true, UndeliverableHere: true}}},
		"challenge":               {"02 01 0000", "00 53 42 c0 04 01 a0 01 61", &amqp.SASLChallenge{Challenge: []byte("a")}},
		"response":                {"02 01 0000", "00 53 43 c0 04 01 a0 01 61", &amqp.SASLResponse{Response: []byte("a")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := amqp.DecodeFrame(frame(t, tt.head, tt.body))
			if strings.Contains(name, "unsettled") {
				// The map itself is malformed inside; skipping looks at sizes only.
				if a, ok := f.Body.(*amqp.Attach); err != nil || !ok || a.Name != "n" {
					t.Errorf("decoded %+v, error %v", f.Body, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(f.Body, tt.want) {
				t.Errorf("decoded %+v, want %+v", f.Body, tt.want)
			}
		})
	}
}

func TestMalformedFrames(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{
		"too short":             unhex(t, "00000007 02 00 00"),
		"size differs":          unhex(t, "00000009 02 00 0000"),
		"offset below header":   unhex(t, "00000008 01 00 0000"),
		"offset beyond frame":   unhex(t, "00000008 03 00 0000"),
		"unknown type":          unhex(t, "00000008 02 02 0000"),
		"empty SASL frame":      unhex(t, "00000008 02 01 0000"),
		"unknown performative":  frame(t, "02 00 0000", "00 53 19 45"),
		"SASL body in AMQP":     frame(t, "02 00 0000", "00 53 41 45"),
		"AMQP body in SASL":     frame(t, "02 01 0000", "00 53 10 45"),
		"too many fields":       frame(t, "02 00 0000", "00 53 17 c0 03 02 40 40"),
		"field of another type": frame(t, "02 00 0000", "00 53 16 c0 03 01 a1 00"),
		"bytes after close":     frame(t, "02 00 0000", "00 53 18 45 00"),
		"unknown state":         frame(t, "02 00 0000", "00 53 15 c0 09 05 41 43 40 42 00 53 2a 45"),
		"settle mode 3":         frame(t, "02 00 0000", "00 53 12 c0 08 04 a1 01 6e 43 42 50 03"),
		"source is a target":    frame(t, "02 00 0000", "00 53 12 c0 0c 06 a1 01 6e 43 42 40 40 00 53 29 45"),
		"error is a list":       frame(t, "02 00 0000", "00 53 18 c0 02 01 45"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := amqp.DecodeFrame(b)
			if !errors.Is(err, amqp.ErrMalformed) {
				t.Errorf("decoded %+v, error %v", f, err)
			}
		})
	}
}

func TestFrameSize(t *testing.T) {
	t.Parallel()
	for size, ok := range map[uint32]bool{7: false, 8: true, 512: true, 513: false, 1<<32 - 1: false} {
		var head [4]byte
		binary.BigEndian.PutUint32(head[:], size)
		got, err := amqp.FrameSize(head, 512)
		if ok != (err == nil) || ok && got != int(size) {
			t.Errorf("size %d: %d, error %v", size, got, err)
		}
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	if got := amqp.Errorf("c", "no %s", "d").Error(); got != "c: no d" {
		t.Errorf("text: %q", got)
	}
	if got := (&amqp.Error{Condition: "c"}).Error(); got != "c" {
		t.Errorf("text: %q", got)
	}
}
