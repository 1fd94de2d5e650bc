package workflows

import (
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

const (
	// defaultReceiptTimeout is how long a solver waits for the receipts of its last messages when the job doesn't say.
	defaultReceiptTimeout = 10 * time.Minute

	// defaultStepLimit bounds a step of a job without a step timeout and without a deadline.
	defaultStepLimit = 24 * time.Hour

	// reportSlack is how long a step may take, beyond its own time, to be reported.
	reportSlack = 10 * time.Minute
)

// Solve runs the steps of a job on a solver's host and reports each. It ends when the scheduler's side has read every
// report, when that does not happen in time, or when the job is over. A step that fails, a job that can't be run and a
// cancellation are results; Solve fails only when it can't do its work.
func Solve(ctx workflow.Context, in job.SolveInput) (job.SolveResult, error) {
	if err := in.Job.Validate(); err != nil {
		return job.SolveResult{}, temporal.NewNonRetryableApplicationError(err.Error(), job.ErrorType(err), err)
	}
	s := newSolveRun(in)
	work, stop := workflow.NewDisconnectedContext(ctx)
	defer stop()
	steps, stopSteps := workflow.WithCancel(work)
	s.stopSteps = stopSteps
	workflow.Go(work, s.receive)
	workflow.Go(work, s.reader.run)
	workflow.Go(ctx, func(ctx workflow.Context) {
		ctx.Done().Receive(ctx, nil)
		s.stop("the workflow was cancelled")
	})
	if late := in.Options.AcceptBefore; !late.IsZero() && workflow.Now(ctx).After(late) {
		s.result.Status, s.result.Reason = job.StatusRejected, "the job came too late: "+late.UTC().Format(time.RFC3339)
		return s.result, nil
	}
	if err := s.solve(work, steps); err != nil {
		return s.abandoned(err)
	}
	s.awaitReceipts(work)
	s.host.disconnect(work)
	return s.result, nil
}

// solveRun is the state of Solve.
type solveRun struct {
	in        job.SolveInput
	host      *host // of the solver's device
	reader    *reader
	rejected  job.AcceptOutput
	sequence  int  // of the next update
	attempted bool // the current step may have been reported In Progress
	result    job.SolveResult
	stopSteps func()
	stopped   string          // why the steps were stopped; empty while they may go on
	closed    bool            // the job is over, nobody listens any more
	finishing bool            // nothing but receipts is awaited any more
	seen      map[string]bool // messages that were read
	sent      []string        // own messages that the other side shall confirm
	confirmed map[string]bool // own messages that it has confirmed; a receipt may come before the step has returned
}

func newSolveRun(in job.SolveInput) *solveRun {
	id := in.Job.CorrelationID
	s := &solveRun{
		in: in, sequence: 1, result: job.SolveResult{JobID: id},
		seen: make(map[string]bool), confirmed: make(map[string]bool),
	}
	s.host = &host{
		session: job.Session{DeviceID: job.DeviceID(job.RoleSolver, id), WorkflowID: job.SolveWorkflowID(id)},
		connect: s.connect,
	}
	s.reader = &reader{
		jobID: id, role: job.RoleSolver, host: s.host, delay: receiptDelay, batch: job.MaxReceiptMessageCount,
		urgent: func() bool { return s.finishing || s.stopped != "" },
	}
	return s
}

// abandoned says how a job ended for a solver that could not go on.
func (s *solveRun) abandoned(err error) (job.SolveResult, error) {
	if gone(err) || s.closed {
		s.result.Status, s.result.Reason = job.StatusCancelled, "the job is over: "+line(err)
		return s.result, nil
	}
	return s.result, temporal.NewNonRetryableApplicationError(line(err), "Solve", err)
}

// receive takes what the solver's device got from the hub, and the end of the job.
func (s *solveRun) receive(ctx workflow.Context) {
	sel := workflow.NewSelector(ctx)
	on(ctx, sel, job.SignalReceived, s.received)
	on(ctx, sel, job.SignalClose, func(in job.Close) {
		s.closed = true
		s.stop("the job is over: " + in.Reason)
	})
	sel.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {})
	for ctx.Err() == nil {
		sel.Select(ctx)
	}
}

// received applies each message once and confirms it each time.
func (s *solveRun) received(in job.Received) {
	s.reader.confirm(in.Messages)
	for _, m := range in.Messages {
		if s.seen[m.ID] {
			continue
		}
		s.seen[m.ID] = true
		switch m.Kind {
		case job.KindReceipt:
			if r, err := job.DecodeReceipt(m.Body); err == nil {
				for _, id := range r.MessageIDs {
					s.confirmed[id] = true
				}
			}
		case job.KindUpdate:
			if u, err := job.DecodeUpdate(m.Body); err == nil && u.Status == job.StatusCancelled {
				s.stop(u.Reason)
			}
		}
	}
}

// unconfirmed counts the own messages whose receipt has not come.
func (s *solveRun) unconfirmed() int {
	n := 0
	for _, id := range s.sent {
		if !s.confirmed[id] {
			n++
		}
	}
	return n
}

// stop stops the steps; the first reason counts.
func (s *solveRun) stop(reason string) {
	if s.stopped == "" {
		if reason == "" {
			reason = "no reason given"
		}
		s.stopped = reason
		s.stopSteps()
	}
}

// solve runs the steps in steps' context and reports in work's, which outlives a cancellation.
func (s *solveRun) solve(work, steps workflow.Context) error {
	if err := s.host.do(work, func(string) error { return nil }); err != nil {
		return err
	}
	if step := s.rejected.RejectedStep; step != "" {
		return s.finish(work, step, job.StatusRejected, s.rejected.Rejection)
	}
	for i, step := range s.in.Job.Steps {
		s.show(work, i)
		s.attempted = false
		status, reason, err := s.run(steps, i)
		switch {
		case s.stopped != "" && status != job.StatusCompleted:
			return s.finish(work, step, job.StatusCancelled, s.stopped)
		case gone(err):
			return err
		case err != nil:
			return s.finish(work, step, job.StatusFailed, line(err))
		case status == job.StatusFailed:
			return s.finish(work, step, status, reason)
		}
		s.result.StepsRun++
		s.expectReceipts(2)
	}
	s.attempted = false
	s.result.Status = job.StatusCompleted
	if last := s.in.Job.Steps[len(s.in.Job.Steps)-1]; last != job.StepDone {
		return s.finish(work, job.StepDone, job.StatusCompleted, "")
	}
	return nil
}

// run runs a step, again if it fails and may be repeated.
func (s *solveRun) run(ctx workflow.Context, index int) (job.Status, string, error) {
	for attempt := 1; ; attempt++ {
		if s.stopped != "" {
			return "", "", nil
		}
		if d := s.in.Options.Deadline; !d.IsZero() && workflow.Now(ctx).After(d) {
			return job.StatusFailed, "the job's deadline has passed", nil
		}
		out, err := s.attempt(ctx, index, attempt)
		if err != nil || out.Status == job.StatusCompleted || attempt > s.in.Options.StepRetries {
			return out.Status, out.Reason, err
		}
		workflow.GetLogger(ctx).Warn("step failed, running it again", "step", s.in.Job.Steps[index], "reason", out.Reason)
	}
}

func (s *solveRun) attempt(ctx workflow.Context, index, attempt int) (job.RunStepOutput, error) {
	in := job.RunStepInput{
		Session: s.host.session, JobID: s.in.Job.CorrelationID, JobName: s.in.Job.Name,
		Step: s.in.Job.Steps[index], Index: index, Sequence: s.sequence, Attempt: attempt,
		Time: -1, Timeout: s.in.Options.StepTimeout,
	}
	if t := s.in.Options.StepTime; t != nil {
		in.Time = *t
	}
	s.attempted = true
	var out job.RunStepOutput
	err := s.host.do(ctx, func(taskQueue string) error {
		var err error
		out, err = call(ctx, job.RunStep, in, workflow.ActivityOptions{
			TaskQueue:              taskQueue,
			ScheduleToStartTimeout: scheduleToStartOnHost,
			StartToCloseTimeout:    s.stepLimit() + reportSlack,
			ScheduleToCloseTimeout: s.left(ctx) + s.stepLimit() + reportSlack,
			HeartbeatTimeout:       stepHeartbeat,
			WaitForCancellation:    true,
			Summary:                fmt.Sprintf("step %d of %d: %s", index+1, len(s.in.Job.Steps), s.in.Job.Steps[index]),
		})
		in.Resume = progress(err, in.Resume)
		return err
	})
	return out, err
}

// progress returns how far a step had come on a host that was lost.
func progress(err error, last *job.StepProgress) *job.StepProgress {
	var timeout *temporal.TimeoutError
	if !errors.As(err, &timeout) || !timeout.HasLastHeartbeatDetails() {
		return last
	}
	var p job.StepProgress
	if timeout.LastHeartbeatDetails(&p) != nil {
		return last
	}
	return &p
}

// left returns how long it is worth trying to run a step and to report it, through outages of hosts and hub.
func (s *solveRun) left(ctx workflow.Context) time.Duration {
	if d := s.in.Options.Deadline; !d.IsZero() {
		return max(0, d.Sub(workflow.Now(ctx)))
	}
	return cleanUpTimeout
}

func (s *solveRun) stepLimit() time.Duration {
	if t := s.in.Options.StepTimeout; t > 0 {
		return t
	}
	if t := s.in.Options.StepTime; t != nil && *t > defaultStepLimit {
		return *t
	}
	return defaultStepLimit
}

// expectReceipts counts the next n updates as sent.
func (s *solveRun) expectReceipts(n int) {
	for range n {
		s.sent = append(s.sent, job.MessageID(s.in.Job.CorrelationID, job.RoleSolver, s.sequence))
		s.sequence++
	}
}

// finish reports the solver's last word on the job. The In Progress report of a step that was attempted has the sequence
// before it and goes along: it may not have been sent, and arriving twice does no harm.
func (s *solveRun) finish(ctx workflow.Context, step string, status job.Status, reason string) error {
	s.result.Status, s.result.Reason = status, reason
	if s.closed {
		return nil
	}
	words := []job.Update{{Step: step, Status: status, Reason: clip(reason, job.MaxReasonLength)}}
	if s.attempted && status != job.StatusCompleted {
		words = append([]job.Update{{Step: step, Status: job.StatusInProgress}}, words...)
	}
	var messages []job.Message
	for i, u := range words {
		u.Name, u.CorrelationID = s.in.Job.Name, s.in.Job.CorrelationID
		body, err := job.Encode(u)
		if err != nil {
			return err
		}
		m := message(u.CorrelationID, job.RoleSolver, job.KindUpdate, body)
		m.Sequence = s.sequence + i
		m.ID = job.MessageID(u.CorrelationID, job.RoleSolver, m.Sequence)
		messages = append(messages, m)
	}
	s.expectReceipts(len(messages))
	return s.host.send(ctx, fmt.Sprintf("report %q %s", step, status), messages...)
}

// connect finds a solver process that holds the solver's device.
func (s *solveRun) connect(ctx workflow.Context) (job.ConnectOutput, error) {
	out, err := call(ctx, job.Accept, job.AcceptInput{Session: s.host.session, Job: s.in.Job}, workflow.ActivityOptions{
		TaskQueue:              job.TaskQueueSolver,
		ScheduleToCloseTimeout: cleanUpTimeout,
		Summary:                "accept the job, connect " + s.host.session.DeviceID,
	})
	s.rejected = out
	return out.ConnectOutput, err
}

// awaitReceipts waits until the other side has read everything, within reason.
func (s *solveRun) awaitReceipts(ctx workflow.Context) {
	s.finishing = true
	workflow.SetCurrentDetails(ctx, "waiting for the last read receipts")
	limit := s.in.Options.ReceiptTimeout
	if limit == 0 {
		limit = defaultReceiptTimeout
	}
	await(ctx, limit, "wait for the last read receipts", func() bool {
		return s.closed || s.unconfirmed() == 0 && s.reader.idle()
	})
	s.result.Unconfirmed = s.unconfirmed()
}

// show brings the web UI up to date.
func (s *solveRun) show(ctx workflow.Context, index int) {
	workflow.SetCurrentDetails(ctx, fmt.Sprintf("step %d of %d: **%s** on %s",
		index+1, len(s.in.Job.Steps), s.in.Job.Steps[index], s.host.at.Host))
}
