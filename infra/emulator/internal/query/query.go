// Package query is the language in which the service side asks for twins (IoT Hub
// docs: "IoT Hub query language for device and module twins, jobs, and message
// routing"): a parser, and the evaluation of a query on one document at a time.
// Where that page leaves it open what a comparison of different types or with an
// absent value means, it is what Azure Cosmos DB documents for the same syntax.
package query

import "fmt"

// Collection is what a query looks at.
type Collection string

const (
	Devices Collection = "devices"
	Modules Collection = "devices.modules"
	Jobs    Collection = "devices.jobs"
)

// Document is what a query is evaluated on.
type Document interface {
	// Lookup returns the value at a path, and whether there is one. The first
	// names of the path are written as in Twin's fields whatever the query says.
	// Values are nil, bool, string, json.Number, int, int64 or float64; anything
	// else stands for an object or array. A []any can be searched.
	Lookup(path []string) (any, bool)
}

// Query is a parsed query. It is safe for concurrent use.
type Query struct {
	// Collection is that of the FROM clause.
	Collection Collection
	// Top is the n of TOP n, 0 without it.
	Top int

	items   []item // nil for *
	where   expression
	groupBy [][]string
}

// item is one of the SELECT clause.
type item struct {
	name      string
	path      []string // nil for COUNT()
	aggregate string   // upper case; empty for a plain path
	pos       int
}

// Whole reports whether the query selects whole documents.
func (q *Query) Whole() bool { return q.items == nil }

// Aggregated reports whether the query selects rows of groups, which Rows makes.
func (q *Query) Aggregated() bool {
	for _, i := range q.items {
		if i.aggregate != "" {
			return true
		}
	}
	return q.groupBy != nil
}

// Matches reports whether the document fulfils the WHERE clause.
func (q *Query) Matches(d Document) bool {
	return q.where == nil || q.where.eval(d).isTrue()
}

// Project returns what the query selects of a document: its values by name,
// those left out that the document doesn't have.
func (q *Query) Project(d Document) map[string]any {
	row := make(map[string]any, len(q.items))
	for _, i := range q.items {
		if value, ok := d.Lookup(i.path); ok {
			row[i.name] = value
		}
	}
	return row
}

// Error says what is wrong with the text of a query.
type Error struct {
	// Position is that of the character, from 1.
	Position int
	// Reason is one line for people.
	Reason string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("at character %d: %s", e.Position, e.Reason) }
