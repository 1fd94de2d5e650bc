package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workflows"
)

const jobID = "job-ann-2026-01-02-03-04-05-abc"

var (
	scheduler = job.DeviceID(job.RoleScheduler, jobID)
	solver    = job.DeviceID(job.RoleSolver, jobID)
)

// world plays everything around a workflow: hub, router, device hosts and, for Job, the solver. Each test bends it.
type world struct {
	t   *testing.T
	env *testsuite.TestWorkflowEnvironment

	mu         sync.Mutex
	dispatched []job.Message
	sent       []job.Message
	returned   []job.Undeliverable
	registered map[string]bool
	calls      map[string]int

	// answers; nil means the friendly default
	onPublish  func()
	onDispatch func(device string, m job.Message) (*job.Refusal, error)
	onConnect  func(n int) (job.ConnectOutput, error)
	onAccept   func() (job.AcceptOutput, error)
	onStep     func(context.Context, job.RunStepInput) (job.RunStepOutput, error)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	w := &world{t: t, env: suite.NewTestWorkflowEnvironment(), registered: map[string]bool{}, calls: map[string]int{}}
	w.env.SetTestTimeout(time.Minute)
	w.env.OnSignalExternalWorkflow(mock.Anything, job.SolveWorkflowID(jobID), "", job.SignalClose, mock.Anything).
		Return(func(string, string, string, string, any) error { return errors.New("no such workflow") }).Maybe()
	register(w, job.Negotiate, w.negotiate)
	register(w, job.Deregister, w.deregister)
	register(w, job.Publish, w.publish)
	register(w, job.Dispatch, w.dispatch)
	register(w, job.Return, w.giveBack)
	register(w, job.Connect, w.connect)
	register(w, job.Accept, w.accept)
	register(w, job.Send, w.send)
	register(w, job.RunStep, w.step)
	register(w, job.Disconnect, func(context.Context, job.DisconnectInput) (job.None, error) { return job.None{}, nil })
	return w
}

func register[In, Out any](w *world, ref job.Activity[In, Out], f func(context.Context, In) (Out, error)) {
	counted := func(ctx context.Context, in In) (Out, error) {
		w.mu.Lock()
		w.calls[ref.Name]++
		w.mu.Unlock()
		return f(ctx, in)
	}
	w.env.RegisterActivityWithOptions(counted, activity.RegisterOptions{Name: ref.Name})
}

func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[name]
}

func (w *world) negotiate(_ context.Context, in job.NegotiateInput) (job.NegotiateOutput, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range in.DeviceIDs {
		w.registered[id] = true
	}
	return job.NegotiateOutput{Created: in.DeviceIDs}, nil
}

func (w *world) deregister(_ context.Context, in job.DeregisterInput) (job.None, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range in.DeviceIDs {
		delete(w.registered, id)
	}
	return job.None{}, nil
}

func (w *world) publish(context.Context, job.PublishInput) (job.None, error) {
	if w.onPublish != nil {
		w.onPublish()
	}
	return job.None{}, nil
}

func (w *world) dispatch(_ context.Context, in job.DispatchInput) (job.DispatchOutput, error) {
	var out job.DispatchOutput
	for _, m := range in.Messages {
		answer := w.onDispatch
		if answer == nil {
			answer = w.deliver
		}
		refusal, err := answer(in.DeviceID, m)
		if err != nil {
			return out, err
		}
		if refusal != nil {
			out.Refused = append(out.Refused, *refusal)
			continue
		}
		w.mu.Lock()
		w.dispatched = append(w.dispatched, m)
		w.mu.Unlock()
	}
	return out, nil
}

// deliver lets the target's device receive a message at once: feedback comes, and the reader's side goes on.
func (w *world) deliver(device string, m job.Message) (*job.Refusal, error) {
	w.feedback(device, m.ID, job.OutcomeSuccess)
	w.read(device, m)
	return nil, nil
}

// read lets a device's application read a message: the scheduler's host records it in the job, the solver, whose
// workflow is not there, answers with a receipt.
func (w *world) read(device string, m job.Message) {
	if device == scheduler {
		w.env.SignalWorkflow(job.SignalReceived, job.Received{DeviceID: device, Messages: []job.Message{m}})
		return
	}
	if m.Kind.Confirmed() {
		w.inbound(receipt(solver, "solver-read-"+m.ID, m.ID))
	}
}

func (w *world) feedback(device, id string, outcome job.Outcome) {
	w.env.SignalWorkflow(job.SignalFeedback, job.Feedback{Records: []job.FeedbackRecord{
		{MessageID: id, DeviceID: device, Outcome: outcome, At: w.env.Now()}}})
}

func (w *world) inbound(messages ...job.Message) {
	w.env.SignalWorkflow(job.SignalInbound, job.Inbound{Messages: messages})
}

func (w *world) giveBack(_ context.Context, in job.ReturnInput) (job.None, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.returned = append(w.returned, in.Messages...)
	return job.None{}, nil
}

func (w *world) connect(context.Context, job.ConnectInput) (job.ConnectOutput, error) {
	if w.onConnect != nil {
		return w.onConnect(w.count(job.Connect.Name))
	}
	return job.ConnectOutput{Host: "h1", TaskQueue: "q1"}, nil
}

func (w *world) accept(context.Context, job.AcceptInput) (job.AcceptOutput, error) {
	if w.onAccept != nil {
		return w.onAccept()
	}
	return job.AcceptOutput{ConnectOutput: job.ConnectOutput{Host: "h2", TaskQueue: "q2"}}, nil
}

// send loops what the scheduler's device sends back to the job, as hub and router do.
func (w *world) send(_ context.Context, in job.SendInput) (job.None, error) {
	w.mu.Lock()
	w.sent = append(w.sent, in.Messages...)
	w.mu.Unlock()
	if in.Session.DeviceID == scheduler {
		w.inbound(in.Messages...)
	}
	return job.None{}, nil
}

func (w *world) step(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
	if w.onStep != nil {
		return w.onStep(ctx, in)
	}
	return job.RunStepOutput{Status: job.StatusCompleted}, nil
}

// reports returns the updates of a solver that runs steps from the beginning.
func reports(steps ...string) []job.Message {
	var messages []job.Message
	for _, step := range steps {
		messages = append(messages,
			update(len(messages)+1, step, job.StatusInProgress, ""),
			update(len(messages)+2, step, job.StatusCompleted, ""))
	}
	return messages
}

func update(sequence int, step string, status job.Status, reason string) job.Message {
	body, err := job.Encode(job.Update{Name: "n", CorrelationID: jobID, Step: step, Status: status, Reason: reason})
	if err != nil {
		panic(err)
	}
	return job.Message{ID: job.MessageID(jobID, job.RoleSolver, sequence), CorrelationID: jobID, Kind: job.KindUpdate,
		Sequence: sequence, From: solver, Body: body}
}

func receipt(from, id string, read ...string) job.Message {
	body, err := job.Encode(job.Receipt{CorrelationID: jobID, MessageIDs: read, ReadAt: time.Unix(1, 0).UTC()})
	if err != nil {
		panic(err)
	}
	return job.Message{ID: id, CorrelationID: jobID, Kind: job.KindReceipt, From: from, Body: body}
}

func input(t *testing.T, o job.Options, steps ...string) job.JobInput {
	t.Helper()
	j, err := job.New(jobID, "n", steps)
	require.NoError(t, err)
	return job.JobInput{Job: j, Options: o, RequestedBy: "ann"}
}

// runJob runs Job and returns what it ended with, from its result or its error.
func (w *world) runJob(in job.JobInput) job.Snapshot {
	w.t.Helper()
	w.env.ExecuteWorkflow(workflows.Job, in)
	require.True(w.t, w.env.IsWorkflowCompleted())
	return w.snapshot()
}

func (w *world) snapshot() job.Snapshot {
	w.t.Helper()
	var snap job.Snapshot
	err := w.env.GetWorkflowError()
	var app *temporal.ApplicationError
	var canceled *temporal.CanceledError
	switch {
	case err == nil:
		require.NoError(w.t, w.env.GetWorkflowResult(&snap))
	case errorAs(err, &app):
		require.NoError(w.t, app.Details(&snap), "details of %v", err)
	case errorAs(err, &canceled):
		require.NoError(w.t, canceled.Details(&snap), "details of %v", err)
	default:
		require.NoError(w.t, err)
	}
	return snap
}

func (w *world) audit() []job.MessageRow {
	w.t.Helper()
	value, err := w.env.QueryWorkflow(job.QueryAudit)
	require.NoError(w.t, err)
	var a job.Audit
	require.NoError(w.t, value.Get(&a))
	return a.Messages
}

func sequences(messages []job.Message, to string) string {
	s := ""
	for _, m := range messages {
		if target, _ := m.Target(); target == to && m.Sequence > 0 {
			s += fmt.Sprintf("%d ", m.Sequence)
		}
	}
	return s
}
