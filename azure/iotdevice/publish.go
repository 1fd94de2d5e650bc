package iotdevice

import (
	"context"
	"fmt"

	"github.com/hubjobs/hubjobs/job"
)

// Publish sends a device-to-cloud message and returns when the hub has stored it. While there is no connection it waits
// for one, and after a loss it publishes again with the same message ID, until ctx ends: the hub may then have the
// message twice, or have it although an error is returned.
//
// The error matches job.ErrTooLarge or job.ErrInvalid for the message, job.ErrUnavailable when ctx ended, or what Err
// returns when the client has.
func (c *Client) Publish(ctx context.Context, m job.Message) error {
	op := "publish message " + m.ID
	if n := m.Size(); n > job.MaxDeviceToCloudSize {
		return &job.Error{Op: op, Kind: job.ErrTooLarge,
			Err: fmt.Errorf("%d bytes with properties, the limit is %d", n, job.MaxDeviceToCloudSize)}
	}
	var last *connection
	for {
		conn, err := c.await(ctx, op, last)
		if err != nil {
			return err
		}
		topic, err := eventTopic(conn.device.DeviceID, m)
		if err != nil {
			return &job.Error{Op: op, Kind: job.ErrInvalid, Err: err}
		}
		if len(topic) > maxTopic {
			return &job.Error{Op: op, Kind: job.ErrTooLarge,
				Err: fmt.Errorf("properties of %d bytes when encoded, MQTT allows %d", len(topic), maxTopic)}
		}
		if !conn.publishing.enter() {
			last = conn
			continue
		}
		err = conn.publish(ctx, c.opts.ackTimeout, topic, m.Body)
		conn.publishing.leave()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return &job.Error{Op: op, Kind: job.ErrUnavailable, Err: ctx.Err()}
		}
		c.log.DebugContext(ctx, "publish has to wait for another connection", "message", m.ID, "error", err)
		conn.fail(err)
		last = conn
	}
}

// await returns a connection other than last, as soon as there is one.
func (c *Client) await(ctx context.Context, op string, last *connection) (*connection, error) {
	for {
		conn, changed := c.get()
		if conn != nil && conn != last {
			return conn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, &job.Error{Op: op, Kind: job.ErrUnavailable, Err: ctx.Err()}
		case <-c.done:
			if err := c.Err(); err != nil {
				return nil, fmt.Errorf("%s: %w", op, err)
			}
			return nil, &job.Error{Op: op, Kind: job.ErrUnavailable, Err: errClosed}
		}
	}
}
