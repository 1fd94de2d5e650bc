package workflows

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

// othersInHub is how many messages that nobody confirms (read receipts above all) may wait in the hub for one device.
// Together with the window of the confirmed ones they stay well below the 50 that a device's queue holds.
const othersInHub = job.MaxDeviceQueue / 2

// batchSize is how many messages one Dispatch carries at the most.
const batchSize = 16

// maxBatch is how many bytes one Dispatch carries, unless a single message is larger. Temporal takes 2 MB in one payload,
// and JSON writes a byte of a text with up to six.
const maxBatch = 256 << 10

// dispatchPause is how long a lane rests after a Dispatch that failed for good.
const dispatchPause = time.Minute

// courier carries messages to devices by cloud-to-device messages and knows how far each has come. One lane a target
// keeps their order: at most one Dispatch to a device is under way.
type courier struct {
	window  int           // confirmed messages that may wait in the hub for one device
	ttl     time.Duration // how long the hub keeps a message for a device
	tracked []*job.Tracked
	taken   map[key]bool         // by sender
	sent    map[key]*job.Tracked // by target; the last one
	lanes   []*lane
	paused  bool // no new Dispatch is started
	flying  int  // activities under way
}

// key names a message: two devices may well give theirs the same ID.
type key struct{ device, id string }

// lane is the way to one target device.
type lane struct {
	target string
	queue  []*job.Tracked // to be dispatched, in order
	served bool
}

func newCourier(window int, ttl time.Duration, carried []job.Tracked) *courier {
	c := &courier{window: window, ttl: ttl, taken: make(map[key]bool), sent: make(map[key]*job.Tracked)}
	for i := range carried {
		c.track(&carried[i])
	}
	return c
}

// run serves each lane until ctx ends, beginning with the messages that an earlier run took and did not hand to the hub.
func (c *courier) run(ctx workflow.Context) {
	for _, t := range c.tracked {
		if t.Message != nil && t.HandedAt.IsZero() && t.Row.Refused == "" {
			c.enqueue(t)
		}
	}
	for {
		var fresh *lane
		err := workflow.Await(ctx, func() bool {
			i := slices.IndexFunc(c.lanes, func(l *lane) bool { return !l.served })
			if i >= 0 {
				fresh = c.lanes[i]
			}
			return i >= 0
		})
		if err != nil {
			return
		}
		fresh.served = true
		workflow.Go(ctx, func(ctx workflow.Context) { c.serve(ctx, fresh) })
	}
}

// take starts to carry a message. A message that it knows already is none of its business any more, unless that was
// refused and is resubmitted.
func (c *courier) take(ctx workflow.Context, m job.Message) {
	if c.taken[key{m.From, m.ID}] {
		c.retake(ctx, m)
		return
	}
	t := &job.Tracked{Message: &m, Row: job.MessageRow{
		ID: m.ID, Kind: m.Kind, Sequence: m.Sequence, From: m.From, SentAt: m.SentAt,
	}}
	if t.Row.SentAt.IsZero() {
		t.Row.SentAt = workflow.Now(ctx)
	}
	if u, err := job.DecodeUpdate(m.Body); m.Kind == job.KindUpdate && err == nil {
		t.Row.Step, t.Row.Status = u.Step, u.Status
	}
	t.Row.To, _ = m.Target()
	c.track(t)
	c.address(ctx, t)
}

// retake carries a message that was refused once more, when somebody has resubmitted it from the dead-letter queue: what
// was in its way may be gone. It reports whether it does.
func (c *courier) retake(ctx workflow.Context, m job.Message) bool {
	if m.Properties[job.PropertyResubmitted] == "" {
		return false
	}
	i := slices.IndexFunc(c.tracked, func(t *job.Tracked) bool {
		return t.Row.From == m.From && t.Row.ID == m.ID && t.Row.Refused != ""
	})
	if i < 0 {
		return false
	}
	t := c.tracked[i]
	t.Message, t.HandedAt, t.Row.Refused = &m, time.Time{}, ""
	t.Row.To, _ = m.Target() // it may have been given another one
	c.sent[key{t.Row.To, t.Row.ID}] = t
	c.address(ctx, t)
	return true
}

// address puts a message on its way, or refuses it when there is none.
func (c *courier) address(ctx workflow.Context, t *job.Tracked) {
	if t.Row.To == "" {
		c.refuse(ctx, t, job.ReasonDeviceNotFound, fmt.Sprintf("%q has no counterpart and the message names no target", t.Row.From))
		return
	}
	c.enqueue(t)
}

func (c *courier) track(t *job.Tracked) {
	c.tracked = append(c.tracked, t)
	c.taken[key{t.Row.From, t.Row.ID}] = true
	c.sent[key{t.Row.To, t.Row.ID}] = t
}

// enqueue puts a message at the end of its target's lane, unless it waits there already.
func (c *courier) enqueue(t *job.Tracked) {
	for _, l := range c.lanes {
		if l.target == t.Row.To {
			if !slices.Contains(l.queue, t) {
				l.queue = append(l.queue, t)
			}
			return
		}
	}
	c.lanes = append(c.lanes, &lane{target: t.Row.To, queue: []*job.Tracked{t}})
}

// serve dispatches what a lane holds until ctx ends.
func (c *courier) serve(ctx workflow.Context, l *lane) {
	for {
		err := workflow.Await(ctx, func() bool { return !c.paused && len(c.next(ctx, l)) > 0 })
		if err != nil {
			return // the workflow is closing: what is left stays in the audit as not accepted
		}
		batch := c.next(ctx, l)
		l.queue = l.queue[len(batch):]
		c.flying++
		out, err := c.dispatch(ctx, l.target, batch)
		c.flying--
		if err != nil { // slow is no reason to drop a message: it stays at the head of its lane
			workflow.GetLogger(ctx).Warn("dispatch ended without success", "target", l.target, "error", err)
			l.queue = append(wanted(batch), l.queue...)
			if workflow.Sleep(ctx, dispatchPause) != nil { // whatever it is, it must not fill the history
				return
			}
			continue
		}
		c.record(ctx, batch, out)
	}
}

// wanted returns the messages that were not read while they were under way.
func wanted(batch []*job.Tracked) []*job.Tracked {
	var left []*job.Tracked
	for _, t := range batch {
		if t.Message != nil {
			left = append(left, t)
		}
	}
	return left
}

// next returns the messages at the head of a lane for which the hub has room.
func (c *courier) next(ctx workflow.Context, l *lane) []*job.Tracked {
	confirmed, others := c.inHub(ctx, l.target)
	size := 0
	for i, t := range l.queue {
		size += t.Message.Size()
		if t.Row.Kind.Confirmed() {
			confirmed++
		} else {
			others++
		}
		if confirmed > c.window || others > othersInHub || i == batchSize || i > 0 && size > maxBatch {
			return l.queue[:i]
		}
	}
	return l.queue
}

// inHub counts the messages that wait in the hub for a device, as far as feedback and receipts tell.
func (c *courier) inHub(ctx workflow.Context, target string) (confirmed, others int) {
	now := workflow.Now(ctx)
	for _, t := range c.tracked {
		r := t.Row
		left := t.HandedAt.IsZero() || r.Outcome != "" || !r.ReadAt.IsZero() || now.Sub(t.HandedAt) > c.ttl
		switch {
		case r.To != target || left:
		case r.Kind.Confirmed():
			confirmed++
		default:
			others++
		}
	}
	return confirmed, others
}

func (c *courier) dispatch(ctx workflow.Context, target string, batch []*job.Tracked) (job.DispatchOutput, error) {
	in := job.DispatchInput{DeviceID: target, TTL: c.ttl}
	for _, t := range batch {
		in.Messages = append(in.Messages, *t.Message)
		t.Row.Attempts++
		t.Row.Outcome = ""
	}
	return call(ctx, job.Dispatch, in, workflow.ActivityOptions{
		TaskQueue:              job.TaskQueueDispatch,
		StartToCloseTimeout:    time.Duration(len(batch)) * hubTimeout,
		HeartbeatTimeout:       heartbeat,
		ScheduleToCloseTimeout: c.ttl * 24, // far beyond any throttle; the job's own deadline ends it earlier
		Summary:                describe(batch) + " to " + target,
	})
}

// describe says in a few words what a batch carries.
func describe(batch []*job.Tracked) string {
	first := batch[0].Row
	s := string(first.Kind)
	switch {
	case first.Kind == job.KindUpdate:
		s = fmt.Sprintf("update %q %s", first.Step, first.Status)
	case first.Kind == job.KindNone:
		s = "message " + first.ID
	}
	if more := len(batch) - 1; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// record notes what became of a dispatched batch.
func (c *courier) record(ctx workflow.Context, batch []*job.Tracked, out job.DispatchOutput) {
	refused := make(map[string]job.Refusal, len(out.Refused))
	for _, r := range out.Refused {
		refused[r.MessageID] = r
	}
	for _, t := range batch {
		if r, no := refused[t.Row.ID]; no {
			if t.Message != nil { // else it was read while it was sent again
				c.refuse(ctx, t, r.Reason, r.Description)
			}
			continue
		}
		t.HandedAt = workflow.Now(ctx).UTC()
		t.Row.AcceptedAt = accepted(t.HandedAt, t.Row)
		c.forget(t)
	}
}

// accepted returns when the hub has taken a message, given when that became known: news of what happened to it later may
// have come first.
func accepted(known time.Time, r job.MessageRow) time.Time {
	for _, later := range []time.Time{r.DeliveredAt, r.ReadAt} {
		if r.Attempts <= 1 && !later.IsZero() && later.Before(known) {
			known = later
		}
	}
	return known
}

// forget drops the body of a message that will never be sent again.
func (c *courier) forget(t *job.Tracked) {
	if t.Row.Refused != "" || !t.Row.Kind.Confirmed() || !t.Row.ReadAt.IsZero() {
		t.Message = nil
		c.unqueue(t)
	}
}

// unqueue takes a message out of its lane: it waited there to be sent again, and was read meanwhile.
func (c *courier) unqueue(t *job.Tracked) {
	for _, l := range c.lanes {
		l.queue = slices.DeleteFunc(l.queue, func(queued *job.Tracked) bool { return queued == t })
	}
}

// refuse gives a message that can't be delivered back to the queue, where the router dead-letters it with the reason.
func (c *courier) refuse(ctx workflow.Context, t *job.Tracked, reason job.Reason, description string) {
	returned := job.Undeliverable{Message: *t.Message, Reason: reason, Description: description}
	t.Row.Refused = reason
	c.forget(t)
	c.flying++
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer func() { c.flying-- }()
		_, err := call(ctx, job.Return, job.ReturnInput{Messages: []job.Undeliverable{returned}}, workflow.ActivityOptions{
			TaskQueue:              job.TaskQueueJobs,
			ScheduleToCloseTimeout: cleanUpTimeout,
			Summary:                fmt.Sprintf("return %s to the queue: %s", t.Row.ID, reason),
		})
		if err != nil {
			workflow.GetLogger(ctx).Error("message could not be returned to the queue", "message", t.Row.ID, "error", err)
		}
	})
}

// feedback notes what the hub says of messages.
func (c *courier) feedback(in job.Feedback) {
	for _, f := range in.Records {
		t := c.sent[key{f.DeviceID, f.MessageID}]
		if t == nil {
			continue
		}
		t.Row.Outcome = f.Outcome
		if f.Outcome == job.OutcomeSuccess && t.Row.DeliveredAt.IsZero() {
			t.Row.DeliveredAt = f.At
		}
	}
}

// read notes that a device's application has read messages.
func (c *courier) read(reader string, r job.Receipt) {
	for _, id := range r.MessageIDs {
		t := c.sent[key{reader, id}]
		if t == nil || !t.Row.ReadAt.IsZero() {
			continue
		}
		t.Row.ReadAt = r.ReadAt
		c.forget(t)
	}
}

// idle reports whether nothing is under way or waits to be dispatched.
func (c *courier) idle() bool {
	for _, l := range c.lanes {
		if len(l.queue) > 0 {
			return false
		}
	}
	return c.flying == 0
}

// rows returns the audit rows in the order in which the messages came.
func (c *courier) rows() []job.MessageRow {
	rows := make([]job.MessageRow, 0, len(c.tracked))
	for _, t := range c.tracked {
		rows = append(rows, t.Row)
	}
	return rows
}

// carried returns what the next run needs to go on.
func (c *courier) carried() []job.Tracked {
	tracked := make([]job.Tracked, 0, len(c.tracked))
	for _, t := range c.tracked {
		tracked = append(tracked, *t)
	}
	return tracked
}

// count sums up the messages for which keep is true.
func (c *courier) count(keep func(job.MessageRow) bool) job.Counts {
	var n job.Counts
	for _, t := range c.tracked {
		if keep(t.Row) {
			add(&n, t.Row)
		}
	}
	return n
}

func add(n *job.Counts, r job.MessageRow) {
	n.Sent++
	n.Resent += max(0, r.Attempts-1)
	for _, rung := range []struct {
		climbed bool
		count   *int
	}{
		{!r.AcceptedAt.IsZero(), &n.Accepted},
		{!r.DeliveredAt.IsZero(), &n.Delivered},
		{!r.ReadAt.IsZero(), &n.Read},
		{r.Refused != "", &n.Refused},
	} {
		if rung.climbed {
			*rung.count++
		}
	}
}
