package amqpnodes

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// Names on links of Event Hubs (azeventhubs v2.0.2 partition_client.go).
const (
	propEpoch      = "com.microsoft:epoch" // the owner level
	filterSelector = "apache.org:selector-filter:string"
	annotOffset    = "x-opt-offset"
	// capLatest asks for what is newest in the partition with each event (Event
	// Hubs SDK for JavaScript 6.0, option trackLastEnqueuedEventProperties).
	capLatest amqp.Symbol = "com.microsoft:enable-receiver-runtime-metric"
)

// eventBatch is how many events are read ahead of the peer's credit.
const eventBatch = 100

// eventSource gives out the events of a partition. A goroutine of its own waits
// for them; reading ahead takes nothing away from others.
type eventSource struct {
	permit
	reader *broker.Reader
	latest func() (broker.PartitionProperties, error) // nil if nobody asked for it
	cancel context.CancelFunc
	wg     sync.WaitGroup
	more   chan struct{} // asks for the next batch

	mu     sync.Mutex
	events []*broker.Event
	err    error
	ready  chan struct{}
}

func (h *handler) openConsumer(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Source, error) {
	log, g, err := h.admitEvents(addr.entity, addr.path)
	if err != nil {
		return nil, err
	}
	opts, err := readerOptions(addr, a)
	if err != nil {
		return nil, err
	}
	if !log.HasConsumerGroup(opts.ConsumerGroup) {
		return nil, amqp.Errorf(amqp.CondNotFound, "the messaging entity %q could not be found: event hub %q has no such consumer group", opts.ConsumerGroup, log.Name())
	}
	if _, err := log.Partition(opts.PartitionID); err != nil {
		return nil, noPartition(log, opts.PartitionID)
	}
	reader, err := log.OpenReader(opts)
	if errors.Is(err, broker.ErrOwned) {
		// azeventhubs sees a lost partition in a detached link only; after a
		// refused attach it would try again with a new connection (v2.0.2
		// internal/errors.go).
		a.Detach(brokerError(err))
		return silentSource{g}, nil
	}
	if err != nil {
		return nil, brokerError(err)
	}
	// azeventhubs never settles events, and would run out of credit.
	a.Settled = true
	g.watch(a)
	s := newEventSource(ctx, h.receiving(g, addr.entity), reader)
	if slices.Contains(a.DesiredCapabilities, capLatest) {
		a.OfferedCapabilities = []amqp.Symbol{capLatest}
		s.latest = func() (broker.PartitionProperties, error) { return log.Partition(opts.PartitionID) }
	}
	return s, nil
}

// admitEvents finds an event hub and checks the right to read at a path.
func (h *handler) admitEvents(name, path string) (*broker.EventLog, *guard, error) {
	log, builtIn := h.nodes.eventLog(name)
	rights := listenRights
	if builtIn {
		rights = builtInRights
	}
	g, err := h.admit(path, rights...)
	if err != nil {
		return nil, nil, err
	}
	if log == nil {
		return nil, nil, amqp.Errorf(amqp.CondNotFound, "the messaging entity %q could not be found: there is no such event hub", name)
	}
	return log, g, nil
}

func noPartition(log *broker.EventLog, id string) error {
	return amqp.Errorf(condArgumentOutOfRange, "event hub %q has no partition %q; it has %s",
		log.Name(), id, strings.Join(log.PartitionIDs(), ", "))
}

func readerOptions(addr address, a *amqpserver.Attach) (broker.ReaderOptions, error) {
	opts := broker.ReaderOptions{ConsumerGroup: addr.group, PartitionID: addr.partition}
	var err error
	if opts.Start, err = startPosition(a.Filter); err != nil {
		return opts, err
	}
	switch level := a.Properties[propEpoch].(type) {
	case nil:
	case int64:
		opts.OwnerLevel = &level
	default:
		return opts, badArgument(propEpoch, "a long")
	}
	return opts, nil
}

// startPosition reads the selector filter. Without one, reading starts at the
// beginning.
func startPosition(filter map[string]any) (broker.Position, error) {
	f, there := filter[filterSelector]
	if !there {
		return broker.Position{}, nil
	}
	d, _ := f.(amqp.Described)
	expression, ok := d.Value.(string)
	if !ok {
		return broker.Position{}, badArgument(filterSelector, "a described string")
	}
	return parsePosition(expression)
}

// parsePosition reads amqp.annotation.{name} > '{value}', or >=. These are the
// only selectors that Event Hubs clients use (azeventhubs v2.0.2
// partition_client.go; amenzhinsky/iothub v0.9.1 eventhub/client.go).
func parsePosition(expression string) (broker.Position, error) {
	bad := amqp.Errorf(condArgumentError, "start position %q can't be used; write amqp.annotation.{name} > '{value}'", expression)
	name, value, ok := strings.Cut(expression, ">")
	name, isAnnotation := strings.CutPrefix(strings.TrimSpace(name), "amqp.annotation.")
	if !ok || !isAnnotation {
		return broker.Position{}, bad
	}
	value, inclusive := strings.CutPrefix(value, "=")
	value = strings.Trim(strings.TrimSpace(value), "'")
	if name == annotOffset && value == "@latest" {
		return broker.Position{Latest: true}, nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return broker.Position{}, bad
	}
	p := broker.Position{Inclusive: inclusive}
	switch name {
	case annotOffset:
		p.Offset = &n
	case annotSequenceNumber:
		p.SequenceNumber = &n
	case annotEnqueuedTime, "x-opt-enqueuedtimeutc":
		t := time.UnixMilli(n)
		p.EnqueuedTime = &t
	default:
		return broker.Position{}, bad
	}
	return p, nil
}

func newEventSource(ctx context.Context, p permit, r *broker.Reader) *eventSource {
	ctx, cancel := context.WithCancel(ctx)
	s := &eventSource{permit: p, reader: r, cancel: cancel, more: make(chan struct{}, 1), ready: make(chan struct{}, 1)}
	s.wg.Go(func() { s.read(ctx) })
	return s
}

// read fetches a batch each time that the one before has been given out.
func (s *eventSource) read(ctx context.Context) {
	for {
		events, err := s.reader.Next(ctx, eventBatch)
		s.mu.Lock()
		s.events, s.err = events, err
		s.mu.Unlock()
		select {
		case s.ready <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.more:
		}
	}
}

func (s *eventSource) Next(context.Context) (*amqpserver.Outgoing, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, brokerError(s.err)
	}
	if len(s.events) == 0 {
		return nil, nil
	}
	e := s.events[0]
	if s.events = s.events[1:]; len(s.events) == 0 {
		s.more <- struct{}{}
	}
	m := eventMessage(e)
	if s.latest != nil {
		p, err := s.latest()
		if err != nil {
			return nil, brokerError(err)
		}
		m.DeliveryAnnotations = latestAnnotations(p)
	}
	return &amqpserver.Outgoing{Message: m}, nil
}

// latestAnnotations say what is newest in a partition (azure-sdk-for-js, event-hubs
// src/eventData.ts).
func latestAnnotations(p broker.PartitionProperties) map[string]any {
	return map[string]any{
		"last_enqueued_sequence_number":   p.LastEnqueuedSequenceNumber,
		"last_enqueued_offset":            p.LastEnqueuedOffset,
		"last_enqueued_time_utc":          p.LastEnqueuedTime,
		"runtime_info_retrieval_time_utc": time.Now().UTC(),
	}
}

func (s *eventSource) Ready() <-chan struct{} { return s.ready }

func (s *eventSource) Close() {
	s.permit.Close()
	s.cancel()
	s.reader.Close()
	s.wg.Wait()
}

// eventMessage is an event as Event Hubs gives it out (azeventhubs v2.0.2
// event_data.go).
func eventMessage(e *broker.Event) *amqp.Message {
	m := *e.Message
	m.Header, m.DeliveryAnnotations = nil, nil
	m.Annotations = maps.Clone(m.Annotations)
	if m.Annotations == nil {
		m.Annotations = make(map[string]any, 4)
	}
	m.Annotations[annotSequenceNumber] = e.SequenceNumber
	m.Annotations[annotOffset] = e.Offset
	m.Annotations[annotEnqueuedTime] = e.EnqueuedTime
	set(m.Annotations, annotPartitionKey, e.PartitionKey != "", e.PartitionKey)
	return &m
}

// producer takes events for an event hub or one of its partitions.
type producer struct {
	permit
	log       *broker.EventLog
	partition string
}

func (h *handler) openProducer(addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	g, err := h.admit(addr.path, sendRights...)
	if err != nil {
		return nil, err
	}
	log, _ := h.nodes.eventLog(addr.entity)
	if log == nil {
		return nil, amqp.Errorf(amqp.CondNotFound, "the messaging entity %q could not be found: there is no such event hub", addr.entity)
	}
	if addr.partition != "" {
		if _, err := log.Partition(addr.partition); err != nil {
			return nil, noPartition(log, addr.partition)
		}
	}
	a.MaxMessageSize = uint64(log.Options().MaxMessageSize)
	g.watch(a)
	return &producer{h.sending(g, addr.entity), log, addr.partition}, nil
}

func (p *producer) Deliver(_ context.Context, in *amqpserver.Incoming) {
	msgs, err := take(p, in)
	if err != nil {
		in.Reject(err)
		return
	}
	opts := broker.AppendOptions{PartitionID: p.partition}
	// All messages of a batch have the same key.
	opts.PartitionKey, _ = msgs[0].Annotations[annotPartitionKey].(string)
	p.log.AppendAsync(stored(in, brokerError), opts, msgs...)
}
