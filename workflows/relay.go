package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

const (
	defaultRelayIdle = 5 * time.Minute
	defaultRelayTTL  = time.Hour

	// relayRemembers is how many of its last messages a relay knows by ID, so that a repeat is not sent again.
	relayRemembers = 1000
)

// Relay routes the messages of a pair of devices that have no job, each to its counterpart or to the device that it
// names, and ends when the pair has been idle for a while. Nothing is expected of the devices: no receipt is awaited.
func Relay(ctx workflow.Context, in job.RelayInput) (job.RelayResult, error) {
	if in.Idle <= 0 {
		in.Idle = defaultRelayIdle
	}
	if in.TTL <= 0 {
		in.TTL = defaultRelayTTL
	}
	r := &relayRun{in: in, courier: newCourier(job.MaxDeviceQueue/2-1, in.TTL, tracked(in.Carried))}
	err := workflow.SetQueryHandlerWithOptions(ctx, job.QueryAudit,
		func() (job.Audit, error) { return job.Audit{JobID: in.Pair, Messages: r.courier.rows()}, nil },
		workflow.QueryHandlerOptions{Description: "the pair's last messages and how far each has come"})
	if err != nil {
		return job.RelayResult{}, err
	}
	return r.run(ctx)
}

// relayRun is the state of Relay.
type relayRun struct {
	in      job.RelayInput
	courier *courier
	taken   int // signals applied in this run
}

func tracked(rows []job.MessageRow) []job.Tracked {
	var t []job.Tracked
	for _, row := range rows {
		t = append(t, job.Tracked{Row: row})
	}
	return t
}

// run takes messages until none has come for the idle time and none is under way.
func (r *relayRun) run(ctx workflow.Context) (job.RelayResult, error) {
	workflow.Go(ctx, r.receive)
	workflow.Go(ctx, r.courier.run)
	for {
		before := r.taken
		over := await(ctx, r.in.Idle, "end when the pair is idle", func() bool {
			return workflow.GetInfo(ctx).GetContinueAsNewSuggested()
		})
		switch {
		case ctx.Err() != nil:
			return r.result(), ctx.Err()
		case !over:
			return r.result(), r.continueAsNew(ctx)
		}
		r.drain(ctx) // a message may have come together with the timer
		if r.taken == before && r.courier.idle() {
			return r.result(), nil
		}
	}
}

// receive applies signals until ctx ends.
func (r *relayRun) receive(ctx workflow.Context) {
	s := workflow.NewSelector(ctx)
	on(ctx, s, job.SignalInbound, func(in job.Inbound) { r.inbound(ctx, in) })
	on(ctx, s, job.SignalFeedback, r.courier.feedback)
	s.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {})
	for ctx.Err() == nil {
		s.Select(ctx)
		n := r.result().Counts
		workflow.SetCurrentDetails(ctx, fmt.Sprintf("%d messages, %d accepted, %d delivered, %d refused",
			n.Sent, n.Accepted, n.Delivered, n.Refused))
	}
}

// inbound takes messages as they come: a pair without a job may start again at any sequence, so that is not an order.
func (r *relayRun) inbound(ctx workflow.Context, in job.Inbound) {
	r.taken++
	for _, m := range in.Messages {
		if receipt, err := job.DecodeReceipt(m.Body); m.Kind == job.KindReceipt && err == nil {
			r.courier.read(m.From, receipt)
		}
		r.courier.take(ctx, m)
	}
}

// drain applies the messages that have come but were not received yet.
func (r *relayRun) drain(ctx workflow.Context) {
	drain(ctx, job.SignalInbound, func(in job.Inbound) { r.inbound(ctx, in) })
}

// result returns what the workflow returns.
func (r *relayRun) result() job.RelayResult {
	return job.RelayResult{Pair: r.in.Pair, Counts: r.courier.count(func(job.MessageRow) bool { return true })}
}

// continueAsNew goes on in a new run that knows the last messages.
func (r *relayRun) continueAsNew(ctx workflow.Context) error {
	for settled := false; !settled; {
		if err := workflow.Await(ctx, r.courier.idle); err != nil {
			return err
		}
		before := r.taken
		r.drain(ctx)
		settled = r.taken == before
	}
	rows := r.courier.rows()
	r.in.Carried = rows[max(0, len(rows)-relayRemembers):]
	return workflow.NewContinueAsNewError(ctx, job.WorkflowRelay, r.in)
}
