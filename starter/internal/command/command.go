// Package command is the command line of the starter: its commands, flags, settings and exit codes.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/internal/session"
)

// Process is what a run of the program has from the world outside.
type Process struct {
	Args           []string // the program's name first
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Environ        []string // in the form of os.Environ
	Signals        <-chan os.Signal
	Terminal       Terminal
}

// Terminal tells which of the streams are a terminal.
type Terminal struct {
	In, Out, Err bool
	Width        func() int // columns of Stdout; 0 when unknown; may be nil
}

// Exit codes. A followed job's end is the exit code of run and attach.
const (
	ExitOK          = 0 // done; of a followed job: Completed
	ExitError       = 1 // wrong use, or anything else that went wrong
	ExitFailed      = 2
	ExitCancelled   = 3
	ExitRejected    = 4
	ExitExpired     = 5
	ExitUnconfirmed = 6
	ExitInterrupted = 130 // Ctrl-C; of a followed job: it goes on
	ExitTerminated  = 143 // asked to end by SIGTERM; of a followed job: it goes on
)

// exitCodes are the codes of the states in which a job ends.
var exitCodes = map[job.State]int{
	job.StateCompleted:   ExitOK,
	job.StateFailed:      ExitFailed,
	job.StateCancelled:   ExitCancelled,
	job.StateRejected:    ExitRejected,
	job.StateExpired:     ExitExpired,
	job.StateUnconfirmed: ExitUnconfirmed,
}

// Run runs one command and returns its exit code. It has written everything there is to say by then.
func Run(ctx context.Context, p Process) int {
	return newProgram(p).main(ctx)
}

// program is one run.
type program struct {
	Process
	settings *envfile.Settings // set by parse
	action   func() error      // of the command that was named; set by parse, nil when help was all that was asked for

	connect      func(ctx context.Context, o connection) (service, error)
	openRegistry func(s *envfile.Settings) (registry, error)
	openEvents   func(s *envfile.Settings, logger *slog.Logger) (events, error)
	openBus      func(s *envfile.Settings) (*servicebus.Client, error)
}

func newProgram(p Process) *program {
	return &program{Process: p, connect: connectTemporal, openRegistry: openRegistry, openEvents: openEvents, openBus: openBus}
}

func (p *program) main(ctx context.Context) int {
	err := p.parse(ctx)
	if err == nil && p.action != nil {
		err = p.action()
	}
	return p.exit(err)
}

// parsing keeps programs of one process apart while they parse: package cli changes global variables then.
var parsing sync.Mutex

// parse reads arguments and settings, and finds the command's action.
func (p *program) parse(ctx context.Context) error {
	parsing.Lock()
	defer parsing.Unlock()
	app := p.app()
	return app.RunContext(ctx, interleave(app.Commands, p.Args))
}

// outcomeError carries the state in which a followed job ended, when that isn't Completed. It was shown already.
type outcomeError struct{ state job.State }

func (e *outcomeError) Error() string { return "the job ended " + string(e.state) }

// interruptedError says that a signal ended a command that follows no job.
type interruptedError struct{ signal os.Signal }

func (e *interruptedError) Error() string { return "interrupted" }

// exit writes an error on one line, unless it was shown already, and returns its exit code.
func (p *program) exit(err error) int {
	if err == nil {
		return ExitOK
	}
	if outcome, ok := errors.AsType[*outcomeError](err); ok {
		if code, known := exitCodes[outcome.state]; known {
			return code
		}
		return ExitError
	}
	if detached, ok := errors.AsType[*session.DetachedError](err); ok {
		return signalCode(detached.Signal)
	}
	// Nothing can be done about an error stream that can't be written.
	_, _ = fmt.Fprintf(p.Stderr, "starter: %s\n", oneLine(err.Error()))
	if interrupted, ok := errors.AsType[*interruptedError](err); ok {
		return signalCode(interrupted.signal)
	}
	return ExitError
}

func signalCode(sig os.Signal) int {
	if sig == os.Interrupt {
		return ExitInterrupted
	}
	return ExitTerminated
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// interruptible returns a context that the next signal cancels. After release, signals are left to others.
func (p *program) interruptible(ctx context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case sig := <-p.Signals:
			cancel(&interruptedError{sig})
		case <-stop:
		}
	}()
	once := false
	return ctx, func() {
		if !once {
			once = true
			close(stop)
			<-stopped
			cancel(nil)
		}
	}
}

// cause prefers what ended ctx over the error that came of it.
func cause(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if interrupted, ok := errors.AsType[*interruptedError](context.Cause(ctx)); ok {
		return interrupted
	}
	return err
}

// usageError is a wrong use of the command line.
func usageError(c *cli.Context, format string, args ...any) error {
	return fmt.Errorf("%s (see: %s --help)", fmt.Sprintf(format, args...), c.Command.HelpName)
}
