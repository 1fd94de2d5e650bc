package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/azure/eventhubs"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/jobs"
)

// fakeService is a Temporal server with one job.
type fakeService struct {
	mu       sync.Mutex
	started  []job.JobInput
	cancels  []job.CancelInput
	filter   jobs.Filter
	startErr error
	askErr   error // of everything that a worker answers
	findErr  error
	last     *job.Snapshot // the job ends with it; nil: it runs until it is cancelled
	ended    chan struct{} // closed by a cancellation, unless nil
	asked    chan struct{} // one value a question
	audit    job.Audit
	list     []jobs.Execution
	closed   bool
}

func (f *fakeService) Start(_ context.Context, in job.JobInput) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = append(f.started, in)
	return f.startErr
}

func (f *fakeService) Snapshot(context.Context, string) (job.Snapshot, error) {
	if f.asked != nil {
		select {
		case f.asked <- struct{}{}:
		default:
		}
	}
	return job.Snapshot{JobID: "job-1", Name: "Job 1", State: job.StateRunning, Steps: []string{"a", "Done"}}, f.askErr
}

func (f *fakeService) Result(ctx context.Context, _ string) (job.Snapshot, error) {
	if f.last != nil {
		return *f.last, nil
	}
	select {
	case <-f.ended:
		return job.Snapshot{JobID: "job-1", State: job.StateCancelled, Steps: []string{"a", "Done"}}, nil
	case <-ctx.Done():
		return job.Snapshot{}, context.Cause(ctx)
	}
}

func (f *fakeService) Cancel(_ context.Context, _ string, in job.CancelInput) (job.CancelOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancels = append(f.cancels, in)
	if f.ended != nil {
		close(f.ended)
	}
	return job.CancelOutput{State: job.StateRunning}, f.askErr
}

func (f *fakeService) Audit(context.Context, string) (job.Audit, error) { return f.audit, f.askErr }

func (f *fakeService) Describe(_ context.Context, id string) (jobs.Execution, error) {
	e := jobs.Execution{JobID: id, Name: "Job 1", Status: "Running", Workflow: "Running", StartedAt: time.Unix(0, 0)}
	if f.last != nil {
		e.EndedAt = time.Unix(60, 0)
	}
	return e, f.findErr
}

func (f *fakeService) List(_ context.Context, filter jobs.Filter) iter.Seq2[jobs.Execution, error] {
	f.filter = filter
	return func(yield func(jobs.Execution, error) bool) {
		for _, e := range f.list {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (f *fakeService) Namespace() string { return "default" }
func (f *fakeService) Close()            { f.closed = true }

// fakeHub is a hub with two devices and some messages.
type fakeHub struct {
	devices  []iothub.Device
	messages []eventhubs.DeviceMessage
	options  eventhubs.Options
	err      error
}

func (h *fakeHub) Statistics(context.Context) (iothub.Statistics, error) {
	return iothub.Statistics{Total: 3, Enabled: 2, Disabled: 1, Connected: 1}, h.err
}

func (h *fakeHub) Devices(context.Context) iter.Seq2[iothub.Device, error] {
	return func(yield func(iothub.Device, error) bool) {
		for _, d := range h.devices {
			if !yield(d, nil) {
				return
			}
		}
		if h.err != nil {
			yield(iothub.Device{}, h.err)
		}
	}
}

func (h *fakeHub) Close() error { return nil }

func (h *fakeHub) Monitor(ctx context.Context, o eventhubs.Options, fn func(eventhubs.DeviceMessage) error) error {
	h.options = o
	for _, m := range h.messages {
		if err := fn(m); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// noConfigFile keeps the settings of whoever runs the tests out of them.
const noConfigFile = "TEMPORAL_CONFIG_FILE=testdata/absent.toml"

// command is one run of the program with a fake world.
type command struct {
	service *fakeService
	hub     *fakeHub
	env     []string
	signals chan os.Signal
	conn    connection // what was connected to
}

type output struct {
	code           int
	stdout, stderr string
}

func newCommand() *command {
	return &command{service: &fakeService{}, hub: &fakeHub{}, env: []string{"USER=ann", noConfigFile}, signals: make(chan os.Signal, 4)}
}

func (c *command) run(t *testing.T, args ...string) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p := newProgram(Process{
		Args: append([]string{"starter"}, args...), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Environ: c.env, Signals: c.signals,
	})
	p.connect = func(_ context.Context, o connection) (service, error) {
		c.conn = o
		return c.service, nil
	}
	p.openRegistry = func(*envfile.Settings) (registry, error) { return c.hub, nil }
	p.openEvents = func(*envfile.Settings, *slog.Logger) (events, error) { return c.hub, nil }
	code := p.main(t.Context())
	return output{code, stdout.String(), stderr.String()}
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRunStartsTheJobThatFlagsAndFileDescribe(t *testing.T) {
	t.Parallel()
	const jobFile = "name: N\nsteps: ['a, b', c]\noptions: {stepTime: 2s, stepRetries: 3, timeout: 1h}\n"
	seconds := func(n int) *time.Duration { d := time.Duration(n) * time.Second; return &d }
	for _, test := range []struct {
		name    string
		args    []string
		env     []string
		want    string
		options job.Options
	}{
		{name: "defaults", want: "Job 1 [Read all the data Build in-memory model Train the model Evaluate the model Gather results Send Response Done]"},
		{name: "steps with commas", args: []string{"--step", "a, b", "--step=c", "--name", "M"}, want: "M [a, b c Done]"},
		{name: "zero step time", args: []string{"--step", "a", "--step-time", "0s"}, want: "Job 1 [a Done]", options: job.Options{Solver: job.SolverOptions{StepTime: seconds(0)}}},
		{name: "a file", args: []string{"--file", "FILE"}, want: "N [a, b c Done]",
			options: job.Options{Timeout: time.Hour, Solver: job.SolverOptions{StepTime: seconds(2), StepRetries: 3}}},
		{name: "flags win over the file", args: []string{"-f", "FILE", "--name", "M", "--step", "x", "--step-time", "5s", "--step-retries", "0"}, want: "M [x Done]",
			options: job.Options{Timeout: time.Hour, Solver: job.SolverOptions{StepTime: seconds(5)}}},
		{name: "the environment", env: []string{"HUBJOBS_RUN_STEP=a, b\nc\n", "HUBJOBS_RUN_NAME=E", "HUBJOBS_RUN_WINDOW=3", "HUBJOBS_RUN_DETACH=true"}, want: "E [a, b c Done]",
			options: job.Options{Window: 3}},
		{name: "flags win over the environment", args: []string{"--name", "M", "--step", "x"}, env: []string{"HUBJOBS_RUN_STEP=a", "HUBJOBS_RUN_NAME=E"}, want: "M [x Done]"},
		{name: "every option", args: []string{
			"--step", "a", "--step-timeout", "1s", "--accept-timeout", "2s", "--receipt-timeout", "3s", "--receipt-attempts", "4", "--cancel-timeout", "5s",
			"--message-ttl", "6s", "--window", "7", "--timeout", "8s",
		}, want: "Job 1 [a Done]", options: job.Options{
			Solver: job.SolverOptions{StepTimeout: time.Second}, AcceptTimeout: 2 * time.Second, ReceiptTimeout: 3 * time.Second, ReceiptAttempts: 4,
			CancelTimeout: 5 * time.Second, MessageTTL: 6 * time.Second, Window: 7, Timeout: 8 * time.Second,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCommand()
			c.env = append(c.env, test.env...)
			args := append([]string{"run", "--detach"}, test.args...)
			for i, arg := range args {
				if arg == "FILE" {
					args[i] = file(t, "job.yaml", jobFile)
				}
			}
			out := c.run(t, args...)
			if out.code != ExitOK || len(c.service.started) != 1 {
				t.Fatalf("got %+v", out)
			}
			in := c.service.started[0]
			if got := fmt.Sprintf("%s %v", in.Job.Name, in.Job.Steps); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			got, want := in.Options, test.options
			if (got.Solver.StepTime == nil) != (want.Solver.StepTime == nil) ||
				got.Solver.StepTime != nil && *got.Solver.StepTime != *want.Solver.StepTime {
				t.Errorf("step time %v, want %v", got.Solver.StepTime, want.Solver.StepTime)
			}
			got.Solver.StepTime, want.Solver.StepTime = nil, nil
			if got != want {
				t.Errorf("options %+v, want %+v", got, want)
			}
			if !strings.HasPrefix(in.Job.CorrelationID, "job-ann-2") || in.RequestedBy != "ann" {
				t.Errorf("job ID %q, requested by %q", in.Job.CorrelationID, in.RequestedBy)
			}
			if !c.service.closed {
				t.Error("the connection was left open")
			}
		})
	}
}

func TestRunDetached(t *testing.T) {
	t.Parallel()
	c := newCommand()
	out := c.run(t, "run", "--detach", "--id", "job-1", "--step", "a", "--ui-url", "http://127.0.0.1:8233/")
	want := "Started job-1: Job 1, 2 steps\nhttp://127.0.0.1:8233/namespaces/default/workflows/job-1\nFollow it with: starter attach job-1\n"
	if out.code != ExitOK || out.stdout != want || out.stderr != "" {
		t.Errorf("got %+v", out)
	}
	out = c.run(t, "run", "--detach", "--id", "job-1", "--step", "a", "-o", "json")
	if !strings.HasPrefix(out.stdout, `{"event":"started","jobId":"job-1","at":"`) || !strings.HasSuffix(out.stdout, `"name":"Job 1","steps":["a","Done"]}`+"\n") {
		t.Errorf("got %+v", out)
	}
}

func TestExitCodesOfAFollowedJob(t *testing.T) {
	t.Parallel()
	for state, code := range map[job.State]int{
		job.StateCompleted: 0, job.StateFailed: 2, job.StateCancelled: 3, job.StateRejected: 4, job.StateExpired: 5, job.StateUnconfirmed: 6,
	} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{{"run", "--id", "job-1"}, {"attach", "job-1"}} {
				c := newCommand()
				c.service.last = &job.Snapshot{JobID: "job-1", State: state, Reason: "as it is", Steps: []string{"a"}}
				out := c.run(t, args...)
				if out.code != code || !strings.Contains(out.stdout, string(state)+": as it is; 0 of 1 step done") || out.stderr != "" {
					t.Errorf("%v: got %+v, want code %d", args, out, code)
				}
			}
		})
	}
}

func TestSignalsWhileFollowing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		signal os.Signal
		code   int
	}{
		{"Ctrl-C", os.Interrupt, ExitInterrupted},
		{"SIGTERM", syscall.SIGTERM, ExitTerminated},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCommand()
			c.service.asked = make(chan struct{})
			go func() {
				<-c.service.asked // it is followed by now
				c.signals <- test.signal
			}()
			out := c.run(t, "run", "--id", "job-1")
			if out.code != test.code || !strings.Contains(out.stdout, "Attach again with: starter attach job-1\n") || out.stderr != "" {
				t.Errorf("got %+v", out)
			}
			if len(c.service.cancels) != 0 {
				t.Error("the job was cancelled")
			}
		})
	}
}

// TestOnATerminal takes a person through a job: it takes a while to connect, the job is followed on a live line, and
// Ctrl-C asks.
func TestOnATerminal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		signals := make(chan os.Signal, 1)
		p := newProgram(Process{
			Args: []string{"starter", "run", "--id", "job-1", "--step", "a"}, Stdin: strings.NewReader("y\n"), Stdout: &stdout, Stderr: &stderr,
			Environ: []string{"USER=ann", noConfigFile}, Signals: signals, Terminal: Terminal{In: true, Out: true, Err: true},
		})
		s := &fakeService{ended: make(chan struct{})}
		p.connect = func(context.Context, connection) (service, error) {
			time.Sleep(2500 * time.Millisecond)
			return s, nil
		}
		time.AfterFunc(10*time.Second, func() { signals <- os.Interrupt })
		if code := p.main(t.Context()); code != ExitCancelled {
			t.Errorf("code %d", code)
		}
		const erase = "\r\x1b[2K"
		busy := "connecting to Temporal at 127.0.0.1:7233 ... "
		if want := erase + busy + "1s" + erase + busy + "2s" + erase + "\nAre you sure you want to cancel? (y/n) "; stderr.String() != want {
			t.Errorf("stderr %q, want %q", stderr.String(), want)
		}
		for _, want := range []string{
			"Started job-1: Job 1, 2 steps\n", erase + "[--------------------] 0/2  0:03  Running  0 messages, 0 read", "Cancelling ...\n", "Cancelled; 0 of 2 steps done",
		} {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("stdout %q, want %q", stdout.String(), want)
			}
		}
		if len(s.cancels) != 1 || s.cancels[0].By != "ann" {
			t.Errorf("cancelled with %+v", s.cancels)
		}
	})
}

func TestSignalBeforeTheConnection(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	signals := make(chan os.Signal, 1)
	p := newProgram(Process{Args: []string{"starter", "list"}, Stdout: &bytes.Buffer{}, Stderr: &stderr, Signals: signals, Environ: []string{noConfigFile}})
	p.connect = func(ctx context.Context, _ connection) (service, error) {
		signals <- os.Interrupt
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if code := p.main(t.Context()); code != ExitInterrupted || stderr.String() != "starter: interrupted\n" {
		t.Errorf("code %d, %q", code, stderr.String())
	}
}

func TestErrorLines(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "absent")
	for _, test := range []struct {
		name string
		args []string
		env  string
		want string
	}{
		{"unknown command", []string{"start"}, "", `unknown command "start": see starter --help`},
		{"unknown subcommand", []string{"hub", "start"}, "", `unknown command "start": see starter --help`},
		{"unknown flag", []string{"run", "--nam", "x"}, "", "flag provided but not defined: -nam (see: starter run --help)"},
		{"no number", []string{"run", "--window", "x"}, "", `invalid value "x" for flag -window`},
		{"no duration", []string{"run", "--timeout", "60"}, "", `invalid value "60" for flag -timeout`},
		{"no duration in a variable", []string{"run"}, "HUBJOBS_RUN_TIMEOUT=60", "HUBJOBS_RUN_TIMEOUT: "},
		{"unknown output", []string{"list", "--output", "xml"}, "", `--output is "xml": it can be text or json (see: starter list --help)`},
		{"an argument too many", []string{"run", "now"}, "", `unexpected argument "now": name a step with --step`},
		{"no job", []string{"attach"}, "", "name one job, got 0 (see: starter attach --help)"},
		{"two jobs", []string{"cancel", "a", "b"}, "", "name one job, got 2 (see: starter cancel --help)"},
		{"no job ID", []string{"status", "a b"}, "", `invalid: the job ID "a b" contains ' '`},
		{"an empty step", []string{"run", "--step", ""}, "", "invalid: step 1 is empty: give it a name"},
		{"a long step", []string{"run", "--step", "a", "--step", strings.Repeat("x", 10_000)}, "", "invalid: step 2 is 10000 characters long, the limit is 256"},
		{"a bad ID", []string{"run", "--id", "a/b"}, "", `invalid: the job ID "a/b" contains '/'`},
		{"an option that makes no sense", []string{"run", "--window", "51"}, "", "invalid: the window is 51"},
		{"negative step time", []string{"run", "--step-time", "-1s"}, "", "invalid: the step time is negative: -1s"},
		{"no job file", []string{"run", "--file", missing}, "", "read the job file: open " + missing},
		{"0 steps", []string{"run", "--file", "FILE"}, "", "job.yaml:2: invalid: a job needs at least one step"},
		{"no env file", []string{"list", "--env-file", missing}, "", "read settings: open " + missing},
		{"no time to connect", []string{"list", "--connect-timeout", "0s"}, "", "--connect-timeout is 0s: it must be longer than 0s"},
		{"unknown state", []string{"list", "--status", "dead"}, "", `--status is "dead": it can be Starting, Scheduled`},
		{"no limit", []string{"list", "--limit", "0"}, "", "--limit is 0: it must be at least 1"},
		{"a bad limit of the monitor", []string{"hub", "monitor", "--limit", "-1"}, "", "--limit is -1: it can't be negative"},
		{"an unknown Temporal profile", []string{"list"}, "TEMPORAL_PROFILE=absent", "settings of the Temporal client: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCommand()
			c.env = append(c.env, test.env)
			for i, arg := range test.args {
				if arg == "FILE" {
					test.args[i] = file(t, "job.yaml", "name: N\nsteps: []\n")
				}
			}
			out := c.run(t, test.args...)
			if out.code != ExitError || out.stdout != "" {
				t.Errorf("code %d, stdout %q", out.code, out.stdout)
			}
			if !strings.HasPrefix(out.stderr, "starter: ") || !strings.Contains(out.stderr, test.want) || strings.Count(out.stderr, "\n") != 1 {
				t.Errorf("got %q, want one line with %q", out.stderr, test.want)
			}
			if len(c.service.started) != 0 {
				t.Error("a job was started")
			}
		})
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, address := range map[string]string{"closed": closed, "silent": silent.Addr().String(), "no address": "nonsense:99999"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{{"run"}, {"list"}, {"attach", "job-1"}, {"cancel", "job-1"}} {
				var stdout, stderr bytes.Buffer
				code := Run(t.Context(), Process{
					Args: append([]string{"starter"}, args...), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
					Environ: []string{"TEMPORAL_ADDRESS=" + address, "HUBJOBS_CONNECT_TIMEOUT=300ms", noConfigFile},
				})
				want := "starter: no Temporal server at " + address + `: start one with "go run ./infra/local up", or set --address / TEMPORAL_ADDRESS` + "\n"
				if code != ExitError || stderr.String() != want || stdout.Len() != 0 {
					t.Errorf("%v: code %d, %q, %q", args, code, stderr.String(), stdout.String())
				}
			}
		})
	}
}

func TestWhereTheConnectionGoes(t *testing.T) {
	t.Parallel()
	envFile := file(t, "hubjobs.env", "TEMPORAL_ADDRESS=file:1\nTEMPORAL_NAMESPACE=file\n")
	for _, test := range []struct {
		name               string
		args, env          []string
		address, namespace string
	}{
		{"default", nil, nil, "127.0.0.1:7233", "default"},
		{"file", []string{"--env-file", envFile}, nil, "file:1", "file"},
		{"file named by a variable", nil, []string{"HUBJOBS_ENV_FILE=" + envFile}, "file:1", "file"},
		{"environment wins over file", []string{"--env-file", envFile}, []string{"TEMPORAL_ADDRESS=env:2"}, "env:2", "file"},
		{"flags win over both", []string{"--env-file", envFile, "--address", "flag:3", "--namespace", "flag"}, []string{"TEMPORAL_ADDRESS=env:2"}, "flag:3", "flag"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCommand()
			c.env = append(c.env, test.env...)
			if out := c.run(t, append([]string{"list"}, test.args...)...); out.code != ExitOK {
				t.Fatalf("got %+v", out)
			}
			if o := c.conn.options; o.HostPort != test.address || o.Namespace != test.namespace {
				t.Errorf("connected to %s in %s", o.HostPort, o.Namespace)
			}
		})
	}
}

func TestJobCommands(t *testing.T) {
	t.Parallel()
	notFound := &job.Error{Op: `find job "job-1"`, Kind: job.ErrNotFound}
	ended := &job.Snapshot{JobID: "job-1", State: job.StateCancelled, Steps: []string{"a"}}
	for _, test := range []struct {
		name    string
		service *fakeService
		args    []string
		code    int
		stdout  string // has it
		stderr  string // is it
	}{
		{"start one that exists", &fakeService{startErr: &job.Error{Kind: job.ErrExists}}, []string{"run", "--id", "job-1"}, 1, "",
			`there is a job "job-1" already: choose another --id, or follow it with: starter attach job-1`},
		{"attach to none", &fakeService{findErr: notFound}, []string{"attach", "job-1"}, 1, "", `find job "job-1": not found (starter list shows all jobs)`},
		{"status", &fakeService{}, []string{"status", "job-1"}, 0, "State:         Running\n", ""},
		{"status as JSON, flags last", &fakeService{}, []string{"status", "job-1", "--output", "json"}, 0, `{"jobId":"job-1","name":"Job 1","state":"Running"`, ""},
		{"status of none", &fakeService{findErr: notFound}, []string{"status", "job-1"}, 1, "", `find job "job-1": not found (starter list shows all jobs)`},
		{"status of an ended job without a worker", &fakeService{last: ended, askErr: jobs.ErrNoWorker}, []string{"status", "job-1"}, 0, "State:         Cancelled\n", ""},
		{"status without a worker", &fakeService{askErr: jobs.ErrNoWorker}, []string{"status", "job-1"}, 0, "no manager worker answers for the job: this is what", ""},
		{"status without a worker as JSON", &fakeService{askErr: jobs.ErrNoWorker}, []string{"status", "--output=json", "job-1"}, 0,
			`"status":"Running","workflow":"Running","startedAt":"1970-01-01T00:00:00Z","runId":"","note":"no manager worker`, ""},
		{"cancel", &fakeService{}, []string{"cancel", "job-1", "--reason", "too late"}, 0, "Cancelling job-1, which was Running.", ""},
		{"cancel as JSON", &fakeService{}, []string{"cancel", "job-1", "-o", "json"}, 0, `{"event":"cancelling","jobId":"job-1","state":"Running"}`, ""},
		{"cancel without a worker", &fakeService{askErr: jobs.ErrNoWorker}, []string{"cancel", "job-1"}, 1, "",
			`no manager worker answers for the job: is one running? "go run ./infra/local up" runs all that is needed`},
		{"cancel one that has ended", &fakeService{askErr: &jobs.EndedError{JobID: "job-1", State: "Completed", At: time.Unix(0, 0)}}, []string{"cancel", "job-1"}, 1, "",
			`job "job-1" has ended already: Completed at 1970-01-01T00:00:00Z`},
		{"audit", &fakeService{audit: job.Audit{JobID: "job-1", Messages: []job.MessageRow{{ID: "m", Kind: job.KindJob}}}}, []string{"audit", "job-1"}, 0, "KIND  ABOUT  FROM", ""},
		{"audit as JSON", &fakeService{audit: job.Audit{JobID: "job-1"}}, []string{"audit", "job-1", "-o", "json"}, 0, `{"jobId":"job-1","messages":null}`, ""},
		{"audit without a worker", &fakeService{askErr: jobs.ErrNoWorker}, []string{"audit", "job-1"}, 1, "",
			`no manager worker answers for the job: is one running? "go run ./infra/local up" runs all that is needed`},
		{"list", &fakeService{list: make([]jobs.Execution, 3)}, []string{"list"}, 0, "JOB  NAME  STATUS  STEP  STARTED", ""},
		{"list none", &fakeService{}, []string{"list"}, 0, "no jobs\n", ""},
		{"list as JSON", &fakeService{list: []jobs.Execution{{JobID: "job-1", Status: "Running"}}}, []string{"list", "-o", "json"}, 0, `{"jobId":"job-1","status":"Running"`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCommand()
			c.service = test.service
			out := c.run(t, test.args...)
			if out.code != test.code || !strings.Contains(out.stdout, test.stdout) {
				t.Errorf("got %+v, want code %d and %q", out, test.code, test.stdout)
			}
			want := ""
			if test.stderr != "" {
				want = "starter: " + test.stderr + "\n"
			}
			if out.stderr != want {
				t.Errorf("stderr %q, want %q", out.stderr, want)
			}
		})
	}
}

func TestCancelSaysWhoAndWhy(t *testing.T) {
	t.Parallel()
	c := newCommand()
	c.run(t, "cancel", "job-1", "--reason", "too late")
	if got := c.service.cancels; len(got) != 1 || got[0] != (job.CancelInput{Reason: "too late", By: "ann"}) {
		t.Errorf("cancelled with %+v", got)
	}
}

func TestListLimitAndFilter(t *testing.T) {
	t.Parallel()
	c := newCommand()
	c.service.list = make([]jobs.Execution, 10)
	out := c.run(t, "list", "--limit", "3", "--status", "running")
	if n := strings.Count(out.stdout, "\n"); n != 4 || c.service.filter.State != job.StateRunning {
		t.Errorf("%d lines, filter %+v", n, c.service.filter)
	}
}

func TestHub(t *testing.T) {
	t.Parallel()
	last := time.Date(2026, 3, 4, 10, 0, 0, 0, time.UTC)
	hub := fakeHub{
		devices: []iothub.Device{
			{ID: "device-solver::job-1", Enabled: true, Connected: true, LastActivityAt: last, PendingMessages: 2},
			{ID: "device-scheduler::job-1", StatusReason: "stolen"},
		},
		messages: []eventhubs.DeviceMessage{
			{
				Partition: "2", Sequence: 7, Offset: "512", EnqueuedAt: last, DeviceID: "device-solver::job-1", MessageID: "m1", ContentType: "application/json",
				Body: []byte("{\"Step\":\n\"\x1b[2Ja\"}"), Properties: map[string]string{"kind": "update", "a": "b\x1b"},
				System: map[string]string{"iothub-connection-device-id": "device-solver::job-1"},
			},
			{Partition: "0", DeviceID: "d", EnqueuedAt: last, Body: []byte{0xff, 0xfe}},
			{Partition: "0", DeviceID: "never seen"},
		},
	}
	when := last.Local().Format("2006-01-02 15:04:05 MST")
	down := &job.Error{Op: "list devices", Kind: job.ErrUnavailable}
	for _, test := range []struct {
		name   string
		err    error
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"stats", nil, []string{"stats"}, 0, "Connected:  1\nDevices:    3\nEnabled:    2\nDisabled:   1\n", ""},
		{"stats as JSON", nil, []string{"stats", "-o", "json"}, 0, `{"connected":1,"total":3,"enabled":2,"disabled":1}` + "\n", ""},
		{"stats of a hub that is down", down, []string{"stats"}, 1, "", "starter: list devices: unavailable\n"},
		{"devices", nil, []string{"devices"}, 0, "" +
			"DEVICE                   STATE         STATUS           LAST ACTIVITY            WAITING\n" +
			"device-scheduler::job-1  disconnected  disabled stolen  -                        0\n" +
			"device-solver::job-1     connected     enabled          " + when + "  2\n", ""},
		{"devices as JSON", nil, []string{"devices", "--output", "json"}, 0,
			`{"deviceId":"device-scheduler::job-1","connected":false,"enabled":false,"statusReason":"stolen","pendingMessages":0}` + "\n" +
				`{"deviceId":"device-solver::job-1","connected":true,"enabled":true,"lastActivityAt":"2026-03-04T10:00:00Z","pendingMessages":2}` + "\n", ""},
		{"devices of a hub that goes down", down, []string{"devices"}, 1, "", "starter: list devices: unavailable\n"},
		{"monitor", nil, []string{"monitor", "--limit", "2"}, 0, when + "  partition 2  #7  device-solver::job-1\n" +
			"  system: content-type=application/json, iothub-connection-device-id=device-solver::job-1, message-id=m1\n" +
			"  application: a=b\ufffd, kind=update\n" +
			"  {\"Step\": \"\ufffd[2Ja\"}\n" +
			when + "  partition 0  #0  d\n  (2 bytes that are not text)\n", ""},
		{"monitor as JSON", nil, []string{"monitor", "--limit", "2", "-o", "json"}, 0,
			`{"partition":"2","sequenceNumber":7,"offset":"512","enqueuedAt":"2026-03-04T10:00:00Z","deviceId":"device-solver::job-1",` +
				`"systemProperties":{"content-type":"application/json","iothub-connection-device-id":"device-solver::job-1","message-id":"m1"},` +
				`"applicationProperties":{"a":"b\u001b","kind":"update"},"body":"{\"Step\":\n\"\u001b[2Ja\"}"}` + "\n" +
				`{"partition":"0","sequenceNumber":0,"offset":"","enqueuedAt":"2026-03-04T10:00:00Z","deviceId":"d","systemProperties":{},` +
				`"applicationProperties":null,"body":{"base64":"//4="}}` + "\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCommand()
			mine := hub
			mine.err = test.err
			c.hub = &mine
			out := c.run(t, append([]string{"hub"}, test.args...)...)
			if out != (output{test.code, test.stdout, test.stderr}) {
				t.Errorf("got\n%d\n%s\n%s\nwant\n%d\n%s\n%s", out.code, out.stdout, out.stderr, test.code, test.stdout, test.stderr)
			}
		})
	}
}

func TestMonitorEndsWithCtrlC(t *testing.T) {
	t.Parallel()
	c := newCommand()
	c.signals <- os.Interrupt
	out := c.run(t, "hub", "monitor", "--partition", "3", "--from-beginning", "--consumer-group", "g")
	if out != (output{}) {
		t.Errorf("got %+v, want a clean end", out)
	}
	if want := (eventhubs.Options{Partition: "3", FromBeginning: true, ConsumerGroup: "g"}); c.hub.options != want {
		t.Errorf("read with %+v", c.hub.options)
	}
}

func TestHubSettings(t *testing.T) {
	t.Parallel()
	const key = "c2VjcmV0LXNlY3JldC1zZWNyZXQ="
	for _, test := range []struct {
		name string
		args []string
		env  []string
		want string
	}{
		{"no hub", []string{"stats"}, nil, `IOTHUB_CONNECTION_STRING is not set: run a local hub with "go run ./infra/local up", or set it`},
		{"no endpoint", []string{"monitor"}, nil, "EVENTHUB_CONNECTION_STRING is not set"},
		{"a bad connection string", []string{"devices"}, []string{"IOTHUB_CONNECTION_STRING=SharedAccessKey=" + key}, "read the hub's connection string: invalid"},
		{"a bad endpoint", []string{"monitor"}, []string{"EVENTHUB_CONNECTION_STRING=SharedAccessKey=" + key}, "configure the Event Hubs client: invalid"},
		{"no CA file", []string{"stats"}, []string{"IOTHUB_CONNECTION_STRING=x", "EMULATOR_CA_FILE=/nowhere"}, "read the CA file: invalid: open /nowhere"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			code := Run(t.Context(), Process{Args: append([]string{"starter", "hub"}, test.args...), Stdout: &stdout, Stderr: &stderr, Environ: test.env})
			if code != ExitError || !strings.Contains(stderr.String(), test.want) || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("code %d, %q, want %q", code, stderr.String(), test.want)
			}
			if strings.Contains(stderr.String(), key) {
				t.Error("the error shows the key")
			}
		})
	}
}

// TestHelp checks that each command explains itself, and that each flag names its variable.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, path := range [][]string{
		{}, {"run"}, {"attach"}, {"status"}, {"list"}, {"cancel"}, {"audit"}, {"hub"}, {"hub", "stats"}, {"hub", "devices"}, {"hub", "monitor"},
		{"deadletter"}, {"deadletter", "list"}, {"deadletter", "show"}, {"deadletter", "resubmit"}, {"deadletter", "purge"},
	} {
		out := newCommand().run(t, append(path, "--help")...)
		if out.code != ExitOK || !strings.Contains(out.stdout, "USAGE:") || out.stderr != "" {
			t.Errorf("%v: got %+v", path, out)
		}
		for line := range strings.Lines(out.stdout) {
			if flag := strings.TrimSpace(line); strings.HasPrefix(flag, "--") && !strings.HasPrefix(flag, "--help") && !strings.Contains(flag, "[$") {
				t.Errorf("%v: no variable: %s", path, flag)
			}
		}
	}
	if out := newCommand().run(t); out.code != ExitOK || !strings.Contains(out.stdout, "COMMANDS:") {
		t.Errorf("without a command: %+v", out)
	}
}

func TestInterleave(t *testing.T) {
	t.Parallel()
	p := newProgram(Process{})
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{"--help", "--help"},
		{"attach job-1", "attach -- job-1"},
		{"attach job-1 --yes", "attach --yes -- job-1"},
		{"attach --yes job-1", "attach --yes -- job-1"},
		{"cancel job-1 --reason late -o json", "cancel --reason late -o json -- job-1"},
		{"cancel job-1 --reason=late x", "cancel --reason=late -- job-1 x"},
		{"cancel -- --reason", "cancel -- --reason"},
		{"cancel job-1 --reason", "cancel --reason -- job-1"},
		{"attach - job-1", "attach -- - job-1"},
		{"hub monitor --partition 3 --from-beginning x", "hub monitor --partition 3 --from-beginning -- x"},
		{"deadletter resubmit 3 --set a=b 4", "deadletter resubmit --set a=b -- 3 4"},
		{"run --step --odd --step x", "run --step --odd --step x"},
		{"nonsense --x y", "nonsense --x y"},
	} {
		got := interleave(p.app().Commands, append([]string{"starter"}, strings.Fields(test.in)...))
		if s := strings.Join(got[1:], " "); s != test.want {
			t.Errorf("%q became %q, want %q", test.in, s, test.want)
		}
	}
}

// shut is an output that nobody reads.
type shut struct{}

func (shut) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestBrokenOutput(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"run", "--id", "job-1", "-d"}, {"run", "--id", "job-1"}, {"attach", "job-1"}, {"status", "job-1"}, {"cancel", "job-1"}, {"audit", "job-1"}, {"list"}, {"hub", "stats"},
		{"hub", "devices"}, {"hub", "monitor"},
	} {
		var stderr bytes.Buffer
		p := newProgram(Process{Args: append([]string{"starter"}, args...), Stdout: shut{}, Stderr: &stderr, Environ: []string{noConfigFile}})
		p.connect = func(context.Context, connection) (service, error) { return &fakeService{}, nil }
		hub := &fakeHub{messages: make([]eventhubs.DeviceMessage, 1)}
		p.openRegistry = func(*envfile.Settings) (registry, error) { return hub, nil }
		p.openEvents = func(*envfile.Settings, *slog.Logger) (events, error) { return hub, nil }
		if code := p.main(t.Context()); code != ExitError || !strings.Contains(stderr.String(), "broken pipe") {
			t.Errorf("%v: code %d, %q", args, code, stderr.String())
		}
	}
}
