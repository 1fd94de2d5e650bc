package role

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
)

const (
	// DialTimeout is how long a role waits for the Temporal server when it starts: containers of one deployment start in
	// no particular order.
	DialTimeout = time.Minute

	// StopTimeout is how long a stopping worker waits for its running activities.
	StopTimeout = 10 * time.Second

	// heartbeatThrottle bounds how late an activity learns that it was cancelled, as it learns that from heartbeats.
	heartbeatThrottle = time.Second

	redialPause = time.Second
)

// Dial connects to Temporal, as identity, and waits for the server if it must.
func Dial(ctx context.Context, o client.Options, identity string, logger *slog.Logger) (client.Client, error) {
	o.Identity = identity
	o.Logger = log.NewStructuredLogger(logger)
	waiting, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	for {
		c, err := client.DialContext(waiting, o)
		if err == nil {
			return c, nil
		}
		logger.Info("waiting for the Temporal server", "address", address(o), "error", err)
		select {
		case <-time.After(redialPause):
		case <-waiting.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("connect to the Temporal server at %s: %w: is it running, and is TEMPORAL_ADDRESS right?", address(o), err)
		}
	}
}

func address(o client.Options) string {
	if o.HostPort == "" {
		return client.DefaultHostPort
	}
	return o.HostPort
}

// CheckTemporal reports whether the server answers.
func CheckTemporal(c client.Client) Check {
	return func(ctx context.Context) error {
		if _, err := c.CheckHealth(ctx, &client.CheckHealthRequest{}); err != nil {
			return fmt.Errorf("temporal: %w", err)
		}
		return nil
	}
}

// Queue is a task queue that a role works on.
type Queue struct {
	Name     string
	Options  worker.Options // those that all workers share are set by StartWorkers
	Register func(worker.Registry)
}

// Workers is the Temporal workers of one process.
type Workers struct {
	workers []worker.Worker
	fatal   chan error
}

// StartWorkers starts a worker for each queue, or none.
func StartWorkers(c client.Client, queues ...Queue) (*Workers, error) {
	w := &Workers{fatal: make(chan error, 1)}
	for _, q := range queues {
		o := q.Options
		o.DisableRegistrationAliasing = true
		o.MaxHeartbeatThrottleInterval = heartbeatThrottle
		o.WorkerStopTimeout = StopTimeout
		o.OnFatalError = func(err error) { w.fail(fmt.Errorf("worker of task queue %s: %w", q.Name, err)) }
		each := worker.New(c, q.Name, o)
		q.Register(each)
		if err := each.Start(); err != nil {
			w.Stop()
			return nil, fmt.Errorf("start the worker of task queue %s: %w", q.Name, err)
		}
		w.workers = append(w.workers, each)
	}
	return w, nil
}

// fail keeps the first error; after that the process ends anyway.
func (w *Workers) fail(err error) {
	select {
	case w.fatal <- err:
	default:
	}
}

// Run returns when ctx ends, or with an error when a worker can't go on. It does not stop the workers.
func (w *Workers) Run(ctx context.Context) error {
	select {
	case err := <-w.fatal:
		return err
	case <-ctx.Done():
		return nil
	}
}

// Stop stops all workers at once and waits until they have stopped.
func (w *Workers) Stop() {
	var wg sync.WaitGroup
	for _, each := range w.workers {
		wg.Go(each.Stop)
	}
	wg.Wait()
}

// Together runs all functions until the first of them fails or ctx ends; then the context of all ends. It returns when
// all have, with their errors joined. A function that returns nil early ends nothing.
func Together(ctx context.Context, functions ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(functions))
	var wg sync.WaitGroup
	for i, f := range functions {
		wg.Go(func() {
			if errs[i] = f(ctx); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
