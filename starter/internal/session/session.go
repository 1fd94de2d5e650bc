// Package session follows a job for a person or a program and answers signals: it asks before it cancels, keeps
// following a job that was told to stop, and lets go of one when asked again. A job never ends because its follower
// does.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
	"github.com/hubjobs/hubjobs/starter/show"
)

// cancelPause is how long to wait before a cancellation that nobody recorded is sent again.
const cancelPause = time.Second

// Jobs is what a session needs of the jobs.
type Jobs interface {
	follow.Source
	// Cancel asks a job to stop and returns when that is recorded. Errors for which job.Retryable holds mean that it
	// isn't, and may be tried again.
	Cancel(ctx context.Context, id string, in job.CancelInput) (job.CancelOutput, error)
}

// Session is one job that is followed.
type Session struct {
	Jobs    Jobs
	JobID   string
	By      string // who cancels
	Printer show.Printer

	// Signals brings Ctrl-C (os.Interrupt) and requests to end (anything else).
	Signals <-chan os.Signal
	// Answers is read for the answer to a question; nil when nobody is there to be asked. A read from it may outlast
	// the session: a terminal can't be told to stop reading.
	Answers io.Reader
	// Questions is where questions go.
	Questions io.Writer
	// Sure makes Ctrl-C cancel without a question.
	Sure bool
	// Pace is how often to look; nil means the defaults.
	Pace *follow.Options
}

// DetachedError says that the session let go of a job that still runs.
type DetachedError struct {
	Signal os.Signal
}

// Error returns one line for people.
func (e *DetachedError) Error() string { return fmt.Sprintf("detached by signal: %v", e.Signal) }

// Follow shows the job until it ends and returns its last snapshot. The error is a *DetachedError when a signal ended
// the following.
func (s *Session) Follow(ctx context.Context) (job.Snapshot, error) {
	ctx, stop := context.WithCancel(ctx)
	r := &run{Session: s, news: make(chan follow.Event), ends: make(chan end, 1), cancelled: make(chan error, 1)}
	go r.follow(ctx)
	defer func() {
		stop()
		r.wait()
	}()
	for {
		if over, err := r.next(ctx); over || err != nil {
			return r.last.snapshot, err
		}
	}
}

// run is the state of one Follow. It belongs to the goroutine of Follow, but for what the channels carry.
type run struct {
	*Session
	news      chan follow.Event
	ends      chan end   // of the following goroutine, which sends one
	cancelled chan error // of a cancelling goroutine, each of which sends one
	answers   <-chan string

	over       bool // the following goroutine has ended
	asking     bool
	unanswered bool           // the answers have come to their end
	held       []follow.Event // what came while asking
	cancelling bool           // a cancellation is on its way
	recorded   bool           // the job has it in its history
	complained bool           // that it takes long was said
	last       end
}

type end struct {
	snapshot job.Snapshot
	err      error
}

func (r *run) follow(ctx context.Context) {
	s, err := follow.Job(ctx, r.Jobs, r.JobID, r.Pace, func(e follow.Event) error {
		select {
		case r.news <- e:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	r.ends <- end{s, err}
}

// wait returns when the goroutines of r have ended.
func (r *run) wait() {
	if !r.over {
		<-r.ends
	}
	if r.cancelling {
		<-r.cancelled
	}
}

// next handles one thing that happens; over is true when it was the last one.
func (r *run) next(ctx context.Context) (over bool, err error) {
	select {
	case e := <-r.news:
		return false, r.hear(e)
	case r.last = <-r.ends:
		r.over = true
		return true, errors.Join(r.leaveQuestion(), r.flush(), r.last.err)
	case sig := <-r.Signals:
		return false, r.interrupted(ctx, sig)
	case answer, ok := <-r.answers:
		return false, r.answered(ctx, answer, ok)
	case err := <-r.cancelled:
		return false, r.cancelReturned(ctx, err)
	}
}

// hear shows an event, but not into a question.
func (r *run) hear(e follow.Event) error {
	switch {
	case !r.asking:
		return r.Printer.Show(e)
	case e.Kind != follow.Tick:
		r.held = append(r.held, e)
	}
	return nil
}

func (r *run) flush() error {
	held := r.held
	r.asking, r.held = false, nil
	for _, e := range held {
		if err := r.Printer.Show(e); err != nil {
			return err
		}
	}
	return nil
}
