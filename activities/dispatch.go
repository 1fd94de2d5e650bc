package activities

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// CloudToDeviceSender sends cloud-to-device messages. It returns when the hub has accepted m into the device's queue,
// with its ID kept, full feedback asked for and its expiry set to ttl from now. Errors are classified as a job.Error.
type CloudToDeviceSender interface {
	SendCloudToDevice(ctx context.Context, deviceID string, m job.Message, ttl time.Duration) error
}

// CloudToDevice is the activity Dispatch.
type CloudToDevice struct {
	Hub CloudToDeviceSender
	// Sent is called after each send with its outcome, nil for an accepted message. It may be nil; it must not block.
	Sent func(error)
}

// Dispatch sends messages to one device, in order. What the hub will never take is listed in the output; any other
// error ends the attempt, and the next one goes on behind the last message that was accepted.
func (a *CloudToDevice) Dispatch(ctx context.Context, in job.DispatchInput) (job.DispatchOutput, error) {
	if err := job.ValidateDeviceID(in.DeviceID); err != nil {
		// A sender may name any target. No hub has a device of such a name, and asking for it again won't change that.
		return refuseAll(in.Messages, err), nil
	}
	done, err := inOrder(ctx, in.Messages, func(ctx context.Context, m job.Message) (*job.Refusal, error) {
		err := a.send(ctx, in, m)
		if refusal := refusal(m.ID, err); refusal != nil {
			return refusal, nil
		}
		return nil, err
	})
	if err != nil {
		return job.DispatchOutput{}, fmt.Errorf("send to device %q: %w", in.DeviceID, err)
	}
	return job.DispatchOutput{Refused: done.Refused}, nil
}

func refuseAll(messages []job.Message, why error) job.DispatchOutput {
	var out job.DispatchOutput
	for _, m := range messages {
		out.Refused = append(out.Refused, job.Refusal{MessageID: m.ID, Reason: job.ReasonDeviceNotFound, Description: line(why)})
	}
	return out
}

func (a *CloudToDevice) send(ctx context.Context, in job.DispatchInput, m job.Message) error {
	// The hub would refuse it as well, but a send is one of the scarcest operations of an S1 hub.
	if size := m.Size(); size > job.MaxCloudToDeviceSize {
		return &job.Error{Kind: job.ErrTooLarge,
			Err: fmt.Errorf("%d bytes, the limit of a cloud-to-device message is %d", size, job.MaxCloudToDeviceSize)}
	}
	err := a.Hub.SendCloudToDevice(ctx, in.DeviceID, m, in.TTL)
	if a.Sent != nil {
		a.Sent(err)
	}
	return err
}

// refusal returns why a message can never be delivered; nil when err is nil or worth another try.
func refusal(messageID string, err error) *job.Refusal {
	reason := job.ReasonDeviceMessageFailed
	switch {
	case err == nil || job.Retryable(err):
		return nil
	case errors.Is(err, job.ErrNotFound):
		reason = job.ReasonDeviceNotFound
	}
	return &job.Refusal{MessageID: messageID, Reason: reason, Description: line(err)}
}
