package mqtt_test

import (
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// restarted runs f with a hub of a data directory, and ends everything.
func restarted(t *testing.T, dir string, run func(*testing.T, *fixture)) {
	t.Helper()
	t.Run("", func(t *testing.T) {
		s, err := store.Open(dir)
		must(t, err)
		t.Cleanup(func() { must(t, s.Close()) })
		run(t, openFixture(t, s, nil))
	})
	if t.Failed() {
		t.FailNow()
	}
}

// TestRestart keeps the subscriptions of device and module over restarts, until
// they are given up.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var key, moduleKey string
	restarted(t, dir, func(_ *testing.T, f *fixture) {
		f.key = f.addDevice(deviceID)
		key, moduleKey = f.key, f.addModule(module)
		c := f.connected(persistent)
		c.subscribe(1, "devices/device-solver%3A%3Ajob-1/messages/devicebound/#", methodsFilter)
		f.connected(f.as(module, moduleKey), persistent).subscribe(0, twinDesired)
	})
	restarted(t, dir, func(t *testing.T, f *fixture) {
		f.key = key
		c, m := f.pipe(), f.pipe()
		if !f.login(c, persistent).SessionPresent || !f.login(m, f.as(module, moduleKey), persistent).SessionPresent {
			t.Error("no session present")
		}
		f.sendC2D("after", nil)
		p := expect[*packets.PublishPacket](c)
		if want := "devices/device-solver%3A%3Ajob-1/messages/devicebound/"; string(p.Payload) != "after" || p.Qos != 1 || p.TopicName[:len(want)] != want {
			t.Errorf("got %s with %q", p, p.Payload)
		}
		c.puback(p.MessageID)
		f.setDesired(module, `{"a":1}`)
		m.expectAnswer("$iothub/twin/PATCH/properties/desired/?$version=2", `{"a":1,"$version":2}`)
		c.unsubscribe(deviceboundFilter, "devices/device-solver%3A%3Ajob-1/messages/devicebound/#")
		f.login(f.pipe(), f.as(module, moduleKey)) // clean: forgets
	})
	restarted(t, dir, func(t *testing.T, f *fixture) {
		f.key = key
		c := f.pipe()
		if !f.login(c, persistent).SessionPresent {
			t.Error("no session present")
		}
		if f.login(f.pipe(), f.as(module, moduleKey), persistent).SessionPresent {
			t.Error("session of the module present in spite of a clean one")
		}
		f.sendC2D("unwanted", nil)
		c.ping() // nothing came
		done := f.invoke(hub.MethodCall{Name: "m"})
		expect[*packets.PublishPacket](c) // methods are still subscribed to
		c.conn.Close()
		<-done
		must(t, f.hub.DeleteDevice(t.Context(), deviceID, hub.AnyVersion))
	})
	restarted(t, dir, func(t *testing.T, f *fixture) {
		f.key = f.addDevice(deviceID)
		if f.login(f.pipe(), persistent).SessionPresent {
			t.Error("session of a deleted device present")
		}
	})
	restarted(t, dir, func(t *testing.T, f *fixture) {
		d, err := f.hub.GetDevice(deviceID)
		must(t, err)
		f.key = d.Authentication.SymmetricKey.PrimaryKey
		if !f.login(f.pipe(), persistent).SessionPresent {
			t.Error("session without subscriptions not present")
		}
	})
}

// TestSubackMeansStored keeps the store shut while a device subscribes.
func TestSubackMeansStored(t *testing.T) {
	t.Parallel()
	v := &valve{Store: store.Memory()}
	f := newFixture(t, v, nil)
	c := f.connected(persistent)
	v.close()
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p.MessageID, p.Topics, p.Qoss = 1, []string{methodsFilter}, []byte{0}
	c.send(p)
	eventually(t, "subscription at the store", func() bool { return v.waiting() == 1 })
	select {
	case p := <-c.in:
		t.Errorf("got %v before the subscription was stored", p)
	default:
	}
	v.open()
	expect[*packets.SubackPacket](c)
	v.close()
	c.subscribe(0, methodsFilter) // changes nothing, and needs no store
	v.open()
}

// TestSubackMeansStoredByAnyConnection keeps the store shut while a device
// subscribes, connects again and subscribes to the same.
func TestSubackMeansStoredByAnyConnection(t *testing.T) {
	t.Parallel()
	v := &valve{Store: store.Memory()}
	f := newFixture(t, v, nil)
	first := f.connected(persistent)
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p.MessageID, p.Topics, p.Qoss = 1, []string{methodsFilter}, []byte{0}
	v.close()
	defer v.open()
	first.send(p)
	eventually(t, "subscription at the store", func() bool { return v.waiting() == 1 })
	second := f.pipe()
	f.login(second, persistent)
	second.send(p)
	eventually(t, "second subscription at the store", func() bool { return v.waiting() == 2 })
	select {
	case p := <-second.in:
		t.Errorf("got %v before the subscription was stored", p)
	default:
	}
	v.open()
	expect[*packets.SubackPacket](second)
}
