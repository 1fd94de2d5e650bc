package solver

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// temporal takes workflow starts, after it has failed as it is told to.
type temporal struct {
	errs    []error // one for each call
	options []client.StartWorkflowOptions
	inputs  []job.SolveInput
}

func (f *temporal) ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		if err != nil {
			return nil, err
		}
	}
	if workflow != job.WorkflowSolve {
		return nil, errors.New("another workflow was started")
	}
	f.options = append(f.options, o)
	f.inputs = append(f.inputs, args[0].(job.SolveInput))
	return nil, nil
}

type settlement struct{ how, description string }

func (s *settlement) Complete(context.Context) error { s.how = "completed"; return nil }

func (s *settlement) DeadLetter(_ context.Context, reason job.Reason, description string) error {
	s.how, s.description = string(reason), description
	return nil
}

func newIntake(t *temporal) *intake { return &intake{temporal: t, log: slog.New(slog.DiscardHandler)} }

const body = `{"Name":"Job 1","CorrelationId":"job-1","Steps":["a","Done"]}`

func TestIntakeStartsSolve(t *testing.T) {
	t.Parallel()
	f := &temporal{}
	s := &settlement{}
	newIntake(f).take(t.Context(), job.Message{ID: "job-1", Body: job.Body(body),
		Properties: map[string]string{"step-retries": "2", "foreign": "1"}}, s)
	if s.how != "completed" || len(f.options) != 1 {
		t.Fatalf("settled as %q: %q, started %v", s.how, s.description, f.options)
	}
	o := f.options[0]
	if o.ID != "solve/job-1" || o.TaskQueue != "hubjobs-solver" || o.StaticSummary != `solve "Job 1": 2 steps` ||
		o.WorkflowIDReusePolicy != enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE || !o.WorkflowExecutionErrorWhenAlreadyStarted {
		t.Errorf("started with %+v", o)
	}
	want := job.SolveInput{
		Job:     job.Job{Name: "Job 1", CorrelationID: "job-1", Steps: []string{"a", "Done"}},
		Options: job.SolverOptions{StepRetries: 2},
	}
	if !reflect.DeepEqual(f.inputs[0], want) {
		t.Errorf("got input %+v, want %+v", f.inputs[0], want)
	}
}

func TestIntakeSettles(t *testing.T) {
	t.Parallel()
	started := serviceerror.NewWorkflowExecutionAlreadyStarted("there", "", "")
	unavailable := serviceerror.NewUnavailable("down")
	for name, c := range map[string]struct {
		body       string
		properties map[string]string
		errs       []error
		how, say   string
	}{
		"started already":          {body: body, errs: []error{started}, how: "completed"},
		"Temporal is down a while": {body: body, errs: []error{unavailable, unavailable}, how: "completed"},
		"Temporal will never":      {body: body, errs: []error{serviceerror.NewInvalidArgument("too large")}, how: "InvalidMessage", say: "too large"},
		"not a job":                {body: `{"Step":"a"}`, how: "InvalidMessage", say: "job ID"},
		"not JSON":                 {body: `hello`, how: "InvalidMessage", say: "not a JSON object"},
		"settings that can't be":   {body: body, properties: map[string]string{"step-time": "soon"}, how: "InvalidMessage", say: `"step-time"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &settlement{}
				newIntake(&temporal{errs: c.errs}).take(t.Context(), job.Message{Body: job.Body(c.body), Properties: c.properties}, s)
				if s.how != c.how || !strings.Contains(s.description, c.say) {
					t.Errorf("settled as %q: %q; want %q with %q", s.how, s.description, c.how, c.say)
				}
			})
		})
	}
}

func TestIntakeLeavesTheMessageWhenItIsStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s := &settlement{}
		f := &temporal{errs: make([]error, 100)}
		for i := range f.errs {
			f.errs[i] = serviceerror.NewUnavailable("down")
		}
		newIntake(f).take(ctx, job.Message{Body: job.Body(body)}, s)
		if s.how != "" {
			t.Errorf("settled as %q, though nobody has started the job", s.how)
		}
	})
}

func TestIntakeCompletesTheOptions(t *testing.T) {
	t.Parallel()
	slow, none := time.Minute, time.Duration(0)
	defaults := job.SolverOptions{StepTime: &slow, StepTimeout: time.Hour, StepRetries: 3, ReceiptTimeout: time.Second}
	given := job.SolverOptions{StepTime: &none, StepTimeout: time.Minute, StepRetries: 1, ReceiptTimeout: time.Hour, Deadline: time.Unix(1, 0)}
	i := &intake{defaults: defaults}
	if got := i.complete(job.SolverOptions{}); !reflect.DeepEqual(got, defaults) {
		t.Errorf("nothing given: got %+v", got)
	}
	if got := i.complete(given); !reflect.DeepEqual(got, given) {
		t.Errorf("everything given: got %+v", got)
	}
}

func TestSummaryFits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		steps int
		want  string
	}{
		{"Job 1", 7, `solve "Job 1": 7 steps`},
		{"Job 1", 1, `solve "Job 1": 1 step`},
		{strings.Repeat("ä", 256), 2, `solve "` + strings.Repeat("ä", 100) + `...": 2 steps`},
	} {
		got := summary(job.Job{Name: c.name, Steps: make([]string, c.steps)})
		if got != c.want || len(got) > 400 {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestRunRefusesToStart(t *testing.T) {
	t.Parallel()
	h := host.Settings{ManagerURL: "http://manager", APIKey: "k"}
	for name, c := range map[string]struct {
		settings Settings
		want     string
	}{
		"without a step runner":       {Settings{Host: h}, "step runner"},
		"without a manager":           {Settings{Steps: steps.Simulate{}}, "manager"},
		"with defaults that can't be": {Settings{Host: h, Steps: steps.Simulate{}, Defaults: job.SolverOptions{StepRetries: -1}}, "retries"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := Run(t.Context(), c.settings); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something about %q", err, c.want)
			}
		})
	}
}
