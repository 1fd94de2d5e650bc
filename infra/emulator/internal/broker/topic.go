package broker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// subscriptionsPath stands between a topic and a subscription in addresses
// (Service Bus docs: "Service Bus queues, topics, and subscriptions").
const subscriptionsPath = "/Subscriptions/"

// TopicOptions are the properties of a topic.
type TopicOptions struct {
	// DefaultTTL is the longest time to live; 0 means none.
	DefaultTTL time.Duration
	// DuplicateWindow is as in QueueOptions, for all subscriptions together.
	DuplicateWindow time.Duration
	// MaxMessageSize is the largest message in bytes; default 256 KiB.
	MaxMessageSize int
}

// Topic copies each message to all its subscriptions.
type Topic struct {
	name   string
	prefix string
	opts   TopicOptions
	store  store.Store
	sendMu sync.Mutex // as in Queue

	mu      sync.Mutex // guards all below; comes before a subscription's
	last    int64      // sequence number given last
	counter counter    // of last
	ids     duplicates
	subs    map[string]*Queue // by name in lower case
}

func openTopic(s store.Store, key, name string, opts TopicOptions) (*Topic, error) {
	opts.MaxMessageSize = cmp.Or(opts.MaxMessageSize, DefaultMaxMessageSize)
	prefix := prefixOf("t", key)
	t := &Topic{
		name:    name,
		prefix:  prefix,
		opts:    opts,
		store:   s,
		counter: counter{store: s, key: prefix + keyCounter},
		ids:     duplicates{window: opts.DuplicateWindow, prefix: prefix},
		subs:    make(map[string]*Queue),
	}
	err := s.Load(prefix, func(key string, value []byte) error {
		suffix := key[len(prefix):]
		if strings.HasPrefix(suffix, keyIdentity) {
			return t.ids.load(suffix[len(keyIdentity):], value)
		}
		d := decoder{rest: value}
		t.last = d.int()
		t.counter.stored = t.last
		return d.err
	})
	if err != nil {
		return nil, fmt.Errorf("topic %s: %w", name, err)
	}
	t.ids.finishLoad(s)
	return t, nil
}

// Name returns the topic's name.
func (t *Topic) Name() string { return t.name }

// Options returns the topic's properties, defaults filled in.
func (t *Topic) Options() TopicOptions { return t.opts }

// MaxMessageSize is the largest message in bytes.
func (t *Topic) MaxMessageSize() int { return t.opts.MaxMessageSize }

// Subscription returns a subscription by name, or ErrNotFound.
func (t *Topic) Subscription(name string) (*Queue, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q := t.subs[strings.ToLower(name)]; q != nil {
		return q, nil
	}
	return nil, fmt.Errorf("subscription %s of topic %s: %w", name, t.name, ErrNotFound)
}

// subscribe opens a subscription. What the topic limits, it limits there too.
func (t *Topic) subscribe(name string, opts QueueOptions) (*Queue, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	path := t.name + subscriptionsPath + name
	if t.subs[strings.ToLower(name)] != nil {
		return nil, fmt.Errorf("subscription %s: %w", path, ErrExists)
	}
	if t.opts.DefaultTTL > 0 && (opts.DefaultTTL == 0 || opts.DefaultTTL > t.opts.DefaultTTL) {
		opts.DefaultTTL = t.opts.DefaultTTL
	}
	opts.MaxMessageSize = t.opts.MaxMessageSize
	opts.DuplicateWindow = 0 // the topic's business
	opts.subscription = true
	q, err := openQueue(t.store, strings.ToLower(path), path, opts)
	if err == nil {
		t.subs[strings.ToLower(name)] = q
		t.last = max(t.last, q.highestEnqueued()) // see Queue.load
	}
	return q, err
}

// Send is as Queue.Send. Without subscriptions the message is accepted and lost.
func (t *Topic) Send(ctx context.Context, msgs ...*amqp.Message) error {
	return wait(ctx, func(done func(error)) { t.SendAsync(done, msgs...) })
}

// SendAsync is Send that calls done with the result.
func (t *Topic) SendAsync(done func(error), msgs ...*amqp.Message) {
	if _, err := t.send(done, time.Time{}, msgs); err != nil {
		done(err)
	}
}

// Schedule is as Queue.Schedule; the numbers are the topic's.
func (t *Topic) Schedule(ctx context.Context, at time.Time, msgs ...*amqp.Message) ([]int64, error) {
	var seqs []int64
	err := wait(ctx, func(done func(error)) {
		var err error
		if seqs, err = t.send(done, at, msgs); err != nil {
			done(err)
		}
	})
	return seqs, err
}

// send stages and commits. If it returns an error, done is never called.
func (t *Topic) send(done func(error), at time.Time, msgs []*amqp.Message) ([]int64, error) {
	if err := t.ids.check(t.name, msgs); err != nil {
		return nil, err
	}
	if err := checkSizes(t.name, t.opts.MaxMessageSize, msgs); err != nil {
		return nil, err
	}
	identify(msgs)
	tx := NewTx(t.store)
	if t.ids.window > 0 && t.store.Durable() {
		t.sendMu.Lock()
		defer t.sendMu.Unlock()
	}
	seqs, err := t.stage(tx, at, msgs)
	if err != nil {
		tx.Abort()
		return nil, err
	}
	tx.CommitAsync(done)
	return seqs, nil
}

// Stage is as Queue.Stage.
func (t *Topic) Stage(tx *Tx, msgs ...*amqp.Message) error {
	if t.ids.window > 0 {
		return fmt.Errorf("topic %s %w", t.name, errStageDuplicates)
	}
	identify(msgs)
	_, err := t.stage(tx, time.Time{}, msgs)
	return err
}

// stage adds messages to all subscriptions. On an error, the caller aborts tx.
func (t *Topic) stage(tx *Tx, at time.Time, msgs []*amqp.Message) ([]int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fresh := t.ids.filter(tx, time.Now(), msgs)
	if len(fresh) == 0 {
		return make([]int64, len(msgs)), nil
	}
	first := t.last + 1
	for _, q := range t.subs {
		if _, err := q.stage(tx, at, first, fresh); err != nil {
			t.ids.forget(fresh)
			return nil, err
		}
	}
	t.last += int64(len(fresh))
	last := t.last
	t.counter.put(tx, last)
	tx.OnCommit(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.counter.committed(last)
	})
	return t.numbers(msgs, fresh, first), nil
}

// numbers has one sequence number for each message, 0 for those dropped.
func (t *Topic) numbers(msgs, fresh []*amqp.Message, first int64) []int64 {
	seqs := make([]int64, len(msgs))
	for i, m := range msgs {
		if len(fresh) > 0 && fresh[0] == m {
			seqs[i] = first
			first, fresh = first+1, fresh[1:]
		}
	}
	return seqs
}

// CancelScheduled is as Queue.CancelScheduled, with the numbers of Schedule.
func (t *Topic) CancelScheduled(ctx context.Context, sequenceNumbers ...int64) error {
	t.mu.Lock()
	subs := slices.Collect(maps.Values(t.subs))
	t.mu.Unlock()
	copies := make(map[*Queue][]int64) // sequence numbers in the subscriptions
	for _, n := range sequenceNumbers {
		found := false
		for _, q := range subs {
			if seq, ok := q.findScheduled(n); ok {
				copies[q] = append(copies[q], seq)
				found = true
			}
		}
		if !found {
			return fmt.Errorf("scheduled message %d of topic %s: %w", n, t.name, ErrNotFound)
		}
	}
	tx := NewTx(t.store)
	for q, seqs := range copies {
		q.stageDrop(tx, seqs)
	}
	return tx.Commit(context.WithoutCancel(ctx))
}

// close closes all subscriptions.
func (t *Topic) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range t.subs {
		q.Close()
	}
}
