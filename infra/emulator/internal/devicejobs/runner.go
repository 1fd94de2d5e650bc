package devicejobs

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Hub is what a Runner needs of a hub. All methods may be called at once.
type Hub interface {
	// Admit is asked before each operation on jobs.
	Admit(op hub.Operation, t hub.Target, bytes int) error
	// MeterJSON is told what an operation answers, if that counts.
	MeterJSON(op hub.Operation, t hub.Target, answer any)
	// Query returns pages whose items are of type hub.Twin for SELECT *.
	Query(q hub.Query) (hub.QueryPage, error)
	InvokeMethod(ctx context.Context, t hub.Target, call hub.MethodCall) (hub.MethodResult, error)
	PatchTwin(ctx context.Context, t hub.Target, p hub.TwinPatch, match hub.IfMatch) (hub.Twin, error)
}

// Options tune a Runner. The zero value is ready to use.
type Options struct {
	// MaxActive is how many jobs may be due or running at once; default 1, as
	// for an S1 hub.
	MaxActive int
	// Logger gets failures to write to the store; nil means none.
	Logger *slog.Logger
}

// Runner holds the jobs of a hub and runs them. It is safe for concurrent use.
type Runner struct {
	hub   Hub
	store store.Store
	opts  Options
	log   *slog.Logger

	wake chan struct{} // has a value when the dispatcher should look
	stop context.CancelFunc
	done chan struct{} // closed when nothing runs any more

	mu     sync.Mutex // guards all below, with all of the jobs
	jobs   map[string]*job
	active int // jobs that run
}

// job is a job with its devices.
type job struct {
	record
	devices []*deviceJob // in order, and the same while the job runs
	// accepted is whether the caller was, or may be, told that there is such a
	// job: it is in the store.
	accepted bool
	// stored is closed when accepted is decided; nil for jobs that were in the
	// store at the start.
	stored chan struct{}
	// cancel ends a job that runs; nil while it doesn't.
	cancel context.CancelCauseFunc
}

// Open returns a runner with the jobs in the store, and goes on with those that
// had not ended. The context bounds nothing but the opening.
func Open(ctx context.Context, s store.Store, h Hub, opts Options) (*Runner, error) {
	jobs, err := load(s)
	if err != nil {
		return nil, err
	}
	opts.MaxActive = cmp.Or(opts.MaxActive, DefaultMaxActive)
	r := &Runner{
		hub: h, store: s, opts: opts, log: opts.Logger, jobs: jobs,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	now := time.Now().UTC()
	for _, j := range jobs {
		if err := <-r.save(j.recover(now)...); err != nil {
			return nil, err
		}
	}
	r.prune(now)
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	go r.dispatch(ctx)
	return r, nil
}

// Close waits until nothing runs any more. Jobs that have not ended go on with
// the next runner of the store.
func (r *Runner) Close() {
	r.stop()
	<-r.done
}

// Create accepts a job. CodeJobAlreadyExists if there is one of that ID,
// CodeTooManyActiveJobs if it is to start now and others are under way.
func (r *Runner) Create(j Job) (Job, error) {
	if err := r.hub.Admit(hub.OpJob, hub.Target{}, 0); err != nil {
		return Job{}, err
	}
	now := time.Now().UTC()
	if err := j.normalise(now); err != nil {
		return Job{}, err
	}
	r.prune(now)
	created, saved, err := r.add(j, now)
	if err != nil {
		if created != nil && created.stored != nil {
			// Who hears that there is such a job may take it for accepted.
			<-created.stored
		}
		return Job{}, err
	}
	defer close(created.stored)
	err = <-saved
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.jobs, j.ID)
		return Job{}, err
	}
	created.accepted = true
	r.nudge()
	return created.view(), nil
}

// add puts a new job among the others. With an error it returns the one that has
// the ID already, if that is why.
func (r *Runner) add(j Job, now time.Time) (*job, <-chan error, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.jobs[j.ID]; other != nil {
		return other, nil, hub.Errorf(hub.CodeJobAlreadyExists, "there is a job %q already", j.ID)
	}
	if !j.Start.After(now) {
		j.State = Queued
		if n := r.underWay(); n >= r.opts.MaxActive {
			return nil, nil, hub.Errorf(hub.CodeTooManyActiveJobs, "%d of at most %d jobs are under way", n, r.opts.MaxActive)
		}
	}
	created := &job{record: record{Job: j}, stored: make(chan struct{})}
	r.jobs[j.ID] = created
	return created, r.save(&created.record), nil
}

// underWay counts the jobs that run or could.
func (r *Runner) underWay() int {
	n := 0
	for _, j := range r.jobs {
		if j.State == Queued || j.State == Running {
			n++
		}
	}
	return n
}

// Get returns a job, or CodeJobNotFound.
func (r *Runner) Get(id string) (Job, error) {
	if err := r.hub.Admit(hub.OpJob, hub.Target{}, 0); err != nil {
		return Job{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	j, err := r.find(id)
	if err != nil {
		return Job{}, err
	}
	return j.view(), nil
}

func (r *Runner) find(id string) (*job, error) {
	if j := r.jobs[id]; j != nil && j.accepted {
		return j, nil
	}
	return nil, hub.Errorf(hub.CodeJobNotFound, "there is no job %q", id)
}

// Cancel ends a job. Devices that had their turn stay as they are. A job that
// has ended by itself stays so: CodeInvalidOperation.
func (r *Runner) Cancel(id string) (Job, error) {
	if err := r.hub.Admit(hub.OpJob, hub.Target{}, 0); err != nil {
		return Job{}, err
	}
	cancelled, saved, err := r.cancel(id)
	if err != nil {
		return Job{}, err
	}
	return cancelled, <-saved
}

func (r *Runner) cancel(id string) (Job, <-chan error, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j, err := r.find(id)
	switch {
	case err != nil:
		return Job{}, nil, err
	case j.State == Cancelled:
	case j.State.ended():
		return Job{}, nil, hub.Errorf(hub.CodeInvalidOperation, "job %q has ended", id)
	default:
		j.end(time.Now().UTC(), Cancelled, "")
	}
	if j.cancel != nil {
		j.cancel(errCancelled)
	}
	return j.view(), r.save(&j.record), nil
}

// prune forgets the jobs whose time in the history is over.
func (r *Runner) prune(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, j := range r.jobs {
		if j.End != nil && j.cancel == nil && now.Sub(j.End.Time) > History {
			delete(r.jobs, id)
			r.store.Submit(nil, store.DeletePrefix(jobKeys(id)))
		}
	}
}

// nudge has the dispatcher look for work.
func (r *Runner) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// view returns the job as callers see it.
func (j *job) view() Job {
	view := j.Job
	if j.Began.IsZero() {
		return view
	}
	view.Statistics = new(Statistics)
	for _, d := range j.devices {
		view.Statistics.count(d)
	}
	return view
}

func (j *job) end(now time.Time, state State, failure string) {
	j.State, j.Failure, j.End = state, failure, &hub.Time{Time: now}
}

// sorted returns jobs in the order of their creation.
func (r *Runner) sorted() []*job {
	jobs := make([]*job, 0, len(r.jobs))
	for _, j := range r.jobs {
		if j.accepted {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b *job) int {
		return cmp.Or(a.Created.Compare(b.Created.Time), strings.Compare(a.ID, b.ID))
	})
	return jobs
}
