// Package backoff says how long to wait before the next attempt.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff doubles the wait from Initial up to Max. It is for one goroutine.
type Backoff struct {
	Initial time.Duration // the first wait; more than 0
	Max     time.Duration // no wait is longer
	next    time.Duration
}

// Next returns the wait before the next attempt: a random time between half of the current step and all of it, so that
// clients which failed together don't come back together.
func (b *Backoff) Next() time.Duration {
	step := max(b.next, b.Initial)
	step = min(step, b.Max)
	b.next = min(2*step, b.Max)
	return step/2 + rand.N(step/2+1)
}

// Reset makes the next wait the first one again.
func (b *Backoff) Reset() { b.next = 0 }

// Wait returns after d, or earlier with ctx's error when ctx ends.
func Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
