package workflows

import (
	"sort"

	"github.com/hubjobs/hubjobs/job"
)

// order hands out each sender's messages in sequence order, each once, whatever the transport did to them.
type order struct {
	expected map[string]int // device ID -> sequence of its next message
	held     []job.Message  // came before a message that precedes them
	seen     map[key]bool
}

func newOrder(expected map[string]int, held []job.Message) *order {
	if expected == nil {
		expected = make(map[string]int)
	}
	o := &order{expected: expected, seen: make(map[key]bool)}
	for _, m := range held {
		o.hold(m)
	}
	return o
}

// admit takes a message as it came and returns those that are now in order. A repeat returns nothing. A message without
// a sequence is in order at once.
func (o *order) admit(m job.Message) []job.Message {
	if o.seen[key{m.From, m.ID}] {
		return nil
	}
	next := o.next(m.From)
	switch {
	case m.Sequence == 0:
		o.seen[key{m.From, m.ID}] = true
		return []job.Message{m}
	case m.Sequence < next:
		return nil
	}
	o.hold(m)
	return o.release(m.From)
}

func (o *order) next(from string) int {
	if n := o.expected[from]; n > 0 {
		return n
	}
	return 1
}

func (o *order) hold(m job.Message) {
	o.seen[key{m.From, m.ID}] = true
	o.held = append(o.held, m)
	sort.SliceStable(o.held, func(i, j int) bool { return o.held[i].Sequence < o.held[j].Sequence })
}

// release takes the messages of one sender that follow its last one without a gap out of the held ones.
func (o *order) release(from string) []job.Message {
	var ready, rest []job.Message
	for _, m := range o.held {
		switch next := o.next(from); {
		case m.From != from || m.Sequence > next:
			rest = append(rest, m)
		case m.Sequence == next:
			ready = append(ready, m)
			o.expected[from] = next + 1
		}
	}
	o.held = rest
	return ready
}
