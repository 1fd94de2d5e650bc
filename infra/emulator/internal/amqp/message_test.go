package amqp_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	client "github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

func ptr[T any](v T) *T { return &v }

var (
	someUUID = amqp.UUID{0: 0x0a, 15: 0x0f}
	someTime = time.UnixMilli(1700000000123).UTC()
)

// fullMessage has every section and field that data messages can have.
func fullMessage() *amqp.Message {
	return &amqp.Message{
		Header:              &amqp.Header{Durable: true, Priority: 7, TTL: time.Minute, FirstAcquirer: true, DeliveryCount: 3},
		DeliveryAnnotations: map[string]any{"x-opt-lock-token": someUUID},
		Annotations: map[string]any{
			"x-opt-sequence-number": int64(300), "x-opt-enqueued-time": someTime, "x-opt-message-state": int32(1),
		},
		Properties: &amqp.Properties{
			MessageID: "m1", UserID: []byte("u"), To: ptr("to"), Subject: ptr("s"), ReplyTo: ptr("r"),
			CorrelationID: uint64(7), ContentType: ptr("application/json"), ContentEncoding: ptr("utf-8"),
			AbsoluteExpiryTime: ptr(someTime), CreationTime: ptr(someTime),
			GroupID: ptr("g"), GroupSequence: ptr(uint32(9)), ReplyToGroupID: ptr("rg"),
		},
		ApplicationProperties: map[string]any{
			"text": "é", "int": int32(-1), "long": int64(1 << 40), "ulong": uint64(5), "bool": true,
			"double": 1.5, "null": nil, "time": someTime, "uuid": someUUID, "binary": []byte{0, 1},
		},
		Data:   [][]byte{[]byte("hello "), []byte("world")},
		Footer: map[string]any{"f": "x"},
	}
}

func marshal(t testing.TB, m *amqp.Message) []byte {
	t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unmarshal(t testing.TB, b []byte) *amqp.Message {
	t.Helper()
	m := new(amqp.Message)
	if err := m.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func messages() map[string]*amqp.Message {
	return map[string]*amqp.Message{
		"full":             fullMessage(),
		"empty":            {},
		"empty sections":   {Header: &amqp.Header{Priority: amqp.DefaultPriority}, Properties: &amqp.Properties{}, Data: [][]byte{{}}},
		"value":            {Value: map[string]any{"partition_ids": []string{"0", "1"}, "n": int32(2)}, HasValue: true},
		"null value":       {HasValue: true},
		"sequence":         {Sequence: [][]any{{"a", int32(1)}, {}}},
		"uuid message ID":  {Properties: &amqp.Properties{MessageID: someUUID}, Data: [][]byte{nil}},
		"bytes message ID": {Properties: &amqp.Properties{MessageID: []byte{1}, CorrelationID: "c"}},
		"large":            {Data: [][]byte{bytes.Repeat([]byte("x"), 100_000)}},
	}
}

// normal evens out what the wire cannot tell apart.
func normal(m *amqp.Message) *amqp.Message {
	c := m.Clone()
	for i, d := range c.Data {
		c.Data[i] = append([]byte{}, d...)
	}
	return c
}

func TestMessageRoundTrip(t *testing.T) {
	t.Parallel()
	for name, m := range messages() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := marshal(t, m)
			if got := unmarshal(t, b); !reflect.DeepEqual(got, normal(m)) {
				t.Errorf("decoded %+v\nwant    %+v", got, m)
			}
		})
	}
}

// Our encoder, go-amqp's decoder and encoder, our decoder.
func TestMessageThroughGoAMQP(t *testing.T) {
	t.Parallel()
	for name, m := range messages() {
		if name == "null value" || name == "empty sections" {
			continue // go-amqp has no form for a null value, and drops an empty header
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var theirs client.Message
			if err := theirs.UnmarshalBinary(marshal(t, m)); err != nil {
				t.Fatal(err)
			}
			b, err := theirs.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if got := unmarshal(t, b); !reflect.DeepEqual(got, normal(m)) {
				t.Errorf("decoded %+v\nwant    %+v", got, m)
			}
		})
	}
}

func TestMessageAsGoAMQPReadsIt(t *testing.T) {
	t.Parallel()
	var m client.Message
	if err := m.UnmarshalBinary(marshal(t, fullMessage())); err != nil {
		t.Fatal(err)
	}
	if m.Header == nil || m.Header.TTL != time.Minute || m.Header.DeliveryCount != 3 || m.Header.Priority != 7 {
		t.Errorf("header: %+v", m.Header)
	}
	if m.Annotations["x-opt-sequence-number"] != int64(300) || m.Annotations["x-opt-message-state"] != int32(1) {
		t.Errorf("annotations: %v", m.Annotations)
	}
	if m.DeliveryAnnotations["x-opt-lock-token"] != client.UUID(someUUID) {
		t.Errorf("delivery annotations: %v", m.DeliveryAnnotations)
	}
	if p := m.Properties; p.MessageID != "m1" || *p.ContentType != "application/json" || *p.GroupSequence != 9 {
		t.Errorf("properties: %+v", m.Properties)
	}
	if m.ApplicationProperties["time"].(time.Time).UnixMilli() != someTime.UnixMilli() || m.ApplicationProperties["null"] != nil {
		t.Errorf("application properties: %v", m.ApplicationProperties)
	}
}

func TestMessageGoldenBytes(t *testing.T) {
	t.Parallel()
	m := &amqp.Message{
		Header:                &amqp.Header{Priority: amqp.DefaultPriority, DeliveryCount: 1},
		Annotations:           map[string]any{"x-opt-sequence-number": int64(1)},
		Properties:            &amqp.Properties{MessageID: "m", ContentType: ptr("t")},
		ApplicationProperties: map[string]any{"k": "v"},
		Data:                  [][]byte{[]byte("hi")},
	}
	want := unhex(t, `
		00 53 70 c0 07 05 40 40 40 40 52 01
		00 53 72 c1 1a 02 a3 15 782d6f70742d73657175656e63652d6e756d626572 55 01
		00 53 73 c0 0c 07 a1 01 6d 40 40 40 40 40 a3 01 74
		00 53 74 c1 07 02 a1 01 6b a1 01 76
		00 53 75 a0 02 6869`)
	if got := marshal(t, m); !bytes.Equal(got, want) {
		t.Errorf("encoded %x\nwant    %x", got, want)
	}
	if got := unmarshal(t, want); !reflect.DeepEqual(got, m) {
		t.Errorf("decoded %+v", got)
	}
}

func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]string{
		"not a section":          "40",
		"unknown section":        "00 53 79 45",
		"symbolic descriptor":    "00 a3 01 61 45",
		"large descriptor":       "00 80 00 00 01 00 00 00 00 70 45",
		"cut descriptor":         "00 53",
		"two headers":            "00 53 70 45 00 53 70 45",
		"header after data":      "00 53 75 a0 00 00 53 70 45",
		"value after data":       "00 53 75 a0 00 00 53 77 40 00 53 77 40",
		"string in data":         "00 53 75 a1 00",
		"null in data":           "00 53 75 40",
		"string in sequence":     "00 53 76 a1 00",
		"header is a map":        "00 53 70 c1 01 00",
		"TTL is a string":        "00 53 70 c0 06 03 40 40 a1 01 61",
		"too many header fields": "00 53 70 c0 07 06 40 40 40 40 40 40",
		"message ID is an int":   "00 53 73 c0 03 01 54 01",
		"annotation key is int":  "00 53 72 c1 05 02 54 01 54 01",
		"annotations are a list": "00 53 72 45",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m amqp.Message
			if err := m.UnmarshalBinary(unhex(t, b)); !errors.Is(err, amqp.ErrMalformed) {
				t.Errorf("decoded %+v, error %v", m, err)
			}
		})
	}
}

func TestWideDescriptorsAreRead(t *testing.T) {
	t.Parallel()
	m := unmarshal(t, unhex(t, "00 80 00 00 00 00 00 00 00 75 a0 01 61"))
	if string(m.Body()) != "a" {
		t.Errorf("message: %+v", m)
	}
}

func TestHeaderDefaults(t *testing.T) {
	t.Parallel()
	m := unmarshal(t, unhex(t, "00 53 70 45"))
	if want := (amqp.Header{Priority: amqp.DefaultPriority}); *m.Header != want {
		t.Errorf("header: %+v", m.Header)
	}
	for ttl, want := range map[time.Duration]time.Duration{
		time.Nanosecond:                time.Millisecond, // not "none"
		1500 * time.Microsecond:        2 * time.Millisecond,
		100 * 24 * time.Hour:           (1<<32 - 1) * time.Millisecond,
		-time.Second:                   0,
		(1<<32 - 1) * time.Millisecond: (1<<32 - 1) * time.Millisecond,
	} {
		m := unmarshal(t, marshal(t, &amqp.Message{Header: &amqp.Header{TTL: ttl}}))
		if m.Header.TTL != want {
			t.Errorf("TTL %v became %v, want %v", ttl, m.Header.TTL, want)
		}
	}
}

func TestUnmarshalReplacesAndKeepsNothing(t *testing.T) {
	t.Parallel()
	m := fullMessage()
	b := marshal(t, &amqp.Message{Data: [][]byte{[]byte("new")}})
	if err := m.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	clear(b)
	if want := (&amqp.Message{Data: [][]byte{[]byte("new")}}); !reflect.DeepEqual(m, want) {
		t.Errorf("message: %+v", m)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	t.Parallel()
	m := fullMessage()
	m.Value = []any{map[string]any{"k": []byte("v")}, map[any]any{int32(1): []string{"a"}}, amqp.Described{Value: []int64{1}}}
	c := m.Clone()
	if !reflect.DeepEqual(m, c) {
		t.Fatalf("clone: %+v", c)
	}
	c.Header.Priority = 0
	*c.Properties.To = "changed"
	c.Properties.UserID[0] = 'x'
	c.ApplicationProperties["binary"].([]byte)[0] = 9
	c.Annotations["new"] = 1
	c.Data[0][0] = 'X'
	list := c.Value.([]any)
	list[0].(map[string]any)["k"].([]byte)[0] = 'X'
	list[1].(map[any]any)[int32(1)].([]string)[0] = "X"
	list[2].(amqp.Described).Value.([]int64)[0] = 9
	want := fullMessage()
	want.Value = []any{map[string]any{"k": []byte("v")}, map[any]any{int32(1): []string{"a"}}, amqp.Described{Value: []int64{1}}}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("the original changed: %+v", m)
	}
}

func TestBodyJoinsSections(t *testing.T) {
	t.Parallel()
	if got := string(fullMessage().Body()); got != "hello world" {
		t.Errorf("body: %q", got)
	}
	if got := new(amqp.Message).Body(); len(got) != 0 {
		t.Errorf("body of an empty message: %q", got)
	}
}

func TestUnencodableMessages(t *testing.T) {
	t.Parallel()
	for _, m := range []*amqp.Message{
		{Annotations: map[string]any{"k": struct{}{}}},
		{ApplicationProperties: map[string]any{"k": "\xff"}},
		{Properties: &amqp.Properties{To: ptr("\xff")}},
		{Value: struct{}{}, HasValue: true},
		{Footer: map[string]any{strings.Repeat("\xff", 3): 1}},
		{Sequence: [][]any{{struct{}{}}}},
		{DeliveryAnnotations: map[string]any{"k": struct{}{}}},
	} {
		if _, err := m.MarshalBinary(); !errors.Is(err, amqp.ErrUnencodable) {
			t.Errorf("%+v: error %v", m, err)
		}
	}
}
