package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/starter/deadletters"
	"github.com/hubjobs/hubjobs/starter/show"
)

func (p *program) deadLetterResubmit(ctx context.Context, c *cli.Context, q *deadletters.Queue) error {
	change, err := copyChange(c)
	if err != nil {
		return err
	}
	numbers, err := p.selected(ctx, c, q)
	if err != nil || len(numbers) == 0 {
		return err
	}
	w := settling{program: p, c: c, verb: "resubmit", done: "resubmitted", queue: q, total: len(numbers)}
	return w.run(func(report func(deadletters.Outcome)) error { return q.Resubmit(ctx, numbers, change, report) })
}

// copyChange reads --set and --unset.
func copyChange(c *cli.Context) (deadletters.Change, error) {
	change := deadletters.Change{Set: make(map[string]string), Unset: c.StringSlice("unset")}
	for _, pair := range c.StringSlice("set") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return change, usageError(c, "--set is %q: write NAME=VALUE", pair)
		}
		change.Set[name] = value
	}
	return change, nil
}

func (p *program) deadLetterPurge(ctx context.Context, c *cli.Context, q *deadletters.Queue) error {
	canAsk := p.Terminal.In && p.Terminal.Err
	if !c.Bool("yes") && !canAsk {
		return usageError(c, "purge removes messages for good: say --yes where nobody can be asked")
	}
	numbers, err := p.selected(ctx, c, q)
	if err != nil || len(numbers) == 0 {
		return err
	}
	if !c.Bool("yes") {
		sure, err := p.ask(ctx, fmt.Sprintf("Remove %s of %s for good? (y/n) ", plural(len(numbers), "dead letter"), q.Name()))
		if err != nil || !sure {
			return err
		}
	}
	w := settling{program: p, c: c, verb: "purge", done: "purged", queue: q, total: len(numbers)}
	return w.run(func(report func(deadletters.Outcome)) error { return q.Purge(ctx, numbers, report) })
}

// selected returns the numbers of the dead letters that a command is about. It says so when there are none.
func (p *program) selected(ctx context.Context, c *cli.Context, q *deadletters.Queue) ([]int64, error) {
	all, reason := c.Bool("all"), c.String("reason")
	switch {
	case c.Args().Present() && (all || reason != ""):
		return nil, usageError(c, "name dead letters by their numbers, or by --all or --reason, not both")
	case !c.Args().Present() && !all && reason == "":
		return nil, usageError(c, "name dead letters by their numbers, or say --all or --reason")
	}
	done := p.busy("reading the dead letters of " + q.Name())
	defer done()
	if c.Args().Present() {
		return numbered(ctx, c, q)
	}
	numbers, err := q.Select(ctx, reason)
	if err == nil && len(numbers) == 0 && !asJSON(c) {
		err = p.print("no dead letters\n")
	}
	return numbers, err
}

func numbered(ctx context.Context, c *cli.Context, q *deadletters.Queue) ([]int64, error) {
	var numbers []int64
	for _, arg := range c.Args().Slice() {
		number, err := sequenceNumber(c, arg)
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	return numbers, q.Check(ctx, numbers)
}

// ask puts a question to the person on the terminal until it is answered. The end of the input is a no. A read may
// outlast the question: a terminal can't be told to stop reading.
func (p *program) ask(ctx context.Context, question string) (bool, error) {
	answers := make(chan string)
	go func() {
		defer close(answers)
		for s := bufio.NewScanner(p.Stdin); s.Scan(); {
			select {
			case answers <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		if _, err := io.WriteString(p.Stderr, question); err != nil {
			return false, fmt.Errorf("write question: %w", err)
		}
		select {
		case answer, ok := <-answers:
			switch strings.ToLower(strings.TrimSpace(answer)) {
			case "y", "yes":
				return true, nil
			case "n", "no":
				return false, nil
			}
			if !ok {
				return false, nil
			}
		case <-ctx.Done():
			_, _ = io.WriteString(p.Stderr, "\n") // leaves the question's line
			return false, context.Cause(ctx)
		}
	}
}

// settling is one command's work on dead letters, and what it tells of it.
type settling struct {
	*program
	c          *cli.Context
	verb, done string // "resubmit", "resubmitted"
	queue      *deadletters.Queue
	total      int

	succeeded, failed atomic.Int64
	written           error // of the output, the first
}

func (s *settling) run(work func(report func(deadletters.Outcome)) error) error {
	stop := s.busyWith(func() string {
		return fmt.Sprintf("%s: %d of %d", s.done, s.succeeded.Load(), s.total)
	})
	err := work(s.report)
	stop()
	return errors.Join(s.written, s.sum(), err, s.failure())
}

// settledEntry is what became of a dead letter as programs see it.
type settledEntry struct {
	Event          string `json:"event"` // resubmitted, purged or failed
	SequenceNumber int64  `json:"sequenceNumber"`
	MessageID      string `json:"messageId,omitempty"`
	NewMessageID   string `json:"newMessageId,omitempty"`
	Error          string `json:"error,omitempty"`
}

func (s *settling) report(o deadletters.Outcome) {
	e := settledEntry{Event: s.done, SequenceNumber: o.SequenceNumber, MessageID: o.MessageID, NewMessageID: o.NewID}
	if o.Err != nil {
		s.failed.Add(1)
		e.Event, e.Error, e.NewMessageID = "failed", oneLine(o.Err.Error()), ""
	} else {
		s.succeeded.Add(1)
	}
	var err error
	switch {
	case asJSON(s.c):
		err = show.JSON(s.Stdout, e)
	case o.Err != nil:
		err = s.print(fmt.Sprintf("%d: not %s: %s\n", o.SequenceNumber, s.done, show.Clean(e.Error)))
	}
	if s.written == nil {
		s.written = err
	}
}

// sum says how much was done, also when the work was cut short.
func (s *settling) sum() error {
	succeeded, failed := int(s.succeeded.Load()), int(s.failed.Load())
	if asJSON(s.c) {
		return show.JSON(s.Stdout, struct {
			Event  string `json:"event"`
			Done   int    `json:"done"`
			Failed int    `json:"failed"`
			Left   int    `json:"left"`
		}{"summary", succeeded, failed, s.total - succeeded - failed})
	}
	return s.print(fmt.Sprintf("%d of %s of %s %s\n", succeeded, plural(s.total, "dead letter"), s.queue.Name(), s.done))
}

func (s *settling) failure() error {
	if n := int(s.failed.Load()); n > 0 {
		return fmt.Errorf("could not %s %s", s.verb, plural(n, "dead letter"))
	}
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
