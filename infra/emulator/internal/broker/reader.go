package broker

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"
)

// Position is where a reader starts. Exactly one field, beside Inclusive, is
// used; the zero Position is the beginning.
type Position struct {
	// Latest starts behind the last event.
	Latest bool
	// Offset starts behind the event of this offset; -1 is the beginning.
	Offset *int64
	// SequenceNumber starts behind the event of this sequence number.
	SequenceNumber *int64
	// EnqueuedTime starts behind events of this time.
	EnqueuedTime *time.Time
	// Inclusive starts with the event of that position instead.
	Inclusive bool
}

// ReaderOptions say how a reader reads.
type ReaderOptions struct {
	// ConsumerGroup; empty means $Default.
	ConsumerGroup string
	// PartitionID is required.
	PartitionID string
	Start       Position
	// OwnerLevel, if not nil, makes the reader the only one of its group in
	// the partition. It ends those of a lower or equal level, or none.
	OwnerLevel *int64
}

// Reader reads one partition. One goroutine uses it, apart from Close.
type Reader struct {
	partition *partition
	group     string
	level     *int64
	next      int64     // sequence number to read; guarded by the partition's mutex
	after     time.Time // events up to it are passed over; zero for none
	ended     error     // guarded by the partition's mutex
}

// readerGroup are the readers of one consumer group in one partition.
type readerGroup struct {
	owner   *Reader // nil while no reader has an owner level
	readers map[*Reader]struct{}
}

func (p *partition) openReader(opts ReaderOptions) (*Reader, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &Reader{partition: p, group: strings.ToLower(opts.ConsumerGroup), level: opts.OwnerLevel}
	g := p.groups[r.group]
	if g == nil {
		g = &readerGroup{readers: make(map[*Reader]struct{})}
		p.groups[r.group] = g
	}
	if err := g.admit(r); err != nil {
		return nil, fmt.Errorf("partition %s of event hub %s, consumer group %s: %w", p.id, p.log.name, opts.ConsumerGroup, err)
	}
	p.trim(time.Now())
	p.place(r, opts.Start)
	p.wake() // those that lost their partition notice it
	return r, nil
}

// admit lets a reader in, and ends those that it takes the partition from.
func (g *readerGroup) admit(r *Reader) error {
	switch {
	case g.owner != nil && (r.level == nil || *r.level < *g.owner.level):
		return ErrOwned
	case r.level == nil && len(g.readers) >= MaxReaders:
		return ErrTooManyReaders
	case r.level != nil:
		for other := range g.readers {
			other.ended = ErrStolen
		}
		clear(g.readers)
		g.owner = r
	}
	g.readers[r] = struct{}{}
	return nil
}

// place finds the first event that the reader gets.
func (p *partition) place(r *Reader, start Position) {
	switch {
	case start.Latest:
		r.next = p.endSeq()
	case start.SequenceNumber != nil:
		r.next = *start.SequenceNumber
		if !start.Inclusive {
			r.next++
		}
	case start.Offset != nil:
		r.next = p.seqBehind(func(e *slot) bool {
			return e.offset > *start.Offset || start.Inclusive && e.offset == *start.Offset
		})
	case start.EnqueuedTime != nil:
		r.after = *start.EnqueuedTime
		if start.Inclusive {
			r.after = r.after.Add(-1)
		}
		r.next = p.seqBehind(func(e *slot) bool { return e.at.After(r.after) })
	}
}

// seqBehind returns the sequence number of the first event that is behind a
// position, or the one that the next event will have.
func (p *partition) seqBehind(behind func(*slot) bool) int64 {
	i := sort.Search(p.visible, func(i int) bool {
		// For an aborted event, the next one before it decides.
		for ; i >= 0; i-- {
			if e := &p.slots[i]; e.message != nil {
				return behind(e)
			}
		}
		return false
	})
	if i < p.visible {
		return p.slots[i].seq
	}
	return p.endSeq()
}

// Next waits for events and returns up to n of them. It returns ErrStolen when
// another reader took over and ErrClosed after Close.
func (r *Reader) Next(ctx context.Context, n int) ([]*Event, error) {
	for {
		slots, changed, err := r.read(n)
		if err != nil {
			return nil, err
		}
		if len(slots) > 0 {
			return decodeEvents(slots)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// decodeEvents decodes what was encoded when it was stored.
func decodeEvents(slots []slot) ([]*Event, error) {
	events := make([]*Event, len(slots))
	for i := range slots {
		var err error
		if events[i], err = slots[i].event(); err != nil {
			return nil, fmt.Errorf("event %d: %w", slots[i].seq, err)
		}
	}
	return events, nil
}

// read returns what there is, or a channel that is closed when there may be
// more.
func (r *Reader) read(n int) ([]slot, <-chan struct{}, error) {
	p := r.partition
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := r.endedError(); err != nil {
		return nil, nil, err
	}
	p.trim(time.Now())
	var found []slot
	for i := p.index(r.next); i < p.visible && len(found) < n; i++ {
		r.next = p.slots[i].seq + 1
		if e := p.slots[i]; e.message != nil && e.at.After(r.after) {
			found = append(found, e)
		}
	}
	if len(found) == 0 && p.changed == nil {
		p.changed = make(chan struct{})
	}
	return found, p.changed, nil
}

func (r *Reader) endedError() error {
	err := r.ended
	if err == nil && r.partition.closed {
		err = ErrClosed
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("partition %s of event hub %s: %w", r.partition.id, r.partition.log.name, err)
}

// Close ends the reader.
func (r *Reader) Close() {
	p := r.partition
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.ended == nil {
		r.ended = ErrClosed
	}
	g := p.groups[r.group]
	delete(g.readers, r)
	if g.owner == r {
		g.owner = nil
	}
	p.wake()
}
