package job

import (
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"
)

// StepDone is the name of every job's last step. A job is done when StepDone is reported Completed.
const StepDone = "Done"

// DefaultName is the name of a job whose sender gave none.
const DefaultName = "Job 1"

// DefaultSteps are the steps of a job whose sender gave none.
func DefaultSteps() []string {
	return []string{
		"Read all the data",
		"Build in-memory model",
		"Train the model",
		"Evaluate the model",
		"Gather results",
		"Send Response",
		StepDone,
	}
}

// Job is a list of steps that a solver runs in order. Its JSON is the body of the message on the topic, and of the
// scheduler's announcement.
type Job struct {
	Name          string   `json:"Name"`
	CorrelationID string   `json:"CorrelationId"` // the job ID
	Steps         []string `json:"Steps"`
}

// New returns a valid job whose last step is StepDone, which is appended when it is missing.
// The error says which part of the input to change.
func New(id, name string, steps []string) (Job, error) {
	if name == "" {
		name = DefaultName
	}
	j := Job{Name: name, CorrelationID: id, Steps: append([]string(nil), steps...)}
	if n := len(j.Steps); n > 0 && j.Steps[n-1] != StepDone {
		j.Steps = append(j.Steps, StepDone)
	}
	if err := j.Validate(); err != nil {
		return Job{}, err
	}
	return j, nil
}

// Validate reports the first rule that j breaks, as an error that errors.Is(err, ErrInvalid) matches.
func (j Job) Validate() error {
	if err := ValidateID(j.CorrelationID); err != nil {
		return err
	}
	if err := validateText("job name", j.Name, MaxNameLength); err != nil {
		return err
	}
	switch n := len(j.Steps); {
	case n == 0:
		return invalid("a job needs at least one step")
	case n > MaxSteps:
		return invalid("a job has at most %d steps, this one has %d", MaxSteps, n)
	}
	for i, s := range j.Steps {
		if err := validateText(fmt.Sprintf("step %d", i+1), s, MaxStepLength); err != nil {
			return err
		}
		if s == StepDone && i < len(j.Steps)-1 {
			return invalid("step %d is %q, which ends a job: only the last step may be called so", i+1, s)
		}
	}
	return j.validateSize()
}

// validateSize makes sure that the job fits into the cloud-to-device message that announces it.
func (j Job) validateSize() error {
	body, err := Encode(j)
	if err != nil {
		return invalid("%w", err)
	}
	if len(body) > MaxJobSize {
		return invalid("the job has %d bytes as JSON, the limit is %d: use fewer or shorter steps", len(body), MaxJobSize)
	}
	return nil
}

func validateText(what, s string, limit int) error {
	switch {
	case s == "":
		return invalid("%s is empty: give it a name", what)
	case !utf8.ValidString(s):
		return invalid("%s is not valid UTF-8", what)
	case utf8.RuneCountInString(s) > limit:
		return invalid("%s is %d characters long, the limit is %d", what, utf8.RuneCountInString(s), limit)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return invalid("%s contains the control character %U", what, r)
		}
	}
	return nil
}

// Status is what an update says of a step.
type Status string

// The statuses of an update, as they stand on the wire.
const (
	StatusInProgress Status = "In Progress" // the step has started
	StatusCompleted  Status = "Completed"   // the step has ended well
	StatusFailed     Status = "Failed"      // the step failed for good; the job ends
	StatusCancelled  Status = "Cancelled"   // from the scheduler: please stop; from the solver: stopped
	StatusRejected   Status = "Rejected"    // the solver can't run this job; nothing was run
)

// Valid reports whether s is one of the statuses of the wire contract.
func (s Status) Valid() bool {
	switch s {
	case StatusInProgress, StatusCompleted, StatusFailed, StatusCancelled, StatusRejected:
		return true
	}
	return false
}

// Final reports whether an update of this status ends the job unless it is a mere step's completion.
func (s Status) Final() bool {
	return s == StatusFailed || s == StatusCancelled || s == StatusRejected
}

// Update reports the state of one step.
type Update struct {
	Name          string `json:"Name"`
	CorrelationID string `json:"CorrelationId"`
	Step          string `json:"Step"`
	Status        Status `json:"Status"`
	// Reason says in one line why a step failed, was rejected or cancelled. Receivers that don't know it ignore it.
	Reason string `json:"Reason,omitempty"`
}

// Done reports whether u says that the whole job is done.
func (u Update) Done() bool { return u.Step == StepDone && u.Status == StatusCompleted }

// Receipt confirms that its sender's application has read messages.
type Receipt struct {
	CorrelationID string    `json:"CorrelationId"`
	MessageIDs    []string  `json:"MessageIds"`
	ReadAt        time.Time `json:"ReadAt"`
}
