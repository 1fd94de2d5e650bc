package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

// watchReceipts sends again what was not read in time, until ctx ends. One timer runs at a time, and only while a
// message is unread.
func (r *jobRun) watchReceipts(ctx workflow.Context) {
	for {
		if workflow.Await(ctx, func() bool { return r.firstDue() != nil && !r.courier.paused }) != nil {
			return
		}
		if wait := r.due(r.firstDue()).Sub(workflow.Now(ctx)); wait > 0 {
			timer := workflow.NewTimerWithOptions(ctx, wait, workflow.TimerOptions{Summary: "check read receipts"})
			if timer.Get(ctx, nil) != nil {
				return
			}
		}
		r.check(ctx)
	}
}

// firstDue returns the message whose receipt is due first, nil when none is awaited.
func (r *jobRun) firstDue() *job.Tracked {
	var first *job.Tracked
	for _, t := range r.courier.tracked {
		if r.open(t) && !t.HandedAt.IsZero() && (first == nil || r.due(t).Before(r.due(first))) {
			first = t
		}
	}
	return first
}

// due returns when t's receipt is due: some time after the hub took it or it was last checked, at once when feedback
// says that the device will never get it.
func (r *jobRun) due(t *job.Tracked) time.Time {
	since := t.HandedAt
	checked := r.checked[t.Row.ID]
	if checked.Before(since) && lost(t) {
		return since
	}
	if checked.After(since) {
		since = checked
	}
	return since.Add(r.in.Options.ReceiptTimeout)
}

// lost reports whether feedback says that the device will never get t.
func lost(t *job.Tracked) bool { return t.Row.Outcome != "" && t.Row.Outcome != job.OutcomeSuccess }

// check deals with every message whose receipt is due now.
func (r *jobRun) check(ctx workflow.Context) {
	var late []*job.Tracked
	reconnect := false
	for _, t := range r.courier.tracked {
		if !r.open(t) || t.HandedAt.IsZero() || r.due(t).After(workflow.Now(ctx)) {
			continue
		}
		r.checked[t.Row.ID] = workflow.Now(ctx)
		if r.reader.holds(t.Row.ID) {
			continue // it was read; what is late is only the receipt, and sending the message again would not help
		}
		r.waits[t.Row.ID]++
		late = append(late, t)
		reconnect = reconnect || t.Row.To == r.schedulerID()
	}
	if reconnect {
		r.reconnect(ctx)
	}
	for _, t := range late {
		if r.open(t) && r.resendable(t) {
			r.courier.enqueue(t)
		}
	}
}

// resendable reports whether sending t again can help: it was delivered and not read, the hub has given it up, or
// feedback has been silent for two receipt timeouts. A message that waits in the hub for its device is left there.
func (r *jobRun) resendable(t *job.Tracked) bool {
	return t.Message != nil && (t.Row.Outcome != "" || r.waits[t.Row.ID] >= 2)
}

// reconnect makes sure that the scheduler's device is connected, on its host or on another one.
func (r *jobRun) reconnect(ctx workflow.Context) {
	r.courier.flying++
	defer func() { r.courier.flying-- }()
	err := r.host.do(ctx, func(taskQueue string) error {
		_, err := call(ctx, job.Connect, job.ConnectInput{Session: r.host.session}, workflow.ActivityOptions{
			TaskQueue:              taskQueue,
			ScheduleToStartTimeout: scheduleToStartOnHost,
			ScheduleToCloseTimeout: r.left(ctx),
			Summary:                "receipts are late: check the connection of " + r.host.session.DeviceID,
		})
		return err
	})
	if err != nil {
		workflow.GetLogger(ctx).Warn("scheduler's device could not be connected", "error", err)
	}
}
