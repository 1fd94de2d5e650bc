package rest_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// operation is a request whose body a fuzz test makes up.
type operation struct {
	method, path, contentType string
	headers                   []string
}

const batchType = "application/vnd.microsoft.iothub.json"

var operations = []operation{
	{method: http.MethodPost, path: "/devices"},
	{method: http.MethodPut, path: "/devices/new"},
	{method: http.MethodPut, path: "/devices/d", headers: []string{"If-Match", "*"}},
	{method: http.MethodPut, path: "/devices/d/modules/new"},
	{method: http.MethodPatch, path: "/twins/d"},
	{method: http.MethodPut, path: "/twins/d/modules/m"},
	{method: http.MethodPost, path: "/twins/d/methods"},
	{method: http.MethodPost, path: "/devices/query"},
	{method: http.MethodPut, path: "/jobs/v2/j"},
	{method: http.MethodPost, path: "/devices/d/messages/events", contentType: batchType},
	{method: http.MethodPost, path: "/devices/d/messages/events", contentType: "application/octet-stream"},
}

// ask sends a request past the network, and checks the answer's form.
func (f *fixture) ask(t *testing.T, op operation, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), op.method, op.path+"?api-version=2021-04-12", strings.NewReader(body))
	r.Header.Set("Authorization", f.policyToken(hub.PolicyOwner))
	r.Header.Set("Content-Type", op.contentType)
	for i := 0; i < len(op.headers); i += 2 {
		r.Header.Set(op.headers[i], op.headers[i+1])
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	if w.Code >= 500 && w.Code != http.StatusGatewayTimeout {
		t.Errorf("%s %s: status %d: %s", op.method, op.path, w.Code, w.Body)
	}
	if w.Code >= 400 && w.Header().Get("iothub-errorcode") == "" && w.Code != http.StatusNotFound && op.path != "/devices" {
		t.Errorf("%s %s: status %d without a code: %s", op.method, op.path, w.Code, w.Body)
	}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && !json.Valid(w.Body.Bytes()) {
		t.Errorf("%s %s: %q is no JSON", op.method, op.path, w.Body)
	}
	return w
}

// readable fails the test if what there is now can't be read.
func (f *fixture) readable(t *testing.T) {
	t.Helper()
	w := f.ask(t, operation{method: http.MethodPost, path: "/devices/query", headers: []string{"X-Ms-Max-Item-Count", "100"}}, `{"query":"SELECT * FROM devices"}`)
	var twins []hub.Twin
	if err := json.Unmarshal(w.Body.Bytes(), &twins); err != nil || w.Code != http.StatusOK {
		t.Fatalf("twins: %d %s: %v", w.Code, w.Body, err)
	}
	const most = 3 * (8 + 32 + 32) << 10 // tags, desired and reported properties, with metadata
	for _, twin := range twins {
		if n := len(twin.Tags) + len(twin.Properties.Desired) + len(twin.Properties.Reported); n > most || !hub.ValidID(twin.DeviceID) {
			t.Errorf("device %q has a twin of %d bytes", twin.DeviceID, n)
		}
		if _, err := f.hub.ListModules(twin.DeviceID); err != nil {
			t.Errorf("modules of %q: %v", twin.DeviceID, err)
		}
	}
	f.ask(t, operation{method: http.MethodGet, path: "/devices"}, "")
	f.ask(t, operation{method: http.MethodGet, path: "/jobs/v2/query"}, "")
	for _, d := range f.telemetry.Peek(0, 1000) {
		if _, err := d.Message.MarshalBinary(); err != nil {
			t.Errorf("%+v: %v", d.Message, err)
		}
	}
}

// FuzzBody sends any body to any operation that takes one.
func FuzzBody(f *testing.F) {
	for i, body := range []string{
		`[{"id":"a","importMode":"create","authentication":{"symmetricKey":{"primaryKey":"MDEyMzQ1Njc4OTAxMjM0NQ=="}},"tags":{"a":1}},{"id":"d","importMode":"deleteIfMatchETag","eTag":"x"},{"id":"a","moduleId":"m","importMode":"updateTwin","properties":{"desired":{"a":null}}}]`,
		`{"deviceId":"new","status":"disabled","statusReason":"r","authentication":{"type":"selfSigned","x509Thumbprint":{"primaryThumbprint":"0123456789012345678901234567890123456789"}},"capabilities":{"iotEdge":true}}`,
		`{"deviceId":"d","authentication":{"symmetricKey":{"primaryKey":"","secondaryKey":"!"}},"parentScopes":["a"]}`,
		`{"moduleId":"new","managedBy":"me"}`,
		`{"tags":{"a":{"b":[1,{"c":2}]}},"properties":{"desired":{"$metadata":{},"x":1e400}}}`,
		`{"tags":{"a":null},"properties":{"desired":{"` + strings.Repeat("a", 1025) + `":1}}}`,
		`{"methodName":"reboot","payload":{"a":[1]},"responseTimeoutInSeconds":5,"connectTimeoutInSeconds":1}`,
		`{"query":"SELECT deviceId, COUNT() AS n FROM devices WHERE tags.a IN [1, 'x'] GROUP BY deviceId"}`,
		`{"type":"scheduleDeviceMethod","cloudToDeviceMethod":{"methodName":"m","payload":null},"queryCondition":"deviceId = 'd'","maxExecutionTimeInSeconds":10}`,
		`[{"body":"aGVsbG8=","properties":{"iothub-app-a":"b","iothub-messageid":"1"}},{"body":"x","base64Encoded":false,"properties":{"iothub-expiry":"soon"}}]`,
		"hello\x00\xff",
	} {
		f.Add(byte(i), body)
	}
	f.Add(byte(8), `{"type":"scheduleUpdateTwin","updateTwin":{"etag":"*","tags":{"a":1}},"startTime":"2000-01-02T00:00:00","queryCondition":"1=1 OR ("}`)
	f.Add(byte(0), "["+strings.Repeat("{},", 200)+"{}]")
	f.Add(byte(4), strings.Repeat(`{"tags":`, 2000))
	f.Fuzz(func(t *testing.T, which byte, body string) {
		synctest.Test(t, func(t *testing.T) {
			x := openCore(t, nil, nil)
			x.add("d")
			_, err := x.hub.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "m"})
			must(t, err)
			s, err := x.hub.Connect(t.Context(), "d", hub.ConnectOptions{})
			must(t, err)
			defer s.Close()
			s.HandleMethods(func(r hub.MethodRequest) {
				if r.Payload != nil && !json.Valid(r.Payload) {
					t.Errorf("the device got %q", r.Payload)
				}
				s.RespondMethod(r.RequestID, hub.MethodResult{Status: 200})
			})
			x.ask(t, operations[int(which)%len(operations)], body)
			time.Sleep(time.Minute) // for a job
			x.readable(t)
		})
	})
}

// pagedQueries are what comes in pages; the empty one stands for the list of jobs.
var pagedQueries = []string{
	"SELECT * FROM devices",
	"SELECT deviceId, COUNT() FROM devices GROUP BY deviceId",
	"",
	"SELECT * FROM devices.jobs",
}

// FuzzContinuation asks for the next page of something with any continuation
// token, raw and with its encoding. It is refused, or gives a page whose own token
// is good.
func FuzzContinuation(f *testing.F) {
	forge := func(which byte, rest string) {
		hash := fnv.New64a()
		_, _ = hash.Write([]byte(pagedQueries[which])) // it never fails
		f.Add(which, fmt.Appendf(nil, `{"query":%d,%s}`, hash.Sum64(), rest), byte(0))
	}
	forge(0, `"served":1,"device":"a"`)
	forge(0, `"served":9223372036854775807`)
	forge(1, `"served":1,"group":"x","device":"a","module":"m"`)
	f.Add(byte(2), []byte(`{"behind":["2000","a"],"served":1}`), byte(1))
	f.Add(byte(3), []byte(`{"behind":["j","a",""],"served":9223372036854775807}`), byte(0))
	f.Fuzz(func(t *testing.T, which byte, token []byte, size byte) {
		if len(token) > 1<<12 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			x := openCore(t, nil, nil)
			x.add("a", "b", "c")
			x.ask(t, operations[8], `{"type":"scheduleUpdateTwin","updateTwin":{"tags":{"a":1}}}`)
			time.Sleep(time.Minute)
			x.wantPages(t, int(which&3), string(token), string(rune('1'+size%9)))
			x.wantPages(t, int(which&3), base64.RawURLEncoding.EncodeToString(token), string(rune('1'+size%9)))
		})
	})
}

// wantPages follows a token to the last page.
func (f *fixture) wantPages(t *testing.T, which int, token, size string) {
	t.Helper()
	op := operation{method: http.MethodPost, path: "/devices/query"}
	body := fmt.Sprintf(`{"query":%q}`, pagedQueries[which])
	if pagedQueries[which] == "" {
		op = operation{method: http.MethodGet, path: "/jobs/v2/query"}
	}
	for page := 0; ; page++ {
		op.headers = []string{"X-Ms-Max-Item-Count", size, "X-Ms-Continuation", token}
		w := f.ask(t, op, body)
		var items []json.RawMessage
		switch {
		case page == 0 && w.Code == http.StatusBadRequest:
			return
		case w.Code != http.StatusOK || page > 3:
			t.Fatalf("page %d of %s: %d %s", page, token, w.Code, w.Body)
		}
		if err := json.Unmarshal(w.Body.Bytes(), &items); err != nil || len(items) > int(size[0]-'0') {
			t.Errorf("page %d of %s: %d items of %s: %v", page, token, len(items), size, err)
		}
		if token = w.Header().Get("X-Ms-Continuation"); token == "" {
			return
		}
	}
}
