package hub

import (
	"context"
	"errors"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// Poll takes the next message from the device's cloud-to-device queue, as a
// device does that asks over HTTPS; nil if there is none. Its lock outlives the
// session, because each request has a session of its own. lock is how long it
// lasts; 0 means the queue's lock duration.
func (s *Session) Poll(ctx context.Context, lock time.Duration) (*broker.Delivery, error) {
	if err := s.principal.hub.admit(OpC2DReceive, s.principal.Target, 0); err != nil {
		return nil, err
	}
	c, err := s.Receive(broker.ConsumerOptions{LockDuration: lock})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ds, err := c.TryReceive(ctx, 1)
	if err != nil || len(ds) == 0 {
		return nil, translate(err, CodeServiceUnavailable)
	}
	return ds[0], nil
}

// Settle ends the lock of a cloud-to-device message, whichever session of the
// device received it; CodeMessageLockLost if there is no such lock any more.
func (s *Session) Settle(ctx context.Context, token amqp.UUID, action broker.Action) error {
	if err := s.Err(); err != nil {
		return err
	}
	q, err := s.Queue()
	if err != nil {
		return err
	}
	s.Touch()
	err = q.Settle(ctx, token, broker.Settlement{Action: action})
	if errors.Is(err, broker.ErrLockLost) {
		return Errorf(CodeMessageLockLost, "the message isn't locked under this token any more")
	}
	return translate(err, CodeServiceUnavailable)
}
