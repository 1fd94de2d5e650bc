package mqtt_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/mqtt"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// isClosed reports whether the server has closed by now.
func (c *client) isClosed() bool {
	synctest.Wait()
	select {
	case _, open := <-c.in:
		return !open
	default:
		return false
	}
}

// lasting makes a token that doesn't end during the test.
func lasting(f *fixture, p *packets.ConnectPacket) {
	p.Password = []byte(token(f.t, hubName, "", f.key, 365*24*time.Hour))
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	for keepAlive, want := range map[uint16]time.Duration{
		10:    15 * time.Second,
		1177:  1765*time.Second + 500*time.Millisecond,
		1178:  1767 * time.Second,
		65535: 1767 * time.Second,
		0:     1767 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, store.Memory(), nil)
			c := f.connected(func(p *packets.ConnectPacket) { p.Keepalive = keepAlive; lasting(f, p) })
			time.Sleep(want - time.Millisecond)
			c.ping() // starts the time anew
			time.Sleep(want - time.Millisecond)
			if c.isClosed() {
				t.Errorf("keep-alive %d: closed before %v", keepAlive, want)
			}
			time.Sleep(time.Millisecond)
			if !c.isClosed() {
				t.Errorf("keep-alive %d: open after %v", keepAlive, want)
			}
		})
	}
}

// TestHalfAPacketIsNoSign sends a packet so slowly that it never counts.
func TestHalfAPacketIsNoSign(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, store.Memory(), nil)
		c := f.connected(func(p *packets.ConnectPacket) { p.Keepalive = 10 })
		for _, b := range []byte{0x32, 10} {
			time.Sleep(7 * time.Second)
			c.sendRaw([]byte{b})
		}
		time.Sleep(time.Second)
		if !c.isClosed() {
			t.Error("open")
		}
	})
}

func TestTokenExpiry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, store.Memory(), nil)
		c := f.connected(func(p *packets.ConnectPacket) {
			p.Password = []byte(token(t, hubName, "", f.key, 90*time.Second))
			p.WillFlag, p.WillTopic, p.WillMessage = true, eventsTopic, []byte("gone")
		})
		time.Sleep(89 * time.Second)
		c.ping()
		if c.isClosed() {
			t.Error("closed before the token expired")
		}
		time.Sleep(time.Second)
		if !c.isClosed() {
			t.Error("open after the token expired")
		}
		if m := f.nextTelemetry(); string(m.Body()) != "gone" {
			t.Errorf("will is %q", m.Body())
		}
	})
}

func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, store.Memory(), &mqtt.Options{ConnectTimeout: 5 * time.Second})
		c := f.pipe()
		time.Sleep(5*time.Second - time.Millisecond)
		if c.isClosed() {
			t.Error("closed early")
		}
		time.Sleep(time.Millisecond)
		if !c.isClosed() {
			t.Error("open")
		}
	})
}

// TestDeviceThatDoesNotRead fills the way to a device that takes nothing: the
// write times out, and the messages are there for the next connection.
func TestDeviceThatDoesNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, store.Memory(), &mqtt.Options{WriteTimeout: 10 * time.Second})
		raw := f.rawPipe()
		p := f.connectPacket()
		must(t, p.Write(raw))
		readPacket(t, raw) // CONNACK
		subscribe := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		subscribe.MessageID, subscribe.Topics, subscribe.Qoss = 1, []string{deviceboundFilter}, []byte{1}
		must(t, subscribe.Write(raw))
		readPacket(t, raw) // SUBACK
		f.sendC2D("one", nil)
		time.Sleep(10*time.Second - time.Millisecond)
		synctest.Wait()
		if n := f.hub.ServiceStatistics().Connected; n != 1 {
			t.Errorf("%d connected before the write timed out", n)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if n := f.hub.ServiceStatistics().Connected; n != 0 {
			t.Errorf("%d connected after the write timed out", n)
		}
		c := f.connected()
		c.subscribe(1, deviceboundFilter)
		if p := expect[*packets.PublishPacket](c); string(p.Payload) != "one" {
			t.Errorf("got %q", p.Payload)
		}
	})
}

// TestPingFloodWithoutReading makes sure that answers that nobody reads don't
// pile up: the server stops reading.
func TestPingFloodWithoutReading(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, store.Memory(), &mqtt.Options{WriteTimeout: time.Minute})
		raw := f.rawPipe()
		must(t, f.connectPacket().Write(raw))
		readPacket(t, raw)
		flood := []byte(strings.Repeat("\xc0\x00", 1<<20))
		written := make(chan int)
		go func() {
			n, _ := raw.Write(flood) // ends when the server closes
			written <- n
		}()
		if n := <-written; n > 256<<10 {
			t.Errorf("server took %d bytes of pings that it couldn't answer", n)
		}
	})
}
