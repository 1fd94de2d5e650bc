// Package jobs starts, reads and cancels jobs: what package job agrees on, spoken over a Temporal client. It knows
// nothing of workers; whoever polls the task queue of jobs does the work.
package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/job"
)

const (
	// callTimeout bounds a call that the Temporal server answers by itself.
	callTimeout = 10 * time.Second

	// answerTimeout bounds a call that a worker has to answer. The server itself would wait for a worker as long as
	// it is allowed to.
	answerTimeout = 5 * time.Second

	// cancelTimeout bounds a cancellation: it waits for a worker too, but asking again costs a person's patience.
	cancelTimeout = 15 * time.Second

	// healthTimeout bounds the question whether the server is there at all.
	healthTimeout = 2 * time.Second

	// memoName is the name of the memo that carries the job's name into lists.
	memoName = "name"
)

// Client reaches the jobs of one Temporal namespace. Its methods may be called from any goroutine. Their errors match
// the kinds of package job, and ErrNoWorker or ErrEnded where that is said.
type Client struct {
	temporal client.Client
}

// New returns a client over c, which stays the caller's to close.
func New(c client.Client) *Client { return &Client{temporal: c} }

// Start starts the Job workflow of in.Job, whose ID becomes the workflow ID. A job ID is used once: the error matches
// job.ErrExists when there was ever a job of that ID, running or ended.
func (c *Client) Start(ctx context.Context, in job.JobInput) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	id := in.Job.CorrelationID
	_, err := c.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID:                                       job.JobWorkflowID(id),
		TaskQueue:                                job.TaskQueueJobs,
		WorkflowIDReusePolicy:                    enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		WorkflowIDConflictPolicy:                 enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		StaticSummary:                            summary(in),
		StaticDetails:                            details(in),
		Memo:                                     map[string]any{memoName: in.Job.Name},
	}, job.WorkflowJob, in)
	return classify(fmt.Sprintf("start job %q", id), err)
}

// Snapshot asks the job's worker where the job stands. The error matches ErrNoWorker when none answers.
func (c *Client) Snapshot(ctx context.Context, id string) (job.Snapshot, error) {
	var s job.Snapshot
	err := c.query(ctx, id, job.QueryStatus, &s)
	return s, err
}

// Audit asks the job's worker for every message of the job. The error matches ErrNoWorker when none answers.
func (c *Client) Audit(ctx context.Context, id string) (job.Audit, error) {
	var a job.Audit
	err := c.query(ctx, id, job.QueryAudit, &a)
	return a, err
}

func (c *Client) query(ctx context.Context, id, query string, answer any) error {
	limited, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	value, err := c.temporal.QueryWorkflow(limited, job.JobWorkflowID(id), "", query)
	if err != nil {
		return c.classifyAnswer(ctx, fmt.Sprintf("ask job %q", id), err)
	}
	if err := value.Get(answer); err != nil {
		return fmt.Errorf("read the %s of job %q: %w", query, id, err)
	}
	return nil
}

// Cancel asks the job to stop, and returns when the request is recorded in its history. The error matches ErrEnded
// when the job has ended already, and ErrNoWorker when nobody recorded the request: it is void then.
func (c *Client) Cancel(ctx context.Context, id string, in job.CancelInput) (job.CancelOutput, error) {
	out, err := c.update(ctx, id, in)
	if err == nil {
		return out, nil
	}
	err = c.classifyAnswer(ctx, fmt.Sprintf("cancel job %q", id), err)
	if !errors.Is(err, job.ErrNotFound) {
		return job.CancelOutput{}, err
	}
	// The server gives the same error for a job that has ended as for one that never was.
	e, err := c.Describe(ctx, id)
	if err != nil {
		return job.CancelOutput{}, err
	}
	return job.CancelOutput{}, &EndedError{JobID: id, State: e.Status, At: e.EndedAt}
}

func (c *Client) update(ctx context.Context, id string, in job.CancelInput) (job.CancelOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, cancelTimeout)
	defer cancel()
	handle, err := c.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		UpdateID:     uuid.NewString(),
		WorkflowID:   job.JobWorkflowID(id),
		UpdateName:   job.UpdateCancel,
		Args:         []any{in},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err != nil {
		return job.CancelOutput{}, err
	}
	var out job.CancelOutput
	err = handle.Get(ctx, &out)
	return out, err
}
