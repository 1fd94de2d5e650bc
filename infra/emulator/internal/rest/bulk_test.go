package rest_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// TestBulk answers what became of each item, whether all went well or not.
func TestBulk(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	type result struct {
		IsSuccessful *bool
		Errors       []struct{ DeviceID, ErrorStatus string }
	}
	a := f.call("POST", "/devices", `[{"id":"a","importMode":"create"},{"id":"b","status":"disabled","importMode":"Create"}]`)
	if r := decode[result](t, a); a.status != 200 || r.IsSuccessful == nil || !*r.IsSuccessful || len(r.Errors) != 0 {
		t.Errorf("create: %s", a)
	}
	if b, err := f.hub.GetDevice("b"); err != nil || b.Status != hub.StatusDisabled {
		t.Errorf("b: %+v, %v", b, err)
	}
	a = f.call("POST", "/devices", `[{"id":"a","importMode":"Delete"},{"id":"b","importMode":"create"}]`)
	r := decode[result](t, a)
	if a.status != 400 || r.IsSuccessful == nil || *r.IsSuccessful || len(r.Errors) != 1 || r.Errors[0].DeviceID != "b" {
		t.Errorf("half of it: %s", a)
	}
	if a := f.call("GET", "/devices/a", ""); a.status != 404 {
		t.Errorf("the half that went well: %s", a)
	}
	tooMany := "[" + strings.Repeat(`{"id":"x","importMode":"create"},`, 100) + `{"id":"y","importMode":"create"}]`
	expectFailure(t, f.call("POST", "/devices", tooMany), hub.CodeTooManyDevices)
	expectFailure(t, f.call("POST", "/devices", `{"id":"x"}`), hub.CodeFormatError)
}

// Not parallel: it measures what the whole process allocates.
func TestBulkOfManyNothings(t *testing.T) {
	f := newFixture(t)
	const n = 200_000
	body := "[" + strings.Repeat("{},", n) + "{}]"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	expectFailure(t, f.call("POST", "/devices", body), hub.CodeTooManyDevices)
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(16*len(body)); got > limit {
		t.Errorf("%d bytes allocated for a body of %d", got, len(body))
	}
}
