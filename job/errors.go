package job

import (
	"errors"
	"fmt"
	"time"
)

// The kinds of failure that the parts of the pipeline tell apart. Adapters classify a service's error once into one of
// them, by wrapping it in an Error; everyone else decides with errors.Is.
var (
	ErrInvalid      = errors.New("invalid")                   // the input breaks a rule; never retried
	ErrNotFound     = errors.New("not found")                 // no such device identity, entity or workflow; never retried
	ErrExists       = errors.New("already exists")            // never retried
	ErrTooLarge     = errors.New("too large")                 // over a size limit; never retried
	ErrUnauthorized = errors.New("not authorized")            // key, token or role refused; retried slowly, as an operator can mend it
	ErrQueueFull    = errors.New("device queue is full")      // MaxDeviceQueue messages wait; retried
	ErrThrottled    = errors.New("throttled")                 // over a rate limit or quota; retried after RetryAfter
	ErrUnavailable  = errors.New("unavailable")               // network, time-out, server error; retried
	ErrLockLost     = errors.New("message lock lost")         // the message will come again; never retried
	ErrPrecondition = errors.New("changed by someone else")   // ETag mismatch; never retried as it is
	ErrQuota        = errors.New("daily message quota is up") // retried slowly
)

// Error says what was tried, which kind of failure came of it, and why.
type Error struct {
	Op         string        // what was tried, for example "send to device d1"
	Kind       error         // one of the Err values of this package
	RetryAfter time.Duration // how long the service asked to wait; 0 when it didn't say
	Err        error         // the cause; may be nil
}

// Error returns "op: kind: cause".
func (e *Error) Error() string {
	s := e.Kind.Error()
	if e.Op != "" {
		s = e.Op + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes both the kind and the cause matchable.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Retryable reports whether trying the same again later can succeed. Errors of no known kind are retryable.
func Retryable(err error) bool {
	for _, permanent := range []error{ErrInvalid, ErrNotFound, ErrExists, ErrTooLarge, ErrLockLost, ErrPrecondition} {
		if errors.Is(err, permanent) {
			return false
		}
	}
	return true
}

func invalid(format string, args ...any) error {
	return &Error{Kind: ErrInvalid, Err: fmt.Errorf(format, args...)}
}

// errorTypes names each kind; the order is that in which an error is matched against them.
var errorTypes = []struct {
	kind error
	name string
}{
	{ErrInvalid, "Invalid"},
	{ErrNotFound, "NotFound"},
	{ErrExists, "Exists"},
	{ErrTooLarge, "TooLarge"},
	{ErrUnauthorized, "Unauthorized"},
	{ErrQueueFull, "QueueFull"},
	{ErrThrottled, "Throttled"},
	{ErrQuota, "Quota"},
	{ErrUnavailable, "Unavailable"},
	{ErrLockLost, "LockLost"},
	{ErrPrecondition, "Precondition"},
}

// ErrorType returns the name of err's kind, under which it crosses a workflow boundary as the type of Temporal's
// application error; "Unknown" when it is of no kind.
func ErrorType(err error) string {
	for _, t := range errorTypes {
		if errors.Is(err, t.kind) {
			return t.name
		}
	}
	return "Unknown"
}
