package rest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/amenzhinsky/iothub/common"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/devicejobs"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/rest"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hubName = "localhost"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture is a hub behind an HTTP server.
type fixture struct {
	t         *testing.T
	hub       *hub.Hub
	handler   http.Handler
	server    *httptest.Server
	telemetry *broker.Queue
}

func newFixture(t *testing.T) *fixture { return newFixtureWith(t, nil) }

func newFixtureWith(t *testing.T, opts *rest.Options) *fixture {
	t.Helper()
	return openFixture(t, opts, nil)
}

func newFixtureGated(t *testing.T, g hub.Gate) *fixture {
	t.Helper()
	return openFixture(t, nil, g)
}

func openFixture(t *testing.T, opts *rest.Options, gate hub.Gate) *fixture {
	t.Helper()
	f := openCore(t, opts, gate)
	f.server = httptest.NewServer(f.handler)
	t.Cleanup(f.server.Close)
	return f
}

// openCore is a fixture without a server.
func openCore(t *testing.T, opts *rest.Options, gate hub.Gate) *fixture {
	t.Helper()
	s := store.Memory()
	events, err := broker.OpenEventLog(s, hubName, broker.EventLogOptions{Partitions: 1})
	must(t, err)
	t.Cleanup(events.Close)
	queue, err := broker.OpenQueue(s, "device-messages", broker.QueueOptions{})
	must(t, err)
	t.Cleanup(queue.Close)
	h, err := hub.Open(s, hub.Options{
		Name: hubName, Events: events, Routes: []hub.Route{{Name: "all", Endpoint: queue}},
		Feedback: hub.FeedbackOptions{Interval: time.Millisecond}, Gate: gate,
	})
	must(t, err)
	t.Cleanup(h.Close)
	jobs, err := devicejobs.Open(t.Context(), s, h, devicejobs.Options{})
	must(t, err)
	t.Cleanup(jobs.Close)
	var withJobs rest.Options
	if opts != nil {
		withJobs = *opts
	}
	withJobs.Jobs = jobs
	handler := rest.NewHandler(h, &sas.Verifier{Hosts: []string{hubName}, Keys: h}, &withJobs)
	return &fixture{t: t, hub: h, handler: handler, telemetry: queue}
}

func (f *fixture) add(ids ...string) {
	f.t.Helper()
	for _, id := range ids {
		_, err := f.hub.CreateDevice(f.t.Context(), hub.Identity{DeviceID: id})
		must(f.t, err)
	}
}

func (f *fixture) policyToken(name string) string {
	f.t.Helper()
	policy, err := f.hub.Policy(name)
	must(f.t, err)
	return f.token(hubName, name, policy.Keys.Primary)
}

func (f *fixture) token(resource, policy, key string) string {
	f.t.Helper()
	sig, err := common.NewSharedAccessSignature(resource, policy, key, time.Now().Add(time.Hour))
	must(f.t, err)
	return sig.String()
}

// nextEvent waits for a device-to-cloud message and takes it.
func (f *fixture) nextEvent() *amqp.Message {
	f.t.Helper()
	consumer := f.telemetry.NewConsumer(broker.ConsumerOptions{Mode: broker.ReceiveAndDelete})
	defer consumer.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 30*time.Second)
	defer cancel()
	d, err := consumer.Next(ctx)
	must(f.t, err)
	return d.Message
}

// answer is a response read in full.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

// call sends a request; header holds names and values in turn. Without an
// Authorization header it is signed by iothubowner, and without a query in the
// path it has an api-version.
func (f *fixture) call(method, path, body string, header ...string) answer {
	f.t.Helper()
	if !strings.Contains(path, "?") {
		path += "?api-version=2021-04-12"
	}
	r, err := http.NewRequestWithContext(f.t.Context(), method, f.server.URL+path, strings.NewReader(body))
	must(f.t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	if len(r.Header.Values("Authorization")) == 0 {
		r.Header.Set("Authorization", f.policyToken(hub.PolicyOwner))
	}
	response, err := f.server.Client().Do(r)
	must(f.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(f.t, err)
	return answer{response.StatusCode, response.Header, text}
}

func decode[T any](t *testing.T, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%s: %v", a, err)
	}
	if got := a.header.Get("Content-Type"); got != "application/json; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
	return v
}

// expectFailure checks status, header and body the way SDKs read them.
func expectFailure(t *testing.T, a answer, code hub.Code) {
	t.Helper()
	var failure struct{ Message, ExceptionMessage string }
	if err := json.Unmarshal(a.body, &failure); err != nil {
		t.Fatalf("%s: %v", a, err)
	}
	// azure-iothub splits at the semicolon and then at the colon.
	first, text, _ := strings.Cut(failure.Message, ";")
	_, name, _ := strings.Cut(first, ":")
	if a.status != code.Status() || name != code.Name() || a.header.Get("iothub-errorcode") != code.Name() {
		t.Errorf("got %s, header %q; want %v", a, a.header.Get("iothub-errorcode"), code)
	}
	if text == "" || !strings.HasPrefix(failure.ExceptionMessage, "Tracking ID:") {
		t.Errorf("body %s", a.body)
	}
}

// TestIdentityLife goes through create, read, update and delete with the ETag
// rules of the registry.
func TestIdentityLife(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const id = "device-solver::a%b+c"
	path := "/devices/" + url.QueryEscape(id)

	expectFailure(t, f.call("GET", path, ""), hub.CodeDeviceNotFound)
	expectFailure(t, f.call("PUT", path, "{}", "If-Match", "*"), hub.CodeDeviceNotFound)

	a := f.call("PUT", path, `{"deviceId":"device-solver::a%b+c","unknown":1,"statusReason":null,"authentication":{"symmetricKey":null}}`)
	created := decode[hub.Identity](t, a)
	if a.status != 200 || created.DeviceID != id || created.Status != hub.StatusEnabled || created.ConnectionState != hub.Disconnected {
		t.Fatalf("created %s", a)
	}
	if tag := a.header.Get("ETag"); tag != `"`+created.ETag+`"` || created.ETag == "" {
		t.Errorf("ETag header %s, field %s", tag, created.ETag)
	}
	if len(created.Authentication.SymmetricKey.PrimaryKey) == 0 {
		t.Error("no key was generated")
	}
	expectFailure(t, f.call("PUT", path, "{}"), hub.CodeDeviceAlreadyExists)
	expectFailure(t, f.call("PUT", path, "{}", "If-Match", `""`), hub.CodeDeviceAlreadyExists)

	got := decode[hub.Identity](t, f.call("GET", path, ""))
	if !reflect.DeepEqual(got, created) {
		t.Errorf("read\n%+v, created\n%+v", got, created)
	}

	expectFailure(t, f.call("PUT", path, "{}", "If-Match", `"bm9wZQ=="`), hub.CodePreconditionFailed)
	a = f.call("PUT", path, `{"status":"disabled"}`, "If-Match", `"`+created.ETag+`"`)
	updated := decode[hub.Identity](t, a)
	if a.status != 200 || updated.Status != hub.StatusDisabled || updated.ETag == created.ETag || updated.GenerationID != created.GenerationID {
		t.Errorf("updated %s", a)
	}
	for _, match := range []string{"*", `"*"`} {
		if a := f.call("PUT", path, `{}`, "If-Match", match); a.status != 200 {
			t.Errorf("If-Match %s: %s", match, a)
		}
	}

	expectFailure(t, f.call("DELETE", path, ""), hub.CodeArgumentInvalid)
	expectFailure(t, f.call("DELETE", path, "", "If-Match", created.ETag), hub.CodePreconditionFailed)
	if a := f.call("DELETE", path, "", "If-Match", `"*"`); a.status != 204 || len(a.body) > 0 {
		t.Errorf("deleted: %s", a)
	}
	expectFailure(t, f.call("DELETE", path, "", "If-Match", "*"), hub.CodeDeviceNotFound)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	tests := map[string]struct {
		method, path, body string
		header             []string
		want               hub.Code
	}{
		"no api-version":                      {"GET", "/devices?top=1", "", nil, hub.CodeArgumentInvalid},
		"api-version is no date":              {"GET", "/devices?api-version=latest", "", nil, hub.CodeArgumentInvalid},
		"top is zero":                         {"GET", "/devices?api-version=2021-04-12&top=0", "", nil, hub.CodeArgumentInvalid},
		"top is too large":                    {"GET", "/devices?api-version=2021-04-12&top=1001", "", nil, hub.CodeArgumentInvalid},
		"top is no number":                    {"GET", "/devices?api-version=2021-04-12&top=x", "", nil, hub.CodeArgumentInvalid},
		"body is no JSON":                     {"PUT", "/devices/x", "{", nil, hub.CodeFormatError},
		"body is empty":                       {"PUT", "/devices/x", "", nil, hub.CodeFormatError},
		"body has something behind":           {"PUT", "/devices/x", "{}{}", nil, hub.CodeFormatError},
		"field of another type":               {"PUT", "/devices/x", `{"status":1}`, nil, hub.CodeFormatError},
		"body of another device":              {"PUT", "/devices/x", `{"deviceId":"y"}`, nil, hub.CodeArgumentInvalid},
		"status unknown":                      {"PUT", "/devices/x", `{"status":"away"}`, nil, hub.CodeArgumentInvalid},
		"key too short":                       {"PUT", "/devices/x", `{"authentication":{"symmetricKey":{"primaryKey":"AAAA","secondaryKey":"AAAA"}}}`, nil, hub.CodeArgumentInvalid},
		"ID with a space":                     {"PUT", "/devices/a%20b", `{}`, nil, hub.CodeArgumentInvalid},
		"ID with a slash":                     {"PUT", "/devices/a%2Fb", `{}`, nil, hub.CodeArgumentInvalid},
		"ID too long":                         {"PUT", "/devices/" + strings.Repeat("x", 129), `{}`, nil, hub.CodeArgumentInvalid},
		"body too large":                      {"PUT", "/devices/x", strings.Repeat(" ", 1<<20), nil, hub.CodeMessageTooLarge},
		"two ETags":                           {"PUT", "/devices/d", "{}", []string{"If-Match", `"a", "b"`}, hub.CodeArgumentInvalid},
		"two If-Match":                        {"PUT", "/devices/d", "{}", []string{"If-Match", "a", "If-Match", "b"}, hub.CodeArgumentInvalid},
		"deletion with an empty If-Match":     {"DELETE", "/devices/d", "", []string{"If-Match", `""`}, hub.CodeArgumentInvalid},
		"query unknown":                       {"POST", "/devices/query", `{"query":"SELECT * FROM nothing"}`, nil, hub.CodeArgumentInvalid},
		"query page":                          {"POST", "/devices/query", `{"query":"SELECT * FROM devices"}`, []string{"x-ms-max-item-count", "-1"}, hub.CodeArgumentInvalid},
		"query continuation":                  {"POST", "/devices/query", `{"query":"SELECT * FROM devices"}`, []string{"x-ms-continuation", "?"}, hub.CodeArgumentInvalid},
		"twin of nobody":                      {"GET", "/twins/nobody", "", nil, hub.CodeDeviceNotFound},
		"purge of nobody":                     {"DELETE", "/devices/nobody/commands", "", nil, hub.CodeDeviceNotFound},
		"telemetry of nobody":                 {"POST", "/devices/nobody/messages/events", "x", nil, hub.CodeDeviceNotFound},
		"telemetry too large":                 {"POST", "/devices/d/messages/events", strings.Repeat("x", hub.MaxD2CMessageSize+1), nil, hub.CodeMessageTooLarge},
		"telemetry with bad expiry":           {"POST", "/devices/d/messages/events", "x", []string{"iothub-expiry", "soon"}, hub.CodeArgumentInvalid},
		"telemetry too large with properties": {"POST", "/devices/d/messages/events", strings.Repeat("x", hub.MaxD2CMessageSize), []string{"iothub-app-a", "b"}, hub.CodeMessageTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &fixture{t: t, hub: f.hub, server: f.server}
			expectFailure(t, g.call(tt.method, tt.path, tt.body, tt.header...), tt.want)
		})
	}
}

func TestChunkedBodyIsBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	body := io.MultiReader(strings.NewReader(strings.Repeat(" ", 1<<20))) // hides its length
	r, err := http.NewRequestWithContext(t.Context(), "PUT", f.server.URL+"/devices/x?api-version=2021-04-12", body)
	must(t, err)
	r.Header.Set("Authorization", f.policyToken(hub.PolicyOwner))
	response, err := f.server.Client().Do(r)
	must(t, err)
	defer response.Body.Close()
	if response.StatusCode != 413 {
		t.Errorf("status %d", response.StatusCode)
	}
}

// TestAuthorization has each policy try each kind of operation.
func TestAuthorization(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d", "other")
	own, err := f.hub.GetDevice("d")
	must(t, err)
	key := own.Authentication.SymmetricKey.PrimaryKey
	owner, err := f.hub.Policy(hub.PolicyOwner)
	must(t, err)
	tokens := map[string]string{
		"owner": f.policyToken(hub.PolicyOwner), "service": f.policyToken(hub.PolicyService), "device": f.policyToken(hub.PolicyDevice),
		"read": f.policyToken(hub.PolicyRegistryRead), "readWrite": f.policyToken(hub.PolicyRegistryReadWrite),
		"own key":     f.token(hubName+"/devices/d", "", key),
		"like gi":     f.token(hubName+"/d", "", key),
		"wrong key":   f.token(hubName, hub.PolicyOwner, key),
		"narrow":      f.token(hubName+"/devices/d", hub.PolicyOwner, owner.Keys.Secondary),
		"expired":     "SharedAccessSignature sr=localhost&sig=" + strings.Repeat("A", 43) + "%3D&se=1&skn=iothubowner",
		"bearer":      "Bearer abc",
		"garbage":     "SharedAccessSignature garbage",
		"other host":  f.token("elsewhere", hub.PolicyOwner, owner.Keys.Primary),
		"other's key": f.token(hubName+"/devices/other", "", key),
	}
	tests := []struct {
		method, path, body string
		status             int
		allowed            []string
	}{
		{"GET", "/devices", "", 200, []string{"owner", "read", "readWrite"}},
		{"GET", "/devices/d", "", 200, []string{"owner", "read", "readWrite", "narrow"}},
		{"PUT", "/devices/d", "{}", 409, []string{"owner", "readWrite", "narrow"}},
		{"DELETE", "/devices/d", "", 400, []string{"owner", "readWrite", "narrow"}},
		{"DELETE", "/devices/d/commands", "", 200, []string{"owner", "service", "readWrite", "narrow"}},
		{"GET", "/statistics/devices", "", 200, []string{"owner", "read", "readWrite"}},
		{"GET", "/statistics/service", "", 200, []string{"owner", "service", "read", "readWrite"}},
		{"POST", "/devices/query", `{"query":"SELECT * FROM devices"}`, 200, []string{"owner", "service", "read", "readWrite"}},
		{"GET", "/twins/d", "", 200, []string{"owner", "service"}},
		{"POST", "/twins/d/methods", `{"methodName":"m"}`, 404, []string{"owner", "service"}},
		{"POST", "/devices/d/messages/events", "x", 204, []string{"owner", "device", "narrow", "own key", "like gi"}},
		{"POST", "/devices/other/messages/events", "x", 204, []string{"owner", "device"}},
		{"GET", "/devices/d/messages/devicebound", "", 204, []string{"owner", "device", "narrow", "own key", "like gi"}},
		{"DELETE", "/devices/d/messages/devicebound/x", "", 400, []string{"owner", "device", "narrow", "own key", "like gi"}},
		{"GET", "/messages/serviceBound/feedback", "", 204, []string{"owner", "service"}},
		{"GET", "/messages/serviceBound/fileNotifications", "", 204, []string{"owner", "service"}},
		{"DELETE", "/messages/serviceBound/feedback/x", "", 400, []string{"owner", "service"}},
		{"GET", "/devices/d/modules", "", 200, []string{"owner", "read", "readWrite", "narrow"}},
		{"PUT", "/devices/d/modules/m", "", 400, []string{"owner", "readWrite", "narrow"}},
		{"PATCH", "/twins/d", "", 400, []string{"owner", "service"}},
		{"GET", "/jobs/v2/query", "", 200, []string{"owner", "service"}},
		{"PUT", "/jobs/v2/j", "", 400, []string{"owner", "service"}},
		{"GET", "/jobs/v2/j", "", 404, []string{"owner", "service"}},
		{"POST", "/jobs/v2/j/cancel", "", 404, []string{"owner", "service"}},
	}
	for _, tt := range tests {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			t.Parallel()
			allowed := make(map[string]bool)
			for _, name := range tt.allowed {
				allowed[name] = true
			}
			for name, token := range tokens {
				g := &fixture{t: t, hub: f.hub, server: f.server}
				a := g.call(tt.method, tt.path, tt.body, "Authorization", token)
				switch {
				case allowed[name] && a.status != tt.status:
					t.Errorf("%s: %s, want %d", name, a, tt.status)
				case !allowed[name] && a.status != 401:
					t.Errorf("%s: %s, want 401", name, a)
				case !allowed[name] && bytes.Contains(a.body, []byte("sig=")):
					t.Errorf("%s: the answer shows the token: %s", name, a)
				}
			}
		})
	}
	expectFailure(t, f.call("GET", "/devices", "", "Authorization", tokens["wrong key"]), hub.CodeUnauthorizedAccess)
	expectFailure(t, f.call("GET", "/devices", "", "Authorization", ""), hub.CodeUnauthorizedAccess)
}

func TestOtherPaths(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tests := []struct {
		method, path string
		status       int
	}{
		{"GET", "/", 404}, {"GET", "/nothing", 404}, {"GET", "/devices/d/x", 404}, {"GET", "/devices//", 404},
		{"PATCH", "/devices", 405}, {"POST", "/devices/d", 405}, {"DELETE", "/statistics/devices", 405},
		{"GET", "/devices/d/messages/devicebound/x/abandon", 405}, {"POST", "/devices/d/messages/devicebound", 405},
		{"DELETE", "/jobs/v2/j", 405}, {"DELETE", "/messages/servicebound/feedback", 405}, {"GET", "/devices/d/messages/devicebound/", 404},
		{"POST", "/devices/d/files", 501}, {"POST", "/devices/d/files/notifications/x", 501}, {"POST", "/jobs/create", 501},
		{"GET", "/jobs", 501}, {"GET", "/jobs/x", 501}, {"GET", "/configurations", 501}, {"PUT", "/configurations/x", 501},
		{"POST", "/devices/d/applyConfigurationContent", 501}, {"GET", "/digitaltwins/d", 501},
	}
	for _, tt := range tests {
		a := f.call(tt.method, tt.path, "")
		if failure := decode[struct{ Message string }](t, a); a.status != tt.status || failure.Message == "" {
			t.Errorf("%s %s: %s, want %d", tt.method, tt.path, a, tt.status)
		}
		if a.status == 405 && a.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", tt.method, tt.path)
		}
	}
}

func TestListAndStatistics(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if a := f.call("GET", "/devices", ""); string(a.body) != "[]" {
		t.Errorf("list of nothing: %s", a)
	}
	f.add("c", "a", "b")
	_, err := f.hub.UpdateDevice(t.Context(), hub.Identity{DeviceID: "c", Status: hub.StatusDisabled}, hub.AnyVersion)
	must(t, err)
	s, err := f.hub.Connect(t.Context(), "a", hub.ConnectOptions{})
	must(t, err)
	defer s.Close()

	var ids []string
	for _, id := range decode[[]hub.Identity](t, f.call("GET", "/devices?api-version=2021-04-12&top=2", "")) {
		ids = append(ids, id.DeviceID+" "+string(id.ConnectionState))
	}
	if want := []string{"a Connected", "b Disconnected"}; !reflect.DeepEqual(ids, want) {
		t.Errorf("list %v, want %v", ids, want)
	}
	if a := f.call("GET", "/statistics/devices", ""); string(a.body) != `{"totalDeviceCount":3,"enabledDeviceCount":2,"disabledDeviceCount":1}` {
		t.Errorf("devices: %s", a)
	}
	if a := f.call("GET", "/statistics/service", ""); string(a.body) != `{"connectedDeviceCount":1}` {
		t.Errorf("service: %s", a)
	}
}

func TestQueryPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("a", "b", "c", "d", "e")
	var pages [][]string
	continuation := ""
	for {
		a := f.call("POST", "/devices/query", `{"query":"SELECT * FROM devices"}`, "x-ms-max-item-count", "2", "x-ms-continuation", continuation)
		if a.status != 200 || a.header.Get("x-ms-item-type") != "twin" {
			t.Fatalf("%s, type %q", a, a.header.Get("x-ms-item-type"))
		}
		var page []string
		for _, twin := range decode[[]hub.Twin](t, a) {
			page = append(page, twin.DeviceID)
		}
		pages = append(pages, page)
		continuation = a.header.Get("x-ms-continuation")
		if _, more := a.header["X-Ms-Continuation"]; !more {
			break
		}
	}
	if want := [][]string{{"a", "b"}, {"c", "d"}, {"e"}}; !reflect.DeepEqual(pages, want) {
		t.Errorf("pages %v, want %v", pages, want)
	}
}

func TestTwin(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	a := f.call("GET", "/twins/d", "")
	if twin := decode[hub.Twin](t, a); twin.DeviceID != "d" || a.header.Get("ETag") != `"`+twin.ETag+`"` {
		t.Errorf("twin %s, ETag %s", a, a.header.Get("ETag"))
	}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	for range 3 {
		must(t, f.hub.SendC2D(t.Context(), "d", &amqp.Message{}))
	}
	if a := f.call("DELETE", "/devices/d/commands", ""); string(a.body) != `{"totalMessagesPurged":3,"deviceId":"d","moduleId":null}` {
		t.Errorf("got %s", a)
	}
}

func TestMethod(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	s, err := f.hub.Connect(t.Context(), "d", hub.ConnectOptions{})
	must(t, err)
	defer s.Close()
	requests := make(chan hub.MethodRequest, 1)
	s.HandleMethods(func(r hub.MethodRequest) {
		requests <- r
		go s.RespondMethod(r.RequestID, hub.MethodResult{Status: 500, Payload: json.RawMessage(`{"x":1}`)})
	})
	a := f.call("POST", "/twins/d/methods", `{"methodName":"m","payload":{"p":null},"responseTimeoutInSeconds":30,"connectTimeoutInSeconds":5}`)
	if a.status != 200 || string(a.body) != `{"status":500,"payload":{"x":1}}` {
		t.Errorf("got %s", a)
	}
	if r := <-requests; r.Name != "m" || string(r.Payload) != `{"p":null}` {
		t.Errorf("device got %+v", r)
	}
	f.call("POST", "/twins/d/methods", `{"methodName":"m"}`)
	if r := <-requests; r.Payload != nil {
		t.Errorf("device got payload %s where there was none", r.Payload)
	}
}

func TestMethodFailures(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	tests := map[string]struct {
		path, body string
		want       hub.Code
	}{
		"offline":          {"/twins/d/methods", `{"methodName":"m"}`, hub.CodeDeviceNotOnline},
		"unknown":          {"/twins/ghost/methods", `{"methodName":"m"}`, hub.CodeDeviceNotFound},
		"no name":          {"/twins/d/methods", `{}`, hub.CodeArgumentInvalid},
		"timeout too long": {"/twins/d/methods", `{"methodName":"m","responseTimeoutInSeconds":301}`, hub.CodeArgumentInvalid},
		"absurd timeout":   {"/twins/d/methods", `{"methodName":"m","connectTimeoutInSeconds":9223372036854775807}`, hub.CodeArgumentInvalid},
		"negative timeout": {"/twins/d/methods", `{"methodName":"m","connectTimeoutInSeconds":-9223372036854775808}`, hub.CodeArgumentInvalid},
		"not JSON":         {"/twins/d/methods", `methodName`, hub.CodeFormatError},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &fixture{t: t, hub: f.hub, server: f.server}
			a := g.call("POST", tt.path, tt.body)
			outer := decode[struct{ Message string }](t, a)
			var inner struct {
				ErrorCode int
				Message   string
			}
			must(t, json.Unmarshal([]byte(outer.Message), &inner))
			if a.status != tt.want.Status() || inner.ErrorCode != int(tt.want) || inner.Message == "" {
				t.Errorf("got %s, want %v", a, tt.want)
			}
		})
	}
}

func TestSendEvent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	a := f.call("POST", "/devices/d/messages/events", "hello",
		"IoTHub-MessageId", "m", "IoTHub-CorrelationId", "c", "IoTHub-UserId", "u", "iothub-to", "/x",
		"iothub-contenttype", "text/plain", "iothub-contentencoding", "utf-8", "iothub-interface-id", "i",
		"IoTHub-Expiry", "2030-01-01T00:00:00Z", "iothub-app-Kind", "job")
	if a.status != 204 {
		t.Fatal(a)
	}
	m := f.nextEvent()
	p := m.Properties
	got := []any{string(m.Body()), p.MessageID, p.CorrelationID, string(p.UserID), *p.To, *p.ContentType, *p.ContentEncoding, p.AbsoluteExpiryTime.Year(),
		m.ApplicationProperties["kind"], m.ApplicationProperties["iothub-interface-id"], m.ApplicationProperties[hub.PropertyDeviceID]}
	want := []any{"hello", "m", "c", "u", "/x", "text/plain", "utf-8", 2030, "job", "i", "d"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := f.hub.ServiceStatistics().Connected; n != 0 {
		t.Errorf("%d devices show as connected", n)
	}
}

// TestErrorsKeepKeys looks for the device's key in every answer to a bad token.
func TestErrorsKeepKeys(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	id, err := f.hub.GetDevice("d")
	must(t, err)
	a := f.call("POST", "/devices/d/messages/events", "", "Authorization", f.token(hubName+"/devices/x", "", id.Authentication.SymmetricKey.PrimaryKey))
	if a.status != 401 || bytes.Contains(a.body, []byte(id.Authentication.SymmetricKey.PrimaryKey)) {
		t.Errorf("got %s", a)
	}
}
