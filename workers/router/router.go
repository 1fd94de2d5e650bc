package router

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/role"
)

// Workflows is what the router needs of Temporal. A Temporal client is one.
type Workflows interface {
	SignalWorkflow(ctx context.Context, workflowID, runID, signalName string, arg any) error
	SignalWithStartWorkflow(ctx context.Context, workflowID, signalName string, signalArg any,
		options client.StartWorkflowOptions, workflow any, workflowArgs ...any) (client.WorkflowRun, error)
}

// Settlement settles a delivery that was received under a lock. What is not settled comes again.
type Settlement interface {
	Complete(ctx context.Context) error
	DeadLetter(ctx context.Context, reason job.Reason, description string) error
}

// Delivery is a message of the queue.
type Delivery struct {
	Message        job.Message
	DeviceID       string // the sender, as the hub authenticated it; empty: the message has not come from the hub
	SequenceNumber int64  // of the queue; a message keeps it over every delivery
	Settlement     Settlement
}

// Counter counts what the router does. Its methods must not block.
type Counter interface {
	Routed(messages int)
	DeadLettered(reason job.Reason)
	Feedback(outcome job.Outcome, recorded bool)
}

const (
	// maxSignal is how many bytes of messages travel in one signal. Temporal takes 2 MB in one payload, and JSON writes a
	// byte of a text with up to six: a zero as \u0000, a "<" as \u003c.
	maxSignal = 256 << 10

	// parallel is how many workflows of a batch are signalled at the same time.
	parallel = 8
)

// Router routes device-to-cloud messages.
type Router struct {
	Workflows Workflows
	Counter   Counter
	Log       *slog.Logger
}

// Handle routes one batch of deliveries, in the order of the queue, and settles each. Messages of one workflow reach it
// in their order; different workflows are served side by side. As long as Temporal is out of reach Handle goes on
// trying, rather than giving the messages back: each return would count against them. What is not settled when ctx ends
// stays in the queue.
func (r *Router) Handle(ctx context.Context, batch []Delivery) {
	var lanes []*lane
	byPair := make(map[string]*lane)
	for _, d := range batch {
		pair, refused := r.check(&d)
		if refused != nil {
			r.deadLetter(ctx, d, *refused)
			continue
		}
		if byPair[pair] == nil {
			byPair[pair] = &lane{pair: pair}
			lanes = append(lanes, byPair[pair])
		}
		byPair[pair].deliveries = append(byPair[pair].deliveries, d)
	}
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for _, l := range lanes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r.serve(ctx, l)
		})
	}
	wg.Wait()
}

// lane is what a batch holds for one workflow.
type lane struct {
	pair       string
	deliveries []Delivery
}

func (r *Router) serve(ctx context.Context, l *lane) {
	for len(l.deliveries) > 0 {
		next := l.next()
		err := r.deliver(ctx, l.pair, next)
		switch {
		case ctx.Err() != nil && err != nil:
			return
		case err != nil:
			for _, d := range next {
				r.deadLetter(ctx, d, refusal{job.ReasonDeviceMessageFailed, err.Error()})
			}
		default:
			r.complete(ctx, next)
		}
	}
}

// next takes as many deliveries as fit into one signal, at least one.
func (l *lane) next() []Delivery {
	size := 0
	for i, d := range l.deliveries {
		size += d.Message.Size()
		if i > 0 && size > maxSignal {
			next := l.deliveries[:i]
			l.deliveries = l.deliveries[i:]
			return next
		}
	}
	next := l.deliveries
	l.deliveries = nil
	return next
}

// deliver returns when a workflow has the messages in its history, when it never will, or when ctx ends.
func (r *Router) deliver(ctx context.Context, pair string, deliveries []Delivery) error {
	in := job.Inbound{}
	for _, d := range deliveries {
		in.Messages = append(in.Messages, d.Message)
	}
	return role.Retry(ctx, r.Log, "signal the workflow of "+pair, func(ctx context.Context) error {
		err := r.Workflows.SignalWorkflow(ctx, job.JobWorkflowID(pair), "", job.SignalInbound, in)
		if !role.NotFound(err) {
			return err
		}
		// Nobody runs a job for this pair: people with a console each, or a job that is over.
		_, err = r.Workflows.SignalWithStartWorkflow(ctx, job.RelayWorkflowID(pair), job.SignalInbound, in,
			client.StartWorkflowOptions{
				TaskQueue:     job.TaskQueueJobs,
				StaticSummary: "messages between the devices of " + pair,
			}, job.WorkflowRelay, job.RelayInput{Pair: pair})
		return err
	})
}

func (r *Router) complete(ctx context.Context, deliveries []Delivery) {
	r.Counter.Routed(len(deliveries))
	for _, d := range deliveries {
		if err := d.Settlement.Complete(ctx); err != nil {
			// It comes again, and the workflow knows it by its ID.
			r.Log.Warn("a routed message could not be completed", "message", d.Message.ID, "error", err)
		}
	}
}

func (r *Router) deadLetter(ctx context.Context, d Delivery, why refusal) {
	r.Log.Warn("message is dead-lettered", "message", d.Message.ID, "device", d.DeviceID,
		"reason", why.reason, "description", why.description)
	if err := d.Settlement.DeadLetter(ctx, why.reason, why.description); err != nil {
		r.Log.Warn("a message could not be dead-lettered", "message", d.Message.ID, "error", err)
		return
	}
	r.Counter.DeadLettered(why.reason)
}

// refusal is why a message is dead-lettered.
type refusal struct {
	reason      job.Reason
	description string
}

// check completes a delivery's message and returns the pair whose workflow it belongs to, or why it can't be routed.
func (r *Router) check(d *Delivery) (pair string, refused *refusal) {
	m := &d.Message
	if m.ID == "" {
		// Foreign senders may leave it out. Repeats are recognised by it, so it must be the same each time.
		m.ID = fmt.Sprintf("device-messages-%d", d.SequenceNumber)
	}
	m.From = d.DeviceID
	if reason := m.Properties[job.PropertyUndeliverableReason]; reason != "" {
		return "", &refusal{knownReason(reason), m.Properties[job.PropertyUndeliverableDescription]}
	}
	_, pair, ok := job.ParseDeviceID(d.DeviceID)
	if !ok {
		return "", &refusal{job.ReasonDeviceIDNotFound, fmt.Sprintf("the sender's device ID %q is not <role>::<job>", d.DeviceID)}
	}
	target, ok := m.Target()
	if !ok {
		return "", &refusal{job.ReasonDeviceNotFound,
			fmt.Sprintf("%q has no counterpart, and the message names no target in %q", d.DeviceID, job.PropertyToDevice)}
	}
	if err := job.ValidateDeviceID(target); err != nil {
		return "", &refusal{job.ReasonDeviceNotFound, fmt.Sprintf("the target in %q: %v", job.PropertyToDevice, err)}
	}
	checked, err := m.Check()
	if err != nil {
		return "", &refusal{job.ReasonInvalidMessage, err.Error()}
	}
	*m = checked
	if size := m.Size(); size > job.MaxCloudToDeviceSize {
		return "", &refusal{job.ReasonDeviceMessageFailed,
			fmt.Sprintf("the message has %d bytes, a cloud-to-device message at most %d", size, job.MaxCloudToDeviceSize)}
	}
	return pair, nil
}

// knownReason keeps what a device could write into the property out of the metrics' labels.
func knownReason(s string) job.Reason {
	switch reason := job.Reason(s); reason {
	case job.ReasonDeviceIDNotFound, job.ReasonDeviceNotFound, job.ReasonInvalidMessage:
		return reason
	}
	return job.ReasonDeviceMessageFailed
}
