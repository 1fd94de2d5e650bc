package backoff_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/azure/internal/backoff"
)

func TestNextDoublesUpToMax(t *testing.T) {
	t.Parallel()
	b := backoff.Backoff{Initial: time.Second, Max: 5 * time.Second}
	for round := range 2 {
		for i, step := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
			if got := b.Next(); got < step/2 || got > step {
				t.Errorf("round %d, attempt %d: waits %s, want between %s and %s", round, i, got, step/2, step)
			}
		}
		b.Reset()
	}
}

func TestInitialNeverExceedsMax(t *testing.T) {
	t.Parallel()
	b := backoff.Backoff{Initial: time.Minute, Max: time.Second}
	if got := b.Next(); got > time.Second {
		t.Errorf("waits %s", got)
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := backoff.Wait(t.Context(), time.Hour); err != nil || time.Since(start) != time.Hour {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := backoff.Wait(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
