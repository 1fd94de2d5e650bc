package deadletters

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
)

// grace is how long a message that is being put back may take when the caller wants to end: a copy that was stored should
// not be left beside its dead letter.
const grace = 5 * time.Second

// errHeld says why nothing was done about a dead letter.
var errHeld = errors.New("somebody else has it locked, or it is deferred: try again in a minute")

// errRepeats says that a dead letter is still there although its copy is stored.
var errRepeats = errors.New("its copy is stored, but the dead letter is still there: put back again, it comes twice")

// errGone says why nothing was done about a dead letter.
var errGone = errors.New("it is gone: somebody else has put it back or removed it")

// Outcome is what became of one dead letter.
type Outcome struct {
	SequenceNumber int64
	MessageID      string
	NewID          string // the copy's message ID, where that is another one
	Err            error  // nil: it was done

	resent bool // its copy is stored
}

// Change says in what the copies differ from what was dead-lettered, in addition to what Resubmit changes by itself.
type Change struct {
	Set   map[string]string // application properties, by name
	Unset []string          // names of application properties
}

// Resubmit puts dead letters back to where they were sent, each as a copy, and completes each dead letter when its copy
// is stored. It reports on each number, by calls from one goroutine at a time.
//
// A copy in device-messages keeps its message ID: by that the job's workflow and the receipts know it. The contract has no
// duplicate detection there. Everywhere else the service may remember the ID and drop the copy without a word, as it
// does on the topic jobs; there a copy gets a message ID of its own, and the old one in the property
// original-message-id. It is the same each time the same dead letter is put back, so that a copy which repeats another
// is dropped where duplicates are detected.
//
// The error is the first that concerns more than one message. What was not reported on then stays where it is.
func (q *Queue) Resubmit(ctx context.Context, numbers []int64, change Change, report func(Outcome)) error {
	sender, err := q.bus.Sender(q.Entity())
	if err != nil {
		return err
	}
	defer func() { _ = sender.Close(context.WithoutCancel(ctx)) }() // what it sent is stored
	stored := make(map[int64]bool)                                  // whose copy is
	return q.settle(ctx, numbers, report, func(ctx context.Context, d *servicebus.Delivery) (Outcome, error) {
		out := Outcome{SequenceNumber: d.SequenceNumber, MessageID: d.Message.ID}
		c := q.copyChange(&d.Received, change)
		if c.MessageID != d.Message.ID {
			out.NewID = c.MessageID
		}
		if !stored[d.SequenceNumber] {
			if err := send(ctx, sender, &d.Received, c); err != nil {
				return out, err
			}
			stored[d.SequenceNumber] = true
		}
		out.resent = true
		err := d.Complete(ctx)
		if err != nil && !errors.Is(err, job.ErrLockLost) {
			err = fmt.Errorf("%w: %w", errRepeats, err)
		}
		return out, err
	})
}

// send may take a little longer than ctx.
func send(ctx context.Context, sender *servicebus.Sender, r *servicebus.Received, c servicebus.Change) error {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(grace, cancel)
		context.AfterFunc(sending, func() { timer.Stop() })
	})
	defer stop()
	return sender.SendCopy(sending, r, c)
}

// Purge removes dead letters for good and reports on each number, by calls from one goroutine at a time.
func (q *Queue) Purge(ctx context.Context, numbers []int64, report func(Outcome)) error {
	return q.settle(ctx, numbers, report, func(ctx context.Context, d *servicebus.Delivery) (Outcome, error) {
		return Outcome{SequenceNumber: d.SequenceNumber, MessageID: d.Message.ID}, d.Complete(ctx)
	})
}

// settle takes the dead letters and does one thing to each. An error that concerns one message alone is reported, and
// the next one is taken.
func (q *Queue) settle(ctx context.Context, numbers []int64, report func(Outcome),
	do func(context.Context, *servicebus.Delivery) (Outcome, error)) error {
	begun := make(map[int64]Outcome) // done but for the confirmation that the dead letter is gone
	left, err := q.bus.Take(ctx, q.from, numbers, servicebus.TakeOptions{}, func(ctx context.Context, d *servicebus.Delivery) error {
		out, err := do(ctx, d)
		switch {
		case err == nil:
			report(out)
		case errors.Is(err, job.ErrLockLost): // it comes again, or was completed after all
			begun[d.SequenceNumber] = out
			return err
		case errors.Is(err, job.ErrTooLarge), errors.Is(err, job.ErrInvalid):
			out.Err = err
			report(out)
		default:
			return fmt.Errorf("dead letter %d: %w", d.SequenceNumber, err)
		}
		return nil
	})
	if err != nil || len(left) == 0 {
		return err
	}
	return q.reportLeft(ctx, left, begun, report)
}

// reportLeft finds out why dead letters could not be had.
func (q *Queue) reportLeft(ctx context.Context, left []int64, begun map[int64]Outcome, report func(Outcome)) error {
	found, err := q.bus.Find(ctx, q.from, left...)
	if err != nil {
		return err
	}
	for _, number := range left {
		out, ours := begun[number]
		out.SequenceNumber = number
		switch {
		case found[number] == nil && !ours:
			out.Err = errGone
		case found[number] != nil && ours && out.resent:
			out.Err = errRepeats
		case found[number] != nil:
			out.MessageID, out.Err = found[number].Message.ID, errHeld
		}
		report(out)
	}
	return nil
}

// copyChange says in what the copy of a dead letter differs from it: it has no reasons, by which the router would refuse
// it at once, and it says that it is put back.
func (q *Queue) copyChange(r *servicebus.Received, change Change) servicebus.Change {
	c := servicebus.Change{
		MessageID: q.copyID(r),
		Set:       map[string]string{job.PropertyResubmitted: strconv.FormatInt(r.SequenceNumber, 10)},
		Unset:     append([]string{job.PropertyUndeliverableReason, job.PropertyUndeliverableDescription}, change.Unset...),
	}
	if r.Properties[job.PropertyOriginalID] == "" && r.Message.ID != "" && c.MessageID != r.Message.ID {
		c.Set[job.PropertyOriginalID] = r.Message.ID
	}
	maps.Copy(c.Set, change.Set)
	return c
}

func (q *Queue) copyID(r *servicebus.Received) string {
	switch {
	case q.from.Queue != QueueDeviceMessages:
		// The time keeps apart what had the same number before and after the entity was made anew.
		name := fmt.Sprintf("%s\n%s\n%d\n%d", q.from, r.Message.ID, r.SequenceNumber, r.EnqueuedAt.UnixNano())
		return uuid.NewSHA1(uuid.Nil, []byte(name)).String()
	case r.Message.ID == "":
		// What the router calls a message without one, so that it knows a copy that comes twice.
		return fmt.Sprintf("%s-%d", QueueDeviceMessages, r.OriginalNumber)
	}
	return r.Message.ID
}
