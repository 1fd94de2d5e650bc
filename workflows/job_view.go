package workflows

import (
	"fmt"
	"strings"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

var (
	statusKey = temporal.NewSearchAttributeKeyKeyword(job.SearchAttributeStatus)
	stepKey   = temporal.NewSearchAttributeKeyKeyword(job.SearchAttributeStep)
)

// snapshot returns what people see of the job now.
func (r *jobRun) snapshot() job.Snapshot {
	s := r.snap
	s.Messages = r.courier.count(func(m job.MessageRow) bool { return m.Kind.Confirmed() })
	s.Receipts = r.courier.count(func(m job.MessageRow) bool { return m.Kind == job.KindReceipt })
	return s
}

// show brings the web UI up to date: search attributes only when they change, as each change is an event of the history.
func (r *jobRun) show(ctx workflow.Context) {
	s := r.snapshot()
	workflow.SetCurrentDetails(ctx, details(s))
	if s.State == r.shown.State && s.Step == r.shown.Step {
		return
	}
	r.shown = s
	updates := []temporal.SearchAttributeUpdate{statusKey.ValueSet(string(s.State))}
	if s.Step != "" {
		updates = append(updates, stepKey.ValueSet(clip(s.Step, maxSummary)))
	}
	if err := workflow.UpsertTypedSearchAttributes(ctx, updates...); err != nil {
		workflow.GetLogger(ctx).Warn("search attributes were not set", "error", err)
	}
}

// details returns the job's progress as Markdown.
func details(s job.Snapshot) string {
	var b strings.Builder
	fmt.Fprintf(&b, "**%s**", s.State)
	if s.Reason != "" {
		fmt.Fprintf(&b, ": %s", s.Reason)
	}
	fmt.Fprintf(&b, "\n\n%d of %d steps done", s.StepsDone, len(s.Steps))
	if s.Step != "" {
		fmt.Fprintf(&b, "; last report: %s: %s", s.Step, s.Status)
	}
	fmt.Fprintf(&b, "\n\n- job and updates: %s, %d read", rungs(s.Messages), s.Messages.Read)
	fmt.Fprintf(&b, "\n- read receipts: %s\n", rungs(s.Receipts))
	return b.String()
}

func rungs(n job.Counts) string {
	s := fmt.Sprintf("%d sent, %d accepted, %d delivered", n.Sent, n.Accepted, n.Delivered)
	if n.Resent > 0 {
		s += fmt.Sprintf(", %d sent again", n.Resent)
	}
	if n.Refused > 0 {
		s += fmt.Sprintf(", %d refused", n.Refused)
	}
	return s
}
