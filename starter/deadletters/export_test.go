package deadletters

import (
	"context"
	"errors"

	"github.com/hubjobs/hubjobs/azure/servicebus"
)

var errCrash = errors.New("crash")

// Crash does what Resubmit does until its copy is stored, and no more.
func (q *Queue) Crash(ctx context.Context, number int64) error {
	sender, err := q.bus.Sender(q.Entity())
	if err != nil {
		return err
	}
	_, err = q.bus.Take(ctx, q.from, []int64{number}, servicebus.TakeOptions{}, func(ctx context.Context, d *servicebus.Delivery) error {
		if err := send(ctx, sender, &d.Received, q.copyChange(&d.Received, Change{})); err != nil {
			return err
		}
		return errCrash
	})
	if errors.Is(err, errCrash) {
		return sender.Close(ctx)
	}
	return err
}
