package mqtt_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// throttle is a gate that throttles telemetry until it is opened.
type throttle struct {
	hub.Gates
	mu    sync.Mutex
	open  bool
	tries int
	err   *hub.Error
}

func (g *throttle) Admit(op hub.Operation, _ hub.Target, _ int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if op != hub.OpD2C || g.open {
		return nil
	}
	g.tries++
	return g.err
}

func (g *throttle) lift() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
}

func (g *throttle) tried() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tries
}

// TestShaping holds a device up that sends too much, and then lets it go on.
func TestShaping(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &throttle{err: &hub.Error{Code: hub.CodeThrottling, RetryAfter: 3 * time.Second}}
		f := newFixture(t, store.Memory(), nil, func(o *hub.Options) { o.Gate = g })
		c := f.connected()
		c.send(publishPacket(1, 1, eventsTopic, "one"))
		go c.send(publishPacket(1, 2, eventsTopic, "two")) // isn't read before the first is stored
		time.Sleep(5 * time.Second)
		if c.isClosed() || g.tried() != 2 {
			t.Errorf("tried %d times in 5 s, want 2", g.tried())
		}
		g.lift()
		for want := uint16(1); want <= 2; want++ {
			if ack := expect[*packets.PubackPacket](c); ack.MessageID != want {
				t.Errorf("PUBACK of %d, want %d", ack.MessageID, want)
			}
		}
		if n := f.telemetry.Len(); n != 2 {
			t.Errorf("%d messages", n)
		}
	})
}

// TestThrottledForLong disconnects a device that can't be helped by waiting.
func TestThrottledForLong(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]*hub.Error{
		"throttled":           {Code: hub.CodeThrottling, RetryAfter: 3 * time.Second},
		"throttled, no hint":  {Code: hub.CodeThrottling},
		"quota of the day":    {Code: hub.CodeQuotaExceeded},
		"a wait for too long": {Code: hub.CodeThrottling, RetryAfter: time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := &throttle{err: err}
			f := newFixture(t, store.Memory(), nil, func(o *hub.Options) { o.Gate = g })
			c := f.connected()
			c.send(publishPacket(1, 1, eventsTopic, "one"))
			time.Sleep(10*time.Second + time.Millisecond)
			if !c.isClosed() {
				t.Errorf("%s: open after 10 s and %d tries", name, g.tried())
			}
			if n := f.telemetry.Len(); n != 0 {
				t.Errorf("%s: %d messages", name, n)
			}
		})
	}
}

// TestShapingEndsWithTheConnection closes while a device is held up.
func TestShapingEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	g := &throttle{err: &hub.Error{Code: hub.CodeThrottling, RetryAfter: 9 * time.Second}}
	f := newFixture(t, store.Memory(), nil, func(o *hub.Options) { o.Gate = g })
	c := f.connected()
	c.send(publishPacket(1, 1, eventsTopic, "one"))
	eventually(t, "throttled", func() bool { return g.tried() > 0 })
	f.connected() // takes over
	c.expectClosed()
}

func TestConnectThrottled(t *testing.T) {
	t.Parallel()
	gate := refusing{op: hub.OpConnect, err: &hub.Error{Code: hub.CodeThrottling, Message: "later"}}
	f := newFixture(t, store.Memory(), nil, func(o *hub.Options) { o.Gate = gate })
	c := f.pipe()
	if ack := f.login(c); ack.ReturnCode != packets.ErrRefusedServerUnavailable {
		t.Errorf("CONNACK %d", ack.ReturnCode)
	}
	c.expectClosed()
}
