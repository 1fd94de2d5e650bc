package activities

import (
	"context"
	"fmt"
	"maps"

	"github.com/hubjobs/hubjobs/job"
)

// DeviceMessages is the activity Return.
type DeviceMessages struct {
	Queue MessageSender
}

// Return puts messages that can't be delivered back on the queue that they came from. Their message IDs stay, the
// sender stands where the hub stamps it, and two properties tell the router to dead-letter them and why.
func (a *DeviceMessages) Return(ctx context.Context, in job.ReturnInput) (job.None, error) {
	messages := make([]job.Message, len(in.Messages))
	for i, u := range in.Messages {
		messages[i] = undeliverable(u)
	}
	_, err := inOrder(ctx, messages, func(ctx context.Context, m job.Message) (*job.Refusal, error) {
		if err := a.Queue.Send(ctx, m); err != nil {
			return nil, fmt.Errorf("return message %q to the queue: %w", m.ID, err)
		}
		return nil, nil
	})
	return job.None{}, err
}

func undeliverable(u job.Undeliverable) job.Message {
	m := u.Message
	m.Properties = maps.Clone(m.Properties)
	if m.Properties == nil {
		m.Properties = make(map[string]string)
	}
	m.Properties[job.PropertyUndeliverableReason] = string(u.Reason)
	m.Properties[job.PropertyUndeliverableDescription] = u.Description
	if m.From != "" {
		m.Properties[job.PropertyDeviceID] = m.From
		m.From = ""
	}
	return m
}
