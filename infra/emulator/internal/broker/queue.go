package broker

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Defaults and limits of Service Bus (Service Bus docs: "Service Bus quotas",
// "Message transfers, locks, and settlement", "Duplicate detection").
const (
	DefaultLockDuration     = time.Minute
	DefaultMaxDeliveryCount = 10
	DefaultDuplicateWindow  = 10 * time.Minute
	DefaultMaxMessageSize   = 256 << 10
)

// deadLetterSuffix is the path of a dead-letter queue below its entity (Service
// Bus docs: "Overview of Service Bus dead-letter queues").
const deadLetterSuffix = "/$DeadLetterQueue"

// QueueOptions are the properties of a queue or subscription.
type QueueOptions struct {
	// LockDuration is how long a lock lasts without renewal; default 1 minute.
	LockDuration time.Duration
	// MaxDeliveryCount is the number of counted deliveries after which a
	// message is dead-lettered; default 10, negative for no limit.
	MaxDeliveryCount int
	// DefaultTTL is the longest time to live; 0 means none.
	DefaultTTL time.Duration
	// DeadLetterOnExpiry keeps expired messages in the dead-letter queue.
	DeadLetterOnExpiry bool
	// DuplicateWindow is how long a message ID is remembered, to accept and
	// drop messages that repeat it; 0 switches detection off.
	DuplicateWindow time.Duration
	// MaxMessageSize is the largest message in bytes; default 256 KiB.
	MaxMessageSize int
	// MaxMessages and MaxBytes limit what the queue holds; 0 means no limit.
	MaxMessages int
	MaxBytes    int64
	// AbsoluteExpiry makes the property absolute-expiry-time, if set, decide
	// the end of a message instead of the time to live, as IoT Hub does for
	// cloud-to-device messages. Times before 1970 count as not set.
	AbsoluteExpiry bool
	// CountAbandonOnly makes only Abandon count as a delivery, and not a lock
	// that expires or a consumer that closes.
	CountAbandonOnly bool
	// NoDeadLetter drops what would be dead-lettered.
	NoDeadLetter bool
	// OnOutcome, if not nil, is called for each message that ends, with the
	// transaction that removes it, so that what it adds is as durable as the
	// removal. It must not block or call the queue.
	OnOutcome func(tx *Tx, o Outcome)
	// subscription is true for those of a topic.
	subscription bool
	// identify is true for those of a namespace: they give messages an ID that
	// come without.
	identify bool
	// Repeat, if not nil, is asked when a message is completed; true delivers
	// it once more all the same, as when the completion is lost on its way. It
	// must not block or call the queue.
	Repeat func() bool
}

func (o QueueOptions) withDefaults() QueueOptions {
	o.LockDuration = cmp.Or(o.LockDuration, DefaultLockDuration)
	o.MaxDeliveryCount = cmp.Or(o.MaxDeliveryCount, DefaultMaxDeliveryCount)
	o.MaxMessageSize = cmp.Or(o.MaxMessageSize, DefaultMaxMessageSize)
	return o
}

// Queue is a peek-lock queue: FIFO, durable, with competing consumers.
type Queue struct {
	name       string
	prefix     string
	opts       QueueOptions
	store      store.Store
	deadLetter *Queue // nil if it has none
	// isDeadLetter is true for a dead-letter queue itself.
	isDeadLetter bool

	// sendMu makes staging and submitting one step where duplicates are
	// detected: a duplicate must not be acknowledged before the message that
	// it repeats is durable, and the store keeps the order of submission.
	sendMu sync.Mutex

	mu        sync.Mutex // guards all below
	last      int64      // sequence number given last
	counter   counter    // of last
	entries   map[int64]*entry
	bytes     int64
	locked    map[amqp.UUID]*entry
	ready     readyHeap
	deadlines deadlineHeap
	ids       duplicates
	consumers map[*Consumer]struct{}
	idle      []*Consumer // found nothing at their last try
	orphans   []store.Op  // removals found due while loading
	timer     *time.Timer
	timerAt   time.Time // zero when no timer is set
	ended     error     // ErrClosed or ErrDeleted
	timers    sync.WaitGroup
}

// OpenQueue returns the queue of that name with what the store holds of it. A
// queue in no Namespace must be closed by its owner.
func OpenQueue(s store.Store, name string, opts QueueOptions) (*Queue, error) {
	return openQueue(s, name, name, opts)
}

// openQueue opens a queue whose name in the store is key.
func openQueue(s store.Store, key, name string, opts QueueOptions) (*Queue, error) {
	q := newQueue(s, key, name, opts.withDefaults())
	if !q.opts.NoDeadLetter {
		q.deadLetter = newQueue(s, key+deadLetterSuffix, name+deadLetterSuffix, QueueOptions{
			LockDuration:     q.opts.LockDuration,
			MaxDeliveryCount: -1,
			MaxMessageSize:   q.opts.MaxMessageSize,
			NoDeadLetter:     true,
		})
		q.deadLetter.isDeadLetter = true
		if err := q.deadLetter.load(); err != nil {
			return nil, err
		}
	}
	return q, q.load()
}

func newQueue(s store.Store, key, name string, opts QueueOptions) *Queue {
	prefix := prefixOf("q", key)
	return &Queue{
		name:    name,
		prefix:  prefix,
		opts:    opts,
		store:   s,
		counter: counter{store: s, key: prefix + keyCounter},
		entries: make(map[int64]*entry),
		ids:     duplicates{window: opts.DuplicateWindow, prefix: prefix},
	}
}

// load reads the queue from the store. What was locked is available again: the
// receivers went with the process that knew the locks.
func (q *Queue) load() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.store.Load(q.prefix, func(key string, value []byte) error {
		if err := q.loadRecord(key[len(q.prefix):], value); err != nil {
			return fmt.Errorf("queue %s: %w", q.name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	q.ids.finishLoad(q.store)
	if len(q.orphans) > 0 {
		q.store.Submit(nil, q.orphans...)
		q.orphans = nil
	}
	for seq, e := range q.entries {
		// Transactions may reach the disk in another order than they got their
		// numbers, so the counter there may be that of an earlier one.
		q.last = max(q.last, seq)
		// The time may have passed meanwhile. An arrival changes when the
		// message was enqueued, and a delivery leaves a record.
		e.waiting = !e.scheduled.IsZero() && e.enqueued.Equal(e.scheduled) && !e.recorded
		q.makeAvailable(e)
	}
	q.counter.stored = q.last
	q.arm()
	return nil
}

func (q *Queue) loadRecord(suffix string, value []byte) error {
	switch {
	case strings.HasPrefix(suffix, keyIdentity):
		return q.ids.load(suffix[len(keyIdentity):], value)
	case suffix == keyCounter:
		d := decoder{rest: value}
		q.last = d.int()
		return d.err
	}
	seq, err := parseSequenceKey(suffix)
	if err != nil {
		return err
	}
	if strings.HasPrefix(suffix, keyMessage) {
		e, err := decodeEntry(seq, value)
		if err == nil {
			q.entries[seq] = e
			q.bytes += int64(e.weight)
		}
		return err
	}
	if e := q.entries[seq]; e != nil {
		return e.decodeState(value)
	}
	// A state without its message is left behind when a lock expired while
	// the message was being settled.
	q.orphans = append(q.orphans, store.Delete(sequenceKey(q.prefix, keyState, seq)))
	return nil
}

// Name returns the queue's name: of a subscription topic/Subscriptions/name, of
// a dead-letter queue that of its parent and /$DeadLetterQueue.
func (q *Queue) Name() string { return q.name }

// Options returns the queue's properties, defaults filled in.
func (q *Queue) Options() QueueOptions { return q.opts }

// MaxMessageSize is the largest message in bytes.
func (q *Queue) MaxMessageSize() int { return q.opts.MaxMessageSize }

// DeadLetterQueue returns the queue's dead-letter queue, or nil if it has none.
func (q *Queue) DeadLetterQueue() *Queue { return q.deadLetter }

// Len returns the number of messages in the queue, whatever their state.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.entries)
}

// Peek returns up to n messages in any state from a sequence number on, without
// locking them. A subscription shows no scheduled ones: they are the topic's
// until their time (Service Bus docs: "Message browsing").
func (q *Queue) Peek(from int64, n int) []*Delivery {
	q.mu.Lock()
	defer q.mu.Unlock()
	var seqs []int64
	for seq, e := range q.entries {
		hidden := e.state == statePending || e.state == stateEnding || e.state == stateScheduled && q.opts.subscription
		if seq >= from && !hidden {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	var found []*Delivery
	for _, seq := range seqs[:min(n, len(seqs))] {
		d := q.entries[seq].delivery()
		d.LockToken, d.LockedUntil = amqp.UUID{}, time.Time{}
		found = append(found, d)
	}
	return found
}

// Purge removes all messages that are not locked and returns their number.
func (q *Queue) Purge(ctx context.Context) (int, error) {
	tx := NewTx(q.store)
	n := 0
	q.mu.Lock()
	for _, e := range q.entries {
		switch e.state {
		case stateReady, stateScheduled, stateDeferred:
			q.finish(tx, e, Purged, "", "")
			n++
		}
	}
	q.mu.Unlock()
	// The messages are taken already, so the context can't stop it any more.
	return n, tx.Commit(context.WithoutCancel(ctx))
}

// Delete stages the removal of the queue and all its messages, and at once ends
// its consumers with ErrDeleted. Nothing is dead-lettered and no outcome told.
func (q *Queue) Delete(tx *Tx) {
	q.end(ErrDeleted)
	tx.Add(store.DeletePrefix(q.prefix))
	if q.deadLetter != nil {
		q.deadLetter.Delete(tx)
	}
}

// Close ends consumers with ErrClosed and stops the queue's timer. Messages
// stay in the store.
func (q *Queue) Close() {
	q.end(ErrClosed)
	q.timers.Wait()
	if q.deadLetter != nil {
		q.deadLetter.Close()
	}
}

func (q *Queue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended == nil {
		q.ended = err
	}
	q.stopTimer()
	for c := range q.consumers {
		c.notify()
	}
}

// closedError says why the queue takes no more calls, or nil.
func (q *Queue) closedError() error {
	if q.ended == nil {
		return nil
	}
	return fmt.Errorf("queue %s: %w", q.name, q.ended)
}

// arm sets the timer for the next deadline. There is one timer, and none while
// nothing is due.
func (q *Queue) arm() {
	if len(q.deadlines) == 0 || q.ended != nil {
		return
	}
	at := q.deadlines[0].deadline
	if !q.timerAt.IsZero() && !q.timerAt.After(at) {
		return // fires soon enough, and arms itself again
	}
	q.stopTimer()
	q.timerAt = at
	q.timers.Add(1)
	q.timer = time.AfterFunc(time.Until(at), q.onTimer)
}

func (q *Queue) stopTimer() {
	if q.timer != nil && q.timer.Stop() {
		q.timers.Done()
	}
	q.timer, q.timerAt = nil, time.Time{}
}

func (q *Queue) onTimer() {
	defer q.timers.Done()
	q.mu.Lock()
	q.timerAt = time.Time{}
	tx := q.sweep(time.Now())
	q.arm()
	q.mu.Unlock()
	if tx != nil {
		tx.CommitAsync(nil) // a failing store tells whoever asks it next
	}
}

// sweep does all that is due. It returns the transaction to be committed
// without the mutex, or nil; see submit.
func (q *Queue) sweep(now time.Time) *Tx {
	var tx *Tx
	for q.ended == nil && len(q.deadlines) > 0 && !q.deadlines[0].deadline.After(now) {
		if tx == nil {
			tx = NewTx(q.store)
		}
		e := q.deadlines[0]
		q.deadlines.set(e, time.Time{})
		switch e.state {
		case stateLocked:
			q.unlock(e)
			q.giveBack(tx, e, !q.opts.CountAbandonOnly)
		case stateScheduled:
			q.arrive(tx, e, now)
		case stateReady:
			q.finish(tx, e, Expired, "", "")
		}
	}
	return q.submit(tx)
}

// submit commits a transaction, without waiting, that tells of messages which are
// available again already: with the mutex held, because what a receiver does to
// them next must not reach the store before it. A store that keeps nothing would
// call back at once; for it, the transaction is returned to be committed without
// the mutex. Otherwise it returns nil.
func (q *Queue) submit(tx *Tx) *Tx {
	if tx == nil || tx.empty() {
		return nil
	}
	if !q.store.Durable() {
		return tx
	}
	tx.CommitAsync(nil)
	return nil
}

// unlock takes the lock from a message, which its caller gives another state.
func (q *Queue) unlock(e *entry) {
	delete(q.locked, e.token)
	if e.held {
		delete(e.holder.held, e)
		e.held = false
	}
	e.token, e.lockedUntil = amqp.UUID{}, time.Time{}
	q.deadlines.set(e, time.Time{})
}

// giveBack makes a message that was locked available again, unless it has been
// delivered often enough.
func (q *Queue) giveBack(tx *Tx, e *entry, counted bool) {
	if counted {
		e.count++
		q.recordState(tx, e)
	}
	if q.exceeded(e) {
		q.finish(tx, e, DeliveryCountExceeded, "", "")
		return
	}
	q.makeAvailable(e)
}

func (q *Queue) exceeded(e *entry) bool {
	limit := q.opts.MaxDeliveryCount
	return limit >= 0 && int64(e.count) >= int64(limit)
}

func (q *Queue) recordState(tx *Tx, e *entry) {
	e.recorded = true
	tx.put(q.prefix, keyState, e.seq, e.stateRecord())
}

// arrive appends a scheduled message to the queue as if it were sent now: the
// number that it had is valid for as long as it waits, and others may have
// overtaken it (Service Bus docs: "Message sequencing and timestamps").
func (q *Queue) arrive(tx *Tx, e *entry, now time.Time) {
	tx.remove(q.prefix, keyMessage, e.seq)
	q.forget(e)
	if !q.opts.subscription {
		e.enqueueSeq = 0 // becomes the new one
	}
	if !e.expires.IsZero() {
		e.expires = e.expires.Add(now.Sub(e.enqueued))
	}
	e.enqueued, e.waiting, e.state = now, false, statePending
	_ = q.addEntry(tx, e) // fails where a message can't be encoded, and it was before
	q.counter.put(tx, q.last)
	q.registerStaged(tx, []*entry{e})
}

// makeAvailable puts a message where readers find it: among the ready ones, the
// deferred ones, or, before its time, the scheduled ones.
func (q *Queue) makeAvailable(e *entry) {
	switch {
	case e.waiting:
		e.state = stateScheduled
		q.deadlines.set(e, e.scheduled)
	case e.deferred:
		// It stays until somebody asks for it, whether or not it expires.
		e.state = stateDeferred
		q.deadlines.set(e, time.Time{})
	default:
		e.state = stateReady
		heap.Push(&q.ready, e)
		q.deadlines.set(e, e.expires)
		q.wakeFor(e)
	}
	// An end that has passed while the message was locked is due now, and the
	// next look at the queue takes it before it hands anything out.
}

// finish stages the end of a message and, where that is called for, its copy in
// the dead-letter queue.
func (q *Queue) finish(tx *Tx, e *entry, cause Cause, reason, description string) {
	d := *e.delivery()
	q.ready.remove(e)
	q.deadlines.set(e, time.Time{})
	e.state = stateEnding
	tx.remove(q.prefix, keyMessage, e.seq)
	if e.recorded {
		tx.remove(q.prefix, keyState, e.seq)
	}
	switch {
	case cause == Expired && q.opts.DeadLetterOnExpiry:
		q.toDeadLetter(tx, e, ReasonExpired, descriptionExpired)
	case cause == DeliveryCountExceeded:
		q.toDeadLetter(tx, e, ReasonDeliveryExceeded, fmt.Sprintf(descriptionDeliveryExceeded, e.count))
	case cause == Rejected:
		q.toDeadLetter(tx, e, reason, description)
	}
	if q.opts.OnOutcome != nil {
		q.opts.OnOutcome(tx, Outcome{Cause: cause, Reason: reason, Description: description, Delivery: d})
	}
	tx.OnCommit(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.forget(e)
	})
}

func (q *Queue) forget(e *entry) {
	if q.entries[e.seq] == e {
		delete(q.entries, e.seq)
		q.bytes -= int64(e.weight)
	}
}

func (q *Queue) toDeadLetter(tx *Tx, e *entry, reason, description string) {
	if q.deadLetter == nil {
		return
	}
	more := make(map[string]any, 2)
	if reason != "" {
		more[PropertyDeadLetterReason] = reason
	}
	if description != "" {
		more[PropertyDeadLetterDescription] = description
	}
	moved := &entry{
		msg:        withProperties(e.msg, more),
		enqueueSeq: e.enqueueSeq,
		enqueued:   e.enqueued,
		source:     q.name,
		count:      e.count,
	}
	q.deadLetter.stageMoved(tx, moved)
}

// stageMoved takes over an entry from the queue whose dead-letter queue this is.
// There is no error to give back: the message was encoded once before.
func (q *Queue) stageMoved(tx *Tx, e *entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e.measure()
	e.readyIndex, e.deadlineIndex = -1, -1
	_ = q.addEntry(tx, e)
	q.counter.put(tx, q.last)
	if e.count > 0 {
		q.recordState(tx, e)
	}
	q.registerStaged(tx, []*entry{e})
}

var errStageDuplicates = errors.New("has duplicate detection on and can't be part of a transaction")

// checkSend refuses what can't be sent here. Only the broker itself puts
// messages into a dead-letter queue.
func (q *Queue) checkSend(msgs []*amqp.Message) error {
	if q.isDeadLetter {
		return q.errDeadLetter()
	}
	if err := q.ids.check(q.name, msgs); err != nil {
		return err
	}
	return checkSizes(q.name, q.opts.MaxMessageSize, msgs)
}

func (q *Queue) errDeadLetter() error { return fmt.Errorf("send to %s: %w", q.name, ErrNotAllowed) }

// highestEnqueued is the highest number that a topic gave a message which is
// here or in the dead-letter queue.
func (q *Queue) highestEnqueued() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	var highest int64
	for _, e := range q.entries {
		highest = max(highest, e.enqueueSeq)
	}
	if q.deadLetter != nil {
		highest = max(highest, q.deadLetter.highestEnqueued())
	}
	return highest
}

func checkSizes(name string, limit int, msgs []*amqp.Message) error {
	for _, m := range msgs {
		if n := MessageSize(m); n > limit {
			return fmt.Errorf("send to %s: %w: it has %d bytes of at most %d", name, ErrTooLarge, n, limit)
		}
		if err := checkProperties(m); err != nil {
			return fmt.Errorf("send to %s: %w", name, err)
		}
	}
	return nil
}
