package activities

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"go.temporal.io/api/serviceerror"

	"github.com/hubjobs/hubjobs/job"
)

type signal struct {
	workflow, run, name string
	arg                 any
}

type signaler struct {
	signals []signal
	err     error
}

func (s *signaler) SignalWorkflow(_ context.Context, workflow, run, name string, arg any) error {
	s.signals = append(s.signals, signal{workflow, run, name, arg})
	return s.err
}

func TestRecord(t *testing.T) {
	t.Parallel()
	s := &signaler{}
	if err := (&WorkflowRecorder{Temporal: s}).Record(t.Context(), session, message("m1")); err != nil {
		t.Fatal(err)
	}
	want := []signal{{"solve/job-1", "", "received", job.Received{DeviceID: session.DeviceID, Messages: []job.Message{message("m1")}}}}
	if !reflect.DeepEqual(s.signals, want) {
		t.Errorf("got %+v, want %+v", s.signals, want)
	}
}

func TestRecordFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ err, kind error }{
		"the workflow is over": {serviceerror.NewNotFound("workflow execution already completed"), job.ErrNotFound},
		"no server":            {serviceerror.NewUnavailable("connection refused"), job.ErrUnavailable},
		"too slow":             {context.DeadlineExceeded, job.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := (&WorkflowRecorder{Temporal: &signaler{err: c.err}}).Record(t.Context(), session, message("m1"))
			if !errors.Is(err, c.kind) || !errors.Is(err, c.err) {
				t.Errorf("got %v, want it to match %v and its cause", err, c.kind)
			}
		})
	}
}
