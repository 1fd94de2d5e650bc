package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Keys in the store. An entity has a prefix of its own; behind it stand
//
//	m<sequence number>  a message or event
//	s<sequence number>  what happened to the message since: deliveries, deferral
//	n                   the last sequence number given
//	i<message ID>       when the ID may be forgotten (duplicate detection)
const (
	keyMessage  = "m"
	keyState    = "s"
	keyCounter  = "n"
	keyIdentity = "i"
)

// prefixOf returns the key prefix of an entity. Escaping keeps one entity's
// name from being the beginning of another's keys.
func prefixOf(kind, name string) string { return kind + "/" + url.PathEscape(name) + "/" }

func sequenceKey(prefix, kind string, n int64) string {
	return string(binary.BigEndian.AppendUint64([]byte(prefix+kind), uint64(n)))
}

// counter is the record of the sequence number given last. Its owner's mutex guards
// it.
type counter struct {
	store  store.Store
	key    string
	stored int64 // what the store has
}

// put adds the number to a transaction.
func (c *counter) put(tx *Tx, last int64) {
	if c.store.Durable() {
		tx.Add(c.op(last))
	}
}

func (c *counter) op(last int64) store.Op {
	var value encoder
	value.int(last)
	return store.Put(c.key, value)
}

// committed is called when a transaction with the number is durable. They may
// reach the store in another order than they got their numbers; then the highest is
// stored again, lest it be given to a second message after a restart.
func (c *counter) committed(last int64) {
	switch {
	case last > c.stored:
		c.stored = last
	case last < c.stored && c.store.Durable():
		c.store.Submit(nil, c.op(c.stored))
	}
}

// errRecord is the base of errors about records that can't be read, which means
// that another program wrote them.
var errRecord = errors.New("unreadable record in the state file")

// encoder and decoder write and read the fields of a record in turn.
type encoder []byte

func (e *encoder) int(n int64) { *e = binary.AppendVarint(*e, n) }

func (e *encoder) time(t time.Time) {
	if t.IsZero() {
		e.int(0)
		return
	}
	e.int(t.UnixNano())
}

func (e *encoder) string(s string) {
	e.int(int64(len(s)))
	*e = append(*e, s...)
}

func (e *encoder) message(m *amqp.Message) error {
	b, err := m.AppendBinary(*e)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	*e = b
	return nil
}

type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) int() int64 {
	n, size := binary.Varint(d.rest)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) time() time.Time {
	if n := d.int(); n != 0 {
		return time.Unix(0, n).UTC()
	}
	return time.Time{}
}

func (d *decoder) string() string {
	n := d.int()
	if n < 0 || n > int64(len(d.rest)) {
		d.fail()
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

// message reads the rest of the record.
func (d *decoder) message() *amqp.Message {
	m := new(amqp.Message)
	if d.err == nil {
		if err := m.UnmarshalBinary(d.rest); err != nil {
			d.err = fmt.Errorf("%w: %w", errRecord, err)
		}
	}
	return m
}

func (d *decoder) fail() {
	d.rest = nil
	if d.err == nil {
		d.err = errRecord
	}
}

// parseSequenceKey reads the number of a key made by sequenceKey.
func parseSequenceKey(suffix string) (int64, error) {
	if len(suffix) != 1+8 {
		return 0, errRecord
	}
	return int64(binary.BigEndian.Uint64([]byte(suffix[1:]))), nil
}
