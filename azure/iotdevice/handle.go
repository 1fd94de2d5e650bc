package iotdevice

import (
	"context"
	"fmt"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// handle takes what arrives, one after the other, until running ends. Handlers get the context handling, which lives
// longer: what has begun shall end.
func (c *Client) handle(running, handling context.Context) {
	for {
		a, ok := c.arrivals.pop(running)
		if !ok {
			return
		}
		if name, requestID, ok := parseMethod(a.message.Topic()); ok {
			c.startMethod(handling, a, name, requestID)
			continue
		}
		c.handleMessage(handling, a)
	}
}

// handleMessage hands one cloud-to-device message over, unless its connection is no longer good for the acknowledgement:
// then the hub delivers the message again, in its place in the order, over the next one.
func (c *Client) handleMessage(ctx context.Context, a arrival) {
	m, ok := parseDevicebound(a.conn.device.DeviceID, a.message.Topic(), a.message.Payload())
	if !ok {
		// Of a subscription that someone else made in the same session.
		c.log.DebugContext(ctx, "ignored a message that nobody here subscribed to", "topic", a.message.Topic())
		a.message.Ack()
		return
	}
	if c.opts.Handle == nil || a.conn.isRefused() || !a.conn.open() || !a.conn.handling.enter() {
		return
	}
	defer a.conn.handling.leave()
	if err := c.opts.Handle(ctx, m); err != nil {
		c.log.WarnContext(ctx, "a message was not handled and will come again", "message", m.ID, "error", err)
		a.conn.refuse()
		return
	}
	a.message.Ack()
}

// startMethod runs a direct method beside everything else.
func (c *Client) startMethod(ctx context.Context, a arrival, name, requestID string) {
	if c.opts.Method == nil || !a.conn.handling.enter() {
		return
	}
	select {
	case c.methods <- struct{}{}:
	case <-ctx.Done():
		a.conn.handling.leave()
		return
	}
	c.background.Add(1)
	go func() {
		defer c.background.Done()
		defer a.conn.handling.leave()
		defer func() { <-c.methods }()
		if err := c.answerMethod(ctx, a, name, requestID); err != nil {
			c.log.WarnContext(ctx, "the answer to a direct method was not sent", "method", name, "error", err)
		}
	}()
}

func (c *Client) answerMethod(ctx context.Context, a arrival, name, requestID string) error {
	status, response := c.opts.Method(ctx, name, a.message.Payload())
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	_, err := await(ctx, a.conn, func() mqtt.Token {
		return a.conn.mqtt.Publish(methodResultTopic(status, requestID), 0, false, response)
	})
	if err != nil {
		return fmt.Errorf("method %s: %w", name, err)
	}
	return nil
}
