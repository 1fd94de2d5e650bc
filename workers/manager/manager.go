package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/role"
	"github.com/hubjobs/hubjobs/workers/router"
	"github.com/hubjobs/hubjobs/workflows"
)

// Settings of a manager. Temporal, Hub, ServiceBus and APIKey are required.
type Settings struct {
	Temporal   client.Options // identity and logger are set by Run
	Hub        iothub.Config
	ServiceBus servicebus.Config
	APIKey     string // who sends it gets connection strings
	HTTPAddr   string // host:port to listen on; port 0 takes a free one; empty: a free one on loopback
	Limits     Limits
	Logger     *slog.Logger // nil: no logs

	// Ready is called once, when the manager works and listens on httpAddr. It may be nil.
	Ready func(httpAddr string)
}

// routerBatch is how many messages are routed together, so that a burst of one job costs few signals.
const routerBatch = 64

// Run runs a manager until ctx ends; then it stops taking work, finishes or gives back what it has, and returns nil.
// The error says why it could not start or go on.
func Run(ctx context.Context, s Settings) error {
	if s.APIKey == "" {
		return errors.New("the API key is empty: without one anybody could get any device's key")
	}
	if err := s.Limits.Validate(); err != nil {
		return err
	}
	m := &manager{settings: s, log: role.Logger(s.Logger), metrics: newMetrics(), pace: newPaces(s.Limits)}
	defer m.close(context.WithoutCancel(ctx))
	if err := m.connect(ctx); err != nil {
		return err
	}
	return m.run(ctx)
}

type manager struct {
	settings Settings
	log      *slog.Logger
	metrics  *metrics
	pace     paces

	hub         *iothub.Client
	bus         *servicebus.Client
	jobs, queue *servicebus.Sender
	temporal    client.Client

	receiving atomic.Int32 // receivers that run
}

// connect makes the clients.
func (m *manager) connect(ctx context.Context) (err error) {
	if m.hub, err = iothub.New(m.settings.Hub); err != nil {
		return err
	}
	if m.bus, err = servicebus.New(m.settings.ServiceBus); err != nil {
		return err
	}
	if m.jobs, err = m.bus.Sender(role.TopicJobs); err != nil {
		return err
	}
	if m.queue, err = m.bus.Sender(role.QueueDeviceMessages); err != nil {
		return err
	}
	m.temporal, err = role.Dial(ctx, m.settings.Temporal, role.Identity("manager"), m.log)
	if err != nil {
		return err
	}
	namespace := m.settings.Temporal.Namespace
	if namespace == "" {
		namespace = client.DefaultNamespace
	}
	return registerSearchAttributes(ctx, m.temporal.OperatorService(), namespace, m.log)
}

func (m *manager) run(ctx context.Context) error {
	server, err := role.Listen(ctx, m.settings.HTTPAddr, m.handler(), m.log)
	if err != nil {
		return err
	}
	workers, err := role.StartWorkers(m.temporal, m.queues()...)
	if err != nil {
		return errors.Join(err, server.Close())
	}
	defer workers.Stop()
	m.log.Info("manager is ready", "http", server.Addr())
	if m.settings.Ready != nil {
		m.settings.Ready(server.Addr())
	}
	return role.Together(ctx, workers.Run, server.Serve, m.route, m.feedback)
}

func (m *manager) queues() []role.Queue {
	registry := &activities.Identities{Registry: m.registry()}
	dispatch := &activities.CloudToDevice{Hub: &pacedSender{m.hub, m.pace.sends}, Sent: m.metrics.sent}
	limit := m.settings.Limits.perSecond()
	return []role.Queue{
		{Name: job.TaskQueueJobs, Register: func(r worker.Registry) {
			r.RegisterWorkflowWithOptions(workflows.Job, workflow.RegisterOptions{Name: job.WorkflowJob})
			r.RegisterWorkflowWithOptions(workflows.Relay, workflow.RegisterOptions{Name: job.WorkflowRelay})
			activities.Register(r, job.Publish, (&activities.JobTopic{Topic: m.jobs}).Publish)
			activities.Register(r, job.Return, (&activities.DeviceMessages{Queue: m.queue}).Return)
		}},
		// Each of its activities works on both devices of a job.
		{Name: job.TaskQueueRegistry, Options: limited(limit / 2), Register: func(r worker.Registry) {
			activities.Register(r, job.Negotiate, registry.Negotiate)
			activities.Register(r, job.Deregister, registry.Deregister)
		}},
		{Name: job.TaskQueueDispatch, Options: limited(limit), Register: func(r worker.Registry) {
			activities.Register(r, job.Dispatch, dispatch.Dispatch)
		}},
	}
}

// limited returns the options of a queue with activities only, of which perSecond may start in a second over all
// managers; 0 for no limit.
func limited(perSecond float64) worker.Options {
	return worker.Options{
		DisableWorkflowWorker:              true,
		TaskQueueActivitiesPerSecond:       perSecond,
		MaxConcurrentActivityExecutionSize: concurrency(perSecond),
	}
}

func (m *manager) registry() registry { return &pacedRegistry{m.hub, m.pace.registry} }

// route receives from the queue until ctx ends.
func (m *manager) route(ctx context.Context) error {
	m.receiving.Add(1)
	defer m.receiving.Add(-1)
	r := &router.Router{Workflows: m.temporal, Counter: m.metrics, Log: m.log}
	// One batch after the other: messages of one device must not overtake each other.
	err := m.bus.Receive(ctx, servicebus.Source{Queue: role.QueueDeviceMessages},
		servicebus.ReceiveOptions{Batch: routerBatch, Concurrency: 1},
		func(ctx context.Context, batch []*servicebus.Delivery) { r.Handle(ctx, deliveries(batch)) })
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	return nil
}

func deliveries(batch []*servicebus.Delivery) []router.Delivery {
	out := make([]router.Delivery, len(batch))
	for i, d := range batch {
		out[i] = router.Delivery{
			Message:        d.Message,
			DeviceID:       d.Properties[job.PropertyDeviceID],
			SequenceNumber: d.SequenceNumber,
			Settlement:     d,
		}
	}
	return out
}

// feedback receives delivery feedback until ctx ends.
func (m *manager) feedback(ctx context.Context) error {
	m.receiving.Add(1)
	defer m.receiving.Add(-1)
	f := &router.Feedback{Workflows: m.temporal, Counter: m.metrics, Log: m.log}
	if err := m.hub.ReceiveFeedback(ctx, f.Handle); err != nil {
		return fmt.Errorf("feedback reader: %w", err)
	}
	return nil
}

func (m *manager) handler() http.Handler {
	mux := http.NewServeMux()
	newAPI(m.registry(), m.settings.APIKey, m.log).routes(mux)
	mux.Handle("GET /metrics", m.metrics.handler())
	role.Health(mux, role.CheckTemporal(m.temporal), m.checkReceivers)
	return mux
}

func (m *manager) checkReceivers(context.Context) error {
	if n := m.receiving.Load(); n < 2 {
		return fmt.Errorf("%d of 2 receivers run", n)
	}
	return nil
}

// close closes what connect has made. Everything is settled by then, so what goes wrong here concerns nobody.
func (m *manager) close(ctx context.Context) {
	if m.temporal != nil {
		m.temporal.Close()
	}
	if m.bus != nil {
		if err := m.bus.Close(ctx); err != nil { // with its senders
			m.log.Debug("the Service Bus client was not closed properly", "error", err)
		}
	}
	if m.hub != nil {
		if err := m.hub.Close(); err != nil {
			m.log.Debug("the hub client was not closed properly", "error", err)
		}
	}
}
