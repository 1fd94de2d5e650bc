package broker

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Event is one event of a partition.
type Event struct {
	// Message must not be modified: see the package comment.
	Message        *amqp.Message
	SequenceNumber int64 // 0, 1, ...
	Offset         string
	EnqueuedTime   time.Time
	PartitionKey   string

	offset int64
	size   int64
}

func newEvent(m *amqp.Message, key string, at time.Time, seq, offset int64) *Event {
	return &Event{
		Message:        m,
		SequenceNumber: seq,
		Offset:         strconv.FormatInt(offset, 10),
		EnqueuedTime:   at,
		PartitionKey:   key,
		offset:         offset,
		size:           int64(MessageSize(m)),
	}
}

func (e *Event) record() ([]byte, error) {
	enc := make(encoder, 0, e.size+128)
	enc.int(e.offset)
	enc.time(e.EnqueuedTime)
	enc.string(e.PartitionKey)
	err := enc.message(e.Message)
	return enc, err
}

func decodeEvent(seq int64, b []byte) (*Event, error) {
	d := decoder{rest: b}
	offset, at, key := d.int(), d.time(), d.string()
	return newEvent(d.message(), key, at, seq, offset), d.err
}

// slot is the place of an event. Places are given when an event is staged, and
// readers go no further than the first event that isn't durable yet, so that
// nobody passes an event which becomes visible behind his back.
type slot struct {
	event *Event // nil when the transaction was aborted
	seq   int64
	ready bool // durable, or aborted
}

// eventOverhead is counted for each event besides its bytes, so that many small
// ones fill a partition too.
const eventOverhead = 256

type partition struct {
	log    *EventLog
	id     string
	prefix string

	mu         sync.Mutex // guards all below
	slots      []slot     // by sequence number
	visible    int        // how many slots readers may see
	bytes      int64
	nextSeq    int64
	nextOffset int64
	lastOffset int64 // of the last visible event ever, -1 before it
	lastTime   time.Time
	garbage    []store.Op              // deletions that wait for the next append
	changed    chan struct{}           // closed when there is more to see; nil while nobody waits
	groups     map[string]*readerGroup // by name in lower case
	closed     bool
}

func newPartition(l *EventLog, id, logPrefix string) *partition {
	return &partition{
		log:        l,
		id:         id,
		prefix:     logPrefix + "p" + id + "/",
		lastOffset: -1,
		groups:     make(map[string]*readerGroup),
	}
}

func (p *partition) load() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.log.store.Load(p.prefix, func(key string, value []byte) error {
		suffix := key[len(p.prefix):]
		if suffix == keyCounter {
			d := decoder{rest: value}
			p.nextSeq, p.nextOffset = d.int(), d.int()
			p.lastOffset, p.lastTime = d.int(), d.time()
			return d.err
		}
		if !strings.HasPrefix(suffix, keyMessage) {
			return errRecord
		}
		seq, err := parseSequenceKey(suffix)
		if err != nil {
			return err
		}
		e, err := decodeEvent(seq, value)
		if err == nil {
			p.slots = append(p.slots, slot{event: e, seq: seq, ready: true})
			p.bytes += e.size + eventOverhead
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("partition %s: %w", p.id, err)
	}
	p.visible = len(p.slots)
	p.catchUp()
	p.trim(time.Now())
	return nil
}

// catchUp moves the counters behind the last event. Transactions may reach the
// disk in another order than they got their numbers, so the counters there may
// be those of an earlier one.
func (p *partition) catchUp() {
	if len(p.slots) == 0 {
		return
	}
	last := p.slots[len(p.slots)-1].event
	p.nextSeq = max(p.nextSeq, last.SequenceNumber+1)
	p.nextOffset = max(p.nextOffset, last.offset+last.size+eventOverhead)
	p.lastOffset = max(p.lastOffset, last.offset)
	if last.EnqueuedTime.After(p.lastTime) {
		p.lastTime = last.EnqueuedTime
	}
}

// stage adds events to the end of the partition.
func (p *partition) stage(tx *Tx, key string, msgs []*amqp.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("event hub %s: %w", p.log.name, ErrClosed)
	}
	now := p.clock()
	events := make([]*Event, len(msgs))
	seq, offset := p.nextSeq, p.nextOffset
	for i, m := range msgs {
		events[i] = newEvent(m, key, now, seq, offset)
		seq++
		offset += events[i].size + eventOverhead
	}
	if err := p.stageRecords(tx, events, seq, offset); err != nil {
		return err
	}
	for _, e := range events {
		p.slots = append(p.slots, slot{event: e, seq: e.SequenceNumber})
		p.bytes += e.size + eventOverhead
	}
	p.nextSeq, p.nextOffset = seq, offset
	p.trim(now)
	garbage := p.garbage
	tx.Add(garbage...)
	p.garbage = nil
	tx.OnCommit(func() { p.settle(events, true) })
	tx.OnAbort(func() {
		p.settle(events, false)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.garbage = append(p.garbage, garbage...)
	})
	return nil
}

// clock is the time in the milliseconds that clients see, so that they can
// start again from the time of an event. It is never before that of an event
// already there: readers look for times by bisection.
func (p *partition) clock() time.Time {
	now := time.Now().UTC().Truncate(time.Millisecond)
	if n := len(p.slots); n > 0 && p.slots[n-1].event != nil && p.slots[n-1].event.EnqueuedTime.After(now) {
		return p.slots[n-1].event.EnqueuedTime
	}
	return now
}

func (p *partition) stageRecords(tx *Tx, events []*Event, nextSeq, nextOffset int64) error {
	if !p.log.store.Durable() || len(events) == 0 {
		return nil
	}
	ops := make([]store.Op, 0, len(events)+1)
	for _, e := range events {
		record, err := e.record()
		if err != nil {
			return fmt.Errorf("event hub %s: %w", p.log.name, err)
		}
		ops = append(ops, store.Put(sequenceKey(p.prefix, keyMessage, e.SequenceNumber), record))
	}
	last := events[len(events)-1]
	var counter encoder
	counter.int(nextSeq)
	counter.int(nextOffset)
	counter.int(last.offset)
	counter.time(last.EnqueuedTime)
	tx.Add(append(ops, store.Put(p.prefix+keyCounter, counter))...)
	return nil
}

// settle marks staged events as durable or aborted, and shows readers what has
// no gap before it any more.
func (p *partition) settle(events []*Event, durable bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range events {
		i := p.index(e.SequenceNumber)
		if i == len(p.slots) || p.slots[i].seq != e.SequenceNumber {
			continue // trimmed already
		}
		p.slots[i].ready = true
		if !durable {
			p.slots[i].event = nil
			p.bytes -= e.size + eventOverhead
		}
	}
	before := p.visible
	for p.visible < len(p.slots) && p.slots[p.visible].ready {
		if e := p.slots[p.visible].event; e != nil {
			p.lastOffset, p.lastTime = e.offset, e.EnqueuedTime
		}
		p.visible++
	}
	if p.visible > before {
		p.wake()
	}
}

func (p *partition) wake() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// index returns the first slot whose sequence number is not below seq.
func (p *partition) index(seq int64) int {
	return sort.Search(len(p.slots), func(i int) bool { return p.slots[i].seq >= seq })
}

// trim drops visible events that are too old, or more than the partition may
// hold.
func (p *partition) trim(now time.Time) {
	oldest := now.Add(-p.log.opts.Retention)
	n := 0
	for n < p.visible && (p.bytes > p.log.opts.MaxBytes || p.slots[n].before(oldest)) {
		if e := p.slots[n].event; e != nil {
			p.bytes -= e.size + eventOverhead
			if p.log.store.Durable() {
				p.garbage = append(p.garbage, store.Delete(sequenceKey(p.prefix, keyMessage, e.SequenceNumber)))
			}
		}
		p.slots[n] = slot{} // lets go of the event at once
		n++
	}
	p.slots = p.slots[n:]
	p.visible -= n
}

func (s slot) before(t time.Time) bool { return s.event == nil || s.event.EnqueuedTime.Before(t) }

func (p *partition) properties() PartitionProperties {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trim(time.Now())
	props := PartitionProperties{
		ID:                         p.id,
		BeginSequenceNumber:        p.endSeq(),
		LastEnqueuedSequenceNumber: p.endSeq() - 1,
		LastEnqueuedOffset:         strconv.FormatInt(p.lastOffset, 10),
		LastEnqueuedTime:           p.lastTime,
		Empty:                      p.visible == 0,
	}
	if p.visible > 0 {
		props.BeginSequenceNumber = p.slots[0].seq
	}
	return props
}

// endSeq is the sequence number behind the last visible event.
func (p *partition) endSeq() int64 {
	if p.visible < len(p.slots) {
		return p.slots[p.visible].seq
	}
	return p.nextSeq
}

func (p *partition) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.wake()
}
