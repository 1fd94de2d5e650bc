package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/job"
)

// gate is a step runner that holds the step "held" until it is opened, and any other not at all.
type gate struct {
	steps.Simulate
	begun  chan struct{} // gets a value when the held step begins
	opened chan struct{}
	atEnd  func() // called when the held step ends; may be nil

	mu   sync.Mutex
	runs []string
}

const held = "held"

func newGate() *gate { return &gate{begun: make(chan struct{}, 8), opened: make(chan struct{})} }

func (g *gate) Run(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
	name := in.Step
	g.mu.Lock()
	g.runs = append(g.runs, name)
	g.mu.Unlock()
	if name == held {
		g.begun <- struct{}{}
		select {
		case <-g.opened:
		case <-ctx.Done():
			return job.RunStepOutput{}, context.Cause(ctx)
		}
		if g.atEnd != nil {
			g.atEnd()
		}
	}
	return job.RunStepOutput{Status: job.StatusCompleted}, nil
}

func (g *gate) ran() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.runs)
}

func (g *gate) await(t *testing.T) {
	t.Helper()
	select {
	case <-g.begun:
	case <-time.After(patience):
		t.Fatal("the step was not run")
	}
}

// complete checks that a job is done, that all was read, and that every update was applied once and in order.
func complete(t *testing.T, got job.Result) {
	t.Helper()
	if got.State != job.StateCompleted || got.StepsDone != len(got.Steps) {
		t.Errorf("got %+v", got)
	}
	if m := got.Messages; m.Read != m.Sent || m.Sent != 1+2*len(got.Steps) {
		t.Errorf("messages: %+v", m)
	}
	for i, u := range got.Updates {
		want := fmt.Sprintf("%d %s %s", i+1, got.Steps[i/2], []job.Status{job.StatusInProgress, job.StatusCompleted}[i%2])
		if is := fmt.Sprintf("%d %s %s", u.Sequence, u.Step, u.Status); is != want {
			t.Errorf("update %d: %s, want %s", i+1, is, want)
		}
	}
}

func TestRolesAreRestartedDuringAStep(t *testing.T) {
	for _, c := range []struct {
		role string
		runs []string
	}{
		{"manager", []string{"first", held, job.StepDone}},
		{"scheduler", []string{"first", held, job.StepDone}},
		{"solver", []string{"first", held, held, job.StepDone}},
	} {
		t.Run(c.role, func(t *testing.T) {
			p, g := startHub(t), newGate()
			start := map[string]func() *running{
				"manager":   func() *running { return p.startManager(t) },
				"scheduler": func() *running { return p.startScheduler(t) },
				"solver":    func() *running { return p.startSolver(t, g, p.hub.MQTTSAddr()) },
			}
			roles := make(map[string]*running)
			for _, name := range []string{"manager", "scheduler", "solver"} {
				roles[name] = start[name]()
			}
			id := "job-restarted-" + c.role
			p.start(t, id, job.Options{ReceiptTimeout: time.Second, ReceiptAttempts: 100}, "first", held)
			g.await(t)
			p.awaitQuiet(t, id, 4) // else a message that is on its way stays locked for a while
			roles[c.role].end(t)
			if c.role != "solver" {
				close(g.opened) // the step's report finds nobody to take it
			}
			start[c.role]()
			if c.role == "solver" {
				g.await(t)
				close(g.opened)
			}
			complete(t, p.result(t, id))
			if got := g.ran(); !slices.Equal(got, c.runs) {
				t.Errorf("ran %v, want %v", got, c.runs)
			}
			p.awaitNoDevices(t)
		})
	}
}

// awaitQuiet waits until all of a job's first messages were read and no receipt is on its way.
func (p *pipeline) awaitQuiet(t *testing.T, id string, messages int) {
	t.Helper()
	var s job.Snapshot
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if s = p.status(t, id); s.Messages.Read == messages && s.Receipts.Delivered == s.Receipts.Sent {
			return
		}
	}
	t.Fatalf("messages: %+v, receipts: %+v", s.Messages, s.Receipts)
}

// The solver's devices lose the hub as the step ends, and the solver stops before it has reported the step.
func TestStepThatEndedIsNotRunAgain(t *testing.T) {
	p, g := startHub(t), newGate()
	p.startManager(t)
	p.startScheduler(t)
	way := startForwarder(t, p.hub.MQTTSAddr())
	g.atEnd = way.cut
	solver := p.startSolver(t, g, way.addr())
	p.start(t, "job-unreported", job.Options{}, "first", held)
	g.await(t)
	close(g.opened)
	way.awaitCut(t)
	solver.end(t)
	p.startSolver(t, g, p.hub.MQTTSAddr())
	complete(t, p.result(t, "job-unreported"))
	if got := g.ran(); !slices.Equal(got, []string{"first", held, job.StepDone}) {
		t.Errorf("ran %v", got)
	}
}

// forwarder passes TCP connections on until it is cut.
type forwarder struct {
	listener net.Listener
	isCut    chan struct{}
	once     sync.Once
	running  sync.WaitGroup

	mu   sync.Mutex
	open []net.Conn
}

func startForwarder(t *testing.T, target string) *forwarder {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{listener: l, isCut: make(chan struct{})}
	f.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.running.Go(func() { f.forward(t.Context(), conn, target) })
		}
	})
	t.Cleanup(func() {
		f.cut()
		f.running.Wait()
	})
	return f
}

func (f *forwarder) addr() string { return f.listener.Addr().String() }

func (f *forwarder) forward(ctx context.Context, in net.Conn, target string) {
	defer in.Close()
	var d net.Dialer
	out, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	f.mu.Lock()
	f.open = append(f.open, in, out)
	f.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.Copy(in, out) }) // ends with the connections
	_, _ = io.Copy(out, in)
	out.Close()
	back.Wait()
}

// cut ends all connections and takes no more.
func (f *forwarder) cut() {
	f.once.Do(func() {
		f.listener.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.open {
			c.Close()
		}
		close(f.isCut)
	})
}

func (f *forwarder) awaitCut(t *testing.T) {
	t.Helper()
	select {
	case <-f.isCut:
	case <-time.After(patience):
		t.Fatal("the step did not end")
	}
}

func TestCancelInEachPhase(t *testing.T) {
	for _, phase := range []job.State{job.StateStarting, job.StateScheduled, job.StateRunning} {
		t.Run(string(phase), func(t *testing.T) {
			p, g := startHub(t), newGate()
			p.startManager(t)
			if phase != job.StateStarting {
				p.startScheduler(t)
			}
			if phase == job.StateRunning {
				p.startSolver(t, g, p.hub.MQTTSAddr())
			}
			id := "job-cancelled-" + string(phase)
			p.start(t, id, job.Options{CancelTimeout: 2 * time.Second}, held)
			p.awaitState(t, id, phase)
			p.cancel(t, id)
			got := p.result(t, id)
			if got.State != job.StateCancelled || got.StepsDone != 0 {
				t.Errorf("got %+v", got)
			}
			p.awaitNoDevices(t)
			if phase == job.StateScheduled { // what is left on the topic starts nothing any more
				p.startSolver(t, g, p.hub.MQTTSAddr())
				if s := p.solved(t, id); s.Status != job.StatusCancelled || s.StepsRun != 0 || len(g.ran()) != 0 {
					t.Errorf("the solver did %+v, %v", s, g.ran())
				}
			}
		})
	}
}

func (p *pipeline) awaitState(t *testing.T, id string, want job.State) {
	t.Helper()
	var state job.State
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if state = p.status(t, id).State; state == want {
			return
		}
	}
	t.Fatalf("the job is %s, want %s", state, want)
}

func (p *pipeline) cancel(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	handle, err := p.client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: id, UpdateName: job.UpdateCancel, WaitForStage: client.WorkflowUpdateStageCompleted,
		Args: []any{job.CancelInput{Reason: "changed my mind"}},
	})
	if err == nil {
		err = handle.Get(ctx, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// solved waits for the end of a job's Solve workflow, which may not have been started yet.
func (p *pipeline) solved(t *testing.T, id string) job.SolveResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		var result job.SolveResult
		err := p.client.GetWorkflow(ctx, job.SolveWorkflowID(id), "").Get(ctx, &result)
		if err == nil {
			return result
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// A device that has its hands full gets everything later, in order, although its queue in the hub holds only so much.
func TestSlowReader(t *testing.T) {
	p := startHub(t)
	p.startManager(t)
	const messages = 2 * job.MaxDeviceQueue
	open, all := make(chan struct{}), make(chan []string, 1)
	var got []string
	p.connect(t, "device-scheduler::slow", func(ctx context.Context, m job.Message) error {
		select {
		case <-open:
		case <-ctx.Done():
			return ctx.Err()
		}
		if got = append(got, m.ID); len(got) == messages {
			all <- got
		}
		return nil
	})
	sender := p.connect(t, "device-solver::slow", nil)
	var want []string
	for i := range messages {
		m := job.Message{ID: fmt.Sprintf("m%d", i), Body: job.Body("hello")}
		if err := sender.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		want = append(want, m.ID)
	}
	close(open)
	select {
	case got := <-all:
		if !slices.Equal(got, want) {
			t.Errorf("received %v", got)
		}
	case <-time.After(patience):
		t.Error("messages were lost")
	}
}
