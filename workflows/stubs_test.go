package workflows_test

import (
	"context"

	"github.com/stretchr/testify/mock"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

const anything = mock.Anything

// matchQueue matches the context of an activity that runs on a task queue.
func matchQueue(name string) any {
	return mock.MatchedBy(func(ctx context.Context) bool { return activity.GetInfo(ctx).TaskQueue == name })
}

// scheduleToStartTimeout is what a workflow gets when nobody polls a task queue.
func scheduleToStartTimeout() error {
	return temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)
}

// scheduleToStartTimeoutAfter is the same after an attempt that had recorded a heartbeat.
func scheduleToStartTimeoutAfter(progress job.StepProgress) error {
	return temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil, progress)
}

func decodeInput(next *workflow.ContinueAsNewError, v any) error {
	return converter.GetDefaultDataConverter().FromPayloads(next.Input, v)
}
