package servicebus

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/job"
)

// Sender sends to one queue or topic. Its methods may be called concurrently.
type Sender struct {
	client *Client
	entity string
	sdk    *azservicebus.Sender
}

// Sender returns a sender to a queue or topic. It connects when it is first used.
func (c *Client) Sender(entity string) (*Sender, error) {
	sdk, err := c.sdk.NewSender(entity, nil)
	if err != nil {
		return nil, classify("open a sender to "+entity, err)
	}
	return &Sender{client: c, entity: entity, sdk: sdk}, nil
}

// Send sends m, with its ID as message ID, and returns when the entity has stored it. With duplicate detection on,
// sending the same ID again changes nothing.
//
// The error matches job.ErrTooLarge, job.ErrNotFound (no such entity), job.ErrUnauthorized, job.ErrThrottled (also when
// the entity is full) or job.ErrUnavailable.
func (s *Sender) Send(ctx context.Context, m job.Message) error {
	ctx, cancel := context.WithTimeout(ctx, s.client.timeout)
	defer cancel()
	return classify("send message "+m.ID+" to "+s.entity, s.sdk.SendAMQPAnnotatedMessage(ctx, outgoing(m), nil))
}

// Close detaches the sender.
func (s *Sender) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	return classify("close the sender to "+s.entity, s.sdk.Close(ctx))
}
