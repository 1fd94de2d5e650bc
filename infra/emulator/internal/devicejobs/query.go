package devicejobs

import (
	"encoding/base64"
	"encoding/json"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/query"
)

// maxPage is the largest page (IoT Hub docs: "IoT Hub query language").
const maxPage = 100

// Values of the header x-ms-item-type.
const (
	itemJob       = "jobResponse"
	itemDeviceJob = "deviceJob"
)

// cursor is where the next page starts.
type cursor struct {
	Behind []string `json:"behind"` // the key of the last item
	Served int      `json:"served"` // items on earlier pages
}

func (c cursor) String() string {
	text, err := json.Marshal(c)
	if err != nil {
		return "" // strings and a number: it never fails
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func parseCursor(s string) (cursor, error) {
	var c cursor
	if s == "" {
		return c, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil || c.Served < 0 || c.Served > math.MaxInt32 {
		return c, hub.Errorf(hub.CodeArgumentInvalid, "continuation token is not one of this hub")
	}
	return c, nil
}

// items are what a page can hold, in the order of their keys.
type items iter.Seq2[[]string, any]

// page returns up to size items behind the cursor, and top of all pages; 0 means
// all.
func (c cursor) page(itemType string, all items, size, top int) hub.QueryPage {
	if size < 1 || size > maxPage {
		size = maxPage
	}
	page := hub.QueryPage{Type: itemType, Items: []any{}}
	next := c
	for key, item := range all {
		switch {
		case slices.Compare(key, c.Behind) <= 0:
			continue
		case top > 0 && next.Served == top:
			return page
		case len(page.Items) == size:
			page.Continuation = next.String()
			return page
		}
		page.Items = append(page.Items, item)
		next = cursor{Behind: key, Served: next.Served + 1}
	}
	return page
}

// Filter selects jobs; empty fields select all.
type Filter struct {
	Type  Type
	State State
}

func (f Filter) matches(j *job) bool {
	return (f.Type == "" || strings.EqualFold(string(f.Type), string(j.Type))) &&
		(f.State == "" || strings.EqualFold(string(f.State), string(j.State)))
}

// List returns a page of jobs, of type Job, in the order of their creation. size
// is 1 to 100; other values mean 100.
func (r *Runner) List(f Filter, size int, continuation string) (hub.QueryPage, error) {
	if err := r.hub.Admit(hub.OpJob, hub.Target{}, 0); err != nil {
		return hub.QueryPage{}, err
	}
	from, err := parseCursor(continuation)
	if err != nil {
		return hub.QueryPage{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return from.page(itemJob, r.list(f), size, 0), nil
}

// keyTime has as many digits in every time, so that texts sort like times.
const keyTime = "2006-01-02T15:04:05.000000000"

func (r *Runner) list(f Filter) items {
	return func(yield func([]string, any) bool) {
		for _, j := range r.sorted() {
			if f.matches(j) && !yield([]string{j.Created.UTC().Format(keyTime), j.ID}, j.view()) {
				return
			}
		}
	}
}

// Asks reports whether a query is one for a Runner: of devices.jobs.
func Asks(text string) bool {
	q, err := query.Parse(text)
	return err == nil && q.Collection == query.Jobs
}

// Query answers a query of devices.jobs with what became of jobs on devices, in
// the order of jobs and devices.
func (r *Runner) Query(q hub.Query) (hub.QueryPage, error) {
	if err := r.hub.Admit(hub.OpQuery, hub.Target{}, 0); err != nil {
		return hub.QueryPage{}, err
	}
	parsed, err := query.Parse(q.Text)
	if err != nil {
		return hub.QueryPage{}, hub.Errorf(hub.CodeArgumentInvalid, "query: %s", err)
	}
	from, err := parseCursor(q.Continuation)
	if err != nil {
		return hub.QueryPage{}, err
	}
	r.mu.Lock()
	page := from.page(itemDeviceJob, r.matching(parsed), q.PageSize, parsed.Top)
	r.mu.Unlock()
	r.hub.MeterJSON(hub.OpQuery, hub.Target{}, page.Items)
	return page, nil
}

func (r *Runner) matching(q *query.Query) items {
	return func(yield func([]string, any) bool) {
		for _, id := range slices.Sorted(maps.Keys(r.jobs)) {
			for _, d := range r.jobs[id].devices {
				doc, err := newDocument(*d)
				if err != nil || !q.Matches(doc) {
					continue
				}
				if !yield([]string{id, d.DeviceID, d.ModuleID}, *d) {
					return
				}
			}
		}
	}
}
