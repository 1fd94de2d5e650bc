// Package store makes the emulator's state durable: a set of keys and values in a
// data directory, or nowhere when there is no directory.
//
// A directory holds a state file, and, while it is open or after a kill, a log of
// what is not in the state file yet. A change is acknowledged when it is in the
// log and the log is on the disk: one sequential write for all that came
// meanwhile. Both are checked in full when they are opened.
//
// The state itself lives in the memory of the packages above. They read the
// store once, at start, with Load, and from then on only write: a change is
// handed to Update or Submit and may be acknowledged once that has succeeded.
// Changes of many callers share one commit, so that a hundred concurrent
// messages cost one write to the disk and not a hundred.
//
// A store that failed to write stays failed. What the memory above holds may
// then differ from what the disk holds, and the only safe way on is to start
// again from the disk.
package store

import (
	"context"
	"errors"
)

var (
	// ErrClosed is returned for changes after Close.
	ErrClosed = errors.New("store is closed")
	// ErrInUse means that another process holds the data directory.
	ErrInUse = errors.New("data directory is in use by another process")
	// ErrDamaged means that the file is not what this package wrote.
	ErrDamaged = errors.New("state file is damaged")
	// ErrKey is returned for a change with a key that can't be stored. The change
	// is refused and the store goes on.
	ErrKey = errors.New("key must have 1 to 32,768 bytes")
)

// Op is one change. The slices must not be modified afterwards.
type Op struct {
	// Key is 1 to 32,768 bytes long, or of any length with Prefix. Keys are
	// ordered byte by byte.
	Key string
	// Value is the new value; nil deletes the key, which need not exist.
	Value []byte
	// Prefix deletes every key that starts with Key; Value is not looked at.
	Prefix bool
}

// Put sets a key.
func Put(key string, value []byte) Op {
	if value == nil {
		value = []byte{}
	}
	return Op{Key: key, Value: value}
}

// Delete removes a key.
func Delete(key string) Op { return Op{Key: key} }

// DeletePrefix removes every key that starts with prefix.
func DeletePrefix(prefix string) Op { return Op{Key: prefix, Prefix: true} }

// Store is safe for concurrent use.
type Store interface {
	// Submit queues a change, all or nothing, behind those submitted before,
	// and returns at once. It calls done, if not nil, exactly once: with nil
	// after the change is durable, else with the reason. Calls of done come
	// one at a time and in the order of submission when the store is durable,
	// and must not block. A store without a directory calls done before Submit
	// returns, so the caller holds no lock that done takes.
	Submit(done func(error), ops ...Op)
	// Load calls fn for each key that starts with prefix, in order, until fn
	// returns an error, which Load then returns. The value is fn's to keep.
	Load(prefix string, fn func(key string, value []byte) error) error
	// Durable reports whether the store has a file. Without one, values are
	// not looked at and callers may leave them empty.
	Durable() bool
	// Failed receives the reason, once, when the store has failed: from then on
	// it refuses every change. Nil for a store without a file.
	Failed() <-chan error
	// Close waits for what was submitted, and releases the directory.
	Close() error
}

// Update submits a change and waits until it is durable. A context that has
// ended prevents the change; one that ends while the change is under way does
// not, because then the caller could not know whether it took place. The wait
// is bounded by the disk.
func Update(ctx context.Context, s Store, ops ...Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return Commit(s, ops...)
}

// Commit is Update that nothing prevents, for a change that has to follow one
// made already.
func Commit(s Store, ops ...Op) error {
	result := make(chan error, 1)
	s.Submit(func(err error) { result <- err }, ops...)
	return <-result
}
