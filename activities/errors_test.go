package activities

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/hubjobs/hubjobs/job"
)

func TestFailureClassifies(t *testing.T) {
	t.Parallel()
	benign := temporal.ApplicationErrorCategoryBenign
	for name, c := range map[string]struct {
		err          error
		typeName     string
		nonRetryable bool
		pause        time.Duration
		category     temporal.ApplicationErrorCategory
	}{
		"invalid":       {err: &job.Error{Kind: job.ErrInvalid}, typeName: "Invalid", nonRetryable: true},
		"not found":     {err: &job.Error{Kind: job.ErrNotFound}, typeName: "NotFound", nonRetryable: true},
		"too large":     {err: &job.Error{Kind: job.ErrTooLarge}, typeName: "TooLarge", nonRetryable: true},
		"exists":        {err: &job.Error{Kind: job.ErrExists}, typeName: "Exists", nonRetryable: true},
		"precondition":  {err: &job.Error{Kind: job.ErrPrecondition}, typeName: "Precondition", nonRetryable: true},
		"lock lost":     {err: &job.Error{Kind: job.ErrLockLost}, typeName: "LockLost", nonRetryable: true},
		"unavailable":   {err: &job.Error{Kind: job.ErrUnavailable}, typeName: "Unavailable"},
		"queue full":    {err: &job.Error{Kind: job.ErrQueueFull}, typeName: "QueueFull", category: benign},
		"throttled":     {err: &job.Error{Kind: job.ErrThrottled}, typeName: "Throttled", category: benign},
		"retry after":   {err: &job.Error{Kind: job.ErrThrottled, RetryAfter: 7 * time.Second}, typeName: "Throttled", category: benign, pause: 7 * time.Second},
		"unauthorized":  {err: &job.Error{Kind: job.ErrUnauthorized}, typeName: "Unauthorized", pause: unauthorizedPause},
		"quota":         {err: &job.Error{Kind: job.ErrQuota}, typeName: "Quota", pause: quotaPause},
		"offline":       {err: fmt.Errorf("%w: %w", ErrOffline, &job.Error{Kind: job.ErrUnavailable}), typeName: "Unavailable", category: benign},
		"stopping":      {err: fmt.Errorf("step 1: %w", ErrStopping), typeName: "Stopping", category: benign},
		"deadline":      {err: fmt.Errorf("send: %w", context.DeadlineExceeded), typeName: "Unavailable"},
		"no known kind": {err: errors.New("boom"), typeName: "Unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := application(t, Failure(t.Context(), c.err))
			if app.Type() != c.typeName || app.NonRetryable() != c.nonRetryable {
				t.Errorf("got type %q, non-retryable %v; want %q, %v", app.Type(), app.NonRetryable(), c.typeName, c.nonRetryable)
			}
			if app.NextRetryDelay() != c.pause || app.Category() != c.category {
				t.Errorf("got pause %s, category %v; want %s, %v", app.NextRetryDelay(), app.Category(), c.pause, c.category)
			}
			if app.Unwrap() != nil {
				t.Errorf("the cause %v would go into the history", app.Unwrap())
			}
		})
	}
}

func TestFailureMessageIsOneLineWithoutSecrets(t *testing.T) {
	t.Parallel()
	err := &job.Error{Op: "dial", Kind: job.ErrUnavailable, Err: errors.New(
		"refused\nHostName=hub;SharedAccessKey=abc+/=;DeviceId=d1\tSharedAccessSignature sr=hub&sig=def%3D&se=1 " + strings.Repeat("x", 2000))}
	got := application(t, Failure(t.Context(), err)).Message()
	for _, bad := range []string{"abc", "def", "\n", "\t"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q is in %q", bad, got)
		}
	}
	if !strings.HasPrefix(got, "dial: unavailable: refused HostName=hub;SharedAccessKey=(removed);DeviceId=d1") || len(got) > maxMessageLength {
		t.Errorf("got %d bytes: %q", len(got), got)
	}
}

func TestFailureKeepsCancellation(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Failure(ctx, &job.Error{Kind: job.ErrUnavailable, Err: context.Canceled}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancellation", err)
	}
}

func TestFailureKeepsApplicationErrors(t *testing.T) {
	t.Parallel()
	given := fmt.Errorf("wrapped: %w", temporal.NewApplicationError("as it is", "Mine"))
	if err := Failure(t.Context(), given); err != given {
		t.Errorf("got %v, want %v", err, given)
	}
	if err := Failure(t.Context(), nil); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}
