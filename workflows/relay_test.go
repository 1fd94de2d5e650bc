package workflows_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workflows"
)

func line(id, from, text string) job.Message {
	return job.Message{ID: id, From: from, Body: job.Body(text)}
}

func (w *world) friendly() {
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		w.feedback(device, m.ID, job.OutcomeSuccess)
		return nil, nil
	}
}

func TestRelayRoutesBothWaysAndEndsWhenIdle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.friendly()
	w.env.RegisterDelayedCallback(func() {
		w.inbound(line("1", "device-scheduler::foo", "hi"), line("2", "device-solver::foo", "hello"), line("1", "device-scheduler::foo", "hi"))
	}, time.Second)
	w.env.RegisterDelayedCallback(func() { w.inbound(line("3", "device-scheduler::foo", "bye")) }, 4*time.Minute)
	w.env.ExecuteWorkflow(workflows.Relay, job.RelayInput{Pair: "foo"})
	require.NoError(t, w.env.GetWorkflowError())
	var out job.RelayResult
	require.NoError(t, w.env.GetWorkflowResult(&out))
	require.Equal(t, job.Counts{Sent: 3, Accepted: 3, Delivered: 3}, out.Counts)
	require.Len(t, w.dispatched, 3)
}

func TestRelayFollowsTheTargetThatAMessageNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var target string
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		target = device
		return nil, nil
	}
	m := line("1", "device-scheduler::foo", "hi")
	m.To = "device-x::bar"
	w.env.RegisterDelayedCallback(func() { w.inbound(m) }, time.Second)
	w.env.ExecuteWorkflow(workflows.Relay, job.RelayInput{Pair: "foo"})
	require.NoError(t, w.env.GetWorkflowError())
	require.Equal(t, "device-x::bar", target)
}

func TestRelayReturnsWhatHasNoTarget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.friendly()
	w.env.RegisterDelayedCallback(func() { w.inbound(line("1", "camera::foo", "hi")) }, time.Second)
	w.env.ExecuteWorkflow(workflows.Relay, job.RelayInput{Pair: "foo"})
	require.NoError(t, w.env.GetWorkflowError())
	require.Len(t, w.returned, 1)
	require.Equal(t, job.ReasonDeviceNotFound, w.returned[0].Reason)
}

// A message that was refused goes its way when it is resubmitted after its cause was mended, once, and only then.
func TestRelayCarriesARefusedMessageAgainWhenItIsResubmitted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	known := false
	w.onDispatch = func(device string, m job.Message) (*job.Refusal, error) {
		if !known {
			return &job.Refusal{MessageID: m.ID, Reason: job.ReasonDeviceNotFound, Description: "no such device"}, nil
		}
		w.feedback(device, m.ID, job.OutcomeSuccess)
		return nil, nil
	}
	original := line("1", "device-scheduler::foo", "hi")
	copied := original
	copied.Properties = map[string]string{job.PropertyResubmitted: "17"}
	w.env.RegisterDelayedCallback(func() { w.inbound(original) }, time.Second)
	w.env.RegisterDelayedCallback(func() { w.inbound(copied) }, 20*time.Second)
	w.env.RegisterDelayedCallback(func() {
		known = true
		w.inbound(original)
	}, 40*time.Second)
	w.env.RegisterDelayedCallback(func() {
		require.Empty(t, w.dispatched, "a repeat was taken for a resubmission")
		w.inbound(copied, copied)
	}, time.Minute)
	w.env.ExecuteWorkflow(workflows.Relay, job.RelayInput{Pair: "foo"})
	require.NoError(t, w.env.GetWorkflowError())
	var out job.RelayResult
	require.NoError(t, w.env.GetWorkflowResult(&out))
	require.Equal(t, job.Counts{Sent: 1, Accepted: 1, Delivered: 1, Resent: 2}, out.Counts)
	require.Len(t, w.dispatched, 1)
	require.Len(t, w.returned, 2, "refused once more while the device was unknown")
}

func TestRelayContinuesAsNewAndStillKnowsItsMessages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.friendly()
	w.onDispatch = func(string, job.Message) (*job.Refusal, error) {
		w.env.SetContinueAsNewSuggested(true)
		return nil, nil
	}
	w.env.RegisterDelayedCallback(func() { w.inbound(line("1", "device-scheduler::foo", "hi")) }, time.Second)
	w.env.ExecuteWorkflow(workflows.Relay, job.RelayInput{Pair: "foo"})
	var next *workflow.ContinueAsNewError
	require.ErrorAs(t, w.env.GetWorkflowError(), &next)
	require.Len(t, w.dispatched, 1, "the message was left behind")
	var in job.RelayInput
	require.NoError(t, decodeInput(next, &in))

	second := newWorld(t)
	second.friendly()
	second.env.RegisterDelayedCallback(func() {
		second.inbound(line("1", "device-scheduler::foo", "hi"), line("2", "device-scheduler::foo", "again"))
	}, time.Second)
	second.env.ExecuteWorkflow(workflows.Relay, in)
	require.NoError(t, second.env.GetWorkflowError())
	require.Len(t, second.dispatched, 1)
	require.Equal(t, "2", second.dispatched[0].ID)
}
