package show

import (
	"fmt"
	"io"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
)

// Options are the settings of printers and tables for people. Nil and zero values mean the defaults.
type Options struct {
	Location *time.Location // of the times shown; default time.Local
	Quiet    time.Duration  // Plain says that it still waits after that long without a line; default 30 s
}

func (o *Options) withDefaults() Options {
	d := Options{Location: time.Local, Quiet: 30 * time.Second}
	if o == nil {
		return d
	}
	if o.Location != nil {
		d.Location = o.Location
	}
	if o.Quiet > 0 {
		d.Quiet = o.Quiet
	}
	return d
}

const clock = "15:04:05"

// Plain returns a printer that writes a line for each change, for logs and pipes.
func Plain(w io.Writer, o *Options) Printer {
	p := &plain{w: w, o: o.withDefaults()}
	p.line = p.writeLine
	return p
}

type plain struct {
	w     io.Writer
	o     Options
	line  func(at time.Time, text string) error
	steps cursor
	head  string    // the headline that was printed last
	last  time.Time // when a line was printed last
}

func (p *plain) Show(e follow.Event) error {
	switch e.Kind {
	case follow.Waiting:
		p.head = ""
		return p.print(e.At, "waiting: "+Clean(e.Err.Error()))
	case follow.Updated:
		if e.Snapshot.State == job.StateRunning && e.Snapshot.Reason == "" {
			p.head = state(e.Snapshot) // that it runs goes without saying now
		}
		text := update(p.steps.place(e.Snapshot.Steps, e.Update), e.Update)
		return p.print(e.Update.At, text+"  ("+counts(e.Snapshot.Messages)+")")
	case follow.Progress:
		return p.headline(e)
	case follow.Tick:
		return p.tick(e)
	case follow.Ended:
		return p.print(e.At, ending(e.Snapshot))
	}
	return nil
}

func (p *plain) headline(e follow.Event) error {
	head := state(e.Snapshot)
	if head == p.head || e.Snapshot.State.Ended() { // the end has a line of its own
		return nil
	}
	p.head = head
	return p.print(e.At, head)
}

func (p *plain) tick(e follow.Event) error {
	if p.last.IsZero() {
		p.last = e.At
	}
	if e.At.Sub(p.last) < p.o.Quiet {
		return nil
	}
	if e.Snapshot.State == "" {
		return p.print(e.At, "still waiting")
	}
	text := "still " + state(e.Snapshot)
	if e.Snapshot.Step != "" {
		text += "; " + Clean(e.Snapshot.Step) + ": " + string(e.Snapshot.Status)
	}
	return p.print(e.At, text+"; "+counts(e.Snapshot.Messages))
}

// print writes a line. Quiet time counts from the latest line, whatever time it speaks of.
func (p *plain) print(at time.Time, text string) error {
	if at.After(p.last) {
		p.last = at
	}
	return p.line(at, text)
}

func (p *plain) writeLine(at time.Time, text string) error {
	return write(p.w, "%s  %s\n", at.In(p.o.Location).Format(clock), text)
}

func (p *plain) Say(_, text string) error { return write(p.w, "%s\n", text) }

func (p *plain) Hide() error { return nil }

func write(w io.Writer, format string, args ...any) error {
	if _, err := fmt.Fprintf(w, format, args...); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
