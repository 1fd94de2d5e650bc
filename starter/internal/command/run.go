package command

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/internal/jobfile"
	"github.com/hubjobs/hubjobs/starter/internal/session"
	"github.com/hubjobs/hubjobs/starter/jobs"
	"github.com/hubjobs/hubjobs/starter/show"
)

func (p *program) runCommand() *cli.Command {
	return &cli.Command{
		Name:   "run",
		Usage:  "start a job and follow it to its end",
		Flags:  append(append(jobFlags(), followFlags()...), append(temporalFlags(), uiFlag())...),
		Action: p.run,
		Description: `A job comes from flags or from a file, YAML or JSON; flags win:

  name: Nightly model
  steps: [Read all the data, Train the model]
  options: {stepTime: 2s, stepTimeout: 1m, stepRetries: 2, timeout: 1h, acceptTimeout: 10m, receiptTimeout: 1m,
            receiptAttempts: 5, cancelTimeout: 1m, messageTtl: 1h, window: 8}

Without either it is "` + job.DefaultName + `" with its ` + jobs.Steps(len(job.DefaultSteps())) + `.
Every job ends with the step "` + job.StepDone + `", which is added when it is missing.`,
	}
}

func jobFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "`NAME` of the job", DefaultText: job.DefaultName},
		&cli.StringSliceFlag{Name: "step", Usage: "`NAME` of a step; repeat it for each step, in order (in the variable: one a line)"},
		&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "read the job from `FILE`, YAML or JSON"},
		&cli.StringFlag{Name: "id", Usage: "`ID` of the job", DefaultText: "made of user, time and a few random letters"},
		&cli.StringFlag{Name: "user", Usage: "`NAME` of who asks for the job", DefaultText: "$USER"},
		&cli.DurationFlag{Name: "step-time", Usage: "`TIME` that a simulated step takes", DefaultText: "the solver's"},
		&cli.DurationFlag{Name: "step-timeout", Usage: "`TIME` after which a step is stopped", DefaultText: "the solver's"},
		&cli.IntFlag{Name: "step-retries", Usage: "`NUMBER` of times a failed step is run again", DefaultText: "the solver's"},
		&cli.DurationFlag{Name: "timeout", Usage: "`TIME` for the whole job", DefaultText: "24h"},
		&cli.DurationFlag{Name: "accept-timeout", Usage: "`TIME` until a solver has begun", DefaultText: "10m"},
		&cli.DurationFlag{Name: "receipt-timeout", Usage: "`TIME` until a message is read, before it is sent again", DefaultText: "1m"},
		&cli.IntFlag{Name: "receipt-attempts", Usage: "`NUMBER` of times a message is sent in all", DefaultText: "5"},
		&cli.DurationFlag{Name: "cancel-timeout", Usage: "`TIME` until the solver answers a cancellation", DefaultText: "1m"},
		&cli.DurationFlag{Name: "message-ttl", Usage: "`TIME` that the hub keeps a message for a device", DefaultText: "1h"},
		&cli.IntFlag{Name: "window", Usage: "`NUMBER` of the job's messages that may wait in the hub for a device", DefaultText: "8"},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "start the job and don't follow it"},
	}
}

func followFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "let Ctrl-C cancel without a question"},
	}
}

func (p *program) run(c *cli.Context) error {
	if c.Args().Present() {
		return usageError(c, "unexpected argument %q: name a step with --step", c.Args().First())
	}
	in, err := p.jobInput(c)
	if err != nil {
		return err
	}
	ctx, release := p.interruptible(c.Context)
	defer release()
	s, err := p.open(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := start(ctx, s, in); err != nil {
		return cause(ctx, err)
	}
	if err := p.announce(c, s, in); err != nil {
		return err
	}
	if c.Bool("detach") {
		return nil
	}
	release()
	return p.follow(c.Context, c, s, in.Job.CorrelationID)
}

func start(ctx context.Context, s service, in job.JobInput) error {
	err := s.Start(ctx, in)
	if id := in.Job.CorrelationID; errors.Is(err, job.ErrExists) {
		return fmt.Errorf("there is a job %q already: choose another --id, or follow it with: starter attach %s", id, id)
	}
	return err
}

// jobInput makes the job of flags and file.
func (p *program) jobInput(c *cli.Context) (job.JobInput, error) {
	user := p.user(c)
	id := c.String("id")
	if id == "" {
		id = job.NewID(user, time.Now(), strings.ToLower(rand.Text()[:6]))
	}
	in := job.JobInput{RequestedBy: user}
	var err error
	if path := c.String("file"); path != "" {
		in.Job, in.Options, err = fromFile(c, path, id)
	} else {
		in.Job, err = fromFlags(c, id)
	}
	if err != nil {
		return job.JobInput{}, err
	}
	applyFlags(c, &in.Options)
	if err := in.Options.Validate(); err != nil {
		return job.JobInput{}, err
	}
	return in, nil
}

func (p *program) user(c *cli.Context) string {
	for _, user := range []string{c.String("user"), p.settings.Get("USER"), p.settings.Get("USERNAME")} {
		if user != "" {
			return show.Clean(user)
		}
	}
	return "user"
}

func fromFile(c *cli.Context, path, id string) (job.Job, job.Options, error) {
	file, err := jobfile.Read(path)
	if err != nil {
		return job.Job{}, job.Options{}, err
	}
	j, err := file.Job(id, c.String("name"), c.StringSlice("step"))
	return j, file.Options, err
}

func fromFlags(c *cli.Context, id string) (job.Job, error) {
	steps := c.StringSlice("step")
	if !c.IsSet("step") {
		steps = job.DefaultSteps()
	}
	return job.New(id, c.String("name"), steps)
}

// applyFlags lets the flags that were set win.
func applyFlags(c *cli.Context, o *job.Options) {
	for name, target := range map[string]*time.Duration{
		"step-timeout": &o.Solver.StepTimeout, "timeout": &o.Timeout, "accept-timeout": &o.AcceptTimeout,
		"receipt-timeout": &o.ReceiptTimeout, "cancel-timeout": &o.CancelTimeout, "message-ttl": &o.MessageTTL,
	} {
		if c.IsSet(name) {
			*target = c.Duration(name)
		}
	}
	for name, target := range map[string]*int{
		"step-retries": &o.Solver.StepRetries, "receipt-attempts": &o.ReceiptAttempts, "window": &o.Window,
	} {
		if c.IsSet(name) {
			*target = c.Int(name)
		}
	}
	if c.IsSet("step-time") {
		stepTime := c.Duration("step-time")
		o.Solver.StepTime = &stepTime
	}
}

type startedEvent struct {
	Event string    `json:"event"`
	JobID string    `json:"jobId"`
	At    time.Time `json:"at"`
	Name  string    `json:"name"`
	Steps []string  `json:"steps"`
	URL   string    `json:"url,omitempty"`
}

func (p *program) announce(c *cli.Context, s service, in job.JobInput) error {
	j := in.Job
	address := page(c.String("ui-url"), s.Namespace(), job.JobWorkflowID(j.CorrelationID))
	if asJSON(c) {
		return show.JSON(p.Stdout, startedEvent{"started", j.CorrelationID, time.Now().UTC(), j.Name, j.Steps, address})
	}
	lines := fmt.Sprintf("Started %s: %s, %s\n", j.CorrelationID, show.Clean(j.Name), jobs.Steps(len(j.Steps)))
	if address != "" {
		lines += address + "\n"
	}
	if c.Bool("detach") {
		lines += "Follow it with: starter attach " + j.CorrelationID + "\n"
	}
	return p.print(lines)
}

func (p *program) print(text string) error {
	if _, err := fmt.Fprint(p.Stdout, text); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// follow follows a job and turns its end into an exit code.
func (p *program) follow(ctx context.Context, c *cli.Context, s service, id string) error {
	f := session.Session{
		Jobs: s, JobID: id, By: p.user(c), Printer: p.printer(c, id), Signals: p.Signals, Questions: p.Stderr, Sure: c.Bool("yes"),
	}
	if p.Terminal.In && p.Terminal.Err {
		f.Answers = p.Stdin
	}
	last, err := f.Follow(ctx)
	if err != nil {
		return err
	}
	if last.State != job.StateCompleted {
		return &outcomeError{last.State}
	}
	return nil
}

func (p *program) printer(c *cli.Context, id string) show.Printer {
	switch {
	case asJSON(c):
		return show.Events(p.Stdout, id)
	case p.Terminal.Out:
		width := p.Terminal.Width
		if width == nil {
			width = func() int { return 0 }
		}
		return show.Live(p.Stdout, width, nil)
	}
	return show.Plain(p.Stdout, nil)
}
