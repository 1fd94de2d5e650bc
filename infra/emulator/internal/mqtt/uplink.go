package mqtt

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

const (
	// maxStoring and maxStoringBytes bound the messages of one device that the
	// hub is storing; until one is stored, no further packet is read.
	maxStoring      = 256
	maxStoringBytes = 1 << 20
)

// publish takes what the device publishes. An error closes the connection, the
// only way to refuse that MQTT 3.1.1 has.
func (c *conn) publish(p *packets.PublishPacket) error {
	switch {
	case p.Qos == 2:
		return fmt.Errorf("%w: QoS 2, which the hub doesn't offer", errProtocol)
	case p.Qos == 1 && p.MessageID == 0: // [MQTT-2.3.1-1]
		return fmt.Errorf("%w: PUBLISH without packet ID", errProtocol)
	case !isText(p.TopicName) || strings.ContainsAny(p.TopicName, "#+"): // [MQTT-3.3.2-2]
		return fmt.Errorf("%w: topic name", errProtocol)
	}
	if rest, ok := strings.CutPrefix(p.TopicName, topicMethodResponse); ok {
		return c.answered(p, c.methodResponse(rest, p.Payload))
	}
	if strings.HasPrefix(p.TopicName, topicTwin) {
		return c.answered(p, c.twinRequest(p.TopicName))
	}
	m, err := parseTelemetry(c.deviceID, p.TopicName, p.Payload, p.Retain)
	if err != nil {
		return err
	}
	slot := c.acks.begin(p)
	c.session.PublishAsync(m, func(err error) {
		if err != nil {
			c.end(fmt.Errorf("store telemetry: %w", err))
			return
		}
		c.acknowledge(slot)
	})
	return nil
}

// answered acknowledges a PUBLISH that needs no storing, in its turn.
func (c *conn) answered(p *packets.PublishPacket, err error) error {
	if err != nil {
		return err
	}
	c.acknowledge(c.acks.begin(p))
	return nil
}

func (c *conn) acknowledge(slot *storing) {
	if err := c.acks.stored(slot); err != nil {
		c.end(err)
	}
}

// parseTelemetry makes the message of a payload published on the events topic.
func parseTelemetry(deviceID, topic string, payload []byte, retain bool) (*amqp.Message, error) {
	text, err := parseEventsTopic(deviceID, topic)
	if err != nil {
		return nil, fmt.Errorf("%w: %q", err, topic)
	}
	bag, err := parseBag(text)
	if err != nil {
		return nil, fmt.Errorf("property bag: %w", err)
	}
	m, err := telemetry(bag, payload)
	if err != nil {
		return nil, fmt.Errorf("property bag: %w", err)
	}
	if retain {
		// A hub retains nothing but says that it was asked to (IoT Hub docs:
		// "Communicate with an IoT hub using the MQTT protocol").
		addApplicationProperty(m, propertyRetain, "true")
	}
	return m, nil
}

// storing is a PUBLISH between its arrival and its PUBACK.
type storing struct {
	packetID uint16 // 0 at QoS 0, which gets no PUBACK
	size     int
	done     bool
}

// acknowledger puts the PUBACKs of a device into the outbox in the order of the
// PUBLISHes [MQTT-4.6.0-2], whatever the order in which they were stored.
type acknowledger struct {
	out *outbox

	mu     sync.Mutex
	room   sync.Cond
	queue  []*storing
	bytes  int
	closed bool
}

func (a *acknowledger) init(out *outbox) {
	a.out = out
	a.room.L = &a.mu
}

// begin opens the slot of a PUBLISH. It waits until there is room for it.
func (a *acknowledger) begin(p *packets.PublishPacket) *storing {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot := &storing{size: len(p.TopicName) + len(p.Payload)}
	if p.Qos > 0 {
		slot.packetID = p.MessageID
	}
	for !a.closed && len(a.queue) > 0 && (len(a.queue) >= maxStoring || a.bytes+slot.size > maxStoringBytes) {
		a.room.Wait()
	}
	a.queue = append(a.queue, slot)
	a.bytes += slot.size
	return slot
}

// stored marks a slot and sends the PUBACKs that are due.
func (a *acknowledger) stored(slot *storing) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot.done = true
	var errs error
	for len(a.queue) > 0 && a.queue[0].done {
		first := a.queue[0]
		a.queue = a.queue[1:]
		a.bytes -= first.size
		if first.packetID != 0 {
			ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			ack.MessageID = first.packetID
			errs = errors.Join(errs, a.out.put(ack))
		}
	}
	if len(a.queue) == 0 {
		a.queue = nil // an idle connection keeps no array
	}
	a.room.Signal()
	return errs
}

func (a *acknowledger) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.room.Broadcast()
}
