package activities

import (
	"context"
	"errors"
	"fmt"

	"go.temporal.io/api/serviceerror"

	"github.com/hubjobs/hubjobs/job"
)

// Signaler sends signals to workflows. A Temporal client is one.
type Signaler interface {
	SignalWorkflow(ctx context.Context, workflowID, runID, signalName string, arg any) error
}

// WorkflowRecorder records what a device receives in the history of the workflow that the device works for.
type WorkflowRecorder struct {
	Temporal Signaler
}

// Record returns when the workflow's history has m. The error matches job.ErrNotFound when the workflow has ended or
// never was; any other error is worth another try.
func (r *WorkflowRecorder) Record(ctx context.Context, s job.Session, m job.Message) error {
	received := job.Received{DeviceID: s.DeviceID, Messages: []job.Message{m}}
	_, err := withDeadline(ctx, func(ctx context.Context) (job.None, error) {
		return job.None{}, r.Temporal.SignalWorkflow(ctx, s.WorkflowID, "", job.SignalReceived, received)
	})
	if err == nil {
		return nil
	}
	kind := job.ErrUnavailable
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		kind = job.ErrNotFound
	}
	return &job.Error{Op: fmt.Sprintf("record message %q in workflow %q", m.ID, s.WorkflowID), Kind: kind, Err: err}
}
