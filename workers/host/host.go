package host

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/azure/iotdevice"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/role"
)

// closeTimeout is how long a device connection that is being closed may finish what is under way.
const closeTimeout = 5 * time.Second

// Settings of a host. ManagerURL and APIKey are required.
type Settings struct {
	Name       string // unique among the running hosts; empty: NewName()
	ManagerURL string
	APIKey     string
	MQTTAddr   string         // host:port to connect devices to instead of port 8883 of the hub
	RootCAs    *x509.CertPool // nil: those of the system
}

// Validate reports the first setting that is missing or can't be.
func (s Settings) Validate() error {
	_, err := NewNegotiator(s.ManagerURL, s.APIKey)
	return err
}

// Host holds the device connections of this process. Close must be called.
type Host struct {
	Activities *activities.Host
	negotiator *Negotiator
	pool       *activities.Pool
}

// NewName returns "<hostname>-<pid>-<random>": unique, and yet people find the process by it.
func NewName() string {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "host"
	}
	return fmt.Sprintf("%s-%d-%s", hostname, os.Getpid(), strings.ToLower(rand.Text()[:6]))
}

// New returns a host for devices of one role. What its devices receive is recorded over temporal. steps is nil for a
// host that runs none.
func New(s Settings, r job.Role, temporal client.Client, steps activities.StepRunner, log *slog.Logger) (*Host, error) {
	negotiator, err := NewNegotiator(s.ManagerURL, s.APIKey)
	if err != nil {
		return nil, err
	}
	if s.Name == "" {
		s.Name = NewName()
	}
	dialer := &dialer{settings: s, negotiator: negotiator, log: log}
	pool := activities.NewPool(dialer, &activities.WorkflowRecorder{Temporal: temporal}, log)
	return &Host{
		Activities: &activities.Host{Name: s.Name, Role: r, Devices: pool, Steps: steps, Checkpoints: temporal},
		negotiator: negotiator,
		pool:       pool,
	}, nil
}

// Queue returns the host's own task queue, with the activities that need a connection that is here.
func (h *Host) Queue() role.Queue {
	a := h.Activities
	return role.Queue{
		Name:    job.HostTaskQueue(a.Role, a.Name),
		Options: worker.Options{DisableWorkflowWorker: true},
		Register: func(r worker.Registry) {
			activities.Register(r, job.Connect, a.Connect) // a workflow whose receipts are late asks for it here
			activities.Register(r, job.Send, a.Send)
			activities.Register(r, job.Disconnect, a.Disconnect)
			if a.Steps != nil {
				activities.Register(r, job.RunStep, a.RunStep)
			}
		},
	}
}

// Close closes all device connections.
func (h *Host) Close() {
	h.pool.Shutdown()
	h.negotiator.Close()
}

// dialer connects devices over MQTT.
type dialer struct {
	settings   Settings
	negotiator *Negotiator
	log        *slog.Logger
}

// Dial implements activities.Dialer.
func (d *dialer) Dial(ctx context.Context, deviceID string, handle func(context.Context, job.Message) error) (activities.Connection, error) {
	c, err := iotdevice.Dial(ctx, "", iotdevice.Options{
		Addr:    d.settings.MQTTAddr,
		RootCAs: d.settings.RootCAs,
		Handle:  handle,
		Logger:  d.log,
		ConnectionString: func(ctx context.Context) (string, error) {
			return d.negotiator.ConnectionString(ctx, deviceID)
		},
	})
	if err != nil {
		return nil, err
	}
	return connection{c}, nil
}

// connection makes Close of a device client bounded by itself.
type connection struct {
	*iotdevice.Client
}

// Close implements activities.Connection.
func (c connection) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return c.Client.Close(ctx)
}
