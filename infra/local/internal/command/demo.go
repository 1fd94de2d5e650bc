package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/infra/local/internal/datadir"
	"github.com/hubjobs/hubjobs/infra/local/pipeline"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/show"
)

const (
	flagOutput  = "output"
	flagKeep    = "keep"
	flagTimeout = "timeout"
)

// Formats of the demo's output.
const (
	outputText = "text"
	outputJSON = "json"
)

var (
	errOutput  = errors.New("--output must be text or json")
	errTimeout = errors.New("the demo took longer than --timeout allows")
)

func demoCommand(env environment, stdout, stderr io.Writer) (*cli.Command, error) {
	stepTime, err := env.duration(flagStepTime, time.Second, "let each of the seven steps take that `TIME`")
	if err != nil {
		return nil, err
	}
	timeout, err := env.duration(flagTimeout, 10*time.Minute, "give up after that `TIME`")
	if err != nil {
		return nil, err
	}
	keep, err := env.yes(flagKeep, "stay up after the job, until Ctrl-C")
	if err != nil {
		return nil, err
	}
	flags := append([]cli.Flag{
		stepTime, keep, timeout,
		env.text(flagOutput, outputText, "`FORM` of the result: text, or json for one object on the last line"),
		env.text(flagDataDir, "", "keep everything in `DIR` (default: a temporary one, removed at the end)"),
	}, env.pipelineFlags(false)...)
	return &cli.Command{
		Name:         "demo",
		Usage:        "run one job from its start to the last read receipt, and show all of it",
		Flags:        flags,
		Before:       noWords,
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			d, err := newDemo(c, stdout, stderr)
			if err != nil {
				return err
			}
			return d.run(c)
		},
	}, nil
}

// demo is one run of the command.
type demo struct {
	json             bool
	keep             bool
	stepTime         time.Duration
	timeout          time.Duration
	result, progress io.Writer
}

func newDemo(c *cli.Context, stdout, stderr io.Writer) (*demo, error) {
	d := &demo{
		keep:     c.Bool(flagKeep),
		stepTime: c.Duration(flagStepTime),
		timeout:  c.Duration(flagTimeout),
		result:   stdout, progress: stdout,
	}
	switch c.String(flagOutput) {
	case outputText:
	case outputJSON:
		d.json, d.progress = true, stderr
	default:
		return nil, fmt.Errorf("%w, got %q", errOutput, c.String(flagOutput))
	}
	return d, errors.Join(notNegative(flagStepTime, d.stepTime), positive(flagTimeout, d.timeout))
}

func (d *demo) run(c *cli.Context) (err error) {
	dir, err := d.openDir(c.String(flagDataDir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	ctx, cancel := context.WithTimeoutCause(c.Context, d.timeout, errTimeout)
	defer cancel()
	running, err := startPipeline(ctx, c, dir, d.progress, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop(running, d.progress)) }()
	if err := d.runJob(ctx, running); err != nil {
		return err
	}
	if !d.keep {
		return nil
	}
	end := continues
	if c.String(flagDataDir) == "" {
		end = vanishes
	}
	writeNextSteps(d.progress, running, dir, end)
	return wait(c.Context, running)
}

func (d *demo) openDir(path string) (*datadir.Dir, error) {
	if path == "" {
		return datadir.Temporary()
	}
	return openDir(path)
}

// runJob runs the job and writes its report. It fails when the job didn't complete.
func (d *demo) runJob(ctx context.Context, running *pipeline.Pipeline) error {
	rep, err := d.follow(ctx, running)
	if err != nil {
		return err
	}
	write := rep.WriteText
	if d.json {
		write = rep.WriteJSON
	}
	if err := write(d.result); err != nil {
		return err
	}
	if !d.keep {
		fmt.Fprintf(d.progress, "the web UI ends with the demo: --%s keeps it, --%s DIR keeps its data\n", flagKeep, flagDataDir)
	}
	if state := rep.Snapshot.State; state != job.StateCompleted {
		return fmt.Errorf("job %s ended %s: %s", rep.Snapshot.JobID, state, show.Clean(rep.Snapshot.Reason))
	}
	return nil
}
