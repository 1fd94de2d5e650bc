package activities

import (
	"context"

	"go.temporal.io/sdk/activity"

	"github.com/hubjobs/hubjobs/job"
)

// Registrar takes activities. A Temporal worker is one.
type Registrar interface {
	RegisterActivityWithOptions(a any, options activity.RegisterOptions)
}

// Register registers fn as the activity that ref names. Who calls ref and who implements it thereby agree on the
// types, and every error passes through Failure on its way into the history.
func Register[In, Out any](r Registrar, ref job.Activity[In, Out], fn func(context.Context, In) (Out, error)) {
	r.RegisterActivityWithOptions(func(ctx context.Context, in In) (Out, error) {
		out, err := fn(ctx, in)
		return out, Failure(ctx, err)
	}, activity.RegisterOptions{Name: ref.Name})
}
