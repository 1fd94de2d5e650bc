package show_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
	"github.com/hubjobs/hubjobs/starter/show"
)

var rewrite = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (rewrite it with go test ./starter/show -update):\ngot\n%s\nwant\n%s", file, got, want)
	}
}

var (
	begin   = time.Date(2026, 3, 4, 10, 0, 0, 0, time.UTC)
	options = &show.Options{Location: time.UTC}
)

func at(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }

// story is a job as a follower sees it: nobody works, then a solver does, a step is told twice, and a reason tries to
// write on the terminal.
func story() []follow.Event {
	s := job.Snapshot{
		JobID: "job-1", Name: "Job 1", Steps: []string{"Read", "Train", "Read", "Done"}, RequestedBy: "ann", StartedAt: begin,
	}
	var events []follow.Event
	add := func(seconds float64, e follow.Event) {
		e.JobID, e.At, e.Snapshot = "job-1", at(seconds), s
		events = append(events, e)
	}
	progress := func(seconds float64, state job.State, reason string) {
		s.State, s.Reason = state, reason
		add(seconds, follow.Event{Kind: follow.Progress})
	}
	update := func(seconds float64, step string, status job.Status, reason string) {
		s.Step, s.Status = step, status
		s.Messages.Sent++
		s.Messages.Delivered++
		u := job.Applied{Sequence: len(s.Updates) + 1, Step: step, Status: status, Reason: reason, At: at(seconds)}
		s.Updates = append(s.Updates, u)
		if status == job.StatusCompleted {
			s.StepsDone++
			s.Messages.Read++
		}
		add(seconds+0.2, follow.Event{Kind: follow.Updated, Update: u, Number: len(s.Updates)})
	}
	events = append(events, follow.Event{Kind: follow.Waiting, JobID: "job-1", At: at(0), Err: errors.New("no manager worker answers for the job")})
	events = append(events, follow.Event{Kind: follow.Tick, JobID: "job-1", At: at(20)}, follow.Event{Kind: follow.Tick, JobID: "job-1", At: at(31)})
	progress(40, job.StateScheduled, "waiting for a solver")
	progress(40.5, job.StateScheduled, "waiting for a solver")
	s.State, s.Reason = job.StateRunning, ""
	update(41, "Read", job.StatusInProgress, "")
	update(42, "Read", job.StatusCompleted, "")
	progress(42.3, job.StateRunning, "")
	update(43, "Train", job.StatusInProgress, "")
	add(60, follow.Event{Kind: follow.Tick})
	add(74, follow.Event{Kind: follow.Tick})
	s.Messages.Resent = 1
	update(3700, "Train", job.StatusCompleted, "")
	update(3701, "Read", job.StatusInProgress, "")
	update(3702, "Read", job.StatusFailed, "exit status 1:\n\x1b[2Jdisk \u202efull")
	s.State, s.Reason, s.EndedAt = job.StateFailed, "step \"Read\": exit status 1", at(3703)
	add(3703.4, follow.Event{Kind: follow.Ended})
	return events
}

func tell(t *testing.T, p show.Printer, events []follow.Event) {
	t.Helper()
	for _, e := range events {
		if err := p.Show(e); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := show.Plain(&b, options)
	tell(t, p, story())
	if err := p.Say("detached", "Detached: the job goes on."); err != nil {
		t.Fatal(err)
	}
	golden(t, "plain.txt", b.String())
}

func TestLive(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := show.Live(&b, func() int { return 72 }, options)
	events := story()
	tell(t, p, events[:8])
	if err := p.Hide(); err != nil {
		t.Fatal(err)
	}
	tell(t, p, events[8:10])
	if err := p.Say("cancelling", "Cancelling ..."); err != nil {
		t.Fatal(err)
	}
	tell(t, p, events[10:])
	// Control sequences are made visible, and each drawing gets a line of its own.
	visible := strings.ReplaceAll(b.String(), "\r\x1b[2K", "\n<erase>")
	golden(t, "live.txt", visible+"\n")
	for line := range strings.Lines(visible) {
		if drawn, ok := strings.CutPrefix(line, "<erase>["); ok && len(strings.TrimRight(drawn, "\n")) > 71 {
			t.Errorf("a drawn line wraps: %q", line)
		}
	}
	if strings.Contains(visible, "\x1b") {
		t.Error("a control sequence came through")
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	tell(t, show.Events(&b, "job-1"), story())
	golden(t, "events.jsonl", b.String())
}

func TestEnding(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		s    job.Snapshot
		want string
	}{
		{"completed", job.Snapshot{State: job.StateCompleted, Steps: []string{"Done"}, StepsDone: 1, StartedAt: begin, EndedAt: at(1.26),
			Messages: job.Counts{Sent: 1, Delivered: 1, Read: 1}}, "Completed; 1 of 1 step done; 1 message, 1 read, 1 delivered; took 1.3s"},
		{"rejected", job.Snapshot{State: job.StateRejected, Reason: `step "x": no such executable`, Steps: []string{"x", "Done"}},
			`Rejected: step "x": no such executable; 0 of 2 steps done; 0 messages, 0 read, 0 delivered`},
		{"refused messages", job.Snapshot{State: job.StateUnconfirmed, Messages: job.Counts{Sent: 3, Read: 1, Resent: 4, Refused: 1}},
			"Unconfirmed; 0 of 0 steps done; 3 messages, 1 read, 4 sent again, 1 undeliverable, 0 delivered"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var b bytes.Buffer
			tell(t, show.Plain(&b, options), []follow.Event{{Kind: follow.Ended, At: begin, Snapshot: test.s}})
			if got := strings.TrimSpace(b.String()); got != "10:00:00  "+test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	solver, scheduler := job.DeviceID(job.RoleSolver, "job-1"), job.DeviceID(job.RoleScheduler, "job-1")
	audit := job.Audit{JobID: "job-1", Messages: []job.MessageRow{
		{ID: "job-1.scheduler.1", Kind: job.KindJob, Sequence: 1, From: scheduler, To: solver, SentAt: at(0), AcceptedAt: at(0.01),
			DeliveredAt: at(0.02), ReadAt: at(0.03), Attempts: 1, Outcome: job.OutcomeSuccess},
		{ID: "job-1.solver.1", Kind: job.KindUpdate, Sequence: 1, From: solver, To: scheduler, Step: "Read\tall", Status: job.StatusInProgress,
			SentAt: at(1), AcceptedAt: at(1.5), Attempts: 3, Outcome: job.OutcomeExpired},
		{ID: "x", From: "device-solver::other", To: "somewhere", SentAt: at(2), Refused: job.ReasonDeviceNotFound},
	}}
	var b bytes.Buffer
	if err := show.Messages(&b, audit, options); err != nil {
		t.Fatal(err)
	}
	audit.Messages[2].ReadAt = begin.AddDate(0, 0, 1)
	b.WriteString("\n")
	if err := show.Messages(&b, audit, options); err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n")
	if err := show.Messages(&b, job.Audit{}, options); err != nil {
		t.Fatal(err)
	}
	golden(t, "messages.txt", b.String())
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	s := story()[12].Snapshot
	s.Deadline = begin.Add(24 * time.Hour)
	s.Name = "evil\x1b]0;title\a"
	var b bytes.Buffer
	if err := show.Snapshot(&b, s, options); err != nil {
		t.Fatal(err)
	}
	golden(t, "snapshot.txt", b.String())
}

func TestClean(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain":            "plain",
		"Zürich 東京 😀":      "Zürich 東京 😀",
		"a\nb\tc\rd":       "a b c d",
		"\x1b[31mred":      "\ufffd[31mred",
		"bell\a del\x7f":   "bell\ufffd del\ufffd",
		"c1\u009b31m":      "c1\ufffd31m",
		"\u202eright":      "\ufffdright",
		"line\u2028break":  "line\ufffdbreak",
		"bad utf-8: \xff.": "bad utf-8: \ufffd.",
	} {
		if got := show.Clean(in); got != want {
			t.Errorf("Clean(%q) is %q, want %q", in, got, want)
		}
	}
}

// broken is a stream that can't be written.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestWriteErrorsAreTold(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]show.Printer{
		"plain":  show.Plain(broken{}, nil),
		"live":   show.Live(broken{}, func() int { return 0 }, nil),
		"events": show.Events(broken{}, "job-1"),
	} {
		if err := p.Show(story()[0]); err == nil || !strings.Contains(err.Error(), "broken pipe") {
			t.Errorf("%s: Show returned %v", name, err)
		}
		if err := p.Say("x", "y"); err == nil {
			t.Errorf("%s: Say returned no error", name)
		}
	}
	if err := show.Table(broken{}, []string{"A"}, nil); err == nil {
		t.Error("Table returned no error")
	}
}
