package session_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/internal/session"
	"github.com/hubjobs/hubjobs/starter/jobs"
	"github.com/hubjobs/hubjobs/starter/show"
)

// pipeline is a job that runs until it is told to end, or is cancelled.
type pipeline struct {
	mu      sync.Mutex
	snap    job.Snapshot
	ended   chan struct{}
	cancels []job.CancelInput
	refuse  []error // answers to the next cancellations
}

func newPipeline() *pipeline {
	return &pipeline{
		snap:  job.Snapshot{JobID: "job-1", State: job.StateRunning, Steps: []string{"a", "Done"}},
		ended: make(chan struct{}),
	}
}

func (p *pipeline) Snapshot(context.Context, string) (job.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snap, nil
}

func (p *pipeline) Result(ctx context.Context, _ string) (job.Snapshot, error) {
	select {
	case <-p.ended:
		return p.Snapshot(ctx, "")
	case <-ctx.Done():
		return job.Snapshot{}, context.Cause(ctx)
	}
}

func (p *pipeline) Cancel(_ context.Context, _ string, in job.CancelInput) (job.CancelOutput, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancels = append(p.cancels, in)
	if len(p.refuse) > 0 {
		err := p.refuse[0]
		p.refuse = p.refuse[1:]
		return job.CancelOutput{}, err
	}
	return job.CancelOutput{State: p.snap.State}, nil
}

func (p *pipeline) update(step string, status job.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snap.Updates = append(p.snap.Updates, job.Applied{Sequence: len(p.snap.Updates) + 1, Step: step, Status: status})
}

func (p *pipeline) end(state job.State) {
	p.mu.Lock()
	p.snap.State = state
	p.mu.Unlock()
	close(p.ended)
}

func (p *pipeline) cancelled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.cancels)
}

// screen is what a person sees: output and questions.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// person is a session with somebody at a terminal. It lives in a synctest bubble.
type person struct {
	t        *testing.T
	pipeline *pipeline
	screen   *screen
	signals  chan os.Signal
	keyboard *io.PipeWriter
	session  *session.Session
	done     chan error
	last     job.Snapshot
}

func sitDown(t *testing.T) *person {
	in, keyboard := io.Pipe()
	t.Cleanup(func() { keyboard.Close() })
	p := &person{
		t: t, pipeline: newPipeline(), screen: &screen{}, signals: make(chan os.Signal, 4), keyboard: keyboard, done: make(chan error, 1),
	}
	p.session = &session.Session{
		Jobs: p.pipeline, JobID: "job-1", By: "ann", Printer: show.Plain(p.screen, &show.Options{Location: time.UTC}),
		Signals: p.signals, Answers: in, Questions: p.screen,
	}
	return p
}

func (p *person) follow() *person {
	go func() {
		last, err := p.session.Follow(p.t.Context())
		p.last = last
		p.done <- err
	}()
	p.pass()
	return p
}

// pass lets some looks at the job pass.
func (p *person) pass() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

func (p *person) signal(s os.Signal) {
	p.signals <- s
	p.pass()
}

func (p *person) types(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.keyboard, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
	p.pass()
}

func (p *person) sees(want string) {
	p.t.Helper()
	if got := p.screen.String(); !strings.Contains(got, want) {
		p.t.Errorf("the screen shows\n%s\nwant %q", got, want)
	}
}

func (p *person) doesNotSee(text string) {
	p.t.Helper()
	if got := p.screen.String(); strings.Contains(got, text) {
		p.t.Errorf("the screen shows\n%s\nwant no %q", got, text)
	}
}

// end expects the session to end by itself now.
func (p *person) end() error {
	p.t.Helper()
	p.pass()
	select {
	case err := <-p.done:
		p.keyboard.Close()
		synctest.Wait()
		return err
	default:
		p.t.Fatalf("the session goes on; the screen shows\n%s", p.screen)
		return nil
	}
}

func (p *person) endsWell(state job.State) {
	p.t.Helper()
	if err := p.end(); err != nil || p.last.State != state {
		p.t.Errorf("ended with %s, %v; want %s", p.last.State, err, state)
	}
}

func (p *person) detaches(by os.Signal) {
	p.t.Helper()
	var detached *session.DetachedError
	if err := p.end(); !errors.As(err, &detached) || detached.Signal != by {
		p.t.Errorf("ended with %v, want to be detached by %v", err, by)
	}
	p.sees("Attach again with: starter attach job-1")
}

const question = "Are you sure you want to cancel? (y/n) "

// at runs a test in a bubble of its own, so that no time passes for real.
func at(t *testing.T, name string, test func(t *testing.T, p *person)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) { test(t, sitDown(t)) })
	})
}

func TestFollow(t *testing.T) {
	t.Parallel()
	at(t, "to the end", func(_ *testing.T, p *person) {
		p.follow()
		p.pipeline.update("a", job.StatusInProgress)
		p.pass()
		p.sees("[1/2] a: In Progress")
		p.pipeline.end(job.StateCompleted)
		p.endsWell(job.StateCompleted)
	})
	at(t, "yes cancels and follows on", func(t *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.sees("\n" + question)
		p.types("y")
		if got := p.pipeline.cancels; len(got) != 1 || got[0] != (job.CancelInput{Reason: "on request", By: "ann"}) {
			t.Errorf("cancelled with %+v", got)
		}
		p.pipeline.update("Cancelled", job.StatusCancelled)
		p.pass()
		p.sees("Cancelled")
		p.pipeline.end(job.StateCancelled)
		p.endsWell(job.StateCancelled)
	})
	at(t, "no goes on", func(t *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.types("n")
		p.pipeline.update("a", job.StatusInProgress)
		p.pass()
		p.sees("a: In Progress")
		p.signal(os.Interrupt)
		p.types("NO")
		if n := strings.Count(p.screen.String(), question); n != 2 {
			t.Errorf("asked %d times, want twice", n)
		}
		if p.pipeline.cancelled() != 0 {
			t.Error("no was taken for yes")
		}
		p.pipeline.end(job.StateCompleted)
		p.endsWell(job.StateCompleted)
	})
	at(t, "nonsense is asked again", func(t *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.types("maybe")
		p.types("")
		if n := strings.Count(p.screen.String(), question); n != 3 {
			t.Errorf("asked %d times, want three times", n)
		}
		p.types("Yes")
		if p.pipeline.cancelled() != 1 {
			t.Error("not cancelled")
		}
		p.pipeline.end(job.StateCancelled)
		p.endsWell(job.StateCancelled)
	})
	at(t, "nothing is written into a question", func(_ *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.pipeline.update("a", job.StatusInProgress)
		p.pass()
		p.doesNotSee("a: In Progress")
		p.types("n")
		p.sees("a: In Progress")
		p.pipeline.end(job.StateCompleted)
		p.endsWell(job.StateCompleted)
	})
	at(t, "the job ends during the question", func(_ *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.pipeline.update("Done", job.StatusCompleted)
		p.pipeline.end(job.StateCompleted)
		p.endsWell(job.StateCompleted)
		p.sees(question + "\n")
		p.sees("Done: Completed")
		p.sees("Completed; ")
	})
	at(t, "words typed unasked mean nothing", func(t *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.types("n")
		p.types("y")
		if p.pipeline.cancelled() != 0 {
			t.Error("cancelled unasked")
		}
		p.pipeline.end(job.StateCompleted)
		p.endsWell(job.StateCompleted)
	})
}

func TestDetach(t *testing.T) {
	t.Parallel()
	at(t, "a second Ctrl-C in the question", func(t *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.pipeline.update("a", job.StatusInProgress)
		p.pass()
		p.signal(os.Interrupt)
		p.detaches(os.Interrupt)
		p.sees("a: In Progress")
		p.sees("Detached: the job goes on.")
		if p.pipeline.cancelled() != 0 {
			t.Error("detaching cancelled the job")
		}
	})
	at(t, "Ctrl-C after yes", func(_ *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.types("y")
		p.signal(os.Interrupt)
		p.detaches(os.Interrupt)
		p.sees("goes on being cancelled")
	})
	at(t, "nobody to ask", func(t *testing.T, p *person) {
		p.session.Answers = nil
		p.follow().signal(os.Interrupt)
		p.detaches(os.Interrupt)
		p.doesNotSee(question)
		if p.pipeline.cancelled() != 0 {
			t.Error("cancelled without a question")
		}
	})
	at(t, "the keyboard was unplugged", func(_ *testing.T, p *person) {
		p.follow().signal(os.Interrupt)
		p.keyboard.Close()
		p.pass()
		p.sees(question + "\n")
		p.signal(os.Interrupt)
		p.detaches(os.Interrupt)
	})
	at(t, "SIGTERM", func(_ *testing.T, p *person) {
		p.follow().signal(syscall.SIGTERM)
		p.detaches(syscall.SIGTERM)
	})
}

func TestCancelWithoutAQuestion(t *testing.T) {
	t.Parallel()
	away := &job.Error{Op: "cancel", Kind: job.ErrUnavailable}
	at(t, "Ctrl-C cancels, another one detaches", func(t *testing.T, p *person) {
		p.session.Sure, p.session.Answers = true, nil
		p.follow().signal(os.Interrupt)
		p.doesNotSee(question)
		if p.pipeline.cancelled() != 1 {
			t.Error("not cancelled")
		}
		p.signal(os.Interrupt)
		p.detaches(os.Interrupt)
	})
	at(t, "tries until somebody records it", func(t *testing.T, p *person) {
		p.session.Sure = true
		p.pipeline.refuse = []error{away, jobs.ErrNoWorker, away}
		p.follow().signal(os.Interrupt)
		if n := p.pipeline.cancelled(); n != 4 {
			t.Errorf("sent %d requests, want 4", n)
		}
		if n := strings.Count(p.screen.String(), "Not cancelled yet"); n != 1 {
			t.Errorf("complained %d times, want once", n)
		}
		p.pipeline.end(job.StateCancelled)
		p.endsWell(job.StateCancelled)
	})
	at(t, "nobody has recorded it yet", func(_ *testing.T, p *person) {
		p.session.Sure = true
		p.pipeline.refuse = slices.Repeat([]error{away}, 100)
		p.follow().signal(os.Interrupt)
		p.signal(os.Interrupt)
		if err := p.end(); !errors.As(err, new(*session.DetachedError)) {
			p.t.Errorf("ended with %v", err)
		}
		p.sees("Detached: the job was asked to stop, but nobody has confirmed that yet. Attach again with: starter attach job-1")
	})
	at(t, "the job had ended", func(_ *testing.T, p *person) {
		p.session.Sure = true
		p.pipeline.refuse = []error{&jobs.EndedError{JobID: "job-1"}}
		p.follow().signal(os.Interrupt)
		p.doesNotSee("Not cancelled")
		p.pipeline.end(job.StateCompleted)
		p.endsWell(job.StateCompleted)
	})
	at(t, "a refusal is shown and may be tried again", func(t *testing.T, p *person) {
		p.session.Sure = true
		p.pipeline.refuse = []error{&job.Error{Op: "cancel", Kind: job.ErrInvalid, Err: errors.New("too late")}}
		p.follow().signal(os.Interrupt)
		p.sees("Not cancelled: cancel: invalid: too late")
		p.signal(os.Interrupt)
		if n := p.pipeline.cancelled(); n != 2 {
			t.Errorf("sent %d requests, want 2", n)
		}
		p.pipeline.end(job.StateCancelled)
		p.endsWell(job.StateCancelled)
	})
}

// deaf is a terminal that was closed.
type deaf struct{}

func (deaf) Write([]byte) (int, error) { return 0, errors.New("no terminal") }

func TestFollowEndsWhenItCantBeSeen(t *testing.T) {
	t.Parallel()
	at(t, "output", func(t *testing.T, p *person) {
		p.session.Printer = show.Plain(deaf{}, nil)
		if err := p.follow().end(); err == nil || !strings.Contains(err.Error(), "no terminal") {
			t.Errorf("got %v", err)
		}
	})
	at(t, "question", func(t *testing.T, p *person) {
		p.session.Questions = deaf{}
		p.follow().signal(os.Interrupt)
		if err := p.end(); err == nil || !strings.Contains(err.Error(), "no terminal") {
			t.Errorf("got %v", err)
		}
	})
}
