package broker

import (
	"encoding/binary"
	"fmt"
	"slices"
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
	// Message is the reader's own.
	Message        *amqp.Message
	SequenceNumber int64 // 0, 1, ...
	Offset         string
	EnqueuedTime   time.Time
	PartitionKey   string
}

// slot is the place of an event. Places are given when an event is staged, and
// readers go no further than the first event that isn't durable yet, so that
// nobody passes an event which becomes visible behind his back.
//
// Events are kept as they are encoded: there may be hundreds of thousands, most
// of them never read, and a message is many small pieces of memory.
type slot struct {
	seq     int64
	offset  int64
	at      time.Time
	key     string
	message []byte // encoded; nil when the transaction was aborted
	ready   bool   // durable, or aborted
}

// bytes is what counts against the partition's limit. The encoding may be much
// longer than the message's size: a list of nothing has none.
func (s *slot) bytes() int64 { return int64(len(s.message)) + eventOverhead }

func (s *slot) event() (*Event, error) {
	e := &Event{
		Message:        new(amqp.Message),
		SequenceNumber: s.seq,
		Offset:         strconv.FormatInt(s.offset, 10),
		EnqueuedTime:   s.at,
		PartitionKey:   s.key,
	}
	return e, e.Message.UnmarshalBinary(s.message)
}

// encode encodes the message into the slot, and returns the slot's record, of
// which it is the end.
func (s *slot) encode(m *amqp.Message) ([]byte, error) {
	enc := make(encoder, 0, MessageSize(m)+recordRoom)
	enc.int(s.offset)
	enc.time(s.at)
	enc.string(s.key)
	head := len(enc)
	if err := enc.message(m); err != nil {
		return nil, err
	}
	record := slices.Clip([]byte(enc))
	s.message = record[head:]
	return record, nil
}

// recordRoom is more than what the encoding of most messages adds to its size.
const recordRoom = 192

func decodeSlot(seq int64, record []byte) (slot, error) {
	d := decoder{rest: record}
	s := slot{seq: seq, offset: d.int(), at: d.time(), key: d.string(), ready: true}
	s.message = d.rest
	d.message() // says whether it can be read
	return s, d.err
}

// eventOverhead is counted for each event besides its bytes, so that many small
// ones fill a partition too.
const eventOverhead = 256

type partition struct {
	log    *EventLog
	id     string
	prefix string
	// counterKey is the key of the counters.
	counterKey string

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
	prefix := logPrefix + "p" + id + "/"
	return &partition{
		log:        l,
		id:         id,
		prefix:     prefix,
		counterKey: prefix + keyCounter,
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
		e, err := decodeSlot(seq, value)
		if err == nil {
			p.slots = append(p.slots, e)
			p.bytes += e.bytes()
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
	last := &p.slots[len(p.slots)-1]
	p.nextSeq = max(p.nextSeq, last.seq+1)
	p.nextOffset = max(p.nextOffset, last.offset+last.bytes())
	p.lastOffset = max(p.lastOffset, last.offset)
	if last.at.After(p.lastTime) {
		p.lastTime = last.at
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
	first := len(p.slots)
	nextSeq, nextOffset := p.nextSeq, p.nextOffset
	for _, m := range msgs {
		e := slot{seq: nextSeq, offset: nextOffset, at: now, key: key}
		if err := p.stageRecord(tx, &e, m); err != nil {
			clear(p.slots[first:])
			p.slots = p.slots[:first]
			return err // the caller aborts tx
		}
		p.slots = append(p.slots, e)
		nextSeq++
		nextOffset += e.bytes()
	}
	p.stageCounter(tx, p.slots[first:], nextSeq, nextOffset)
	for i := range p.slots[first:] {
		p.bytes += p.slots[first+i].bytes()
	}
	from, n := p.nextSeq, nextSeq-p.nextSeq
	p.nextSeq, p.nextOffset = nextSeq, nextOffset
	p.trim(now)
	garbage := p.garbage
	tx.Add(garbage...)
	p.garbage = nil
	tx.OnCommit(func() { p.settle(from, n, true) })
	tx.OnAbort(func() {
		p.settle(from, n, false)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.garbage = append(p.garbage, garbage...)
	})
	return nil
}

// stageRecord encodes an event, and adds it to the transaction.
func (p *partition) stageRecord(tx *Tx, e *slot, m *amqp.Message) error {
	record, err := e.encode(m)
	if err != nil {
		return fmt.Errorf("event hub %s: %w", p.log.name, err)
	}
	tx.put(p.prefix, keyMessage, e.seq, record)
	return nil
}

// counterRoom is as long as the counters can be: four numbers.
const counterRoom = 4 * binary.MaxVarintLen64

// stageCounter adds the counters behind events to the transaction.
func (p *partition) stageCounter(tx *Tx, events []slot, nextSeq, nextOffset int64) {
	if !p.log.store.Durable() || len(events) == 0 {
		return
	}
	last := events[len(events)-1]
	counter := make(encoder, 0, counterRoom)
	counter.int(nextSeq)
	counter.int(nextOffset)
	counter.int(last.offset)
	counter.time(last.at)
	tx.Add(store.Put(p.counterKey, counter))
}

// clock is the time in the milliseconds that clients see, so that they can
// start again from the time of an event. It is never before that of an event
// already there: readers look for times by bisection.
func (p *partition) clock() time.Time {
	now := time.Now().UTC().Truncate(time.Millisecond)
	if n := len(p.slots); n > 0 && p.slots[n-1].at.After(now) {
		return p.slots[n-1].at
	}
	return now
}

// settle marks n staged events, from a sequence number on, as durable or aborted,
// and shows readers what has no gap before it any more.
func (p *partition) settle(from, n int64, durable bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := p.index(from); i < len(p.slots) && p.slots[i].seq < from+n; i++ {
		p.slots[i].ready = true
		if !durable {
			p.bytes -= p.slots[i].bytes()
			p.slots[i].message = nil
		}
	}
	before := p.visible
	for p.visible < len(p.slots) && p.slots[p.visible].ready {
		if e := &p.slots[p.visible]; e.message != nil {
			p.lastOffset, p.lastTime = e.offset, e.at
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
		if e := &p.slots[n]; e.message != nil {
			p.bytes -= e.bytes()
			if p.log.store.Durable() {
				p.garbage = append(p.garbage, store.Delete(sequenceKey(p.prefix, keyMessage, e.seq)))
			}
		}
		p.slots[n] = slot{} // lets go of the event at once
		n++
	}
	p.slots = p.slots[n:]
	p.visible -= n
}

func (s *slot) before(t time.Time) bool { return s.message == nil || s.at.Before(t) }

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
