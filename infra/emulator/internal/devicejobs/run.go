package devicejobs

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// workers is how many devices of a job have their turn at once.
const workers = 10

// throttled is how long to wait after a throttled call where the hub doesn't
// say.
const throttled = time.Second

// Why a job, or its turn on a device, ends early.
var (
	errCancelled   = hub.Errorf(hub.CodeInvalidOperation, "the job was cancelled")
	errTimeIsOver  = hub.Errorf(hub.CodeGatewayTimeout, "the maximum execution time of the job is over")
	errInterrupted = hub.Errorf(hub.CodeServiceUnavailable, "the hub restarted while the device was at work: whether it finished is unknown")
)

// dispatch starts jobs when they are due, until the context ends.
func (r *Runner) dispatch(ctx context.Context) {
	defer close(r.done)
	var running sync.WaitGroup
	defer running.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(r.startDue(func(j *job) {
			ctx, cancel := context.WithCancelCause(ctx)
			j.cancel = cancel
			running.Go(func() { r.run(ctx, j) })
		}))
		select {
		case <-timer.C:
		case <-r.wake:
		case <-ctx.Done():
			return
		}
	}
}

// startDue starts what is due and may run, and returns how long it is until the
// next job is due.
func (r *Runner) startDue(start func(*job)) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, next := time.Now(), History
	var due []*job
	for _, j := range r.sorted() {
		switch {
		case j.State.ended() || j.cancel != nil:
		case j.Start.After(now):
			next = min(next, j.Start.Sub(now))
		default:
			if j.State == Scheduled {
				j.State = Queued
			}
			due = append(due, j)
		}
	}
	slices.SortStableFunc(due, func(a, b *job) int { return a.Start.Compare(b.Start.Time) })
	for _, j := range due[:min(len(due), max(0, r.opts.MaxActive-r.active))] {
		r.active++
		start(j)
	}
	return next
}

// run runs a job to its end, or until the runner closes.
func (r *Runner) run(ctx context.Context, j *job) {
	defer r.release(j)
	if err := r.begin(ctx, j); err != nil {
		if ctx.Err() == nil {
			r.fail(ctx, j, err)
		}
		return
	}
	ctx, cancel := context.WithDeadlineCause(ctx, j.Began.Add(j.maxExecution()), errTimeIsOver)
	defer cancel()
	r.serve(ctx, j)
	if err := r.conclude(j, context.Cause(ctx)); err != nil {
		r.log.ErrorContext(ctx, "end job", "job", j.ID, "error", err)
	}
}

// release lets the next job run.
func (r *Runner) release(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j.cancel(nil)
	j.cancel = nil
	r.active--
	r.nudge()
}

// begin finds the job's devices, unless a runner before this one did. They and
// the beginning are in the store before the first has its turn.
func (r *Runner) begin(ctx context.Context, j *job) error {
	if !j.Began.IsZero() {
		return nil
	}
	asking, cancel := context.WithTimeoutCause(ctx, j.maxExecution(), errTimeIsOver)
	defer cancel()
	targets, err := r.targets(asking, j.query())
	if err != nil {
		return err
	}
	now := hub.Time{Time: time.Now().UTC()}
	devices, changes := make([]*deviceJob, len(targets)), make([]saved, len(targets)+1)
	for i, t := range targets {
		devices[i] = &deviceJob{DeviceID: t.DeviceID, ModuleID: t.ModuleID, JobID: j.ID, Type: j.Type, State: devicePending, Created: now, Updated: now}
		changes[i] = devices[i]
	}
	slices.SortFunc(devices, (*deviceJob).compare)
	changes[len(targets)] = &j.record
	r.mu.Lock()
	if j.State.ended() {
		r.mu.Unlock()
		return errCancelled
	}
	j.State, j.Began, j.devices = Running, now.Time, devices
	written := r.save(changes...)
	r.mu.Unlock()
	return <-written
}

// targets returns the devices, or modules, that a query selects.
func (r *Runner) targets(ctx context.Context, text string) ([]hub.Target, error) {
	var targets []hub.Target
	q := hub.Query{Text: text}
	for {
		var page hub.QueryPage
		err := patiently(ctx, func() (err error) {
			page, err = r.hub.Query(q)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, item := range page.Items {
			if twin, ok := item.(hub.Twin); ok {
				targets = append(targets, hub.Target{DeviceID: twin.DeviceID, ModuleID: twin.ModuleID})
			}
		}
		if q.Continuation = page.Continuation; q.Continuation == "" {
			return targets, nil
		}
	}
}

// patiently repeats a call that the hub throttles, until the context ends, and
// then returns its cause.
func patiently(ctx context.Context, call func() error) error {
	for {
		err := call()
		var e *hub.Error
		if !errors.As(err, &e) || e.Code != hub.CodeThrottling {
			return err
		}
		wait := e.RetryAfter
		if wait <= 0 {
			wait = throttled
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// serve gives each pending device its turn.
func (r *Runner) serve(ctx context.Context, j *job) {
	work := make(chan *deviceJob)
	var serving sync.WaitGroup
	act := r.action(j)
	for range min(workers, len(j.devices)) {
		serving.Go(func() {
			for d := range work {
				r.serveDevice(ctx, d, act)
			}
		})
	}
	for _, d := range j.devices {
		if d.State != devicePending {
			continue
		}
		select {
		case work <- d:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	close(work)
	serving.Wait()
}

// action is what a job does to one device.
type action func(context.Context, hub.Target) (*outcome, error)

func (r *Runner) action(j *job) action {
	if j.Type == UpdateTwin {
		return func(ctx context.Context, t hub.Target) (*outcome, error) {
			var u update
			if err := json.Unmarshal(j.Twin, &u); err != nil {
				return nil, err
			}
			_, err := r.hub.PatchTwin(ctx, t, u.TwinPatch, u.match())
			return &outcome{}, err
		}
	}
	return func(ctx context.Context, t hub.Target) (*outcome, error) {
		var m hub.CloudToDeviceMethod
		if err := json.Unmarshal(j.Method, &m); err != nil {
			return nil, err
		}
		result, err := r.hub.InvokeMethod(ctx, t, m.Call())
		return &outcome{Response: &result}, err
	}
}

// serveDevice gives a device its turn. That it has it is in the store before,
// because afterwards nobody could tell.
func (r *Runner) serveDevice(ctx context.Context, d *deviceJob, act action) {
	if err := r.change(d, func(now time.Time) { d.begin(now) }); err != nil {
		r.log.ErrorContext(ctx, "begin job on device", "job", d.JobID, "device", d.DeviceID, "error", err)
		return
	}
	var result *outcome
	err := patiently(ctx, func() (err error) {
		result, err = act(ctx, d.target())
		return err
	})
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		if err = context.Cause(ctx); !early(err) {
			return // the runner closes: the next one will see how far this one came
		}
	}
	if err := r.change(d, func(now time.Time) { d.conclude(now, result, err) }); err != nil {
		r.log.ErrorContext(ctx, "end job on device", "job", d.JobID, "device", d.DeviceID, "error", err)
	}
}

// early reports whether an error ends a job before all devices had their turn.
func early(err error) bool { return err == errCancelled || err == errTimeIsOver }

// conclude notes the end of a device's turn, or that it had none.
func (d *deviceJob) conclude(now time.Time, result *outcome, err error) {
	switch {
	case err == nil:
		d.finish(now, deviceCompleted, result, nil)
	case err == errCancelled:
		d.finish(now, deviceCanceled, nil, errorOf(err))
	default:
		d.finish(now, deviceFailed, nil, errorOf(err))
	}
}

// change changes a device and makes that durable.
func (r *Runner) change(d *deviceJob, f func(now time.Time)) error {
	r.mu.Lock()
	f(time.Now().UTC())
	written := r.save(d)
	r.mu.Unlock()
	return <-written
}

// conclude ends a job that was served, with why it was not served in full.
func (r *Runner) conclude(j *job, cause error) error {
	if cause != nil && !early(cause) {
		return nil // the runner closes
	}
	r.mu.Lock()
	now := time.Now().UTC()
	var changes []saved
	for _, d := range j.devices {
		if d.State == devicePending {
			d.conclude(now, nil, cause)
			changes = append(changes, d)
		}
	}
	switch {
	case j.State.ended(): // it was cancelled
	case cause == nil:
		j.end(now, Completed, "")
	default:
		j.end(now, Failed, hub.AsError(cause).Message)
	}
	written := r.save(append(changes, &j.record)...)
	r.mu.Unlock()
	return <-written
}

// fail ends a job that could not begin.
func (r *Runner) fail(ctx context.Context, j *job, cause error) {
	r.mu.Lock()
	if !j.State.ended() {
		j.end(time.Now().UTC(), Failed, hub.AsError(cause).Message)
	}
	written := r.save(&j.record)
	r.mu.Unlock()
	if err := <-written; err != nil {
		r.log.ErrorContext(ctx, "end job", "job", j.ID, "error", err)
	}
}
