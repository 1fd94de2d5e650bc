//go:build unix

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/infra/local/pipeline"
	"github.com/hubjobs/hubjobs/job"
)

// stepPrograms are the executables of a solver: for each step a script.
var stepPrograms = map[string]string{
	"Collect": `echo "collected by $HUBJOBS_STEP of $HUBJOBS_JOB_ID"`,
	"Break":   "echo some of it worked\necho no space left on the device >&2\nexit 3",
}

// execStack starts a pipeline of its own whose solver runs programs, for one test.
func execStack(t *testing.T) *stack {
	t.Helper()
	dir := t.TempDir()
	for name, script := range stepPrograms {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	}
	runner, err := steps.NewExec(dir)
	require.NoError(t, err)
	return stackOf(t, runner)
}

// stackOf starts a pipeline whose solver has that runner, for one test.
func stackOf(t *testing.T, runner activities.StepRunner) *stack {
	t.Helper()
	p, err := pipeline.Start(within(t), t.TempDir(), &pipeline.Options{Steps: runner})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return &stack{Pipeline: p, env: []string{"HUBJOBS_ENV_FILE=" + p.EnvFile()}}
}

func TestStepsAreProgramsOfTheSolver(t *testing.T) {
	t.Parallel()
	s := execStack(t)
	runJob := func(t *testing.T, args ...string) (code int, r result) {
		t.Helper()
		code, out, errs := run(t, s.env, "starter", append([]string{"run", "--output", "json"}, args...)...)
		require.Empty(t, errs)
		return code, lastLine[result](t, out)
	}

	t.Run("completed", func(t *testing.T) {
		t.Parallel()
		code, r := runJob(t, "--step", "Collect")
		require.Zero(t, code, r.Reason)
		require.Equal(t, job.StateCompleted, r.State)
		require.Equal(t, 2, r.StepsDone)
	})
	t.Run("a step fails", func(t *testing.T) {
		t.Parallel()
		code, r := runJob(t, "--step", "Collect", "--step", "Break", "--step", "Collect")
		require.Equal(t, 2, code)
		require.Equal(t, job.StateFailed, r.State)
		require.Contains(t, r.Reason, "exit status 3: no space left on the device")
		require.Equal(t, 1, r.StepsDone)
		require.Equal(t, "Break", r.Step)
		require.Equal(t, r.Messages.Sent, r.Messages.Read, "the failure is confirmed as well")
	})
	t.Run("a step isn't there", func(t *testing.T) {
		t.Parallel()
		code, r := runJob(t, "--step", "Collect", "--step", "Fly")
		require.Equal(t, 4, code)
		require.Equal(t, job.StateRejected, r.State)
		require.Contains(t, r.Reason, `no executable named "Fly" in the solver's step directory`)
		require.Zero(t, r.StepsDone, "a step ran before the job was rejected")
		require.Equal(t, r.Messages.Sent, r.Messages.Read, "the rejection is confirmed as well")
	})
	t.Run("for people it is one line", func(t *testing.T) {
		t.Parallel()
		code, out, errs := run(t, s.env, "starter", "run", "--step", "Fly")
		require.Equal(t, 4, code)
		require.Empty(t, errs)
		require.Regexp(t, `(?m)^\d\d:\d\d:\d\d  Rejected: .*no executable named "Fly".*\n\z`, out)
	})
	t.Run("a name can't leave the directory", func(t *testing.T) {
		t.Parallel()
		code, r := runJob(t, "--step", "../Collect")
		require.Equal(t, 4, code)
		require.Contains(t, r.Reason, "a step's name can't be a path")
	})
}

// undecided is a solver's runner that doesn't come to a decision about a job until it is told to.
type undecided struct {
	steps.Simulate
	decide chan struct{}
}

func (u undecided) Check([]string) (step, reason string) {
	<-u.decide
	return "", ""
}

func TestNoSolverBeginsInTime(t *testing.T) {
	t.Parallel()
	u := undecided{decide: make(chan struct{})}
	s := stackOf(t, u)
	t.Cleanup(func() { close(u.decide) }) // before the pipeline is closed
	code, out, errs := run(t, s.env, "starter", "run", "--output", "json", "--accept-timeout", "2s")
	require.Equal(t, 5, code, errs)
	require.Empty(t, errs)
	r := lastLine[result](t, out)
	require.Equal(t, job.StateExpired, r.State)
	require.Contains(t, r.Reason, "solver")
	require.Zero(t, r.StepsDone)
}
