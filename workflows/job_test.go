package workflows_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workflows"
)

func errorAs(err error, target any) bool { return errors.As(err, target) }

func TestJobCompletesWhenEveryMessageWasRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onPublish = func() { w.inbound(reports("a", "b", job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{}, "a", "b"))

	require.NoError(t, w.env.GetWorkflowError())
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Equal(t, 3, snap.StepsDone)
	require.Len(t, snap.Updates, 6)
	require.Equal(t, job.Counts{Sent: 7, Accepted: 7, Delivered: 7, Read: 7}, snap.Messages)
	require.Zero(t, snap.Receipts.Refused)
	require.Empty(t, w.registered, "identities are left behind")

	kinds := map[job.Kind]int{}
	for _, row := range w.audit() {
		kinds[row.Kind]++
		require.Equal(t, 1, row.Attempts, row.ID)
		require.False(t, row.DeliveredAt.IsZero(), row.ID)
		require.NotEmpty(t, row.To, row.ID)
	}
	require.Equal(t, 1, kinds[job.KindJob])
	require.Equal(t, 6, kinds[job.KindUpdate])
	require.Equal(t, kinds[job.KindReceipt], snap.Receipts.Delivered)
}

func TestJobAppliesUpdatesInSequenceOrderEachOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := reports("a", job.StepDone)
	w.onPublish = func() {
		w.inbound(r[2], r[0])
		w.inbound(r[0], r[3], r[2])
		w.inbound(r[1], r[1])
	}
	snap := w.runJob(input(t, job.Options{}, "a"))

	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Equal(t, "1 2 3 4 ", sequences(w.dispatched, scheduler))
	require.Len(t, snap.Updates, 4)
	require.Equal(t, 0, snap.Messages.Resent)
}

func TestJobTakesUpdatesWithoutSequenceInOrderOfArrival(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := reports("a", job.StepDone)
	for i := range r {
		r[i].Sequence = 0
	}
	w.onPublish = func() { w.inbound(r...) }
	snap := w.runJob(input(t, job.Options{}, "a"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Len(t, snap.Updates, 4)
}

func TestJobEndings(t *testing.T) {
	t.Parallel()
	final := func(status job.Status) func(*world) {
		return func(w *world) {
			w.onPublish = func() {
				w.inbound(update(1, "a", job.StatusInProgress, ""), update(2, "a", status, "because"))
			}
		}
	}
	for name, c := range map[string]struct {
		arrange func(*world)
		options job.Options
		state   job.State
		reason  string
	}{
		"a step fails":         {arrange: final(job.StatusFailed), state: job.StateFailed, reason: `step "a" failed: because`},
		"the solver rejects":   {arrange: final(job.StatusRejected), state: job.StateRejected, reason: `the solver rejected step "a": because`},
		"the solver cancels":   {arrange: final(job.StatusCancelled), state: job.StateCancelled, reason: "cancelled: because"},
		"nobody takes the job": {arrange: func(*world) {}, state: job.StateExpired, reason: "no solver took the job within 10m0s: is a solver worker running?"},
		"the deadline passes": {
			arrange: func(w *world) { w.onPublish = func() { w.inbound(update(1, "a", job.StatusInProgress, "")) } },
			options: job.Options{Timeout: time.Hour}, state: job.StateExpired, reason: "the job was not done within 1h0m0s",
		},
		"the scheduler's device can't be connected": {
			arrange: func(w *world) {
				w.onConnect = func(int) (job.ConnectOutput, error) {
					return job.ConnectOutput{}, temporal.NewNonRetryableApplicationError("the API key is wrong", "Invalid", nil)
				}
			},
			state: job.StateFailed, reason: "the API key is wrong",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c.arrange(w)
			snap := w.runJob(input(t, c.options, "a"))
			require.Equal(t, c.state, snap.State, snap.Reason)
			require.Equal(t, c.reason, snap.Reason)
			require.False(t, snap.EndedAt.IsZero())
			require.Empty(t, w.registered, "identities are left behind")
			if failed := c.state != job.StateCancelled; failed {
				var app *temporal.ApplicationError
				require.ErrorAs(t, w.env.GetWorkflowError(), &app)
				require.Equal(t, string(c.state), app.Type())
				require.Equal(t, c.reason, app.Message())
			}
		})
	}
}

func TestJobIsCancelledThroughTheSolver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onPublish = func() { w.inbound(update(1, "a", job.StatusInProgress, "")) }
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if u, err := job.DecodeUpdate(m.Body); device == solver && err == nil && u.Status == job.StatusCancelled {
			w.inbound(update(2, "a", job.StatusCancelled, u.Reason))
		}
		return w.deliver(device, m)
	}
	w.env.RegisterDelayedCallback(func() {
		w.env.UpdateWorkflow(job.UpdateCancel, "u1", &testsuite.TestUpdateCallback{
			OnAccept: func() {}, OnReject: func(err error) { t.Errorf("cancel was rejected: %v", err) },
			OnComplete: func(any, error) {},
		}, job.CancelInput{Reason: "changed my mind"})
	}, time.Second)
	snap := w.runJob(input(t, job.Options{}, "a"))
	require.Equal(t, job.StateCancelled, snap.State)
	require.Equal(t, "cancelled: changed my mind", snap.Reason)
	require.NoError(t, w.env.GetWorkflowError())
	require.Equal(t, snap.Messages.Sent, snap.Messages.Read)
	require.Empty(t, w.registered)
}

func TestJobEndsCancelledWhenTheSolverDoesNotAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onPublish = func() { w.inbound(update(1, "a", job.StatusInProgress, "")) }
	w.env.RegisterDelayedCallback(func() { w.env.CancelWorkflow() }, time.Second)
	snap := w.runJob(input(t, job.Options{}, "a"))
	require.Equal(t, job.StateCancelled, snap.State)
	require.Contains(t, snap.Reason, "the solver did not answer")
	var canceled *temporal.CanceledError
	require.ErrorAs(t, w.env.GetWorkflowError(), &canceled)
	require.Empty(t, w.registered)
}

func TestJobCancelledBeforeItIsScheduledIsNeverPublished(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onConnect = func(int) (job.ConnectOutput, error) {
		return job.ConnectOutput{}, errors.New("no scheduler yet")
	}
	w.env.RegisterDelayedCallback(func() { w.env.CancelWorkflow() }, time.Minute)
	snap := w.runJob(input(t, job.Options{}, "a"))
	require.Equal(t, job.StateCancelled, snap.State)
	require.Zero(t, w.count(job.Publish.Name))
	require.Empty(t, w.registered)
}

func TestJobSendsAgainWhatWasDeliveredAndNotRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	unread := job.MessageID(jobID, job.RoleSolver, 1)
	tries := 0
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if m.ID == unread {
			if tries++; tries < 3 {
				w.feedback(device, m.ID, job.OutcomeSuccess)
				return nil, nil
			}
		}
		return w.deliver(device, m)
	}
	w.onPublish = func() { w.inbound(reports(job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{}, "Done"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Equal(t, 2, snap.Messages.Resent)
	require.Equal(t, snap.Messages.Sent, snap.Messages.Read)
}

func TestJobDoesNotSendAgainWhatWaitsForItsReceiptToBeSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := true
	w.env.OnActivity(job.Send.Name, anything, anything).Return(func(ctx context.Context, in job.SendInput) (job.None, error) {
		if in.Messages[0].Kind == job.KindReceipt && first {
			first = false // the host was lost in the middle of it
			return job.None{}, temporal.NewApplicationErrorWithOptions("", "", temporal.ApplicationErrorOptions{NextRetryDelay: time.Hour})
		}
		return w.send(ctx, in)
	})
	w.onPublish = func() { w.inbound(reports(job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{ReceiptTimeout: 5 * time.Second, ReceiptAttempts: 3}, "Done"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Zero(t, snap.Messages.Resent)
}

func TestJobSendsAgainAtOnceWhatExpired(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expired := job.MessageID(jobID, job.RoleSolver, 1)
	first := true
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if m.ID == expired && first {
			first = false
			w.feedback(device, m.ID, job.OutcomeExpired)
			return nil, nil
		}
		return w.deliver(device, m)
	}
	w.onPublish = func() { w.inbound(reports(job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{ReceiptTimeout: 10 * time.Hour}, "Done"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Equal(t, 1, snap.Messages.Resent)
	require.Less(t, snap.EndedAt.Sub(snap.StartedAt), time.Hour, "it waited for the receipt timeout (workflow time)")
}

func TestJobEndsUnconfirmedWhenAMessageIsNeverRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	unread := job.MessageID(jobID, job.RoleSolver, 1)
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if m.ID == unread {
			w.feedback(device, m.ID, job.OutcomeSuccess)
			return nil, nil
		}
		return w.deliver(device, m)
	}
	w.onPublish = func() { w.inbound(reports(job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{ReceiptAttempts: 3}, "Done"))
	require.Equal(t, job.StateUnconfirmed, snap.State)
	require.Contains(t, snap.Reason, unread)
	require.Equal(t, snap.Messages.Sent-1, snap.Messages.Read)
	require.Equal(t, 2, snap.Messages.Resent)
	require.Empty(t, w.registered)
}

func TestJobReturnsWhatCanNotBeDelivered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	refused := job.MessageID(jobID, job.RoleSolver, 1)
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if m.ID == refused {
			return &job.Refusal{MessageID: m.ID, Reason: job.ReasonDeviceNotFound, Description: "no such device"}, nil
		}
		return w.deliver(device, m)
	}
	w.onPublish = func() { w.inbound(reports(job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{}, "Done"))
	require.Equal(t, job.StateUnconfirmed, snap.State)
	require.Equal(t, 1, snap.Messages.Refused)
	require.Len(t, w.returned, 1)
	require.Equal(t, refused, w.returned[0].Message.ID)
	require.Equal(t, job.ReasonDeviceNotFound, w.returned[0].Reason)
	require.NotEmpty(t, w.returned[0].Message.Body)
}

// An update that was refused has changed the job already: resubmitted it is carried, and changes nothing again.
func TestJobCarriesAResubmittedUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mended := false
	refused := job.MessageID(jobID, job.RoleSolver, 2)
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if m.ID == refused && !mended {
			return &job.Refusal{MessageID: m.ID, Reason: job.ReasonDeviceNotFound, Description: "no such device"}, nil
		}
		return w.deliver(device, m)
	}
	all := reports("a", job.StepDone)
	w.onPublish = func() {
		w.inbound(all[:2]...)
		w.env.RegisterDelayedCallback(func() {
			mended = true
			copied := w.returned[0].Message
			copied.Properties = map[string]string{job.PropertyResubmitted: "17"}
			w.inbound(copied)
			w.inbound(all[2:]...)
		}, 10*time.Second)
	}
	snap := w.runJob(input(t, job.Options{}, "a", "Done"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Equal(t, 2, snap.StepsDone)
	require.Len(t, snap.Updates, 4)
	require.Zero(t, snap.Messages.Refused)
	require.Equal(t, snap.Messages.Sent, snap.Messages.Read)
}

func TestJobKeepsTheWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var waiting, most int
	held := []job.Message{}
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if device != scheduler || !m.Kind.Confirmed() {
			return w.deliver(device, m)
		}
		waiting++
		most = max(most, waiting)
		held = append(held, m)
		w.env.RegisterDelayedCallback(func() { // the device reads one message a second
			waiting--
			_, _ = w.deliver(device, m)
		}, time.Duration(len(held))*time.Second)
		return nil, nil
	}
	w.onPublish = func() { w.inbound(reports("a", "b", "c", "d", "e", "f", job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{Window: 3}, "a", "b", "c", "d", "e", "f"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.LessOrEqual(t, most, 3)
	require.Zero(t, snap.Messages.Resent)
}

func TestJobConnectsElsewhereWhenTheHostIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onConnect = func(n int) (job.ConnectOutput, error) {
		if n == 1 {
			return job.ConnectOutput{Host: "gone", TaskQueue: "gone"}, nil
		}
		return job.ConnectOutput{Host: "h1", TaskQueue: "q1"}, nil
	}
	w.env.OnActivity(job.Send.Name, matchQueue("gone"), anything).Return(job.None{}, scheduleToStartTimeout()).Maybe()
	w.env.OnActivity(job.Send.Name, anything, anything).Return(w.send).Maybe()
	w.onPublish = func() { w.inbound(reports(job.StepDone)...) }
	snap := w.runJob(input(t, job.Options{}, "Done"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Equal(t, 2, w.count(job.Connect.Name))
}

func TestJobRejectsBadInput(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := input(t, job.Options{}, "a")
	in.Job.Steps = nil
	w.env.ExecuteWorkflow(workflows.Job, in)
	var app *temporal.ApplicationError
	require.ErrorAs(t, w.env.GetWorkflowError(), &app)
	require.Equal(t, "Invalid", app.Type())
	require.True(t, app.NonRetryable())
	require.Zero(t, w.count(job.Negotiate.Name))
}

func TestJobContinuesAsNewWithoutLosingAMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := reports("a", job.StepDone)
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if device == scheduler && m.Sequence == 1 { // accepted, and read only in the second run
			w.env.SetContinueAsNewSuggested(true)
			w.inbound(r[2], r[1]) // one is held back, one is routed by the second run at the latest
			return nil, nil
		}
		return w.deliver(device, m)
	}
	w.onPublish = func() { w.inbound(r[0]) }
	w.env.ExecuteWorkflow(workflows.Job, input(t, job.Options{}, "a"))
	var next *workflow.ContinueAsNewError
	require.ErrorAs(t, w.env.GetWorkflowError(), &next)
	var in job.JobInput
	require.NoError(t, decodeInput(next, &in))

	second := newWorld(t)
	second.env.RegisterDelayedCallback(func() {
		_, _ = second.deliver(scheduler, r[0])
		second.inbound(r[1], r[2], r[3])
	}, time.Second)
	snap := second.runJob(in)
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Equal(t, job.Counts{Sent: 5, Accepted: 5, Delivered: 5, Read: 5}, snap.Messages)
	require.Len(t, snap.Updates, 4)
	require.Zero(t, second.count(job.Negotiate.Name), "a new run begins again")
}
