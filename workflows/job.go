package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
)

// Job carries one job from its negotiation to the deregistration of its device identities. Its ID is the job ID.
//
// The scheduler's device and the solver's talk through the hub; Job routes each message to its target and records how
// far it has come. It ends when the solver's side has ended and every message was read, or when one of its deadlines
// says that this won't happen. Result and error are described at job.Result.
func Job(ctx workflow.Context, in job.JobInput) (job.Result, error) {
	r, err := newJobRun(ctx, in)
	if err != nil {
		return job.Result{}, temporal.NewNonRetryableApplicationError(err.Error(), job.ErrorType(err), err)
	}
	// A request to cancel the workflow is a request to cancel the job: the work itself goes on to an orderly end.
	work, stop := workflow.NewDisconnectedContext(ctx)
	defer stop()
	if err := r.listen(ctx, work); err != nil {
		return job.Result{}, err
	}
	carry, drop := workflow.WithCancel(work)
	r.serve(carry)
	if in.Carried == nil {
		r.begin(work)
	}
	if r.run(work) == continues {
		return job.Result{}, r.continueAsNew(work)
	}
	r.awaitReturns(work)
	drop()
	r.close(work)
	return r.result()
}

// verdict is how one run of the workflow ends.
type verdict bool

const (
	ends      verdict = false // the job has ended
	continues verdict = true  // the job goes on in a new run
)

// jobRun is the state of one run of Job.
type jobRun struct {
	in      job.JobInput
	snap    job.Snapshot
	courier *courier
	order   *order
	host    *host   // of the scheduler's device
	reader  *reader // for the scheduler's device

	sequence    int              // of the scheduler's next message
	published   bool             // the job may be on the topic
	ending      job.State        // how the solver's side ended; empty while it goes on
	outcome     job.State        // how the job ends; empty while it is open
	cancel      *job.CancelInput // a cancellation was asked for
	cancelSent  time.Time        // when the solver was told
	native      bool             // the workflow itself was cancelled
	negotiating int              // activities Negotiate under way
	waits       map[string]int   // message ID -> receipt timeouts that have passed without a receipt
	checked     map[string]time.Time
	shown       job.Snapshot // what the search attributes say
}

func newJobRun(ctx workflow.Context, in job.JobInput) (*jobRun, error) {
	if err := in.Job.Validate(); err != nil {
		return nil, err
	}
	if err := in.Options.Validate(); err != nil {
		return nil, err
	}
	in.Options = in.Options.WithDefaults()
	carried := in.Carried
	if carried == nil {
		carried = &job.Carried{Snapshot: firstSnapshot(ctx, in), Sequence: 1}
	}
	r := &jobRun{
		in:         in,
		snap:       carried.Snapshot,
		courier:    newCourier(in.Options.Window, in.Options.MessageTTL, carried.Tracked),
		order:      newOrder(carried.Expected, carried.Held),
		ending:     carried.Ending,
		cancel:     carried.Cancel,
		cancelSent: carried.CancelSent,
		published:  in.Carried != nil,
		sequence:   carried.Sequence,
		waits:      make(map[string]int),
		checked:    make(map[string]time.Time),
	}
	for _, t := range r.courier.tracked {
		r.order.seen[key{t.Row.From, t.Row.ID}] = true
	}
	r.host = &host{
		session: job.Session{DeviceID: r.schedulerID(), WorkflowID: job.JobWorkflowID(in.Job.CorrelationID)},
		connect: r.connect,
		at:      carried.Host,
	}
	r.reader = &reader{
		jobID: in.Job.CorrelationID, role: job.RoleScheduler, host: r.host,
		pending: carried.Unread, sent: carried.Receipts,
		delay: min(receiptDelay, in.Options.ReceiptTimeout/4), batch: (in.Options.Window + 1) / 2,
		urgent: func() bool { return r.ending != "" || r.cancel != nil },
	}
	return r, nil
}

func firstSnapshot(ctx workflow.Context, in job.JobInput) job.Snapshot {
	now := workflow.Now(ctx).UTC()
	return job.Snapshot{
		JobID: in.Job.CorrelationID, Name: in.Job.Name, Steps: in.Job.Steps, RequestedBy: in.RequestedBy,
		State: job.StateStarting, StartedAt: now, Deadline: now.Add(in.Options.Timeout),
	}
}

func (r *jobRun) schedulerID() string {
	return job.DeviceID(job.RoleScheduler, r.in.Job.CorrelationID)
}
func (r *jobRun) solverID() string { return job.DeviceID(job.RoleSolver, r.in.Job.CorrelationID) }

// listen registers the handlers and starts to take signals. ctx is the workflow's own context, work outlives its
// cancellation.
func (r *jobRun) listen(ctx, work workflow.Context) error {
	if err := r.handle(ctx); err != nil {
		return err
	}
	workflow.Go(work, r.receive)
	workflow.Go(ctx, func(ctx workflow.Context) {
		ctx.Done().Receive(ctx, nil)
		r.native = true
		r.requestCancel(job.CancelInput{Reason: "the workflow was cancelled"})
	})
	return nil
}

// handle registers queries and the cancel update.
func (r *jobRun) handle(ctx workflow.Context) error {
	err := workflow.SetQueryHandlerWithOptions(ctx, job.QueryStatus,
		func() (job.Snapshot, error) { return r.snapshot(), nil },
		workflow.QueryHandlerOptions{Description: "where the job stands: step, updates, message counts"})
	if err != nil {
		return err
	}
	err = workflow.SetQueryHandlerWithOptions(ctx, job.QueryAudit,
		func() (job.Audit, error) { return job.Audit{JobID: r.snap.JobID, Messages: r.courier.rows()}, nil },
		workflow.QueryHandlerOptions{Description: "every message of the job and how far it has come"})
	if err != nil {
		return err
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, job.UpdateCancel,
		func(_ workflow.Context, in job.CancelInput) (job.CancelOutput, error) {
			r.requestCancel(in)
			return job.CancelOutput{State: r.snap.State}, nil
		},
		workflow.UpdateHandlerOptions{
			Description: "stop the job: the solver is told, and answers before the job ends",
			Validator: func(workflow.Context, job.CancelInput) error {
				if r.outcome != "" || r.ending != "" {
					return temporal.NewApplicationError("the job has already ended", job.ErrorType(job.ErrPrecondition))
				}
				return nil
			},
		})
}

func (r *jobRun) requestCancel(in job.CancelInput) {
	if r.cancel == nil {
		r.cancel = &in
	}
}

// receive applies signals until ctx ends.
func (r *jobRun) receive(ctx workflow.Context) {
	s := workflow.NewSelector(ctx)
	on(ctx, s, job.SignalInbound, func(in job.Inbound) { r.inbound(ctx, in) })
	on(ctx, s, job.SignalReceived, r.received)
	on(ctx, s, job.SignalFeedback, r.courier.feedback)
	s.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {})
	for ctx.Err() == nil {
		s.Select(ctx)
		for ctx.Err() == nil && s.HasPending() {
			s.Select(ctx)
		}
		r.show(ctx)
	}
}

// inbound takes what the devices of the job sent to the cloud.
func (r *jobRun) inbound(ctx workflow.Context, in job.Inbound) {
	for _, came := range in.Messages {
		if r.courier.retake(ctx, came) { // it has changed the job when it came first
			continue
		}
		for _, m := range r.order.admit(came) {
			r.apply(ctx, m)
			r.courier.take(ctx, m)
		}
	}
}

// apply lets a message in its order change the job.
func (r *jobRun) apply(ctx workflow.Context, m job.Message) {
	switch m.Kind {
	case job.KindUpdate:
		u, err := job.DecodeUpdate(m.Body)
		if err == nil && m.From == r.solverID() && u.CorrelationID == r.snap.JobID {
			r.update(ctx, m.Sequence, u)
		}
	case job.KindReceipt:
		if receipt, err := job.DecodeReceipt(m.Body); err == nil {
			r.courier.read(m.From, receipt)
		}
	}
}

// update applies what the solver reports. After its last word nothing changes the job any more.
func (r *jobRun) update(ctx workflow.Context, sequence int, u job.Update) {
	r.snap.Updates = append(r.snap.Updates, job.Applied{
		Sequence: sequence, Step: u.Step, Status: u.Status, Reason: u.Reason, At: workflow.Now(ctx).UTC(),
	})
	if r.ending != "" {
		return
	}
	r.snap.Step, r.snap.Status = u.Step, u.Status
	if r.snap.State == job.StateStarting || r.snap.State == job.StateScheduled {
		r.snap.State = job.StateRunning
	}
	if u.Status == job.StatusCompleted {
		r.snap.StepsDone++
	}
	if u.Done() || u.Status.Final() {
		r.ending, r.snap.Reason = endingOf(u)
	}
}

// endingOf returns how a job ends after its solver's last update, and why in one line.
func endingOf(u job.Update) (job.State, string) {
	because := ""
	if u.Reason != "" {
		because = ": " + u.Reason
	}
	switch u.Status {
	case job.StatusFailed:
		return job.StateFailed, "step \"" + u.Step + "\" failed" + because
	case job.StatusRejected:
		return job.StateRejected, "the solver rejected step \"" + u.Step + "\"" + because
	case job.StatusCancelled:
		return job.StateCancelled, "cancelled" + because
	}
	return job.StateCompleted, ""
}

// received takes what the scheduler's device got from the hub: it is read now, and its sender shall know.
func (r *jobRun) received(in job.Received) {
	if in.DeviceID == r.schedulerID() {
		r.reader.confirm(in.Messages)
	}
}

// serve starts what carries messages, until ctx ends.
func (r *jobRun) serve(ctx workflow.Context) {
	workflow.Go(ctx, r.courier.run)
	workflow.Go(ctx, r.reader.run)
	workflow.Go(ctx, r.watchReceipts)
}

// result returns what the workflow returns.
func (r *jobRun) result() (job.Result, error) {
	snap := r.snapshot()
	switch {
	case snap.State == job.StateCancelled && r.native:
		return snap, temporal.NewCanceledError(snap)
	case snap.State == job.StateCompleted, snap.State == job.StateCancelled:
		return snap, nil
	}
	return snap, temporal.NewNonRetryableApplicationError(snap.Reason, string(snap.State), nil, snap)
}

// continueAsNew hands the job to a new run, with every signal that has come applied.
func (r *jobRun) continueAsNew(ctx workflow.Context) error {
	in := r.in
	in.Carried = &job.Carried{
		Snapshot: r.snap, Tracked: r.courier.carried(), Expected: r.order.expected, Held: r.order.held,
		Unread: r.reader.pending, Receipts: r.reader.sent, Sequence: r.sequence, Host: r.host.at,
		Ending: r.ending, Cancel: r.cancel, CancelSent: r.cancelSent,
	}
	return workflow.NewContinueAsNewError(ctx, job.WorkflowJob, in)
}
