package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/hubjobs/hubjobs/job"
)

var (
	// ErrNoWorker says that the Temporal server is there, but nobody who works on jobs.
	ErrNoWorker = errors.New("no manager worker answers for the job")

	// ErrEnded says that a job can't be changed any more.
	ErrEnded = errors.New("the job has ended")
)

// EndedError is an ErrEnded with the facts.
type EndedError struct {
	JobID string
	State string    // the job's state, or the workflow's status where that isn't known
	At    time.Time // when the job ended
}

// Error returns one line for people.
func (e *EndedError) Error() string {
	return fmt.Sprintf("job %q has ended already: %s at %s", e.JobID, e.State, e.At.UTC().Format(time.RFC3339))
}

// Is makes an EndedError match ErrEnded.
func (e *EndedError) Is(target error) bool { return target == ErrEnded }

// classify turns an error of the Temporal server into one of a kind of package job. It returns nil for nil.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	if missing, ok := errors.AsType[*serviceerror.NamespaceNotFound](err); ok {
		return &job.Error{Op: op, Kind: job.ErrNotFound, Err: fmt.Errorf("the Temporal server has no namespace %q", missing.Namespace)}
	}
	kind := kindOf(err)
	if kind == nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return &job.Error{Op: op, Kind: kind, Err: err}
}

func kindOf(err error) error {
	switch {
	case isA[*serviceerror.WorkflowExecutionAlreadyStarted](err):
		return job.ErrExists
	case isA[*serviceerror.NotFound](err):
		return job.ErrNotFound
	case isA[*serviceerror.InvalidArgument](err):
		return job.ErrInvalid
	case isA[*serviceerror.PermissionDenied](err):
		return job.ErrUnauthorized
	case isA[*serviceerror.ResourceExhausted](err):
		return job.ErrThrottled
	case isA[*serviceerror.Unavailable](err), timedOut(err):
		return job.ErrUnavailable
	}
	return nil
}

// classifyAnswer is classify for calls that a worker answers. The server says in three ways that there is none: it
// refuses because nobody polls, or because no worker has seen the workflow yet, or it waits until the time is up. Time
// is up too when the server itself went away, so that is asked.
func (c *Client) classifyAnswer(ctx context.Context, op string, err error) error {
	var refused *temporal.ApplicationError
	switch {
	case errors.As(err, &refused):
		return &job.Error{Op: op, Kind: job.ErrInvalid, Err: errors.New(refused.Message())}
	case timedOut(err) && !c.reachable(ctx):
		return &job.Error{Op: op, Kind: job.ErrUnavailable, Err: errors.New("the Temporal server can't be reached")}
	case isA[*serviceerror.FailedPrecondition](err), isA[*serviceerror.WorkflowNotReady](err), timedOut(err):
		return &noWorkerError{cause: err}
	}
	return classify(op, err)
}

// reachable reports whether the Temporal server answers a call that it can answer alone.
func (c *Client) reachable(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
	defer cancel()
	_, err := c.temporal.CheckHealth(ctx, &client.CheckHealthRequest{})
	return err == nil
}

func timedOut(err error) bool {
	return isA[*serviceerror.DeadlineExceeded](err) ||
		isA[*client.WorkflowUpdateServiceTimeoutOrCanceledError](err) ||
		errors.Is(err, context.DeadlineExceeded)
}

// noWorkerError reads as ErrNoWorker: how the server put it helps nobody who starts a job.
type noWorkerError struct {
	cause error
}

func (e *noWorkerError) Error() string   { return ErrNoWorker.Error() }
func (e *noWorkerError) Unwrap() []error { return []error{ErrNoWorker, e.cause} }

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
