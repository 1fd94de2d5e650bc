package broker

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// ConsumerOptions say how a consumer receives.
type ConsumerOptions struct {
	Mode Mode
	// HoldLocks makes locks last until they are settled or the consumer
	// closes, which gives them back, instead of for the lock duration.
	HoldLocks bool
	// LockDuration is that of the messages that this consumer receives, until
	// their locks are renewed; 0 means the queue's.
	LockDuration time.Duration
	// Notify, if not nil, is called whenever Ready signals, for those who have
	// no goroutine to wait there. It must neither block nor call the queue.
	Notify func()
}

// Consumer receives from a queue, competing with the queue's other consumers.
// One goroutine uses it, apart from Close.
type Consumer struct {
	queue *Queue
	opts  ConsumerOptions
	ready chan struct{}

	// guarded by the queue's mutex
	idle   bool // in the queue's list of idle consumers
	closed bool
	held   map[*entry]struct{}
}

// NewConsumer returns a consumer, to be closed by the caller.
func (q *Queue) NewConsumer(opts ConsumerOptions) *Consumer {
	c := &Consumer{queue: q, opts: opts, ready: make(chan struct{}, 1)}
	if opts.HoldLocks {
		c.held = make(map[*entry]struct{})
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.consumers == nil {
		q.consumers = make(map[*Consumer]struct{})
	}
	q.consumers[c] = struct{}{}
	return c
}

// Next waits until a message is available. A context that ends takes no message
// with it.
func (c *Consumer) Next(ctx context.Context) (*Delivery, error) {
	ds, err := c.Receive(ctx, 1)
	if err != nil {
		return nil, err
	}
	return ds[0], nil
}

// Receive waits until a message is available and returns up to n of those that
// are.
func (c *Consumer) Receive(ctx context.Context, n int) ([]*Delivery, error) {
	for {
		ds, err := c.TryReceive(ctx, n)
		if err != nil || len(ds) > 0 {
			return ds, err
		}
		select {
		case <-c.ready:
		case <-ctx.Done():
			c.queue.passOn(c)
			return nil, ctx.Err()
		}
	}
}

// TryReceive returns up to n messages that are available now, or none. After
// none, Ready signals when to try again.
func (c *Consumer) TryReceive(ctx context.Context, n int) ([]*Delivery, error) {
	q := c.queue
	if err := ctx.Err(); err != nil {
		q.passOn(c)
		return nil, err
	}
	tx := NewTx(q.store)
	q.mu.Lock()
	q.unidle(c)
	if err := q.consumerError(c); err != nil {
		q.mu.Unlock()
		return nil, err
	}
	now := time.Now()
	due := q.sweep(now)
	var ds []*Delivery
	for len(ds) < n && len(q.ready) > 0 {
		ds = append(ds, q.handOut(tx, q.ready[0], c, c.opts.Mode, now))
	}
	if len(ds) == 0 {
		q.idle = append(q.idle, c)
		c.idle = true
	}
	q.arm()
	q.mu.Unlock()
	if err := commitBoth(ctx, due, tx); err != nil {
		return nil, err
	}
	return ds, nil
}

func (q *Queue) consumerError(c *Consumer) error {
	if c.closed {
		return fmt.Errorf("consumer of %s: %w", q.name, ErrClosed)
	}
	return q.closedError()
}

// Ready returns a channel that receives a value when a message may be available
// to this consumer after TryReceive returned none, or when the consumer ended.
// A front end can wait on it together with other events, without a goroutine
// of its own. Whoever is signalled must call TryReceive or Close, because other
// consumers weren't signalled for that message.
func (c *Consumer) Ready() <-chan struct{} { return c.ready }

// Close ends the consumer. Messages under held locks become available again;
// others stay locked until they are settled or their lock expires.
func (c *Consumer) Close() {
	q := c.queue
	tx := NewTx(q.store)
	q.mu.Lock()
	c.closed = true
	delete(q.consumers, c)
	for e := range c.held {
		q.unlock(e)
		if q.ended == nil {
			q.giveBack(tx, e, !q.opts.CountAbandonOnly)
		}
	}
	q.arm()
	tx = q.submit(tx)
	q.mu.Unlock()
	q.passOn(c)
	c.notify()
	if tx != nil {
		tx.CommitAsync(nil)
	}
}

func (c *Consumer) notify() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
	if c.opts.Notify != nil {
		c.opts.Notify()
	}
}

// wakeFor signals one idle consumer that a message is available, if possible
// another one than had it last: a consumer that has just given a message back
// would only do so again.
func (q *Queue) wakeFor(e *entry) {
	if len(q.idle) == 0 {
		return
	}
	c := q.idle[0]
	for _, other := range q.idle {
		if other != e.holder {
			c = other
			break
		}
	}
	q.unidle(c)
	c.notify()
}

func (q *Queue) unidle(c *Consumer) {
	if !c.idle {
		return
	}
	c.idle = false
	i := slices.Index(q.idle, c)
	q.idle = slices.Delete(q.idle, i, i+1)
}

// passOn is for a consumer that will not look at the queue although it may have
// been signalled: the message that it was signalled for is offered to another.
func (q *Queue) passOn(c *Consumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.idle {
		q.unidle(c)
		return
	}
	select {
	case <-c.ready:
	default:
	}
	if len(q.ready) > 0 {
		q.wakeFor(q.ready[0])
	}
}
