package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// lock locks a message for a consumer, or for the lock duration if c is nil.
func (q *Queue) lock(e *entry, c *Consumer, now time.Time) *Delivery {
	e.state = stateLocked
	e.token = newToken()
	e.holder = c
	if q.locked == nil {
		q.locked = make(map[amqp.UUID]*entry)
	}
	q.locked[e.token] = e
	if c != nil && c.opts.HoldLocks {
		e.held = true
		c.held[e] = struct{}{}
		q.deadlines.set(e, time.Time{})
	} else {
		duration := q.opts.LockDuration
		if c != nil && c.opts.LockDuration > 0 {
			duration = c.opts.LockDuration
		}
		e.lockedUntil = now.Add(duration)
		q.deadlines.set(e, e.lockedUntil)
	}
	return e.delivery()
}

// newToken returns a random UUID (RFC 9562, version 4). A token names a lock and
// gives no right, so a fast generator will do.
func newToken() amqp.UUID {
	var u amqp.UUID
	binary.LittleEndian.PutUint64(u[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(u[8:], rand.Uint64())
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// Settle ends the lock of a message, from whatever connection; ErrLockLost if
// it has no such lock.
func (q *Queue) Settle(ctx context.Context, token amqp.UUID, s Settlement) error {
	return wait(ctx, func(done func(error)) { q.SettleAsync(token, s, done) })
}

// SettleAsync is Settle that calls done with the result.
func (q *Queue) SettleAsync(token amqp.UUID, s Settlement, done func(error)) {
	tx := NewTx(q.store)
	q.mu.Lock()
	due := q.sweep(time.Now())
	err := q.settle(tx, token, s)
	q.arm()
	q.mu.Unlock()
	if due != nil {
		due.CommitAsync(nil)
	}
	if err != nil {
		done(err)
		return
	}
	if tx.empty() {
		done(nil) // nothing to make durable: it was released
		return
	}
	tx.CommitAsync(done)
}

func (q *Queue) settle(tx *Tx, token amqp.UUID, s Settlement) error {
	if err := q.closedError(); err != nil {
		return err
	}
	e := q.locked[token]
	if e == nil {
		return fmt.Errorf("queue %s: %w", q.name, ErrLockLost)
	}
	if s.Action == DeadLetter && q.isDeadLetter {
		return fmt.Errorf("dead-letter a message of %s: %w", q.name, ErrNotAllowed)
	}
	if err := q.modify(tx, e, s); err != nil {
		return err
	}
	q.unlock(e)
	switch s.Action {
	case Complete:
		if q.repeats(e) {
			q.makeAvailable(e)
			return nil
		}
		q.finish(tx, e, Completed, "", "")
	case DeadLetter:
		q.finish(tx, e, Rejected, s.Reason, s.Description)
	case Release:
		q.makeAvailable(e)
	case Abandon:
		e.count++
		if q.exceeded(e) {
			q.finish(tx, e, DeliveryCountExceeded, "", "")
		} else {
			q.giveBackDurably(tx, e)
		}
	case Defer:
		e.deferred = true
		q.giveBackDurably(tx, e)
	}
	return nil
}

// repeats reports whether a message that is completed is to come once more.
func (q *Queue) repeats(e *entry) bool {
	if e.repeated || q.opts.Repeat == nil {
		return false
	}
	e.repeated = q.opts.Repeat()
	return e.repeated
}

// modify stages the properties that a receiver changes in the message.
func (q *Queue) modify(tx *Tx, e *entry, s Settlement) error {
	if len(s.Properties) == 0 || s.Action == Complete || s.Action == Release {
		return nil
	}
	before := *e
	e.msg = withProperties(e.msg, s.Properties)
	e.measure()
	record, err := e.record()
	if err == nil {
		err = checkProperties(e.msg)
	}
	if err != nil {
		e.msg, e.size, e.weight = before.msg, before.size, before.weight
		return fmt.Errorf("queue %s: %w", q.name, err)
	}
	q.bytes += int64(e.weight - before.weight)
	tx.put(q.prefix, keyMessage, e.seq, record)
	return nil
}

// giveBackDurably makes a message available again when the disk knows what the
// receiver decided: that the delivery counts, or that the message is deferred.
func (q *Queue) giveBackDurably(tx *Tx, e *entry) {
	e.state = stateEnding
	q.recordState(tx, e)
	tx.OnCommit(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.ended == nil {
			q.makeAvailable(e)
			q.arm()
		}
	})
}

// RenewLock starts the lock duration anew and returns its end, which is zero
// for a lock held by a consumer; ErrLockLost if there is no such lock.
func (q *Queue) RenewLock(token amqp.UUID) (time.Time, error) {
	q.mu.Lock()
	now := time.Now()
	due := q.sweep(now)
	e, err := q.locked[token], q.closedError()
	switch {
	case err != nil:
	case e == nil:
		err = fmt.Errorf("queue %s: %w", q.name, ErrLockLost)
	case !e.held:
		e.lockedUntil = now.Add(q.opts.LockDuration)
		q.deadlines.set(e, e.lockedUntil)
	}
	q.arm()
	var until time.Time
	if err == nil {
		until = e.lockedUntil
	}
	q.mu.Unlock()
	if due != nil {
		due.CommitAsync(nil)
	}
	return until, err
}

// ReceiveDeferred hands out deferred messages by sequence number, all or none;
// ErrNotFound if one of the numbers isn't that of a deferred message, or of one
// that is locked. One that has expired ends now, when it is asked for (Service
// Bus docs: "Message deferral").
func (q *Queue) ReceiveDeferred(ctx context.Context, mode Mode, sequenceNumbers ...int64) ([]*Delivery, error) {
	tx := NewTx(q.store)
	q.mu.Lock()
	if err := q.closedError(); err != nil {
		q.mu.Unlock()
		return nil, err
	}
	now := time.Now()
	due := q.sweep(now)
	entries, err := q.findDeferred(tx, sequenceNumbers, now)
	var found []*Delivery
	for _, e := range entries {
		found = append(found, q.handOut(tx, e, nil, mode, now))
	}
	q.arm()
	q.mu.Unlock()
	return found, errors.Join(err, commitBoth(ctx, due, tx))
}

// findDeferred returns the deferred messages that have these numbers, or else
// none. It stages the end of those that have expired.
func (q *Queue) findDeferred(tx *Tx, seqs []int64, now time.Time) ([]*entry, error) {
	var found []*entry
	var err error
	for _, seq := range seqs {
		e := q.entries[seq]
		if e != nil && e.state == stateDeferred && !e.expires.IsZero() && !e.expires.After(now) {
			q.finish(tx, e, Expired, "", "")
		}
		if e == nil || e.state != stateDeferred || slices.Contains(found, e) {
			err = fmt.Errorf("deferred message %d of %s: %w", seq, q.name, ErrNotFound)
			continue
		}
		found = append(found, e)
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}

// handOut locks a message, or stages its end if it is received and deleted.
func (q *Queue) handOut(tx *Tx, e *entry, c *Consumer, mode Mode, now time.Time) *Delivery {
	q.ready.remove(e)
	if mode == PeekLock {
		return q.lock(e, c, now)
	}
	d := e.delivery()
	q.finish(tx, e, Completed, "", "")
	return d
}

// commitBoth commits what was due, without waiting, and then tx, if it has
// anything to make durable.
func commitBoth(ctx context.Context, due, tx *Tx) error {
	if due != nil {
		due.CommitAsync(nil)
	}
	if tx.empty() {
		return nil
	}
	// The messages are taken already, so the context can't stop it any more.
	return tx.Commit(context.WithoutCancel(ctx))
}
