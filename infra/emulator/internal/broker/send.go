package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// Send stores messages, all or none. A message whose annotation
// x-opt-scheduled-enqueue-time lies ahead becomes available then.
func (q *Queue) Send(ctx context.Context, msgs ...*amqp.Message) error {
	return wait(ctx, func(done func(error)) { q.SendAsync(done, msgs...) })
}

// SendAsync is Send that calls done with the result.
func (q *Queue) SendAsync(done func(error), msgs ...*amqp.Message) {
	_, err := q.send(done, time.Time{}, msgs)
	if err != nil {
		done(err)
	}
}

// Schedule stores messages that become available at a time, and returns their
// sequence numbers; 0 for one that was dropped as a duplicate.
func (q *Queue) Schedule(ctx context.Context, at time.Time, msgs ...*amqp.Message) ([]int64, error) {
	var seqs []int64
	err := wait(ctx, func(done func(error)) {
		var err error
		if seqs, err = q.send(done, at, msgs); err != nil {
			done(err)
		}
	})
	return seqs, err
}

// wait makes a call of an asynchronous one. Once begun, the call isn't given
// up: its result would be unknown. The wait is bounded by the disk.
func wait(ctx context.Context, call func(done func(error))) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := make(chan error, 1)
	call(func(err error) { result <- err })
	return <-result
}

// send stages and commits. If it returns an error, done is never called.
func (q *Queue) send(done func(error), at time.Time, msgs []*amqp.Message) ([]int64, error) {
	if err := q.checkSend(msgs); err != nil {
		return nil, err
	}
	if q.opts.identify {
		identify(msgs)
	}
	tx := NewTx(q.store)
	ordered := q.ids.window > 0 && q.store.Durable()
	if ordered {
		q.sendMu.Lock()
		defer q.sendMu.Unlock()
	}
	seqs, err := q.stage(tx, at, 0, msgs)
	if err != nil {
		tx.Abort()
		return nil, err
	}
	tx.CommitAsync(done)
	return seqs, nil
}

// Stage adds messages to a transaction. It refuses a queue with duplicate
// detection. Sizes are the caller's business: a hub has checked a message before
// it stamped it, and its stamps must not make it too large.
func (q *Queue) Stage(tx *Tx, msgs ...*amqp.Message) error {
	if q.ids.window > 0 {
		return fmt.Errorf("queue %s %w", q.name, errStageDuplicates)
	}
	if q.isDeadLetter {
		return q.errDeadLetter()
	}
	if q.opts.identify {
		identify(msgs)
	}
	_, err := q.stage(tx, time.Time{}, 0, msgs)
	return err
}

// stage adds messages, with the sequence numbers enqueueSeq, enqueueSeq+1, ...
// that a topic gave them, or their own for 0. A zero time at leaves it to each
// message when it arrives.
func (q *Queue) stage(tx *Tx, at time.Time, enqueueSeq int64, msgs []*amqp.Message) ([]int64, error) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.closedError(); err != nil {
		return nil, err
	}
	fresh := q.ids.filter(tx, now, msgs)
	entries := make([]*entry, len(fresh))
	for i, m := range fresh {
		entries[i] = q.newEntry(m, at, now)
		if enqueueSeq > 0 {
			entries[i].enqueueSeq = enqueueSeq + int64(i)
		}
	}
	err := q.addEntries(tx, entries)
	if err != nil {
		q.ids.forget(fresh)
		return nil, err
	}
	return sequenceNumbers(msgs, entries), nil
}

// sequenceNumbers has one number for each message, 0 for those dropped.
func sequenceNumbers(msgs []*amqp.Message, entries []*entry) []int64 {
	seqs := make([]int64, len(msgs))
	for i, m := range msgs {
		if len(entries) > 0 && entries[0].msg == m {
			seqs[i] = entries[0].seq
			entries = entries[1:]
		}
	}
	return seqs
}

func (q *Queue) newEntry(m *amqp.Message, at, now time.Time) *entry {
	e := &entry{msg: m, enqueued: now, readyIndex: -1, deadlineIndex: -1}
	e.measure()
	if at.IsZero() {
		at = scheduledTime(m)
	}
	if at.After(now) {
		e.scheduled, e.enqueued, e.waiting = at, at, true
	}
	e.expires = q.expiry(m, e.enqueued)
	return e
}

// expiry is when a message ends that arrives at a time; zero for never.
func (q *Queue) expiry(m *amqp.Message, enqueued time.Time) time.Time {
	if q.opts.AbsoluteExpiry && m.Properties != nil {
		if t := m.Properties.AbsoluteExpiryTime; t != nil && t.Unix() > 0 {
			return *t
		}
	}
	ttl := q.opts.DefaultTTL
	if m.Header != nil && m.Header.TTL > 0 && (ttl == 0 || m.Header.TTL < ttl) {
		ttl = m.Header.TTL
	}
	if ttl == 0 {
		return time.Time{}
	}
	return enqueued.Add(ttl)
}

// addEntries stages entries, all or none.
func (q *Queue) addEntries(tx *Tx, entries []*entry) error {
	if err := q.checkRoom(entries); err != nil {
		return err
	}
	for i, e := range entries {
		if err := q.addEntry(tx, e); err != nil {
			q.withdraw(entries[:i])
			return err
		}
	}
	if len(entries) > 0 {
		q.counter.put(tx, q.last)
		q.registerStaged(tx, entries)
	}
	return nil
}

func (q *Queue) checkRoom(entries []*entry) error {
	var size int64
	for _, e := range entries {
		size += int64(e.weight)
	}
	if n := q.opts.MaxMessages; n > 0 && len(q.entries)+len(entries) > n {
		return fmt.Errorf("queue %s: %w: it holds %d messages of at most %d", q.name, ErrFull, len(q.entries), n)
	}
	if n := q.opts.MaxBytes; n > 0 && q.bytes+size > n {
		return fmt.Errorf("queue %s: %w: it holds %d bytes of at most %d", q.name, ErrFull, q.bytes, n)
	}
	return nil
}

// addEntry gives an entry its sequence number and stages its record.
func (q *Queue) addEntry(tx *Tx, e *entry) error {
	seq := q.last + 1
	if e.enqueueSeq == 0 {
		e.enqueueSeq = seq
	}
	if q.store.Durable() {
		record, err := e.record()
		if err != nil {
			return fmt.Errorf("queue %s: %w", q.name, err)
		}
		tx.put(q.prefix, keyMessage, seq, record)
	}
	q.last, e.seq = seq, seq
	q.entries[seq] = e
	q.bytes += int64(e.weight)
	return nil
}

func (q *Queue) withdraw(entries []*entry) {
	for _, e := range entries {
		q.forget(e)
	}
}

// registerStaged makes entries available when the transaction is durable, and
// removes them when it is aborted.
func (q *Queue) registerStaged(tx *Tx, entries []*entry) {
	tx.OnCommit(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.ended != nil {
			return
		}
		q.counter.committed(entries[len(entries)-1].seq)
		for _, e := range entries {
			q.makeAvailable(e)
		}
		q.arm()
	})
	tx.OnAbort(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.withdraw(entries)
	})
}

// CancelScheduled removes scheduled messages, all or none; ErrNotFound if one
// of the sequence numbers isn't that of a scheduled message.
func (q *Queue) CancelScheduled(ctx context.Context, sequenceNumbers ...int64) error {
	tx := NewTx(q.store)
	if err := q.stageCancel(tx, sequenceNumbers); err != nil {
		return err
	}
	return tx.Commit(context.WithoutCancel(ctx))
}

func (q *Queue) stageCancel(tx *Tx, seqs []int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, seq := range seqs {
		if e := q.entries[seq]; e == nil || e.state != stateScheduled {
			return fmt.Errorf("scheduled message %d of %s: %w", seq, q.name, ErrNotFound)
		}
	}
	q.dropScheduled(tx, seqs)
	return nil
}

// stageDrop stages the removal of those messages that are still scheduled.
func (q *Queue) stageDrop(tx *Tx, seqs []int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropScheduled(tx, seqs)
}

func (q *Queue) dropScheduled(tx *Tx, seqs []int64) {
	for _, seq := range seqs {
		if e := q.entries[seq]; e != nil && e.state == stateScheduled {
			q.finish(tx, e, Purged, "", "")
		}
	}
}

// findScheduled returns the sequence number of the scheduled message that has
// the number enqueueSeq in the topic.
func (q *Queue) findScheduled(enqueueSeq int64) (int64, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for seq, e := range q.entries {
		if e.enqueueSeq == enqueueSeq && e.state == stateScheduled {
			return seq, true
		}
	}
	return 0, false
}
