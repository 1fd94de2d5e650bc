package broker

import (
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// duplicates remembers message IDs for a time. Its owner's mutex guards it.
type duplicates struct {
	window time.Duration // 0 = off
	prefix string
	until  map[string]time.Time
	order  []string // as first seen; may hold IDs that were forgotten
}

// maxIDLength is how many characters a message ID may have (Service Bus, .NET API:
// BrokeredMessage.MessageId). It is part of a key of the store, which takes no key
// of any length.
const maxIDLength = 128

// check refuses messages whose ID can't be remembered.
func (d *duplicates) check(name string, msgs []*amqp.Message) error {
	if d.window == 0 {
		return nil
	}
	for _, m := range msgs {
		if n := utf8.RuneCountInString(messageID(m)); n > maxIDLength {
			return fmt.Errorf("send to %s: %w: a message ID has %d characters of at most %d", name, ErrNotAllowed, n, maxIDLength)
		}
	}
	return nil
}

// filter returns the messages whose ID is new, and adds their IDs to the
// transaction.
func (d *duplicates) filter(tx *Tx, now time.Time, msgs []*amqp.Message) []*amqp.Message {
	if d.window == 0 {
		return msgs
	}
	d.forgetOld(tx, now)
	fresh := make([]*amqp.Message, 0, len(msgs))
	for _, m := range msgs {
		id := messageID(m)
		if id != "" && !d.add(tx, id, now.Add(d.window)) {
			continue
		}
		fresh = append(fresh, m)
	}
	return fresh
}

func (d *duplicates) add(tx *Tx, id string, until time.Time) bool {
	if _, known := d.until[id]; known {
		return false
	}
	d.remember(id, until)
	var value encoder
	value.time(until)
	tx.Add(store.Put(d.prefix+keyIdentity+id, value))
	return true
}

// forget takes back what filter added, for a transaction that isn't committed.
func (d *duplicates) forget(msgs []*amqp.Message) {
	for _, m := range msgs {
		delete(d.until, messageID(m))
	}
}

func (d *duplicates) remember(id string, until time.Time) {
	if d.until == nil {
		d.until = make(map[string]time.Time)
	}
	d.until[id] = until
	d.order = append(d.order, id)
}

func (d *duplicates) forgetOld(tx *Tx, now time.Time) {
	for len(d.order) > 0 {
		id := d.order[0]
		if d.until[id].After(now) {
			return
		}
		delete(d.until, id)
		d.order = d.order[1:]
		tx.Add(store.Delete(d.prefix + keyIdentity + id))
	}
}

// load takes an ID from the store. When all are loaded, finishLoad must be
// called.
func (d *duplicates) load(id string, value []byte) error {
	dec := decoder{rest: value}
	d.remember(id, dec.time())
	return dec.err
}

// finishLoad puts IDs, which the store keeps in the order of their text, in the
// order in which they are forgotten; all at once if detection was switched off.
func (d *duplicates) finishLoad(s store.Store) {
	if d.window == 0 && len(d.order) > 0 {
		s.Submit(nil, store.DeletePrefix(d.prefix+keyIdentity))
		d.until, d.order = nil, nil
	}
	slices.SortFunc(d.order, func(a, b string) int { return d.until[a].Compare(d.until[b]) })
}
