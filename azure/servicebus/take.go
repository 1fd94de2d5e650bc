package servicebus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/job"
)

const (
	// DefaultPatience is how long Take waits for a message that doesn't come, unless it is told otherwise.
	DefaultPatience = 5 * time.Second

	takeBatch = 100
)

// TakeOptions say how long to wait.
type TakeOptions struct {
	// Patience is how long to wait when nothing more comes: what is missing then is locked by somebody else, deferred or
	// gone. 0: DefaultPatience.
	Patience time.Duration
}

// Take receives the messages with these sequence numbers and calls handle for each, one after the other and mostly in
// the order of the queue. Service Bus hands out active messages by their order alone, so those that stand before the last
// wanted one are locked too while it runs; they, and what handle leaves unsettled, are given back at its end. Locks
// are renewed meanwhile.
//
// handle's error ends Take and is returned, except one that matches job.ErrLockLost: such a message comes again, and
// handle is called again for it. left are the numbers, in ascending order, for which handle has not returned nil: when it
// is empty, so is the error. The error is ctx's when that has ended.
func (c *Client) Take(ctx context.Context, from Source, numbers []int64, opts TakeOptions,
	handle func(context.Context, *Delivery) error) (left []int64, err error) {
	t := &taking{wanted: make(map[int64]bool, len(numbers)), seen: make(map[int64]bool), handle: handle}
	for _, number := range numbers {
		t.wanted[number] = true
		t.last = max(t.last, number)
	}
	receiver, err := c.newReceiver("receive", from)
	if err != nil || len(numbers) == 0 {
		return t.left(), err
	}
	if opts.Patience <= 0 {
		opts.Patience = DefaultPatience
	}
	t.loop = &loop{client: c, from: from, receiver: receiver}
	renewal, stop := context.WithCancel(context.WithoutCancel(ctx))
	err = t.run(ctx, renewal, opts.Patience)
	stop()
	t.renewing.Wait()
	t.giveBackHeld()
	t.loop.close(ctx)
	return t.left(), err
}

// taking is one call of Take.
type taking struct {
	loop     *loop
	handle   func(context.Context, *Delivery) error
	wanted   map[int64]bool
	last     int64 // the highest number that is wanted
	seen     map[int64]bool
	held     []*Delivery // all that has come
	renewing sync.WaitGroup
}

func (t *taking) run(ctx, renewal context.Context, patience time.Duration) error {
	end := time.Now().Add(patience)
	for len(t.wanted) > 0 {
		waiting, cancel := context.WithDeadline(ctx, end)
		messages, err := t.loop.next(waiting, takeBatch)
		cancel()
		if len(messages) == 0 {
			if err == nil {
				err = ctx.Err()
			}
			return err
		}
		advanced, err := t.take(ctx, renewal, messages)
		if err != nil {
			return err
		}
		if advanced {
			end = time.Now().Add(patience)
		}
	}
	return nil
}

// take holds a batch and handles what is wanted of it. It advances where a message stood for the first time that had to
// be got out of the way; what comes behind the last wanted one is endless, and no progress.
func (t *taking) take(ctx, renewal context.Context, messages []*azservicebus.ReceivedMessage) (advanced bool, err error) {
	batch := make([]*Delivery, len(messages))
	for i, m := range messages {
		batch[i] = t.loop.newDelivery(m)
	}
	t.held = append(t.held, batch...)
	t.renewing.Go(func() { t.loop.renew(renewal, batch) })
	for _, d := range batch {
		number := d.SequenceNumber
		advanced = advanced || number <= t.last && !t.seen[number]
		t.seen[number] = true
		if !t.wanted[number] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return advanced, err
		}
		switch err := t.handle(ctx, d); {
		case err == nil:
			delete(t.wanted, number)
		case !errors.Is(err, job.ErrLockLost):
			return advanced, err
		}
	}
	return advanced, nil
}

func (t *taking) giveBackHeld() {
	for _, d := range t.held {
		if d.open() {
			t.loop.left = append(t.loop.left, d)
		}
	}
}

func (t *taking) left() []int64 {
	var left []int64
	for number := range t.wanted {
		left = append(left, number)
	}
	slices.Sort(left)
	return left
}
