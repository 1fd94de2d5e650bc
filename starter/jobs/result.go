package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/hubjobs/hubjobs/job"
)

// retryInterval is the pause between attempts to reach a server that went away while a job's end is awaited.
const retryInterval = time.Second

// Result waits until the job has ended and returns its last snapshot. It needs no worker for a job that has ended
// already. A server that can't be reached is asked again until ctx ends.
func (c *Client) Result(ctx context.Context, id string) (job.Snapshot, error) {
	for {
		s, err := c.result(ctx, id)
		if !errors.Is(err, job.ErrUnavailable) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return job.Snapshot{}, context.Cause(ctx)
		case <-time.After(retryInterval):
		}
	}
}

func (c *Client) result(ctx context.Context, id string) (job.Snapshot, error) {
	var s job.Snapshot
	err := c.temporal.GetWorkflow(ctx, job.JobWorkflowID(id), "").Get(ctx, &s)
	var ended *temporal.WorkflowExecutionError
	switch {
	case ctx.Err() != nil:
		return job.Snapshot{}, context.Cause(ctx)
	case errors.As(err, &ended):
		if s, ok := resultIn(ended); ok {
			return s, nil
		}
		return c.aborted(ctx, id, ended), nil
	case err != nil:
		return job.Snapshot{}, classify(fmt.Sprintf("wait for job %q", id), err)
	}
	return s, nil
}

// resultIn returns the result that stands in the details of a Job workflow's failure: see job.Result.
func resultIn(err error) (job.Snapshot, bool) {
	var s job.Snapshot
	failed, ok := errors.AsType[*temporal.ApplicationError](err)
	if !ok || !failed.HasDetails() || failed.Details(&s) != nil {
		return job.Snapshot{}, false
	}
	return s, s.State.Ended()
}

// aborted is the snapshot of a job whose workflow ended without telling one. What only a worker knows is missing from
// it when none answers.
func (c *Client) aborted(ctx context.Context, id string, cause *temporal.WorkflowExecutionError) job.Snapshot {
	s, err := c.Snapshot(ctx, id)
	if err != nil {
		s = job.Snapshot{JobID: id}
	}
	if s.State.Ended() {
		return s
	}
	s.State, s.Reason = endOf(cause)
	if e, err := c.Describe(ctx, id); err == nil {
		s.StartedAt, s.EndedAt = e.StartedAt, e.EndedAt
		if s.Name == "" {
			s.Name = e.Name
		}
	}
	return s
}

// endOf tells in which state a job counts as ended when its workflow couldn't say so itself, and why.
func endOf(err *temporal.WorkflowExecutionError) (job.State, string) {
	switch cause := err.Unwrap(); {
	case isA[*temporal.CanceledError](cause):
		return job.StateCancelled, "the workflow was cancelled"
	case isA[*temporal.TimeoutError](cause):
		return job.StateExpired, "the workflow timed out"
	case isA[*temporal.TerminatedError](cause):
		return job.StateFailed, "the workflow was terminated; its device identities may still exist"
	default:
		return job.StateFailed, reasonOf(cause)
	}
}

func reasonOf(cause error) string {
	if failed, ok := errors.AsType[*temporal.ApplicationError](cause); ok {
		return failed.Message()
	}
	return cause.Error()
}
