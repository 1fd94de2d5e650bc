package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hubjobs/hubjobs/job"
)

// quick are the flags of a job that takes no longer than its messages.
var quick = []string{"run", "--output", "json", "--step-time", "0s"}

func TestJobThroughTheCommandLine(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	code, out, errs := run(t, s.env, "starter", quick...)
	require.Zero(t, code, errs)
	r := lastLine[result](t, out)
	require.Equal(t, "result", r.Event)
	require.Equal(t, job.StateCompleted, r.State, r.Reason)
	require.Equal(t, 7, r.StepsDone)
	require.Len(t, r.Updates, 14)
	for i, u := range r.Updates {
		require.Equal(t, i+1, u.Sequence)
		require.Equal(t, job.DefaultSteps()[i/2], u.Step)
	}
	require.Equal(t, job.Counts{Sent: 15, Accepted: 15, Delivered: 15, Read: 15}, r.Messages)

	t.Run("the solver's side has ended too", func(t *testing.T) {
		var solved job.SolveResult
		require.NoError(t, s.temporal.GetWorkflow(within(t), job.SolveWorkflowID(r.JobID), "").Get(within(t), &solved))
		require.Equal(t, job.SolveResult{JobID: r.JobID, Status: job.StatusCompleted, StepsRun: 7}, solved)
	})
	t.Run("status", func(t *testing.T) {
		code, out, errs := run(t, s.env, "starter", "status", r.JobID, "--output", "json")
		require.Zero(t, code, errs)
		require.Contains(t, out, `"Completed"`)
	})
	t.Run("attach", func(t *testing.T) {
		code, out, errs := run(t, s.env, "starter", "attach", r.JobID)
		require.Zero(t, code, errs)
		require.Contains(t, out, "Completed")
	})
	t.Run("list", func(t *testing.T) {
		eventually(t, "the job is listed", func() bool {
			code, out, errs := run(t, s.env, "starter", "list", "--output", "json")
			require.Zero(t, code, errs)
			return strings.Contains(out, r.JobID)
		})
	})
	t.Run("audit", func(t *testing.T) {
		code, out, errs := run(t, s.env, "starter", "audit", r.JobID, "--output", "json")
		require.Zero(t, code, errs)
		require.Equal(t, 14, strings.Count(out, `"kind":"update"`)+strings.Count(out, `"kind": "update"`))
		code, out, errs = run(t, s.env, "starter", "audit", r.JobID)
		require.Zero(t, code, errs)
		require.Contains(t, out, "Train the model")
	})
	t.Run("identities are gone", func(t *testing.T) {
		code, out, errs := run(t, s.env, "starter", "hub", "devices", "--output", "json")
		require.Zero(t, code, errs)
		require.NotContains(t, out, r.JobID)
	})
	t.Run("monitor", func(t *testing.T) {
		p := spawn(t, s.env, nil, "starter", "hub", "monitor", "--from-beginning", "--output", "json")
		p.until(p.out, "device message of the job", contains(r.JobID+".solver.14"))
		p.signal(syscall.SIGINT)
		require.Zero(t, p.wait(), p.errs.String())
	})
}

func TestHubShowsConnectedDevices(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	p := spawn(t, s.env, nil, "starter", "run", "--output", "json", "--step-time", "1h")
	p.until(p.out, "first update", contains(`"event":"update"`))
	id := everyLine[result](t, strings.Split(p.out.String(), "\n")[0])[0].JobID
	code, out, errs := run(t, s.env, "starter", "hub", "devices", "--output", "json")
	require.Zero(t, code, errs)
	connected := map[string]bool{}
	for _, d := range everyLine[struct {
		DeviceID  string `json:"deviceId"`
		Connected bool   `json:"connected"`
	}](t, out) {
		connected[d.DeviceID] = d.Connected
	}
	require.True(t, connected["device-scheduler::"+id], out)
	require.True(t, connected["device-solver::"+id], out)
	code, out, errs = run(t, s.env, "starter", "hub", "stats", "--output", "json")
	require.Zero(t, code, errs)
	require.GreaterOrEqual(t, lastLine[struct {
		Connected int `json:"connected"`
	}](t, out).Connected, 2)

	code, _, errs = run(t, s.env, "starter", "cancel", id, "--reason", "seen enough")
	require.Zero(t, code, errs)
	require.Equal(t, 3, p.wait(), p.errs.String())
	r := lastLine[result](t, p.out.String())
	require.Equal(t, job.StateCancelled, r.State)
	require.Equal(t, "cancelled: seen enough", r.Reason)
	require.Equal(t, r.Messages.Sent, r.Messages.Read, "the cancellation and its answer are confirmed as well")

	code, _, errs = run(t, s.env, "starter", "cancel", id)
	require.Equal(t, 1, code)
	requireOneLine(t, errs)
}

func TestDetachedJobGoesOn(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	id := job.NewID("e2e", time.Now(), "detached")
	code, out, errs := run(t, s.env, "starter", "run", "--detach", "--id", id, "--step", "one", "--step-time", "1ms")
	require.Zero(t, code, errs)
	require.Contains(t, out, id)
	code, out, errs = run(t, s.env, "starter", "attach", id, "--output", "json")
	require.Zero(t, code, errs)
	require.Equal(t, job.StateCompleted, lastLine[result](t, out).State)

	code, _, errs = run(t, s.env, "starter", "run", "--id", id, "--step", "one")
	require.Equal(t, 1, code, "a job ID can be used only once")
	requireOneLine(t, errs)
}

func TestCtrlCDetachesWhereNobodyCanBeAsked(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	p := spawn(t, s.env, nil, "starter", "run", "--output", "json", "--step-time", "300ms")
	p.until(p.out, "first update", contains(`"event":"update"`))
	p.signal(syscall.SIGINT)
	require.Equal(t, 130, p.wait())
	id := everyLine[result](t, strings.Split(p.out.String(), "\n")[0])[0].JobID
	code, out, errs := run(t, s.env, "starter", "attach", id, "--output", "json")
	require.Zero(t, code, errs)
	require.Equal(t, job.StateCompleted, lastLine[result](t, out).State)
}

func TestCtrlCCancelsWhenToldTo(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	p := spawn(t, s.env, nil, "starter", "run", "--yes", "--output", "json", "--step-time", "1h")
	p.until(p.out, "first update", contains(`"event":"update"`))
	p.signal(syscall.SIGINT)
	require.Equal(t, 3, p.wait(), p.errs.String())
	require.Equal(t, job.StateCancelled, lastLine[result](t, p.out.String()).State)
}

func TestBadInputGetsOneClearLine(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	file := filepath.Join(t.TempDir(), "job.yaml")
	require.NoError(t, os.WriteFile(file, []byte("name: x\nsteps: [a]\ncolour: red\n"), 0o600))
	none := filepath.Join(t.TempDir(), "none.yaml")
	require.NoError(t, os.WriteFile(none, []byte("name: x\nsteps: []\n"), 0o600))
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no server":        {[]string{"run", "--address", "127.0.0.1:1", "--connect-timeout", "2s"}, "no Temporal server at 127.0.0.1:1"},
		"wrong address":    {[]string{"run", "--address", "not an address"}, "not an address"},
		"unknown member":   {[]string{"run", "--file", file}, "job.yaml:3"},
		"no steps":         {[]string{"run", "--file", none}, "step"},
		"no such file":     {[]string{"run", "--file", "nowhere.yaml"}, "nowhere.yaml"},
		"long step":        {[]string{"run", "--step", strings.Repeat("x", 10000)}, "10000 characters"},
		"unknown flag":     {[]string{"run", "--colour"}, "colour"},
		"unknown job":      {[]string{"status", "job-nobody"}, "job-nobody"},
		"negative timeout": {[]string{"run", "--timeout", "-1s"}, "negative"},
		"bad duration":     {[]string{"run", "--step-time", "soon"}, "step-time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, errs := run(t, s.env, "starter", c.args...)
			require.Equal(t, 1, code, errs)
			requireOneLine(t, errs)
			require.Contains(t, errs, c.want)
			require.Less(t, len(errs), 600, "the line is too long to read")
		})
	}
}

func requireOneLine(t *testing.T, errs string) {
	t.Helper()
	require.Equal(t, 1, strings.Count(errs, "\n"), "want one line, got %q", errs)
	require.NotContains(t, errs, "goroutine")
}

// eventually repeats a check of something that the server brings up to date by and by.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := within(t)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not true in time: %s", what)
		}
	}
}
