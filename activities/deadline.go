package activities

import (
	"context"
	"time"
)

// CallTimeout bounds a single call to a service, so that a connection that hangs costs one attempt and not the
// activity's whole time.
const CallTimeout = 20 * time.Second

func withDeadline[T any](ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	return call(ctx)
}
