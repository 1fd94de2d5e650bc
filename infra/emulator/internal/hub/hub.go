// Package hub is an IoT Hub without a network: policies, the identity registry of
// devices and their modules, sessions, device-to-cloud routing, cloud-to-device
// queues, delivery feedback, direct methods, twins and queries of them. The front
// ends put MQTT, AMQP and HTTP around it, and a Gate stands before each operation.
//
// Errors that the hub answers with are of type *Error and carry the hub's code;
// match them with errors.Is and a Code, or turn any error into an answer with
// AsError. Everything that the hub accepts is in the store before the call
// returns.
//
// # Locks
//
// The map of devices has a mutex, and each device two: registry held through a
// whole change of the identity or of a module, the disk included, and mu for its
// fields. A module has a mu of its own. The order is registry, map, mu of the
// device, mu of the module, session, then those of package broker; feedback
// comes last, because the broker calls it with a queue's mutex held.
package hub

import (
	"cmp"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// DefaultName is the host name of a hub that is given none.
const DefaultName = "localhost"

// Defaults of the cloud (IoT Hub docs: "Send cloud-to-device messages from an
// IoT hub").
const (
	DefaultC2DTTL              = time.Hour
	DefaultC2DMaxDeliveryCount = 10
	DefaultC2DLockDuration     = time.Minute
	DefaultFeedbackTTL         = time.Hour
	DefaultFeedbackLock        = time.Minute
	DefaultFeedbackInterval    = 15 * time.Second
)

// Limits of the cloud (IoT Hub docs: "IoT Hub quotas and throttling").
const (
	// MaxC2DMessageSize is the largest cloud-to-device message in bytes, with
	// properties.
	MaxC2DMessageSize = 64 << 10
	// MaxD2CMessageSize is the largest device-to-cloud message in bytes, with
	// properties.
	MaxD2CMessageSize = 256 << 10
	// MaxC2DQueueDepth is how many messages may wait for a device.
	MaxC2DQueueDepth = 50
)

// Options describe a hub.
type Options struct {
	// Name is the hub's host name; default localhost.
	Name string
	// Events is the built-in endpoint; required.
	Events *broker.EventLog
	// Routes say where device-to-cloud messages go.
	Routes []Route
	// FallbackRoute sends what no route took to the built-in endpoint.
	FallbackRoute bool
	// C2D are the properties of the cloud-to-device queues.
	C2D C2DOptions
	// Feedback are the properties of the feedback queue.
	Feedback FeedbackOptions
	// DeviceCAs are the roots of devices that authenticate by certificate
	// authority; nil means that there are none.
	DeviceCAs *x509.CertPool
	// Gate may refuse operations; nil admits all.
	Gate Gate
	// Meter counts what operations answer; nil means that nobody does.
	Meter Meter
	// Logger gets what an operator wants to know; nil means none.
	Logger *slog.Logger
}

// C2DOptions are the properties of all cloud-to-device queues.
type C2DOptions struct {
	// TTL of a message that sets no expiry; default 1 hour.
	TTL time.Duration
	// MaxDeliveryCount is 1 to 100; default 10.
	MaxDeliveryCount int
	// LockDuration for AMQP and HTTP receivers; default 1 minute.
	LockDuration time.Duration
	// CountEveryReturn counts each delivery that ends without settlement. By
	// default only an explicit abandon counts, as the documentation of 2026
	// says; older ones say otherwise.
	CountEveryReturn bool
}

// FeedbackOptions are the properties of the feedback queue.
type FeedbackOptions struct {
	// TTL of a batch; default 1 hour.
	TTL time.Duration
	// MaxDeliveryCount is 1 to 100; default 10.
	MaxDeliveryCount int
	// LockDuration is 5 s to 5 min; default 1 minute.
	LockDuration time.Duration
	// Interval is how long a record waits for others before its batch is
	// delivered, if there are not 64 before; default 15 s.
	Interval time.Duration
}

func (o Options) withDefaults() Options {
	o.Name = cmp.Or(o.Name, DefaultName)
	o.C2D.TTL = cmp.Or(o.C2D.TTL, DefaultC2DTTL)
	o.C2D.MaxDeliveryCount = cmp.Or(o.C2D.MaxDeliveryCount, DefaultC2DMaxDeliveryCount)
	o.C2D.LockDuration = cmp.Or(o.C2D.LockDuration, DefaultC2DLockDuration)
	o.Feedback.TTL = cmp.Or(o.Feedback.TTL, DefaultFeedbackTTL)
	o.Feedback.MaxDeliveryCount = cmp.Or(o.Feedback.MaxDeliveryCount, DefaultC2DMaxDeliveryCount)
	o.Feedback.LockDuration = cmp.Or(o.Feedback.LockDuration, DefaultFeedbackLock)
	o.Feedback.Interval = cmp.Or(o.Feedback.Interval, DefaultFeedbackInterval)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Hub is safe for concurrent use.
type Hub struct {
	opts      Options
	store     store.Store
	log       *slog.Logger
	policies  map[string]sas.Policy
	endpoints []Endpoint // of the routes, each once; nil is the built-in one
	feedback  *feedback
	connected atomic.Int64
	ticks     atomic.Int64 // generation ID given last

	mu      sync.RWMutex
	devices map[string]*device
	order   []*device // the devices by ID; nil when nobody has asked since changes
	changes uint64    // of devices
	closed  bool
}

// Open returns a hub with what the store holds of it.
func Open(s store.Store, opts Options) (*Hub, error) {
	if opts.Events == nil {
		return nil, errors.New("a hub needs a built-in endpoint for events")
	}
	h := &Hub{
		opts:    opts.withDefaults(),
		store:   s,
		devices: make(map[string]*device),
	}
	h.log = h.opts.Logger
	h.endpoints = endpoints(h.opts)
	var err error
	if h.policies, err = openPolicies(s); err != nil {
		return nil, err
	}
	if h.feedback, err = openFeedback(s, h.opts.Name, h.opts.Feedback); err != nil {
		return nil, err
	}
	if err = h.loadDevices(); err == nil {
		err = h.openStoredQueues()
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Name returns the hub's host name.
func (h *Hub) Name() string { return h.opts.Name }

// Events returns the built-in endpoint.
func (h *Hub) Events() *broker.EventLog { return h.opts.Events }

// Feedback returns the queue of feedback batches, each a message as the hub
// sends it to receivers of /messages/serviceBound/feedback.
func (h *Hub) Feedback() *broker.Queue { return h.feedback.queue }

// Close ends all sessions and closes the hub's queues. Afterwards no device can
// connect.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	devices := make([]*device, 0, len(h.devices))
	for _, d := range h.devices {
		devices = append(devices, d)
	}
	h.mu.Unlock()
	for _, d := range devices {
		d.close()
	}
	h.feedback.close()
}
