package mqtt_test

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// parseLikeGo reads a delivery topic as amenzhinsky/iothub v0.9.1 does
// (iotdevice/transport/mqtt/mqtt.go): the whole topic is decoded, what stands
// before the first "$." is dropped, and the rest is decoded once more as a
// query.
func parseLikeGo(topic string) (map[string]string, error) {
	decoded, err := url.QueryUnescape(topic)
	if err != nil {
		return nil, err
	}
	i := strings.Index(decoded, "$.")
	if i < 0 {
		return nil, errors.New("malformed topic")
	}
	query, err := url.ParseQuery(strings.ReplaceAll(decoded[i:], ";", "%3B"))
	if err != nil {
		return nil, err
	}
	bag := make(map[string]string)
	for key, values := range query {
		if len(values) != 1 {
			return nil, fmt.Errorf("%d values of %s", len(values), key)
		}
		bag[key] = values[0]
	}
	if exp, ok := bag["$.exp"]; ok {
		if _, err := time.Parse(time.RFC3339, exp); err != nil {
			return nil, err
		}
	}
	return bag, nil
}

// parseLikeNode reads a delivery topic as azure-iot-device-mqtt 1.16 does
// (mqtt.ts): the fifth segment of the topic is the bag, split first and then
// decoded once.
func parseLikeNode(topic string) (map[string]string, error) {
	segments := strings.Split(topic, "/")
	if len(segments) < 5 {
		return nil, errors.New("fewer than five segments")
	}
	bag := make(map[string]string)
	for pair := range strings.SplitSeq(segments[4], "&") {
		parts := strings.Split(pair, "=")
		if len(parts) == 1 {
			parts = append(parts, "undefined") // that is what becomes of null
		}
		if len(parts) != 2 {
			return nil, fmt.Errorf("pair %q", pair)
		}
		key, err := url.PathUnescape(parts[0])
		if err != nil {
			return nil, err
		}
		if bag[key], err = url.PathUnescape(parts[1]); err != nil {
			return nil, err
		}
	}
	return bag, nil
}

// TestDeliveryTopic pins the topic of a delivery byte for byte and reads it
// with the parsers of both SDKs.
func TestDeliveryTopic(t *testing.T) {
	t.Parallel()
	text := func(s string) *string { return &s }
	expiry := time.Date(2100, 1, 2, 3, 4, 5, 678e6, time.UTC)
	unset := time.Time{}
	uuid := amqp.UUID{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x80, 1, 2, 3, 4, 5, 6, 7}
	tests := map[string]struct {
		message amqp.Message
		bag     string
		want    map[string]string
	}{
		"bare": {
			amqp.Message{},
			"%24.to=%2Fdevices%2Fdevice-solver%3A%3Ajob-1%2Fmessages%2FdeviceBound",
			map[string]string{"$.to": "/devices/device-solver::job-1/messages/deviceBound"},
		},
		"everything": {
			amqp.Message{
				Properties: &amqp.Properties{
					MessageID: "m:1", CorrelationID: uuid, UserID: []byte("me"),
					To:          text("/devices/d/messages/devicebound"),
					ContentType: text("application/json"), ContentEncoding: text("utf-8"),
					AbsoluteExpiryTime: &expiry,
				},
				ApplicationProperties: map[string]any{
					"iothub-ack": "full", "from-device": "device-scheduler::job-1", "sequence": int64(7), "b": true, "x y": "a b",
				},
			},
			"%24.mid=m%3A1&%24.to=%2Fdevices%2Fd%2Fmessages%2Fdevicebound&%24.cid=12345678-9abc-4def-8001-020304050607&%24.uid=me" +
				"&%24.ct=application%2Fjson&%24.ce=utf-8&%24.exp=2100-01-02T03%3A04%3A05.678Z" +
				"&b=true&from-device=device-scheduler%3A%3Ajob-1&iothub-ack=full&sequence=7&x%20y=a%20b",
			map[string]string{
				"$.mid": "m:1", "$.to": "/devices/d/messages/devicebound", "$.cid": "12345678-9abc-4def-8001-020304050607", "$.uid": "me",
				"$.ct": "application/json", "$.ce": "utf-8", "$.exp": "2100-01-02T03:04:05.678Z",
				"b": "true", "from-device": "device-scheduler::job-1", "iothub-ack": "full", "sequence": "7", "x y": "a b",
			},
		},
		"zero time is no expiry": {
			amqp.Message{Properties: &amqp.Properties{To: text("/x"), AbsoluteExpiryTime: &unset}},
			"%24.to=%2Fx",
			map[string]string{"$.to": "/x"},
		},
		"nothing that MQTT or a parser could trip over stays raw": {
			amqp.Message{
				Properties:            &amqp.Properties{To: text("/x")},
				ApplicationProperties: map[string]any{"k": "a/b?c#d,e'f(g)h*i!j$k@l:m€"},
			},
			"%24.to=%2Fx&k=a%2Fb%3Fc%23d%2Ce%27f%28g%29h%2Ai%21j%24k%40l%3Am%E2%82%AC",
			map[string]string{"$.to": "/x", "k": "a/b?c#d,e'f(g)h*i!j$k@l:m€"},
		},
		"null and binary": {
			amqp.Message{
				Properties:            &amqp.Properties{To: text("/x")},
				ApplicationProperties: map[string]any{"null": nil, "raw": []byte{1, 2}, "time": expiry, "float": 1.5},
			},
			"%24.to=%2Fx&float=1.5&null&raw=AQI%3D&time=2100-01-02T03%3A04%3A05.678Z",
			nil, // the second decoding of the Go SDK ends raw at the equals sign
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, store.Memory(), nil)
			c := f.connected()
			c.subscribe(1, deviceboundFilter)
			tt.message.Data = [][]byte{[]byte("body")}
			must(t, f.hub.SendC2D(t.Context(), deviceID, &tt.message))
			p := expect[*packets.PublishPacket](c)
			if p.TopicName != deviceboundPrefix+tt.bag {
				t.Fatalf("topic\n got %s\nwant %s", p.TopicName, deviceboundPrefix+tt.bag)
			}
			if string(p.Payload) != "body" || p.Qos != 1 || p.Retain || p.Dup || p.MessageID == 0 {
				t.Errorf("packet %v", p)
			}
			for parser, parse := range map[string]func(string) (map[string]string, error){"Go": parseLikeGo, "Node": parseLikeNode} {
				got, err := parse(p.TopicName)
				if err != nil {
					t.Errorf("%s parser: %v", parser, err)
				}
				if tt.want != nil && !maps.Equal(got, tt.want) {
					t.Errorf("%s parser\n got %v\nwant %v", parser, got, tt.want)
				}
			}
		})
	}
}

func TestPubackCompletes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.subscribe(1, deviceboundFilter)
	f.sendC2D("one", nil)
	p := expect[*packets.PublishPacket](c)
	c.puback(p.MessageID + 1) // of nothing: ignored
	c.ping()
	if n := f.pending(); n != 1 {
		t.Errorf("%d messages pending before the PUBACK, want 1", n)
	}
	c.puback(p.MessageID)
	c.puback(p.MessageID) // again: ignored
	c.ping()
	if n := f.pending(); n != 0 {
		t.Errorf("%d messages pending after the PUBACK", n)
	}
}

func TestQoS0CompletesWhenWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.subscribe(0, deviceboundFilter)
	f.sendC2D("one", nil)
	if p := expect[*packets.PublishPacket](c); p.Qos != 0 {
		t.Errorf("QoS %d", p.Qos)
	}
	eventually(t, "completed", func() bool { return f.pending() == 0 })
}

// TestRedelivery loses the connection between delivery and PUBACK.
func TestRedelivery(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change  []func(*packets.ConnectPacket)
		present bool
	}{
		"clean session":      {nil, false},
		"persistent session": {[]func(*packets.ConnectPacket){persistent}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, store.Memory(), nil)
			c := f.connected(tt.change...)
			c.subscribe(1, deviceboundFilter)
			for _, body := range []string{"one", "two", "three"} {
				f.sendC2D(body, nil)
			}
			first := expect[*packets.PublishPacket](c)
			expect[*packets.PublishPacket](c)
			expect[*packets.PublishPacket](c)
			c.puback(first.MessageID)
			c.ping()
			c.conn.Close()

			c = f.pipe()
			if ack := f.login(c, tt.change...); ack.SessionPresent != tt.present {
				t.Fatalf("session present: %v, want %v", ack.SessionPresent, tt.present)
			}
			if !tt.present {
				c.ping() // nothing comes before the subscription
				c.subscribe(1, deviceboundFilter)
			}
			for _, want := range []string{"two", "three"} {
				p := expect[*packets.PublishPacket](c)
				if string(p.Payload) != want {
					t.Errorf("got %q, want %q", p.Payload, want)
				}
				c.puback(p.MessageID)
			}
			c.ping()
			if n := f.pending(); n != 0 {
				t.Errorf("%d messages pending", n)
			}
		})
	}
}

// TestPersistentSession goes through the ways in which subscriptions are kept
// and forgotten.
func TestPersistentSession(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	reconnect := func(change ...func(*packets.ConnectPacket)) (*client, bool) {
		c := f.pipe()
		return c, f.login(c, change...).SessionPresent
	}
	steps := []struct {
		name      string
		change    []func(*packets.ConnectPacket)
		present   bool
		delivered bool
		then      func(*client)
	}{
		{name: "first", change: []func(*packets.ConnectPacket){persistent}, then: func(c *client) { c.subscribe(1, deviceboundFilter) }},
		{name: "subscription kept", change: []func(*packets.ConnectPacket){persistent}, present: true, delivered: true, then: func(c *client) {
			c.unsubscribe(deviceboundFilter)
		}},
		{name: "unsubscribed", change: []func(*packets.ConnectPacket){persistent}, present: true, then: func(c *client) { c.subscribe(1, deviceboundFilter) }},
		{name: "clean", then: func(c *client) { c.subscribe(1, deviceboundFilter) }},
		{name: "nothing kept from clean", change: []func(*packets.ConnectPacket){persistent}},
	}
	f.sendC2D("waiting", nil)
	for _, step := range steps {
		c, present := reconnect(step.change...)
		if present != step.present {
			t.Errorf("%s: session present %v, want %v", step.name, present, step.present)
		}
		if step.delivered {
			expect[*packets.PublishPacket](c)
		}
		if step.then != nil {
			step.then(c)
		}
		c.conn.Close()
		c.expectClosed()
	}
}

// TestSessionOfEarlierDevice makes sure that a device registered anew doesn't
// inherit the subscriptions of the one before it.
func TestSessionOfEarlierDevice(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	f.connected(persistent).subscribe(1, deviceboundFilter)
	must(t, f.hub.DeleteDevice(t.Context(), deviceID, hub.AnyVersion))
	f.key = f.addDevice(deviceID)
	if f.login(f.pipe(), persistent).SessionPresent {
		t.Error("session of a deleted device was kept")
	}
}

// TestPacketIDsAreTwoSpaces uses the packet ID of a delivery in flight for a
// PUBLISH and a SUBSCRIBE of the device's own.
func TestPacketIDsAreTwoSpaces(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.subscribe(1, deviceboundFilter)
	f.sendC2D("down", nil)
	p := expect[*packets.PublishPacket](c)
	c.publish(p.MessageID, eventsTopic, "up")
	if codes := c.subscribe(1, "$iothub/methods/POST/#"); !reflect.DeepEqual(codes, []byte{1}) { // its packet ID is 1 too
		t.Errorf("SUBACK %v", codes)
	}
	if n := f.pending(); n != 1 {
		t.Errorf("%d messages pending, want 1", n)
	}
	c.puback(p.MessageID)
	c.ping()
	if n := f.pending(); n != 0 {
		t.Errorf("%d messages pending after the PUBACK", n)
	}
}

// TestFullQueue delivers all that a queue can hold at once, and takes PUBACKs
// in any order.
func TestFullQueue(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	for i := range hub.MaxC2DQueueDepth {
		f.sendC2D(fmt.Sprint(i), nil)
	}
	c := f.connected()
	c.subscribe(1, deviceboundFilter)
	var ids []uint16
	for i := range hub.MaxC2DQueueDepth {
		p := expect[*packets.PublishPacket](c)
		if string(p.Payload) != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, p.Payload)
		}
		ids = append(ids, p.MessageID)
	}
	for i := range ids {
		c.puback(ids[len(ids)-1-i])
	}
	c.ping()
	f.sendC2D("more", nil)
	if p := expect[*packets.PublishPacket](c); string(p.Payload) != "more" {
		t.Errorf("got %q", p.Payload)
	}
}

func TestUnsubscribeStopsDelivery(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.subscribe(1, deviceboundFilter)
	f.sendC2D("in flight", nil)
	inFlight := expect[*packets.PublishPacket](c)
	c.unsubscribe(deviceboundFilter, "never/subscribed")
	f.sendC2D("later", nil)
	c.ping() // nothing in between
	c.puback(inFlight.MessageID)
	c.ping()
	if n := f.pending(); n != 1 {
		t.Errorf("%d messages pending, want 1: what was in flight can still be completed", n)
	}
	c.subscribe(1, deviceboundFilter)
	if p := expect[*packets.PublishPacket](c); string(p.Payload) != "later" {
		t.Errorf("got %q", p.Payload)
	}
}

func TestSubscribeReturnCodes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	tests := map[string]struct {
		filter string
		qos    byte
		want   byte
	}{
		"devicebound at 0":         {deviceboundFilter, 0, 0},
		"devicebound at 1":         {deviceboundFilter, 1, 1},
		"devicebound at 2":         {deviceboundFilter, 2, 1},
		"devicebound, ID encoded":  {"devices/device-solver%3A%3Ajob-1/messages/devicebound/#", 1, 1},
		"methods":                  {"$iothub/methods/POST/#", 0, 0},
		"twin responses":           {"$iothub/twin/res/#", 1, 1},
		"desired properties":       {"$iothub/twin/PATCH/properties/desired/#", 0, 0},
		"another device":           {"devices/other/messages/devicebound/#", 1, 0x80},
		"all devices":              {"devices/+/messages/devicebound/#", 1, 0x80},
		"everything":               {"#", 1, 0x80},
		"telemetry":                {eventsTopic + "#", 1, 0x80},
		"module":                   {"devices/" + deviceID + "/modules/m/#", 1, 0x80},
		"devicebound without hash": {deviceboundPrefix, 1, 0x80},
	}
	c := f.connected()
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c.t = t
			if codes := c.subscribe(tt.qos, tt.filter); !reflect.DeepEqual(codes, []byte{tt.want}) {
				t.Errorf("SUBACK %v, want %d", codes, tt.want)
			}
		})
	}
	c.t = t
	if codes := c.subscribe(1, "x", deviceboundFilter, "y"); !reflect.DeepEqual(codes, []byte{0x80, 1, 0x80}) {
		t.Errorf("SUBACK %v", codes)
	}
}

// TestOddDeviceID delivers on the topic as it was subscribed to, when the ID
// has characters that MQTT keeps for itself.
func TestOddDeviceID(t *testing.T) {
	t.Parallel()
	const id = "a+b#c%d"
	f := newFixture(t, store.Memory(), nil)
	key := f.addDevice(id)
	c := f.connected(func(p *packets.ConnectPacket) {
		p.ClientIdentifier, p.Username = id, hubName+"/"+id
		p.Password = []byte(token(t, hubName, "", key, time.Hour))
	})
	encoded := url.PathEscape(id)
	encoded = strings.ReplaceAll(encoded, "+", "%2B")
	c.subscribe(1, "devices/"+encoded+"/messages/devicebound/#")
	c.publish(1, "devices/"+encoded+"/messages/events/", "up")
	must(t, f.hub.SendC2D(t.Context(), id, &amqp.Message{}))
	if p := expect[*packets.PublishPacket](c); !strings.HasPrefix(p.TopicName, "devices/a%2Bb%23c%25d/messages/devicebound/%24.to=") {
		t.Errorf("topic %s", p.TopicName)
	}
}

// TestUndeliverableMessage sends properties that fit into a message but, once
// encoded, into no topic.
func TestUndeliverableMessage(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.subscribe(1, deviceboundFilter)
	f.sendC2D("too long", map[string]any{"k": strings.Repeat("€", 10_000), hub.PropertyAck: "full"})
	f.sendC2D("next", nil)
	if p := expect[*packets.PublishPacket](c); string(p.Payload) != "next" {
		t.Errorf("got %q", p.Payload)
	}
	eventually(t, "rejected", func() bool { return f.pending() == 1 })
}

// TestMessageBehindTheBack completes or purges messages while they are in
// flight: the PUBACK then finds no lock.
func TestMessageBehindTheBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.subscribe(1, deviceboundFilter)
	f.sendC2D("one", nil)
	p := expect[*packets.PublishPacket](c)
	must(t, f.hub.DeleteDevice(t.Context(), deviceID, hub.AnyVersion))
	c.puback(p.MessageID)
	c.expectClosed()
}
