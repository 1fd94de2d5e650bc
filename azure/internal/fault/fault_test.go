package fault_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/azure/internal/fault"
	"github.com/hubjobs/hubjobs/job"
)

type answer int

func (answer) Error() string  { return "answered" }
func (a answer) RPCCode() int { return int(a) }

type credentialError struct{ error }

func (credentialError) NonRetriable()   {}
func (e credentialError) Unwrap() error { return e.error }

func TestWrap(t *testing.T) {
	t.Parallel()
	special := fault.Conditions{amqp.ErrCondResourceLimitExceeded: job.ErrQueueFull}
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"not found":               {&amqp.Error{Condition: amqp.ErrCondNotFound}, job.ErrNotFound},
		"in a link error":         {&amqp.LinkError{RemoteErr: &amqp.Error{Condition: amqp.ErrCondUnauthorizedAccess}}, job.ErrUnauthorized},
		"in a connection error":   {&amqp.ConnError{RemoteErr: &amqp.Error{Condition: amqp.ErrCondConnectionForced}}, job.ErrUnavailable},
		"too large":               {&amqp.Error{Condition: amqp.ErrCondMessageSizeExceeded}, job.ErrTooLarge},
		"special wins":            {&amqp.Error{Condition: amqp.ErrCondResourceLimitExceeded}, job.ErrQueueFull},
		"server busy":             {&amqp.Error{Condition: "com.microsoft:server-busy"}, job.ErrThrottled},
		"lock lost":               {&amqp.Error{Condition: "com.microsoft:message-lock-lost"}, job.ErrLockLost},
		"unknown condition":       {&amqp.Error{Condition: "com.example:new"}, job.ErrUnavailable},
		"link without a reason":   {&amqp.LinkError{}, job.ErrUnavailable},
		"credential":              {credentialError{errors.New("no identity here")}, job.ErrUnauthorized},
		"credential, but timeout": {credentialError{context.DeadlineExceeded}, job.ErrUnavailable},
		"management: no claim":    {answer(401), job.ErrUnauthorized},
		"management: lock lost":   {answer(410), job.ErrLockLost},
		"management: try again":   {answer(503), job.ErrUnavailable},
		"timeout":                 {context.DeadlineExceeded, job.ErrUnavailable},
		"anything":                {errors.New("reset by peer"), job.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := fault.Wrap("do it", fmt.Errorf("somewhere: %w", c.err), special)
			if !errors.Is(err, c.want) || !errors.Is(err, c.err) {
				t.Errorf("got %v, want kind %v and the cause", err, c.want)
			}
		})
	}
}

func TestWrapKeepsAKind(t *testing.T) {
	t.Parallel()
	inner := &job.Error{Op: "inner", Kind: job.ErrThrottled, RetryAfter: time.Minute, Err: errors.New("slow down")}
	var got *job.Error
	if err := fault.Wrap("outer", fmt.Errorf("around: %w", inner), nil); !errors.As(err, &got) {
		t.Fatal(err)
	}
	if got.Op != "outer" || !errors.Is(got, job.ErrThrottled) || got.RetryAfter != time.Minute {
		t.Errorf("got %+v", got)
	}
	if fault.Wrap("nothing", nil, nil) != nil {
		t.Error("no error became one")
	}
}

func TestTextIsOneShortLine(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		errors.New("GET http://169.254.169.254/\n----\nRESPONSE 400\n" + strings.Repeat("x ", 5000)),
		&amqp.Error{Condition: amqp.ErrCondNotFound, Description: "gone\r\n" + strings.Repeat("y", 5000)},
	} {
		text := fault.Wrap("do it", err, nil).Error()
		if strings.ContainsAny(text, "\r\n") || len(text) > 700 {
			t.Errorf("%d bytes: %q", len(text), text)
		}
	}
}
