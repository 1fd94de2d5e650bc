package rest_test

import (
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/rest"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// jobBody is what a test reads of a job.
type jobBody struct {
	JobID, Type, Status, QueryCondition, StartTime string
	EndTime, FailureReason                         *string
	MaxExecutionTimeInSeconds                      int
	CloudToDeviceMethod, UpdateTwin                json.RawMessage
	DeviceJobStatistics                            *struct{ DeviceCount, SucceededCount, FailedCount int }
}

// ended waits for the end of a job.
func (f *fixture) ended(id string) jobBody {
	f.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if j := decode[jobBody](f.t, f.call("GET", "/jobs/v2/"+id, "")); j.EndTime != nil {
			return j
		}
	}
	f.t.Fatalf("job %s doesn't end", id)
	return jobBody{}
}

// TestTwinUpdateJob writes the twins that a condition selects, and reads of it in
// each way.
func TestTwinUpdateJob(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("a", "b", "c")
	a := f.call("PUT", "/jobs/v2/j%3A1", `{"jobId":"j:1","type":"scheduleUpdateTwin","updateTwin":{"etag":"*","tags":{"room":"x"}},
		"queryCondition":"deviceId IN ['a','c']","startTime":null,"maxExecutionTimeInSeconds":300}`)
	created := decode[jobBody](t, a)
	if a.status != 200 || created.JobID != "j:1" || created.Status == "" || created.MaxExecutionTimeInSeconds != 300 || created.UpdateTwin == nil {
		t.Errorf("created %s", a)
	}
	done := f.ended("j%3A1")
	if s := done.DeviceJobStatistics; done.Status != "completed" || s == nil || s.DeviceCount != 2 || s.SucceededCount != 2 {
		t.Errorf("done %+v", done)
	}
	for id, want := range map[string]any{"a": "x", "b": nil, "c": "x"} {
		if got := decode[document](t, f.call("GET", "/twins/"+id, "")); got.Tags["room"] != want {
			t.Errorf("%s has tags %v", id, got.Tags)
		}
	}
	a = f.call("POST", "/devices/query", `{"query":"SELECT * FROM devices.jobs WHERE jobId = 'j:1'"}`, "x-ms-max-item-count", "1")
	items := decode[[]struct{ DeviceID, JobID, JobType, Status string }](t, a)
	if a.header.Get("x-ms-item-type") != "deviceJob" || len(items) != 1 || items[0].DeviceID != "a" || items[0].Status != "completed" || items[0].JobType != "scheduleUpdateTwin" {
		t.Errorf("query %s, type %s", a, a.header.Get("x-ms-item-type"))
	}
	if a.header.Get("x-ms-continuation") == "" {
		t.Error("the query has no second page")
	}
	expectFailure(t, f.call("PUT", "/jobs/v2/j%3A1", `{"type":"scheduleUpdateTwin","updateTwin":{}}`), hub.CodeJobAlreadyExists)
	expectFailure(t, f.call("POST", "/jobs/v2/j%3A1/cancel", ""), hub.CodeInvalidOperation)
}

func TestMethodJob(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("away", "d")
	s, err := f.hub.Connect(t.Context(), "d", hub.ConnectOptions{})
	must(t, err)
	defer s.Close()
	s.HandleMethods(func(r hub.MethodRequest) {
		go s.RespondMethod(r.RequestID, hub.MethodResult{Status: 200, Payload: json.RawMessage(`{"done":` + string(r.Payload) + `}`)})
	})
	f.call("PUT", "/jobs/v2/j", `{"type":"scheduleDeviceMethod","cloudToDeviceMethod":{"methodName":"m","payload":null,"responseTimeoutInSeconds":10}}`)
	if j := f.ended("j"); j.Status != "completed" || j.DeviceJobStatistics.SucceededCount != 1 || j.DeviceJobStatistics.FailedCount != 1 {
		t.Errorf("done %+v", j)
	}
	items := decode[[]struct {
		DeviceID, Status string
		Outcome          struct{ DeviceMethodResponse json.RawMessage }
		Error            struct{ Code string }
	}](t, f.call("POST", "/devices/query", `{"query":"SELECT * FROM devices.jobs"}`))
	if len(items) != 2 || items[0].Error.Code != "DeviceNotOnline" || items[0].Status != "failed" ||
		string(items[1].Outcome.DeviceMethodResponse) != `{"status":200,"payload":{"done":null}}` {
		t.Errorf("devices %+v", items)
	}
}

func TestListJobs(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, id := range []string{"a", "b", "c"} {
		f.call("PUT", "/jobs/v2/"+id, `{"type":"scheduleUpdateTwin","updateTwin":{},"startTime":"2098-01-01T00:00:00"}`)
	}
	if a := f.call("POST", "/jobs/v2/b/cancel", ""); decode[jobBody](t, a).Status != "cancelled" {
		t.Errorf("cancel: %s", a)
	}
	first := f.call("GET", "/jobs/v2/query?api-version=2021-04-12&jobStatus=scheduled&pageSize=1", "")
	if jobs := decode[[]jobBody](t, first); len(jobs) != 1 || jobs[0].JobID != "a" || jobs[0].StartTime != "2098-01-01T00:00:00.0000000Z" {
		t.Errorf("first page %s", first)
	}
	if got := first.header.Get("x-ms-item-type"); got != "jobResponse" {
		t.Errorf("item type %q", got)
	}
	second := f.call("GET", "/jobs/v2/query?api-version=2021-04-12&jobStatus=scheduled", "",
		"x-ms-max-item-count", "1", "x-ms-continuation", first.header.Get("x-ms-continuation"))
	if jobs := decode[[]jobBody](t, second); len(jobs) != 1 || jobs[0].JobID != "c" || second.header.Values("x-ms-continuation") != nil {
		t.Errorf("second page %s", second)
	}
}

func TestJobRefusals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, tt := range []struct {
		method, path, body string
		want               hub.Code
	}{
		{"GET", "/jobs/v2/ghost", "", hub.CodeJobNotFound},
		{"PUT", "/jobs/v2/j", `{"type":"export"}`, hub.CodeArgumentInvalid},
		{"PUT", "/jobs/v2/j", `{"jobId":"other","type":"scheduleUpdateTwin","updateTwin":{}}`, hub.CodeArgumentInvalid},
		{"PUT", "/jobs/v2/j", `{"type":"scheduleUpdateTwin","updateTwin":{},"startTime":"soon"}`, hub.CodeArgumentInvalid},
		{"PUT", "/jobs/v2/j", `{"type":"scheduleUpdateTwin","updateTwin":{},"startTime":1}`, hub.CodeFormatError},
		{"GET", "/jobs/v2/query?api-version=2021-04-12&pageSize=x", "", hub.CodeArgumentInvalid},
		{"GET", "/jobs/v2/query?api-version=2021-04-12&continuationToken=x", "", hub.CodeArgumentInvalid},
	} {
		expectFailure(t, f.call(tt.method, tt.path, tt.body), tt.want)
	}
}

// TestNoJobs asks a handler that has none.
func TestNoJobs(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	server := httptest.NewServer(rest.NewHandler(f.hub, &sas.Verifier{Hosts: []string{hubName}, Keys: f.hub}, nil))
	t.Cleanup(server.Close)
	g := &fixture{t: t, hub: f.hub, server: server}
	if a := g.call("GET", "/jobs/v2/query", ""); a.status != 501 {
		t.Errorf("got %s", a)
	}
	if a := g.call("POST", "/devices/query", `{"query":"SELECT * FROM devices.jobs"}`); a.status != 400 {
		t.Errorf("query: %s", a)
	}
}
