package hub

import (
	"encoding/base64"
	"encoding/json"
	"hash/fnv"
	"iter"
	"math"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/query"
)

// maxQueryPage is the largest page of a query (IoT Hub docs: "IoT Hub query
// language").
const maxQueryPage = 100

// Query is a query of the registry.
type Query struct {
	// Text is in the language of package query, FROM devices or devices.modules.
	Text string
	// PageSize is 1 to 100; other values mean 100.
	PageSize int
	// Continuation is that of the page before; empty for the first page.
	Continuation string
}

// QueryPage is one page of the answer.
type QueryPage struct {
	// Type is the value of the header x-ms-item-type: twin, or raw for objects
	// that the query selects.
	Type string
	// Items are each a Twin, or the object that the query selects.
	Items []any
	// Continuation is empty on the last page.
	Continuation string
}

// continuation is where the next page starts: behind a twin or group, whether
// that still exists or not.
type continuation struct {
	Query  uint64 `json:"query"`  // hash of the text
	Served int    `json:"served"` // items on earlier pages
	Device string `json:"device,omitempty"`
	Module string `json:"module,omitempty"`
	Group  string `json:"group,omitempty"`
}

func (c continuation) String() string {
	text, err := json.Marshal(c)
	if err != nil {
		return "" // strings and numbers: it never fails
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func parseContinuation(s, text string) (continuation, error) {
	hash := fnv.New64a()
	hash.Write([]byte(text))
	first := continuation{Query: hash.Sum64()}
	if s == "" {
		return first, nil
	}
	var c continuation
	decoded, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(decoded, &c)
	}
	if err != nil || c.Served < 1 || c.Served > math.MaxInt32 || c.Query != first.Query {
		return c, Errorf(CodeArgumentInvalid, "continuation token is not one of this query")
	}
	return c, nil
}

// Query answers a query with the state of this moment: the cloud's answer may be
// older, and code that relies on ours may fail there.
//
// Errors: CodeArgumentNull for no text, CodeArgumentInvalid, and
// CodeInvalidOperation for a query of jobs, which are package devicejobs'.
func (h *Hub) Query(q Query) (QueryPage, error) {
	if err := h.admit(OpQuery, Target{}, 0); err != nil {
		return QueryPage{}, err
	}
	parsed, err := parseQuery(q.Text)
	if err != nil {
		return QueryPage{}, err
	}
	from, err := parseContinuation(q.Continuation, q.Text)
	if err != nil {
		return QueryPage{}, err
	}
	size := q.PageSize
	if size < 1 || size > maxQueryPage {
		size = maxQueryPage
	}
	last := false // whether TOP makes this the last page
	if left := parsed.Top - from.Served; parsed.Top > 0 && left <= size {
		size, last = max(0, left), true
	}
	page := h.page(parsed, from, size)
	if last {
		page.Continuation = ""
	}
	h.MeterJSON(OpQuery, Target{}, page.Items)
	return page, nil
}

func parseQuery(text string) (*query.Query, error) {
	if strings.TrimSpace(text) == "" {
		return nil, Errorf(CodeArgumentNull, "the query is missing")
	}
	q, err := query.Parse(text)
	switch {
	case err != nil:
		return nil, Errorf(CodeArgumentInvalid, "query: %s", err)
	case q.Collection == query.Jobs:
		return nil, Errorf(CodeInvalidOperation, "devices.jobs holds jobs, and here twins are asked for")
	}
	return q, nil
}

// page returns up to size items behind from.
func (h *Hub) page(q *query.Query, from continuation, size int) QueryPage {
	page := QueryPage{Type: "twin", Items: []any{}}
	if !q.Whole() {
		page.Type = "raw"
	}
	items := h.twins(q, from)
	if q.Aggregated() {
		items = h.groups(q, from)
	}
	next := from
	for item, position := range items {
		if len(page.Items) == size {
			page.Continuation = next.String()
			break
		}
		page.Items = append(page.Items, item)
		next = position
		next.Served = from.Served + len(page.Items)
	}
	return page
}

// twins yields what a query selects of the twins behind from, each with its
// position.
func (h *Hub) twins(q *query.Query, from continuation) iter.Seq2[any, continuation] {
	return func(yield func(any, continuation) bool) {
		for p := range h.principals(q.Collection, Target{from.Device, from.Module}) {
			d := &twinDocument{principal: p}
			if !q.Matches(d) {
				continue
			}
			var item any
			if q.Whole() {
				item = p.twin()
			} else {
				item = q.Project(d)
			}
			position := continuation{Query: from.Query, Device: p.DeviceID, Module: p.ModuleID}
			if !yield(item, position) {
				return
			}
		}
	}
}

// groups yields the rows of an aggregated query behind from.
func (h *Hub) groups(q *query.Query, from continuation) iter.Seq2[any, continuation] {
	return func(yield func(any, continuation) bool) {
		groups := q.NewGroups()
		for p := range h.principals(q.Collection, Target{}) {
			if d := (&twinDocument{principal: p}); q.Matches(d) {
				groups.Add(d)
			}
		}
		for _, row := range groups.Rows() {
			if from.Served > 0 && row.Key <= from.Group {
				continue
			}
			if !yield(row.Values, continuation{Query: from.Query, Group: row.Key}) {
				return
			}
		}
	}
}

// principals yields devices, or modules, behind a target in the order of their
// IDs.
func (h *Hub) principals(c query.Collection, behind Target) iter.Seq[*principal] {
	return func(yield func(*principal) bool) {
		for d := range h.inOrder(behind.DeviceID) {
			found := []*principal{&d.principal}
			if c == query.Modules {
				found = d.sortedModules()
			}
			for _, p := range found {
				served := p.DeviceID == behind.DeviceID && p.ModuleID <= behind.ModuleID
				if !served && !yield(p) {
					return
				}
			}
		}
	}
}
