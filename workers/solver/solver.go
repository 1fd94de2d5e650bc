package solver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/host"
	"github.com/hubjobs/hubjobs/workers/role"
	"github.com/hubjobs/hubjobs/workflows"
)

// DefaultPubSub is the name of a Dapr pub/sub component whose name wasn't given.
const DefaultPubSub = "pubsub"

// Settings of a solver. Temporal, Host and Steps are required.
type Settings struct {
	Temporal client.Options // identity and logger are set by Run
	Host     host.Settings
	Steps    activities.StepRunner

	// ServiceBus is where the topic of jobs is. nil: jobs come over HTTP alone, from a Dapr sidecar.
	ServiceBus *servicebus.Config

	Defaults  job.SolverOptions // of jobs that leave something to the solver
	HTTPAddr  string            // host:port to listen on; port 0 takes a free one; empty: a free one on loopback
	PubSub    string            // name of the sidecar's pub/sub component; empty: DefaultPubSub
	DaprToken string            // what the sidecar must show; empty: nothing
	Logger    *slog.Logger      // nil: no logs

	// Ready is called once, when the solver works and listens on httpAddr. It may be nil.
	Ready func(httpAddr string)
}

// Each solver takes jobs in batches of at most takeBatch, takeParallel batches at a time. Taking a job is quick; what
// bounds the steps that run at a time are the activity slots of the workers.
const (
	takeBatch    = 8
	takeParallel = 2
)

// Run runs a solver until ctx ends; then it stops taking work, stops its steps so that they can go on elsewhere, closes
// its device connections, and returns nil. The error says why it could not start or go on.
func Run(ctx context.Context, s Settings) error {
	if err := s.validate(); err != nil {
		return err
	}
	if s.Host.Name == "" {
		s.Host.Name = host.NewName()
	}
	if s.PubSub == "" {
		s.PubSub = DefaultPubSub
	}
	r := &solver{settings: s, log: role.Logger(s.Logger)}
	defer r.close(context.WithoutCancel(ctx))
	if err := r.connect(ctx); err != nil {
		return err
	}
	return r.run(ctx)
}

func (s Settings) validate() error {
	if s.Steps == nil {
		return errors.New("the step runner is not set")
	}
	if err := (job.Options{Solver: s.Defaults}).Validate(); err != nil {
		return err
	}
	return s.Host.Validate()
}

type solver struct {
	settings Settings
	log      *slog.Logger

	bus      *servicebus.Client // nil without a topic
	temporal client.Client
	host     *host.Host
	intake   *intake

	receiving atomic.Bool
}

// connect makes the clients.
func (r *solver) connect(ctx context.Context) (err error) {
	s := r.settings
	if s.ServiceBus != nil {
		if r.bus, err = servicebus.New(*s.ServiceBus); err != nil {
			return err
		}
	}
	if r.temporal, err = role.Dial(ctx, s.Temporal, role.Identity("solver/"+s.Host.Name), r.log); err != nil {
		return err
	}
	if r.host, err = host.New(s.Host, job.RoleSolver, r.temporal, s.Steps, r.log); err != nil {
		return err
	}
	r.intake = &intake{temporal: r.temporal, defaults: s.Defaults, log: r.log}
	return nil
}

func (r *solver) run(ctx context.Context) error {
	server, err := role.Listen(ctx, r.settings.HTTPAddr, r.handler(), r.log)
	if err != nil {
		return err
	}
	workers, err := role.StartWorkers(r.temporal, r.host.Queue(), role.Queue{
		Name: job.TaskQueueSolver,
		Register: func(w worker.Registry) {
			w.RegisterWorkflowWithOptions(workflows.Solve, workflow.RegisterOptions{Name: job.WorkflowSolve})
			activities.Register(w, job.Accept, r.host.Activities.Accept)
		},
	})
	if err != nil {
		return errors.Join(err, server.Close())
	}
	defer workers.Stop()
	r.log.Info("solver is ready", "host", r.settings.Host.Name, "http", server.Addr())
	if r.settings.Ready != nil {
		r.settings.Ready(server.Addr())
	}
	return role.Together(ctx, workers.Run, server.Serve, r.receive)
}

func (r *solver) handler() http.Handler {
	mux := http.NewServeMux()
	(&api{intake: r.intake, pubsub: r.settings.PubSub, token: r.settings.DaprToken}).routes(mux)
	role.Health(mux, role.CheckTemporal(r.temporal), r.checkReceiver)
	return mux
}

func (r *solver) checkReceiver(context.Context) error {
	if r.bus != nil && !r.receiving.Load() {
		return errors.New("the topic's receiver does not run")
	}
	return nil
}

// receive takes jobs from the topic until ctx ends.
func (r *solver) receive(ctx context.Context) error {
	if r.bus == nil {
		return nil
	}
	r.receiving.Store(true)
	defer r.receiving.Store(false)
	err := r.bus.Receive(ctx, servicebus.Source{Topic: role.TopicJobs, Subscription: role.SubscriptionJobs},
		servicebus.ReceiveOptions{Batch: takeBatch, Concurrency: takeParallel},
		func(ctx context.Context, batch []*servicebus.Delivery) {
			var wg sync.WaitGroup
			for _, d := range batch {
				wg.Go(func() { r.intake.take(ctx, d.Message, d) })
			}
			wg.Wait()
		})
	if err != nil {
		return fmt.Errorf("take jobs: %w", err)
	}
	return nil
}

// close closes what connect has made, the device connections first.
func (r *solver) close(ctx context.Context) {
	if r.host != nil {
		r.host.Close()
	}
	if r.temporal != nil {
		r.temporal.Close()
	}
	if r.bus != nil {
		if err := r.bus.Close(ctx); err != nil {
			r.log.Debug("the Service Bus client was not closed properly", "error", err)
		}
	}
}
