package show

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
)

// Live returns a printer for a terminal: the lines of Plain, and below them one line that is drawn again and again.
// width tells the terminal's columns; 0 means unknown.
func Live(w io.Writer, width func() int, o *Options) Printer {
	l := &live{w: w, width: width}
	l.plain = plain{w: w, o: o.withDefaults(), line: l.above}
	return l
}

type live struct {
	plain plain
	w     io.Writer
	width func() int
	first time.Time // the first event, from which time counts before the job's start is known
	why   string    // what is waited for while nobody tells
	drawn bool
}

// The control sequences of ECMA-48 that every terminal of today knows: to the first column, erase the line.
const eraseLine = "\r\x1b[2K"

func (l *live) Show(e follow.Event) error {
	if l.first.IsZero() {
		l.first = e.At
	}
	switch e.Kind {
	case follow.Waiting:
		l.why = Clean(e.Err.Error())
	case follow.Progress, follow.Updated:
		l.why = ""
	case follow.Ended:
		return l.plain.Show(e)
	case follow.Tick: // the drawn line shows that time passes
		return l.draw(e)
	}
	if err := l.plain.Show(e); err != nil {
		return err
	}
	return l.draw(e)
}

func (l *live) Say(event, text string) error {
	if err := l.Hide(); err != nil {
		return err
	}
	return l.plain.Say(event, text)
}

func (l *live) Hide() error {
	if !l.drawn {
		return nil
	}
	l.drawn = false
	return write(l.w, "%s", eraseLine)
}

// above writes a line that stays, in place of the drawn one.
func (l *live) above(at time.Time, text string) error {
	if err := l.Hide(); err != nil {
		return err
	}
	return l.plain.writeLine(at, text)
}

func (l *live) draw(e follow.Event) error {
	line := l.status(e)
	if columns := l.width(); columns > 1 {
		line = clip(line, columns-1) // a line that fills the last column would wrap
	}
	l.drawn = true
	return write(l.w, "%s%s", eraseLine, line)
}

func (l *live) status(e follow.Event) string {
	s := e.Snapshot
	since := l.first
	if !s.StartedAt.IsZero() {
		since = s.StartedAt
	}
	elapsed := stopwatch(e.At.Sub(since))
	if l.why != "" || s.State == "" {
		return strings.TrimSpace(elapsed + "  waiting: " + l.why)
	}
	return fmt.Sprintf("%s %d/%d  %s  %s  %s", bar(s.StepsDone, len(s.Steps)), s.StepsDone, len(s.Steps), elapsed,
		doing(s), counts(s.Messages))
}

// doing says what a job does just now: the step that runs, else its state.
func doing(s job.Snapshot) string {
	if s.State == job.StateRunning && s.Step != "" {
		return Clean(s.Step) + ": " + string(s.Status)
	}
	return state(s)
}

const barWidth = 20

func bar(done, all int) string {
	filled := 0
	if all > 0 {
		filled = min(max(done*barWidth/all, 0), barWidth)
	}
	return "[" + strings.Repeat("#", filled) + strings.Repeat("-", barWidth-filled) + "]"
}

// stopwatch formats d as minutes and seconds, or with hours from one hour on.
func stopwatch(d time.Duration) string {
	s := int(max(d, 0).Seconds())
	if s < 3600 {
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}

func clip(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	return string(runes[:n])
}
