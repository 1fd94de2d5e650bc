package mqtt_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// TestTelemetry publishes with every system property and looks at what reaches
// the queue.
func TestTelemetry(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	bag := "%24.mid=m-1&$.cid=job%3A1&%24.uid=u&%24.to=%2Fx&%24.exp=2030-01-02T03%3A04%3A05.678Z" +
		"&%24.ct=application%2Fjson&%24.ce=utf-8&%24.ctime=2025-01-01T00%3A00%3A00Z&%24.schema=s" +
		"&%24.sub=thermostat&%24.ifid=i&%24.cdid=spoof&kind=job&to-device=device-scheduler%3A%3Ajob-1&empty=&null" +
		"&iothub-connection-device-id=spoof&%E2%82%AC=a%20b%2Bc&&"
	c.publish(1, eventsTopic+bag, `{"a":1}`)
	m := f.nextTelemetry()
	p := m.Properties
	got := map[string]any{
		"body": string(m.Body()), "mid": p.MessageID, "cid": p.CorrelationID, "uid": string(p.UserID), "to": *p.To,
		"ct": *p.ContentType, "ce": *p.ContentEncoding, "exp": p.AbsoluteExpiryTime.UTC().String(),
	}
	want := map[string]any{
		"body": `{"a":1}`, "mid": "m-1", "cid": "job:1", "uid": "u", "to": "/x",
		"ct": "application/json", "ce": "utf-8", "exp": "2030-01-02 03:04:05.678 +0000 UTC",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("properties\n got %v\nwant %v", got, want)
	}
	delete(m.ApplicationProperties, hub.PropertyGenerationID)
	wantApp := map[string]any{
		"kind": "job", "to-device": "device-scheduler::job-1", "empty": "", "null": nil, "€": "a b+c",
		"iothub-creation-time-utc": "2025-01-01T00:00:00Z", "iothub-message-schema": "s",
		"dt-subject": "thermostat", "iothub-interface-id": "i",
		hub.PropertyDeviceID:   deviceID,
		hub.PropertyAuthMethod: `{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}`,
	}
	if !reflect.DeepEqual(m.ApplicationProperties, wantApp) {
		t.Errorf("application properties\n got %v\nwant %v", m.ApplicationProperties, wantApp)
	}
}

func TestTelemetryVariants(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	base := strings.TrimSuffix(eventsTopic, "/")
	tests := map[string]struct {
		packet   *packets.PublishPacket
		property string
		want     any
	}{
		"no closing slash":       {publishPacket(1, 1, base, "x"), "a", nil},
		"question mark":          {publishPacket(1, 1, base+"/?a=b", "x"), "a", "b"},
		"encoded device ID":      {publishPacket(1, 1, "devices/device-solver%3A%3Ajob-1/messages/events/a=b", "x"), "a", "b"},
		"slash in the bag":       {publishPacket(1, 1, base+"/a=b/c", "x"), "a", "b/c"},
		"equals sign in a value": {publishPacket(1, 1, base+"/a=b=c", "x"), "a", "b=c"},
		"last one wins":          {publishPacket(1, 1, base+"/a=b&a=c", "x"), "a", "c"},
		"highest packet ID":      {publishPacket(1, 65535, base, "x"), "a", nil},
		"empty body":             {publishPacket(1, 1, base, ""), "a", nil},
		"retain": {func() *packets.PublishPacket {
			p := publishPacket(1, 1, base, "x")
			p.Retain = true
			return p
		}(), "mqtt-retain", "true"},
		"repeated": {func() *packets.PublishPacket {
			p := publishPacket(1, 1, base, "x")
			p.Dup = true
			return p
		}(), "mqtt-retain", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c.t = t
			c.send(tt.packet)
			if ack := expect[*packets.PubackPacket](c); ack.MessageID != tt.packet.MessageID {
				t.Errorf("PUBACK of %d", ack.MessageID)
			}
			m := f.nextTelemetry()
			if got := m.ApplicationProperties[tt.property]; got != tt.want || !bytes.Equal(m.Body(), tt.packet.Payload) {
				t.Errorf("body %q, %s = %v", m.Body(), tt.property, got)
			}
		})
	}
}

func TestTelemetryAtQoS0(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.send(publishPacket(0, 0, eventsTopic, "hello"))
	c.ping() // and no PUBACK
	if m := f.nextTelemetry(); string(m.Body()) != "hello" {
		t.Errorf("got %q", m.Body())
	}
}

// TestModel stamps the model that the device named in its CONNECT.
func TestModel(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected(func(p *packets.ConnectPacket) { p.Username += "&model-id=dtmi%3Aa%3Bb%3B1" })
	c.publish(1, eventsTopic, "x")
	if got := f.nextTelemetry().ApplicationProperties["dt-dataschema"]; got != "dtmi:a;b;1" {
		t.Errorf("model %v", got)
	}
}

// TestPubackMeansStored keeps the store shut while a message is under way.
func TestPubackMeansStored(t *testing.T) {
	t.Parallel()
	g := &valve{Store: store.Memory()}
	f := newFixture(t, g, nil)
	c := f.connected()
	g.close()
	c.send(publishPacket(1, 1, eventsTopic, "one"))
	c.send(publishPacket(1, 2, eventsTopic, "two"))
	eventually(t, "two messages at the store", func() bool { return g.waiting() == 2 })
	c.ping() // no PUBACK in between
	if n := len(f.telemetry.Peek(0, 2)); n != 0 {
		t.Errorf("%d messages visible before they are stored", n)
	}
	g.open()
	for want := uint16(1); want <= 2; want++ {
		if ack := expect[*packets.PubackPacket](c); ack.MessageID != want {
			t.Errorf("PUBACK of %d, want %d", ack.MessageID, want)
		}
	}
}

// TestBackpressure sends more than the hub may be storing at a time; the server
// stops reading and loses nothing.
func TestBackpressure(t *testing.T) {
	t.Parallel()
	g := &valve{Store: store.Memory()}
	f := newFixture(t, g, nil)
	c := f.connected()
	g.close()
	const n, size = 20, 100 << 10 // 2 MB, twice the bound
	body := strings.Repeat("x", size)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range uint16(n) {
			c.send(publishPacket(1, i+1, eventsTopic, body))
		}
	}()
	eventually(t, "ten messages at the store", func() bool { return g.waiting() == 10 })
	select {
	case <-sent:
		t.Error("all was read although nothing was stored")
	default:
	}
	g.open()
	for i := range uint16(n) {
		if ack := expect[*packets.PubackPacket](c); ack.MessageID != i+1 {
			t.Fatalf("PUBACK of %d, want %d", ack.MessageID, i+1)
		}
	}
	<-sent
}

// TestClosedFor sends what the hub answers by closing the connection, after
// something good that must not be lost.
func TestClosedFor(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	bytesOf := func(p packets.ControlPacket) []byte {
		var b bytes.Buffer
		must(t, p.Write(&b))
		return b.Bytes()
	}
	publish := func(qos byte, id uint16, topic string) []byte {
		return bytesOf(publishPacket(qos, id, topic, "x"))
	}
	tests := map[string][]byte{
		"QoS 2":                        publish(2, 1, eventsTopic),
		"QoS 3":                        {0x36, 0},
		"no packet ID":                 publish(1, 0, eventsTopic),
		"another device's topic":       publish(1, 1, "devices/other/messages/events/"),
		"another device, same prefix":  publish(1, 1, "devices/"+deviceID+"x/messages/events/"),
		"module topic":                 publish(1, 1, "devices/"+deviceID+"/modules/m/messages/events/"),
		"devicebound":                  publish(1, 1, deviceboundPrefix),
		"events with something behind": publish(1, 1, "devices/"+deviceID+"/messages/eventsx"),
		"unknown topic":                publish(0, 0, "hello"),
		"empty topic":                  publish(0, 0, ""),
		"wildcard in the topic":        publish(0, 0, eventsTopic+"a=#"),
		"null character":               publish(0, 0, eventsTopic+"a=\x00"),
		"broken escape":                publish(1, 1, eventsTopic+"a=%zz"),
		"property without name":        publish(1, 1, eventsTopic+"=b"),
		"property not UTF-8":           publish(1, 1, eventsTopic+"a=%ff"),
		"expiry is no time":            publish(1, 1, eventsTopic+"%24.exp=tomorrow"),
		"body too large":               bytesOf(publishPacket(1, 1, eventsTopic, strings.Repeat("x", hub.MaxD2CMessageSize+1))),
		"packet too large":             {0x32, 0xff, 0xff, 0xff, 0x7f},
		"control packet too large":     {0x82, 0xff, 0xff, 0x7f},
		"length of five bytes":         {0x32, 0x80, 0x80, 0x80, 0x80, 1},
		"PUBLISH shorter than it says": {0x32, 3, 0, 9, 'a'},
		"second CONNECT":               bytesOf(f.connectPacket()),
		"CONNACK from a device":        {0x20, 2, 0, 0},
		"PUBREL":                       {0x62, 2, 0, 1},
		"PUBREC":                       {0x50, 2, 0, 1},
		"PUBACK too long":              {0x40, 3, 0, 1, 0},
		"PUBACK too short":             {0x40, 1, 0},
		"SUBSCRIBE with wrong flags":   {0x80, 6, 0, 1, 0, 1, 'a', 1},
		"SUBSCRIBE without filter":     {0x82, 2, 0, 1},
		"SUBSCRIBE without packet ID":  {0x82, 6, 0, 0, 0, 1, 'a', 1},
		"SUBSCRIBE with QoS 3":         {0x82, 6, 0, 1, 0, 1, 'a', 3},
		"SUBSCRIBE cut short":          {0x82, 5, 0, 1, 0, 1, 'a'},
		"UNSUBSCRIBE without filter":   {0xa2, 2, 0, 1},
		"UNSUBSCRIBE cut short":        {0xa2, 5, 0, 1, 0, 9, 'a'},
		"PINGREQ with a body":          {0xc0, 1, 0},
		"unknown packet type":          {0xf0, 0},
		"method response, no status":   publish(0, 0, "$iothub/methods/res/ok/?$rid=1"),
		"method response, no ID":       publish(0, 0, "$iothub/methods/res/200/"),
		"method response, not JSON":    publish(0, 0, "$iothub/methods/res/200/?$rid=1"),
		"unknown twin topic":           publish(0, 0, "$iothub/twin/DELETE/?$rid=1"),
		"twin request without ID":      publish(0, 0, "$iothub/twin/GET/"),
		"twin version is no number":    publish(0, 0, "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=x"),
	}
	for name, raw := range tests {
		t.Run(name, func(t *testing.T) {
			c := f.connected()
			c.t = t
			c.publish(9, eventsTopic, "before")
			c.sendRaw(raw)
			c.expectClosed()
			if m := f.nextTelemetry(); string(m.Body()) != "before" {
				t.Errorf("got %q", m.Body())
			}
			if n := f.telemetry.Len(); n != 0 {
				t.Errorf("%d messages too many", n)
			}
		})
	}
}
