package iothub

import (
	"context"
	"encoding/json"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/azure/internal/backoff"
	"github.com/hubjobs/hubjobs/job"
)

// feedbackHold is how long a batch of feedback is tried again here before it is released. A hub locks it for a minute
// by default, and drops it after 10 deliveries: giving it back at once would lose it within seconds.
const feedbackHold = 40 * time.Second

// ReceiveFeedback receives what became of cloud-to-device messages, until ctx ends; then it returns nil. handle gets one
// batch of the hub at a time. A batch is completed after handle returned nil; as long as it fails it gets the batch
// again, from here and then from the hub, so it must take repeats. Lost connections are made again.
func (c *Client) ReceiveFeedback(ctx context.Context, handle func(context.Context, []job.FeedbackRecord) error) error {
	retry := backoff.Backoff{Initial: time.Second, Max: 30 * time.Second}
	for ctx.Err() == nil {
		received, err := c.receiveFeedback(ctx, handle)
		if ctx.Err() != nil {
			break
		}
		if received {
			retry.Reset()
		}
		wait := retry.Next()
		c.log.WarnContext(ctx, "receiving feedback was interrupted", "error", classify("receive feedback", err), "wait", wait)
		if backoff.Wait(ctx, wait) != nil {
			break
		}
	}
	return nil
}

// receiveFeedback receives over one link until that breaks; received says whether it worked at all.
func (c *Client) receiveFeedback(ctx context.Context, handle func(context.Context, []job.FeedbackRecord) error) (received bool, err error) {
	receiver, closeLink, err := c.openFeedback(ctx)
	if err != nil {
		return false, err
	}
	defer closeLink()
	for {
		m, err := receiver.Receive(ctx, nil)
		if err != nil {
			return received, err
		}
		received = true
		if err := c.settleFeedback(ctx, receiver, m, handle); err != nil {
			return received, err
		}
	}
}

func (c *Client) openFeedback(ctx context.Context) (*amqp.Receiver, func(), error) {
	open, cancel := c.withDeadline(ctx)
	defer cancel()
	conn, err := c.amqp.get(open)
	if err != nil {
		return nil, nil, err
	}
	session, err := conn.conn.NewSession(open, nil)
	if err != nil {
		return nil, nil, err
	}
	closeLink := func() {
		// Also when ctx has ended: the hub shall hand out again what is still locked.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = session.Close(ctx) // nothing to do about a session that doesn't close
	}
	receiver, err := session.NewReceiver(open, addressFeedback, nil) // credit 1: one batch at a time
	if err != nil {
		closeLink()
		return nil, nil, err
	}
	return receiver, closeLink, nil
}

// settleFeedback hands one batch over and settles it. The error is the link's.
func (c *Client) settleFeedback(ctx context.Context, r *amqp.Receiver, m *amqp.Message, handle func(context.Context, []job.FeedbackRecord) error) error {
	records, err := decodeFeedback(m)
	if err != nil {
		c.log.ErrorContext(ctx, "rejected feedback that can't be read", "error", err)
		return r.RejectMessage(ctx, m, &amqp.Error{Condition: amqp.ErrCondDecodeError})
	}
	handled := c.handleFeedback(ctx, records, handle)
	// The outcome is told even when ctx has just ended.
	settle, cancel := c.withDeadline(context.WithoutCancel(ctx))
	defer cancel()
	if !handled {
		return r.ReleaseMessage(settle, m)
	}
	return r.AcceptMessage(settle, m)
}

// handleFeedback tries handle until it succeeds, ctx ends, or the batch was held for long enough.
func (c *Client) handleFeedback(ctx context.Context, records []job.FeedbackRecord, handle func(context.Context, []job.FeedbackRecord) error) bool {
	retry := backoff.Backoff{Initial: 500 * time.Millisecond, Max: 10 * time.Second}
	for until := time.Now().Add(feedbackHold); ; {
		err := handle(ctx, records)
		if err == nil {
			return true
		}
		wait := retry.Next()
		c.log.WarnContext(ctx, "feedback was not recorded", "error", err, "records", len(records))
		if time.Now().Add(wait).After(until) || backoff.Wait(ctx, wait) != nil {
			return false
		}
	}
}

// feedbackJSON is one record of a feedback message (IoT Hub docs, "Message feedback").
type feedbackJSON struct {
	MessageID   string    `json:"originalMessageId"`
	DeviceID    string    `json:"deviceId"`
	StatusCode  string    `json:"statusCode"`
	Description string    `json:"description"`
	At          timestamp `json:"enqueuedTimeUtc"`
}

func decodeFeedback(m *amqp.Message) ([]job.FeedbackRecord, error) {
	var in []feedbackJSON
	if err := json.Unmarshal(m.GetData(), &in); err != nil {
		return nil, err
	}
	out := make([]job.FeedbackRecord, len(in))
	for i, r := range in {
		out[i] = job.FeedbackRecord{
			MessageID: r.MessageID, DeviceID: r.DeviceID, Outcome: job.Outcome(r.StatusCode),
			Description: r.Description, At: time.Time(r.At),
		}
	}
	return out, nil
}
