package servicebus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/job"
)

// Delivery is a received message and the lock on it. It is settled once; its methods may be called concurrently.
type Delivery struct {
	Received

	loop *loop

	mu      sync.Mutex
	settled bool // or its lock is lost: there is nothing left to settle
}

func (l *loop) newDelivery(in *azservicebus.ReceivedMessage) *Delivery {
	return &Delivery{Received: received(in), loop: l}
}

// Complete removes the message. Like DeadLetter it goes through when ctx has just ended, as the work is
// done; the client's timeout bounds it. The error matches job.ErrLockLost when the message will come again.
func (d *Delivery) Complete(ctx context.Context) error {
	return d.settle(ctx, "complete", func(ctx context.Context, m *azservicebus.ReceivedMessage) error {
		return d.loop.receiver.CompleteMessage(ctx, m, nil)
	})
}

// Abandon gives the message back, to be delivered again at once; its delivery count rises. When ctx has ended it does
// nothing, as Receive gives back all that is not settled.
func (d *Delivery) Abandon(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	return d.settle(ctx, "abandon", func(ctx context.Context, m *azservicebus.ReceivedMessage) error {
		return d.loop.receiver.AbandonMessage(ctx, m, nil)
	})
}

// DeadLetter moves the message to the dead-letter queue, with the reason for people to find there.
func (d *Delivery) DeadLetter(ctx context.Context, reason job.Reason, description string) error {
	return d.settle(ctx, "dead-letter", func(ctx context.Context, m *azservicebus.ReceivedMessage) error {
		return d.loop.receiver.DeadLetterMessage(ctx, m, &azservicebus.DeadLetterOptions{
			Reason: optional(string(reason)), ErrorDescription: optional(description),
		})
	})
}

var errSettled = errors.New("it is settled already")

// settleFunc settles a message with the SDK.
type settleFunc func(context.Context, *azservicebus.ReceivedMessage) error

func (d *Delivery) settle(ctx context.Context, verb string, f settleFunc) error {
	op := verb + " message " + d.Message.ID
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.settled {
		return &job.Error{Op: op, Kind: job.ErrLockLost, Err: errSettled}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.loop.client.timeout)
	defer cancel()
	err := classify(op, d.settleOnce(ctx, f))
	d.settled = err == nil || errors.Is(err, job.ErrLockLost)
	return err
}

// linkTimeout is how long settling over the message's own link may take: less than the SDK's wait before its first
// retry, 4 s times 0.8 (azservicebus v1.11, internal/utils/retrier.go).
const linkTimeout = 2500 * time.Millisecond

// settleOnce settles over the link that the message came by, and when that doesn't answer, by the lock token alone.
// The SDK's own retries are of no use when the connection has been lost: they use the dead link again, and each of them
// closes the connection that all others share. If the first attempt has settled the message after all, the second one
// reports a lost lock.
func (d *Delivery) settleOnce(ctx context.Context, f settleFunc) error {
	onLink, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	err := f(onLink, d.sdk)
	if err == nil || onLink.Err() == nil || ctx.Err() != nil {
		return err
	}
	return f(ctx, &azservicebus.ReceivedMessage{LockToken: d.sdk.LockToken})
}

func (d *Delivery) open() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.settled
}

// renew renews the lock unless the message is settled.
func (d *Delivery) renew(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.settled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.loop.client.timeout)
	defer cancel()
	err := classify("renew the lock of message "+d.Message.ID, d.loop.receiver.RenewMessageLock(ctx, d.sdk, nil))
	if errors.Is(err, job.ErrLockLost) {
		d.settled = true
	}
	return err
}
