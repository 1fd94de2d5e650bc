package broker

import (
	"context"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Tx collects changes of several entities, to be made durable and visible all
// together or not at all. A Tx is used by one goroutine and ends with exactly
// one call of Commit, CommitAsync or Abort.
type Tx struct {
	store    store.Store
	ops      []store.Op
	onCommit []func()
	onAbort  []func()
}

// NewTx begins a transaction. All entities staged into it must use s.
func NewTx(s store.Store) *Tx { return &Tx{store: s} }

// Add adds changes of the caller's own keys.
func (tx *Tx) Add(ops ...store.Op) { tx.ops = append(tx.ops, ops...) }

// put and remove add a change of a numbered key. A store that keeps nothing
// spares them the making of the key.
func (tx *Tx) put(prefix, kind string, seq int64, value []byte) {
	if tx.store.Durable() {
		tx.Add(store.Put(sequenceKey(prefix, kind, seq), value))
	}
}

func (tx *Tx) remove(prefix, kind string, seq int64) {
	if tx.store.Durable() {
		tx.Add(store.Delete(sequenceKey(prefix, kind, seq)))
	}
}

// empty reports whether a commit would do nothing.
func (tx *Tx) empty() bool { return len(tx.ops) == 0 && len(tx.onCommit) == 0 }

// OnCommit registers f to be called once the transaction is durable. Functions
// are called in the order of registration, before done or the return of Commit.
func (tx *Tx) OnCommit(f func()) { tx.onCommit = append(tx.onCommit, f) }

// OnAbort registers f to be called by Abort, in reverse order of registration.
func (tx *Tx) OnAbort(f func()) { tx.onAbort = append(tx.onAbort, f) }

// CommitAsync makes the transaction durable and then visible, and calls done,
// if not nil, with the result.
func (tx *Tx) CommitAsync(done func(error)) {
	tx.store.Submit(func(err error) {
		if err == nil {
			for _, f := range tx.onCommit {
				f()
			}
		}
		// After a failed commit the store refuses all others, so there is
		// nothing to put back: what was staged is never seen by anybody.
		if done != nil {
			done(err)
		}
	}, tx.ops...)
}

// Commit is CommitAsync that waits. A context that has ended aborts the
// transaction; one that ends later does not.
func (tx *Tx) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		tx.Abort()
		return err
	}
	result := make(chan error, 1)
	tx.CommitAsync(func(err error) { result <- err })
	return <-result
}

// Abort takes back what was staged.
func (tx *Tx) Abort() {
	for i := len(tx.onAbort) - 1; i >= 0; i-- {
		tx.onAbort[i]()
	}
}
