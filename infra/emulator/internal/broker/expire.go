package broker

import (
	"maps"
	"slices"
	"time"
)

// ExpireLocks ends all locks now, as if their time were over, and returns how
// many there were. Locks that a consumer holds until it closes have no such end
// and stay.
func (q *Queue) ExpireLocks() int {
	now := time.Now()
	n := 0
	q.mu.Lock()
	for _, e := range q.locked {
		if !e.held {
			q.deadlines.set(e, now)
			n++
		}
	}
	tx := q.sweep(now)
	q.arm()
	q.mu.Unlock()
	if tx != nil {
		tx.CommitAsync(nil) // as onTimer does
	}
	return n
}

// ExpireLocks ends the locks in queues, subscriptions and their dead-letter
// queues whose name matches, and returns how many there were.
func (n *Namespace) ExpireLocks(match func(name string) bool) int {
	expired := 0
	for _, q := range n.sources() {
		for ; q != nil; q = q.deadLetter {
			if match(q.name) {
				expired += q.ExpireLocks()
			}
		}
	}
	return expired
}

// sources returns all queues and subscriptions.
func (n *Namespace) sources() []*Queue {
	n.mu.RLock()
	defer n.mu.RUnlock()
	all := slices.Collect(maps.Values(n.queues))
	for _, t := range n.topics {
		t.mu.Lock()
		all = slices.AppendSeq(all, maps.Values(t.subs))
		t.mu.Unlock()
	}
	return all
}
