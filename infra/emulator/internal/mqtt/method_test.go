package mqtt_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

const methodsFilter = "$iothub/methods/POST/#"

// call is a method call under way.
type call struct {
	result hub.MethodResult
	err    error
}

func (f *fixture) invoke(c hub.MethodCall) <-chan call {
	done := make(chan call, 1)
	go func() {
		result, err := f.hub.InvokeMethod(f.t.Context(), hub.Target{DeviceID: deviceID}, c)
		done <- call{result, err}
	}()
	return done
}

func TestMethods(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		name, payload string // payload "" is none
		topic, sent   string // as the device gets them
		answer        *packets.PublishPacket
		want          hub.MethodResult
	}{
		"object": {"reboot", `{"delay":5}`, "reboot", `{"delay":5}`,
			publishPacket(0, 0, "200", `{"ok":true}`), hub.MethodResult{Status: 200, Payload: json.RawMessage(`{"ok":true}`)}},
		"no payload, empty answer": {"reboot", "", "reboot", "null",
			publishPacket(0, 0, "204", ""), hub.MethodResult{Status: 204}},
		"QoS 1, another status": {"a.b-c_d", `[1]`, "a.b-c_d", `[1]`,
			publishPacket(1, 5, "-7", "null"), hub.MethodResult{Status: -7, Payload: json.RawMessage("null")}},
		"component and command": {"thermostat1*getMax", `"x"`, "thermostat1*getMax", `"x"`,
			publishPacket(0, 0, "500", `1`), hub.MethodResult{Status: 500, Payload: json.RawMessage("1")}},
		"name that would split the topic": {"a/b+c#", `1`, "a%2Fb%2Bc%23", `1`,
			publishPacket(0, 0, "200", `1`), hub.MethodResult{Status: 200, Payload: json.RawMessage("1")}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, store.Memory(), nil)
			c := f.connected()
			c.subscribe(0, methodsFilter)
			method := hub.MethodCall{Name: tt.name}
			if tt.payload != "" {
				method.Payload = json.RawMessage(tt.payload)
			}
			done := f.invoke(method)
			p := expect[*packets.PublishPacket](c)
			topic, rid, ok := strings.Cut(p.TopicName, "/?$rid=")
			if !ok || topic != "$iothub/methods/POST/"+tt.topic || rid == "" || string(p.Payload) != tt.sent || p.Qos != 0 {
				t.Errorf("request %v", p)
			}
			status := tt.answer.TopicName
			tt.answer.TopicName = "$iothub/methods/res/" + status + "/?$rid=" + rid
			c.send(tt.answer)
			if tt.answer.Qos == 1 {
				expect[*packets.PubackPacket](c)
			}
			got := <-done
			must(t, got.err)
			if !reflect.DeepEqual(got.result, tt.want) {
				t.Errorf("result %+v, want %+v", got.result, tt.want)
			}
		})
	}
}

func TestMethodFailures(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	expectCode := func(done <-chan call, code hub.Code) {
		t.Helper()
		if got := <-done; !errors.Is(got.err, code) {
			t.Errorf("got %v, want %v", got.err, code)
		}
	}
	c := f.connected()
	expectCode(f.invoke(hub.MethodCall{Name: "x"}), hub.CodeDeviceNotOnline) // not subscribed
	waiting := f.invoke(hub.MethodCall{Name: "x", ConnectTimeout: time.Minute})
	c.subscribe(0, methodsFilter)
	expect[*packets.PublishPacket](c) // the one that waited
	c.send(publishPacket(0, 0, "$iothub/methods/res/200/?$rid=ffff", "1"))
	c.ping() // an answer to nothing is ignored
	c.conn.Close()
	expectCode(waiting, hub.CodeConnectionClosed)

	c = f.connected(persistent)
	c.subscribe(0, methodsFilter)
	c.unsubscribe(methodsFilter)
	expectCode(f.invoke(hub.MethodCall{Name: "x"}), hub.CodeDeviceNotOnline)
}

// TestMethodsOfKeptSession calls a device that reconnected without subscribing.
func TestMethodsOfKeptSession(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	f.connected(persistent).subscribe(0, methodsFilter)
	c := f.connected(persistent)
	done := f.invoke(hub.MethodCall{Name: "x", ConnectTimeout: time.Minute})
	p := expect[*packets.PublishPacket](c)
	_, rid, _ := strings.Cut(p.TopicName, "$rid=")
	c.send(publishPacket(0, 0, "$iothub/methods/res/200/?$rid="+rid, ""))
	must(t, (<-done).err)
}
