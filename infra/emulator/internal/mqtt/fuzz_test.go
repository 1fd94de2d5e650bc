package mqtt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// packetBytes are packets as they are sent.
func packetBytes(tb testing.TB, ps ...packets.ControlPacket) []byte {
	tb.Helper()
	var b bytes.Buffer
	for _, p := range ps {
		must(tb, p.Write(&b))
	}
	return b.Bytes()
}

// exchange sends a stream in two pieces, falls silent, and returns what the
// server had answered when it ended the connection, which it must by itself. It is
// for a bubble.
func (f *fixture) exchange(stream []byte, cut int) []byte {
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	var heard []byte
	wg.Go(func() { f.server.ServeConn(context.Background(), theirs) })
	wg.Go(func() { heard, _ = io.ReadAll(ours) })
	for _, part := range [][]byte{stream[:cut], stream[cut:]} {
		_, _ = ours.Write(part) // fails once the server has closed
		synctest.Wait()
	}
	wg.Wait()
	return heard
}

// answers decodes what a server sent; its first packet is the CONNACK.
func answers(t *testing.T, b []byte) []packets.ControlPacket {
	t.Helper()
	var all []packets.ControlPacket
	for r := bytes.NewReader(b); r.Len() > 0; {
		p, err := packets.ReadPacket(r)
		if err != nil {
			t.Fatalf("the server sent %x: %v", b, err)
		}
		all = append(all, p)
	}
	return all
}

// FuzzSession sends any bytes after the CONNECT of a device, which has a message
// waiting, a method called and its desired properties changed meanwhile.
func FuzzSession(f *testing.F) {
	subscribe := func(filters ...string) *packets.SubscribePacket {
		p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		p.MessageID, p.Topics, p.Qoss = 1, filters, make([]byte, len(filters))
		p.Qoss[0] = 1
		return p
	}
	puback := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	puback.MessageID = 1
	all := subscribe(deviceboundFilter, "$iothub/methods/POST/#", "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#")
	ping, bye := packets.NewControlPacket(packets.Pingreq), packets.NewControlPacket(packets.Disconnect)
	add := func(ps ...packets.ControlPacket) {
		b := packetBytes(f, ps...)
		f.Add(b, uint16(len(b)/2))
	}
	add(all, puback, ping, bye)
	add(all, publishPacket(1, 1, eventsTopic+"%24.mid=1&a=b&c", "x"), publishPacket(0, 0, eventsTopic, "y"), publishPacket(1, 2, eventsTopic, "z"))
	add(all, publishPacket(0, 0, "$iothub/twin/GET/?$rid=1", ""), publishPacket(1, 3, "$iothub/twin/PATCH/properties/reported/?$rid=2&$version=1", `{"a":1}`))
	add(all, publishPacket(0, 0, "$iothub/twin/PATCH/properties/reported/?$rid=2", `{"a":`), publishPacket(1, 1, "$iothub/methods/res/200/?$rid=1", `{}`))
	add(publishPacket(2, 1, eventsTopic, "x"))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, uint16(1))
	f.Fuzz(func(t *testing.T, stream []byte, cut uint16) {
		synctest.Test(t, func(t *testing.T) {
			x := newFixture(t, store.Memory(), nil)
			x.addDevice("other")
			x.sendC2D("waiting", map[string]any{"a": "b"})
			hello := packetBytes(t, x.connectPacket())
			var calls sync.WaitGroup
			calls.Go(func() {
				_, _ = x.hub.InvokeMethod(t.Context(), hub.Target{DeviceID: deviceID}, hub.MethodCall{Name: "m", ConnectTimeout: hub.MaxMethodTimeout})
			})
			heard := answers(t, x.exchange(append(hello, stream...), len(hello)+min(int(cut), len(stream))))
			calls.Wait()
			x.wantAnswered(t, heard, stream)
			x.wantStored(t)
		})
	})
}

// wantAnswered fails the test for packets that a server doesn't send, or that
// nothing asked for.
func (f *fixture) wantAnswered(t *testing.T, heard []packets.ControlPacket, stream []byte) {
	t.Helper()
	if len(heard) == 0 || heard[0].(*packets.ConnackPacket).ReturnCode != packets.Accepted {
		t.Fatalf("answered with %v", heard)
	}
	acknowledged, asked := 0, bytes.Count(stream, []byte{0x82})
	for _, p := range heard[1:] {
		switch p := p.(type) {
		case *packets.PubackPacket:
			acknowledged++
		case *packets.SubackPacket:
			asked--
			if p.MessageID == 0 || len(p.ReturnCodes) == 0 {
				t.Errorf("SUBACK %v", p)
			}
		case *packets.PublishPacket:
			wantTopic(t, p)
		case *packets.UnsubackPacket, *packets.PingrespPacket:
		default:
			t.Errorf("the server sent %v", p)
		}
	}
	// Each of them takes a byte of its type, of which there may be more.
	if asked < 0 || acknowledged > len(stream)/4 {
		t.Errorf("%d PUBACKs, %d SUBACKs too many, for %d bytes", acknowledged, -asked, len(stream))
	}
}

// wantTopic fails the test if the device gets what isn't for it.
func wantTopic(t *testing.T, p *packets.PublishPacket) {
	t.Helper()
	for _, prefix := range []string{"devices/", "$iothub/methods/POST/m/?$rid=", "$iothub/twin/res/", "$iothub/twin/PATCH/properties/desired/?$version="} {
		if !strings.HasPrefix(p.TopicName, prefix) {
			continue
		}
		if strings.HasPrefix(prefix, "$iothub") && len(p.Payload) > 0 && !json.Valid(p.Payload) {
			t.Errorf("%s: %q is no JSON", p.TopicName, p.Payload)
		}
		return
	}
	t.Errorf("the device got %q", p.TopicName)
}

// wantStored fails the test if what was stored can't be read, or is not the
// device's.
func (f *fixture) wantStored(t *testing.T) {
	t.Helper()
	for _, d := range f.telemetry.Peek(0, 1<<20) {
		if _, err := d.Message.MarshalBinary(); err != nil {
			t.Errorf("%+v: %v", d.Message, err)
		}
		if id := d.Message.ApplicationProperties[hub.PropertyDeviceID]; id != deviceID {
			t.Errorf("a message in the name of %v", id)
		}
	}
	for _, id := range []string{deviceID, "other"} {
		twin, err := f.hub.GetTwin(hub.Target{DeviceID: id})
		must(t, err)
		if _, err := json.Marshal(twin); err != nil || id == "other" && twin.Version != 2 {
			t.Errorf("twin of %s: %+v: %v", id, twin, err)
		}
	}
}

// FuzzConnect connects a device, whose token is good, with any client ID, user
// name and will. It gets in as itself or not at all.
func FuzzConnect(f *testing.F) {
	f.Add(deviceID, hubName+"/"+deviceID+"/?api-version=2021-04-12&model-id=dtmi%3Aa%3B1", eventsTopic, []byte("gone"), byte(0))
	f.Add(deviceID, hubName+"/"+deviceID+"/?model-id=%ff", eventsTopic+"a=%00", []byte{0xff}, byte(1))
	f.Add("other", hubName+"/other/", "devices/other/messages/events/", []byte{}, byte(2))
	f.Add(deviceID+"/m", hubName+"/"+deviceID+"/m", eventsTopic, []byte{}, byte(0x80))
	f.Add(deviceID, hubName+"/"+deviceID+"/"+"../other", eventsTopic, []byte{}, byte(0))
	f.Fuzz(func(t *testing.T, clientID, user, topic string, payload []byte, flags byte) {
		if max(len(clientID), len(user), len(topic), len(payload)) > 1<<15 {
			return // no longer a CONNECT that can be written
		}
		synctest.Test(t, func(t *testing.T) {
			x := newFixture(t, store.Memory(), nil)
			x.addDevice("other")
			p := x.connectPacket()
			p.ClientIdentifier, p.Username = clientID, user
			p.CleanSession = flags&0x80 != 0
			if p.WillFlag = topic != ""; p.WillFlag {
				p.WillTopic, p.WillMessage, p.WillQos, p.WillRetain = topic, payload, flags&3, flags&4 != 0
			}
			stream := packetBytes(t, p, publishPacket(1, 1, eventsTopic, fmt.Sprintf("%x", payload)))
			heard := answers(t, x.exchange(stream, len(stream)/2))
			stored := x.telemetry.Len()
			if len(heard) > 0 {
				ack, ok := heard[0].(*packets.ConnackPacket)
				if !ok || ack.ReturnCode != packets.Accepted && len(heard) > 1 || ack.ReturnCode != packets.Accepted && stored > 0 {
					t.Errorf("answered with %v, and %d messages are stored", heard, stored)
				}
			}
			x.wantStored(t)
			other, err := x.hub.GetDevice("other")
			must(t, err)
			if !other.LastActivityTime.IsZero() {
				t.Error("somebody got in as another device")
			}
		})
	})
}

// FuzzKept connects a device whose persistent session has any state, as an earlier
// version or a damaged file may have left it.
func FuzzKept(f *testing.F) {
	f.Add([]byte(`[{"filter":"` + deviceboundFilter + `","qos":1},{"filter":"$iothub/methods/POST/#","qos":0}]`))
	f.Add([]byte(`[{"filter":"devices/other/messages/devicebound/#","qos":200},{"filter":"#"}]`))
	f.Add([]byte(`null`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, state []byte) {
		synctest.Test(t, func(t *testing.T) {
			x := newFixture(t, store.Memory(), nil)
			x.sendC2D("waiting", nil)
			s, err := x.hub.Connect(t.Context(), deviceID, hub.ConnectOptions{})
			must(t, err)
			must(t, s.Keep(state))
			s.Close()
			p := x.connectPacket()
			p.CleanSession = false
			stream := packetBytes(t, p)
			heard := answers(t, x.exchange(stream, len(stream)))
			if len(heard) == 0 {
				t.Fatal("not answered")
			}
			ack, ok := heard[0].(*packets.ConnackPacket)
			if !ok || ack.ReturnCode != packets.Accepted && len(heard) > 1 {
				t.Fatalf("answered with %v", heard)
			}
			if ack.ReturnCode == packets.Accepted && !ack.SessionPresent {
				t.Error("a session that was kept is not present")
			}
			for _, p := range heard[1:] {
				if d, ok := p.(*packets.PublishPacket); !ok || d.Qos > 1 || !strings.HasPrefix(d.TopicName, deviceboundPrefix) && !strings.HasPrefix(d.TopicName, "devices/device-solver%3A%3Ajob-1/") {
					t.Errorf("the device got %v", p)
				}
			}
			// Whatever it was, a clean session does away with it.
			clean := packetBytes(t, x.connectPacket())
			if heard := answers(t, x.exchange(clean, len(clean))); len(heard) != 1 || heard[0].(*packets.ConnackPacket).ReturnCode != packets.Accepted {
				t.Errorf("a clean session gets %v", heard)
			}
		})
	})
}
