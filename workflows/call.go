package workflows

import (
	"errors"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

const (
	// scheduleToStartOnHost is how long a task may wait on a host's own queue. A host that is alive takes it at once, so
	// a task that still waits belongs to a host that is gone, and its device must be connected elsewhere.
	scheduleToStartOnHost = 20 * time.Second

	// hubTimeout bounds one attempt of a hub or Service Bus call; each is a handful of round trips.
	hubTimeout = 30 * time.Second

	// heartbeat is how long an activity of some length may be silent before its process is taken for lost.
	heartbeat = 10 * time.Second

	// stepHeartbeat is the same for a step: a server that is away for a moment must not stop hours of work.
	stepHeartbeat = 30 * time.Second

	// cleanUpTimeout bounds the clean-up of a job: long enough to outlast an outage of the hub.
	cleanUpTimeout = 24 * time.Hour

	maxSummary = 200 // bytes of an activity's summary; Temporal's limit is 400
)

// backoff is the retry policy of every activity: errors that are not worth a retry say so themselves.
func backoff() *temporal.RetryPolicy {
	return &temporal.RetryPolicy{
		InitialInterval:    time.Second,
		BackoffCoefficient: 2,
		MaximumInterval:    time.Minute,
	}
}

// call runs an activity and waits for it.
func call[In, Out any](ctx workflow.Context, ref job.Activity[In, Out], in In, o workflow.ActivityOptions) (Out, error) {
	if o.RetryPolicy == nil {
		o.RetryPolicy = backoff()
	}
	if o.StartToCloseTimeout == 0 {
		o.StartToCloseTimeout = hubTimeout
	}
	o.Summary = clip(o.Summary, maxSummary)
	var out Out
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), ref.Name, in).Get(ctx, &out)
	return out, err
}

// await waits until done or until the time is over; meanwhile the web UI shows the summary. Unlike the SDK's own wait
// with a time-out it cancels its timer, so that no wait that is over stays open in the UI or wakes the workflow later.
func await(ctx workflow.Context, d time.Duration, summary string, done func() bool) (timedOut bool) {
	if done() {
		return false
	}
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer := workflow.NewTimerWithOptions(timerCtx, max(time.Millisecond, d), workflow.TimerOptions{Summary: summary})
	err := workflow.Await(ctx, func() bool { return done() || timer.IsReady() })
	return err == nil && !done()
}

// hostLost reports whether err says that nobody took a task from a host's own queue.
func hostLost(err error) bool {
	var timeout *temporal.TimeoutError
	return errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START
}

// gone reports whether err says that the device identity does not exist.
func gone(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && app.Type() == job.ErrorType(job.ErrNotFound)
}

// line returns what an activity's error says to a person, without the SDK's frame around it.
func line(err error) string {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return clip(app.Message(), job.MaxReasonLength)
	}
	return clip(err.Error(), job.MaxReasonLength)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	cut := n - len("...")
	for cut > 0 && s[cut]&0xC0 == 0x80 { // inside a UTF-8 sequence
		cut--
	}
	return s[:cut] + "..."
}
