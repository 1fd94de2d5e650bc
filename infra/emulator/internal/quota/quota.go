package quota

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Gate enforces the limits of a tier; it implements hub.Gate and hub.Meter.
// Operations count when they are admitted, also those that fail afterwards: the
// cloud charges those that succeed only, which nobody knows beforehand.
type Gate struct {
	tier    Tier
	units   int
	buckets [hub.NumOperations]bucket
	days    days
}

// Open returns the gate of a hub with so many units, which carries on with what
// the store knows of today. It is to be closed before the store.
func Open(s store.Store, tier Tier, units int) (*Gate, error) {
	if _, err := ParseTier(string(tier)); err != nil {
		return nil, err
	}
	if units < 1 || units > tier.MaxUnits() {
		return nil, fmt.Errorf("a hub of tier %s has 1 to %d units, not %d", tier, tier.MaxUnits(), units)
	}
	g := &Gate{tier: tier, units: units}
	for op := range g.buckets {
		g.buckets[op].init(tier.perMinute(hub.Operation(op), units))
	}
	g.days.store = s
	g.days.limit = tier.dailyMessages() * int64(units)
	return g, g.days.load()
}

// Used returns how many messages count against the quota of today (UTC), and the
// quota.
func (g *Gate) Used() (messages, quota int64) { return g.days.used(), g.days.limit }

// Admit implements hub.Gate: hub.CodeThrottling with a time to wait,
// hub.CodeQuotaExceeded, or hub.CodeNotInTier.
func (g *Gate) Admit(op hub.Operation, _ hub.Target, bytes int) error {
	return g.admit(op, cost(op, bytes), g.messages(bytes))
}

// AdmitAll implements hub.Gate, with the errors of Admit.
func (g *Gate) AdmitAll(op hub.Operation, parts []hub.Part) error {
	var tokens float64
	var messages int64
	for _, p := range parts {
		tokens += cost(op, p.Bytes)
		messages += g.messages(p.Bytes)
	}
	return g.admit(op, tokens, messages)
}

func (g *Gate) admit(op hub.Operation, tokens float64, messages int64) error {
	if standardOnly[op] && g.tier.basic() {
		return hub.Errorf(hub.CodeNotInTier, "%s is not available in the basic tier %s", op, g.tier)
	}
	if wait, ok := g.buckets[op].take(tokens); !ok {
		e := hub.Errorf(hub.CodeThrottling, "%s is throttled on a hub with %d unit(s) of %s", op, g.units, g.tier)
		e.RetryAfter = wait
		return e
	}
	if metered[op] && !g.days.add(messages) {
		return hub.Errorf(hub.CodeQuotaExceeded, "the daily quota of %d messages is used up until 00:00 UTC", g.days.limit)
	}
	return nil
}

// Meter implements hub.Meter. An answer takes effect only on what comes after
// it.
func (g *Gate) Meter(op hub.Operation, _ hub.Target, bytes int) {
	n := g.messages(bytes)
	switch op {
	case hub.OpMethod:
	case hub.OpTwinRead, hub.OpQuery:
		n-- // admitted as one message, before its size was known
	default:
		return
	}
	g.days.force(n)
}

// Repeat implements hub.Gate.
func (g *Gate) Repeat(hub.Operation, hub.Target) bool { return false }

// cost is what an operation takes out of its bucket.
func cost(op hub.Operation, bytes int) float64 {
	switch op {
	case hub.OpMethod:
		return float64(chunks(bytes, meter) * meter)
	case hub.OpTwinUpdate:
		return float64(chunks(bytes, meter))
	}
	return 1
}

// messages is for how many a message or document counts.
func (g *Gate) messages(bytes int) int64 { return chunks(bytes, g.tier.chunk()) }

// chunks is at least one: an empty message is a message.
func chunks(bytes, size int) int64 { return max(1, int64((bytes+size-1)/size)) }

// metered are the operations that count against the daily quota.
var metered = [hub.NumOperations]bool{
	hub.OpD2C:        true,
	hub.OpC2D:        true,
	hub.OpMethod:     true,
	hub.OpTwinRead:   true,
	hub.OpTwinUpdate: true,
	hub.OpQuery:      true,
}

// key holds the count of today in the store.
const key = "quota/today"

// days counts the messages of each day.
type days struct {
	store store.Store
	limit int64

	mu    sync.Mutex // guards count
	count count
}

// count is the record of a day.
type count struct {
	Day      string // in UTC, as in time.DateOnly
	Messages int64
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }

func (d *days) load() error {
	return d.store.Load(key, func(_ string, value []byte) error {
		if err := json.Unmarshal(value, &d.count); err != nil {
			return fmt.Errorf("stored count of messages: %w", err)
		}
		return nil
	})
}

// turn begins a new day when it is one. The caller holds mu.
func (d *days) turn() {
	if day := today(); d.count.Day != day {
		d.count = count{Day: day}
	}
}

func (d *days) used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn()
	return d.count.Messages
}

// add counts messages, unless they exceed the limit.
func (d *days) add(n int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn()
	if d.count.Messages+n > d.limit {
		return false
	}
	d.change(n)
	return true
}

// force counts messages that nothing can prevent any more.
func (d *days) force(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn()
	d.change(n)
}

// change counts messages in the store too, which groups the writes. It doesn't
// wait, because an operation reaches the store behind its count: when it is durable,
// so is the count. A store that has failed says so itself. The caller holds mu.
func (d *days) change(n int64) {
	d.count.Messages += n
	if n == 0 || !d.store.Durable() {
		return
	}
	if value, err := json.Marshal(d.count); err == nil { // text and a number: it never fails
		d.store.Submit(nil, store.Put(key, value))
	}
}
