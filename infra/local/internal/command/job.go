package command

import (
	"context"
	"crypto/rand"
	"fmt"
	"os/user"
	"strings"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/infra/local/internal/report"
	"github.com/hubjobs/hubjobs/infra/local/pipeline"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
	"github.com/hubjobs/hubjobs/starter/jobs"
	"github.com/hubjobs/hubjobs/starter/show"
)

// follow starts the job, shows what happens to it, and returns when it has ended.
func (d *demo) follow(ctx context.Context, running *pipeline.Pipeline) (report.Report, error) {
	server := running.Temporal()
	connection, err := server.Dial(ctx, "")
	if err != nil {
		return report.Report{}, err
	}
	defer connection.Close()
	service := jobs.New(connection)
	input, err := d.jobInput()
	if err != nil {
		return report.Report{}, err
	}
	begin := time.Now()
	if err := service.Start(ctx, input); err != nil {
		return report.Report{}, err
	}
	id := input.Job.CorrelationID
	execution, err := service.Describe(ctx, id)
	if err != nil {
		return report.Report{}, err
	}
	page := server.WorkflowURL(pipeline.Namespace, job.JobWorkflowID(id), execution.RunID)
	fmt.Fprintf(d.progress, "started %s: %s\n%s\n", id, jobs.Steps(len(input.Job.Steps)), page)

	last, err := d.watch(ctx, running, service, id)
	if err != nil {
		return report.Report{}, fmt.Errorf("follow job %s: %w", id, err)
	}
	return finish(ctx, connection, service, report.Report{Snapshot: last, Took: time.Since(begin), URL: page})
}

// jobInput is the job of the original: seven steps, the last of them "Done".
func (d *demo) jobInput() (job.JobInput, error) {
	name := "user"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	id := job.NewID(name, time.Now(), strings.ToLower(rand.Text()[:6]))
	j, err := job.New(id, "", job.DefaultSteps())
	return job.JobInput{
		Job:         j,
		Options:     job.Options{Timeout: d.timeout, Solver: job.SolverOptions{StepTime: &d.stepTime}},
		RequestedBy: name,
	}, err
}

// watch shows each update until the job has ended, or a part of the pipeline has failed.
func (d *demo) watch(ctx context.Context, running *pipeline.Pipeline, source follow.Source, id string) (job.Snapshot, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	defer close(watched)
	go func() {
		select {
		case err := <-running.Failed():
			cancel(err)
		case <-watched:
		}
	}()
	return follow.Job(ctx, source, id, nil, show.Plain(d.progress, nil).Show)
}

// finish asks for what is known only at the end.
func finish(ctx context.Context, connection client.Client, service *jobs.Client, r report.Report) (report.Report, error) {
	id := r.Snapshot.JobID
	audit, err := service.Audit(ctx, id)
	if err != nil {
		return report.Report{}, err
	}
	described, err := connection.DescribeWorkflowExecution(ctx, job.JobWorkflowID(id), "")
	if err != nil {
		return report.Report{}, fmt.Errorf("describe job %s: %w", id, err)
	}
	r.Audit = audit
	r.Events = int(described.GetWorkflowExecutionInfo().GetHistoryLength())
	return r, nil
}
