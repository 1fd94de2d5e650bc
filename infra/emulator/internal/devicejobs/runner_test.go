package devicejobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/devicejobs"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, code hub.Code) {
	t.Helper()
	if !errors.Is(err, code) {
		t.Errorf("%s: %v, want %v", what, err, code)
	}
}

// fakeHub has devices that do what a test wants.
type fakeHub struct {
	devices []string // in the order of a query
	invoke  func(ctx context.Context, t hub.Target, call hub.MethodCall) (hub.MethodResult, error)
	admit   func(op hub.Operation) error
	busy    bool // throttles all queries

	mu      sync.Mutex
	queries []string
	metered []int             // items of answers
	patched map[string]string // desired properties and ETag by device
}

func (h *fakeHub) Admit(op hub.Operation, _ hub.Target, _ int) error {
	if h.admit == nil {
		return nil
	}
	return h.admit(op)
}

func (h *fakeHub) MeterJSON(_ hub.Operation, _ hub.Target, answer any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	items, _ := answer.([]any)
	h.metered = append(h.metered, len(items))
}

func (h *fakeHub) Query(q hub.Query) (hub.QueryPage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queries = append(h.queries, q.Text)
	if h.busy {
		return hub.QueryPage{}, &hub.Error{Code: hub.CodeThrottling, RetryAfter: time.Second}
	}
	if strings.Contains(q.Text, "nonsense") {
		return hub.QueryPage{}, &hub.Error{Code: hub.CodeArgumentInvalid, Message: "query: no sense"}
	}
	var from int
	if q.Continuation != "" {
		if _, err := fmt.Sscan(q.Continuation, &from); err != nil {
			return hub.QueryPage{}, err
		}
	}
	page := hub.QueryPage{Type: "twin"}
	for _, id := range h.devices[from:min(from+3, len(h.devices))] {
		page.Items = append(page.Items, hub.Twin{DeviceID: id})
	}
	if from+3 < len(h.devices) {
		page.Continuation = fmt.Sprint(from + 3)
	}
	return page, nil
}

func (h *fakeHub) InvokeMethod(ctx context.Context, t hub.Target, call hub.MethodCall) (hub.MethodResult, error) {
	return h.invoke(ctx, t, call)
}

func (h *fakeHub) PatchTwin(_ context.Context, t hub.Target, p hub.TwinPatch, match hub.IfMatch) (hub.Twin, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.patched == nil {
		h.patched = make(map[string]string)
	}
	h.patched[t.DeviceID] = string(p.Properties.Desired) + string(match)
	return hub.Twin{}, nil
}

// open returns a runner that the end of the test closes.
func open(t *testing.T, s store.Store, h *fakeHub, opts devicejobs.Options) *devicejobs.Runner {
	t.Helper()
	r, err := devicejobs.Open(t.Context(), s, h, opts)
	must(t, err)
	t.Cleanup(r.Close)
	return r
}

func methodJob(id string) devicejobs.Job {
	return devicejobs.Job{ID: id, Type: devicejobs.DeviceMethod, Method: json.RawMessage(`{"methodName":"reboot","payload":{"in":5},"responseTimeoutInSeconds":7}`)}
}

func twinJob(id string) devicejobs.Job {
	return devicejobs.Job{ID: id, Type: devicejobs.UpdateTwin, Twin: json.RawMessage(`{"properties":{"desired":{"a":1}},"etag":"*"}`)}
}

func create(t *testing.T, r *devicejobs.Runner, j devicejobs.Job) devicejobs.Job {
	t.Helper()
	created, err := r.Create(j)
	must(t, err)
	return created
}

func get(t *testing.T, r *devicejobs.Runner, id string) devicejobs.Job {
	t.Helper()
	j, err := r.Get(id)
	must(t, err)
	return j
}

// onDevices tells the state of a job by device, with the code of the error.
func onDevices(t *testing.T, r *devicejobs.Runner, id string) map[string]string {
	t.Helper()
	page, err := r.Query(hub.Query{Text: "SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '" + id + "'"})
	must(t, err)
	text, err := json.Marshal(page.Items)
	must(t, err)
	var items []struct {
		DeviceID, Status string
		Outcome          struct{ DeviceMethodResponse *hub.MethodResult }
		Error            struct{ Code string }
	}
	must(t, json.Unmarshal(text, &items))
	states := make(map[string]string)
	for _, i := range items {
		states[i.DeviceID] = i.Status
		if r := i.Outcome.DeviceMethodResponse; r != nil {
			states[i.DeviceID] += fmt.Sprint(" ", r.Status, " ", string(r.Payload))
		}
		if i.Error.Code != "" {
			states[i.DeviceID] += " " + i.Error.Code
		}
	}
	return states
}

func wantDevices(t *testing.T, r *devicejobs.Runner, id string, want map[string]string) {
	t.Helper()
	if got := onDevices(t, r, id); !maps.Equal(got, want) {
		t.Errorf("devices of %s: %v, want %v", id, got, want)
	}
}

func TestMethodJob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHub{devices: []string{"a", "b", "c", "d", "e"}}
		h.invoke = func(_ context.Context, target hub.Target, call hub.MethodCall) (hub.MethodResult, error) {
			if call.Name != "reboot" || string(call.Payload) != `{"in":5}` || call.ResponseTimeout != 7*time.Second {
				t.Errorf("%s is called with %+v", target, call)
			}
			if target.DeviceID == "c" {
				return hub.MethodResult{}, &hub.Error{Code: hub.CodeDeviceNotOnline, Message: "away"}
			}
			return hub.MethodResult{Status: 200, Payload: json.RawMessage(`"` + target.DeviceID + `"`)}, nil
		}
		r := open(t, store.Memory(), h, devicejobs.Options{})
		j := methodJob("j")
		j.Condition = "tags.room = 'x'"
		created := create(t, r, j)
		if created.State != devicejobs.Queued || created.MaxSeconds != 3600 || created.Statistics != nil || created.End != nil {
			t.Errorf("created %+v", created)
		}
		synctest.Wait()
		done := get(t, r, "j")
		if done.State != devicejobs.Completed || done.End == nil {
			t.Errorf("done %+v", done)
		}
		if want := (devicejobs.Statistics{Devices: 5, Succeeded: 4, Failed: 1}); *done.Statistics != want {
			t.Errorf("statistics %+v, want %+v", *done.Statistics, want)
		}
		wantDevices(t, r, "j", map[string]string{
			"a": `completed 200 "a"`, "b": `completed 200 "b"`, "c": "failed DeviceNotOnline", "d": `completed 200 "d"`, "e": `completed 200 "e"`,
		})
		if h.queries[0] != "SELECT * FROM devices WHERE tags.room = 'x'" {
			t.Errorf("queries %q", h.queries)
		}
	})
}

func TestTwinJob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHub{devices: []string{"a", "b"}}
		r := open(t, store.Memory(), h, devicejobs.Options{})
		j := twinJob("j")
		j.Type, j.Condition = "SCHEDULEUPDATETWIN", "FROM devices.modules WHERE moduleId = 'm'"
		create(t, r, j)
		synctest.Wait()
		if done := get(t, r, "j"); done.State != devicejobs.Completed || done.Type != devicejobs.UpdateTwin {
			t.Errorf("done %+v", done)
		}
		if want := map[string]string{"a": `{"a":1}*`, "b": `{"a":1}*`}; !maps.Equal(h.patched, want) {
			t.Errorf("patched %v, want %v", h.patched, want)
		}
		wantDevices(t, r, "j", map[string]string{"a": "completed", "b": "completed"})
		if h.queries[0] != "SELECT * FROM devices.modules WHERE moduleId = 'm'" {
			t.Errorf("queries %q", h.queries)
		}
	})
}

// hanging has devices that answer when their call is cut off.
func hanging(devices ...string) *fakeHub {
	return &fakeHub{
		devices: devices,
		invoke: func(ctx context.Context, _ hub.Target, _ hub.MethodCall) (hub.MethodResult, error) {
			<-ctx.Done()
			return hub.MethodResult{}, ctx.Err()
		},
	}
}

func TestStartTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := hanging("a")
		r := open(t, store.Memory(), h, devicejobs.Options{})
		first, second := methodJob("first"), twinJob("second")
		first.Start = hub.Time{Time: time.Now().Add(time.Minute)}
		second.Start = hub.Time{Time: time.Now().Add(2 * time.Minute)}
		if created := create(t, r, second); created.State != devicejobs.Scheduled {
			t.Errorf("created %+v", created)
		}
		create(t, r, first)
		states := func() string { return string(get(t, r, "first").State + " " + get(t, r, "second").State) }
		for _, step := range []struct {
			after time.Duration
			want  string
		}{
			{59 * time.Second, "scheduled scheduled"},
			{2 * time.Second, "running scheduled"},
			{time.Minute, "running queued"}, // one at a time
			{time.Hour, "failed completed"},
		} {
			time.Sleep(step.after)
			synctest.Wait()
			if got := states(); got != step.want {
				t.Errorf("after %s: %s, want %s", step.after, got, step.want)
			}
		}
	})
}

func TestTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var many []string
		for i := range 12 {
			many = append(many, fmt.Sprintf("d%02d", i))
		}
		r := open(t, store.Memory(), hanging(many...), devicejobs.Options{})
		j := methodJob("j")
		j.MaxSeconds = 20
		create(t, r, j)
		synctest.Wait()
		if s := get(t, r, "j").Statistics; s.Running != 10 || s.Pending != 2 {
			t.Errorf("under way: %+v", s)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if j := get(t, r, "j"); j.State != devicejobs.Failed || j.Failure == "" || j.Statistics.Failed != 12 {
			t.Errorf("over: %+v %+v", j, j.Statistics)
		}
		if got := onDevices(t, r, "j")["d11"]; got != "failed GatewayTimeout" {
			t.Errorf("a device that had no turn: %s", got)
		}
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t, store.Memory(), hanging("a"), devicejobs.Options{})
		create(t, r, methodJob("running"))
		later := methodJob("later")
		later.Start = hub.Time{Time: time.Now().Add(time.Hour)}
		create(t, r, later)
		synctest.Wait()
		for _, id := range []string{"running", "later"} {
			j, err := r.Cancel(id)
			must(t, err)
			if j.State != devicejobs.Cancelled || j.End == nil {
				t.Errorf("cancelled %+v", j)
			}
		}
		synctest.Wait()
		wantDevices(t, r, "running", map[string]string{"a": "canceled InvalidOperation"})
		if _, err := r.Cancel("running"); err != nil {
			t.Errorf("cancelled twice: %v", err)
		}
		create(t, r, twinJob("next")) // there is room again
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s := get(t, r, "later"); s.State != devicejobs.Cancelled || s.Statistics != nil {
			t.Errorf("a job that was cancelled ran: %+v", s)
		}
		_, err := r.Cancel("next")
		wantCode(t, "cancel what has ended", err, hub.CodeInvalidOperation)
		_, err = r.Cancel("ghost")
		wantCode(t, "cancel nothing", err, hub.CodeJobNotFound)
	})
}

func TestRefusedJobs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t, store.Memory(), hanging("a"), devicejobs.Options{MaxActive: 2})
		create(t, r, methodJob("one"))
		create(t, r, methodJob("two"))
		for name, tt := range map[string]struct {
			job  devicejobs.Job
			want hub.Code
		}{
			"a third":          {methodJob("three"), hub.CodeTooManyActiveJobs},
			"the same":         {methodJob("one"), hub.CodeJobAlreadyExists},
			"no ID":            {methodJob(""), hub.CodeArgumentInvalid},
			"unknown type":     {devicejobs.Job{ID: "x", Type: "import"}, hub.CodeArgumentInvalid},
			"no method":        {devicejobs.Job{ID: "x", Type: devicejobs.DeviceMethod}, hub.CodeArgumentNull},
			"null method":      {devicejobs.Job{ID: "x", Type: devicejobs.DeviceMethod, Method: json.RawMessage("null")}, hub.CodeArgumentNull},
			"no method name":   {devicejobs.Job{ID: "x", Type: devicejobs.DeviceMethod, Method: json.RawMessage("{}")}, hub.CodeArgumentInvalid},
			"a long timeout":   {devicejobs.Job{ID: "x", Type: devicejobs.DeviceMethod, Method: json.RawMessage(`{"methodName":"m","connectTimeoutInSeconds":301}`)}, hub.CodeArgumentInvalid},
			"method of a text": {devicejobs.Job{ID: "x", Type: devicejobs.DeviceMethod, Method: json.RawMessage(`"m"`)}, hub.CodeFormatError},
			"no twin":          {devicejobs.Job{ID: "x", Type: devicejobs.UpdateTwin}, hub.CodeArgumentNull},
			"a long time":      {devicejobs.Job{ID: "x", Type: devicejobs.UpdateTwin, Twin: json.RawMessage("{}"), MaxSeconds: 172801}, hub.CodeArgumentInvalid},
		} {
			_, err := r.Create(tt.job)
			wantCode(t, name, err, tt.want)
		}
	})
}

func TestConditionIsNoQuery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t, store.Memory(), hanging("a"), devicejobs.Options{})
		j := methodJob("j")
		j.Condition = "nonsense"
		create(t, r, j)
		synctest.Wait()
		if j := get(t, r, "j"); j.State != devicejobs.Failed || j.Failure != "query: no sense" {
			t.Errorf("got %+v", j)
		}
	})
}

func TestThrottledQueryEndsWithTheJob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHub{devices: []string{"a"}, busy: true}
		r := open(t, store.Memory(), h, devicejobs.Options{})
		j := methodJob("j")
		j.MaxSeconds = 10
		create(t, r, j)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if j := get(t, r, "j"); j.State != devicejobs.Failed || !strings.Contains(j.Failure, "maximum execution time") {
			t.Errorf("got %+v", j)
		}
	})
}

// A throttled call is no failure of the device.
func TestThrottledCallIsRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		h := &fakeHub{devices: []string{"a"}}
		h.invoke = func(context.Context, hub.Target, hub.MethodCall) (hub.MethodResult, error) {
			if calls++; calls < 3 {
				return hub.MethodResult{}, &hub.Error{Code: hub.CodeThrottling, RetryAfter: 5 * time.Second}
			}
			return hub.MethodResult{Status: 200}, nil
		}
		r := open(t, store.Memory(), h, devicejobs.Options{})
		create(t, r, methodJob("j"))
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if j := get(t, r, "j"); j.Statistics.Succeeded != 1 || calls != 3 {
			t.Errorf("after %d calls: %+v", calls, j.Statistics)
		}
	})
}

func TestGateIsAsked(t *testing.T) {
	t.Parallel()
	refused := &hub.Error{Code: hub.CodeThrottling}
	h := &fakeHub{admit: func(op hub.Operation) error {
		if op == hub.OpJob || op == hub.OpQuery {
			return refused
		}
		return nil
	}}
	r := open(t, store.Memory(), h, devicejobs.Options{})
	_, err := r.Create(twinJob("j"))
	wantCode(t, "create", err, hub.CodeThrottling)
	_, err = r.Get("j")
	wantCode(t, "get", err, hub.CodeThrottling)
	_, err = r.Cancel("j")
	wantCode(t, "cancel", err, hub.CodeThrottling)
	_, err = r.List(devicejobs.Filter{}, 0, "")
	wantCode(t, "list", err, hub.CodeThrottling)
	_, err = r.Query(hub.Query{Text: "SELECT * FROM devices.jobs"})
	wantCode(t, "query", err, hub.CodeThrottling)
}

func TestHistoryEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t, store.Memory(), &fakeHub{}, devicejobs.Options{})
		create(t, r, twinJob("old"))
		synctest.Wait()
		time.Sleep(devicejobs.History)
		create(t, r, twinJob("young"))
		get(t, r, "old")
		time.Sleep(time.Second)
		synctest.Wait()
		create(t, r, twinJob("newest"))
		_, err := r.Get("old")
		wantCode(t, "a job after its history", err, hub.CodeJobNotFound)
		get(t, r, "young")
	})
}

func TestPages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHub{devices: []string{"a", "b", "c", "d", "e"}}
		r := open(t, store.Memory(), h, devicejobs.Options{})
		for _, id := range []string{"z", "y", "x"} {
			create(t, r, twinJob(id))
			synctest.Wait()
			time.Sleep(time.Second)
		}
		var jobs [][]string
		for continuation := ""; ; {
			page, err := r.List(devicejobs.Filter{Type: "scheduleupdatetwin", State: "completed"}, 2, continuation)
			must(t, err)
			var ids []string
			for _, item := range page.Items {
				ids = append(ids, item.(devicejobs.Job).ID)
			}
			jobs = append(jobs, ids)
			if continuation = page.Continuation; continuation == "" {
				break
			}
		}
		if want := "[[z y] [x]]"; fmt.Sprint(jobs) != want {
			t.Errorf("jobs %v, want %s", jobs, want)
		}
		if page, err := r.List(devicejobs.Filter{State: devicejobs.Failed}, 0, ""); err != nil || len(page.Items) != 0 || page.Type != "jobResponse" {
			t.Errorf("failed jobs: %+v, %v", page, err)
		}
		var sizes []int
		for continuation := ""; ; {
			page, err := r.Query(hub.Query{Text: "SELECT TOP 13 * FROM devices.jobs", PageSize: 6, Continuation: continuation})
			must(t, err)
			sizes = append(sizes, len(page.Items))
			if continuation = page.Continuation; continuation == "" {
				break
			}
		}
		if want := []int{6, 6, 1}; !slices.Equal(sizes, want) || !slices.Equal(h.metered, want) {
			t.Errorf("pages of %v items, of which %v were metered", sizes, h.metered)
		}
		_, err := r.Query(hub.Query{Text: "SELECT * FROM devices.jobs", Continuation: "?"})
		wantCode(t, "continuation", err, hub.CodeArgumentInvalid)
		_, err = r.List(devicejobs.Filter{}, 0, "e30x")
		wantCode(t, "continuation", err, hub.CodeArgumentInvalid)
	})
}

// TestRestart closes the runner while one device is at work and others wait, and
// has another runner go on.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	reopen := func() store.Store {
		s, err := store.Open(dir)
		must(t, err)
		return s
	}
	s := reopen()
	h := hanging("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k")
	var begun sync.WaitGroup
	begun.Add(10)
	hang := h.invoke
	h.invoke = func(ctx context.Context, target hub.Target, call hub.MethodCall) (hub.MethodResult, error) {
		begun.Done()
		return hang(ctx, target, call)
	}
	r, err := devicejobs.Open(t.Context(), s, h, devicejobs.Options{})
	must(t, err)
	create(t, r, methodJob("running"))
	later := twinJob("later")
	later.Start = hub.Time{Time: time.Now().Add(time.Hour)}
	create(t, r, later)
	begun.Wait()
	r.Close()
	must(t, s.Close())

	s = reopen()
	done := make(chan string, 10)
	h.invoke = func(_ context.Context, target hub.Target, _ hub.MethodCall) (hub.MethodResult, error) {
		done <- target.DeviceID
		return hub.MethodResult{Status: 200, Payload: json.RawMessage("1")}, nil
	}
	r, err = devicejobs.Open(t.Context(), s, h, devicejobs.Options{})
	must(t, err)
	waitFor(t, func() bool { return get(t, r, "running").State == devicejobs.Completed })
	if got := <-done; got != "k" || len(done) != 0 {
		t.Errorf("%s and %d more were called again", got, len(done))
	}
	states := onDevices(t, r, "running")
	if states["a"] != "failed ServiceUnavailable" || states["k"] != "completed 200 1" || len(states) != 11 {
		t.Errorf("devices %v", states)
	}
	if j := get(t, r, "later"); j.State != devicejobs.Scheduled || !j.Start.Equal(later.Start.Truncate(100)) {
		t.Errorf("scheduled job is now %+v", j)
	}
	cancelled, err := r.Cancel("later")
	must(t, err)
	r.Close()
	must(t, s.Close())

	s = reopen()
	defer s.Close()
	r = open(t, s, h, devicejobs.Options{})
	if j := get(t, r, "later"); j.State != cancelled.State || !j.End.Equal(cancelled.End.Truncate(100)) {
		t.Errorf("cancelled job is now %+v", j)
	}
	if again := onDevices(t, r, "running"); !maps.Equal(again, states) {
		t.Errorf("devices %v, before %v", again, states)
	}
}

func waitFor(t *testing.T, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

// gated is a store that takes changes once it is opened.
type gated struct {
	store.Store
	open chan struct{}
}

func (g *gated) Submit(done func(error), ops ...store.Op) {
	go func() {
		<-g.open
		g.Store.Submit(done, ops...)
	}()
}

// Nobody hears of a job, not even that its ID is taken, before it is stored.
func TestJobIsToldOfWhenStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &gated{Store: store.Memory(), open: make(chan struct{})}
		r := open(t, g, hanging(), devicejobs.Options{})
		j := methodJob("a")
		j.Start = hub.Time{Time: time.Now().Add(time.Hour)}
		results := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := r.Create(j)
				results <- err
			}()
		}
		synctest.Wait()
		if n := len(results); n > 0 {
			t.Errorf("%d of 2 were answered before the job was stored", n)
		}
		close(g.open)
		first, second := <-results, <-results
		if first != nil {
			first, second = second, first
		}
		must(t, first)
		wantCode(t, "second", second, hub.CodeJobAlreadyExists)
	})
}
