package hub

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// EventsEndpoint is the name of the built-in endpoint in the configuration of
// routes (IoT Hub docs: "Use IoT Hub message routing").
const EventsEndpoint = "events"

// Route leads the device-to-cloud messages of a hub to an endpoint.
type Route struct {
	Name string
	// Endpoint is a queue or topic; nil means the built-in endpoint.
	Endpoint Endpoint
}

// Endpoint is where a route can lead to: a queue or topic without duplicate
// detection.
type Endpoint interface {
	Name() string
	Stage(tx *broker.Tx, msgs ...*amqp.Message) error
}

// endpoints returns the endpoints of all routes, each once: a message goes to
// an endpoint once, however many routes lead there. All routes match every
// message, so the fallback route is for a hub without routes.
func endpoints(opts Options) []Endpoint {
	var all []Endpoint
	seen := make(map[Endpoint]bool)
	for _, r := range opts.Routes {
		if !seen[r.Endpoint] {
			seen[r.Endpoint] = true
			all = append(all, r.Endpoint)
		}
	}
	if len(all) == 0 && opts.FallbackRoute {
		all = append(all, nil)
	}
	return all
}

// Publish takes a device-to-cloud message: it stamps it and stores it at all
// endpoints that a route leads to, and returns when it is there.
//
// The message carries the system properties that the device set in Properties,
// its IDs as text; PropertyCreationTime and PropertySchema among the
// ApplicationProperties; the Annotation constants among the Annotations. The hub
// takes the message over.
//
// Errors: CodeMessageTooLarge, CodeServiceUnavailable when an endpoint is full,
// and the reason of a session that has ended.
func (s *Session) Publish(ctx context.Context, m *amqp.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := make(chan error, 1)
	s.PublishAsync(m, func(err error) { result <- err })
	return <-result
}

// PublishAsync is Publish that calls done with the result, possibly before it
// returns. Messages of one session keep the order of the calls, so a front end
// need not wait for one message before it takes the next.
func (s *Session) PublishAsync(m *amqp.Message, done func(error)) {
	s.PublishBatchAsync([]*amqp.Message{m}, done)
}

// PublishBatch is Publish of several messages, of which all are stored or none.
// Together they may be as large as one message; CodeMessageTooLarge otherwise.
func (s *Session) PublishBatch(ctx context.Context, batch []*amqp.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := make(chan error, 1)
	s.PublishBatchAsync(batch, func(err error) { result <- err })
	return <-result
}

// PublishBatchAsync is PublishBatch that calls done with the result, possibly
// before it returns. It keeps the order like PublishAsync.
func (s *Session) PublishBatchAsync(batch []*amqp.Message, done func(error)) {
	if err := s.admitD2C(batch); err != nil {
		done(err)
		return
	}
	s.Touch()
	h := s.principal.hub
	if h.repeat(OpD2C, s.principal.Target) {
		batch = slices.Concat(batch, batch)
	}
	tx := broker.NewTx(h.store)
	for _, m := range batch {
		if err := s.stage(tx, m); err != nil {
			tx.Abort()
			done(translate(err, CodeServiceUnavailable))
			return
		}
	}
	tx.CommitAsync(func(err error) { done(translate(err, CodeServiceUnavailable)) })
}

// admitD2C checks whether the session may send messages now.
func (s *Session) admitD2C(batch []*amqp.Message) error {
	if err := s.Err(); err != nil {
		return err
	}
	h, from := s.principal.hub, s.principal.Target
	if len(batch) == 1 { // nearly always, so without making a slice
		n := broker.MessageSize(batch[0])
		if n > MaxD2CMessageSize {
			return tooLarge(n)
		}
		return h.admit(OpD2C, from, n)
	}
	parts, total := make([]Part, len(batch)), 0
	for i, m := range batch {
		parts[i] = Part{from, broker.MessageSize(m)}
		total += parts[i].Bytes
	}
	if total > MaxD2CMessageSize {
		return tooLarge(total)
	}
	return h.admitAll(OpD2C, parts)
}

func tooLarge(bytes int) error {
	return Errorf(CodeMessageTooLarge, "message has %d bytes of at most %d", bytes, MaxD2CMessageSize)
}

func (s *Session) stage(tx *broker.Tx, m *amqp.Message) error {
	h, from := s.principal.hub, s.principal.Target
	for _, endpoint := range h.endpoints {
		var err error
		if endpoint == nil {
			err = h.opts.Events.Stage(tx, broker.AppendOptions{PartitionKey: from.DeviceID}, s.forEvents(m))
		} else {
			err = endpoint.Stage(tx, s.forQueue(m))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// newStamps returns what the hub stamps on all messages of the session.
func (s *Session) newStamps() map[string]any {
	from := s.principal.Target
	stamps := map[string]any{
		PropertyDeviceID:     from.DeviceID,
		PropertyGenerationID: s.generation,
		PropertyAuthMethod:   s.authMethod,
	}
	if from.ModuleID != "" {
		stamps[PropertyModuleID] = from.ModuleID
	}
	return stamps
}

// forQueue returns the message as a Service Bus endpoint gets it.
func (s *Session) forQueue(m *amqp.Message) *amqp.Message {
	stamped := s.bare(m)
	maps.Copy(stamped.ApplicationProperties, m.Annotations)
	maps.Copy(stamped.ApplicationProperties, s.stamps)
	return stamped
}

// forEvents returns the message as the built-in endpoint gets it.
func (s *Session) forEvents(m *amqp.Message) *amqp.Message {
	stamped := s.bare(m)
	stamped.Annotations = make(map[string]any, len(m.Annotations)+len(s.stamps)+2)
	maps.Copy(stamped.Annotations, m.Annotations)
	maps.Copy(stamped.Annotations, s.stamps)
	stamped.Annotations[PropertyEnqueuedTime] = time.Now().UTC()
	stamped.Annotations[PropertyMessageSource] = sourceTelemetry
	return stamped
}

// bare copies what both kinds of endpoint get: one data section, the device's
// properties, and its application properties without those that are the hub's.
func (s *Session) bare(m *amqp.Message) *amqp.Message {
	c := &amqp.Message{
		Properties:            m.Properties,
		ApplicationProperties: make(map[string]any, len(m.ApplicationProperties)+4),
		Data:                  [][]byte{m.Body()},
	}
	if c.Properties == nil || c.Properties.To == nil {
		var p amqp.Properties
		if c.Properties != nil {
			p = *c.Properties
		}
		p.To = &s.events
		c.Properties = &p
	}
	for name, value := range m.ApplicationProperties {
		if !reserved(name) {
			c.ApplicationProperties[name] = value
		}
	}
	return c
}
