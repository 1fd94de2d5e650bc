package fault_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAPI(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	api := in.Handler()
	for _, step := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/faults", "", 200, `{"faults":[]}`},
		{"POST", "/faults", `{"kind":"refuse","operation":"d2c","code":429,"retryAfter":"3s"}`, 201, `{"id":"1"}`},
		{"POST", "/faults", `{"kind":"delay","latency":"1.5s","probability":0.5}`, 201, `{"id":"2"}`},
		{"GET", "/faults", "", 200, `{"faults":[{"id":"1","hits":0,"kind":"refuse","operation":"d2c","code":429,"retryAfter":"3s"},` +
			`{"id":"2","hits":0,"kind":"delay","probability":0.5,"latency":"1.5s"}]}`},
		{"POST", "/faults", `{"kind":"disconnect"}`, 201, `{"id":"3"}`},
		{"DELETE", "/faults/3", "", 404, `{"error":"there is no such fault"}`},
		{"DELETE", "/faults/1", "", 204, ""},
		{"DELETE", "/faults", "", 200, `{"removed":1}`},
		{"GET", "/faults", "", 200, `{"faults":[]}`},
		{"POST", "/faults", `{"kind":"break"}`, 400, `{"error":"invalid fault: kind is \"break\" and must be cut, delay, half-open, duplicate, refuse, expire-locks or disconnect"}`},
		{"POST", "/faults", `{"kind":"cut","colour":"red"}`, 400, `{"error":"invalid fault: unknown field \"colour\""}`},
		{"POST", "/faults", `{"kind":"cut","after":5}`, 400, `{"error":"invalid fault: after is a JSON number and must be a text such as \"500ms\" or \"10s\""}`},
		{"POST", "/faults", `{"kind":"cut","after":"soon"}`, 400, `{"error":"invalid fault: \"soon\" is no duration such as 500ms or 10s"}`},
		{"POST", "/faults", `{"kind":"refuse","code":"429"}`, 400, `{"error":"invalid fault: code is a JSON string and must be a whole number"}`},
		{"POST", "/faults", `{"kind":"cut","device":7}`, 400, `{"error":"invalid fault: device is a JSON number and must be a text"}`},
		{"POST", "/faults", `{"kind":"cut","probability":"1"}`, 400, `{"error":"invalid fault: probability is a JSON string and must be a number"}`},
		{"POST", "/faults", `["cut"]`, 400, `{"error":"invalid fault: it is a JSON array and must be an object such as {\"kind\": \"cut\"}"}`},
		{"POST", "/faults", `{`, 400, `{"error":"the body is not valid JSON: unexpected end of JSON input"}`},
		{"POST", "/faults", strings.Repeat(" ", 64<<10) + "{}", 413, `{"error":"http: request body too large"}`},
		{"GET", "/other", "", 404, "404 page not found"},
	} {
		r := httptest.NewRequest(step.method, "http://localhost:1234"+step.path, strings.NewReader(step.body))
		r.Header.Set("Content-Type", "application/json; charset=utf-8")
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if got := strings.TrimSpace(w.Body.String()); w.Code != step.status || got != step.want {
			t.Errorf("%s %s: got %d %s, want %d %s", step.method, step.path, w.Code, got, step.status, step.want)
		}
	}
}

func TestAPIRefusesPages(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	api := in.Handler()
	for name, tc := range map[string]struct {
		host, origin, contentType string
		status                    int
	}{
		"curl":                 {"127.0.0.1:9000", "", "application/json", http.StatusCreated},
		"IPv6":                 {"[::1]:9000", "", "application/json", http.StatusCreated},
		"name":                 {"localhost", "", "application/json", http.StatusCreated},
		"page of another site": {"127.0.0.1:9000", "https://example.com", "application/json", http.StatusForbidden},
		"page from a file":     {"127.0.0.1:9000", "null", "application/json", http.StatusForbidden},
		"rebound name":         {"example.com:9000", "", "application/json", http.StatusForbidden},
		"name like an address": {"127.0.0.1.example.com", "", "application/json", http.StatusForbidden},
		"form":                 {"127.0.0.1:9000", "", "application/x-www-form-urlencoded", http.StatusUnsupportedMediaType},
		"text":                 {"127.0.0.1:9000", "", "text/plain", http.StatusUnsupportedMediaType},
		"nothing said":         {"127.0.0.1:9000", "", "", http.StatusUnsupportedMediaType},
	} {
		r := httptest.NewRequest("POST", "http://"+tc.host+"/faults", strings.NewReader(`{"kind":"cut","count":1}`))
		if tc.origin != "" {
			r.Header.Set("Origin", tc.origin)
		}
		r.Header.Set("Content-Type", tc.contentType)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code != tc.status {
			t.Errorf("%s: got %d, want %d: %s", name, w.Code, tc.status, w.Body)
		}
	}
}
