// Package scheduler is the role that holds the schedulers' device connections: it announces jobs, receives the solvers'
// updates and confirms them, each as a workflow asks for it.
package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/host"
	"github.com/hubjobs/hubjobs/workers/role"
)

// Settings of a scheduler. Temporal and Host are required.
type Settings struct {
	Temporal client.Options // identity and logger are set by Run
	Host     host.Settings
	HTTPAddr string       // host:port for health checks; port 0 takes a free one; empty: a free one on loopback
	Logger   *slog.Logger // nil: no logs

	// Ready is called once, when the scheduler works and listens on httpAddr. It may be nil.
	Ready func(httpAddr string)
}

// Run runs a scheduler until ctx ends; then it stops taking work, closes its device connections, and returns nil. The
// error says why it could not start or go on.
func Run(ctx context.Context, s Settings) error {
	if err := s.Host.Validate(); err != nil {
		return err
	}
	log := role.Logger(s.Logger)
	if s.Host.Name == "" {
		s.Host.Name = host.NewName()
	}
	temporal, err := role.Dial(ctx, s.Temporal, role.Identity("scheduler/"+s.Host.Name), log)
	if err != nil {
		return err
	}
	defer temporal.Close()
	h, err := host.New(s.Host, job.RoleScheduler, temporal, nil, log)
	if err != nil {
		return err
	}
	defer h.Close()
	mux := http.NewServeMux()
	role.Health(mux, role.CheckTemporal(temporal))
	server, err := role.Listen(ctx, s.HTTPAddr, mux, log)
	if err != nil {
		return err
	}
	workers, err := role.StartWorkers(temporal, h.Queue(), role.Queue{
		Name:    job.TaskQueueScheduler,
		Options: worker.Options{DisableWorkflowWorker: true},
		Register: func(r worker.Registry) {
			activities.Register(r, job.Connect, h.Activities.Connect)
		},
	})
	if err != nil {
		return errors.Join(err, server.Close())
	}
	defer workers.Stop()
	log.Info("scheduler is ready", "host", s.Host.Name, "http", server.Addr())
	if s.Ready != nil {
		s.Ready(server.Addr())
	}
	return role.Together(ctx, workers.Run, server.Serve)
}
