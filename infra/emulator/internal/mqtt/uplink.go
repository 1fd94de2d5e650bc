package mqtt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const (
	// maxStoring and maxStoringBytes bound the messages of one device that the
	// hub is storing; until one is stored, no further packet is read.
	maxStoring      = 256
	maxStoringBytes = 1 << 20
)

// Traffic shaping of a device that sends more than the hub's limits allow: it is
// held up for a while, and disconnected when that doesn't help (IoT Hub docs:
// "IoT Hub quotas and throttling", traffic shaping;
// github.com/MicrosoftDocs/azure-docs issue 107838). The cloud doesn't say for
// how long.
const (
	maxShaping = 10 * time.Second
	// shapingPause is how long to wait when the hub doesn't say.
	shapingPause = 100 * time.Millisecond
)

// publish takes what the device publishes. An error closes the connection, the
// only way to refuse that MQTT 3.1.1 has.
func (c *conn) publish(ctx context.Context, p *publish) error {
	switch {
	case p.qos == 2:
		return fmt.Errorf("%w: QoS 2, which the hub doesn't offer", errProtocol)
	case p.qos == 1 && p.id == 0: // [MQTT-2.3.1-1]
		return fmt.Errorf("%w: PUBLISH without packet ID", errProtocol)
	case !isText(p.topic) || strings.ContainsAny(p.topic, "#+"): // [MQTT-3.3.2-2]
		return fmt.Errorf("%w: topic name", errProtocol)
	}
	if rest, ok := strings.CutPrefix(p.topic, topicMethodResponse); ok {
		if err := c.respondMethod(rest, p.payload); err != nil {
			return err
		}
		c.acknowledge(c.acks.begin(p))
		return nil
	}
	if strings.HasPrefix(p.topic, topicTwin) {
		return c.requestTwin(ctx, p)
	}
	m, err := parseTelemetry(c.target, p.topic, p.payload, p.retain)
	if err != nil {
		return err
	}
	if c.modelID != "" {
		setAnnotation(m, hub.AnnotationModel, c.modelID)
	}
	return c.store(ctx, c.acks.begin(p), m)
}

// store hands telemetry to the hub. While the hub throttles the device, it waits
// and holds up all that the device sends behind it.
func (c *conn) store(ctx context.Context, slot *storing, m *amqp.Message) error {
	var held time.Duration
	for {
		c.throttled = nil
		c.session.PublishAsync(m, slot.finish)
		if c.throttled == nil {
			return nil
		}
		pause := max(hub.AsError(c.throttled).RetryAfter, shapingPause)
		if held += pause; held > maxShaping {
			return fmt.Errorf("store telemetry: %w", c.throttled)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// stored takes the result of storing the message of a slot.
func (c *conn) stored(slot *storing, err error) {
	switch {
	case err == nil:
		c.acknowledge(slot)
	case errors.Is(err, hub.CodeThrottling):
		// The hub decides this before it takes a message, so this is the reader
		// within its call.
		c.throttled = err
	default:
		c.end(fmt.Errorf("store telemetry: %w", err))
	}
}

func (c *conn) acknowledge(slot *storing) {
	if err := c.acks.complete(slot); err != nil {
		c.end(err)
	}
}

// parseTelemetry makes the message of a payload published on the events topic.
// The message takes the payload over.
func parseTelemetry(t hub.Target, topic string, payload []byte, retain bool) (*amqp.Message, error) {
	text, err := parseEventsTopic(t, topic)
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
	conn *conn
	// finish is conn.stored of this slot, made once because slots are used again.
	finish   func(error)
	packetID uint16 // 0 at QoS 0, which gets no PUBACK
	size     int
	done     bool
	next     *storing // that came after this one
}

var slots sync.Pool

func newSlot() *storing {
	if s, ok := slots.Get().(*storing); ok {
		return s
	}
	s := new(storing)
	s.finish = func(err error) { s.conn.stored(s, err) }
	return s
}

// acknowledger puts the PUBACKs of a device into the outbox in the order of the
// PUBLISHes [MQTT-4.6.0-2], whatever the order in which they were stored.
type acknowledger struct {
	conn *conn

	mu          sync.Mutex
	room        sync.Cond
	first, last *storing
	count       int
	bytes       int
	closed      bool
}

func (a *acknowledger) init(c *conn) {
	a.conn = c
	a.room.L = &a.mu
}

// begin opens the slot of a PUBLISH, for exactly one call of complete. It waits
// until there is room for it.
func (a *acknowledger) begin(p *publish) *storing {
	slot := newSlot()
	slot.conn, slot.packetID, slot.done, slot.next = a.conn, 0, false, nil
	slot.size = len(p.topic) + len(p.payload)
	if p.qos > 0 {
		slot.packetID = p.id
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.closed && a.count > 0 && (a.count >= maxStoring || a.bytes+slot.size > maxStoringBytes) {
		a.room.Wait()
	}
	if a.last == nil {
		a.first = slot
	} else {
		a.last.next = slot
	}
	a.last = slot
	a.count++
	a.bytes += slot.size
	return slot
}

// complete marks a slot and sends the PUBACKs that are due.
func (a *acknowledger) complete(slot *storing) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot.done = true
	var errs error
	for a.first != nil && a.first.done {
		due := a.first
		if a.first = due.next; a.first == nil {
			a.last = nil
		}
		a.count--
		a.bytes -= due.size
		if due.packetID != 0 {
			errs = errors.Join(errs, a.conn.out.puback(due.packetID))
		}
		due.conn, due.next = nil, nil
		slots.Put(due)
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
