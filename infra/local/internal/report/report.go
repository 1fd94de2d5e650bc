// Package report shows how a job went: as a table for people, and as one line of JSON for programs.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/show"
)

// Report is what is known of a job that has ended.
type Report struct {
	Snapshot job.Snapshot
	Audit    job.Audit
	Events   int           // in the history of the Job workflow
	Took     time.Duration // from the request to the end, as the person waited
	URL      string        // of the job in the web UI
}

// Summary is the form for programs. Its names are a promise: others may be added, none changed.
type Summary struct {
	JobID         string    `json:"jobId"`
	Status        job.State `json:"status"`
	Reason        string    `json:"reason,omitempty"`
	Steps         int       `json:"steps"` // that were done
	Sent          int       `json:"sent"`  // messages that a reader confirms
	Delivered     int       `json:"delivered"`
	Read          int       `json:"read"`
	HistoryEvents int       `json:"historyEvents"`
	Seconds       float64   `json:"seconds"`
	UIURL         string    `json:"uiUrl"`
}

// Summary sums the report up.
func (r Report) Summary() Summary {
	counts := r.Snapshot.Messages
	return Summary{
		JobID:         r.Snapshot.JobID,
		Status:        r.Snapshot.State,
		Reason:        r.Snapshot.Reason,
		Steps:         r.Snapshot.StepsDone,
		Sent:          counts.Sent,
		Delivered:     counts.Delivered,
		Read:          counts.Read,
		HistoryEvents: r.Events,
		Seconds:       float64(r.Took.Milliseconds()) / 1000,
		UIURL:         r.URL,
	}
}

// WriteJSON writes the summary as one line.
func (r Report) WriteJSON(w io.Writer) error {
	return json.NewEncoder(w).Encode(r.Summary())
}

// WriteText writes one line for each message that a reader confirms, the sums below them, and the link to the job.
// Times count from the start of the job; a dash stands for what has not happened.
func (r Report) WriteText(w io.Writer) error {
	var rows [][]string
	for _, row := range r.Audit.Messages {
		if row.Kind.Confirmed() {
			rows = append(rows, []string{
				about(row), sender(row.From), r.at(row.SentAt), r.at(row.DeliveredAt), r.at(row.ReadAt),
			})
		}
	}
	counts := r.Snapshot.Messages
	rows = append(rows, []string{
		"all", "both", strconv.Itoa(counts.Sent), strconv.Itoa(counts.Delivered), strconv.Itoa(counts.Read),
	})
	fmt.Fprintln(w)
	if err := show.Table(w, []string{"MESSAGE", "FROM", "SENT", "DELIVERED", "READ"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n%s\n", r.headline(), r.URL)
	return err
}

// about says what a message is about: the step and status of an update, the kind of anything else.
func about(row job.MessageRow) string {
	if row.Step == "" {
		return string(row.Kind)
	}
	return row.Step + ": " + string(row.Status)
}

// sender is the role's word of a device ID that has one.
func sender(deviceID string) string {
	if role, _, ok := job.ParseDeviceID(deviceID); ok {
		return role.Short()
	}
	return deviceID
}

func (r Report) at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%.2f s", max(0, t.Sub(r.Snapshot.StartedAt).Seconds()))
}

func (r Report) headline() string {
	s := r.Snapshot
	line := fmt.Sprintf("%s: %s, %d of %d steps, %d history events, %.1f s",
		s.JobID, s.State, s.StepsDone, len(s.Steps), r.Events, r.Took.Seconds())
	if s.Reason != "" && s.State != job.StateCompleted {
		line += "\n" + show.Clean(s.Reason)
	}
	return line
}
