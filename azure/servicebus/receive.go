package servicebus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/azure/internal/backoff"
	"github.com/hubjobs/hubjobs/job"
)

// Source is where to receive from: a queue, or a topic's subscription.
type Source struct {
	Queue               string
	Topic, Subscription string
	DeadLetter          bool // its dead-letter queue instead
}

// String returns the source's address.
func (s Source) String() string {
	name := s.Queue
	if name == "" {
		name = s.Topic + "/Subscriptions/" + s.Subscription
	}
	if s.DeadLetter {
		name += "/$DeadLetterQueue"
	}
	return name
}

// ReceiveOptions say how much is handled at a time.
type ReceiveOptions struct {
	Batch       int // messages that are handled together at most, up to 1000; 0: 16
	Concurrency int // batches that are handled at the same time; 0: 1
}

const maxBatch = 1000

func (o ReceiveOptions) withDefaults() ReceiveOptions {
	if o.Batch <= 0 {
		o.Batch = 16
	}
	o.Batch = min(o.Batch, maxBatch)
	if o.Concurrency <= 0 {
		o.Concurrency = 1
	}
	return o
}

// Receive receives messages until ctx ends; then it waits for the handlers, whose context has ended with it, and returns
// nil. handle settles each delivery of its batch; what it leaves is abandoned, and comes again. Locks are renewed while
// it runs. Lost connections are made again; the error is one that trying again can't mend: job.ErrNotFound for a source
// that doesn't exist, or job.ErrInvalid.
func (c *Client) Receive(ctx context.Context, from Source, opts ReceiveOptions, handle func(context.Context, []*Delivery)) error {
	opts = opts.withDefaults()
	receiver, err := c.newReceiver("receive", from)
	if err != nil {
		return err
	}
	l := &loop{client: c, from: from, receiver: receiver, handle: handle, slots: make(chan struct{}, opts.Concurrency)}
	defer l.close(ctx)
	return l.run(ctx, opts.Batch)
}

// newReceiver returns a receiver, which connects when it is first used. op says what for.
func (c *Client) newReceiver(op string, from Source) (*azservicebus.Receiver, error) {
	if from.Queue == "" && (from.Topic == "" || from.Subscription == "") {
		return nil, &job.Error{Op: op, Kind: job.ErrInvalid, Err: errors.New("name a queue, or a topic and a subscription")}
	}
	receiver, err := c.newSDKReceiver(from)
	return receiver, classify(op+" from "+from.String(), err)
}

func (c *Client) newSDKReceiver(from Source) (*azservicebus.Receiver, error) {
	options := &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModePeekLock}
	if from.DeadLetter {
		options.SubQueue = azservicebus.SubQueueDeadLetter
	}
	if from.Queue != "" {
		return c.sdk.NewReceiverForQueue(from.Queue, options)
	}
	return c.sdk.NewReceiverForSubscription(from.Topic, from.Subscription, options)
}

// loop is one call of Receive.
type loop struct {
	client   *Client
	from     Source
	receiver *azservicebus.Receiver
	handle   func(context.Context, []*Delivery)
	slots    chan struct{} // holds one value for each handler that runs
	handlers sync.WaitGroup

	mu   sync.Mutex
	left []*Delivery // not settled when ctx had ended
}

var errInterrupted = errors.New("the link was detached")

func (l *loop) run(ctx context.Context, batch int) error {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		messages, err := l.next(ctx, batch)
		if len(messages) == 0 {
			<-l.slots
			return err
		}
		l.start(ctx, messages)
	}
}

// next waits for messages, over as many connections as that takes. It returns none when ctx ends, or with an error that
// trying again can't mend.
func (l *loop) next(ctx context.Context, batch int) ([]*azservicebus.ReceivedMessage, error) {
	retry := backoff.Backoff{Initial: 250 * time.Millisecond, Max: 30 * time.Second}
	for {
		messages, err := l.receiver.ReceiveMessages(ctx, batch, nil)
		switch {
		case len(messages) > 0:
			return messages, nil
		case ctx.Err() != nil:
			return nil, nil
		case err == nil: // what the SDK returns when the link broke and can be made again
			err = errInterrupted
		}
		err = classify("receive from "+l.from.String(), err)
		if !job.Retryable(err) {
			return nil, err
		}
		wait := retry.Next()
		l.client.log.WarnContext(ctx, "receiving was interrupted", "error", err, "wait", wait)
		if backoff.Wait(ctx, wait) != nil {
			return nil, nil
		}
	}
}

// start handles a batch in the slot that run has taken for it. What is not settled afterwards is given back.
func (l *loop) start(ctx context.Context, messages []*azservicebus.ReceivedMessage) {
	l.handlers.Add(1)
	go func() {
		defer l.handlers.Done()
		defer func() { <-l.slots }()
		deliveries := make([]*Delivery, len(messages))
		for i, m := range messages {
			deliveries[i] = l.newDelivery(m)
		}
		if ctx.Err() == nil {
			l.handleLocked(ctx, deliveries)
		}
		l.abandon(ctx, deliveries)
	}()
}

// handleLocked runs the handler and renews the locks meanwhile, also while it takes its time to notice ctx's end.
func (l *loop) handleLocked(ctx context.Context, deliveries []*Delivery) {
	renewal, stop := context.WithCancel(context.WithoutCancel(ctx))
	var renewing sync.WaitGroup
	renewing.Add(1)
	go func() {
		defer renewing.Done()
		l.renew(renewal, deliveries)
	}()
	l.handle(ctx, deliveries)
	stop()
	renewing.Wait()
}

const notGivenBack = "a message was not given back; it comes again when its lock ends"

// abandon gives back what was not settled: at once, or when ctx has ended, with the end of the loop.
func (l *loop) abandon(ctx context.Context, deliveries []*Delivery) {
	for _, d := range deliveries {
		switch {
		case !d.open():
		case ctx.Err() != nil:
			l.mu.Lock()
			l.left = append(l.left, d)
			l.mu.Unlock()
		default:
			if err := d.Abandon(ctx); err != nil {
				l.client.log.WarnContext(ctx, notGivenBack, "message", d.Message.ID, "error", err)
			}
		}
	}
}

// close waits for the handlers and ends the loop.
func (l *loop) close(ctx context.Context) {
	l.handlers.Wait()
	ctx = context.WithoutCancel(ctx)
	l.client.closeReceiver(ctx, l.receiver)
	if len(l.left) == 0 {
		return
	}
	receiver, err := l.client.newReceiver("receive", l.from)
	if err != nil {
		l.client.log.WarnContext(ctx, notGivenBack, "messages", len(l.left), "error", err)
		return
	}
	l.giveBack(ctx, receiver)
	l.client.closeReceiver(ctx, receiver)
}

// giveBack abandons what was left, by the lock tokens alone and over a link that asks for nothing. Over the old link,
// which still has credit, the service would deliver the same messages again, and lock them with nobody to take them.
func (l *loop) giveBack(ctx context.Context, receiver *azservicebus.Receiver) {
	ctx, cancel := context.WithTimeout(ctx, 2*closeTimeout)
	defer cancel()
	for _, d := range l.left {
		err := receiver.AbandonMessage(ctx, &azservicebus.ReceivedMessage{LockToken: d.sdk.LockToken}, nil)
		if err != nil {
			l.client.log.WarnContext(ctx, notGivenBack, "message", d.Message.ID, "error", classify("abandon", err))
		}
	}
}

func (c *Client) closeReceiver(ctx context.Context, receiver *azservicebus.Receiver) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := receiver.Close(ctx); err != nil {
		c.log.DebugContext(ctx, "the receiver was not closed properly", "error", err)
	}
}

// The wait between renewals: half of what is left of a lock by the service's clock, but within these bounds whatever
// the clocks say. Locks last between 5 s and 5 min (Service Bus docs, "Message transfers, locks, and settlement").
const (
	minRenewal = 500 * time.Millisecond
	maxRenewal = 20 * time.Second
)

// renew renews the locks of deliveries that are not settled, until ctx ends or none is left.
func (l *loop) renew(ctx context.Context, deliveries []*Delivery) {
	for {
		wait, locked := nextRenewal(deliveries, time.Now())
		if !locked || backoff.Wait(ctx, wait) != nil {
			return
		}
		for _, d := range deliveries {
			if err := d.renew(ctx); err != nil && ctx.Err() == nil {
				l.client.log.WarnContext(ctx, "a message lock was not renewed", "message", d.Message.ID, "error", err)
			}
		}
	}
}

// nextRenewal says how long to wait, and whether there is still a lock to renew.
func nextRenewal(deliveries []*Delivery, now time.Time) (wait time.Duration, locked bool) {
	wait = maxRenewal
	for _, d := range deliveries {
		if d.open() && d.sdk.LockedUntil != nil {
			locked = true
			wait = min(wait, d.sdk.LockedUntil.Sub(now)/2)
		}
	}
	return max(wait, minRenewal), locked
}
