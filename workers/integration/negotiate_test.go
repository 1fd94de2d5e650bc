package integration

import (
	"context"
	"errors"
	"sync"
	"testing"

	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/infra/local/temporal"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workflows"
)

// A job that is cancelled while its identities are being made deregisters them only afterwards: in the other order they
// would stay for ever. The activities are stand-ins, as a hub's registry can't be held in the middle of a call; the order
// is Temporal's own record.
func TestCancelWhileNegotiating(t *testing.T) {
	p := &pipeline{client: dial(t)}
	p.addSearchAttributes(t)
	asked, release := make(chan struct{}, 1), make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	jobs := worker.New(p.client, job.TaskQueueJobs, worker.Options{DisableRegistrationAliasing: true})
	jobs.RegisterWorkflowWithOptions(workflows.Job, workflow.RegisterOptions{Name: job.WorkflowJob})
	registry := worker.New(p.client, job.TaskQueueRegistry, worker.Options{DisableWorkflowWorker: true})
	activities.Register(registry, job.Negotiate, func(ctx context.Context, _ job.NegotiateInput) (job.NegotiateOutput, error) {
		asked <- struct{}{}
		<-release
		return job.NegotiateOutput{}, nil
	})
	activities.Register(registry, job.Deregister, func(context.Context, job.DeregisterInput) (job.None, error) {
		return job.None{}, nil
	})
	for _, w := range []worker.Worker{jobs, registry} {
		if err := w.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Stop)
	}
	t.Cleanup(open) // before a worker is stopped, which waits for its activities

	const id = "job-cancelled-early"
	p.start(t, id, job.Options{}, "a")
	<-asked
	p.cancel(t, id)
	p.history(t, id, func(e *historypb.HistoryEvent) bool {
		return e.GetEventType() == enumspb.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED
	})
	open()
	if got := p.result(t, id); got.State != job.StateCancelled {
		t.Errorf("the job ended %s: %s", got.State, got.Reason)
	}

	negotiated := false
	p.history(t, id, func(e *historypb.HistoryEvent) bool {
		switch e.GetEventType() {
		case enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED, enumspb.EVENT_TYPE_ACTIVITY_TASK_CANCELED:
			negotiated = true
		case enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
			if e.GetActivityTaskScheduledEventAttributes().GetActivityType().GetName() == job.Deregister.Name {
				if !negotiated {
					t.Error("identities were deregistered while they were still being made")
				}
				return true
			}
		}
		return false
	})
}

// history goes through the events of a job, also those to come, until one is the last.
func (p *pipeline) history(t *testing.T, id string, last func(*historypb.HistoryEvent) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events := p.client.GetWorkflowHistory(ctx, id, "", true, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		e, err := events.Next()
		if err != nil {
			t.Fatal(err)
		}
		if last(e) {
			return
		}
	}
	t.Fatal("the history has no such event")
}

// addSearchAttributes does what a manager does when it starts.
func (p *pipeline) addSearchAttributes(t *testing.T) {
	t.Helper()
	keyword := enumspb.INDEXED_VALUE_TYPE_KEYWORD
	_, err := p.client.OperatorService().AddSearchAttributes(t.Context(), &operatorservice.AddSearchAttributesRequest{
		Namespace: temporal.DefaultNamespace,
		SearchAttributes: map[string]enumspb.IndexedValueType{
			job.SearchAttributeStatus: keyword, job.SearchAttributeStep: keyword,
		},
	})
	var exists *serviceerror.AlreadyExists
	if err != nil && !errors.As(err, &exists) {
		t.Fatal(err)
	}
}
