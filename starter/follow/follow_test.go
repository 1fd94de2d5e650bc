package follow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
)

var errNobody = errors.New("nobody answers")

// script is a source that says what it was told to say at a time; it works inside a synctest bubble.
type script struct {
	mu    sync.Mutex
	looks int
	now   func() (job.Snapshot, error)
	ended chan job.Snapshot
	fail  error // of Result
}

func (s *script) Snapshot(ctx context.Context, _ string) (job.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	return s.now()
}

func (s *script) Result(ctx context.Context, _ string) (job.Snapshot, error) {
	select {
	case last := <-s.ended:
		return last, s.fail
	case <-ctx.Done():
		return job.Snapshot{}, context.Cause(ctx)
	}
}

func (s *script) set(now func() (job.Snapshot, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looks
}

func says(s job.Snapshot) func() (job.Snapshot, error) {
	return func() (job.Snapshot, error) { return s, nil }
}

func fails(err error) func() (job.Snapshot, error) {
	return func() (job.Snapshot, error) { return job.Snapshot{}, err }
}

// running returns the snapshot of a job that has applied n updates.
func running(n int) job.Snapshot {
	s := job.Snapshot{JobID: "job-1", Name: "N", State: job.StateRunning, Steps: []string{"a", "b", "Done"}}
	for i := range n {
		status := job.StatusInProgress
		if i%2 == 1 {
			status = job.StatusCompleted
			s.StepsDone++
		}
		s.Step, s.Status = s.Steps[i/2], status
		s.Updates = append(s.Updates, job.Applied{Sequence: i + 1, Step: s.Step, Status: status})
		s.Messages.Sent = i + 1
	}
	return s
}

// journal writes events down.
type journal struct{ lines []string }

func (j *journal) emit(e follow.Event) error {
	var line string
	switch e.Kind {
	case follow.Waiting:
		line = "waiting: " + e.Err.Error()
	case follow.Updated:
		line = fmt.Sprintf("update %d: %s %s", e.Number, e.Update.Step, e.Update.Status)
	case follow.Progress:
		line = fmt.Sprintf("progress: %s, %d sent", e.Snapshot.State, e.Snapshot.Messages.Sent)
	case follow.Ended:
		line = fmt.Sprintf("ended: %s, %d steps", e.Snapshot.State, len(e.Snapshot.Steps))
	case follow.Tick:
		return nil
	}
	j.lines = append(j.lines, line)
	return nil
}

// start follows src and returns a way to wait for the end.
func start(ctx context.Context, src follow.Source, emit func(follow.Event) error) func() (job.Snapshot, error) {
	type end struct {
		s   job.Snapshot
		err error
	}
	done := make(chan end, 1)
	go func() {
		s, err := follow.Job(ctx, src, "job-1", nil, emit)
		done <- end{s, err}
	}()
	return func() (job.Snapshot, error) {
		e := <-done
		return e.s, e.err
	}
}

func TestJobTellsEachThingOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &script{ended: make(chan job.Snapshot, 1), now: fails(errNobody)}
		var j journal
		wait := start(t.Context(), src, j.emit)
		after := func(now func() (job.Snapshot, error)) {
			time.Sleep(5 * time.Second) // many looks
			src.set(now)
		}
		after(says(job.Snapshot{State: job.StateScheduled}))
		after(says(running(1)))
		after(says(running(3)))
		after(fails(errNobody))
		after(says(running(3)))
		time.Sleep(5 * time.Second)
		last := running(6)
		last.State = job.StateCompleted
		src.ended <- last
		got, err := wait()
		if err != nil || got.State != job.StateCompleted {
			t.Fatalf("got %+v, %v", got, err)
		}
		want := []string{
			"waiting: nobody answers",
			"progress: Scheduled, 0 sent",
			"update 1: a In Progress",
			"progress: Running, 1 sent",
			"update 2: a Completed",
			"update 3: b In Progress",
			"progress: Running, 3 sent",
			"waiting: nobody answers",
			"progress: Running, 3 sent",
			"update 4: b Completed",
			"update 5: Done In Progress",
			"update 6: Done Completed",
			"ended: Completed, 3 steps",
		}
		if !slices.Equal(j.lines, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(j.lines, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestJobLooksLessOftenAtOneThatStands(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &script{ended: make(chan job.Snapshot, 1), now: says(running(1))}
		wait := start(t.Context(), src, func(follow.Event) error { return nil })
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := src.count(); n < 55 || n > 75 {
			t.Errorf("looked %d times in a minute at a job that stands, want about one a second", n)
		}
		before := src.count()
		updates := 0
		src.set(func() (job.Snapshot, error) {
			updates = min(updates+1, 6)
			s := running(updates)
			s.Messages.Read = src.looks
			return s, nil
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := src.count() - before; n < 300 {
			t.Errorf("looked %d times in a minute at a job that moves, want about 400", n)
		}
		src.ended <- running(6)
		if _, err := wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestJobEndsWithoutAWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &script{ended: make(chan job.Snapshot, 1), now: says(running(2))}
		var j journal
		wait := start(t.Context(), src, j.emit)
		time.Sleep(time.Second)
		src.set(fails(errNobody))
		time.Sleep(time.Second)
		src.ended <- job.Snapshot{JobID: "job-1", State: job.StateFailed, Reason: "terminated"}
		got, err := wait()
		if err != nil {
			t.Fatal(err)
		}
		if got.State != job.StateFailed || got.Reason != "terminated" || len(got.Steps) != 3 || got.StepsDone != 1 {
			t.Errorf("got %+v, want what was known before with the new state", got)
		}
		if end := j.lines[len(j.lines)-1]; end != "ended: Failed, 3 steps" {
			t.Errorf("last line %q", end)
		}
	})
}

func TestJobStops(t *testing.T) {
	t.Parallel()
	errMine := errors.New("mine")
	gone := &job.Error{Op: "ask", Kind: job.ErrNotFound}
	for _, test := range []struct {
		name string
		now  func() (job.Snapshot, error)
		emit func(follow.Event) error
		do   func(cancel context.CancelCauseFunc, src *script)
		want error
	}{
		{"when its context ends", says(running(1)), nil, func(cancel context.CancelCauseFunc, _ *script) { cancel(errMine) }, errMine},
		{"when nobody listens", says(running(1)), func(follow.Event) error { return errMine }, nil, errMine},
		{"when a tick is not heard", fails(errNobody), func(e follow.Event) error {
			if e.Kind == follow.Tick {
				return errMine
			}
			return nil
		}, nil, errMine},
		{"when there is no such job", fails(gone), nil, nil, job.ErrNotFound},
		{"when the result can't be had", says(running(1)), nil, func(_ context.CancelCauseFunc, src *script) {
			src.fail = errMine
			src.ended <- job.Snapshot{}
		}, errMine},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				src := &script{ended: make(chan job.Snapshot, 1), now: test.now}
				emit := test.emit
				if emit == nil {
					emit = func(follow.Event) error { return nil }
				}
				wait := start(ctx, src, emit)
				time.Sleep(2 * time.Second)
				if test.do != nil {
					test.do(cancel, src)
				}
				if _, err := wait(); !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
			})
		})
	}
}
