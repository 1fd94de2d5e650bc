// Package follow watches a job until it ends and tells what is new: each update of the solver once, each change of the
// job's state, and that it still waits. It decides nothing about how that looks.
package follow

import (
	"context"
	"reflect"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// Source is where the state of jobs comes from.
type Source interface {
	// Snapshot tells where a job stands. It has its own deadline; errors for which job.Retryable holds mean "not now".
	Snapshot(ctx context.Context, id string) (job.Snapshot, error)
	// Result waits until a job has ended and returns its last snapshot. It retries by itself what can be retried.
	Result(ctx context.Context, id string) (job.Snapshot, error)
}

// Kind tells what is new.
type Kind int

// The kinds of event.
const (
	Waiting  Kind = iota // nobody tells where the job stands; Err says why. Once until somebody does
	Progress             // the state, what the job waits for, or the counts of messages changed
	Updated              // the job applied Update
	Tick                 // nothing: some time has passed
	Ended                // Snapshot is the last one
)

// Event is one piece of news of a job. Its Snapshot is the newest known; it is zero before the first answer.
type Event struct {
	Kind     Kind
	JobID    string
	At       time.Time // when it was seen
	Snapshot job.Snapshot
	Update   job.Applied
	Number   int // of Update: 1, 2, ...
	Err      error
}

// Options are the settings of Job. Nil and zero values mean the defaults.
type Options struct {
	Shortest time.Duration // between two looks at a job that moves; default 150 ms
	Longest  time.Duration // between two looks at a job that doesn't; default 1 s
	Tick     time.Duration // between two Tick events; default 1 s
}

func (o *Options) withDefaults() Options {
	d := Options{Shortest: 150 * time.Millisecond, Longest: time.Second, Tick: time.Second}
	if o == nil {
		return d
	}
	for _, set := range []struct{ to, from *time.Duration }{
		{&d.Shortest, &o.Shortest}, {&d.Longest, &o.Longest}, {&d.Tick, &o.Tick},
	} {
		if *set.from > 0 {
			*set.to = *set.from
		}
	}
	return d
}

// Job follows the job of that ID until it ends and returns its last snapshot. It calls emit from its own goroutine, one
// event at a time, the last one of kind Ended; an error of emit ends it. When ctx ends first, its cause is returned.
func Job(ctx context.Context, src Source, id string, o *Options, emit func(Event) error) (job.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{id: id, emit: emit}
	looks, results := make(chan look), make(chan look, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		poll(ctx, src, id, o.withDefaults(), looks)
	}()
	go func() {
		s, err := src.Result(ctx, id)
		results <- look{s, err}
	}()
	waitForResult := func() { <-results }
	defer func() {
		cancel()
		<-stopped
		waitForResult()
	}()
	tick := time.NewTicker(o.withDefaults().Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return f.last, context.Cause(ctx)
		case r := <-results:
			waitForResult = func() {}
			return f.end(ctx, r)
		case l := <-looks:
			if err := f.see(l); err != nil {
				return f.last, err
			}
		case <-tick.C:
			if err := f.tell(Event{Kind: Tick}); err != nil {
				return f.last, err
			}
		}
	}
}

// look is one answer of the source.
type look struct {
	snapshot job.Snapshot
	err      error
}

// poll looks at the job again and again: soon while it moves, less and less often while it doesn't.
func poll(ctx context.Context, src Source, id string, o Options, looks chan<- look) {
	var last look
	pause := o.Shortest
	for {
		s, err := src.Snapshot(ctx, id)
		next := look{s, err}
		select {
		case looks <- next:
		case <-ctx.Done():
			return
		}
		if next.movedFrom(last) {
			pause = o.Shortest
		} else {
			pause = min(pause*3/2, o.Longest)
		}
		last = next
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (l look) movedFrom(before look) bool {
	return l.err == nil && changed(before.snapshot, l.snapshot)
}

// changed compares what people see move. The lists of steps and updates are compared by their length: the steps of a
// job never change, and updates are only added.
func changed(a, b job.Snapshot) bool {
	if len(a.Updates) != len(b.Updates) {
		return true
	}
	a.Updates, b.Updates, a.Steps, b.Steps = nil, nil, nil, nil
	return !reflect.DeepEqual(a, b)
}

// follower remembers what was told. It belongs to the goroutine of Job.
type follower struct {
	id      string
	emit    func(Event) error
	last    job.Snapshot
	told    int  // updates
	waiting bool // Waiting was the last word
}

func (f *follower) tell(e Event) error {
	e.JobID, e.At, e.Snapshot = f.id, time.Now(), f.last
	return f.emit(e)
}

func (f *follower) see(l look) error {
	switch {
	case l.err != nil && !job.Retryable(l.err):
		return l.err
	case l.err != nil && f.waiting:
		return nil
	case l.err != nil:
		f.waiting = true
		return f.tell(Event{Kind: Waiting, Err: l.err})
	}
	moved := f.waiting || changed(f.last, l.snapshot)
	f.waiting = false
	if !moved {
		return nil
	}
	return f.advance(l.snapshot, Event{Kind: Progress})
}

// advance tells the updates that s has more than what was told, then that it is the newest snapshot.
func (f *follower) advance(s job.Snapshot, then Event) error {
	f.last = s
	for ; f.told < len(s.Updates); f.told++ {
		if err := f.tell(Event{Kind: Updated, Update: s.Updates[f.told], Number: f.told + 1}); err != nil {
			return err
		}
	}
	return f.tell(then)
}

func (f *follower) end(ctx context.Context, r look) (job.Snapshot, error) {
	if ctx.Err() != nil {
		return f.last, context.Cause(ctx)
	}
	if r.err != nil {
		return f.last, r.err
	}
	s := r.snapshot
	if len(s.Steps) == 0 { // the workflow ended without a word: what was known before is better than nothing
		s.Name, s.Steps, s.StepsDone, s.Updates = f.last.Name, f.last.Steps, f.last.StepsDone, f.last.Updates
		s.Messages, s.Receipts = f.last.Messages, f.last.Receipts
	}
	return s, f.advance(s, Event{Kind: Ended})
}
