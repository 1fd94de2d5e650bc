// Package broker holds the emulator's queues, topics and event logs: what
// Service Bus and Event Hubs do with a message between its arrival and its
// settlement, without any network.
//
// # Messages
//
// The broker takes over every message given to it. A message that it hands out
// is shared with other readers and must not be modified: copy the struct and
// replace the sections that differ.
//
// # Durability
//
// A call that changes something returns, or calls its done function, once the
// change is in the store. A message becomes visible to readers at that moment
// and not before. A done function is called from the goroutine that commits,
// possibly before the call returns, and must not block; it may call methods
// that end in Async.
//
// # Locks
//
// Each queue, subscription and partition has a mutex of its own. Nothing is
// committed while one is held. Where two are held, a queue's comes before that
// of its dead-letter queue. An idle entity has no goroutine and no timer.
package broker

import "errors"

// Errors of the broker; match them with errors.Is.
var (
	// ErrNotFound means that there is no such entity, partition, consumer
	// group or sequence number.
	ErrNotFound = errors.New("not found")
	// ErrExists means that the namespace has an entity of that name.
	ErrExists = errors.New("already exists")
	// ErrLockLost means that the message isn't locked under this token any
	// more: the lock expired, or the message has been settled.
	ErrLockLost = errors.New("message lock lost")
	// ErrFull means that the entity holds as many messages or bytes as it may.
	ErrFull = errors.New("entity is full")
	// ErrNotAllowed means that the entity doesn't do this at all.
	ErrNotAllowed = errors.New("not allowed")
	// ErrTooLarge means that a message is larger than the entity allows.
	ErrTooLarge = errors.New("message is too large")
	// ErrClosed means that the entity, or the consumer or reader, was closed.
	ErrClosed = errors.New("closed")
	// ErrDeleted means that the entity was deleted with all its messages.
	ErrDeleted = errors.New("entity was deleted")
	// ErrStolen ends a reader when another one with the same or a higher owner
	// level took over its partition.
	ErrStolen = errors.New("reader was replaced by one with the same or a higher owner level")
	// ErrOwned refuses a reader because one with a higher owner level has the
	// partition.
	ErrOwned = errors.New("partition is held by a reader with a higher owner level")
	// ErrTooManyReaders refuses another reader without owner level.
	ErrTooManyReaders = errors.New("partition has as many readers in this consumer group as it may")
)
