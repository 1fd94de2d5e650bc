package show

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// Table writes rows under headings in aligned columns. Cells are cleaned; an empty cell shows as "-".
func Table(w io.Writer, headings []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = Clean(cell); cell == "" {
				cells[i] = "-"
			}
		}
		if err := write(t, "%s\n", strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// Messages writes the table of every message of a job: how far each has come on its way, and when.
func Messages(w io.Writer, a job.Audit, o *Options) error {
	if len(a.Messages) == 0 {
		return write(w, "no messages yet\n")
	}
	f := newTimes(a, o.withDefaults().Location)
	rows := make([][]string, 0, len(a.Messages))
	for _, m := range a.Messages {
		rows = append(rows, []string{
			string(m.Kind), about(m), device(m.From, a.JobID), device(m.To, a.JobID),
			f.format(m.SentAt), f.format(m.AcceptedAt), f.format(m.DeliveredAt), f.format(m.ReadAt),
			strconv.Itoa(m.Attempts), outcome(m),
		})
	}
	return Table(w, []string{"KIND", "ABOUT", "FROM", "TO", "SENT", "ACCEPTED", "DELIVERED", "READ", "ATTEMPTS", "OUTCOME"}, rows)
}

// about says what a message is about: the step and status of an update, the ID of anything else.
func about(m job.MessageRow) string {
	if m.Kind == job.KindUpdate && m.Step != "" {
		return m.Step + ": " + string(m.Status)
	}
	return m.ID
}

// device shortens the ID of one of the job's own two devices to its role.
func device(id, jobID string) string {
	if role, pair, ok := job.ParseDeviceID(id); ok && pair == jobID {
		return role.Short()
	}
	return id
}

func outcome(m job.MessageRow) string {
	if m.Refused != "" {
		return string(m.Refused)
	}
	return string(m.Outcome)
}

// times formats points of time to the millisecond, with the date when they are not all of one day.
type times struct {
	location *time.Location
	layout   string
}

func newTimes(a job.Audit, location *time.Location) times {
	days := make(map[string]bool)
	for _, m := range a.Messages {
		for _, at := range []time.Time{m.SentAt, m.AcceptedAt, m.DeliveredAt, m.ReadAt} {
			if !at.IsZero() {
				days[at.In(location).Format(time.DateOnly)] = true
			}
		}
	}
	if len(days) > 1 {
		return times{location, "01-02 15:04:05.000"}
	}
	return times{location, "15:04:05.000"}
}

func (t times) format(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.In(t.location).Format(t.layout)
}

// Snapshot writes where a job stands, one fact a line.
func Snapshot(w io.Writer, s job.Snapshot, o *Options) error {
	location := o.withDefaults().Location
	step := ""
	if s.Step != "" {
		step = s.Step + ": " + string(s.Status)
	}
	return Facts(w, []Fact{
		{"Job", s.JobID},
		{"Name", s.Name},
		{"State", state(s)},
		{"Steps", fmt.Sprintf("%d of %d done", s.StepsDone, len(s.Steps))},
		{"Last update", step},
		{"Messages", tally(s.Messages)},
		{"Receipts", tally(s.Receipts)},
		{"Requested by", s.RequestedBy},
		{"Started", Time(s.StartedAt, location)},
		{"Deadline", Time(s.Deadline, location)},
		{"Ended", Time(s.EndedAt, location)},
	})
}

func tally(c job.Counts) string {
	return fmt.Sprintf("%d sent, %d accepted, %d delivered, %d read, %d sent again, %d undeliverable",
		c.Sent, c.Accepted, c.Delivered, c.Read, c.Resent, c.Refused)
}

// Time formats a point of time with its date; the zero time is empty.
func Time(at time.Time, location *time.Location) string {
	if at.IsZero() {
		return ""
	}
	return at.In(location).Format("2006-01-02 15:04:05 MST")
}

// Fact is a name and what is known of it.
type Fact struct{ Name, Value string }

// Facts writes facts in two columns, without those that have no value.
func Facts(w io.Writer, facts []Fact) error {
	width := 0
	for _, f := range facts {
		width = max(width, len(f.Name)+1)
	}
	for _, f := range facts {
		if f.Value == "" {
			continue
		}
		if err := write(w, "%-*s  %s\n", width, f.Name+":", Clean(f.Value)); err != nil {
			return err
		}
	}
	return nil
}
