package router

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/role"
)

// Feedback brings the hub's delivery feedback into the workflows.
type Feedback struct {
	Workflows Workflows
	Counter   Counter
	Log       *slog.Logger
}

// Handle returns nil when every record is in the history of the workflow that sent the message, or that workflow is
// over. After an error the whole batch may be handled again: the workflows take repeats.
func (f *Feedback) Handle(ctx context.Context, records []job.FeedbackRecord) error {
	var pairs []string
	byPair := make(map[string][]job.FeedbackRecord)
	for _, r := range records {
		_, pair, ok := job.ParseDeviceID(r.DeviceID)
		if !ok {
			f.drop("feedback for a device that is not one of a pair", r)
			continue
		}
		if byPair[pair] == nil {
			pairs = append(pairs, pair)
		}
		byPair[pair] = append(byPair[pair], r)
	}
	for _, pair := range pairs {
		if err := f.record(ctx, pair, byPair[pair]); err != nil {
			return err
		}
	}
	return nil
}

// record signals the workflow of a pair: the job, else the relay. Neither is started for feedback's sake.
func (f *Feedback) record(ctx context.Context, pair string, records []job.FeedbackRecord) error {
	for _, workflowID := range []string{job.JobWorkflowID(pair), job.RelayWorkflowID(pair)} {
		err := role.Bounded(ctx, func(ctx context.Context) error {
			return f.Workflows.SignalWorkflow(ctx, workflowID, "", job.SignalFeedback, job.Feedback{Records: records})
		})
		switch {
		case err == nil:
			for _, r := range records {
				f.Counter.Feedback(r.Outcome, true)
			}
			return nil
		case role.Permanent(err):
			f.Log.Warn("a workflow takes no more feedback", "workflow", workflowID, "error", err)
		case !role.NotFound(err):
			return &job.Error{Op: fmt.Sprintf("record feedback in workflow %q", workflowID), Kind: job.ErrUnavailable, Err: err}
		}
	}
	for _, r := range records {
		f.drop("feedback for a workflow that is over", r)
	}
	return nil
}

func (f *Feedback) drop(why string, r job.FeedbackRecord) {
	f.Counter.Feedback(r.Outcome, false)
	f.Log.Debug(why, "device", r.DeviceID, "message", r.MessageID, "outcome", r.Outcome)
}
