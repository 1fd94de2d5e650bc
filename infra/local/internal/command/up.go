package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap/zapcore"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/infra/local/internal/datadir"
	"github.com/hubjobs/hubjobs/infra/local/pipeline"
)

const (
	flagDataDir    = "data-dir"
	flagStepTime   = "step-time"
	flagStepRunner = "step-runner"
	flagStepDir    = "step-dir"
	flagLogLevel   = "log-level"
)

// Values of --step-runner.
const (
	runnerSimulate = "simulate"
	runnerExec     = "exec"
)

// defaultDataDir is the data directory of up, where the starter looks for settings.
const defaultDataDir = ".hubjobs"

func upCommand(env environment, stdout, stderr io.Writer) (*cli.Command, error) {
	stepTime, err := env.duration(flagStepTime, pipeline.DefaultStepTime, "let a simulated step take that `TIME`, unless the job says otherwise")
	if err != nil {
		return nil, err
	}
	flags := append([]cli.Flag{
		env.text(flagDataDir, defaultDataDir, "keep everything in `DIR`; the next start continues with it"),
		stepTime,
		env.text(flagStepRunner, runnerSimulate, "let the solver use that `RUNNER`: simulate only waits, exec runs the executables of --"+flagStepDir),
		env.text(flagStepDir, "", "take from `DIR` the executable of each step, of exactly the step's name"),
	}, env.pipelineFlags(true)...)
	return &cli.Command{
		Name:         "up",
		Usage:        "run until Ctrl-C; what was going on continues with the next start",
		Flags:        flags,
		Before:       noWords,
		OnUsageError: usageError,
		Action:       func(c *cli.Context) error { return up(c, stdout) },
	}, nil
}

func up(c *cli.Context, stdout io.Writer) (err error) {
	if err := positive(flagStepTime, c.Duration(flagStepTime)); err != nil {
		return err
	}
	runner, err := stepRunner(c)
	if err != nil {
		return err
	}
	dir, err := openDir(c.String(flagDataDir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	running, err := startPipeline(c.Context, c, dir, stdout, runner)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop(running, stdout)) }()
	writeNextSteps(stdout, running, dir, continues)
	return wait(c.Context, running)
}

// stepRunner reads the flags that say how the solver runs steps; nil means that it simulates them.
func stepRunner(c *cli.Context) (activities.StepRunner, error) {
	dir := c.String(flagStepDir)
	switch name := c.String(flagStepRunner); name {
	case runnerSimulate:
		if dir != "" {
			return nil, fmt.Errorf("--%s is for programs: it needs --%s %s as well", flagStepDir, flagStepRunner, runnerExec)
		}
		return nil, nil
	case runnerExec:
		if dir == "" {
			return nil, fmt.Errorf("--%s %s needs --%s DIR, the directory of the executables", flagStepRunner, runnerExec, flagStepDir)
		}
		return steps.NewExec(dir)
	default:
		return nil, fmt.Errorf("--%s must be %s or %s, got %q", flagStepRunner, runnerSimulate, runnerExec, name)
	}
}

// openDir takes the data directory and says how to choose another when it can't.
func openDir(path string) (*datadir.Dir, error) {
	dir, err := datadir.Open(path)
	if errors.Is(err, datadir.ErrInUse) {
		return nil, fmt.Errorf("%w: stop that one, or choose another with --%s DIR or %s",
			err, flagDataDir, variable(flagDataDir))
	}
	return dir, err
}

// startPipeline starts everything where the flags say, after a look at whether it can listen there. A nil runner
// simulates steps.
func startPipeline(ctx context.Context, c *cli.Context, dir *datadir.Dir, progress io.Writer, runner activities.StepRunner) (*pipeline.Pipeline, error) {
	level, err := zapcore.ParseLevel(c.String(flagLogLevel))
	if err != nil {
		return nil, fmt.Errorf("--%s: %w: use debug, info, warn or error", flagLogLevel, err)
	}
	fmt.Fprintf(progress, "starting hubjobs in %s\n", dir.Path())
	addrs, err := addresses(c)
	if err != nil {
		return nil, err
	}
	return pipeline.Start(ctx, dir.Path(), &pipeline.Options{
		Addresses: addrs,
		Steps:     runner,
		StepTime:  c.Duration(flagStepTime),
		LogLevel:  level,
		Progress:  progress,
	})
}

// wait returns when ctx ends, which is how a run ends well, or when a part of the pipeline has failed.
func wait(ctx context.Context, running *pipeline.Pipeline) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-running.Failed():
		return err
	}
}

func stop(running *pipeline.Pipeline, progress io.Writer) error {
	fmt.Fprintln(progress, "stopping (Ctrl-C again to stop at once)")
	return running.Close()
}
