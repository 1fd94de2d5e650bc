package broker

import (
	"container/heap"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

type entryState uint8

const (
	// statePending: staged in a transaction that isn't durable yet.
	statePending entryState = iota
	stateScheduled
	stateReady
	stateLocked
	stateDeferred
	// stateEnding: a transaction that changes or removes it is under way.
	stateEnding
)

// entry is a message in a queue. The queue's mutex guards it.
type entry struct {
	msg             *amqp.Message
	seq, enqueueSeq int64
	enqueued        time.Time
	scheduled       time.Time
	expires         time.Time
	source          string // where it was dead-lettered
	size            int    // for limits on the message
	weight          int    // for limits on the queue
	count           uint32 // deliveries that count
	deferred        bool
	waiting         bool // for its scheduled time
	recorded        bool // the store has a state record
	repeated        bool // was delivered again after it was completed
	state           entryState
	token           amqp.UUID
	lockedUntil     time.Time
	holder          *Consumer // had it last
	held            bool      // locked until holder closes
	deadline        time.Time // when something is due, while in deadlines
	readyIndex      int       // place in the heap, -1 when not in it
	deadlineIndex   int
}

// measure is called when the message has changed.
func (e *entry) measure() { e.size, e.weight = MessageSize(e.msg), weight(e.msg) }

func (e *entry) delivery() *Delivery {
	d := &Delivery{
		Message:                e.msg,
		SequenceNumber:         e.seq,
		EnqueuedSequenceNumber: e.enqueueSeq,
		EnqueuedTime:           e.enqueued,
		ScheduledTime:          e.scheduled,
		ExpiresAt:              e.expires,
		DeliveryCount:          e.count,
		DeadLetterSource:       e.source,
	}
	switch {
	case e.state == stateScheduled:
		d.State = Scheduled
	case e.deferred:
		d.State = Deferred
	}
	if e.state == stateLocked {
		d.LockToken, d.LockedUntil = e.token, e.lockedUntil
	}
	return d
}

// record encodes all that doesn't change while the message is in the queue.
func (e *entry) record() ([]byte, error) {
	enc := make(encoder, 0, e.size+128)
	enc.int(e.enqueueSeq)
	enc.time(e.enqueued)
	enc.time(e.scheduled)
	enc.time(e.expires)
	enc.string(e.source)
	err := enc.message(e.msg)
	return enc, err
}

func decodeEntry(seq int64, b []byte) (*entry, error) {
	d := decoder{rest: b}
	e := &entry{seq: seq, readyIndex: -1, deadlineIndex: -1}
	e.enqueueSeq = d.int()
	e.enqueued = d.time()
	e.scheduled = d.time()
	e.expires = d.time()
	e.source = d.string()
	e.msg = d.message()
	e.measure()
	return e, d.err
}

// stateRecord encodes what does change.
func (e *entry) stateRecord() []byte {
	var enc encoder
	enc.int(int64(e.count))
	if e.deferred {
		enc.int(1)
	} else {
		enc.int(0)
	}
	return enc
}

func (e *entry) decodeState(b []byte) error {
	d := decoder{rest: b}
	e.count = uint32(d.int())
	e.deferred = d.int() == 1
	e.recorded = true
	return d.err
}

// readyHeap orders available messages by sequence number: a message that comes
// back takes its old place.
type readyHeap []*entry

func (h readyHeap) Len() int           { return len(h) }
func (h readyHeap) Less(i, j int) bool { return h[i].seq < h[j].seq }
func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].readyIndex, h[j].readyIndex = i, j
}
func (h *readyHeap) Push(x any) {
	e := x.(*entry)
	e.readyIndex = len(*h)
	*h = append(*h, e)
}
func (h *readyHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.readyIndex = -1
	return e
}

func (h *readyHeap) remove(e *entry) {
	if e.readyIndex >= 0 {
		heap.Remove(h, e.readyIndex)
	}
}

// deadlineHeap orders messages by when the queue has to look at them: the end of
// a lock, of a time to live, of a wait for the scheduled time.
type deadlineHeap []*entry

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].deadline.Before(h[j].deadline) }
func (h deadlineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].deadlineIndex, h[j].deadlineIndex = i, j
}
func (h *deadlineHeap) Push(x any) {
	e := x.(*entry)
	e.deadlineIndex = len(*h)
	*h = append(*h, e)
}
func (h *deadlineHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.deadlineIndex = -1
	return e
}

// set gives e a deadline, or none for the zero time.
func (h *deadlineHeap) set(e *entry, at time.Time) {
	e.deadline = at
	switch {
	case at.IsZero() && e.deadlineIndex >= 0:
		heap.Remove(h, e.deadlineIndex)
	case at.IsZero():
	case e.deadlineIndex >= 0:
		heap.Fix(h, e.deadlineIndex)
	default:
		heap.Push(h, e)
	}
}
