package show

import (
	"io"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
)

// Events returns a printer that writes one JSON object a line: "progress", "update", "waiting", what is said of the
// following itself, and at last "result", which is the whole snapshot.
func Events(w io.Writer, jobID string) Printer { return &events{w: w, jobID: jobID} }

type events struct {
	w     io.Writer
	jobID string
}

type heading struct {
	Event string    `json:"event"`
	JobID string    `json:"jobId"`
	At    time.Time `json:"at"`
}

type updateEvent struct {
	heading
	Sequence int        `json:"sequence"`
	Step     string     `json:"step"`
	Status   job.Status `json:"status"`
	Reason   string     `json:"reason,omitempty"`
}

type progressEvent struct {
	heading
	State     job.State  `json:"state"`
	Reason    string     `json:"reason,omitempty"`
	StepsDone int        `json:"stepsDone"`
	StepCount int        `json:"stepCount"`
	Messages  job.Counts `json:"messages"`
	Receipts  job.Counts `json:"receipts"`
}

type noteEvent struct {
	heading
	Note string `json:"note"`
}

type resultEvent struct {
	Event string `json:"event"`
	job.Snapshot
}

func (p *events) Show(e follow.Event) error {
	s := e.Snapshot
	switch e.Kind {
	case follow.Waiting:
		return p.note("waiting", e.At, e.Err.Error())
	case follow.Updated:
		u := e.Update
		return JSON(p.w, updateEvent{p.heading("update", u.At), u.Sequence, u.Step, u.Status, u.Reason})
	case follow.Progress:
		return JSON(p.w, progressEvent{p.heading("progress", e.At), s.State, s.Reason, s.StepsDone, len(s.Steps), s.Messages, s.Receipts})
	case follow.Ended:
		return JSON(p.w, resultEvent{"result", s})
	}
	return nil
}

func (p *events) Say(event, text string) error { return p.note(event, time.Now(), text) }

func (p *events) Hide() error { return nil }

func (p *events) heading(event string, at time.Time) heading {
	return heading{event, p.jobID, at.UTC()}
}

func (p *events) note(event string, at time.Time, text string) error {
	return JSON(p.w, noteEvent{p.heading(event, at), text})
}
