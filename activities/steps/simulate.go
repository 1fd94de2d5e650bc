package steps

import (
	"context"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// DefaultStepTime is how long a simulated step takes unless the solver or the job says otherwise.
const DefaultStepTime = 6 * time.Second

// Simulate runs any step by waiting.
type Simulate struct {
	StepTime time.Duration // of a step whose job doesn't say; 0 is no time at all
}

// Check accepts every step.
func (Simulate) Check([]string) (step, reason string) { return "", "" }

// Run waits for the step's time or until ctx ends, and then returns the context's cause.
func (s Simulate) Run(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
	wait := in.Time
	if wait < 0 {
		wait = s.StepTime
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return job.RunStepOutput{Status: job.StatusCompleted}, nil
	case <-ctx.Done():
		return job.RunStepOutput{}, context.Cause(ctx)
	}
}
