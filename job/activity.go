package job

import "time"

// Activity names an activity together with the types of its input and output, so that who calls it and who implements
// it can't disagree: workflows call it by this reference, workers register its function by the same reference.
type Activity[In, Out any] struct {
	Name string
}

// None is the output of an activity that has nothing to say but that it is done.
type None struct{}

// Activities of the manager.
var (
	// Negotiate makes sure that device identities exist. An identity that is already there is success.
	Negotiate = Activity[NegotiateInput, NegotiateOutput]{Name: "Negotiate"}
	// Deregister makes sure that device identities don't exist. A missing identity is success.
	Deregister = Activity[DeregisterInput, None]{Name: "Deregister"}
	// Publish puts a job on the topic, with the job ID as message ID.
	Publish = Activity[PublishInput, None]{Name: "Publish"}
	// Dispatch sends cloud-to-device messages to one device, in order.
	Dispatch = Activity[DispatchInput, DispatchOutput]{Name: "Dispatch"}
	// Return puts messages that can't be delivered back on the queue, with the reason, for the router to dead-letter.
	Return = Activity[ReturnInput, None]{Name: "Return"}
)

// Activities of a device's host: a scheduler or a solver worker. Connect and Accept run on the role's task queue and
// return the host's own; the others run there.
var (
	// Connect connects a device, or finds it connected, and says on which host.
	Connect = Activity[ConnectInput, ConnectOutput]{Name: "Connect"}
	// Accept is a solver's Connect; it also checks that the solver can run every step of the job.
	Accept = Activity[AcceptInput, AcceptOutput]{Name: "Accept"}
	// Send publishes device-to-cloud messages, in order, each confirmed by the hub.
	Send = Activity[SendInput, None]{Name: "Send"}
	// RunStep reports a step In Progress, runs it, and reports it Completed. A step that fails is an output, not an
	// error: errors are for what keeps the step from being run or reported.
	RunStep = Activity[RunStepInput, RunStepOutput]{Name: "RunStep"}
	// Disconnect closes a device's connection. A device that isn't connected is success.
	Disconnect = Activity[DisconnectInput, None]{Name: "Disconnect"}
)

// NegotiateInput lists the device IDs that shall exist.
type NegotiateInput struct {
	DeviceIDs []string `json:"deviceIds"`
}

// NegotiateOutput lists the device IDs that did not exist before. A retry may list fewer.
type NegotiateOutput struct {
	Created []string `json:"created,omitempty"`
}

// DeregisterInput lists the device IDs that shall not exist.
type DeregisterInput struct {
	DeviceIDs []string `json:"deviceIds"`
}

// PublishInput is the job and the settings that travel with it.
type PublishInput struct {
	Job     Job           `json:"job"`
	Options SolverOptions `json:"options"`
}

// DispatchInput is what to send to one device.
type DispatchInput struct {
	DeviceID string        `json:"deviceId"`
	Messages []Message     `json:"messages"`
	TTL      time.Duration `json:"ttl"` // how long the hub keeps a message for the device
}

// DispatchOutput lists the messages that can never be delivered; the hub accepted all others.
type DispatchOutput struct {
	Refused []Refusal `json:"refused,omitempty"`
}

// Refusal says why a message can't be delivered.
type Refusal struct {
	MessageID   string `json:"messageId"`
	Reason      Reason `json:"reason"`
	Description string `json:"description"`
}

// ReturnInput lists messages with the reason why each can't be delivered.
type ReturnInput struct {
	Messages []Undeliverable `json:"messages"`
}

// Undeliverable is a message and why it can't be delivered.
type Undeliverable struct {
	Message     Message `json:"message"`
	Reason      Reason  `json:"reason"`
	Description string  `json:"description"`
}

// Session says which device a host shall hold connected, and which workflow records what the device receives. It is
// part of each host activity's input, so that a restarted host can connect again by itself.
type Session struct {
	DeviceID   string `json:"deviceId"`
	WorkflowID string `json:"workflowId"`
}

// ConnectInput is the session to open.
type ConnectInput struct {
	Session Session `json:"session"`
}

// ConnectOutput is the host that holds the connection, and its own task queue.
type ConnectOutput struct {
	Host      string `json:"host"`
	TaskQueue string `json:"taskQueue"`
}

// AcceptInput is the session to open and the job to check.
type AcceptInput struct {
	Session Session `json:"session"`
	Job     Job     `json:"job"`
}

// AcceptOutput is the host, and, when the solver can't run the job, the first step that it can't run and why.
type AcceptOutput struct {
	ConnectOutput
	RejectedStep string `json:"rejectedStep,omitempty"`
	Rejection    string `json:"rejection,omitempty"`
}

// SendInput is what to publish over the session's connection.
type SendInput struct {
	Session  Session   `json:"session"`
	Messages []Message `json:"messages"`
}

// RunStepInput is one step to run. It leaves the job's other steps out: with all of them in each input, the history of
// a long job would grow with the square of its steps.
type RunStepInput struct {
	Session  Session       `json:"session"`
	JobID    string        `json:"jobId"`
	JobName  string        `json:"jobName"`
	Step     string        `json:"step"`
	Index    int           `json:"index"`    // of the step in the job, from 0
	Sequence int           `json:"sequence"` // of the In Progress update; Completed has the next one
	Attempt  int           `json:"attempt"`  // 1, 2, ...: passed to the step so that it can be idempotent
	Time     time.Duration `json:"time"`     // how long a simulated step takes; negative: the solver's default
	Timeout  time.Duration `json:"timeout"`  // the step is stopped after that; 0: no limit
	Resume   *StepProgress `json:"resume,omitempty"`
}

// StepProgress is the heartbeat of RunStep: what is done already and must not be done again.
type StepProgress struct {
	Reported bool   `json:"reported"` // In Progress was published
	Ran      bool   `json:"ran"`      // the step has completed
	Output   string `json:"output,omitempty"`
}

// RunStepOutput says how the step ended.
type RunStepOutput struct {
	Status Status `json:"status"` // StatusCompleted or StatusFailed
	Reason string `json:"reason,omitempty"`
	Output string `json:"output,omitempty"` // what the step printed, cut
}

// DisconnectInput is the session to close.
type DisconnectInput struct {
	Session Session `json:"session"`
}
