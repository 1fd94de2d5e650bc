package role

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.temporal.io/api/serviceerror"
)

const (
	// CallTimeout bounds one call to Temporal.
	CallTimeout = 10 * time.Second

	// A call that Temporal didn't take is tried again after retryFirst, then twice that, up to retryMost.
	retryFirst = 250 * time.Millisecond
	retryMost  = 15 * time.Second
)

// Retry makes a call to Temporal until it succeeds, fails for good, or ctx ends. Those who hold a message under a lock
// rather wait here than give it back: each return counts against the message, and too many would dead-letter it.
func Retry(ctx context.Context, log *slog.Logger, what string, call func(context.Context) error) error {
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		err := Bounded(ctx, call)
		if err == nil || Permanent(err) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.Warn("Temporal did not take it yet", "call", what, "error", err, "retryIn", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Bounded makes one call to Temporal within CallTimeout.
func Bounded(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	return call(ctx)
}

// Permanent reports whether Temporal will never take the call: what it carries is too large, or too many of its like.
func Permanent(err error) bool {
	var invalid *serviceerror.InvalidArgument
	return errors.As(err, &invalid)
}

// NotFound reports whether Temporal says that no such workflow runs.
func NotFound(err error) bool {
	var missing *serviceerror.NotFound
	return errors.As(err, &missing)
}
