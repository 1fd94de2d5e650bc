package activities

import (
	"context"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
)

// beats is how many heartbeats fit into a heartbeat timeout, so that a late one doesn't end the activity.
const beats = 3

// heartbeat keeps an activity alive with its latest details until it is stopped. Heartbeats are also how an activity
// learns that it was cancelled.
type heartbeat[T any] struct {
	mu      sync.Mutex // held while recording, so that older details never overtake newer ones
	details T
	stopped chan struct{}
	done    sync.WaitGroup
}

// startHeartbeat begins with details; the caller must call stop before the activity returns.
func startHeartbeat[T any](ctx context.Context, details T) *heartbeat[T] {
	h := &heartbeat[T]{details: details, stopped: make(chan struct{})}
	if timeout := activity.GetInfo(ctx).HeartbeatTimeout; timeout > 0 {
		h.done.Go(func() { h.run(ctx, timeout/beats) })
	}
	return h
}

func (h *heartbeat[T]) run(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		h.record(ctx)
		select {
		case <-ticker.C:
		case <-h.stopped:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (h *heartbeat[T]) record(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	activity.RecordHeartbeat(ctx, h.details)
}

// update records details now and with every later heartbeat.
func (h *heartbeat[T]) update(ctx context.Context, details T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.details = details
	activity.RecordHeartbeat(ctx, details)
}

// stop ends the heartbeat and waits until it has ended.
func (h *heartbeat[T]) stop() {
	close(h.stopped)
	h.done.Wait()
}

// lastDetails returns the details that an earlier attempt left; the zero value when there are none. Details of another
// shape, left by another version, count as none: the work is done again, which every activity allows.
func lastDetails[T any](ctx context.Context) T {
	var details T
	if activity.HasHeartbeatDetails(ctx) {
		if err := activity.GetHeartbeatDetails(ctx, &details); err != nil {
			activity.GetLogger(ctx).Warn("heartbeat details of the last attempt can't be read", "error", err)
			var none T
			return none
		}
	}
	return details
}
