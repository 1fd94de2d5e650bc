package job

import "time"

// State is where a job stands. The first group passes, the second is how a job ends.
type State string

// The states of a job.
const (
	StateStarting   State = "Starting"   // identities and the scheduler's connection are made
	StateScheduled  State = "Scheduled"  // on the topic; no solver has reported yet
	StateRunning    State = "Running"    // a solver has reported a step
	StateConfirming State = "Confirming" // the solver is done; read receipts are awaited
	StateCancelling State = "Cancelling" // the solver was told to stop
	StateClosing    State = "Closing"    // identities are deregistered

	StateCompleted   State = "Completed"   // done, and every message was read
	StateUnconfirmed State = "Unconfirmed" // done, but some message was never read
	StateFailed      State = "Failed"      // a step failed for good, or the pipeline could not carry the job
	StateCancelled   State = "Cancelled"   // on request
	StateRejected    State = "Rejected"    // the solver can't run the job
	StateExpired     State = "Expired"     // its time ran out, or no solver took it in time
)

// Ended reports whether s is one of the states in which a job ends.
func (s State) Ended() bool {
	switch s {
	case StateCompleted, StateUnconfirmed, StateFailed, StateCancelled, StateRejected, StateExpired:
		return true
	}
	return false
}

// MessageRow is what the audit knows of one message: the rungs of the receipt ladder that it has climbed, and when.
type MessageRow struct {
	ID          string    `json:"id"`
	Kind        Kind      `json:"kind,omitempty"`
	Sequence    int       `json:"sequence,omitempty"`
	From        string    `json:"from"`
	To          string    `json:"to,omitempty"`
	Step        string    `json:"step,omitempty"`   // of an update
	Status      Status    `json:"status,omitempty"` // of an update
	SentAt      time.Time `json:"sentAt,omitzero"`  // the hub took it from its sender
	AcceptedAt  time.Time `json:"acceptedAt,omitzero"`
	DeliveredAt time.Time `json:"deliveredAt,omitzero"`
	ReadAt      time.Time `json:"readAt,omitzero"`
	Attempts    int       `json:"attempts"`          // cloud-to-device sends
	Outcome     Outcome   `json:"outcome,omitempty"` // of the last feedback
	Refused     Reason    `json:"refused,omitempty"` // it could not be delivered
}

// Counts sums up messages.
type Counts struct {
	Sent      int `json:"sent"`      // reached the pipeline
	Accepted  int `json:"accepted"`  // the hub took them for their target
	Delivered int `json:"delivered"` // feedback says Success
	Read      int `json:"read"`      // the reader's receipt came
	Resent    int `json:"resent"`    // sends beyond a message's first
	Refused   int `json:"refused"`   // could not be delivered
}

// Snapshot is the state of a job as people see it.
type Snapshot struct {
	JobID       string    `json:"jobId"`
	Name        string    `json:"name"`
	State       State     `json:"state"`
	Reason      string    `json:"reason,omitempty"` // why it ended so, or what it waits for, in one line
	Steps       []string  `json:"steps"`
	StepsDone   int       `json:"stepsDone"`
	Step        string    `json:"step,omitempty"`   // reported last
	Status      Status    `json:"status,omitempty"` // of that step
	Updates     []Applied `json:"updates,omitempty"`
	Messages    Counts    `json:"messages"` // of the messages that a reader confirms
	Receipts    Counts    `json:"receipts"` // of the read receipts themselves
	RequestedBy string    `json:"requestedBy,omitempty"`
	StartedAt   time.Time `json:"startedAt"`
	EndedAt     time.Time `json:"endedAt,omitzero"`
	Deadline    time.Time `json:"deadline"`
}

// Applied is an update of the solver in the order in which the job applied it.
type Applied struct {
	Sequence int       `json:"sequence"`
	Step     string    `json:"step"`
	Status   Status    `json:"status"`
	Reason   string    `json:"reason,omitempty"`
	At       time.Time `json:"at"`
}

// Result is what a Job workflow returns: its last snapshot. A job that ended Completed or Cancelled returns it as its
// result. One that ended Failed, Rejected, Expired or Unconfirmed fails its workflow, so that it stands out in the web
// UI, with an application error whose type is the state, whose message is the reason and whose details are the Result.
type Result = Snapshot

// Audit lists every message of a job or of a relayed pair, in the order in which they came.
type Audit struct {
	JobID    string       `json:"jobId"`
	Messages []MessageRow `json:"messages"`
}

// Carried is what a Job workflow hands to its next run when it continues as new.
type Carried struct {
	Snapshot   Snapshot       `json:"snapshot"`
	Tracked    []Tracked      `json:"tracked"`
	Expected   map[string]int `json:"expected"` // device ID -> sequence of its next message
	Held       []Message      `json:"held,omitempty"`
	Unread     []string       `json:"unread,omitempty"` // message IDs that the scheduler still has to confirm
	Receipts   int            `json:"receipts"`         // receipts that the scheduler has sent so far
	Sequence   int            `json:"sequence"`         // of the scheduler's next message
	Host       ConnectOutput  `json:"host"`             // of the scheduler's device
	Ending     State          `json:"ending,omitempty"` // how the solver's side ended
	Cancel     *CancelInput   `json:"cancel,omitempty"`
	CancelSent time.Time      `json:"cancelSent,omitzero"`
}

// Tracked is a message with its audit row; the message is kept only as long as it may be sent again.
type Tracked struct {
	Row      MessageRow `json:"row"`
	Message  *Message   `json:"message,omitempty"`
	HandedAt time.Time  `json:"handedAt,omitzero"` // of the last send that the hub accepted, by the workflow's clock
}
