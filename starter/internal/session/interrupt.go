package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/jobs"
)

const question = "Are you sure you want to cancel? (y/n) "

// interrupted answers a signal. The first Ctrl-C leads to a cancellation, if that is wanted; every other signal lets
// go of the job.
func (r *run) interrupted(ctx context.Context, sig os.Signal) error {
	canAsk := r.Answers != nil && !r.unanswered
	switch {
	case sig != os.Interrupt, r.asking, r.cancelling, r.recorded:
		return r.detach(sig)
	case r.Sure:
		return r.cancel(ctx)
	case canAsk:
		return r.ask(ctx)
	}
	return r.detach(sig)
}

func (r *run) detach(sig os.Signal) error {
	if err := errors.Join(r.leaveQuestion(), r.flush()); err != nil {
		return err
	}
	text := "Detached: the job goes on."
	switch {
	case r.recorded:
		text = "Detached: the job goes on being cancelled."
	case r.cancelling:
		text = "Detached: the job was asked to stop, but nobody has confirmed that yet."
	}
	if err := r.Printer.Say("detached", text+" Attach again with: starter attach "+r.JobID); err != nil {
		return err
	}
	return &DetachedError{Signal: sig}
}

func (r *run) ask(ctx context.Context) error {
	if err := r.Printer.Hide(); err != nil {
		return err
	}
	if r.answers == nil {
		r.answers = lines(ctx, r.Answers)
	}
	r.asking = true
	return r.put("\n" + question)
}

// leaveQuestion moves on from a question that nobody answered: the cursor stands behind it.
func (r *run) leaveQuestion() error {
	if !r.asking {
		return nil
	}
	return r.put("\n")
}

func (r *run) put(s string) error {
	if _, err := io.WriteString(r.Questions, s); err != nil {
		return fmt.Errorf("write question: %w", err)
	}
	return nil
}

// answered handles a line that was typed; ok is false at the end of the input.
func (r *run) answered(ctx context.Context, answer string, ok bool) error {
	if !ok {
		r.answers, r.unanswered = nil, true
		return errors.Join(r.leaveQuestion(), r.flush())
	}
	if !r.asking { // typed unasked
		return nil
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		if err := r.flush(); err != nil {
			return err
		}
		return r.cancel(ctx)
	case "n", "no":
		return r.flush()
	}
	return r.put(question)
}

// cancel sends the request, once or until somebody records it, and meanwhile the job is followed further.
func (r *run) cancel(ctx context.Context) error {
	r.cancelling = true
	go r.requestCancel(ctx, 0)
	return r.Printer.Say("cancelling", "Cancelling ...")
}

func (r *run) requestCancel(ctx context.Context, after time.Duration) {
	select {
	case <-time.After(after):
		_, err := r.Jobs.Cancel(ctx, r.JobID, job.CancelInput{Reason: "on request", By: r.By})
		r.cancelled <- err
	case <-ctx.Done():
		r.cancelled <- context.Cause(ctx)
	}
}

func (r *run) cancelReturned(ctx context.Context, err error) error {
	switch {
	case err == nil:
		r.cancelling, r.recorded = false, true
		return nil
	case errors.Is(err, jobs.ErrEnded): // its result is on the way
		r.cancelling = false
		return nil
	case !job.Retryable(err):
		r.cancelling = false
		return r.Printer.Say("cancel-failed", "Not cancelled: "+err.Error())
	}
	go r.requestCancel(ctx, cancelPause)
	if r.complained {
		return nil
	}
	r.complained = true
	return r.Printer.Say("cancel-delayed", "Not cancelled yet, trying on: "+err.Error())
}

// lines reads lines until the input or ctx ends.
func lines(ctx context.Context, r io.Reader) <-chan string {
	out := make(chan string)
	go func() {
		defer close(out)
		for s := bufio.NewScanner(r); s.Scan(); {
			select {
			case out <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
