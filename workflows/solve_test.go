package workflows_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workflows"
)

func solveInput(t *testing.T, o job.SolverOptions, steps ...string) job.SolveInput {
	t.Helper()
	j, err := job.New(jobID, "n", steps)
	require.NoError(t, err)
	return job.SolveInput{Job: j, Options: o}
}

func (w *world) runSolve(in job.SolveInput) job.SolveResult {
	w.t.Helper()
	w.env.ExecuteWorkflow(workflows.Solve, in)
	require.NoError(w.t, w.env.GetWorkflowError())
	var out job.SolveResult
	require.NoError(w.t, w.env.GetWorkflowResult(&out))
	return out
}

// toSolver lets the solver's device receive messages.
func (w *world) toSolver(messages ...job.Message) {
	w.env.SignalWorkflow(job.SignalReceived, job.Received{DeviceID: solver, Messages: messages})
}

func cancellation(reason string) job.Message {
	m := update(2, string(job.StatusCancelled), job.StatusCancelled, reason)
	m.ID, m.From = job.MessageID(jobID, job.RoleScheduler, 2), scheduler
	return m
}

// reported decodes what the solver's device sent: updates in order, and the IDs it confirmed.
func (w *world) reported() (updates []job.Update, confirmed []string) {
	for _, m := range w.sent {
		if u, err := job.DecodeUpdate(m.Body); err == nil {
			updates = append(updates, u)
		}
		if r, err := job.DecodeReceipt(m.Body); err == nil {
			confirmed = append(confirmed, r.MessageIDs...)
		}
	}
	return updates, confirmed
}

func TestSolveRunsEachStepAndAwaitsReceipts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var ran []job.RunStepInput
	w.onStep = func(_ context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
		ran = append(ran, in)
		return job.RunStepOutput{Status: job.StatusCompleted}, nil
	}
	w.env.RegisterDelayedCallback(func() {
		w.toSolver(receipt(scheduler, "r1", job.MessageID(jobID, job.RoleSolver, 1), job.MessageID(jobID, job.RoleSolver, 2)))
		w.toSolver(receipt(scheduler, "r2", job.MessageID(jobID, job.RoleSolver, 3), job.MessageID(jobID, job.RoleSolver, 4)))
	}, time.Second)
	out := w.runSolve(solveInput(t, job.SolverOptions{}, "a"))
	require.Equal(t, job.SolveResult{JobID: jobID, Status: job.StatusCompleted, StepsRun: 2}, out)
	require.Len(t, ran, 2)
	require.Equal(t, []int{1, 3}, []int{ran[0].Sequence, ran[1].Sequence})
	require.Equal(t, []int{0, 1}, []int{ran[0].Index, ran[1].Index})
	require.Equal(t, 1, w.count(job.Disconnect.Name))
}

func TestSolveTakesReceiptsThatComeBeforeTheStepHasReturned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onStep = func(_ context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
		for i := range 2 {
			id := job.MessageID(jobID, job.RoleSolver, in.Sequence+i)
			w.toSolver(receipt(scheduler, "receipt-for-"+id, id))
		}
		return job.RunStepOutput{Status: job.StatusCompleted}, nil
	}
	started := w.env.Now()
	out := w.runSolve(solveInput(t, job.SolverOptions{ReceiptTimeout: 10 * time.Hour}, "a"))
	require.Zero(t, out.Unconfirmed)
	require.Less(t, w.env.Now().Sub(started), time.Hour, "it waited for receipts that had come (workflow time)")
}

func TestSolveGivesUpWaitingForReceipts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := w.runSolve(solveInput(t, job.SolverOptions{ReceiptTimeout: time.Minute}, "a"))
	require.Equal(t, job.StatusCompleted, out.Status)
	require.Equal(t, 4, out.Unconfirmed)
}

func TestSolveConfirmsWhatItReadsAndAppliesItOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	announcement := job.Message{ID: job.MessageID(jobID, job.RoleScheduler, 1), Kind: job.KindJob, From: scheduler}
	w.env.RegisterDelayedCallback(func() { w.toSolver(announcement); w.toSolver(announcement) }, time.Second)
	w.runSolve(solveInput(t, job.SolverOptions{ReceiptTimeout: time.Minute}, "a"))
	_, confirmed := w.reported()
	require.Equal(t, []string{announcement.ID, announcement.ID}, confirmed, "a repeat asks for its receipt again")
}

func TestSolveRejectsAJobThatItCanNotRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onAccept = func() (job.AcceptOutput, error) {
		return job.AcceptOutput{
			ConnectOutput: job.ConnectOutput{Host: "h2", TaskQueue: "q2"}, RejectedStep: "b", Rejection: "unknown step",
		}, nil
	}
	out := w.runSolve(solveInput(t, job.SolverOptions{ReceiptTimeout: time.Second}, "a", "b"))
	require.Equal(t, job.StatusRejected, out.Status)
	updates, _ := w.reported()
	require.Len(t, updates, 1)
	require.Equal(t, job.Update{Name: "n", CorrelationID: jobID, Step: "b", Status: job.StatusRejected, Reason: "unknown step"}, updates[0])
	require.Zero(t, w.count(job.RunStep.Name))
}

func TestSolveRepeatsAFailedStepAndReportsTheFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var attempts []int
	w.onStep = func(_ context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
		attempts = append(attempts, in.Attempt)
		return job.RunStepOutput{Status: job.StatusFailed, Reason: "boom"}, nil
	}
	out := w.runSolve(solveInput(t, job.SolverOptions{StepRetries: 2, ReceiptTimeout: time.Second}, "a"))
	require.Equal(t, []int{1, 2, 3}, attempts)
	require.Equal(t, job.StatusFailed, out.Status)
	updates, _ := w.reported()
	require.Len(t, updates, 2)
	require.Equal(t, job.StatusInProgress, updates[0].Status)
	require.Equal(t, job.StatusFailed, updates[1].Status)
	require.Equal(t, "boom", updates[1].Reason)
	require.Equal(t, []int{1, 2}, []int{w.sent[0].Sequence, w.sent[1].Sequence})
}

func TestSolveStopsTheStepWhenTheSchedulerCancels(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onStep = func(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
		w.toSolver(cancellation("enough"))
		<-ctx.Done()
		return job.RunStepOutput{}, ctx.Err()
	}
	out := w.runSolve(solveInput(t, job.SolverOptions{ReceiptTimeout: time.Second}, "a", "b"))
	require.Equal(t, job.StatusCancelled, out.Status)
	updates, confirmed := w.reported()
	require.Equal(t, []string{job.MessageID(jobID, job.RoleScheduler, 2)}, confirmed)
	last := updates[len(updates)-1]
	require.Equal(t, job.StatusCancelled, last.Status)
	require.Equal(t, "enough", last.Reason)
	require.Equal(t, 1, w.count(job.RunStep.Name), "a step was started after the cancellation")
}

func TestSolveEndsWhenTheJobIsOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onStep = func(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
		w.env.SignalWorkflow(job.SignalClose, job.Close{Reason: "deadline"})
		<-ctx.Done()
		return job.RunStepOutput{}, ctx.Err()
	}
	out := w.runSolve(solveInput(t, job.SolverOptions{}, "a"))
	require.Equal(t, job.StatusCancelled, out.Status)
	updates, _ := w.reported()
	require.Empty(t, updates, "nobody listens any more")
}

func TestSolveLeavesAJobAloneWhoseIdentityIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onAccept = func() (job.AcceptOutput, error) {
		return job.AcceptOutput{}, temporal.NewNonRetryableApplicationError("no such device", job.ErrorType(job.ErrNotFound), nil)
	}
	out := w.runSolve(solveInput(t, job.SolverOptions{}, "a"))
	require.Equal(t, job.StatusCancelled, out.Status)
	require.Contains(t, out.Reason, "the job is over")
}

func TestSolveLeavesAJobAloneThatCameTooLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := w.runSolve(solveInput(t, job.SolverOptions{AcceptBefore: w.env.Now().Add(-time.Second)}, "a"))
	require.Equal(t, job.StatusRejected, out.Status)
	require.Zero(t, w.count(job.Accept.Name))
}

func TestSolveResumesAStepOnAnotherHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	accepted := 0
	w.onAccept = func() (job.AcceptOutput, error) {
		accepted++
		queue := "gone"
		if accepted > 1 {
			queue = "q2"
		}
		return job.AcceptOutput{ConnectOutput: job.ConnectOutput{Host: queue, TaskQueue: queue}}, nil
	}
	w.onStep = func(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
		if activity.GetInfo(ctx).TaskQueue == "gone" {
			return job.RunStepOutput{}, scheduleToStartTimeoutAfter(job.StepProgress{Reported: true, Ran: true})
		}
		if in.Index == 0 && (in.Resume == nil || !in.Resume.Ran) {
			return job.RunStepOutput{}, errors.New("the step would be run again")
		}
		return job.RunStepOutput{Status: job.StatusCompleted}, nil
	}
	out := w.runSolve(solveInput(t, job.SolverOptions{ReceiptTimeout: time.Second}, "a"))
	require.Equal(t, job.StatusCompleted, out.Status, out.Reason)
	require.Equal(t, 2, accepted)
}
