package emulator

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/quota"
)

// Config says what entities the emulator has. Start takes DefaultConfig without
// one. ReadConfig reads it from a file.
type Config struct {
	Queues    []Queue
	Topics    []Topic
	EventHubs []EventHub
	Hub       Hub

	file string // where it was read from; empty when it was not
}

// Queue is a Service Bus queue (Service Bus docs: "Service Bus queues, topics,
// and subscriptions").
type Queue struct {
	Name string
	Delivery
	// DuplicateWindow is how long a message ID is remembered, to drop messages
	// that repeat it: 20 s to 7 days; 0 switches detection off.
	DuplicateWindow time.Duration

	line int
}

// Delivery is what queues and subscriptions have in common.
type Delivery struct {
	// LockDuration is how long a receiver has a message to itself: 5 s to 5
	// minutes; default 1 minute.
	LockDuration time.Duration
	// MaxDeliveryCount is how often a message is delivered before it is
	// dead-lettered: 1 to 2000; default 10.
	MaxDeliveryCount int
	// DefaultTTL is the longest time to live of a message; 0 means no end.
	DefaultTTL time.Duration
	// DeadLetterOnExpiry keeps expired messages in the dead-letter queue.
	DeadLetterOnExpiry bool
}

// Topic is a Service Bus topic. Its subscriptions get every message.
type Topic struct {
	Name string
	// DefaultTTL is as in Delivery, for all subscriptions.
	DefaultTTL time.Duration
	// DuplicateWindow is as in Queue.
	DuplicateWindow time.Duration
	Subscriptions   []Subscription

	line int
}

// Subscription is a subscription of a topic.
type Subscription struct {
	Name string
	Delivery

	line int
}

// EventHub is an event hub beside the one that is built into the IoT Hub.
type EventHub struct {
	Name string
	// Partitions is their number: 1 to 32; default 4.
	Partitions int
	// ConsumerGroups beside $Default.
	ConsumerGroups []string

	line int
}

// Hub are the properties of the IoT Hub.
type Hub struct {
	// Partitions of the built-in endpoint: 1 to 32; default 4.
	Partitions int
	// ConsumerGroups of the built-in endpoint beside $Default.
	ConsumerGroups []string
	// Retention of the built-in endpoint: 1 to 7 days; default 1 day.
	Retention time.Duration
	// Routes of device-to-cloud messages.
	Routes []Route
	// NoFallbackRoute drops messages that no route takes. Otherwise the
	// built-in endpoint gets them.
	NoFallbackRoute bool
	// CloudToDevice are the properties of the cloud-to-device queues.
	CloudToDevice CloudToDevice
	// Feedback are the properties of the feedback queue.
	Feedback Feedback
	// Tier is the pricing tier whose throttles and daily quota are in force: F1,
	// S1, S2, S3, B1, B2 or B3. Empty means that there are none.
	Tier string
	// Units of the tier; default 1.
	Units int
	// DeviceCertificateAuthorities are files with the certificates, in PEM, of
	// the roots of devices that authenticate by certificate authority.
	DeviceCertificateAuthorities []string

	line                int
	tierLine, unitsLine int
	caLines             []int // of DeviceCertificateAuthorities, if read from a file
}

// units returns the number of units, filled in.
func (h Hub) units() int { return cmp.Or(h.Units, 1) }

// maxJobs is how many scheduled jobs may be under way at a time. The tier has been
// checked.
func (h Hub) maxJobs() int {
	if h.Tier == "" {
		return math.MaxInt
	}
	tier, _ := quota.ParseTier(h.Tier)
	return tier.MaxJobs()
}

// Route leads all device-to-cloud messages to an endpoint.
type Route struct {
	Name string
	// Endpoint is the name of a queue or topic without duplicate detection, or
	// "events" for the built-in endpoint.
	Endpoint string

	line int
}

// CloudToDevice are the properties of all cloud-to-device queues (IoT Hub docs:
// "Send cloud-to-device messages from an IoT hub").
type CloudToDevice struct {
	// DefaultTTL of messages that name no expiry: 1 minute to 2 days; default 1
	// hour.
	DefaultTTL time.Duration
	// MaxDeliveryCount is 1 to 100; default 10.
	MaxDeliveryCount int
	// LockDuration for AMQP and HTTP receivers: 5 s to 5 minutes; default 1
	// minute.
	LockDuration time.Duration
	// CountEveryReturn counts every delivery that ends without settlement, as
	// older documentation says. By default only abandoning counts.
	CountEveryReturn bool
}

// Feedback are the properties of the feedback queue (IoT Hub docs, same page).
type Feedback struct {
	// TTL of feedback that nobody fetches: 1 minute to 2 days; default 1 hour.
	TTL time.Duration
	// MaxDeliveryCount is 1 to 100; default 10.
	MaxDeliveryCount int
	// LockDuration is 5 s to 5 minutes; default 1 minute.
	LockDuration time.Duration
}

// DefaultConfig returns the entities of the job pipeline: queue device-messages,
// topic jobs with subscription jobs, and routes of all device-to-cloud messages
// to that queue and to the built-in endpoint.
func DefaultConfig() *Config {
	return &Config{
		Queues: []Queue{{
			Name:     "device-messages",
			Delivery: Delivery{MaxDeliveryCount: 10, DeadLetterOnExpiry: true},
		}},
		Topics: []Topic{{
			Name:            "jobs",
			DuplicateWindow: broker.DefaultDuplicateWindow,
			Subscriptions: []Subscription{{
				Name:     "jobs",
				Delivery: Delivery{MaxDeliveryCount: 10, DeadLetterOnExpiry: true},
			}},
		}},
		Hub: Hub{Routes: []Route{
			{Name: "device-messages", Endpoint: "device-messages"},
			{Name: "events", Endpoint: hub.EventsEndpoint},
		}},
	}
}

// Names of entities (Service Bus docs: "Service Bus quotas"). Queues and topics
// may have slashes, which set off the parts of a path.
var (
	pathPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$`)
	namePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
)

// Longest names (Service Bus docs: "Service Bus quotas"; Event Hubs docs:
// "Quotas and limits").
const (
	maxPath          = 260
	maxSubscription  = 50
	maxEventHub      = 256
	maxConsumerGroup = 50
)

// reservedNames begin the addresses of the IoT Hub on the same AMQP endpoint.
var reservedNames = []string{"devices", "messages"}

// checker looks for what makes a configuration impossible.
type checker struct {
	file     string
	taken    map[string]string // kind by name in lower case
	problems []error
}

func (c *checker) refuse(line int, format string, args ...any) {
	c.problems = append(c.problems, problem(c.file, line, fmt.Sprintf(format, args...)))
}

// check returns everything that is wrong with the configuration.
func (cfg *Config) check(eventsName string) error {
	c := &checker{file: cfg.file, taken: map[string]string{strings.ToLower(eventsName): "the hub's built-in endpoint"}}
	for _, q := range cfg.Queues {
		c.entity(q.line, "queue", q.Name, pathPattern, maxPath)
		c.delivery(q.line, "queue "+q.Name, q.Delivery)
		c.duration(q.line, "duplicate window of queue "+q.Name, q.DuplicateWindow, minDuplicateWindow, maxDuplicateWindow)
	}
	for _, t := range cfg.Topics {
		c.entity(t.line, "topic", t.Name, pathPattern, maxPath)
		c.duration(t.line, "duplicate window of topic "+t.Name, t.DuplicateWindow, minDuplicateWindow, maxDuplicateWindow)
		c.subscriptions(t)
	}
	for _, e := range cfg.EventHubs {
		c.entity(e.line, "event hub", e.Name, namePattern, maxEventHub)
		c.partitions(e.line, "event hub "+e.Name, e.Partitions)
		c.groups(e.line, "event hub "+e.Name, e.ConsumerGroups)
	}
	c.hub(cfg)
	return errors.Join(c.problems...)
}

// Bounds of durations (Service Bus docs: "Duplicate detection", "Message
// transfers, locks, and settlement"; IoT Hub docs: "Send cloud-to-device
// messages from an IoT hub").
const (
	minDuplicateWindow = 20 * time.Second
	maxDuplicateWindow = 7 * 24 * time.Hour
	minLock            = 5 * time.Second
	maxLock            = 5 * time.Minute
	minHubTTL          = time.Minute
	maxHubTTL          = 2 * 24 * time.Hour
	minRetention       = 24 * time.Hour
	maxRetention       = 7 * 24 * time.Hour
)

// Bounds of delivery counts (same pages).
const (
	maxDeliveries    = 2000
	maxHubDeliveries = 100
)

func (c *checker) entity(line int, kind, name string, pattern *regexp.Regexp, longest int) {
	first, _, _ := strings.Cut(strings.ToLower(name), "/")
	switch {
	case len(name) > longest || !pattern.MatchString(name):
		c.refuse(line, "%s has the name %q; a name has 1 to %d letters, digits, dots, dashes and underscores, and a letter or digit at both ends", kind, name, longest)
		return
	case strings.Contains(strings.ToLower(name), "/subscriptions/"):
		c.refuse(line, "%s %s has a name that is the address of a subscription", kind, name)
	}
	for _, reserved := range reservedNames {
		if first == reserved {
			c.refuse(line, "%s %s has a name that is an address of the hub", kind, name)
		}
	}
	if other, taken := c.taken[strings.ToLower(name)]; taken {
		c.refuse(line, "%s %s has the name of %s", kind, name, other)
	}
	c.taken[strings.ToLower(name)] = "another " + kind
}

func (c *checker) subscriptions(t Topic) {
	seen := make(map[string]bool)
	for _, s := range t.Subscriptions {
		what := fmt.Sprintf("subscription %s of topic %s", s.Name, t.Name)
		if len(s.Name) > maxSubscription || !namePattern.MatchString(s.Name) {
			c.refuse(s.line, "topic %s has a subscription with the name %q; a name has 1 to %d letters, digits, dots, dashes and underscores", t.Name, s.Name, maxSubscription)
		}
		if seen[strings.ToLower(s.Name)] {
			c.refuse(s.line, "%s is there twice", what)
		}
		seen[strings.ToLower(s.Name)] = true
		c.delivery(s.line, what, s.Delivery)
	}
}

func (c *checker) delivery(line int, what string, d Delivery) {
	c.duration(line, "lock duration of "+what, d.LockDuration, minLock, maxLock)
	c.number(line, "max delivery count of "+what, d.MaxDeliveryCount, maxDeliveries)
	if d.DefaultTTL < 0 {
		c.refuse(line, "time to live of %s is negative", what)
	}
}

// duration checks a duration of which zero means the default.
func (c *checker) duration(line int, what string, d, least, most time.Duration) {
	if d != 0 && (d < least || d > most) {
		c.refuse(line, "%s is %s and must be from %s to %s", what, d, least, most)
	}
}

// number checks a number from 1 on of which zero means the default.
func (c *checker) number(line int, what string, n, most int) {
	if n < 0 || n > most {
		c.refuse(line, "%s is %d and must be from 1 to %d", what, n, most)
	}
}

func (c *checker) partitions(line int, what string, n int) {
	c.number(line, "number of partitions of "+what, n, broker.MaxPartitions)
}

func (c *checker) groups(line int, what string, groups []string) {
	seen := make(map[string]bool)
	for _, g := range groups {
		switch {
		case strings.EqualFold(g, broker.DefaultConsumerGroup):
			continue // every event hub has it
		case len(g) > maxConsumerGroup || !namePattern.MatchString(g):
			c.refuse(line, "%s has a consumer group with the name %q; a name has 1 to %d letters, digits, dots, dashes and underscores", what, g, maxConsumerGroup)
		case seen[strings.ToLower(g)]:
			c.refuse(line, "consumer group %s of %s is there twice", g, what)
		}
		seen[strings.ToLower(g)] = true
	}
}

func (c *checker) hub(cfg *Config) {
	h := cfg.Hub
	c.partitions(h.line, "the hub", h.Partitions)
	c.groups(h.line, "the hub", h.ConsumerGroups)
	c.duration(h.line, "retention of the hub", h.Retention, minRetention, maxRetention)
	c.duration(h.line, "time to live of cloud-to-device messages", h.CloudToDevice.DefaultTTL, minHubTTL, maxHubTTL)
	c.number(h.line, "max delivery count of cloud-to-device messages", h.CloudToDevice.MaxDeliveryCount, maxHubDeliveries)
	c.duration(h.line, "lock duration of cloud-to-device messages", h.CloudToDevice.LockDuration, minLock, maxLock)
	c.duration(h.line, "time to live of feedback", h.Feedback.TTL, minHubTTL, maxHubTTL)
	c.number(h.line, "max delivery count of feedback", h.Feedback.MaxDeliveryCount, maxHubDeliveries)
	c.duration(h.line, "lock duration of feedback", h.Feedback.LockDuration, minLock, maxLock)
	c.tier(h)
	seen := make(map[string]bool)
	for _, r := range h.Routes {
		if r.Name == "" || seen[strings.ToLower(r.Name)] {
			c.refuse(r.line, "route %q has no name of its own", r.Name)
		}
		seen[strings.ToLower(r.Name)] = true
		c.route(cfg, r)
	}
}

func (c *checker) tier(h Hub) {
	unitsLine := cmp.Or(h.unitsLine, h.tierLine, h.line)
	if h.Tier == "" {
		if h.Units != 0 {
			c.refuse(unitsLine, "Units is %d, but there is no Tier", h.Units)
		}
		return
	}
	tier, err := quota.ParseTier(h.Tier)
	switch {
	case err != nil:
		c.refuse(cmp.Or(h.tierLine, h.line), "%v", err)
	case h.units() < 1 || h.units() > tier.MaxUnits():
		c.refuse(unitsLine, "Units is %d and must be from 1 to %d for tier %s", h.Units, tier.MaxUnits(), tier)
	}
}

// route checks that the endpoint exists and can be one: the cloud shows an
// endpoint with duplicate detection as unreachable (IoT Hub docs: "IoT Hub
// endpoints").
func (c *checker) route(cfg *Config, r Route) {
	if strings.EqualFold(r.Endpoint, hub.EventsEndpoint) {
		return
	}
	window, found := time.Duration(0), false
	for _, q := range cfg.Queues {
		if strings.EqualFold(q.Name, r.Endpoint) {
			window, found = q.DuplicateWindow, true
		}
	}
	for _, t := range cfg.Topics {
		if strings.EqualFold(t.Name, r.Endpoint) {
			window, found = t.DuplicateWindow, true
		}
	}
	switch {
	case !found:
		c.refuse(r.line, "route %s leads to %q, which is neither a queue or topic of this configuration nor %q", r.Name, r.Endpoint, hub.EventsEndpoint)
	case window != 0:
		c.refuse(r.line, "route %s leads to %s, which has duplicate detection on: a hub can't route to it", r.Name, r.Endpoint)
	}
}

// options returns those of a queue or subscription of that name. Faults decide
// which of its messages repeat.
func (d Delivery) options(name string, repeat func(name string) bool) broker.QueueOptions {
	return broker.QueueOptions{
		LockDuration:       d.LockDuration,
		MaxDeliveryCount:   d.MaxDeliveryCount,
		DefaultTTL:         d.DefaultTTL,
		DeadLetterOnExpiry: d.DeadLetterOnExpiry,
		MaxBytes:           maxQueueBytes,
		Repeat:             func() bool { return repeat(name) },
	}
}

// maxQueueBytes is the smallest size that a queue has in the cloud (Service Bus
// docs: "Service Bus quotas"); a sender is told when it is full.
const maxQueueBytes = 1 << 30

// build makes the entities in a namespace.
func (cfg *Config) build(n *broker.Namespace, repeat func(name string) bool) error {
	for _, q := range cfg.Queues {
		opts := q.options(q.Name, repeat)
		opts.DuplicateWindow = q.DuplicateWindow
		if _, err := n.CreateQueue(q.Name, opts); err != nil {
			return err
		}
	}
	for _, t := range cfg.Topics {
		if _, err := n.CreateTopic(t.Name, broker.TopicOptions{DefaultTTL: t.DefaultTTL, DuplicateWindow: t.DuplicateWindow}); err != nil {
			return err
		}
		for _, s := range t.Subscriptions {
			if _, err := n.CreateSubscription(t.Name, s.Name, s.options(t.Name+"/Subscriptions/"+s.Name, repeat)); err != nil {
				return err
			}
		}
	}
	for _, e := range cfg.EventHubs {
		if _, err := n.CreateEventLog(e.Name, broker.EventLogOptions{Partitions: e.Partitions, ConsumerGroups: e.ConsumerGroups}); err != nil {
			return err
		}
	}
	return nil
}

// hubOptions returns the options of a hub in the namespace.
func (cfg *Config) hubOptions(n *broker.Namespace, eventsName string) (hub.Options, error) {
	h := cfg.Hub
	events, err := n.CreateEventLog(eventsName, broker.EventLogOptions{
		Partitions:     cmp.Or(h.Partitions, broker.DefaultPartitions),
		ConsumerGroups: h.ConsumerGroups,
		Retention:      h.Retention,
	})
	if err != nil {
		return hub.Options{}, err
	}
	opts := hub.Options{
		Events:        events,
		FallbackRoute: !h.NoFallbackRoute,
		C2D: hub.C2DOptions{
			TTL:              h.CloudToDevice.DefaultTTL,
			MaxDeliveryCount: h.CloudToDevice.MaxDeliveryCount,
			LockDuration:     h.CloudToDevice.LockDuration,
			CountEveryReturn: h.CloudToDevice.CountEveryReturn,
		},
		Feedback: hub.FeedbackOptions{
			TTL:              h.Feedback.TTL,
			MaxDeliveryCount: h.Feedback.MaxDeliveryCount,
			LockDuration:     h.Feedback.LockDuration,
		},
	}
	for _, r := range h.Routes {
		route := hub.Route{Name: r.Name}
		if !strings.EqualFold(r.Endpoint, hub.EventsEndpoint) {
			if route.Endpoint, err = n.Target(r.Endpoint); err != nil {
				return hub.Options{}, fmt.Errorf("route %s: %w", r.Name, err)
			}
		}
		opts.Routes = append(opts.Routes, route)
	}
	return opts, nil
}

// deviceCAs returns the roots of the configuration together with others, which
// may be nil; nil if there are none at all.
func (cfg *Config) deviceCAs(others *x509.CertPool) (*x509.CertPool, error) {
	files := cfg.Hub.DeviceCertificateAuthorities
	if len(files) == 0 {
		return others, nil
	}
	roots := x509.NewCertPool()
	if others != nil {
		roots = others.Clone()
	}
	for i, file := range files {
		line := 0
		if i < len(cfg.Hub.caLines) {
			line = cfg.Hub.caLines[i]
		}
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, problem(cfg.file, line, "device certificate authority: "+err.Error())
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, problem(cfg.file, line, "device certificate authority: "+file+" holds no certificate in PEM")
		}
	}
	return roots, nil
}
