package activities

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/hubjobs/hubjobs/job"
)

// stepRunner counts runs and ends them as it is told to.
type stepRunner struct {
	reject string
	out    job.RunStepOutput
	err    error
	hang   bool          // until the context ends
	begun  chan struct{} // closed when the first run begins; may be nil
	late   bool          // the step ends well just as its context does

	mu   sync.Mutex
	runs []job.RunStepInput
}

func (r *stepRunner) Check(steps []string) (string, string) {
	if r.reject != "" && slices.Contains(steps, r.reject) {
		return r.reject, "can't"
	}
	return "", ""
}

func (r *stepRunner) Run(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
	r.mu.Lock()
	r.runs = append(r.runs, in)
	r.mu.Unlock()
	if r.begun != nil {
		close(r.begun)
	}
	if r.hang {
		<-ctx.Done()
		if !r.late {
			return job.RunStepOutput{Output: "half"}, context.Cause(ctx)
		}
	}
	if r.out.Status == "" {
		return job.RunStepOutput{Status: job.StatusCompleted, Output: "fine"}, r.err
	}
	return r.out, r.err
}

// checkpoints is a server that records heartbeats at once, or fails to.
type checkpoints struct {
	recorded []any
	err      error
}

func (c *checkpoints) RecordActivityHeartbeat(ctx context.Context, _ []byte, details ...any) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.recorded = append(c.recorded, details...)
	return c.err
}

func stepInput() job.RunStepInput {
	return job.RunStepInput{Session: session, JobID: "job-1", JobName: "Job 1", Step: "a", Index: 0, Sequence: 1, Attempt: 1}
}

// statuses returns what was published as "message ID: status".
func statuses(t *testing.T, d *devices) []string {
	t.Helper()
	var got []string
	for _, m := range d.sent {
		u, err := job.DecodeUpdate(m.Body)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.ID+": "+string(u.Status))
	}
	return got
}

const (
	inProgress = "job-1.solver.1: In Progress"
	completed  = "job-1.solver.2: Completed"
)

func TestRunStep(t *testing.T) {
	t.Parallel()
	done := job.RunStepOutput{Status: job.StatusCompleted, Output: "fine"}
	for name, c := range map[string]struct {
		details   any
		resume    *job.StepProgress
		runs      int
		published []string
		out       job.RunStepOutput
	}{
		"the first time":                          {nil, nil, 1, []string{inProgress, completed}, done},
		"reported by the last attempt":            {job.StepProgress{Reported: true}, nil, 1, []string{completed}, done},
		"reported, says the workflow":             {nil, &job.StepProgress{Reported: true}, 1, []string{completed}, done},
		"run by the last attempt":                 {job.StepProgress{Reported: true, Ran: true, Output: "before"}, nil, 0, []string{completed}, job.RunStepOutput{Status: job.StatusCompleted, Output: "before"}},
		"run, says the workflow":                  {nil, &job.StepProgress{Reported: true, Ran: true, Output: "before"}, 0, []string{completed}, job.RunStepOutput{Status: job.StatusCompleted, Output: "before"}},
		"the last attempt knows more":             {job.StepProgress{Reported: true, Ran: true, Output: "newer"}, &job.StepProgress{Reported: true}, 0, []string{completed}, job.RunStepOutput{Status: job.StatusCompleted, Output: "newer"}},
		"the workflow knows more":                 {job.StepProgress{}, &job.StepProgress{Reported: true, Ran: true}, 0, []string{completed}, job.RunStepOutput{Status: job.StatusCompleted}},
		"run without a report, which is too late": {job.StepProgress{Ran: true}, nil, 0, []string{completed}, job.RunStepOutput{Status: job.StatusCompleted}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, r := &devices{}, &stepRunner{}
			in := stepInput()
			in.Resume = c.resume
			out, err := run(t, attempt{details: c.details}, job.RunStep, newHost(d, r).RunStep, in)
			if err != nil || out != c.out {
				t.Errorf("got %+v, %v; want %+v", out, err, c.out)
			}
			if len(r.runs) != c.runs {
				t.Errorf("the step ran %d times, want %d", len(r.runs), c.runs)
			}
			if got := statuses(t, d); !slices.Equal(got, c.published) {
				t.Errorf("published %q, want %q", got, c.published)
			}
		})
	}
}

func TestRunStepPublishesWholeMessages(t *testing.T) {
	t.Parallel()
	d := &devices{}
	in := stepInput()
	in.Step, in.Index, in.Sequence = "Done", 1, 3
	if _, err := run(t, attempt{}, job.RunStep, newHost(d, &stepRunner{}).RunStep, in); err != nil {
		t.Fatal(err)
	}
	want := job.Message{
		ID: "job-1.solver.4", CorrelationID: "job-1", Kind: job.KindUpdate, Sequence: 4,
		ContentType: "application/json", ContentEncoding: "utf-8",
		Body: job.Body(`{"Name":"Job 1","CorrelationId":"job-1","Step":"Done","Status":"Completed"}`),
	}
	if len(d.sent) != 2 || !reflect.DeepEqual(d.sent[1], want) {
		t.Errorf("got %+v, want %+v", d.sent, want)
	}
}

func TestRunStepThatFails(t *testing.T) {
	t.Parallel()
	d := &devices{}
	failed := job.RunStepOutput{Status: job.StatusFailed, Reason: "exit status 3", Output: "oh"}
	out, err := run(t, attempt{}, job.RunStep, newHost(d, &stepRunner{out: failed}).RunStep, stepInput())
	if err != nil || out != failed {
		t.Errorf("got %+v, %v; want %+v", out, err, failed)
	}
	if got := statuses(t, d); !slices.Equal(got, []string{inProgress}) {
		t.Errorf("published %q: what a failure means is the workflow's to say", got)
	}
}

func TestRunStepThatTakesTooLong(t *testing.T) {
	t.Parallel()
	d := &devices{}
	in := stepInput()
	in.Timeout = time.Millisecond
	out, err := run(t, attempt{}, job.RunStep, newHost(d, &stepRunner{hang: true}).RunStep, in)
	want := job.RunStepOutput{Status: job.StatusFailed, Reason: "timed out after 1ms", Output: "half"}
	if err != nil || out != want {
		t.Errorf("got %+v, %v; want %+v", out, err, want)
	}
	if got := statuses(t, d); !slices.Equal(got, []string{inProgress}) {
		t.Errorf("published %q", got)
	}
}

func TestRunStepThatCantBeRun(t *testing.T) {
	t.Parallel()
	r := &stepRunner{err: errors.New("no space left on device")}
	_, err := run(t, attempt{}, job.RunStep, newHost(&devices{}, r).RunStep, stepInput())
	if app := application(t, err); app.NonRetryable() || app.Message() != "run step 1 (a): no space left on device" {
		t.Errorf("got %v", err)
	}
}

func TestRunStepRefusesNonsense(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*job.RunStepInput){
		"no step":       func(in *job.RunStepInput) { in.Step = "" },
		"index too low": func(in *job.RunStepInput) { in.Index = -1 },
		"no sequence":   func(in *job.RunStepInput) { in.Sequence = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := stepInput()
			change(&in)
			_, err := run(t, attempt{}, job.RunStep, newHost(&devices{}, &stepRunner{}).RunStep, in)
			if app := application(t, err); app.Type() != "Invalid" {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRunStepIsNeverRunTwice(t *testing.T) {
	t.Parallel()
	d := &devices{outbox: outbox{fail: map[string]error{"job-1.solver.2": &job.Error{Kind: job.ErrUnavailable}}}}
	r, c := &stepRunner{}, &checkpoints{}
	h := newHost(d, r)
	h.Checkpoints = c
	beats := newBeatLog()
	_, err := run(t, attempt{beats: beats}, job.RunStep, h.RunStep, stepInput())
	if app := application(t, err); app.Type() != "Unavailable" || app.NonRetryable() {
		t.Fatalf("got %v", err)
	}
	want := job.StepProgress{Reported: true, Ran: true, Output: "fine"}
	if !reflect.DeepEqual(c.recorded, []any{want}) {
		t.Errorf("recorded at once %+v, want %+v", c.recorded, want)
	}
	if got := beats.last(); got != `{"reported":true,"ran":true,"output":"fine"}` {
		t.Errorf("the last heartbeat says %s", got)
	}
	d.fail = nil
	out, err := run(t, attempt{details: want}, job.RunStep, h.RunStep, stepInput())
	if err != nil || out.Status != job.StatusCompleted || out.Output != "fine" {
		t.Errorf("got %+v, %v", out, err)
	}
	if len(r.runs) != 1 {
		t.Errorf("the step ran %d times", len(r.runs))
	}
	if got := statuses(t, d); !slices.Equal(got, []string{inProgress, completed}) {
		t.Errorf("published %q", got)
	}
}

func TestRunStepOutlivesAFailedCheckpoint(t *testing.T) {
	t.Parallel()
	h := newHost(&devices{}, &stepRunner{})
	h.Checkpoints = &checkpoints{err: errors.New("no server")}
	if out, err := run(t, attempt{}, job.RunStep, h.RunStep, stepInput()); err != nil || out.Status != job.StatusCompleted {
		t.Errorf("got %+v, %v", out, err)
	}
}

func TestRunStepIsCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	r := &stepRunner{hang: true, begun: make(chan struct{})}
	go func() {
		<-r.begun
		cancel(temporal.NewCanceledError())
	}()
	_, err := run(t, attempt{ctx: ctx}, job.RunStep, newHost(&devices{}, r).RunStep, stepInput())
	if !temporal.IsCanceledError(err) {
		t.Errorf("got %v, want a cancellation", err)
	}
}

func TestRunStepMakesWayWhenItsWorkerStops(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	r := &stepRunner{hang: true, begun: make(chan struct{})}
	go func() {
		<-r.begun
		close(stop)
	}()
	_, err := run(t, attempt{stop: stop}, job.RunStep, newHost(&devices{}, r).RunStep, stepInput())
	if app := application(t, err); app.Type() != "Stopping" || app.NonRetryable() || !strings.Contains(app.Message(), "step 1 (a)") {
		t.Errorf("got %v", err)
	}
}

// The step that ended as its worker began to stop is not to be run again.
func TestRunStepReportsWhatEndsAsItsWorkerStops(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	r := &stepRunner{hang: true, late: true, begun: make(chan struct{})}
	go func() {
		<-r.begun
		close(stop)
	}()
	d, c := &devices{}, &checkpoints{}
	h := newHost(d, r)
	h.Checkpoints = c
	out, err := run(t, attempt{stop: stop}, job.RunStep, h.RunStep, stepInput())
	if err != nil || out.Status != job.StatusCompleted || len(c.recorded) != 1 {
		t.Errorf("got %+v, %v; recorded %v", out, err, c.recorded)
	}
	if got := statuses(t, d); !slices.Equal(got, []string{inProgress, completed}) {
		t.Errorf("published %v", got)
	}
}

// Nor the one that ended as its context did. It is reported as well: the workflow would use the report's ID for something
// else when it didn't know of it.
func TestRunStepReportsWhatEndsAsItIsCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	r := &stepRunner{hang: true, late: true, begun: make(chan struct{})}
	go func() {
		<-r.begun
		cancel(errors.New("no heartbeat came through"))
	}()
	d, c := &devices{}, &checkpoints{}
	h := newHost(d, r)
	h.Checkpoints = c
	out, err := run(t, attempt{ctx: ctx}, job.RunStep, h.RunStep, stepInput())
	if err != nil || out.Status != job.StatusCompleted {
		t.Errorf("got %+v, %v", out, err)
	}
	if got := statuses(t, d); !slices.Equal(got, []string{inProgress, completed}) {
		t.Errorf("published %v", got)
	}
	if want := []any{job.StepProgress{Reported: true, Ran: true, Output: "fine"}}; !reflect.DeepEqual(c.recorded, want) {
		t.Errorf("recorded %+v", c.recorded)
	}
}

// The server was out of reach when the step ended, and starts another attempt: the host remembers, until the workflow
// runs no more steps here.
func TestRunStepRemembersWhatIsDone(t *testing.T) {
	t.Parallel()
	d, r := &devices{}, &stepRunner{}
	h := newHost(d, r)
	h.Checkpoints = &checkpoints{err: errors.New("no server")}
	in := stepInput()
	for range 2 {
		out, err := run(t, attempt{}, job.RunStep, h.RunStep, in)
		if want := (job.RunStepOutput{Status: job.StatusCompleted, Output: "fine"}); err != nil || out != want {
			t.Fatalf("got %+v, %v", out, err)
		}
	}
	if len(r.runs) != 1 {
		t.Errorf("the step was run %d times", len(r.runs))
	}
	if got := statuses(t, d); !slices.Equal(got, []string{inProgress, completed, completed}) {
		t.Errorf("published %v", got)
	}
	again, other := in, in
	again.Attempt, other.Session.WorkflowID = 2, "solve/job-2"
	for i, in := range []job.RunStepInput{again, other} {
		if _, err := run(t, attempt{}, job.RunStep, h.RunStep, in); err != nil || len(r.runs) != 2+i {
			t.Errorf("run %d times, %v", len(r.runs), err)
		}
	}
	if _, err := run(t, attempt{}, job.Disconnect, h.Disconnect, job.DisconnectInput{Session: in.Session}); err != nil {
		t.Fatal(err)
	}
	if n := len(h.memory.turns); n != 1 || len(h.memory.order) != 1 {
		t.Errorf("the host remembers %d workflows, %v", n, h.memory.order)
	}
}

func TestRunStepWaitsForAnEarlierAttempt(t *testing.T) {
	t.Parallel()
	h := newHost(&devices{}, &stepRunner{})
	before, err := h.memory.take(t.Context(), session.WorkflowID)
	if err != nil {
		t.Fatal(err)
	}
	beats := newBeatLog()
	go func() {
		<-beats.seen
		<-beats.seen // it beats while it waits
		before.step, before.output = keyOf(stepInput()), "before"
		before.release()
	}()
	out, err := run(t, attempt{heartbeat: 30 * time.Millisecond, beats: beats}, job.RunStep, h.RunStep, stepInput())
	if err != nil || out.Output != "before" {
		t.Errorf("got %+v, %v", out, err)
	}
}

func TestHostRemembersSoMany(t *testing.T) {
	t.Parallel()
	var m stepMemory
	for i := range maxRemembered + 10 {
		m.turn(strconv.Itoa(i))
	}
	if len(m.turns) != maxRemembered || len(m.order) != maxRemembered || m.turns["9"] != nil || m.turns["10"] == nil {
		t.Errorf("it remembers %d, from %s on", len(m.turns), m.order[0])
	}
}

func TestRunStepBeatsWhileTheStepRuns(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	beats := newBeatLog()
	r := &stepRunner{hang: true, begun: make(chan struct{})}
	go func() {
		<-r.begun
		for range 5 { // more than there would be without a heartbeat of its own
			<-beats.seen
		}
		cancel(temporal.NewCanceledError())
	}()
	_, err := run(t, attempt{ctx: ctx, heartbeat: 30 * time.Millisecond, beats: beats}, job.RunStep,
		newHost(&devices{}, r).RunStep, stepInput())
	if !temporal.IsCanceledError(err) {
		t.Errorf("got %v", err)
	}
	if got := beats.last(); got != `{"reported":true,"ran":false}` {
		t.Errorf("the last heartbeat says %s", got)
	}
}
