package activities

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/hubjobs/hubjobs/job"
)

// ErrOffline is in the chain of an error that came of a device's connection being down. It is an everyday event, not a
// fault of the worker, so Temporal counts it as benign.
var ErrOffline = errors.New("the device is not connected")

// ErrStopping is returned by a host activity that its worker's shutdown interrupted. It is retryable.
var ErrStopping = errors.New("the worker is stopping")

// typeStopping is the type of the application error that ErrStopping becomes.
const typeStopping = "Stopping"

// Pauses before the next attempt where the service named none, and where trying at the workflow's usual pace is of no
// use: somebody has to mend a key or a role, or the day has to end.
const (
	unauthorizedPause = 10 * time.Second
	quotaPause        = 5 * time.Minute
)

// maxMessageLength bounds the message of an error in a workflow's history, in bytes.
const maxMessageLength = 1024

// Failure turns what an activity returned into what Temporal records of it: an application error whose type is the
// name of the error's kind, with one line for people. The cause chain stays out of the history, as it may quote what a
// service answered. Cancellation stays what it is.
func Failure(ctx context.Context, err error) error {
	var application *temporal.ApplicationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &application):
		return err
	case errors.Is(ctx.Err(), context.Canceled) && !errors.Is(err, ErrStopping):
		return ctx.Err()
	}
	return temporal.NewApplicationErrorWithOptions(line(err), typeName(err), temporal.ApplicationErrorOptions{
		NonRetryable:   !job.Retryable(err),
		NextRetryDelay: pause(err),
		Category:       category(err),
	})
}

func typeName(err error) string {
	var classified *job.Error
	switch {
	case errors.Is(err, ErrStopping):
		return typeStopping
	case errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &classified):
		return job.ErrorType(job.ErrUnavailable) // a call ran into its deadline and its adapter said no more
	}
	return job.ErrorType(err)
}

func pause(err error) time.Duration {
	var classified *job.Error
	if errors.As(err, &classified) && classified.RetryAfter > 0 {
		return classified.RetryAfter
	}
	switch {
	case errors.Is(err, job.ErrUnauthorized):
		return unauthorizedPause
	case errors.Is(err, job.ErrQuota):
		return quotaPause
	}
	return 0 // the workflow's retry policy decides
}

func category(err error) temporal.ApplicationErrorCategory {
	for _, expected := range []error{job.ErrQueueFull, job.ErrThrottled, ErrOffline, ErrStopping} {
		if errors.Is(err, expected) {
			return temporal.ApplicationErrorCategoryBenign
		}
	}
	return temporal.ApplicationErrorCategoryUnspecified
}

// secrets matches the values of connection strings and SAS tokens. Adapters keep those out of their errors; this is
// the last gate before the history, which everyone with access to the web UI can read.
var secrets = regexp.MustCompile(`(?i)((?:SharedAccessKey|sig)=)[^;&\s"]+`)

// line returns err as one line without secrets.
func line(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	text = secrets.ReplaceAllString(text, "${1}(removed)")
	if len(text) > maxMessageLength {
		text = strings.ToValidUTF8(text[:maxMessageLength-len("...")], "") + "..."
	}
	return text
}

func invalid(op string, err error) error {
	return &job.Error{Op: op, Kind: job.ErrInvalid, Err: err}
}
