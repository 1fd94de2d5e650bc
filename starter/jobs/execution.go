package jobs

import (
	"context"
	"fmt"
	"iter"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"

	"github.com/hubjobs/hubjobs/job"
)

// Execution is what the Temporal server by itself knows of a job, without a worker.
type Execution struct {
	JobID string `json:"jobId"`
	Name  string `json:"name,omitempty"` // empty unless a Client started the job
	// Status is the job's State where the namespace has the search attribute for it, else the workflow's status.
	Status    string    `json:"status"`
	Workflow  string    `json:"workflow"` // the workflow's status: Running, Completed, Failed, Canceled, Terminated, TimedOut
	Step      string    `json:"step,omitempty"`
	StartedAt time.Time `json:"startedAt"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
	RunID     string    `json:"runId"`
}

// Ended reports whether the job's workflow is closed.
func (e Execution) Ended() bool { return !e.EndedAt.IsZero() }

// Describe returns what the server knows of a job. The error matches job.ErrNotFound when that is nothing.
func (c *Client) Describe(ctx context.Context, id string) (Execution, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	op := fmt.Sprintf("find job %q", id)
	response, err := c.temporal.DescribeWorkflowExecution(ctx, job.JobWorkflowID(id), "")
	if err != nil {
		return Execution{}, classify(op, err)
	}
	info := response.GetWorkflowExecutionInfo()
	if name := info.GetType().GetName(); name != job.WorkflowJob {
		return Execution{}, &job.Error{Op: op, Kind: job.ErrNotFound, Err: fmt.Errorf("that is a workflow of type %s", name)}
	}
	return executionOf(info), nil
}

// Filter says which jobs List shows. The zero value means all.
type Filter struct {
	State job.State // only jobs in this state
}

func (f Filter) query() string {
	q := fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus != 'ContinuedAsNew'", job.WorkflowJob)
	if f.State != "" {
		q += fmt.Sprintf(" AND %s = '%s'", job.SearchAttributeStatus, f.State)
	}
	return q
}

// pageSize is how many jobs one call lists.
const pageSize = 100

// List yields the jobs of the namespace, first those that run, then those that ended last, and ends after the first error. The list comes from
// Temporal's visibility store, which runs a moment behind: never decide by it.
func (c *Client) List(ctx context.Context, f Filter) iter.Seq2[Execution, error] {
	return func(yield func(Execution, error) bool) {
		var token []byte
		for {
			page, err := c.page(ctx, f, token)
			if err != nil {
				yield(Execution{}, err)
				return
			}
			for _, info := range page.GetExecutions() {
				if !yield(executionOf(info), nil) {
					return
				}
			}
			if token = page.GetNextPageToken(); len(token) == 0 {
				return
			}
		}
	}
}

func (c *Client) page(ctx context.Context, f Filter, token []byte) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	page, err := c.temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
		PageSize: pageSize, Query: f.query(), NextPageToken: token,
	})
	return page, classify("list jobs", err)
}

func executionOf(info *workflowpb.WorkflowExecutionInfo) Execution {
	e := Execution{
		JobID:     info.GetExecution().GetWorkflowId(),
		RunID:     info.GetExecution().GetRunId(),
		Workflow:  info.GetStatus().String(),
		StartedAt: info.GetStartTime().AsTime(),
		Name:      text(info.GetMemo().GetFields()[memoName]),
		Status:    text(info.GetSearchAttributes().GetIndexedFields()[job.SearchAttributeStatus]),
		Step:      text(info.GetSearchAttributes().GetIndexedFields()[job.SearchAttributeStep]),
	}
	if info.GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
		e.EndedAt = info.GetCloseTime().AsTime()
	}
	// A workflow that was terminated had no time to say so: its last state is stale.
	if e.Status == "" || e.Ended() && !job.State(e.Status).Ended() {
		e.Status = e.Workflow
	}
	return e
}

// text reads a payload that should be a string. These are only shown, so one that isn't counts as missing.
func text(p *commonpb.Payload) string {
	var s string
	if p == nil || converter.GetDefaultDataConverter().FromPayload(p, &s) != nil {
		return ""
	}
	return s
}
