package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hubjobs/hubjobs/job"
)

// A message that waits in its lane to be sent again may be read meanwhile.
func TestJobDropsTheRepetitionOfWhatWasReadMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, second := job.MessageID(jobID, job.RoleSolver, 1), job.MessageID(jobID, job.RoleSolver, 2)
	tries := 0
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		switch m.ID {
		case first:
			w.feedback(device, m.ID, job.OutcomeSuccess)
			return nil, nil
		case second: // keeps the lane busy until the first one's receipt is overdue, and then has come
			if tries++; tries == 5 {
				w.inbound(receipt(scheduler, "late", first))
			}
			if tries <= 5 {
				return nil, errors.New("device queue is full")
			}
		}
		return w.deliver(device, m)
	}
	w.onPublish = func() {
		messages := reports(job.StepDone)
		w.inbound(messages[0])
		w.env.RegisterDelayedCallback(func() { w.inbound(messages[1]) }, time.Second)
	}
	snap := w.runJob(input(t, job.Options{ReceiptTimeout: 5 * time.Second}, "Done"))
	require.Equal(t, job.StateCompleted, snap.State, snap.Reason)
	require.Zero(t, snap.Messages.Resent)
}
