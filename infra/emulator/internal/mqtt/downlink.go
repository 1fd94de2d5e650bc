package mqtt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const (
	// maxInFlight is how many cloud-to-device messages may wait for the PUBACK
	// of the device: all that its queue can hold.
	maxInFlight = hub.MaxC2DQueueDepth
	// deliveryBatch is how many messages are fetched at once. The outbox is
	// emptied in between, so that PUBACKs don't wait for a full queue.
	deliveryBatch = 8
)

// reasonUndeliverable is why a message is rejected that no topic can carry.
const reasonUndeliverable = "TopicTooLong"

// downlink is the state of cloud-to-device delivery that reader and writer
// share. Its packet IDs are the server's own: those of the device's PUBLISHes
// are another space.
type downlink struct {
	mu       sync.Mutex
	grant    grant
	active   bool
	last     uint16
	inFlight map[uint16]amqp.UUID // lock token by packet ID
}

func (d *downlink) set(g grant, active bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.grant, d.active = g, active
}

// room returns the grant and how many more messages may be sent under it.
func (d *downlink) room() (grant, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.active {
		return grant{}, 0
	}
	return d.grant, maxInFlight - len(d.inFlight)
}

// add gives a message a packet ID that isn't in use.
func (d *downlink) add(token amqp.UUID) uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inFlight == nil {
		d.inFlight = make(map[uint16]amqp.UUID)
	}
	for {
		d.last++
		if _, used := d.inFlight[d.last]; !used && d.last != 0 {
			break
		}
	}
	d.inFlight[d.last] = token
	return d.last
}

func (d *downlink) take(packetID uint16) (amqp.UUID, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	token, ok := d.inFlight[packetID]
	delete(d.inFlight, packetID)
	return token, ok
}

// write sends what is in the outbox and in the device's queue.
func (c *conn) write(ctx context.Context) {
	if err := c.deliver(ctx); err != nil {
		c.end(err)
	}
}

// deliver sends all that can be sent now. When there is more in the queue later,
// the consumer wakes the outbox; when the device isn't subscribed or has its
// hands full, what ends that does.
func (c *conn) deliver(ctx context.Context) error {
	for {
		// Looked at before the outbox is emptied: then the SUBACK, which was put
		// there before the grant took effect, is either sent now or corked.
		g, room := c.down.room()
		flushed, err := c.flush()
		if err != nil || !flushed || room == 0 {
			return err
		}
		if err := c.startConsumer(); err != nil {
			return err
		}
		ds, err := c.consumer.TryReceive(ctx, min(room, deliveryBatch))
		if err != nil {
			return c.sessionError(err)
		}
		if len(ds) == 0 {
			return nil
		}
		for _, d := range ds {
			if err := c.send(g, d); err != nil {
				return err
			}
		}
	}
}

// startConsumer opens the consumer with the first subscription. It stays when
// the device unsubscribes, because messages in flight can still be completed
// [MQTT-3.10.4-3], and ends with the session, which returns them to the queue.
func (c *conn) startConsumer() error {
	if c.consumer != nil {
		return nil
	}
	consumer, err := c.session.Receive(broker.ConsumerOptions{HoldLocks: true, Notify: c.out.wake})
	if err != nil {
		return c.sessionError(err)
	}
	c.consumer = consumer
	return nil
}

// sessionError prefers the reason of a session that has ended to what followed
// from it.
func (c *conn) sessionError(err error) error {
	if cause := c.session.Err(); cause != nil {
		return cause
	}
	return err
}

// flush sends what is in the outbox; false if that is corked.
func (c *conn) flush() (bool, error) {
	b, ok := c.out.take()
	if b == nil {
		return ok, nil
	}
	defer releaseBuffer(b)
	return ok, c.writeBytes(b.Bytes())
}

func (c *conn) writeBytes(b []byte) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.server.opts.WriteTimeout)); err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	if _, err := c.nc.Write(b); err != nil {
		if timedOut(err) {
			return errSlow
		}
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return nil
}

// send publishes a message to the device. At QoS 0 it counts as completed when
// it is written.
func (c *conn) send(g grant, d *broker.Delivery) error {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName = strings.TrimSuffix(g.Filter, "#") + formatBag(deviceboundBag(c.target.DeviceID, d.Message))
	if len(p.TopicName) > maxTopic {
		// Up to three bytes for one: properties of 64 KiB don't always fit.
		c.log().Warn("cloud-to-device message rejected: its properties don't fit into a topic", "bytes", len(p.TopicName))
		c.settle(d.LockToken, broker.Settlement{Action: broker.DeadLetter, Reason: reasonUndeliverable})
		return nil
	}
	p.Payload = d.Message.Body()
	p.Qos = g.QoS
	if g.QoS > 0 {
		p.MessageID = c.down.add(d.LockToken)
	}
	if err := p.Write(packetWriter{c}); err != nil {
		return err
	}
	if g.QoS == 0 {
		c.settle(d.LockToken, broker.Settlement{Action: broker.Complete})
	}
	return nil
}

// packetWriter lets the codec write straight to the connection.
type packetWriter struct{ c *conn }

func (w packetWriter) Write(b []byte) (int, error) {
	if err := w.c.writeBytes(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// complete settles the message that the device has acknowledged. One that isn't
// in flight is ignored: the device may acknowledge what an earlier connection
// sent.
func (c *conn) complete(packetID uint16) {
	token, ok := c.down.take(packetID)
	if !ok {
		return
	}
	c.session.Touch()
	c.settle(token, broker.Settlement{Action: broker.Complete})
	c.out.wake() // there is room for another
}

func (c *conn) settle(token amqp.UUID, s broker.Settlement) {
	q, err := c.session.Queue()
	if err != nil {
		return // the device was deleted, and its queue with it
	}
	q.SettleAsync(token, s, func(err error) {
		// A lock is lost when the message was purged while it was in flight.
		if err != nil && !errors.Is(err, broker.ErrLockLost) {
			c.log().Warn("cloud-to-device message not settled", "error", err)
		}
	})
}
