package broker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Namespace holds entities by name. Names are compared without regard to case.
type Namespace struct {
	store store.Store

	mu     sync.RWMutex
	queues map[string]*Queue
	topics map[string]*Topic
	logs   map[string]*EventLog
}

// NewNamespace returns a namespace without entities, which keep their state in s.
func NewNamespace(s store.Store) *Namespace {
	return &Namespace{
		store:  s,
		queues: make(map[string]*Queue),
		topics: make(map[string]*Topic),
		logs:   make(map[string]*EventLog),
	}
}

// CreateQueue opens a queue in the namespace, with what the store holds of it;
// ErrExists if the name is taken.
func (n *Namespace) CreateQueue(name string, opts QueueOptions) (*Queue, error) {
	opts.identify = true
	return create(n, n.queues, name, func(key string) (*Queue, error) {
		return openQueue(n.store, key, name, opts)
	})
}

// CreateTopic opens a topic in the namespace, as CreateQueue does.
func (n *Namespace) CreateTopic(name string, opts TopicOptions) (*Topic, error) {
	return create(n, n.topics, name, func(key string) (*Topic, error) {
		return openTopic(n.store, key, name, opts)
	})
}

// CreateEventLog opens an event hub in the namespace, as CreateQueue does.
func (n *Namespace) CreateEventLog(name string, opts EventLogOptions) (*EventLog, error) {
	return create(n, n.logs, name, func(key string) (*EventLog, error) {
		return openEventLog(n.store, key, name, opts)
	})
}

// CreateSubscription opens a subscription of a topic in the namespace;
// ErrNotFound if there is no such topic.
func (n *Namespace) CreateSubscription(topic, name string, opts QueueOptions) (*Queue, error) {
	n.mu.RLock()
	t := n.topics[strings.ToLower(topic)]
	n.mu.RUnlock()
	if t == nil {
		return nil, fmt.Errorf("topic %s: %w", topic, ErrNotFound)
	}
	return t.subscribe(name, opts)
}

// create adds an entity to one of the namespace's maps.
func create[E any](n *Namespace, entities map[string]E, name string, open func(key string) (E, error)) (E, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := strings.ToLower(name)
	if n.taken(key) {
		var none E
		return none, fmt.Errorf("entity %s: %w", name, ErrExists)
	}
	e, err := open(key)
	if err == nil {
		entities[key] = e
	}
	return e, err
}

// taken reports whether an entity has the name: all kinds share one space of
// names, because all are reached under one address.
func (n *Namespace) taken(key string) bool {
	return n.queues[key] != nil || n.topics[key] != nil || n.logs[key] != nil
}

// Target is what messages can be sent to: a *Queue or a *Topic.
type Target interface {
	Name() string
	Send(ctx context.Context, msgs ...*amqp.Message) error
	SendAsync(done func(error), msgs ...*amqp.Message)
	Schedule(ctx context.Context, at time.Time, msgs ...*amqp.Message) ([]int64, error)
	CancelScheduled(ctx context.Context, sequenceNumbers ...int64) error
	// MaxMessageSize is the largest message in bytes.
	MaxMessageSize() int
	// Stage adds messages, of any size, to a transaction. An entity with
	// duplicate detection refuses.
	Stage(tx *Tx, msgs ...*amqp.Message) error
}

// Target returns the queue or topic of that name, or ErrNotFound.
func (n *Namespace) Target(name string) (Target, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	key := strings.ToLower(name)
	if q := n.queues[key]; q != nil {
		return q, nil
	}
	if t := n.topics[key]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("queue or topic %q: %w", name, ErrNotFound)
}

// Source returns what can be received from under an address: a queue, or
// topic/Subscriptions/name, either with /$DeadLetterQueue behind it; else
// ErrNotFound.
func (n *Namespace) Source(address string) (*Queue, error) {
	entity, isDeadLetter := cutSuffixFold(address, deadLetterSuffix)
	q, err := n.source(entity)
	if err == nil && isDeadLetter {
		q = q.DeadLetterQueue()
	}
	return q, err
}

func (n *Namespace) source(entity string) (*Queue, error) {
	key := strings.ToLower(entity)
	n.mu.RLock()
	q := n.queues[key]
	topic, sub, _ := strings.Cut(key, strings.ToLower(subscriptionsPath))
	t := n.topics[topic]
	n.mu.RUnlock()
	switch {
	case q != nil:
		return q, nil
	case t != nil:
		return t.Subscription(sub)
	}
	return nil, fmt.Errorf("queue or subscription %q: %w", entity, ErrNotFound)
}

func cutSuffixFold(s, suffix string) (string, bool) {
	n := len(s) - len(suffix)
	if n >= 0 && strings.EqualFold(s[n:], suffix) {
		return s[:n], true
	}
	return s, false
}

// EventLog returns the event hub of that name, or ErrNotFound.
func (n *Namespace) EventLog(name string) (*EventLog, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if l := n.logs[strings.ToLower(name)]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("event hub %q: %w", name, ErrNotFound)
}

// Close closes all entities.
func (n *Namespace) Close() {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, q := range n.queues {
		q.Close()
	}
	for _, t := range n.topics {
		t.close()
	}
	for _, l := range n.logs {
		l.Close()
	}
}
