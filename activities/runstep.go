package activities

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.temporal.io/sdk/activity"

	"github.com/hubjobs/hubjobs/job"
)

// errStepTimeout is the cause of the context of a step that took longer than it may.
var errStepTimeout = errors.New("the step's time is up")

// RunStep reports a step In Progress, runs it, and reports it Completed. A step that fails or runs out of time is an
// output: the workflow decides whether it is run again and what is reported. What an earlier attempt has done, by its
// heartbeat, by in.Resume or by what this host remembers, is not done again.
func (h *Host) RunStep(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
	if in.Index < 0 || in.Step == "" || in.Sequence < 1 {
		return job.RunStepOutput{}, invalid("run step", fmt.Errorf("no step %q with index %d and sequence %d can be",
			in.Step, in.Index, in.Sequence))
	}
	r := &stepRun{host: h, in: in, progress: resumed(ctx, in.Resume)}
	r.beat = startHeartbeat(ctx, r.progress)
	defer r.beat.stop()
	var err error
	if r.turn, err = h.memory.take(ctx, in.Session.WorkflowID); err != nil {
		return job.RunStepOutput{}, fmt.Errorf("wait for an earlier attempt to end: %w", err)
	}
	defer r.turn.release()
	if r.turn.step == keyOf(in) {
		r.progress.Ran, r.progress.Output = true, r.turn.output
	}
	return r.run(ctx)
}

// stepRun is one attempt at RunStep.
type stepRun struct {
	host     *Host
	in       job.RunStepInput
	progress job.StepProgress
	beat     *heartbeat[job.StepProgress]
	turn     *turn
}

func (r *stepRun) run(ctx context.Context) (job.RunStepOutput, error) {
	if !r.progress.Reported && !r.progress.Ran {
		if err := r.report(ctx, job.StatusInProgress, r.in.Sequence); err != nil {
			return job.RunStepOutput{}, err
		}
		r.progress.Reported = true
		r.beat.update(ctx, r.progress)
	}
	if !r.progress.Ran {
		out, err := r.step(ctx)
		if err != nil || out.Status == job.StatusFailed {
			return out, err
		}
		r.turn.step, r.turn.output = keyOf(r.in), out.Output
		r.progress.Ran, r.progress.Output = true, out.Output
		r.checkpoint(ctx)
	}
	// Also when ctx has just ended: the hub may take a report that this attempt gives up on, and then the workflow's own
	// last word, which has the same sequence and ID, would be dropped as a repetition.
	if err := r.report(context.WithoutCancel(ctx), job.StatusCompleted, r.in.Sequence+1); err != nil {
		return job.RunStepOutput{}, err
	}
	return job.RunStepOutput{Status: job.StatusCompleted, Output: r.progress.Output}, nil
}

// step runs the step itself within its time, and only as long as the worker goes on.
func (r *stepRun) step(ctx context.Context) (job.RunStepOutput, error) {
	ctx, release := untilStopped(ctx)
	defer release()
	if r.in.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.in.Timeout, errStepTimeout)
		defer cancel()
	}
	out, err := r.host.Steps.Run(ctx, r.in)
	switch {
	case err == nil:
		return out, nil
	case errors.Is(context.Cause(ctx), errStepTimeout):
		out.Status, out.Reason = job.StatusFailed, fmt.Sprintf("timed out after %s", r.in.Timeout)
		return out, nil
	case errors.Is(context.Cause(ctx), ErrStopping):
		err = ErrStopping
	}
	return job.RunStepOutput{}, fmt.Errorf("run step %d (%s): %w", r.in.Index+1, r.in.Step, err)
}

// checkpoint makes sure that the server knows that the step has run before anybody else learns it: throttled
// heartbeats alone could be lost with the process, and the step would be run again. If the server can't be reached,
// the ordinary heartbeat, which carries the same, goes on trying, and the host remembers.
func (r *stepRun) checkpoint(ctx context.Context) {
	r.beat.update(ctx, r.progress)
	if r.host.Checkpoints == nil {
		return
	}
	// Also when ctx has just ended: the step is done, whoever goes on with the job.
	_, err := withDeadline(context.WithoutCancel(ctx), func(ctx context.Context) (job.None, error) {
		return job.None{}, r.host.Checkpoints.RecordActivityHeartbeat(ctx, activity.GetInfo(ctx).TaskToken, r.progress)
	})
	if err != nil {
		activity.GetLogger(ctx).Warn("a step's completion could not be recorded at once", "step", r.in.Index+1, "error", line(err))
	}
}

func (r *stepRun) report(ctx context.Context, status job.Status, sequence int) error {
	id := r.in.JobID
	body, err := job.Encode(job.Update{
		Name:          r.in.JobName,
		CorrelationID: id,
		Step:          r.in.Step,
		Status:        status,
	})
	if err != nil {
		return invalid("encode update", err)
	}
	m := job.Message{
		ID:              job.MessageID(id, job.RoleSolver, sequence),
		CorrelationID:   id,
		Kind:            job.KindUpdate,
		Sequence:        sequence,
		ContentType:     job.ContentTypeJSON,
		ContentEncoding: job.ContentEncodingUTF8,
		Body:            body,
	}
	_, err = withDeadline(ctx, func(ctx context.Context) (job.None, error) {
		return job.None{}, r.host.publish(ctx, r.in.Session, m)
	})
	return err
}

// resumed joins what the workflow knows of earlier attempts with what the last attempt's heartbeat says.
func resumed(ctx context.Context, known *job.StepProgress) job.StepProgress {
	p := lastDetails[job.StepProgress](ctx)
	if known != nil {
		p.Reported = p.Reported || known.Reported
		if known.Ran && !p.Ran {
			p.Ran, p.Output = true, known.Output
		}
	}
	return p
}

// untilStopped returns a context that also ends, with the cause ErrStopping, when the worker begins to stop. A step
// may take hours; the worker's stop time is for recording and reporting one that has just ended.
func untilStopped(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := activity.GetWorkerStopChannel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-stop:
			cancel(ErrStopping)
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel(nil)
		watch.Wait()
	}
}
