package steps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// Environment variables that a step's executable finds set. A step is run again with a higher attempt after a failure,
// and with the same one when its solver was lost before it ended; so job and index are the key by which a step can make
// itself idempotent.
const (
	EnvJobID   = "HUBJOBS_JOB_ID"
	EnvStep    = "HUBJOBS_STEP"
	EnvIndex   = "HUBJOBS_STEP_INDEX" // from 0
	EnvAttempt = "HUBJOBS_ATTEMPT"    // from 1
)

// outputGrace is how long Run waits for the output of a step whose process has ended, but which left children behind
// that still hold it open.
const outputGrace = 2 * time.Second

// Exec runs a step by starting the executable of the step's name in one directory, without arguments and without input.
// Nothing outside of that directory can be started. The executable gets a fresh working directory, which is deleted
// afterwards, and an environment that holds nothing of the solver's but PATH and the locale. The step fails when the
// exit status isn't 0. The step job.StepDone needs no executable.
type Exec struct {
	dir string // absolute, without symbolic links
}

// NewExec returns a runner of the executables in dir.
func NewExec(dir string) (*Exec, error) {
	if dir == "" {
		return nil, errors.New("the step directory is not set")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("step directory: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, fmt.Errorf("step directory: %w", err)
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return nil, fmt.Errorf("step directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("step directory: %s is not a directory", dir)
	}
	return &Exec{dir: resolved}, nil
}

// Check returns the first step that has no executable, and why it can't be run.
func (e *Exec) Check(steps []string) (step, reason string) {
	for _, s := range steps {
		if _, err := e.find(s); err != nil {
			return s, err.Error()
		}
	}
	return "", ""
}

// Run runs the step's executable until it ends, or kills it with all its children when ctx ends; then it returns the
// context's cause, and what the step printed until then.
func (e *Exec) Run(ctx context.Context, in job.RunStepInput) (job.RunStepOutput, error) {
	path, err := e.find(in.Step)
	if err != nil {
		return job.RunStepOutput{Status: job.StatusFailed, Reason: err.Error()}, nil
	}
	if path == "" {
		return job.RunStepOutput{Status: job.StatusCompleted}, nil
	}
	work, err := os.MkdirTemp("", "hubjobs-step-")
	if err != nil {
		return job.RunStepOutput{}, fmt.Errorf("working directory of the step: %w", err)
	}
	defer os.RemoveAll(work)
	return run(ctx, command(ctx, path, work, in))
}

// find returns the path of a step's executable; "" for job.StepDone when it has none.
func (e *Exec) find(step string) (string, error) {
	missing := fmt.Errorf("no executable named %q in the solver's step directory", step)
	if step != filepath.Base(step) || strings.ContainsAny(step, `/\`) || !filepath.IsLocal(step) || step == "." {
		return "", fmt.Errorf("%w: a step's name can't be a path", missing)
	}
	path, err := filepath.EvalSymlinks(filepath.Join(e.dir, step))
	switch {
	case errors.Is(err, fs.ErrNotExist) && step == job.StepDone:
		return "", nil
	case err != nil:
		return "", missing
	}
	if inside, err := filepath.Rel(e.dir, path); err != nil || !filepath.IsLocal(inside) {
		return "", fmt.Errorf("%w: it is a link that leads out of it", missing)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", missing
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%w: it is not a regular file", missing)
	case !executable(info):
		return "", fmt.Errorf("%w: the file is not executable", missing)
	}
	return path, nil
}

func command(ctx context.Context, path, work string, in job.RunStepInput) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path)
	cmd.Dir = work
	cmd.Env = environment(work, in)
	cmd.WaitDelay = outputGrace
	cmd.Cancel = func() error { return killGroup(cmd) }
	return cmd
}

func environment(work string, in job.RunStepInput) []string {
	env := []string{
		"HOME=" + work,
		"TMPDIR=" + work,
		EnvJobID + "=" + in.JobID,
		EnvStep + "=" + in.Step,
		EnvIndex + "=" + strconv.Itoa(in.Index),
		EnvAttempt + "=" + strconv.Itoa(in.Attempt),
	}
	for _, name := range inherited {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func run(ctx context.Context, cmd *exec.Cmd) (job.RunStepOutput, error) {
	var printed tail
	cmd.Stdout, cmd.Stderr = &printed, &printed
	err := start(cmd)
	if cmd.Process != nil {
		// Children that the step left behind go with it. None is the usual case, and then this is an error to ignore.
		_ = killGroup(cmd)
	}
	out := job.RunStepOutput{Output: printed.String()}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // the latter: done, but children still held the output open
		out.Status = job.StatusCompleted
	case ctx.Err() != nil:
		return out, context.Cause(ctx)
	default:
		out.Status, out.Reason = job.StatusFailed, reason(err, out.Output)
	}
	return out, nil
}

// reason says why a step failed: how its process ended, and the last line that it printed.
func reason(err error, output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return fmt.Sprintf("%v: %s", err, last)
	}
	return err.Error()
}
