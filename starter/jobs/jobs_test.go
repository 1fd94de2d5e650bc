package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/jobs"
)

// server answers the calls that jobs.Client makes; any other call panics.
type server struct {
	client.Client

	started  client.StartWorkflowOptions
	input    any
	err      error // of every call that has none of its own
	answer   any   // to queries and updates
	results  []result
	describe func() (*workflowservice.DescribeWorkflowExecutionResponse, error)
	pages    map[string]*workflowservice.ListWorkflowExecutionsResponse
	queries  []string
	health   error
}

func (s *server) CheckHealth(context.Context, *client.CheckHealthRequest) (*client.CheckHealthResponse, error) {
	return nil, s.health
}

type result struct {
	value any
	err   error
}

func (s *server) ExecuteWorkflow(_ context.Context, o client.StartWorkflowOptions, _ any, args ...any) (client.WorkflowRun, error) {
	s.started, s.input = o, args[0]
	return nil, s.err
}

func (s *server) QueryWorkflow(ctx context.Context, _, _, _ string, _ ...any) (converter.EncodedValue, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("the query has no deadline")
	}
	return value{s.answer}, s.err
}

func (s *server) UpdateWorkflow(context.Context, client.UpdateWorkflowOptions) (client.WorkflowUpdateHandle, error) {
	return handle{value: value{s.answer}}, s.err
}

func (s *server) DescribeWorkflowExecution(context.Context, string, string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	return s.describe()
}

func (s *server) GetWorkflow(context.Context, string, string) client.WorkflowRun {
	r := s.results[0]
	s.results = s.results[1:]
	return run{value: value{r.value}, err: r.err}
}

func (s *server) ListWorkflow(_ context.Context, in *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	s.queries = append(s.queries, in.GetQuery())
	return s.pages[string(in.GetNextPageToken())], s.err
}

// value goes through JSON, as values do on their way from a worker.
type value struct{ v any }

func (v value) HasValue() bool { return v.v != nil }
func (v value) Get(to any) error {
	text, err := json.Marshal(v.v)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}

type handle struct {
	client.WorkflowUpdateHandle
	value
}

func (h handle) Get(_ context.Context, to any) error { return h.value.Get(to) }

type run struct {
	client.WorkflowRun
	value
	err error
}

func (r run) Get(_ context.Context, to any) error {
	if r.err != nil {
		return r.err
	}
	return r.value.Get(to)
}

func input(name, by string, steps ...string) job.JobInput {
	return job.JobInput{Job: job.Job{Name: name, CorrelationID: "job-1", Steps: steps}, RequestedBy: by}
}

func TestStart(t *testing.T) {
	t.Parallel()
	s := &server{}
	in := input("Job 1", "ann", "Read `all`", job.StepDone)
	if err := jobs.New(s).Start(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	o := s.started
	if o.ID != "job-1" || o.TaskQueue != job.TaskQueueJobs || !o.WorkflowExecutionErrorWhenAlreadyStarted ||
		o.WorkflowIDReusePolicy != enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE {
		t.Errorf("started with %+v", o)
	}
	if o.StaticSummary != "Job 1: 2 steps, requested by ann" {
		t.Errorf("summary %q", o.StaticSummary)
	}
	if want := "### Steps\n\n1. `Read 'all'`\n2. `Done`\n"; o.StaticDetails != want {
		t.Errorf("details %q, want %q", o.StaticDetails, want)
	}
	if got := s.input.(job.JobInput); got.Job.Name != "Job 1" {
		t.Errorf("input %+v", got)
	}
}

func TestStartTextsStayWithinTheServersLimits(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		in   job.JobInput
	}{
		{"long names of many bytes", input(strings.Repeat("東", job.MaxNameLength), strings.Repeat("é", 100), strings.Repeat("ü", job.MaxStepLength))},
		{"a very long user", input("N", strings.Repeat("é", 5000), "a")},
		{"many steps", input("N", "", slices.Repeat([]string{strings.Repeat("s", job.MaxStepLength)}, job.MaxSteps)...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := &server{}
			if err := jobs.New(s).Start(t.Context(), test.in); err != nil {
				t.Fatal(err)
			}
			summary, details := s.started.StaticSummary, s.started.StaticDetails
			if len(summary) > 400 || !utf8.ValidString(summary) {
				t.Errorf("the summary has %d bytes: %q", len(summary), summary)
			}
			if len(details) > 20_000 || !utf8.ValidString(details) {
				t.Errorf("the details have %d bytes", len(details))
			}
			if len(test.in.Job.Steps) > 100 && !strings.Contains(details, " more\n") {
				t.Error("the details don't say that steps are left out")
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		err  error
		ask  bool // of a call that a worker answers
		want error
		says string
	}{
		{"started already", serviceerror.NewWorkflowExecutionAlreadyStarted("", "", ""), false, job.ErrExists, ""},
		{"refused", serviceerror.NewPermissionDenied("no", ""), false, job.ErrUnauthorized, ""},
		{"too much", serviceerror.NewResourceExhausted(enumspb.RESOURCE_EXHAUSTED_CAUSE_RPS_LIMIT, ""), false, job.ErrThrottled, ""},
		{"away", serviceerror.NewUnavailable("away"), false, job.ErrUnavailable, ""},
		{"late", serviceerror.NewDeadlineExceeded("late"), false, job.ErrUnavailable, ""},
		{"bad input", serviceerror.NewInvalidArgument("bad"), false, job.ErrInvalid, ""},
		{"no such job", serviceerror.NewNotFound("gone"), true, job.ErrNotFound, ""},
		{"nobody polls", serviceerror.NewFailedPrecondition("no poller seen"), true, jobs.ErrNoWorker, "no manager worker answers for the job"},
		{"nobody has begun", serviceerror.NewWorkflowNotReady("wait"), true, jobs.ErrNoWorker, ""},
		{"nobody in time", serviceerror.NewDeadlineExceeded("late"), true, jobs.ErrNoWorker, ""},
		{"nobody in our time", context.DeadlineExceeded, true, jobs.ErrNoWorker, ""},
		{"away while asking", serviceerror.NewUnavailable("away"), true, job.ErrUnavailable, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := jobs.New(&server{err: test.err})
			err := c.Start(t.Context(), input("N", "", "a"))
			if test.ask {
				_, err = c.Snapshot(t.Context(), "job-1")
			}
			if !errors.Is(err, test.want) || !errors.Is(err, test.err) {
				t.Fatalf("got %v, want a %v", err, test.want)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %q, want it to say %q", err, test.says)
			}
			permanent := test.want == job.ErrExists || test.want == job.ErrNotFound || test.want == job.ErrInvalid
			if job.Retryable(err) == permanent {
				t.Errorf("%v: retryable is %v", err, !permanent)
			}
		})
	}
}

func TestSilenceOfTheServerIsNoMissingWorker(t *testing.T) {
	t.Parallel()
	c := jobs.New(&server{err: context.DeadlineExceeded, health: serviceerror.NewUnavailable("away")})
	for name, ask := range map[string]func() error{
		"snapshot": func() error { _, err := c.Snapshot(t.Context(), "job-1"); return err },
		"cancel":   func() error { _, err := c.Cancel(t.Context(), "job-1", job.CancelInput{}); return err },
	} {
		err := ask()
		if errors.Is(err, jobs.ErrNoWorker) || !errors.Is(err, job.ErrUnavailable) || !strings.Contains(err.Error(), "the Temporal server can't be reached") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSnapshotAndAudit(t *testing.T) {
	t.Parallel()
	c := jobs.New(&server{answer: map[string]any{"jobId": "job-1", "state": "Running", "messages": map[string]int{"sent": 3}}})
	if s, err := c.Snapshot(t.Context(), "job-1"); err != nil || s.State != job.StateRunning || s.Messages.Sent != 3 {
		t.Errorf("got %+v, %v", s, err)
	}
	c = jobs.New(&server{answer: job.Audit{JobID: "job-1", Messages: []job.MessageRow{{ID: "m1"}}}})
	if a, err := c.Audit(t.Context(), "job-1"); err != nil || len(a.Messages) != 1 || a.Messages[0].ID != "m1" {
		t.Errorf("got %+v, %v", a, err)
	}
	c = jobs.New(&server{answer: "nonsense"})
	if _, err := c.Audit(t.Context(), "job-1"); err == nil {
		t.Error("nonsense was read as an audit")
	}
}

var begin = time.Date(2026, 3, 4, 10, 0, 0, 0, time.UTC)

// execution is a workflow as the server describes it; state is its search attribute.
func execution(status enumspb.WorkflowExecutionStatus, workflow, state string) *workflowpb.WorkflowExecutionInfo {
	info := &workflowpb.WorkflowExecutionInfo{
		Execution: &commonpb.WorkflowExecution{WorkflowId: "job-1", RunId: "r"},
		Type:      &commonpb.WorkflowType{Name: workflow},
		Status:    status,
		StartTime: timestamppb.New(begin),
		Memo:      &commonpb.Memo{Fields: payloads("name", "Job 1")},
	}
	if status != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
		info.CloseTime = timestamppb.New(begin.Add(time.Minute))
	}
	if state != "" {
		info.SearchAttributes = &commonpb.SearchAttributes{IndexedFields: payloads(job.SearchAttributeStatus, state, job.SearchAttributeStep, "Train")}
	}
	return info
}

func payloads(namesAndValues ...any) map[string]*commonpb.Payload {
	all := make(map[string]*commonpb.Payload)
	for i := 0; i < len(namesAndValues); i += 2 {
		p, err := converter.GetDefaultDataConverter().ToPayload(namesAndValues[i+1])
		if err != nil {
			panic(err)
		}
		all[namesAndValues[i].(string)] = p
	}
	return all
}

func described(info *workflowpb.WorkflowExecutionInfo) func() (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	return func() (*workflowservice.DescribeWorkflowExecutionResponse, error) {
		return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: info}, nil
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	const (
		runs       = enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
		completed  = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED
		terminated = enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED
	)
	for _, test := range []struct {
		name   string
		info   *workflowpb.WorkflowExecutionInfo
		status string
		ended  bool
	}{
		{"with search attributes", execution(runs, job.WorkflowJob, "Scheduled"), "Scheduled", false},
		{"without", execution(runs, job.WorkflowJob, ""), "Running", false},
		{"ended", execution(completed, job.WorkflowJob, "Cancelled"), "Cancelled", true},
		{"terminated while it ran", execution(terminated, job.WorkflowJob, "Running"), "Terminated", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e, err := jobs.New(&server{describe: described(test.info)}).Describe(t.Context(), "job-1")
			if err != nil {
				t.Fatal(err)
			}
			if e.Status != test.status || e.Ended() != test.ended || e.Name != "Job 1" || !e.StartedAt.Equal(begin) {
				t.Errorf("got %+v", e)
			}
		})
	}
	_, err := jobs.New(&server{describe: described(execution(runs, job.WorkflowSolve, ""))}).Describe(t.Context(), "job-1")
	if !errors.Is(err, job.ErrNotFound) {
		t.Errorf("a workflow that is no job: %v", err)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	ended := described(execution(enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED, job.WorkflowJob, "Completed"))
	gone := func() (*workflowservice.DescribeWorkflowExecutionResponse, error) {
		return nil, serviceerror.NewNotFound("gone")
	}
	for _, test := range []struct {
		name string
		s    *server
		want error
		says string
	}{
		{"running", &server{answer: job.CancelOutput{State: job.StateRunning}}, nil, ""},
		{"ended", &server{err: serviceerror.NewNotFound("completed"), describe: ended}, jobs.ErrEnded,
			`job "job-1" has ended already: Completed at 2026-03-04T10:01:00Z`},
		{"never was", &server{err: serviceerror.NewNotFound("gone"), describe: gone}, job.ErrNotFound, `find job "job-1": not found`},
		{"no worker", &server{err: client.NewWorkflowUpdateServiceTimeoutOrCanceledError(context.DeadlineExceeded)}, jobs.ErrNoWorker, ""},
		{"refused", &server{err: temporal.NewApplicationError("too late", "x")}, job.ErrInvalid, `cancel job "job-1": invalid: too late`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			out, err := jobs.New(test.s).Cancel(t.Context(), "job-1", job.CancelInput{Reason: "late"})
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && out.State != job.StateRunning {
				t.Errorf("got %+v", out)
			}
			if err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %q, want %q", err, test.says)
			}
		})
	}
}

// failure is the error with which a workflow ends that returns cause; for a timeout, one that takes too long.
func failure(t *testing.T, cause error) error {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestWorkflowEnvironment()
	env.SetWorkflowRunTimeout(time.Minute)
	env.ExecuteWorkflow(func(ctx workflow.Context) error {
		if _, late := errors.AsType[*temporal.TimeoutError](cause); late {
			return workflow.Sleep(ctx, time.Hour)
		}
		return cause
	})
	return env.GetWorkflowError()
}

func TestResult(t *testing.T) {
	t.Parallel()
	completed := job.Snapshot{JobID: "job-1", State: job.StateCompleted, StepsDone: 3}
	rejected := job.Snapshot{JobID: "job-1", State: job.StateRejected, Reason: "no such step", Name: "N"}
	nobody := serviceerror.NewFailedPrecondition("no poller")
	for _, test := range []struct {
		name    string
		results []result
		want    job.State
		reason  string
	}{
		{"returned", []result{{value: completed}}, job.StateCompleted, ""},
		{"in the failure's details", []result{{err: failure(t, temporal.NewNonRetryableApplicationError("no such step", "Rejected", nil, rejected))}},
			job.StateRejected, "no such step"},
		{"after the server was away", []result{{err: serviceerror.NewUnavailable("away")}, {err: serviceerror.NewUnavailable("away")}, {value: completed}},
			job.StateCompleted, ""},
		{"invalid input", []result{{err: failure(t, temporal.NewNonRetryableApplicationError("bad input", "invalid", nil))}}, job.StateFailed, "bad input"},
		{"cancelled from outside", []result{{err: failure(t, temporal.NewCanceledError())}}, job.StateCancelled, "the workflow was cancelled"},
		{"timed out", []result{{err: failure(t, temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_START_TO_CLOSE, nil))}}, job.StateExpired, "the workflow timed out"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &server{err: nobody, results: test.results, describe: described(execution(enumspb.WORKFLOW_EXECUTION_STATUS_FAILED, job.WorkflowJob, ""))}
				got, err := jobs.New(s).Result(t.Context(), "job-1")
				if err != nil {
					t.Fatal(err)
				}
				if got.State != test.want || got.Reason != test.reason || got.JobID != "job-1" {
					t.Errorf("got %+v, want %s: %s", got, test.want, test.reason)
				}
			})
		})
	}
	t.Run("context ends", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		mine := errors.New("mine")
		cancel(mine)
		_, err := jobs.New(&server{results: []result{{err: context.Canceled}}}).Result(ctx, "job-1")
		if !errors.Is(err, mine) {
			t.Errorf("got %v", err)
		}
	})
}

func TestList(t *testing.T) {
	t.Parallel()
	info := execution(enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, job.WorkflowJob, "")
	page := func(n int, next string) *workflowservice.ListWorkflowExecutionsResponse {
		return &workflowservice.ListWorkflowExecutionsResponse{Executions: slices.Repeat([]*workflowpb.WorkflowExecutionInfo{info}, n), NextPageToken: []byte(next)}
	}
	s := &server{pages: map[string]*workflowservice.ListWorkflowExecutionsResponse{"": page(2, "a"), "a": page(0, "b"), "b": page(1, "")}}
	c, n := jobs.New(s), 0
	for e, err := range c.List(t.Context(), jobs.Filter{State: job.StateRunning}) {
		if err != nil || e.JobID != "job-1" {
			t.Fatal(e, err)
		}
		n++
	}
	if n != 3 || len(s.queries) != 3 {
		t.Errorf("listed %d jobs with %d calls", n, len(s.queries))
	}
	if want := "WorkflowType = 'Job' AND ExecutionStatus != 'ContinuedAsNew' AND HubjobsStatus = 'Running'"; s.queries[0] != want {
		t.Errorf("asked for %s", s.queries[0])
	}
	for range c.List(t.Context(), jobs.Filter{}) {
		break
	}
	if len(s.queries) != 4 {
		t.Error("went on after the caller had enough")
	}
	s.err = serviceerror.NewPermissionDenied("no", "")
	var got error
	for _, err := range c.List(t.Context(), jobs.Filter{}) {
		got = err
	}
	if !errors.Is(got, job.ErrUnauthorized) {
		t.Errorf("got %v", got)
	}
}

func ExampleSteps() {
	fmt.Println(jobs.Steps(1), jobs.Steps(7))
	// Output: 1 step 7 steps
}
