// Package boot starts the parts of a process one after the other, says on a stream how far it is, and stops them in
// the reverse order.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Part is something that runs in the background between its start and its close.
type Part struct {
	Name string // as people read it

	// Start returns when the part is ready for those after it. What it has started ends with the returned function,
	// which is nil when there is nothing to end, and not with ctx. After a failure nothing of it may run.
	Start func(ctx context.Context) (stop func() error, err error)
}

// Running is a set of started parts.
type Running struct {
	progress io.Writer
	started  []started
}

type started struct {
	name string
	stop func() error
}

// New returns an empty set that writes one line a part to progress.
func New(progress io.Writer) *Running { return &Running{progress: progress} }

// Start starts the parts in order. After a failure, or when ctx has ended in between, the parts that run already are
// left to Close.
func (r *Running) Start(ctx context.Context, parts ...Part) error {
	for _, part := range parts {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := r.start(ctx, part); err != nil {
			return fmt.Errorf("start %s: %w", part.Name, err)
		}
	}
	return nil
}

func (r *Running) start(ctx context.Context, part Part) error {
	fmt.Fprintf(r.progress, "starting %s ... ", part.Name)
	begin := time.Now()
	stop, err := part.Start(ctx)
	if err != nil {
		fmt.Fprintln(r.progress, "failed")
		return err
	}
	fmt.Fprintf(r.progress, "ready (%.1f s)\n", time.Since(begin).Seconds())
	if stop != nil {
		r.started = append(r.started, started{part.Name, stop})
	}
	return nil
}

// Close stops what was started, the last first, and goes on after a failure. A second Close does nothing.
func (r *Running) Close() error {
	var failures []error
	for i := len(r.started) - 1; i >= 0; i-- {
		if err := r.started[i].stop(); err != nil {
			failures = append(failures, fmt.Errorf("stop %s: %w", r.started[i].name, err))
		}
	}
	r.started = nil
	return errors.Join(failures...)
}
