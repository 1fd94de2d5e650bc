package workflows

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

// receiptDelay is how long a read message may wait for others to share its receipt. A receipt costs a device-to-cloud
// and a cloud-to-device message, and on an S1 hub the latter are the scarcest thing there is.
const receiptDelay = time.Second

// reader answers for the messages that a device has received: it confirms each with a read receipt, many in one.
type reader struct {
	jobID   string
	role    job.Role
	host    *host
	delay   time.Duration // how long a receipt may wait for more messages
	batch   int           // messages that don't wait any longer
	urgent  func() bool   // true when nothing may wait any longer
	pending []string      // message IDs that were read and are not yet confirmed
	sent    int           // receipts so far
	sending bool
	paused  bool // no new receipt is started
}

// confirm queues the messages that ask for a receipt. A message that comes again is confirmed again: its sender may
// have sent it again because the first receipt was lost.
func (r *reader) confirm(messages []job.Message) {
	for _, m := range messages {
		if m.Kind.Confirmed() {
			r.pending = append(r.pending, m.ID)
		}
	}
}

// run sends receipts until ctx ends. What comes while one is under way travels in the next.
func (r *reader) run(ctx workflow.Context) {
	for {
		if workflow.Await(ctx, func() bool { return len(r.pending) > 0 && !r.paused }) != nil {
			return
		}
		await(ctx, r.delay, "collect messages for one read receipt", func() bool {
			return r.urgent() || len(r.pending) >= r.batch || r.paused
		})
		if r.paused || ctx.Err() != nil {
			continue
		}
		batch := r.pending[:min(len(r.pending), job.MaxReceiptMessageCount)]
		r.sending = true
		err := r.send(ctx, batch)
		r.sending = false
		if err != nil {
			workflow.GetLogger(ctx).Warn("read receipt could not be sent", "error", err)
		}
		// A receipt that could not be sent for good is asked for again by the message's next repetition.
		r.pending = r.pending[len(batch):]
	}
}

func (r *reader) send(ctx workflow.Context, ids []string) error {
	r.sent++
	body, err := job.Encode(job.Receipt{CorrelationID: r.jobID, MessageIDs: ids, ReadAt: workflow.Now(ctx).UTC()})
	if err != nil {
		return err
	}
	m := message(r.jobID, r.role, job.KindReceipt, body)
	m.ID = job.ReceiptID(r.jobID, r.role, r.sent)
	return r.host.send(ctx, fmt.Sprintf("receipt for %s from %s", counted(len(ids)), m.From), m)
}

func counted(messages int) string {
	if messages == 1 {
		return "1 message"
	}
	return fmt.Sprintf("%d messages", messages)
}

// holds reports whether a message was read and its receipt is still to be sent.
func (r *reader) holds(messageID string) bool { return slices.Contains(r.pending, messageID) }

// idle reports whether every message that was read is confirmed.
func (r *reader) idle() bool { return len(r.pending) == 0 && !r.sending }

// message returns a message of a job's device with everything but ID and sequence.
func message(jobID string, role job.Role, kind job.Kind, body job.Body) job.Message {
	return job.Message{
		CorrelationID: jobID, Kind: kind, From: job.DeviceID(role, jobID),
		ContentType: job.ContentTypeJSON, ContentEncoding: job.ContentEncodingUTF8, Body: body,
	}
}
