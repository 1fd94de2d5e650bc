package solver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/role"
)

// Starter is what the intake needs of Temporal. A Temporal client is one.
type Starter interface {
	ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error)
}

// Settlement settles a message of the topic. What is not settled comes again.
type Settlement interface {
	Complete(ctx context.Context) error
	DeadLetter(ctx context.Context, reason job.Reason, description string) error
}

// intake starts a Solve workflow for each job, once.
type intake struct {
	temporal Starter
	defaults job.SolverOptions // for what a job leaves to the solver
	log      *slog.Logger
}

// maxSummaryName is how many bytes of a job's name go into its workflow's summary, of which Temporal takes 400.
const maxSummaryName = 200

// start starts the job's Solve workflow and returns nil when it runs or has run, for whoever started it.
func (i *intake) start(ctx context.Context, j job.Job, o job.SolverOptions) error {
	_, err := i.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID:                    job.SolveWorkflowID(j.CorrelationID),
		TaskQueue:             job.TaskQueueSolver,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		// Else a workflow that runs already would look like one that was started just now.
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		StaticSummary:                            summary(j),
	}, job.WorkflowSolve, job.SolveInput{Job: j, Options: i.complete(o)})
	var started *serviceerror.WorkflowExecutionAlreadyStarted
	if errors.As(err, &started) {
		i.log.Debug("job was started already", "job", j.CorrelationID)
		return nil
	}
	return err
}

func summary(j job.Job) string {
	name := j.Name
	if len(name) > maxSummaryName {
		name = strings.ToValidUTF8(name[:maxSummaryName], "") + "..."
	}
	if len(j.Steps) == 1 {
		return fmt.Sprintf("solve %q: 1 step", name)
	}
	return fmt.Sprintf("solve %q: %d steps", name, len(j.Steps))
}

// complete replaces what o leaves to the solver.
func (i *intake) complete(o job.SolverOptions) job.SolverOptions {
	if o.StepTime == nil {
		o.StepTime = i.defaults.StepTime
	}
	if o.StepTimeout == 0 {
		o.StepTimeout = i.defaults.StepTimeout
	}
	if o.StepRetries == 0 {
		o.StepRetries = i.defaults.StepRetries
	}
	if o.ReceiptTimeout == 0 {
		o.ReceiptTimeout = i.defaults.ReceiptTimeout
	}
	return o
}

// take handles one message of the topic. It settles the message, unless ctx ends first.
func (i *intake) take(ctx context.Context, m job.Message, s Settlement) {
	j, o, err := decode(m)
	if err != nil {
		i.settle("dead-letter", m, s.DeadLetter(ctx, job.ReasonInvalidMessage, err.Error()))
		return
	}
	err = role.Retry(ctx, i.log, "start "+job.SolveWorkflowID(j.CorrelationID), func(ctx context.Context) error {
		return i.start(ctx, j, o)
	})
	switch {
	case err == nil:
		i.settle("complete", m, s.Complete(ctx))
	case ctx.Err() == nil:
		i.settle("dead-letter", m, s.DeadLetter(ctx, job.ReasonInvalidMessage, err.Error()))
	}
}

func decode(m job.Message) (job.Job, job.SolverOptions, error) {
	j, err := job.DecodeJob(m.Body)
	if err != nil {
		return job.Job{}, job.SolverOptions{}, err
	}
	o, err := activities.ParseSolverProperties(m.Properties)
	return j, o, err
}

// settle logs how it went. A message that could not be settled comes again, and then its workflow has been started.
func (i *intake) settle(how string, m job.Message, err error) {
	if err != nil {
		i.log.Warn("a job's message could not be settled", "how", how, "message", m.ID, "error", err)
	} else if how != "complete" {
		i.log.Warn("a job's message is not a job", "message", m.ID)
	}
}
