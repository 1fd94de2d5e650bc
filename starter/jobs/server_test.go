package jobs_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	sdktemporal "go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/infra/local/temporal"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
	"github.com/hubjobs/hubjobs/starter/jobs"
)

// dial returns a client of a Temporal server of the test's own.
func dial(t *testing.T) client.Client {
	t.Helper()
	keyword := enumspb.INDEXED_VALUE_TYPE_KEYWORD
	s, err := temporal.Start(t.Context(), temporal.Options{SearchAttributes: map[string]enumspb.IndexedValueType{
		job.SearchAttributeStatus: keyword, job.SearchAttributeStep: keyword,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := s.Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// standIn has the outside of the Job workflow, and as its inside only this: it reports its first step, and then ends
// as its name says; "wait" ends when it is cancelled.
func standIn(ctx workflow.Context, in job.JobInput) (job.Result, error) {
	s := job.Snapshot{JobID: in.Job.CorrelationID, Name: in.Job.Name, State: job.StateRunning, Steps: in.Job.Steps}
	s.Updates = []job.Applied{{Sequence: 1, Step: s.Steps[0], Status: job.StatusInProgress, At: workflow.Now(ctx)}}
	end := job.State(in.Job.Name)
	register := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	register(workflow.SetQueryHandler(ctx, job.QueryStatus, func() (job.Snapshot, error) { return s, nil }))
	register(workflow.SetQueryHandler(ctx, job.QueryAudit, func() (job.Audit, error) {
		return job.Audit{JobID: s.JobID, Messages: []job.MessageRow{{ID: "m1"}}}, nil
	}))
	register(workflow.SetUpdateHandler(ctx, job.UpdateCancel, func(_ workflow.Context, c job.CancelInput) (job.CancelOutput, error) {
		s.Reason, end = c.Reason, job.StateCancelled
		return job.CancelOutput{State: s.State}, nil
	}))
	register(workflow.UpsertTypedSearchAttributes(ctx, sdktemporal.NewSearchAttributeKeyKeyword(job.SearchAttributeStatus).ValueSet("Running")))
	if err := workflow.Await(ctx, func() bool { return end.Ended() }); err != nil {
		return s, err
	}
	s.State = end
	if end == job.StateRejected {
		return s, sdktemporal.NewNonRetryableApplicationError("no such step", string(end), nil, s)
	}
	return s, nil
}

// work runs a worker for jobs until stop is called.
func work(t *testing.T, c client.Client) (stop func()) {
	t.Helper()
	w := worker.New(c, job.TaskQueueJobs, worker.Options{})
	w.RegisterWorkflowWithOptions(standIn, workflow.RegisterOptions{Name: job.WorkflowJob})
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(w.Stop)
	t.Cleanup(stop)
	return stop
}

func named(id, name string) job.JobInput {
	return job.JobInput{Job: job.Job{Name: name, CorrelationID: id, Steps: []string{"a", job.StepDone}}, RequestedBy: "ann"}
}

// TestServer takes jobs through a real server: before anybody works on them, while somebody does, and afterwards.
func TestServer(t *testing.T) {
	t.Parallel()
	connection := dial(t)
	c := jobs.New(connection)
	for _, in := range []job.JobInput{named("job-1", "wait"), named("job-2", "Rejected")} {
		if err := c.Start(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Start(t.Context(), named("job-1", "again")); !errors.Is(err, job.ErrExists) {
		t.Errorf("a second job of the same ID: %v", err)
	}
	beforeAnybodyWorks(t, c)
	followed := make(chan followed, 1)
	waiting, running := make(chan struct{}), make(chan struct{})
	go func() { followed <- watch(t.Context(), c, waiting, running) }()
	<-waiting
	stop := work(t, connection)
	<-running
	whileSomebodyWorks(t, c)
	if f := <-followed; f.err != nil || f.last.State != job.StateCancelled || !slices.Equal(f.kinds, []follow.Kind{follow.Waiting, follow.Updated, follow.Progress, follow.Ended}) {
		t.Errorf("followed: %+v", f)
	}
	if s, err := c.Result(t.Context(), "job-2"); err != nil || s.State != job.StateRejected || s.Name != "Rejected" {
		t.Errorf("the result of a job that failed is %+v, %v", s, err)
	}
	stop()
	afterwards(t, c, connection)
}

func beforeAnybodyWorks(t *testing.T, c *jobs.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := c.Snapshot(t.Context(), "job-1")
	if !errors.Is(err, jobs.ErrNoWorker) {
		t.Errorf("snapshot without a worker: %v", err)
	}
	if _, err = c.Audit(ctx, "job-1"); !errors.Is(err, jobs.ErrNoWorker) {
		t.Errorf("audit without a worker: %v", err)
	}
	if _, err = c.Cancel(ctx, "job-1", job.CancelInput{}); !errors.Is(err, jobs.ErrNoWorker) {
		t.Errorf("cancel without a worker: %v", err)
	}
	e, err := c.Describe(t.Context(), "job-1")
	if err != nil || e.Status != "Running" || e.Ended() || e.Name != "wait" {
		t.Errorf("described as %+v, %v", e, err)
	}
	for name, ask := range map[string]func() error{
		"describe": func() error { _, err := c.Describe(t.Context(), "absent"); return err },
		"snapshot": func() error { _, err := c.Snapshot(t.Context(), "absent"); return err },
		"cancel":   func() error { _, err := c.Cancel(t.Context(), "absent", job.CancelInput{}); return err },
		"result":   func() error { _, err := c.Result(t.Context(), "absent"); return err },
	} {
		if err := ask(); !errors.Is(err, job.ErrNotFound) {
			t.Errorf("%s of a job that never was: %v", name, err)
		}
	}
}

type followed struct {
	kinds []follow.Kind
	last  job.Snapshot
	err   error
}

// watch follows job-1 and closes waiting when it has to wait, and running when that is over.
func watch(ctx context.Context, c *jobs.Client, waiting, running chan<- struct{}) (f followed) {
	wait, run := sync.OnceFunc(func() { close(waiting) }), sync.OnceFunc(func() { close(running) })
	f.last, f.err = follow.Job(ctx, c, "job-1", nil, func(e follow.Event) error {
		switch e.Kind {
		case follow.Waiting:
			wait()
		case follow.Progress:
			run()
		}
		if e.Kind != follow.Tick {
			f.kinds = append(f.kinds, e.Kind)
		}
		return nil
	})
	return f
}

func whileSomebodyWorks(t *testing.T, c *jobs.Client) {
	t.Helper()
	s, err := c.Snapshot(t.Context(), "job-1")
	if err != nil || s.State != job.StateRunning || len(s.Updates) != 1 {
		t.Errorf("snapshot: %+v, %v", s, err)
	}
	if a, err := c.Audit(t.Context(), "job-1"); err != nil || len(a.Messages) != 1 {
		t.Errorf("audit: %+v, %v", a, err)
	}
	out, err := c.Cancel(t.Context(), "job-1", job.CancelInput{Reason: "too late"})
	if err != nil || out.State != job.StateRunning {
		t.Errorf("cancel: %+v, %v", out, err)
	}
}

func afterwards(t *testing.T, c *jobs.Client, connection client.Client) {
	t.Helper()
	if s, err := c.Result(t.Context(), "job-1"); err != nil || s.State != job.StateCancelled || s.Reason != "too late" {
		t.Errorf("result: %+v, %v", s, err)
	}
	if _, err := c.Cancel(t.Context(), "job-1", job.CancelInput{}); !errors.Is(err, jobs.ErrEnded) {
		t.Errorf("cancel afterwards: %v", err)
	}
	if err := c.Start(t.Context(), named("job-1", "again")); !errors.Is(err, job.ErrExists) {
		t.Errorf("a job of the same ID afterwards: %v", err)
	}
	if err := c.Start(t.Context(), named("job-3", "wait")); err != nil {
		t.Fatal(err)
	}
	if err := connection.TerminateWorkflow(t.Context(), "job-3", "", "test"); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Result(t.Context(), "job-3"); err != nil || s.State != job.StateFailed || s.JobID != "job-3" || s.EndedAt.IsZero() {
		t.Errorf("the result of a terminated job is %+v, %v", s, err)
	}
	listed(t, c, jobs.Filter{}, []string{"job-1 wait Completed", "job-2 Rejected Failed", "job-3 wait Terminated"})
	listed(t, c, jobs.Filter{State: job.StateRunning}, []string{"job-1 wait Completed", "job-2 Rejected Failed"})
}

// listed waits until the list, which runs behind, is what is wanted.
func listed(t *testing.T, c *jobs.Client, f jobs.Filter, want []string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		got = nil
		for e, err := range c.List(t.Context(), f) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.JobID+" "+e.Name+" "+e.Status)
		}
		if slices.Sort(got); slices.Equal(got, want) {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	t.Errorf("listed %q, want %q", got, want)
}

func TestServerWithoutTheNamespace(t *testing.T) {
	t.Parallel()
	s, err := temporal.Start(t.Context(), temporal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	connection, err := s.Dial(t.Context(), "absent")
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	err = jobs.New(connection).Start(t.Context(), named("job-1", "wait"))
	if want := `start job "job-1": not found: the Temporal server has no namespace "absent"`; err == nil || !errors.Is(err, job.ErrNotFound) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
