package amqpnodes

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// filterSession is the filter of a receiver that wants a session (azservicebus
// v1.11 session_receiver.go).
const filterSession = "com.microsoft:session-filter"

// queueSource gives out the messages of a queue under peek-lock. For links that
// receive and delete, the server settles a delivery when it has been sent: that
// completes it.
type queueSource struct {
	permit
	queue    *broker.Queue
	consumer *broker.Consumer
	// present makes the message that the peer gets.
	present func(*broker.Delivery) *amqp.Message
	// decide turns an outcome into what happens to the message.
	decide func(amqp.DeliveryState) broker.Settlement
}

func (h *handler) openQueue(addr address, a *amqpserver.Attach) (amqpserver.Source, error) {
	g, err := h.admit(addr.entity, listenRights...)
	if err != nil {
		return nil, err
	}
	queue, err := h.queue(addr.entity)
	if err != nil {
		return nil, err
	}
	if _, ok := a.Filter[filterSession]; ok {
		return nil, amqp.Errorf(amqp.CondNotAllowed, "%q has no sessions; receive from it without a session ID", addr.entity)
	}
	a.ReplyFilter = nil // no other filter has an effect
	g.watch(a)
	present := serviceBusMessage
	if a.Settled {
		present = deletedMessage
	}
	return newQueueSource(h.receiving(g, addr.entity), queue, present, serviceBusSettlement), nil
}

func newQueueSource(p permit, q *broker.Queue, present func(*broker.Delivery) *amqp.Message, decide func(amqp.DeliveryState) broker.Settlement) *queueSource {
	return &queueSource{
		permit:   p,
		queue:    q,
		consumer: q.NewConsumer(broker.ConsumerOptions{Mode: broker.PeekLock}),
		present:  present,
		decide:   decide,
	}
}

func (s *queueSource) Next(ctx context.Context) (*amqpserver.Outgoing, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	ds, err := s.consumer.TryReceive(ctx, 1)
	if err != nil {
		return nil, brokerError(err)
	}
	if len(ds) == 0 {
		return nil, nil
	}
	return &amqpserver.Outgoing{
		Message: s.present(ds[0]),
		Tag:     lockTag(ds[0].LockToken),
		Settler: &lockedMessage{source: s, token: ds[0].LockToken},
	}, nil
}

func (s *queueSource) Ready() <-chan struct{} { return s.consumer.Ready() }

// Close leaves the locks of unsettled messages in force: azservicebus may settle
// them over $management after the link is gone.
func (s *queueSource) Close() {
	s.permit.Close()
	s.consumer.Close()
}

// lockedMessage settles one delivery.
type lockedMessage struct {
	source *queueSource
	token  amqp.UUID
}

func (m *lockedMessage) Settle(outcome amqp.DeliveryState, done func(amqp.DeliveryState)) {
	s := m.source
	s.queue.SettleAsync(m.token, s.decide(outcome), func(err error) {
		done(settled(outcome, err))
	})
}

// settled is the state that confirms an outcome. A rejection is confirmed
// without its error: azservicebus would take that for the result of the call.
func settled(outcome amqp.DeliveryState, err error) amqp.DeliveryState {
	if err != nil {
		e, ok := brokerError(err).(*amqp.Error)
		if !ok {
			e = amqp.Errorf(amqp.CondInternalError, "internal error")
		}
		return &amqp.Rejected{Error: e}
	}
	if _, ok := outcome.(*amqp.Rejected); ok {
		return &amqp.Rejected{}
	}
	return outcome
}

// Return gives back a message that was not sent. If its lock was lost meanwhile,
// it is back already.
func (m *lockedMessage) Return() {
	m.source.queue.SettleAsync(m.token, broker.Settlement{Action: broker.Release}, func(error) {})
}

// lockTag is a lock token as a delivery tag: in the byte order of a .NET GUID,
// which azservicebus swaps back (v1.11 message.go, lockTokenFromMessageTag).
func lockTag(t amqp.UUID) []byte {
	return []byte{
		t[3], t[2], t[1], t[0], t[5], t[4], t[7], t[6],
		t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15],
	}
}

// serviceBusSettlement reads outcomes as azservicebus v1.11 sends them
// (receiver.go, messageSettler.go).
func serviceBusSettlement(outcome amqp.DeliveryState) broker.Settlement {
	switch o := outcome.(type) {
	case *amqp.Accepted:
		return broker.Settlement{Action: broker.Complete}
	case *amqp.Modified:
		if o.UndeliverableHere {
			return broker.Settlement{Action: broker.Defer, Properties: o.Annotations}
		}
		// Abandoning counts although delivery-failed is not set.
		return broker.Settlement{Action: broker.Abandon, Properties: o.Annotations}
	case *amqp.Rejected:
		return deadLetter(o.Error)
	}
	return broker.Settlement{Action: broker.Release}
}

// deadLetter takes reason and description from the error's info. Other clients
// than the vendor's put them into the error itself.
func deadLetter(e *amqp.Error) broker.Settlement {
	s := broker.Settlement{Action: broker.DeadLetter}
	if e == nil {
		return s
	}
	s.Description = e.Description
	if e.Condition != condDeadLetter {
		s.Reason = string(e.Condition)
	}
	s.Properties = maps.Clone(e.Info)
	takeString(s.Properties, broker.PropertyDeadLetterReason, &s.Reason)
	takeString(s.Properties, broker.PropertyDeadLetterDescription, &s.Description)
	return s
}

// takeString moves a string out of a map.
func takeString(m map[string]any, key string, dst *string) {
	if v, ok := m[key].(string); ok {
		*dst = v
	}
	delete(m, key)
}

// Annotations of received messages (azservicebus v1.11 message.go). Their types
// matter: the client panics on any other.
const (
	annotSequenceNumber        = "x-opt-sequence-number"
	annotEnqueueSequenceNumber = "x-opt-enqueue-sequence-number"
	annotEnqueuedTime          = "x-opt-enqueued-time"
	annotLockedUntil           = "x-opt-locked-until"
	annotScheduledTime         = "x-opt-scheduled-enqueue-time"
	annotPartitionKey          = "x-opt-partition-key"
	annotDeadLetterSource      = "x-opt-deadletter-source"
	annotMessageState          = "x-opt-message-state"
	annotLockToken             = "x-opt-lock-token"
)

// serviceBusMessage is a message as Service Bus gives it out. Header and
// properties are always there: without both, azservicebus shows a delivery
// count of 0.
func serviceBusMessage(d *broker.Delivery) *amqp.Message {
	m := *d.Message
	m.Header = header(d)
	if m.Properties == nil {
		m.Properties = &amqp.Properties{}
	}
	m.Annotations = serviceBusAnnotations(d)
	m.DeliveryAnnotations = nil
	m.ApplicationProperties = textProperties(m.ApplicationProperties,
		broker.PropertyDeadLetterReason, broker.PropertyDeadLetterDescription)
	return &m
}

// deletedMessage is one that goes to a link which receives and deletes: its lock
// is no business of the peer's.
func deletedMessage(d *broker.Delivery) *amqp.Message {
	free := *d
	free.LockedUntil = time.Time{}
	return serviceBusMessage(&free)
}

func header(d *broker.Delivery) *amqp.Header {
	h := &amqp.Header{Durable: true, Priority: amqp.DefaultPriority, DeliveryCount: d.DeliveryCount}
	if from := d.Message.Header; from != nil {
		h.Priority, h.TTL = from.Priority, from.TTL
	}
	if !d.ExpiresAt.IsZero() {
		h.TTL = d.ExpiresAt.Sub(d.EnqueuedTime)
	}
	return h
}

func serviceBusAnnotations(d *broker.Delivery) map[string]any {
	a := maps.Clone(d.Message.Annotations)
	if a == nil {
		a = make(map[string]any, 6)
	}
	a[annotSequenceNumber] = d.SequenceNumber
	a[annotEnqueueSequenceNumber] = d.EnqueuedSequenceNumber
	a[annotEnqueuedTime] = d.EnqueuedTime
	a[annotMessageState] = int32(d.State)
	set(a, annotLockedUntil, !d.LockedUntil.IsZero(), d.LockedUntil)
	set(a, annotScheduledTime, !d.ScheduledTime.IsZero(), d.ScheduledTime)
	set(a, annotDeadLetterSource, d.DeadLetterSource != "", d.DeadLetterSource)
	if _, ok := a[annotPartitionKey].(string); !ok {
		delete(a, annotPartitionKey)
	}
	return a
}

// set sets an entry or, where there is no value, removes what a sender put
// there.
func set(m map[string]any, key string, there bool, value any) {
	if there {
		m[key] = value
	} else {
		delete(m, key)
	}
}

// textProperties makes some properties strings, if they are there.
func textProperties(props map[string]any, names ...string) map[string]any {
	cloned := false
	for _, name := range names {
		v, there := props[name]
		if _, ok := v.(string); !there || ok {
			continue
		}
		if !cloned {
			props, cloned = maps.Clone(props), true
		}
		props[name] = fmt.Sprint(v)
	}
	return props
}
