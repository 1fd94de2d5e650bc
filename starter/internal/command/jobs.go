package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/jobs"
	"github.com/hubjobs/hubjobs/starter/show"
)

func (p *program) attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", ArgsUsage: "JOB", Usage: "follow a job that runs, or see how one ended",
		Flags:  append(followFlags(), append(temporalFlags(), userFlag())...),
		Action: p.withJob(p.attach),
	}
}

func userFlag() cli.Flag {
	return &cli.StringFlag{Name: "user", Usage: "`NAME` of who cancels a job", DefaultText: "$USER"}
}

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", ArgsUsage: "JOB", Usage: "show where a job stands",
		Flags: temporalFlags(), Action: p.withJob(p.interruptibly(p.status)),
	}
}

func (p *program) cancelCommand() *cli.Command {
	return &cli.Command{
		Name: "cancel", ArgsUsage: "JOB", Usage: "ask a job to stop",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "reason", Value: "on request", Usage: "`TEXT` that says why"}, userFlag(),
		}, temporalFlags()...),
		Action: p.withJob(p.interruptibly(p.cancel)),
	}
}

func (p *program) auditCommand() *cli.Command {
	return &cli.Command{
		Name: "audit", ArgsUsage: "JOB", Usage: "list every message of a job: when it was sent, accepted, delivered and read",
		Flags: temporalFlags(), Action: p.withJob(p.interruptibly(p.audit)),
	}
}

// jobAction is a command about one job.
type jobAction func(ctx context.Context, c *cli.Context, id string) error

// withJob takes the command's one argument, the job.
func (p *program) withJob(do jobAction) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() != 1 {
			return usageError(c, "name one job, got %d", c.NArg())
		}
		id := c.Args().First()
		if err := job.ValidateID(id); err != nil {
			return err
		}
		return do(c.Context, c, id)
	}
}

// interruptibly lets a signal end the command.
func (p *program) interruptibly(do jobAction) jobAction {
	return func(ctx context.Context, c *cli.Context, id string) error {
		ctx, release := p.interruptible(ctx)
		defer release()
		return cause(ctx, do(ctx, c, id))
	}
}

func (p *program) attach(ctx context.Context, c *cli.Context, id string) error {
	early, release := p.interruptible(ctx)
	defer release()
	s, err := p.open(early, c)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := describe(early, s, id); err != nil {
		return cause(early, err)
	}
	release()
	return p.follow(ctx, c, s, id)
}

func describe(ctx context.Context, s service, id string) (jobs.Execution, error) {
	e, err := s.Describe(ctx, id)
	return e, explain(id, err)
}

// explain says in one line what to do about an error that concerns one job.
func explain(id string, err error) error {
	switch {
	case errors.Is(err, jobs.ErrNoWorker):
		return fmt.Errorf(`%w: is one running? "go run ./infra/local up" runs all that is needed`, err)
	case errors.Is(err, job.ErrNotFound):
		return fmt.Errorf("%w (starter list shows all jobs)", err)
	}
	return err
}

func (p *program) status(ctx context.Context, c *cli.Context, id string) error {
	s, err := p.open(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	e, err := describe(ctx, s, id)
	if err != nil {
		return err
	}
	snapshot, err := p.snapshot(ctx, s, e)
	if errors.Is(err, jobs.ErrNoWorker) {
		return p.showExecution(c, e, err)
	}
	if err != nil {
		return err
	}
	if asJSON(c) {
		return show.JSON(p.Stdout, snapshot)
	}
	return show.Snapshot(p.Stdout, snapshot, nil)
}

// snapshot needs no worker for a job that has ended: the server keeps its result.
func (p *program) snapshot(ctx context.Context, s service, e jobs.Execution) (job.Snapshot, error) {
	done := p.busy("asking for the state of " + e.JobID)
	defer done()
	if e.Ended() {
		return s.Result(ctx, e.JobID)
	}
	return s.Snapshot(ctx, e.JobID)
}

// showExecution shows what is known without a worker.
func (p *program) showExecution(c *cli.Context, e jobs.Execution, why error) error {
	if asJSON(c) {
		return show.JSON(p.Stdout, struct {
			jobs.Execution
			Note string `json:"note"`
		}{e, why.Error()})
	}
	return show.Facts(p.Stdout, []show.Fact{
		{Name: "Job", Value: e.JobID},
		{Name: "Name", Value: e.Name},
		{Name: "State", Value: e.Status},
		{Name: "Last update", Value: e.Step},
		{Name: "Started", Value: show.Time(e.StartedAt, time.Local)},
		{Name: "Note", Value: why.Error() + ": this is what the Temporal server knows"},
	})
}

func (p *program) cancel(ctx context.Context, c *cli.Context, id string) error {
	s, err := p.open(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	done := p.busy("asking " + id + " to stop")
	out, err := s.Cancel(ctx, id, job.CancelInput{Reason: c.String("reason"), By: p.user(c)})
	done()
	if err != nil {
		return explain(id, err)
	}
	if asJSON(c) {
		return show.JSON(p.Stdout, struct {
			Event string    `json:"event"`
			JobID string    `json:"jobId"`
			State job.State `json:"state"`
		}{"cancelling", id, out.State})
	}
	return p.print(fmt.Sprintf("Cancelling %s, which was %s. Follow it with: starter attach %s\n", id, out.State, id))
}

func (p *program) audit(ctx context.Context, c *cli.Context, id string) error {
	s, err := p.open(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	done := p.busy("asking for the messages of " + id)
	audit, err := s.Audit(ctx, id)
	done()
	if err != nil {
		return explain(id, err)
	}
	if asJSON(c) {
		return show.JSON(p.Stdout, audit)
	}
	return show.Messages(p.Stdout, audit, nil)
}

var states = []job.State{
	job.StateStarting, job.StateScheduled, job.StateRunning, job.StateConfirming, job.StateCancelling, job.StateClosing,
	job.StateCompleted, job.StateUnconfirmed, job.StateFailed, job.StateCancelled, job.StateRejected, job.StateExpired,
}

func (p *program) listCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "list jobs: those that run, then those that ended last",
		Flags: append([]cli.Flag{
			&cli.IntFlag{Name: "limit", Value: 50, Usage: "list at most `NUMBER` jobs"},
			&cli.StringFlag{Name: "status", Usage: "list only jobs in `STATE`: " + stateNames()},
		}, temporalFlags()...),
		Action: p.list,
	}
}

func stateNames() string {
	var names []string
	for _, s := range states {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

func (p *program) list(c *cli.Context) error {
	filter, err := listFilter(c)
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
	var found []jobs.Execution
	for e, err := range s.List(ctx, filter) {
		if err != nil {
			return cause(ctx, explainList(filter, err))
		}
		if found = append(found, e); len(found) == c.Int("limit") {
			break
		}
	}
	return p.showList(c, found)
}

func explainList(f jobs.Filter, err error) error {
	if f.State != "" && errors.Is(err, job.ErrInvalid) {
		return fmt.Errorf("--status needs the search attribute %s in the Temporal namespace: %w", job.SearchAttributeStatus, err)
	}
	return err
}

func listFilter(c *cli.Context) (jobs.Filter, error) {
	switch {
	case c.Args().Present():
		return jobs.Filter{}, usageError(c, "unexpected argument %q", c.Args().First())
	case c.Int("limit") < 1:
		return jobs.Filter{}, usageError(c, "--limit is %d: it must be at least 1", c.Int("limit"))
	case c.String("status") == "":
		return jobs.Filter{}, nil
	}
	at := slices.IndexFunc(states, func(s job.State) bool { return strings.EqualFold(string(s), c.String("status")) })
	if at < 0 {
		return jobs.Filter{}, usageError(c, "--status is %q: it can be %s", c.String("status"), stateNames())
	}
	return jobs.Filter{State: states[at]}, nil
}

func (p *program) showList(c *cli.Context, found []jobs.Execution) error {
	if asJSON(c) {
		for _, e := range found {
			if err := show.JSON(p.Stdout, e); err != nil {
				return err
			}
		}
		return nil
	}
	if len(found) == 0 {
		return p.print("no jobs\n")
	}
	var rows [][]string
	for _, e := range found {
		rows = append(rows, []string{
			e.JobID, e.Name, e.Status, e.Step, show.Time(e.StartedAt, time.Local), show.Time(e.EndedAt, time.Local),
		})
	}
	return show.Table(p.Stdout, []string{"JOB", "NAME", "STATUS", "STEP", "STARTED", "ENDED"}, rows)
}
