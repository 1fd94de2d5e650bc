package command

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/infra/local/pipeline"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
	"github.com/hubjobs/hubjobs/starter/jobs"
)

// asCommand makes the test binary the command itself, so that a test can kill it.
const asCommand = "HUBJOBS_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(Run(ctx, os.Args, os.Getenv, os.Stdout, os.Stderr))
}

// process is a running "up".
type process struct {
	t       *testing.T
	command *exec.Cmd
	drained chan struct{} // closed when the output has ended
}

// startUp starts "up" on free ports and returns when it is up.
func startUp(t *testing.T, dataDir string) *process {
	t.Helper()
	args := []string{"up", "--data-dir", dataDir, "--step-time", "300ms"}
	for _, l := range listeners {
		args = append(args, "--"+l.flag, anyPort)
	}
	p := &process{t: t, command: exec.Command(os.Args[0], args...), drained: make(chan struct{})}
	p.command.Env = append(os.Environ(), asCommand+"=1")
	p.command.Stderr = os.Stderr
	output, err := p.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.command.Process.Kill() // fails when it has ended already
		<-p.drained
	})
	up := make(chan bool, 1)
	go p.read(output, up)
	select {
	case ok := <-up:
		if !ok {
			t.Fatal("up has ended early")
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("up is not up after two minutes")
	}
	return p
}

// read tells up when the process says so, and drains the rest of the output.
func (p *process) read(output io.Reader, up chan<- bool) {
	defer close(p.drained)
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if lines.Text() == upLine {
			up <- true
		}
	}
	select {
	case up <- false:
	default:
	}
}

// end sends the signal and waits for the process to end.
func (p *process) end(sig os.Signal) error {
	p.t.Helper()
	if err := p.command.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	<-p.drained
	return p.command.Wait()
}

// connect returns a client of the pipeline whose settings are in the data directory.
func connect(t *testing.T, dataDir string) *jobs.Client {
	t.Helper()
	settings, err := os.ReadFile(filepath.Join(dataDir, pipeline.EnvFileName))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(settings)) {
		if address, ok := strings.CutPrefix(strings.TrimSpace(line), "TEMPORAL_ADDRESS="); ok {
			c, err := client.DialContext(t.Context(), client.Options{HostPort: address})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			return jobs.New(c)
		}
	}
	t.Fatalf("no TEMPORAL_ADDRESS in %s", settings)
	return nil
}

func TestKilledInTheMiddleOfAJob(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(t.TempDir(), "data")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	first := startUp(t, dataDir)
	const id = "job-killed"
	j, err := job.New(id, "", job.DefaultSteps())
	if err != nil {
		t.Fatal(err)
	}
	service := connect(t, dataDir)
	options := job.Options{ReceiptTimeout: 5 * time.Second} // by it the job notices that its scheduler's device is gone
	if err := service.Start(ctx, job.JobInput{Job: j, Options: options}); err != nil {
		t.Fatal(err)
	}
	waitForSteps(ctx, t, service, id, 3)
	if err := first.end(os.Kill); err == nil {
		t.Error("a killed process exits with 0")
	}

	second := startUp(t, dataDir)
	service = connect(t, dataDir)
	last, err := service.Result(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	checkCompleted(ctx, t, service, last)
	if err := second.end(os.Interrupt); err != nil {
		t.Errorf("up after an interrupt: %v", err)
	}
}

// waitForSteps returns when the job has done that many steps.
func waitForSteps(ctx context.Context, t *testing.T, source follow.Source, id string, steps int) {
	t.Helper()
	enough, cancel := context.WithCancel(ctx)
	defer cancel()
	last, err := follow.Job(enough, source, id, nil, func(e follow.Event) error {
		if e.Snapshot.StepsDone >= steps {
			cancel()
		}
		return nil
	})
	if last.StepsDone < steps || last.State.Ended() {
		t.Fatalf("%s after %d steps: %v", last.State, last.StepsDone, err)
	}
}

// checkCompleted checks that every step was reported once, in order, and every message read.
func checkCompleted(ctx context.Context, t *testing.T, service *jobs.Client, last job.Snapshot) {
	t.Helper()
	var got, want []string
	for _, u := range last.Updates {
		got = append(got, u.Step+": "+string(u.Status))
	}
	for _, step := range job.DefaultSteps() {
		want = append(want, step+": "+string(job.StatusInProgress), step+": "+string(job.StatusCompleted))
	}
	if last.State != job.StateCompleted || !slices.Equal(got, want) {
		t.Errorf("%s (%s) with updates %q", last.State, last.Reason, got)
	}
	if m := last.Messages; m.Sent != confirmed || m.Read != confirmed {
		t.Errorf("messages %+v, want %d sent and read", m, confirmed)
	}
	audit, err := service.Audit(ctx, last.JobID)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range audit.Messages {
		if row.Kind.Confirmed() && row.ReadAt.IsZero() {
			t.Errorf("message %s was never read", row.ID)
		}
	}
}
