// Package show writes jobs for people and for programs: a followed job as lines, as a live line on a terminal or as
// JSON, one job's state, and the table of its messages. Whatever came from a device or a file is cleaned of control
// characters first, so that it can't steer a terminal.
package show

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
)

// Printer writes a followed job. Its methods are called by one goroutine at a time.
type Printer interface {
	// Show writes an event, or nothing when the printer's form has no place for it.
	Show(e follow.Event) error
	// Say writes something about the following itself. Programs get event as the name of what happened.
	Say(event, text string) error
	// Hide takes away what would be in the way of a question on the same terminal, until the next Show.
	Hide() error
}

// JSON writes v on a line of its own.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// Clean makes s safe to print on one line of a terminal: control characters and those that change the direction of
// text become U+FFFD, line breaks and tabs a space.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029':
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// counts says how far the messages of a job have come: "9 messages, 7 read".
func counts(c job.Counts) string {
	s := fmt.Sprintf("%s, %d read", plural(c.Sent, "message"), c.Read)
	if c.Resent > 0 {
		s += fmt.Sprintf(", %d sent again", c.Resent)
	}
	if c.Refused > 0 {
		s += fmt.Sprintf(", %d undeliverable", c.Refused)
	}
	return s
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// state is the headline of a snapshot: "Scheduled: waiting for a solver".
func state(s job.Snapshot) string {
	if s.Reason == "" {
		return string(s.State)
	}
	return string(s.State) + ": " + Clean(s.Reason)
}

// ending is the last line of a followed job.
func ending(s job.Snapshot) string {
	line := fmt.Sprintf("%s; %d of %s done", state(s), s.StepsDone, plural(len(s.Steps), "step"))
	line += fmt.Sprintf("; %s, %d delivered", counts(s.Messages), s.Messages.Delivered)
	if !s.StartedAt.IsZero() && !s.EndedAt.IsZero() {
		line += "; took " + took(s.EndedAt.Sub(s.StartedAt))
	}
	return line
}

// took rounds a duration to what people care about.
func took(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// cursor finds the place of an update in the job's list of steps, where the same name may stand twice.
type cursor struct {
	next int // index of the first step that isn't completed
}

// place returns "[2/7] " for the second of seven steps, or nothing for an update of no step.
func (c *cursor) place(steps []string, u job.Applied) string {
	for i := c.next; i < len(steps); i++ {
		if steps[i] != u.Step {
			continue
		}
		if u.Status == job.StatusCompleted {
			c.next = i + 1
		}
		return fmt.Sprintf("[%d/%d] ", i+1, len(steps))
	}
	return ""
}

func update(place string, u job.Applied) string {
	line := place + Clean(u.Step) + ": " + string(u.Status)
	if u.Step == string(u.Status) { // a cancellation names no step
		line = place + string(u.Status)
	}
	if u.Reason != "" {
		line += " (" + Clean(u.Reason) + ")"
	}
	return line
}
