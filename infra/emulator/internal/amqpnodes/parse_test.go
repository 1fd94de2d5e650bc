package amqpnodes

import (
	"bytes"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// FuzzAddress parses any address, and those of a device and module with any IDs.
func FuzzAddress(f *testing.F) {
	f.Add("/devices/a%2Fb/modules/c%25/messages/events", "d", "m")
	f.Add("amqps://h:5671/hub/ConsumerGroups/$Default/Partitions/0", "a::b", "")
	f.Add("topic/Subscriptions/s/$DeadLetterQueue/$management", "devices", "modules")
	f.Add("messages/events/x", "%2F", "://")
	f.Fuzz(func(t *testing.T, text, device, module string) {
		a := parseAddress(text)
		named := map[kind]bool{kindManagement: true, kindConsumer: true, kindPartition: true, kindEntity: true}[a.kind]
		ofDevice := map[kind]bool{kindTelemetry: true, kindC2D: true, kindMethods: true, kindTwin: true}[a.kind]
		switch {
		case named != (a.entity != ""):
			t.Errorf("%q is of kind %d and names the entity %q", text, a.kind, a.entity)
		case (a.group != "" || a.partition != "") && !named:
			t.Errorf("%q is of kind %d and names a partition", text, a.kind)
		case !ofDevice && a.kind != kindUnknown && a.target != (hub.Target{}):
			t.Errorf("%q is of kind %d and names %v", text, a.kind, a.target)
		}
		if !strings.Contains(text, "://") {
			if absolute := parseAddress("amqps://host:5671/" + text); absolute != a {
				t.Errorf("%q is %+v, and with a host %+v", text, a, absolute)
			}
		}
		if device == "" {
			return
		}
		want := hub.Target{DeviceID: device}
		address := "/devices/" + url.PathEscape(device)
		if module != "" {
			want.ModuleID = module
			address += "/modules/" + url.PathEscape(module)
		}
		if got := parseAddress(address + "/messages/events"); got.kind != kindTelemetry || got.target != want {
			t.Errorf("the address of %v is %+v", want, got)
		}
	})
}

// FuzzPosition reads any selector; one that is taken says one thing.
func FuzzPosition(f *testing.F) {
	f.Add("amqp.annotation.x-opt-offset > '@latest'")
	f.Add("amqp.annotation.x-opt-sequence-number >= '17'")
	f.Add("amqp.annotation.x-opt-enqueued-time > '-9223372036854775808'")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePosition(text)
		if err != nil {
			return
		}
		said := 0
		for _, there := range []bool{p.Latest, p.Offset != nil, p.SequenceNumber != nil, p.EnqueuedTime != nil} {
			if there {
				said++
			}
		}
		if said != 1 {
			t.Errorf("%q says %d things: %+v", text, said, p)
		}
	})
}

// FuzzCorrelation reads any correlation ID of a method response, and that of a
// call, as the hub writes it.
func FuzzCorrelation(f *testing.F) {
	f.Add([]byte{0xa1, 3, 'a', 'b', 'c'}, uint64(0))
	f.Add([]byte{0xa0, 20, 'a'}, uint64(0xfedcba9876543210))
	f.Add(append([]byte{0x98}, make([]byte, 16)...), uint64(1)<<63)
	f.Fuzz(func(t *testing.T, encoded []byte, call uint64) {
		if v, _, err := amqp.DecodeValue(encoded); err == nil {
			_ = methodRequestID(v) // must not panic
		}
		id := strconv.FormatUint(call, 16)
		u, ok := methodCorrelation(id).(amqp.UUID)
		if !ok {
			t.Fatalf("call %s has no UUID", id)
		}
		for _, back := range []any{u, u.String(), bytes.Clone(u[:])} {
			if got := methodRequestID(back); got != id {
				t.Errorf("call %s comes back from %v as %s", id, back, got)
			}
		}
	})
}
