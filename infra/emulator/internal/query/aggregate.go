package query

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"math"
	"slices"
)

// Row is a row of an aggregated query.
type Row struct {
	// Key tells the group from the others, and orders them.
	Key string
	// Values are what the query selects, by name.
	Values map[string]any
}

// Groups collects the rows of an aggregated query.
type Groups struct {
	query  *Query
	groups map[string]*group
}

type group struct {
	values map[string]any // of plain paths
	totals []total        // of all items
}

// total is an aggregate in the making. Values that are no numbers are left out of
// sums; those that are neither numbers nor strings, of all.
type total struct {
	count    int // of documents
	numbers  int
	sum      float64
	min, max value
}

// NewGroups returns an empty collection of an aggregated query's rows.
func (q *Query) NewGroups() *Groups {
	g := &Groups{query: q, groups: make(map[string]*group)}
	if q.groupBy == nil {
		g.group("", nil) // one row, even for no documents
	}
	return g
}

// Add adds a document, which the caller knows to match.
func (g *Groups) Add(d Document) {
	group := g.group(g.query.key(d), d)
	for i, item := range g.query.items {
		if item.aggregate != "" {
			group.totals[i].add(item, d)
		}
	}
}

func (g *Groups) group(key string, first Document) *group {
	if existing := g.groups[key]; existing != nil {
		return existing
	}
	n := &group{values: make(map[string]any), totals: make([]total, len(g.query.items))}
	for _, item := range g.query.items {
		if item.aggregate != "" || first == nil {
			continue
		}
		if v, ok := first.Lookup(item.path); ok {
			n.values[item.name] = v
		}
	}
	g.groups[key] = n
	return n
}

// key names the group of a document by the values of the GROUP BY clause.
func (q *Query) key(d Document) string {
	var key []byte
	for _, path := range q.groupBy {
		if v, ok := d.Lookup(path); ok {
			if text, err := json.Marshal(v); err == nil {
				key = append(key, text...)
			}
		}
		key = append(key, '\n') // not in JSON without indentation
	}
	if len(key) > maxKey {
		// Keys travel in headers; the beginning keeps the order.
		sum := sha256.Sum256(key)
		key = append(key[:maxKey:maxKey], hex.EncodeToString(sum[:])...)
	}
	return string(key)
}

// maxKey is how many bytes of the values of a group are in its key.
const maxKey = 128

// Rows returns all rows in order of their keys.
func (g *Groups) Rows() []Row {
	rows := make([]Row, 0, len(g.groups))
	for _, key := range slices.Sorted(maps.Keys(g.groups)) {
		group := g.groups[key]
		for i, item := range g.query.items {
			if v, ok := group.totals[i].result(item.aggregate); ok {
				group.values[item.name] = v
			}
		}
		rows = append(rows, Row{key, group.values})
	}
	return rows
}

func (t *total) add(i item, d Document) {
	t.count++
	if i.aggregate == "COUNT" {
		return
	}
	raw, ok := d.Lookup(i.path)
	if !ok {
		return
	}
	v := valueOf(raw)
	if v.kind == numberKind {
		t.numbers++
		t.sum += v.number
	}
	if v.kind == numberKind || v.kind == stringKind {
		t.min, t.max = least(t.min, v, -1), least(t.max, v, 1)
	}
}

// least returns a or b, whichever comes first in an order, or last for sign 1.
// Numbers come before strings.
func least(a, b value, sign int) value {
	order, ok := b.compare(a)
	if !ok {
		order = int(b.kind) - int(a.kind)
	}
	if a.kind == undefinedKind || order*sign > 0 {
		return b
	}
	return a
}

func (t *total) result(aggregate string) (any, bool) {
	switch aggregate {
	case "COUNT":
		return t.count, true
	case "SUM":
		return t.sum, !math.IsInf(t.sum, 0)
	case "AVG":
		mean := t.sum / float64(t.numbers)
		return mean, t.numbers > 0 && !math.IsInf(mean, 0)
	case "MIN":
		return t.min.plain()
	case "MAX":
		return t.max.plain()
	}
	return nil, false
}

func (v value) plain() (any, bool) {
	if v.kind == stringKind {
		return v.text, true
	}
	return v.number, v.kind == numberKind
}
