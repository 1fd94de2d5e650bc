package workflows

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

// begin brings the job to the solvers: identities, the scheduler's connection, the topic, the announcement.
// A request to cancel and the job's deadline interrupt it.
func (r *jobRun) begin(ctx workflow.Context) {
	ctx, stop := workflow.WithCancel(ctx)
	defer stop()
	workflow.Go(ctx, func(ctx workflow.Context) {
		if workflow.Await(ctx, func() bool { return r.cancel != nil }) == nil {
			stop()
		}
	})
	r.show(ctx)
	for _, step := range []func(workflow.Context) error{r.negotiate, r.connectScheduler, r.publish, r.announce} {
		err := step(ctx)
		switch {
		case err == nil:
		case r.cancel != nil:
			return
		case temporal.IsTimeoutError(err):
			r.end(job.StateExpired, "the job's time ran out before it was scheduled")
			return
		default:
			r.end(job.StateFailed, line(err))
			return
		}
	}
}

// end decides how the job ends.
func (r *jobRun) end(state job.State, reason string) {
	r.outcome, r.snap.Reason = state, reason
}

// left returns the time until the job's deadline.
func (r *jobRun) left(ctx workflow.Context) time.Duration {
	return max(time.Second, r.snap.Deadline.Sub(workflow.Now(ctx)))
}

func (r *jobRun) negotiate(ctx workflow.Context) error {
	r.negotiating++
	defer func() { r.negotiating-- }()
	ids := []string{r.schedulerID(), r.solverID()}
	_, err := call(ctx, job.Negotiate, job.NegotiateInput{DeviceIDs: ids}, workflow.ActivityOptions{
		TaskQueue:              job.TaskQueueRegistry,
		ScheduleToCloseTimeout: r.left(ctx),
		WaitForCancellation:    true, // else it could create what has just been deregistered
		Summary:                "negotiate identities of the scheduler's and the solver's device",
	})
	return err
}

func (r *jobRun) connectScheduler(ctx workflow.Context) error {
	return r.host.do(ctx, func(string) error { return nil })
}

// connect finds a scheduler process that holds the scheduler's device.
func (r *jobRun) connect(ctx workflow.Context) (job.ConnectOutput, error) {
	in := job.ConnectInput{Session: r.host.session}
	o := workflow.ActivityOptions{
		TaskQueue:              job.TaskQueueScheduler,
		ScheduleToCloseTimeout: r.left(ctx),
		Summary:                "connect " + r.host.session.DeviceID,
	}
	out, err := call(ctx, job.Connect, in, o)
	if !gone(err) || r.outcome != "" {
		return out, err
	}
	// Somebody removed the identity in the middle of the job.
	if err := r.negotiate(ctx); err != nil {
		return job.ConnectOutput{}, err
	}
	return call(ctx, job.Connect, in, o)
}

func (r *jobRun) publish(ctx workflow.Context) error {
	o := r.in.Options.Solver
	o.Deadline = r.snap.Deadline
	o.AcceptBefore = r.acceptBefore()
	o.ReceiptTimeout = r.in.Options.ReceiptTimeout * time.Duration(r.in.Options.ReceiptAttempts+1)
	r.published = true
	_, err := call(ctx, job.Publish, job.PublishInput{Job: r.in.Job, Options: o}, workflow.ActivityOptions{
		TaskQueue:              job.TaskQueueJobs,
		ScheduleToCloseTimeout: r.left(ctx),
		Summary:                fmt.Sprintf("schedule %q with %d steps on topic jobs", r.in.Job.Name, len(r.in.Job.Steps)),
	})
	if err == nil && r.snap.State == job.StateStarting {
		r.snap.State = job.StateScheduled
	}
	r.show(ctx)
	return err
}

func (r *jobRun) acceptBefore() time.Time {
	before := r.snap.StartedAt.Add(r.in.Options.AcceptTimeout)
	if before.After(r.snap.Deadline) {
		return r.snap.Deadline
	}
	return before
}

// announce sends the job to the solver's device, as telemetry of the scheduler's.
func (r *jobRun) announce(ctx workflow.Context) error {
	body, err := job.Encode(r.in.Job)
	if err != nil {
		return err
	}
	return r.say(ctx, "announce the job", job.KindJob, body)
}

// say sends a message with the next sequence from the scheduler's device.
func (r *jobRun) say(ctx workflow.Context, what string, kind job.Kind, body job.Body) error {
	m := message(r.in.Job.CorrelationID, job.RoleScheduler, kind, body)
	m.Sequence = r.sequence
	m.ID = job.MessageID(r.in.Job.CorrelationID, job.RoleScheduler, m.Sequence)
	r.sequence++
	return r.host.send(ctx, what+" from "+m.From, m)
}

// run goes through the phases of the job until it has ended or needs a new run.
func (r *jobRun) run(ctx workflow.Context) verdict {
	for r.outcome == "" {
		switch {
		case workflow.GetInfo(ctx).GetContinueAsNewSuggested():
			if r.rest(ctx) {
				return continues
			}
		case r.ending != "":
			r.confirm(ctx)
		case r.cancel != nil:
			r.stopSolver(ctx)
		case r.snap.State == job.StateScheduled || r.snap.State == job.StateStarting:
			r.awaitSolver(ctx)
		default:
			r.awaitEnding(ctx)
		}
		r.show(ctx)
	}
	return ends
}

// interrupted reports whether the phase that waits has to give way.
func (r *jobRun) interrupted(ctx workflow.Context) bool {
	return r.ending != "" || r.outcome != "" || workflow.GetInfo(ctx).GetContinueAsNewSuggested()
}

func (r *jobRun) awaitSolver(ctx workflow.Context) {
	over := await(ctx, r.acceptBefore().Sub(workflow.Now(ctx)), "wait for a solver to take the job", func() bool {
		return r.cancel != nil || r.snap.State == job.StateRunning || r.interrupted(ctx)
	})
	if over {
		r.end(job.StateExpired, fmt.Sprintf("no solver took the job within %s: is a solver worker running?",
			r.acceptBefore().Sub(r.snap.StartedAt)))
	}
}

func (r *jobRun) awaitEnding(ctx workflow.Context) {
	over := await(ctx, r.left(ctx), "deadline of the job", func() bool { return r.cancel != nil || r.interrupted(ctx) })
	if over {
		r.expire()
	}
}

func (r *jobRun) expire() {
	r.end(job.StateExpired, fmt.Sprintf("the job was not done within %s", r.snap.Deadline.Sub(r.snap.StartedAt)))
}

// stopSolver tells the solver to stop and waits for its answer.
func (r *jobRun) stopSolver(ctx workflow.Context) {
	reason := strings.TrimSuffix("cancelled: "+r.cancel.Reason, ": ")
	if !r.published {
		r.end(job.StateCancelled, reason)
		return
	}
	r.snap.State = job.StateCancelling
	r.show(ctx)
	until := workflow.Now(ctx)
	if !r.cancelSent.IsZero() {
		until = r.cancelSent
	}
	until = until.Add(r.in.Options.CancelTimeout)
	if r.cancelSent.IsZero() {
		r.cancelSent = workflow.Now(ctx)
		workflow.Go(ctx, r.sendCancellation)
	}
	over := await(ctx, until.Sub(workflow.Now(ctx)), "wait for the solver to stop", func() bool { return r.interrupted(ctx) })
	if over {
		r.end(job.StateCancelled, reason+" (the solver did not answer)")
	}
}

func (r *jobRun) sendCancellation(ctx workflow.Context) {
	r.courier.flying++
	defer func() { r.courier.flying-- }()
	body, err := job.Encode(job.Update{
		Name: r.in.Job.Name, CorrelationID: r.in.Job.CorrelationID,
		Step: string(job.StatusCancelled), Status: job.StatusCancelled, Reason: clip(r.cancel.Reason, job.MaxReasonLength),
	})
	if err == nil {
		err = r.say(ctx, "send the cancellation", job.KindUpdate, body)
	}
	if err != nil {
		workflow.GetLogger(ctx).Warn("cancellation could not be sent", "error", err)
	}
}

// confirm waits until both sides have read what they were sent, and until the last receipts have reached the solver.
func (r *jobRun) confirm(ctx workflow.Context) {
	r.snap.State = job.StateConfirming
	r.show(ctx)
	over := await(ctx, r.left(ctx), "deadline of the job, while read receipts are awaited", func() bool {
		return r.settled(ctx) || workflow.GetInfo(ctx).GetContinueAsNewSuggested()
	})
	switch {
	case over:
		r.unconfirmed("the job's time ran out before every message was read")
	case !r.settled(ctx):
		return // a new run is needed first
	case len(r.unread()) > 0:
		r.unconfirmed("not read in time")
	default:
		await(ctx, r.in.Options.ReceiptTimeout, "wait for the last delivery feedback", r.quiet)
		r.end(r.ending, r.snap.Reason)
	}
}

// unconfirmed ends a job some of whose messages were never read. A job that failed keeps its own ending.
func (r *jobRun) unconfirmed(why string) {
	ids := r.unread()
	if r.ending != job.StateCompleted {
		r.end(r.ending, fmt.Sprintf("%s (%d messages unread)", r.snap.Reason, len(ids)))
		return
	}
	more := ""
	if n := len(ids) - 3; n > 0 {
		ids, more = ids[:3], fmt.Sprintf(" and %d more", n)
	}
	r.end(job.StateUnconfirmed, fmt.Sprintf("done, but %s: %s%s", why, strings.Join(ids, ", "), more))
}

// settled reports whether every message that asks for a receipt was read or given up.
func (r *jobRun) settled(ctx workflow.Context) bool {
	for _, t := range r.courier.tracked {
		if r.open(t) {
			return false
		}
	}
	return r.reader.idle() || len(r.unread()) > 0
}

// open reports whether a receipt for t is still awaited.
func (r *jobRun) open(t *job.Tracked) bool {
	return t.Row.Kind.Confirmed() && t.Row.ReadAt.IsZero() && t.Row.Refused == "" &&
		r.waits[t.Row.ID] < r.in.Options.ReceiptAttempts
}

// unread returns the IDs of the messages that asked for a receipt and got none.
func (r *jobRun) unread() []string {
	var ids []string
	for _, t := range r.courier.tracked {
		if t.Row.Kind.Confirmed() && t.Row.ReadAt.IsZero() {
			ids = append(ids, t.Row.ID)
		}
	}
	return ids
}

// quiet reports whether nothing of the job is on its way any more, as far as the hub's feedback tells.
func (r *jobRun) quiet() bool {
	for _, t := range r.courier.tracked {
		if t.Row.Refused == "" && t.Row.Outcome == "" && t.Row.DeliveredAt.IsZero() {
			return false
		}
	}
	return r.courier.idle() && r.reader.idle()
}

// rest brings everything to a halt that a new run can't take over; false means that the job ended meanwhile.
func (r *jobRun) rest(ctx workflow.Context) bool {
	r.courier.paused, r.reader.paused = true, true
	err := workflow.Await(ctx, func() bool {
		return r.courier.flying == 0 && !r.reader.sending && workflow.AllHandlersFinished(ctx)
	})
	if err != nil {
		return false
	}
	r.drain(ctx)
	return true
}

// drain applies the signals that have come but were not received yet.
func (r *jobRun) drain(ctx workflow.Context) {
	drain(ctx, job.SignalInbound, func(in job.Inbound) { r.inbound(ctx, in) })
	drain(ctx, job.SignalReceived, r.received)
	drain(ctx, job.SignalFeedback, r.courier.feedback)
}

// awaitReturns gives messages that go back to the queue the time to get there.
func (r *jobRun) awaitReturns(ctx workflow.Context) {
	await(ctx, time.Minute, "wait for what is still on its way", r.courier.idle)
}

// close removes what the job has made, whatever became of it.
func (r *jobRun) close(ctx workflow.Context) {
	r.snap.State = job.StateClosing
	r.show(ctx)
	if r.ending == "" && r.published {
		err := workflow.SignalExternalWorkflow(ctx, job.SolveWorkflowID(r.snap.JobID), "", job.SignalClose,
			job.Close{Reason: r.snap.Reason}).Get(ctx, nil)
		if err != nil {
			workflow.GetLogger(ctx).Info("no solver to tell that the job is over", "error", err)
		}
	}
	r.host.disconnect(ctx)
	_ = workflow.Await(ctx, func() bool { return r.negotiating == 0 }) // ctx does not end
	_, err := call(ctx, job.Deregister, job.DeregisterInput{DeviceIDs: []string{r.schedulerID(), r.solverID()}},
		workflow.ActivityOptions{
			TaskQueue:              job.TaskQueueRegistry,
			ScheduleToCloseTimeout: cleanUpTimeout,
			Summary:                "deregister identities of the scheduler's and the solver's device",
		})
	if err != nil {
		workflow.GetLogger(ctx).Error("device identities were not removed", "error", err)
		r.snap.Reason = strings.TrimPrefix(r.snap.Reason+"; the device identities could not be removed", "; ")
	}
	r.drain(ctx) // what came too late still shows in the audit
	r.snap.State, r.snap.EndedAt = r.outcome, workflow.Now(ctx).UTC()
	r.show(ctx)
}
