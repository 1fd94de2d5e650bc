package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"go.temporal.io/sdk/client"
	"go.uber.org/zap/exp/zapslog"

	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/local/internal/boot"
	"github.com/hubjobs/hubjobs/workers/host"
	"github.com/hubjobs/hubjobs/workers/manager"
	"github.com/hubjobs/hubjobs/workers/scheduler"
	"github.com/hubjobs/hubjobs/workers/solver"
)

// rolePart runs a role from its start to its stop. run calls its last argument when the role is ready, with the address
// that the role listens on, which then stands in addr. A role that ends by itself after that fails the pipeline.
func (p *Pipeline) rolePart(name string, addr *string, run func(context.Context, func(addr string)) error) boot.Part {
	return boot.Part{Name: name, Start: func(starting context.Context) (func() error, error) {
		ctx, cancel := context.WithCancel(context.WithoutCancel(starting))
		ready, ended := make(chan string, 1), make(chan roleEnd, 1)
		go func() {
			err := run(ctx, func(addr string) { ready <- addr })
			end := roleEnd{err: err, early: ctx.Err() == nil}
			if end.early {
				p.fail(fmt.Errorf("%s ended by itself: %w", name, cmp.Or(err, errNoReason)))
			}
			ended <- end
		}()
		stop := func() error {
			cancel()
			if end := <-ended; !end.early { // else Failed tells
				return end.err
			}
			return nil
		}
		select {
		case *addr = <-ready:
			return stop, nil
		case end := <-ended:
			cancel()
			return nil, cmp.Or(end.err, errNoReason)
		case <-starting.Done():
			return nil, errors.Join(context.Cause(starting), stop())
		}
	}}
}

// roleEnd is how a role ended; early says that nobody had asked it to.
type roleEnd struct {
	err   error
	early bool
}

var errNoReason = errors.New("no reason given")

// fail keeps the first failure: the pipeline ends anyway.
func (p *Pipeline) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
}

func (p *Pipeline) managerPart() boot.Part {
	return p.rolePart("manager", &p.addresses.Manager, func(ctx context.Context, ready func(string)) error {
		log := p.logger("manager")
		return manager.Run(ctx, manager.Settings{
			Temporal: p.client(),
			Hub: iothub.Config{
				ConnectionString: p.hub.HubConnectionString(),
				HTTPSAddr:        p.hub.HTTPSAddr(),
				AMQPSAddr:        p.hub.AMQPSAddr(),
				RootCAs:          p.roots,
				Logger:           log,
			},
			ServiceBus: servicebus.Config{ConnectionString: p.hub.ServiceBusConnectionString(), Logger: log},
			APIKey:     p.apiKey,
			HTTPAddr:   p.opts.Addresses.Manager,
			Logger:     log,
			Ready:      ready,
		})
	})
}

func (p *Pipeline) schedulerPart() boot.Part {
	return p.rolePart("scheduler", &p.addresses.Scheduler, func(ctx context.Context, ready func(string)) error {
		return scheduler.Run(ctx, scheduler.Settings{
			Temporal: p.client(),
			Host:     p.host(),
			HTTPAddr: p.opts.Addresses.Scheduler,
			Logger:   p.logger("scheduler"),
			Ready:    ready,
		})
	})
}

func (p *Pipeline) solverPart() boot.Part {
	return p.rolePart("solver", &p.addresses.Solver, func(ctx context.Context, ready func(string)) error {
		log := p.logger("solver")
		return solver.Run(ctx, solver.Settings{
			Temporal:   p.client(),
			Host:       p.host(),
			Steps:      p.opts.Steps,
			ServiceBus: &servicebus.Config{ConnectionString: p.hub.ServiceBusConnectionString(), Logger: log},
			HTTPAddr:   p.opts.Addresses.Solver,
			Logger:     log,
			Ready:      ready,
		})
	})
}

// client says how a role reaches Temporal.
func (p *Pipeline) client() client.Options {
	return client.Options{HostPort: p.temporal.Address(), Namespace: Namespace}
}

// hostName is the same after a restart: what was waiting for the process before goes on with this one at once, instead
// of finding out that the other is gone.
const hostName = "local"

// host says how a role that holds device connections gets them.
func (p *Pipeline) host() host.Settings {
	return host.Settings{
		Name:       hostName,
		ManagerURL: p.managerURL(),
		APIKey:     p.apiKey,
		MQTTAddr:   p.hub.MQTTSAddr(),
		RootCAs:    p.roots,
	}
}

func (p *Pipeline) managerURL() string { return "http://" + p.addresses.Manager }

// logger is the logger of a role: all write to the one log file.
func (p *Pipeline) logger(role string) *slog.Logger {
	return slog.New(zapslog.NewHandler(p.log.Core())).With("role", role)
}
