package broker

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// DefaultConsumerGroup exists in every event log.
const DefaultConsumerGroup = "$Default"

// Defaults and limits of Event Hubs (Event Hubs docs: "Quotas and limits").
const (
	DefaultPartitions   = 4
	MaxPartitions       = 32
	DefaultRetention    = 24 * time.Hour
	DefaultMaxEventSize = 1 << 20
	// MaxReaders without owner level for each partition and consumer group.
	MaxReaders = 5
)

// defaultPartitionBytes bounds what one partition keeps in memory.
const defaultPartitionBytes = 32 << 20

// EventLogOptions are the properties of an event hub.
type EventLogOptions struct {
	// Partitions is their number, 1 to 32; default 4. They are named 0, 1, ...
	Partitions int
	// ConsumerGroups beside $Default.
	ConsumerGroups []string
	// Retention is how long events are kept; default 24 hours.
	Retention time.Duration
	// MaxBytes is how much of each partition is kept, the newest; default 32
	// MiB. The cloud has no such limit: it keeps a busy log from filling the
	// memory.
	MaxBytes int64
	// MaxMessageSize is the largest event in bytes; default 1 MiB.
	MaxMessageSize int
}

func (o EventLogOptions) withDefaults() EventLogOptions {
	o.Partitions = cmp.Or(o.Partitions, DefaultPartitions)
	o.Retention = cmp.Or(o.Retention, DefaultRetention)
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultPartitionBytes)
	o.MaxMessageSize = cmp.Or(o.MaxMessageSize, DefaultMaxEventSize)
	return o
}

// EventLog is an event hub: partitions of events that readers read from any
// position, without removing them.
type EventLog struct {
	name       string
	opts       EventLogOptions
	store      store.Store
	created    time.Time
	partitions []*partition
	turn       atomic.Uint32 // for events without key
}

// OpenEventLog returns the log of that name with what the store holds of it. A
// log in no Namespace must be closed by its owner.
func OpenEventLog(s store.Store, name string, opts EventLogOptions) (*EventLog, error) {
	return openEventLog(s, name, name, opts)
}

func openEventLog(s store.Store, key, name string, opts EventLogOptions) (*EventLog, error) {
	opts = opts.withDefaults()
	if opts.Partitions < 1 || opts.Partitions > MaxPartitions {
		return nil, fmt.Errorf("event hub %s: %d partitions, must be 1 to %d", name, opts.Partitions, MaxPartitions)
	}
	l := &EventLog{name: name, opts: opts, store: s}
	prefix := prefixOf("e", key)
	if err := l.loadIdentity(prefix + keyCounter); err != nil {
		return nil, fmt.Errorf("event hub %s: %w", name, err)
	}
	for i := range opts.Partitions {
		p := newPartition(l, strconv.Itoa(i), prefix)
		if err := p.load(); err != nil {
			return nil, fmt.Errorf("event hub %s: %w", name, err)
		}
		l.partitions = append(l.partitions, p)
	}
	return l, nil
}

// loadIdentity reads when the log was made, or notes that it is now. The number
// of partitions can't change: the order of a key's events would be lost.
func (l *EventLog) loadIdentity(key string) error {
	err := l.store.Load(key, func(_ string, value []byte) error {
		d := decoder{rest: value}
		l.created = d.time()
		if n := d.int(); d.err == nil && n != int64(l.opts.Partitions) {
			return fmt.Errorf("it was made with %d partitions and can't have %d; the number is fixed at creation", n, l.opts.Partitions)
		}
		return d.err
	})
	if err != nil || !l.created.IsZero() {
		return err
	}
	l.created = time.Now().UTC()
	var value encoder
	value.time(l.created)
	value.int(int64(l.opts.Partitions))
	return store.Commit(l.store, store.Put(key, value))
}

// Name returns the log's name.
func (l *EventLog) Name() string { return l.name }

// Options returns the log's properties, defaults filled in.
func (l *EventLog) Options() EventLogOptions { return l.opts }

// CreatedAt is when the log was first opened in this store.
func (l *EventLog) CreatedAt() time.Time { return l.created }

// PartitionIDs returns the names of the partitions.
func (l *EventLog) PartitionIDs() []string {
	ids := make([]string, len(l.partitions))
	for i, p := range l.partitions {
		ids[i] = p.id
	}
	return ids
}

// HasConsumerGroup reports whether the group exists, without regard to case.
func (l *EventLog) HasConsumerGroup(name string) bool {
	same := func(group string) bool { return strings.EqualFold(group, name) }
	return same(DefaultConsumerGroup) || slices.ContainsFunc(l.opts.ConsumerGroups, same)
}

// PartitionFor returns the partition that a key is hashed to; the next one in
// turn for an empty key.
func (l *EventLog) PartitionFor(key string) string { return l.partitionFor(key).id }

// partitionFor hashes with a function of its own choice: that of the cloud is
// not documented, and nobody may depend on it.
func (l *EventLog) partitionFor(key string) *partition {
	n := uint32(len(l.partitions))
	if key == "" {
		return l.partitions[(l.turn.Add(1)-1)%n]
	}
	h := fnv.New32a()
	h.Write([]byte(key))
	return l.partitions[h.Sum32()%n]
}

func (l *EventLog) partition(id string) (*partition, error) {
	for _, p := range l.partitions {
		if p.id == id {
			return p, nil
		}
	}
	return nil, fmt.Errorf("partition %q of event hub %s: %w", id, l.name, ErrNotFound)
}

// AppendOptions say where events go.
type AppendOptions struct {
	// PartitionID names the partition; if empty, PartitionKey decides.
	PartitionID string
	// PartitionKey is hashed to a partition and kept with the events.
	PartitionKey string
}

// Append stores events, all or none and in one partition. ErrNotFound for an
// unknown partition.
func (l *EventLog) Append(ctx context.Context, opts AppendOptions, msgs ...*amqp.Message) error {
	return wait(ctx, func(done func(error)) { l.AppendAsync(done, opts, msgs...) })
}

// AppendAsync is Append that calls done with the result.
func (l *EventLog) AppendAsync(done func(error), opts AppendOptions, msgs ...*amqp.Message) {
	if err := checkSizes(l.name, l.opts.MaxMessageSize, msgs); err != nil {
		done(err)
		return
	}
	tx := NewTx(l.store)
	if err := l.Stage(tx, opts, msgs...); err != nil {
		done(err)
		return
	}
	tx.CommitAsync(done)
}

// Stage adds events, of any size, to a transaction.
func (l *EventLog) Stage(tx *Tx, opts AppendOptions, msgs ...*amqp.Message) error {
	if opts.PartitionID == "" {
		return l.partitionFor(opts.PartitionKey).stage(tx, opts.PartitionKey, msgs)
	}
	p, err := l.partition(opts.PartitionID)
	if err != nil {
		return err
	}
	return p.stage(tx, opts.PartitionKey, msgs)
}

// PartitionProperties is the answer to Event Hubs' READ of a partition.
type PartitionProperties struct {
	ID                         string
	BeginSequenceNumber        int64  // first event kept
	LastEnqueuedSequenceNumber int64  // -1 before the first event
	LastEnqueuedOffset         string // -1 before the first event
	LastEnqueuedTime           time.Time
	Empty                      bool
}

// Partition returns the properties of a partition, or ErrNotFound.
func (l *EventLog) Partition(id string) (PartitionProperties, error) {
	p, err := l.partition(id)
	if err != nil {
		return PartitionProperties{}, err
	}
	return p.properties(), nil
}

// OpenReader returns a reader, to be closed by the caller; ErrNotFound, ErrOwned
// or ErrTooManyReaders if it is refused.
func (l *EventLog) OpenReader(opts ReaderOptions) (*Reader, error) {
	opts.ConsumerGroup = cmp.Or(opts.ConsumerGroup, DefaultConsumerGroup)
	if !l.HasConsumerGroup(opts.ConsumerGroup) {
		return nil, fmt.Errorf("consumer group %q of event hub %s: %w", opts.ConsumerGroup, l.name, ErrNotFound)
	}
	p, err := l.partition(opts.PartitionID)
	if err != nil {
		return nil, err
	}
	return p.openReader(opts)
}

// Close ends all readers. Events stay in the store.
func (l *EventLog) Close() {
	for _, p := range l.partitions {
		p.close()
	}
}
