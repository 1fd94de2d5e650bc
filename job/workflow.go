package job

import (
	"strings"
	"time"
)

// Names of the workflows.
const (
	WorkflowJob   = "Job"
	WorkflowSolve = "Solve"
	WorkflowRelay = "Relay"
)

// Task queues. A role's process polls only what it has the secrets for; hub calls have queues of their own so that a
// server-side rate limit can hold them below IoT Hub's throttles.
const (
	TaskQueueJobs      = "hubjobs-jobs"      // workflows Job and Relay; activities Publish and Return
	TaskQueueRegistry  = "hubjobs-registry"  // activities Negotiate and Deregister
	TaskQueueDispatch  = "hubjobs-dispatch"  // activity Dispatch
	TaskQueueScheduler = "hubjobs-scheduler" // activity Connect of the schedulers
	TaskQueueSolver    = "hubjobs-solver"    // workflow Solve; activity Accept of the solvers
)

// HostTaskQueue returns the own task queue of one scheduler or solver process.
func HostTaskQueue(role Role, host string) string {
	return "hubjobs-" + role.Short() + "/" + host
}

// SolveWorkflowID returns the ID of the Solve workflow of a job.
func SolveWorkflowID(jobID string) string { return "solve/" + jobID }

// RelayWorkflowID returns the ID of the Relay workflow of a pair of devices without a job.
func RelayWorkflowID(pair string) string { return "relay/" + pair }

// JobWorkflowID returns the ID of the Job workflow of a job: the job ID itself.
func JobWorkflowID(jobID string) string { return jobID }

// JobIDOf returns the job that a workflow ID belongs to: it undoes SolveWorkflowID.
func JobIDOf(workflowID string) string { return strings.TrimPrefix(workflowID, "solve/") }

// Signals. Senders may repeat any of them: the workflows apply each message once, by its ID.
const (
	SignalInbound  = "inbound"  // Inbound: device-to-cloud messages, to Job and Relay, from the router
	SignalReceived = "received" // Received: cloud-to-device messages that a device got, to Job and Solve, from its host
	SignalFeedback = "feedback" // Feedback: what became of cloud-to-device messages, to Job and Relay
	SignalClose    = "close"    // Close: the job has ended, to Solve, from Job
)

// Queries and updates.
const (
	QueryStatus  = "status" // () -> Snapshot, of Job
	QueryAudit   = "audit"  // () -> Audit, of Job and Relay
	UpdateCancel = "cancel" // CancelInput -> CancelOutput, of Job: returns when the request is recorded
)

// Search attributes of Job workflows, all of type Keyword.
const (
	SearchAttributeStatus = "HubjobsStatus" // a State
	SearchAttributeStep   = "HubjobsStep"   // the step that was reported last
)

// Inbound carries device-to-cloud messages, in the order of the queue.
type Inbound struct {
	Messages []Message `json:"messages"`
}

// Received carries cloud-to-device messages that a device's host holds unacknowledged until this is recorded.
type Received struct {
	DeviceID string    `json:"deviceId"`
	Messages []Message `json:"messages"`
}

// Outcome is what delivery feedback says of a cloud-to-device message (IoT Hub docs, "Message feedback").
type Outcome string

// The outcomes of delivery feedback.
const (
	OutcomeSuccess               Outcome = "Success"
	OutcomeExpired               Outcome = "Expired"
	OutcomeDeliveryCountExceeded Outcome = "DeliveryCountExceeded"
	OutcomeRejected              Outcome = "Rejected"
	OutcomePurged                Outcome = "Purged"
)

// FeedbackRecord is the outcome of one cloud-to-device message.
type FeedbackRecord struct {
	MessageID   string    `json:"messageId"`
	DeviceID    string    `json:"deviceId"`
	Outcome     Outcome   `json:"outcome"`
	Description string    `json:"description,omitempty"`
	At          time.Time `json:"at"`
}

// Feedback carries the outcomes of messages of one workflow.
type Feedback struct {
	Records []FeedbackRecord `json:"records"`
}

// Close tells Solve that its job has ended and nobody will answer any more.
type Close struct {
	Reason string `json:"reason"`
}

// CancelInput asks for a job's cancellation.
type CancelInput struct {
	Reason string `json:"reason"`
	By     string `json:"by,omitempty"`
}

// CancelOutput says in which state the request found the job.
type CancelOutput struct {
	State State `json:"state"`
}

// Options are the settings of one job. Zero values mean the defaults of WithDefaults.
type Options struct {
	Solver          SolverOptions `json:"solver"`
	Timeout         time.Duration `json:"timeout"`         // of the whole job, from its start; default 24 h
	AcceptTimeout   time.Duration `json:"acceptTimeout"`   // until a solver reports the first step; default 10 min
	ReceiptTimeout  time.Duration `json:"receiptTimeout"`  // until a message is read, before it is sent again; default 1 min
	ReceiptAttempts int           `json:"receiptAttempts"` // how often a message is sent in all; default 5
	CancelTimeout   time.Duration `json:"cancelTimeout"`   // until the solver answers a cancellation; default 1 min
	MessageTTL      time.Duration `json:"messageTtl"`      // how long the hub keeps a message for a device; default 1 h
	Window          int           `json:"window"`          // messages of the job that may wait in the hub for a device; default 8
}

// SolverOptions are the settings that travel to the solver with the job. Zero values leave the solver its own.
type SolverOptions struct {
	StepTime       *time.Duration `json:"stepTime,omitempty"`       // how long a simulated step takes
	StepTimeout    time.Duration  `json:"stepTimeout,omitempty"`    // a step is stopped after that
	StepRetries    int            `json:"stepRetries,omitempty"`    // how often a failed step is run again
	ReceiptTimeout time.Duration  `json:"receiptTimeout,omitempty"` // how long the solver waits for the last read receipts
	Deadline       time.Time      `json:"deadline,omitzero"`        // the job's; nothing is started after it
	AcceptBefore   time.Time      `json:"acceptBefore,omitzero"`    // a solver that finds the job later leaves it alone
}

// WithDefaults returns o with every zero value replaced by its default.
func (o Options) WithDefaults() Options {
	setDuration(&o.Timeout, 24*time.Hour)
	setDuration(&o.AcceptTimeout, 10*time.Minute)
	setDuration(&o.ReceiptTimeout, time.Minute)
	setDuration(&o.CancelTimeout, time.Minute)
	setDuration(&o.MessageTTL, time.Hour)
	if o.ReceiptAttempts == 0 {
		o.ReceiptAttempts = 5
	}
	if o.Window == 0 {
		o.Window = 8
	}
	return o
}

func setDuration(d *time.Duration, def time.Duration) {
	if *d == 0 {
		*d = def
	}
}

// Validate reports the first setting that makes no sense. The error matches ErrInvalid.
func (o Options) Validate() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"timeout", o.Timeout}, {"accept timeout", o.AcceptTimeout}, {"receipt timeout", o.ReceiptTimeout},
		{"cancel timeout", o.CancelTimeout}, {"message TTL", o.MessageTTL}, {"step timeout", o.Solver.StepTimeout},
	} {
		if d.value < 0 {
			return invalid("the %s is negative: %s", d.name, d.value)
		}
	}
	switch {
	case o.Solver.StepTime != nil && *o.Solver.StepTime < 0:
		return invalid("the step time is negative: %s", *o.Solver.StepTime)
	case o.MessageTTL > 48*time.Hour: // IoT Hub docs, "Cloud-to-device messages": time to live up to 2 days
		return invalid("the message TTL is %s, IoT Hub allows at most 48h", o.MessageTTL)
	case o.ReceiptAttempts < 0 || o.ReceiptAttempts > 100:
		return invalid("receipt attempts: %d is not between 1 and 100", o.ReceiptAttempts)
	case o.Solver.StepRetries < 0 || o.Solver.StepRetries > 1000:
		return invalid("step retries: %d is not between 0 and 1000", o.Solver.StepRetries)
	case o.Window < 0 || o.Window > MaxDeviceQueue:
		return invalid("the window is %d, a device's queue holds at most %d messages", o.Window, MaxDeviceQueue)
	}
	return nil
}

// JobInput starts a Job workflow.
type JobInput struct {
	Job         Job     `json:"job"`
	Options     Options `json:"options"`
	RequestedBy string  `json:"requestedBy,omitempty"`
	// Carried is set by the workflow itself when it continues as new.
	Carried *Carried `json:"carried,omitempty"`
}

// SolveInput starts a Solve workflow.
type SolveInput struct {
	Job     Job           `json:"job"`
	Options SolverOptions `json:"options"`
}

// SolveResult is how a Solve workflow ended.
type SolveResult struct {
	JobID       string `json:"jobId"`
	Status      Status `json:"status"`
	Reason      string `json:"reason,omitempty"`
	StepsRun    int    `json:"stepsRun"`
	Unconfirmed int    `json:"unconfirmed"` // own messages without a read receipt
}

// RelayInput starts a Relay workflow for a pair of devices without a job.
type RelayInput struct {
	Pair    string        `json:"pair"`
	Idle    time.Duration `json:"idle"` // the relay ends after that time without a message; default 5 min
	TTL     time.Duration `json:"ttl"`  // how long the hub keeps a message for a device; default 1 h
	Carried []MessageRow  `json:"carried,omitempty"`
}

// RelayResult counts what a Relay workflow carried.
type RelayResult struct {
	Pair   string `json:"pair"`
	Counts Counts `json:"counts"`
}
