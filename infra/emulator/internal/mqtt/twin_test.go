package mqtt_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

const (
	twinGet       = "$iothub/twin/GET/?$rid="
	twinReported  = "$iothub/twin/PATCH/properties/reported/?$rid="
	twinResponses = "$iothub/twin/res/#"
	twinDesired   = "$iothub/twin/PATCH/properties/desired/#"
)

var self = hub.Target{DeviceID: deviceID}

// setDesired patches desired properties from the service side.
func (f *fixture) setDesired(t hub.Target, patch string) {
	f.t.Helper()
	var p hub.TwinPatch
	p.Properties.Desired = json.RawMessage(patch)
	_, err := f.hub.PatchTwin(f.t.Context(), t, p, "")
	must(f.t, err)
}

// expectAnswer waits for a PUBLISH at QoS 0 and compares topic and JSON.
func (c *client) expectAnswer(topic, body string) {
	c.t.Helper()
	p := expect[*packets.PublishPacket](c)
	if p.TopicName != topic || p.Qos != 0 || p.Retain || p.Dup || !sameJSON(string(p.Payload), body) {
		c.t.Errorf("got %s with %s\nwant %s with %s", p, p.Payload, topic, body)
	}
}

func sameJSON(a, b string) bool {
	normal := func(s string) string {
		var v any
		if json.Unmarshal([]byte(s), &v) != nil {
			return s
		}
		b, _ := json.Marshal(v) // of what was JSON
		return string(b)
	}
	return normal(a) == normal(b)
}

func TestTwin(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.send(publishPacket(1, 1, twinGet+"1", ""))
	expect[*packets.PubackPacket](c)
	c.ping() // no answer before the subscription
	c.subscribe(0, twinResponses)

	c.send(publishPacket(0, 0, twinGet+"0Af-x", " "))
	c.expectAnswer("$iothub/twin/res/200/?$rid=0Af-x", `{"desired":{"$version":1},"reported":{"$version":1}}`)

	c.send(publishPacket(0, 0, twinReported+"2", `{"a":{"b":1,"c":"x"},"d":true}`))
	c.expectAnswer("$iothub/twin/res/204/?$rid=2&$version=2", "")
	c.send(publishPacket(1, 7, twinReported+"3&$version=2", `{"a":{"b":null},"d":null}`))
	c.expectAnswer("$iothub/twin/res/204/?$rid=3&$version=3", "")
	if ack := expect[*packets.PubackPacket](c); ack.MessageID != 7 {
		t.Errorf("PUBACK of %d", ack.MessageID)
	}
	f.setDesired(self, `{"interval":5}`)
	c.send(publishPacket(0, 0, twinGet+"4", ""))
	c.expectAnswer("$iothub/twin/res/200/?$rid=4", `{"desired":{"interval":5,"$version":2},"reported":{"a":{"c":"x"},"$version":3}}`)

	twin, err := f.hub.GetTwin(self)
	must(t, err)
	var reported struct {
		A struct{ C string }
	}
	must(t, json.Unmarshal(twin.Properties.Reported, &reported))
	if reported.A.C != "x" {
		t.Errorf("the service sees %s", twin.Properties.Reported)
	}
}

// TestTwinUpdateUnheard makes an update whose answer nobody listens for.
func TestTwinUpdateUnheard(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.send(publishPacket(1, 1, twinReported+"1", `{"a":1}`))
	expect[*packets.PubackPacket](c) // when it is done
	c.subscribe(0, twinResponses)
	c.send(publishPacket(0, 0, twinGet+"2", ""))
	c.expectAnswer("$iothub/twin/res/200/?$rid=2", `{"desired":{"$version":1},"reported":{"a":1,"$version":2}}`)
}

// refusing is a gate that refuses operations of one kind.
type refusing struct {
	hub.Gates
	op  hub.Operation
	err *hub.Error
}

func (g refusing) Admit(op hub.Operation, _ hub.Target, _ int) error {
	if op == g.op {
		return g.err
	}
	return nil
}

func TestTwinRefused(t *testing.T) {
	t.Parallel()
	throttled := func(op hub.Operation) func(*hub.Options) {
		return func(o *hub.Options) {
			o.Gate = refusing{op: op, err: &hub.Error{Code: hub.CodeThrottling, Message: "later", TrackingID: "track"}}
		}
	}
	tests := map[string]struct {
		gate        func(*hub.Options)
		topic, body string
		status      int
		code        hub.Code // 0 for any
	}{
		"not JSON":          {nil, twinReported, `{"a":`, 400, 0},
		"no object":         {nil, twinReported, `[1]`, 400, 0},
		"no body":           {nil, twinReported, ``, 400, 0},
		"key with a dot":    {nil, twinReported, `{"a.b":1}`, 400, 0},
		"too large":         {nil, twinReported, `{"a":{"` + strings.Repeat("x", 33<<10) + `":1}}`, 400, 0},
		"another version":   {nil, twinReported + "9&$version=7&$rid=", `{"a":1}`, 412, hub.CodePreconditionFailed},
		"update throttled":  {throttled(hub.OpTwinUpdate), twinReported, `{"a":1}`, 429, hub.CodeThrottling},
		"reading throttled": {throttled(hub.OpTwinRead), twinGet, ``, 429, hub.CodeThrottling},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var change []func(*hub.Options)
			if tt.gate != nil {
				change = append(change, tt.gate)
			}
			f := newFixture(t, store.Memory(), nil, change...)
			c := f.connected()
			c.subscribe(0, twinResponses)
			c.send(publishPacket(0, 0, tt.topic+"9", tt.body))
			p := expect[*packets.PublishPacket](c)
			var failure struct {
				ErrorCode           int
				Message, TrackingID string
				TimestampUTC        string
			}
			must(t, json.Unmarshal(p.Payload, &failure))
			if want := fmt.Sprintf("$iothub/twin/res/%d/?$rid=9", tt.status); p.TopicName != want {
				t.Errorf("topic %s, want %s", p.TopicName, want)
			}
			if failure.ErrorCode/1000 != tt.status || tt.code != 0 && failure.ErrorCode != int(tt.code) ||
				failure.Message == "" || failure.TrackingID == "" || failure.TimestampUTC == "" {
				t.Errorf("body %s", p.Payload)
			}
			c.ping() // and it goes on
		})
	}
}

func TestDesiredProperties(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	f.setDesired(self, `{"before":1}`)
	c := f.connected(persistent)
	c.ping()
	c.subscribe(1, twinDesired)
	f.setDesired(self, `{"interval":5,"before":null}`)
	c.expectAnswer("$iothub/twin/PATCH/properties/desired/?$version=3", `{"interval":5,"before":null,"$version":3}`)
	f.setDesired(self, `{"interval":6}`)
	c.expectAnswer("$iothub/twin/PATCH/properties/desired/?$version=4", `{"interval":6,"$version":4}`)

	c = f.connected(persistent) // the subscription is kept
	f.setDesired(self, `{"interval":7}`)
	c.expectAnswer("$iothub/twin/PATCH/properties/desired/?$version=5", `{"interval":7,"$version":5}`)
	c.unsubscribe(twinDesired)
	f.setDesired(self, `{"interval":8}`)
	c.ping()
}

// TestDesiredPropertiesInOrder changes desired properties while the device reads
// its twin: neither is ever older than what the device had before.
func TestDesiredPropertiesInOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected()
	c.subscribe(0, twinDesired, twinResponses)
	const changes = 100
	changed := make(chan error, 1)
	go func() {
		for i := range changes {
			var p hub.TwinPatch
			p.Properties.Desired = json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))
			if _, err := f.hub.PatchTwin(context.Background(), self, p, ""); err != nil {
				changed <- err
				return
			}
		}
		changed <- nil
	}()
	last, patched := 0, 1
	for rid := 0; last <= changes; rid++ {
		c.send(publishPacket(0, 0, twinGet+strconv.Itoa(rid), ""))
		for answered := false; !answered; {
			p := expect[*packets.PublishPacket](c)
			var body struct {
				Version int `json:"$version"`
				Desired struct {
					Version int `json:"$version"`
				}
			}
			must(t, json.Unmarshal(p.Payload, &body))
			if answered = strings.HasPrefix(p.TopicName, "$iothub/twin/res/200/"); answered {
				if body.Desired.Version < last {
					t.Fatalf("read version %d after %d", body.Desired.Version, last)
				}
				last = max(last, body.Desired.Version)
				continue
			}
			if patched++; body.Version != patched {
				t.Fatalf("got the change to version %d, want %d", body.Version, patched)
			}
			last = max(last, patched)
		}
	}
	must(t, <-changed)
	for patched <= changes { // what came behind the last answer
		expect[*packets.PublishPacket](c)
		patched++
	}
	c.ping()
}

// TestTwinUpdateDoesNotBlock keeps the store shut while an update is under way:
// the connection goes on, and answers come in the order of the requests.
func TestTwinUpdateDoesNotBlock(t *testing.T) {
	t.Parallel()
	v := &valve{Store: store.Memory()}
	f := newFixture(t, v, nil)
	c := f.connected()
	c.subscribe(0, twinResponses, methodsFilter)
	v.close()
	c.send(publishPacket(0, 0, twinReported+"1", `{"a":1}`))
	c.send(publishPacket(0, 0, twinGet+"2", ""))
	eventually(t, "update at the store", func() bool { return v.waiting() == 1 })
	c.ping()
	done := f.invoke(hub.MethodCall{Name: "m"})
	p := expect[*packets.PublishPacket](c)
	_, rid, _ := strings.Cut(p.TopicName, "$rid=")
	c.send(publishPacket(0, 0, "$iothub/methods/res/200/?$rid="+rid, ""))
	must(t, (<-done).err)
	v.open()
	c.expectAnswer("$iothub/twin/res/204/?$rid=1&$version=2", "")
	c.expectAnswer("$iothub/twin/res/200/?$rid=2", `{"desired":{"$version":1},"reported":{"a":1,"$version":2}}`)
}

// TestTwinUpdateOfLostConnection ends a connection while an update is under way.
func TestTwinUpdateOfLostConnection(t *testing.T) {
	t.Parallel()
	v := &valve{Store: store.Memory()}
	f := newFixture(t, v, nil)
	c := f.connected()
	v.close()
	for i := range 10 {
		c.send(publishPacket(0, 0, twinReported+strconv.Itoa(i), `{"a":1}`))
	}
	eventually(t, "update at the store", func() bool { return v.waiting() == 1 })
	c.conn.Close()
	v.open()
	f.server.Close() // waits for all that runs
	if n := f.hub.ServiceStatistics().Connected; n != 0 {
		t.Errorf("%d connected", n)
	}
}
