package iothub

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/job"
)

// Service endpoints over AMQP (IoT Hub docs, "Communicate with your IoT hub by using the AMQP Protocol").
const (
	addressDevicebound = "/messages/devicebound"
	addressFeedback    = "/messages/serviceBound/feedback"
)

// PropertyAck asks for delivery feedback (IoT Hub docs, "Send cloud-to-device messages", message feedback).
const PropertyAck = "iothub-ack"

// ackFull asks for feedback of both success and failure.
const ackFull = "full"

// SendCloudToDevice puts m into the hub's queue for a device and returns when the hub has it. The message keeps its ID,
// by which its feedback names it. The hub drops it, with feedback Expired, when the device doesn't take it within ttl;
// 0 means the hub's default.
//
// A failure after the message was sent may mean that the hub has it all the same: sending again, with the same ID, is
// right. The error matches job.ErrNotFound (no such device), job.ErrQueueFull, job.ErrThrottled, job.ErrQuota,
// job.ErrTooLarge, job.ErrInvalid, job.ErrUnauthorized or job.ErrUnavailable.
func (c *Client) SendCloudToDevice(ctx context.Context, deviceID string, m job.Message, ttl time.Duration) error {
	op := "send message " + m.ID + " to device " + deviceID
	if err := validateSend(op, deviceID, m, ttl); err != nil {
		return err
	}
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	err := c.send(ctx, deviceboundMessage(deviceID, m, ttl, time.Now()))
	if err != nil && ctx.Err() != nil {
		err = ctx.Err() // go-amqp reports a wait for credit that ended so as a link error
	}
	return classify(op, err)
}

func validateSend(op, deviceID string, m job.Message, ttl time.Duration) error {
	if err := job.ValidateDeviceID(deviceID); err != nil {
		return err
	}
	switch n := m.Size(); {
	case m.ID == "" || len(m.ID) > job.MaxMessageIDLength:
		return invalid(op, "the message ID has %d characters, allowed are 1 to %d", len(m.ID), job.MaxMessageIDLength)
	case ttl < 0:
		return invalid(op, "the time to live is negative: %s", ttl)
	case n > job.MaxCloudToDeviceSize:
		return &job.Error{Op: op, Kind: job.ErrTooLarge, Err: fmt.Errorf("%d bytes with properties, the limit is %d", n, job.MaxCloudToDeviceSize)}
	}
	return nil
}

func deviceboundMessage(deviceID string, m job.Message, ttl time.Duration, now time.Time) *amqp.Message {
	to := "/devices/" + url.PathEscape(deviceID) + addressDevicebound
	out := &amqp.Message{
		Properties:            &amqp.MessageProperties{MessageID: m.ID, To: &to},
		ApplicationProperties: map[string]any{PropertyAck: ackFull},
		Data:                  [][]byte{m.Body},
	}
	for name, value := range m.ApplicationProperties() {
		if name != PropertyAck {
			out.ApplicationProperties[name] = value
		}
	}
	if m.CorrelationID != "" {
		out.Properties.CorrelationID = m.CorrelationID
	}
	if m.ContentType != "" {
		out.Properties.ContentType = &m.ContentType
	}
	if m.ContentEncoding != "" {
		out.Properties.ContentEncoding = &m.ContentEncoding
	}
	if ttl > 0 {
		expiry := now.Add(ttl)
		out.Properties.AbsoluteExpiryTime = &expiry
	}
	return out
}

// send tries the shared link first. When that breaks, the reason the hub gives may be about another message that was
// under way on it; so the second attempt has a link of its own, and its error is this message's.
func (c *Client) send(ctx context.Context, m *amqp.Message) error {
	err := c.sendShared(ctx, m)
	if err == nil || ctx.Err() != nil || !broken(err) {
		return err
	}
	return c.sendAlone(ctx, m)
}

func (c *Client) sendShared(ctx context.Context, m *amqp.Message) error {
	conn, err := c.amqp.get(ctx)
	if err != nil {
		return err
	}
	sender, err := conn.sharedSender(ctx)
	if err != nil {
		return err
	}
	err = deliver(ctx, sender, m)
	if broken(err) {
		conn.forget(sender)
	}
	return err
}

func (c *Client) sendAlone(ctx context.Context, m *amqp.Message) error {
	conn, err := c.amqp.get(ctx)
	if err != nil {
		return err
	}
	session, sender, err := conn.newSender(ctx)
	if err != nil {
		return err
	}
	err = deliver(ctx, sender, m)
	_ = session.Close(ctx) // the delivery's outcome stands whatever becomes of the session
	return err
}

// deliver returns nil only when the hub accepted the message: go-amqp's Send takes released and modified for success.
func deliver(ctx context.Context, sender *amqp.Sender, m *amqp.Message) error {
	receipt, err := sender.SendWithReceipt(ctx, m, nil)
	if err != nil {
		return err
	}
	state, err := receipt.Wait(ctx)
	if err != nil {
		return err
	}
	switch s := state.(type) {
	case *amqp.StateAccepted:
		return nil
	case *amqp.StateRejected:
		if s.Error != nil {
			return s.Error
		}
	}
	return errors.New("the hub did not accept the message and didn't say why")
}

// broken reports whether err ended the link, its session or the connection, rather than one delivery.
func broken(err error) bool {
	var (
		link    *amqp.LinkError
		session *amqp.SessionError
		conn    *amqp.ConnError
	)
	return errors.As(err, &link) || errors.As(err, &session) || errors.As(err, &conn)
}
