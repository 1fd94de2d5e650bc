package solver

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"go.temporal.io/api/serviceerror"
)

func TestPostJobs(t *testing.T) {
	t.Parallel()
	const events = "application/cloudevents+json"
	structured := func(data string) string {
		return `{"specversion":"1.0","id":"1","source":"x","type":"com.dapr.event.sent",` + data + `}`
	}
	inBase64 := `"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(body)) + `"`
	for _, c := range []struct {
		name, contentType, body string
		header                  string // ce-specversion
		err                     error
		code                    int
		status                  string
		started                 bool
	}{
		{name: "a job as it is", contentType: "application/json", body: body, code: 200, status: "SUCCESS", started: true},
		{name: "without a content type", body: body, code: 200, status: "SUCCESS", started: true},
		{name: "an event", contentType: events, body: structured(`"data":` + body), code: 200, status: "SUCCESS", started: true},
		{name: "an event that says it is JSON", contentType: "application/json; charset=utf-8", body: structured(`"data":` + body), code: 200, status: "SUCCESS", started: true},
		{name: "an event with raw payload", contentType: events, body: structured(inBase64), code: 200, status: "SUCCESS", started: true},
		{name: "an event with text", contentType: events, body: structured(`"data":` + strconv.Quote(body)), code: 200, status: "SUCCESS", started: true},
		{name: "an event in binary mode", contentType: "application/json", header: "1.0", body: body, code: 200, status: "SUCCESS", started: true},
		{name: "started already", body: body, err: serviceerror.NewWorkflowExecutionAlreadyStarted("there", "", ""), code: 200, status: "SUCCESS"},

		{name: "not a job", body: `{"Name":"x"}`, code: 400, status: "DROP"},
		{name: "not JSON", body: `hello`, code: 400, status: "DROP"},
		{name: "nothing", code: 400, status: "DROP"},
		{name: "too large", body: strings.Repeat("x", maxRequest+1), code: 400, status: "DROP"},
		{name: "an event with another thing", contentType: events, body: structured(`"data":{"Name":"x"}`), code: 200, status: "DROP"},
		{name: "an event without data", contentType: events, body: structured(`"datacontenttype":"x"`), code: 200, status: "DROP"},
		{name: "an event with bad base64", contentType: events, body: structured(`"data_base64":"?"`), code: 200, status: "DROP"},
		{name: "an event cut off", contentType: events, body: `{"specversion":`, code: 200, status: "DROP"},
		{name: "an event in binary mode that is no job", header: "1.0", body: `[]`, code: 200, status: "DROP"},
		{name: "Temporal is down", contentType: events, body: structured(`"data":` + body), err: serviceerror.NewUnavailable("down"), code: 503, status: "RETRY"},
		{name: "Temporal will never", body: body, err: serviceerror.NewInvalidArgument("no"), code: 400, status: "DROP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := &temporal{}
			if c.err != nil {
				f.errs = []error{c.err}
			}
			r := httptest.NewRequest(http.MethodPost, "/jobs", strings.NewReader(c.body))
			if c.contentType != "" {
				r.Header.Set("Content-Type", c.contentType)
			}
			if c.header != "" {
				r.Header.Set("ce-specversion", c.header)
			}
			w := serve(&api{intake: newIntake(f)}, r)
			var a answer
			if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
				t.Fatalf("the answer %q is not JSON: %v", w.Body, err)
			}
			if w.Code != c.code || a.Status != c.status || (a.Error == "") != (c.status == "SUCCESS") {
				t.Errorf("got %d %+v, want %d %s", w.Code, a, c.code, c.status)
			}
			if started := len(f.inputs) == 1; started != c.started {
				t.Fatalf("started: %v, want %v", started, c.started)
			}
			if want := []string{"a", "Done"}; c.started && !reflect.DeepEqual(f.inputs[0].Job.Steps, want) {
				t.Errorf("started %+v", f.inputs[0])
			}
		})
	}
}

func serve(a *api, r *http.Request) *httptest.ResponseRecorder {
	mux := http.NewServeMux()
	a.routes(mux)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w
}

func TestSubscribe(t *testing.T) {
	t.Parallel()
	w := serve(&api{intake: newIntake(&temporal{}), pubsub: "mine"}, httptest.NewRequest(http.MethodGet, "/dapr/subscribe", nil))
	const want = `[{"pubsubname":"mine","topic":"jobs","route":"/jobs","metadata":{"rawPayload":"true"}}]`
	if got := strings.TrimSpace(w.Body.String()); w.Code != 200 || got != want {
		t.Errorf("got %d %s, want %s", w.Code, got, want)
	}
}

func TestSidecarToken(t *testing.T) {
	t.Parallel()
	for given, code := range map[string]int{"": 401, "wrong": 401, "the-token": 200} {
		t.Run(given, func(t *testing.T) {
			t.Parallel()
			f := &temporal{}
			r := httptest.NewRequest(http.MethodPost, "/jobs", strings.NewReader(body))
			if given != "" {
				r.Header.Set("dapr-api-token", given)
			}
			w := serve(&api{intake: newIntake(f), token: "the-token"}, r)
			if w.Code != code || len(f.inputs) == 1 != (code == 200) {
				t.Errorf("got %d, started %d", w.Code, len(f.inputs))
			}
		})
	}
}
