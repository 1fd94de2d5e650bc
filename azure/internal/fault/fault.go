// Package fault classifies the errors that the AMQP clients and the credentials return into the kinds of package job.
package fault

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/job"
)

// Conditions maps AMQP error conditions to kinds of package job.
type Conditions map[amqp.ErrCond]error

// Conditions that mean the same for all services behind AMQP. Those with the prefix "amqp:" are from AMQP 1.0 §2.8,
// the others from the Service Bus docs, "AMQP errors", and azure-iothub (Node) lib/amqp_service_errors.
var conditions = Conditions{
	amqp.ErrCondNotFound:              job.ErrNotFound,
	amqp.ErrCondUnauthorizedAccess:    job.ErrUnauthorized,
	amqp.ErrCondMessageSizeExceeded:   job.ErrTooLarge,
	amqp.ErrCondNotAllowed:            job.ErrInvalid,
	amqp.ErrCondNotImplemented:        job.ErrInvalid,
	amqp.ErrCondInvalidField:          job.ErrInvalid,
	amqp.ErrCondDecodeError:           job.ErrInvalid,
	amqp.ErrCondPreconditionFailed:    job.ErrPrecondition,
	amqp.ErrCondResourceLimitExceeded: job.ErrThrottled,

	"com.microsoft:argument-error":        job.ErrInvalid,
	"com.microsoft:argument-out-of-range": job.ErrInvalid,
	"com.microsoft:server-busy":           job.ErrThrottled,
	"com.microsoft:message-lock-lost":     job.ErrLockLost,
	"com.microsoft:session-lock-lost":     job.ErrLockLost,
	"com.microsoft:precondition-failed":   job.ErrPrecondition,
}

// Wrap returns err as a job.Error about op. Conditions in special win over those that all services share; what nothing
// is known of is job.ErrUnavailable. An error that has a kind already keeps it.
func Wrap(op string, err error, special Conditions) error {
	if err == nil {
		return nil
	}
	var classified *job.Error
	if errors.As(err, &classified) {
		return &job.Error{Op: op, Kind: classified.Kind, RetryAfter: classified.RetryAfter, Err: classified.Err}
	}
	return Of(op, kind(err, special), err)
}

// Of returns err as a job.Error of a kind that the caller knows, its text made one line.
func Of(op string, kind, err error) error {
	return &job.Error{Op: op, Kind: kind, Err: readable(err)}
}

func kind(err error, special Conditions) error {
	var remote *amqp.Error
	if errors.As(err, &remote) {
		for _, table := range []Conditions{special, conditions} {
			if k, ok := table[remote.Condition]; ok {
				return k
			}
		}
		return job.ErrUnavailable
	}
	// What $cbs and $management answered, where the SDKs don't put a class of their own around it
	// (azservicebus and azeventhubs, internal/rpc.go).
	var answer interface {
		error
		RPCCode() int
	}
	if errors.As(err, &answer) {
		if k, ok := statuses[answer.RPCCode()]; ok {
			return k
		}
	}
	if credentialFailed(err) {
		return job.ErrUnauthorized
	}
	return job.ErrUnavailable
}

// statuses are the status codes of AMQP management that mean more than "try again"; they are those of HTTP
// (OASIS AMQP Management 1.0, working draft 9, §3.2).
var statuses = map[int]error{
	http.StatusBadRequest:      job.ErrInvalid,
	http.StatusUnauthorized:    job.ErrUnauthorized,
	http.StatusForbidden:       job.ErrUnauthorized,
	http.StatusNotFound:        job.ErrNotFound,
	http.StatusGone:            job.ErrLockLost,
	http.StatusTooManyRequests: job.ErrThrottled,
}

// credentialFailed reports whether err says that a credential could not get a token. The errors of azidentity carry
// this marker so that pipelines don't retry them (azcore, internal/errorinfo.NonRetriable).
func credentialFailed(err error) bool {
	var marker interface {
		error
		NonRetriable()
	}
	return errors.As(err, &marker) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// readable makes err one short line and keeps it matchable.
func readable(err error) error {
	var remote *amqp.Error
	switch {
	case errors.As(err, &remote):
		return &line{text: string(remote.Condition) + ": " + oneLine(remote.Description), err: err}
	case strings.ContainsAny(err.Error(), "\r\n"):
		return &line{text: oneLine(err.Error()), err: err}
	}
	return err
}

// maxLine is how much of an error's text is kept, in bytes: azidentity puts whole HTTP responses into it.
const maxLine = 512

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "..."
	}
	return s
}

type line struct {
	text string
	err  error
}

func (l *line) Error() string { return l.text }
func (l *line) Unwrap() error { return l.err }
