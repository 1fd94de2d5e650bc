package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"testing"
	"testing/iotest"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

func TestParseUserName(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		want userName
		ok   bool
	}{
		"h/d":                         {userName{host: "h", target: hub.Target{DeviceID: "d"}}, true},
		"h/d/":                        {userName{host: "h", target: hub.Target{DeviceID: "d"}}, true},
		"h/d/?api-version=2021-04-12": {userName{host: "h", target: hub.Target{DeviceID: "d"}}, true},
		"h/d/api-version=2020-09-30":  {userName{host: "h", target: hub.Target{DeviceID: "d"}}, true},
		"h/d/?":                       {userName{host: "h", target: hub.Target{DeviceID: "d"}}, true},
		"h/a::b/?x=a%2Fb&y=1/2;3":     {userName{host: "h", target: hub.Target{DeviceID: "a::b"}}, true},
		"h/a?b":                       {userName{host: "h", target: hub.Target{DeviceID: "a?b"}}, true},
		"h/d/m":                       {userName{host: "h", target: hub.Target{DeviceID: "d", ModuleID: "m"}}, true},
		"h/d/m/":                      {userName{host: "h", target: hub.Target{DeviceID: "d", ModuleID: "m"}}, true},
		"h/d/m/?api-version=1":        {userName{host: "h", target: hub.Target{DeviceID: "d", ModuleID: "m"}}, true},
		"h/d/api-version-module/":     {userName{host: "h", target: hub.Target{DeviceID: "d", ModuleID: "api-version-module"}}, true},
		"h/d/m/x":                     {},
		"h/d/?a=%zz":                  {userName{host: "h", target: hub.Target{DeviceID: "d"}}, true},
		"h//?api-version=1":           {},
		"/d":                          {},
		"h":                           {},
		"":                            {},
		"h/d/?api-version=1&model-id=dtmi%3Aa%3Bb%3B1&x": {userName{host: "h", target: hub.Target{DeviceID: "d"}, modelID: "dtmi:a;b;1"}, true},
		"h/d/api-version=1&model-id=m":                   {userName{host: "h", target: hub.Target{DeviceID: "d"}, modelID: "m"}, true},
		"h/d/?model-id=%zz":                              {userName{host: "h", target: hub.Target{DeviceID: "d"}}, true},
		"h/d/m/api-version=2020-09-30":                   {userName{host: "h", target: hub.Target{DeviceID: "d", ModuleID: "m"}}, true},
	}
	for in, tt := range tests {
		got, err := parseUserName(in)
		if (err == nil) != tt.ok || err == nil && got != tt.want {
			t.Errorf("parseUserName(%q) = %+v, %v; want %+v", in, got, err, tt.want)
		}
	}
}

// TestAcknowledgeInOrder stores messages in another order than they came in.
func TestAcknowledgeInOrder(t *testing.T) {
	t.Parallel()
	var c conn
	c.out.init()
	acks := &c.acks
	acks.init(&c)
	begin := func(qos byte, id uint16) *storing {
		return acks.begin(&publish{qos: qos, id: id, payload: make([]byte, 10)})
	}
	slots := []*storing{begin(1, 5), begin(0, 0), begin(1, 7), begin(1, 6)}
	var got []uint16
	for _, i := range []int{2, 1, 0, 3} {
		if err := acks.complete(slots[i]); err != nil {
			t.Fatal(err)
		}
		if b, _ := c.out.take(); b != nil {
			for b := b.Bytes(); len(b) > 0; b = b[4:] {
				got = append(got, uint16(b[2])<<8|uint16(b[3]))
			}
		}
		if i == 2 && len(got) > 0 {
			t.Error("acknowledged out of turn")
		}
	}
	if want := []uint16{5, 7, 6}; !reflect.DeepEqual(got, want) {
		t.Errorf("PUBACKs %v, want %v", got, want)
	}
	if acks.bytes != 0 || acks.count != 0 || acks.first != nil || acks.last != nil {
		t.Errorf("%d bytes and %d slots left", acks.bytes, acks.count)
	}
}

// TestPacketIDs wraps around and passes over IDs in use and zero.
func TestPacketIDs(t *testing.T) {
	t.Parallel()
	var d downlink
	d.last = 65534
	for _, want := range []uint16{65535, 1, 2} {
		if got := d.add([16]byte{}); got != want {
			t.Errorf("got %d, want %d", got, want)
		}
	}
	d.last = 65534
	if got := d.add([16]byte{}); got != 3 {
		t.Errorf("got %d, want 3, the first that is not in use", got)
	}
}

func TestOutboxLimit(t *testing.T) {
	t.Parallel()
	var out outbox
	out.init()
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Payload = make([]byte, 128<<10)
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = out.put(p)
	}
	if !errors.Is(err, errSlow) || n != 9 {
		t.Errorf("put %d gave %v", n, err)
	}
	out.close()
	if err := out.put(p); err != nil {
		t.Errorf("put after close: %v", err)
	}
}

func FuzzParseUserName(f *testing.F) {
	f.Add("h/d/?api-version=2021-04-12&model-id=a%20b")
	f.Add("h/d/m/api-version=1")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseUserName(s)
		if err == nil && (u.host == "" || u.target.DeviceID == "") {
			t.Errorf("accepted %q as %+v", s, u)
		}
	})
}

// FuzzTelemetry takes any topic and payload; what it accepts must be encodable
// and keep the body.
func FuzzTelemetry(f *testing.F) {
	f.Add("devices/d/messages/events/%24.mid=1&a=b&c&%24.exp=2030-01-01T00:00:00Z", []byte("x"))
	f.Add("devices/d/messages/events", []byte{})
	f.Add("$iothub/methods/res/200/?$rid=1", []byte("{}"))
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		if r, err := parseMethodResponse(topic); err == nil && r.requestID == "" {
			t.Errorf("method response without ID in %q", topic)
		}
		m, err := parseTelemetry(hub.Target{DeviceID: "d"}, topic, payload, true)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Body(), payload) {
			t.Errorf("body %q, want %q", m.Body(), payload)
		}
		if _, err := m.MarshalBinary(); err != nil {
			t.Errorf("topic %q: %v", topic, err)
		}
	})
}

// FuzzBag writes properties and reads them back.
func FuzzBag(f *testing.F) {
	f.Add("$.to", "/devices/a::b/messages/deviceBound", "x y", "a&b=c;d+e%")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		want := []property{{key: k1, value: v1}, {key: k2, value: v2}}
		for _, p := range want {
			if p.key == "" || !isText(p.key) || !isText(p.value) {
				return
			}
		}
		text := formatBag(want)
		for _, c := range []byte(text) {
			if !isUnreserved(c) && c != '%' && c != '=' && c != '&' {
				t.Fatalf("raw %q in %q", c, text)
			}
		}
		got, err := parseBag(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
	})
}

// FuzzFrames reads any bytes as packets, at once and byte by byte: both must
// come to the same end.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 0, 0xc0, 0})
	f.Add([]byte{0x82, 6, 0, 1, 0, 1, 'a', 1, 0xa2, 5, 0, 1, 0, 1, 'a', 0x40, 2, 0, 1})
	f.Add([]byte{0x32, 7, 0, 1, 't', 0, 1, 'x', 'y', 0xe0, 0})
	f.Add([]byte{0x30, 0xff, 0xff, 0x7f, 0})
	max := limits{connect: 1 << 10, control: 1 << 10, publish: 64 << 10}
	f.Fuzz(func(t *testing.T, data []byte) {
		whole := readAll(bytes.NewReader(data), max)
		split := readAll(iotest.OneByteReader(bytes.NewReader(data)), max)
		if !reflect.DeepEqual(whole, split) {
			t.Errorf("at once %v, byte by byte %v", whole, split)
		}
	})
}

// readConn is a connection to read from.
type readConn struct {
	net.Conn
	io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// readAll returns the packets of a stream as text, the error that ended it last.
func readAll(r io.Reader, max limits) []string {
	var all []string
	s := source{nc: readConn{Reader: r}}
	for {
		h, body, err := s.frame(max)
		if err != nil {
			return append(all, err.Error())
		}
		if h.MessageType == packets.Connect {
			_, _, _ = protocol(body) // must not panic
		}
		if h.MessageType == packets.Publish {
			p, err := decodePublish(h, body)
			if err != nil {
				return append(all, err.Error())
			}
			all = append(all, fmt.Sprintf("%+v", p))
			continue
		}
		p, err := decode(h, body)
		if err != nil {
			return append(all, err.Error())
		}
		all = append(all, p.String())
	}
}
