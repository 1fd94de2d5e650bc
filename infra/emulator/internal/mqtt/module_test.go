package mqtt_test

import (
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

var module = hub.Target{DeviceID: deviceID, ModuleID: "m::1"}

const moduleEvents = "devices/" + deviceID + "/modules/m::1/messages/events/"

// addModule registers a module and returns its primary key.
func (f *fixture) addModule(t hub.Target) string {
	f.t.Helper()
	m, err := f.hub.CreateModule(f.t.Context(), hub.Module{DeviceID: t.DeviceID, ModuleID: t.ModuleID})
	must(f.t, err)
	return m.Authentication.SymmetricKey.PrimaryKey
}

// TestModule connects a module beside its device and goes through everything.
func TestModule(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	key := f.addModule(module)
	d := f.connected()
	d.subscribe(0, methodsFilter)
	c := f.connected(f.as(module, key))

	c.publish(1, moduleEvents+"%24.mid=1&a=b", "hello")
	c.publish(2, "devices/device-solver%3A%3Ajob-1/modules/m%3A%3A1/messages/events", "encoded")
	m := f.nextTelemetry()
	got := m.ApplicationProperties
	if string(m.Body()) != "hello" || got["a"] != "b" || got[hub.PropertyDeviceID] != deviceID || got["iothub-connection-module-id"] != "m::1" {
		t.Errorf("telemetry %q with %v", m.Body(), got)
	}
	if m := f.nextTelemetry(); string(m.Body()) != "encoded" {
		t.Errorf("telemetry %q", m.Body())
	}

	if codes := c.subscribe(0, methodsFilter, twinResponses, twinDesired, deviceboundFilter); string(codes) != "\x00\x00\x00\x80" {
		t.Errorf("SUBACK %v", codes)
	}
	done := make(chan call, 1)
	go func() {
		result, err := f.hub.InvokeMethod(t.Context(), module, hub.MethodCall{Name: "reboot"})
		done <- call{result, err}
	}()
	p := expect[*packets.PublishPacket](c)
	rid, ok := strings.CutPrefix(p.TopicName, "$iothub/methods/POST/reboot/?$rid=")
	if !ok {
		t.Fatalf("request %s", p)
	}
	c.send(publishPacket(0, 0, "$iothub/methods/res/200/?$rid="+rid, ""))
	if got := <-done; got.err != nil || got.result.Status != 200 {
		t.Errorf("method: %+v", got)
	}

	c.send(publishPacket(0, 0, twinReported+"1", `{"a":1}`))
	c.expectAnswer("$iothub/twin/res/204/?$rid=1&$version=2", "")
	f.setDesired(module, `{"b":2}`)
	c.expectAnswer("$iothub/twin/PATCH/properties/desired/?$version=2", `{"b":2,"$version":2}`)
	c.send(publishPacket(0, 0, twinGet+"2", ""))
	c.expectAnswer("$iothub/twin/res/200/?$rid=2", `{"desired":{"b":2,"$version":2},"reported":{"a":1,"$version":2}}`)
	d.ping() // the device got nothing of it
}

func TestModuleReturnCodes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	key := f.addModule(module)
	other := hub.Target{DeviceID: deviceID, ModuleID: "other"}
	tests := map[string]struct {
		change func(*packets.ConnectPacket)
		want   byte
	}{
		"own key":             {f.as(module, key), 0},
		"device's key":        {f.as(module, f.key), 5},
		"unknown module":      {f.as(other, key), 5},
		"module's key for it": {f.as(self, key), 5},
		"client ID of device": {func(p *packets.ConnectPacket) { f.as(module, key)(p); p.ClientIdentifier = deviceID }, 2},
		"amenzhinsky/iothub": {func(p *packets.ConnectPacket) {
			f.as(module, key)(p)
			p.Username = hubName + "/" + deviceID + "/m::1/api-version=2020-09-30"
		}, 0},
		"will": {func(p *packets.ConnectPacket) {
			f.as(module, key)(p)
			p.WillFlag, p.WillTopic = true, moduleEvents
		}, 0},
		"device's topic for the will": {func(p *packets.ConnectPacket) {
			f.as(module, key)(p)
			p.WillFlag, p.WillTopic = true, eventsTopic
		}, 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := f.pipe()
			c.t = t
			if ack := f.login(c, tt.change); ack.ReturnCode != tt.want {
				t.Errorf("CONNACK %d, want %d", ack.ReturnCode, tt.want)
			}
		})
	}
}

// TestModuleIsNotItsDevice makes sure that a module uses its own topics alone,
// and that connections of device and modules replace only their own kind.
func TestModuleIsNotItsDevice(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	key := f.addModule(module)
	second := hub.Target{DeviceID: deviceID, ModuleID: "second"}
	d, m, other := f.connected(), f.connected(f.as(module, key)), f.connected(f.as(second, f.addModule(second)))
	for _, topic := range []string{eventsTopic, "devices/" + deviceID + "/modules/second/messages/events/"} {
		c := f.connected(f.as(module, key))
		c.send(publishPacket(1, 1, topic, "x"))
		c.expectClosed()
	}
	m.expectClosed() // taken over
	d.ping()
	other.ping()
	if n := f.telemetry.Len(); n != 0 {
		t.Errorf("%d messages", n)
	}
	must(t, f.hub.DeleteModule(t.Context(), second, hub.AnyVersion))
	other.expectClosed()
	m = f.connected(f.as(module, key))
	_, err := f.hub.UpdateDevice(t.Context(), hub.Identity{DeviceID: deviceID, Status: hub.StatusDisabled}, hub.AnyVersion)
	must(t, err)
	m.expectClosed()
	d.expectClosed()
	if ack := f.login(f.pipe(), f.as(module, key)); ack.ReturnCode != packets.ErrRefusedNotAuthorised {
		t.Errorf("CONNACK %d for a module of a disabled device", ack.ReturnCode)
	}
}
