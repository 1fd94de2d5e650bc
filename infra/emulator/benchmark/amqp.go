package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"
	"golang.org/x/sync/errgroup"
)

func (a amqpAccess) dial(ctx context.Context) (*amqp.Conn, *amqp.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	conn, err := amqp.Dial(ctx, "amqp://"+a.addr, &amqp.ConnOptions{SASLType: amqp.SASLTypePlain(a.user, a.password)})
	if err != nil {
		return nil, nil, err
	}
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, session, nil
}

// pair is a connection with a link each way.
type pair struct {
	conn     *amqp.Conn
	sender   *amqp.Sender
	receiver *amqp.Receiver
	credit   uint32
}

func (a amqpAccess) openPair(ctx context.Context, credit int32) (*pair, error) {
	conn, session, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	p := &pair{conn: conn, credit: uint32(credit)}
	p.sender, err = session.NewSender(ctx, a.queue, &amqp.SenderOptions{SettlementMode: amqp.SenderSettleModeUnsettled.Ptr()})
	if err == nil {
		p.receiver, err = session.NewReceiver(ctx, a.queue, &amqp.ReceiverOptions{Credit: -1})
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return p, nil
}

// exchange sends the load's messages to the queue and receives and completes
// them at the same time. It returns the time until the last was completed.
func (a amqpAccess) exchange(ctx context.Context, l load) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pairs := make([]*pair, l.connections)
	for i := range pairs {
		var err error
		if pairs[i], err = a.openPair(ctx, int32(l.window)); err != nil {
			return 0, fmt.Errorf("open links %d: %w", i, err)
		}
		defer pairs[i].conn.Close()
	}
	var left atomic.Int64
	perSender := l.messages / l.connections / l.window
	left.Store(int64(perSender * l.window * l.connections))
	group, ctx := errgroup.WithContext(ctx)
	receiving, finish := context.WithCancel(ctx)
	defer finish()
	began := time.Now()
	for _, p := range pairs {
		for range l.window {
			group.Go(func() error { return p.send(ctx, perSender, l.payload, a.durable) })
		}
		group.Go(func() error { return p.receive(receiving, &left, finish) })
	}
	err := group.Wait()
	return time.Since(began), err
}

// send sends n messages, each after the one before was accepted.
func (p *pair) send(ctx context.Context, n int, payload []byte, durable bool) error {
	for range n {
		m := amqp.NewMessage(payload)
		m.Header = &amqp.MessageHeader{Durable: durable}
		if err := p.sender.Send(ctx, m, nil); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// receive completes messages until none is left on any link; then it calls
// finish. It gives credit when all that it gave before is used up: RabbitMQ 3.x
// loses count, and delivers no more, when credit and messages cross on the wire.
func (p *pair) receive(ctx context.Context, left *atomic.Int64, finish func()) error {
	for received := uint32(0); ; received++ {
		if received%p.credit == 0 {
			if err := p.receiver.IssueCredit(p.credit); err != nil {
				return fmt.Errorf("give credit: %w", err)
			}
		}
		m, err := p.receiver.Receive(ctx, nil)
		if err != nil && ctx.Err() != nil && left.Load() <= 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if err := p.receiver.AcceptMessage(ctx, m); err != nil {
			return fmt.Errorf("complete: %w", err)
		}
		if left.Add(-1) <= 0 {
			finish()
			return nil
		}
	}
}
