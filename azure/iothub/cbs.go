package iothub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/job"
)

// cbsToken is a claim for an AMQP connection.
type cbsToken struct {
	kind     string
	audience string
	value    string // a secret
	expires  time.Time
}

// claims is the pair of links to the node $cbs, over which a connection is authorised and kept so
// (OASIS AMQP Claims-based Security 1.0, working draft, §3).
type claims struct {
	sender   *amqp.Sender
	receiver *amqp.Receiver
}

func openClaims(ctx context.Context, conn *amqp.Conn) (*claims, error) {
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		return nil, err
	}
	sender, err := session.NewSender(ctx, "$cbs", nil)
	if err != nil {
		return nil, err
	}
	receiver, err := session.NewReceiver(ctx, "$cbs", &amqp.ReceiverOptions{TargetAddress: "cbs"})
	if err != nil {
		return nil, err
	}
	return &claims{sender: sender, receiver: receiver}, nil
}

// put hands a token over and waits for the answer. It is for one goroutine at a time.
func (c *claims) put(ctx context.Context, t cbsToken) error {
	id := uuid.NewString()
	to, replyTo := "$cbs", "cbs"
	err := c.sender.Send(ctx, &amqp.Message{
		Properties:            &amqp.MessageProperties{MessageID: id, To: &to, ReplyTo: &replyTo},
		ApplicationProperties: map[string]any{"operation": "put-token", "type": t.kind, "name": t.audience},
		Value:                 t.value,
	}, nil)
	if err != nil {
		return err
	}
	for {
		answer, err := c.receiver.Receive(ctx, nil)
		if err != nil {
			return err
		}
		if err := c.receiver.AcceptMessage(ctx, answer); err != nil {
			return err
		}
		if answer.Properties != nil && answer.Properties.CorrelationID == id {
			return claimResult(answer.ApplicationProperties)
		}
		// An answer to an earlier request whose caller stopped waiting.
	}
}

func claimResult(p map[string]any) error {
	const op = "authorise the AMQP connection"
	status, ok := p["status-code"].(int32)
	if !ok {
		return &job.Error{Op: op, Kind: job.ErrUnavailable, Err: errors.New("the hub's answer has no status code")}
	}
	if status >= 200 && status <= 299 {
		return nil
	}
	kind := job.ErrUnavailable
	if status >= 400 && status <= 404 {
		kind = job.ErrUnauthorized
	}
	description, _ := p["status-description"].(string)
	return &job.Error{Op: op, Kind: kind, Err: fmt.Errorf("status %d: %s", status, shorten(description))}
}
