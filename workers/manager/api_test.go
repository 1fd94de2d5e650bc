package manager

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

const key = "the-key"

func TestAPI(t *testing.T) {
	t.Parallel()
	const secret = "HostName=hub;DeviceId=device-solver::job-1;SharedAccessKey=secret"
	throttled := &job.Error{Kind: job.ErrThrottled, RetryAfter: 1500 * time.Millisecond}
	for _, c := range []struct {
		name, method, path, key string
		has                     bool // the device is there already
		err                     error
		status                  int
		answer                  map[string]string
		retryAfter              string
		gone                    bool // the device is not there afterwards
	}{
		{name: "negotiate a new device", method: "GET", path: "/negotiate/device-solver::job-1", key: key, status: 200,
			answer: map[string]string{"url": secret}},
		{name: "negotiate with POST", method: "POST", path: "/negotiate/device-solver::job-1", key: key, status: 200,
			answer: map[string]string{"url": secret}},
		{name: "negotiate again", method: "GET", path: "/negotiate/device-solver%3A%3Ajob-1", key: key, has: true, status: 200,
			answer: map[string]string{"url": secret}},
		{name: "negotiate an existing device", method: "GET", path: "/negotiate/device-solver::job-1?existing=true", key: key, has: true, status: 200,
			answer: map[string]string{"url": secret}},
		{name: "negotiate a device that must exist and doesn't", method: "GET", path: "/negotiate/device-solver::job-1?existing=true", key: key, status: 404,
			answer: map[string]string{"error": `there is no device "device-solver::job-1"`}, gone: true},
		{name: "a query that makes no sense", method: "GET", path: "/negotiate/d?existing=perhaps", key: key, status: 400, gone: true},
		{name: "without a key", method: "GET", path: "/negotiate/d", status: 401, gone: true},
		{name: "with a wrong key", method: "GET", path: "/negotiate/d", key: "the-kex", status: 401, gone: true},
		{name: "with a part of the key", method: "GET", path: "/negotiate/d", key: "the", status: 401, gone: true},
		{name: "a device ID that can't be", method: "GET", path: "/negotiate/a%20b", key: key, status: 400, gone: true},
		{name: "a device ID that is too long", method: "GET", path: "/negotiate/" + strings.Repeat("x", 129), key: key, status: 400, gone: true},
		{name: "a path within the ID", method: "GET", path: "/negotiate/a%2Fb", key: key, status: 400, gone: true},
		{name: "the hub is down", method: "GET", path: "/negotiate/d", key: key, status: 502, gone: true,
			err: &job.Error{Op: "PUT", Kind: job.ErrUnavailable, Err: errors.New("dial 10.0.0.1")}, answer: map[string]string{"error": "the hub could not be asked: Unavailable"}},
		{name: "the hub refuses the manager", method: "GET", path: "/negotiate/d", key: key, status: 502, gone: true, err: &job.Error{Kind: job.ErrUnauthorized}},
		{name: "the hub is busy", method: "GET", path: "/negotiate/d", key: key, status: 429, gone: true, err: throttled, retryAfter: "2"},

		{name: "deregister", method: "POST", path: "/deregister/device-solver::job-1", key: key, has: true, status: 200, gone: true},
		{name: "deregister with GET", method: "GET", path: "/deregister/device-solver::job-1", key: key, has: true, status: 200, gone: true},
		{name: "deregister nothing", method: "GET", path: "/deregister/device-solver::job-1", key: key, status: 404, gone: true},
		{name: "deregister without a key", method: "GET", path: "/deregister/device-solver::job-1", has: true, status: 401},
		{name: "deregister when the hub is down", method: "GET", path: "/deregister/device-solver::job-1", key: key, has: true, status: 502, err: &job.Error{Kind: job.ErrUnavailable}},

		{name: "another method", method: "DELETE", path: "/negotiate/d", key: key, status: 405, gone: true},
		{name: "another path", method: "GET", path: "/negotiate/", key: key, status: 404, gone: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := &hub{keys: make(map[string]string), err: c.err}
			if c.has {
				h.keys["device-solver::job-1"] = secret
			}
			mux := http.NewServeMux()
			newAPI(h, key, slog.New(slog.DiscardHandler)).routes(mux)
			r := httptest.NewRequest(c.method, c.path, nil)
			if c.key != "" {
				r.Header.Set("X-API-Key", c.key)
			}
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if w.Code != c.status || w.Header().Get("Retry-After") != c.retryAfter {
				t.Fatalf("got %d, retry after %q: %s", w.Code, w.Header().Get("Retry-After"), w.Body)
			}
			var answer map[string]string
			if w.Code != 405 && !strings.HasSuffix(c.path, "/") {
				if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
					t.Fatalf("the answer %q is not JSON: %v", w.Body, err)
				}
			}
			for name, want := range c.answer {
				if answer[name] != want {
					t.Errorf("answered %v, want %s=%s", answer, name, want)
				}
			}
			if c.status >= 400 && strings.Contains(w.Body.String(), "secret") {
				t.Errorf("the answer gives the key away: %s", w.Body)
			}
			if gone := len(h.keys) == 0; gone != c.gone {
				t.Errorf("afterwards the hub has %v", h.keys)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := newMetrics()
	m.Routed(3)
	m.DeadLettered(job.ReasonDeviceNotFound)
	m.Feedback(job.OutcomeSuccess, true)
	m.Feedback(job.OutcomeExpired, false)
	m.sent(nil)
	m.sent(&job.Error{Kind: job.ErrQueueFull})
	w := httptest.NewRecorder()
	m.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		"hubjobs_routed_messages_total 3\n",
		`hubjobs_dead_lettered_messages_total{reason="DeviceNotFound"} 1`,
		`hubjobs_feedback_records_total{outcome="Success",recorded="true"} 1`,
		`hubjobs_feedback_records_total{outcome="Expired",recorded="false"} 1`,
		`hubjobs_cloud_to_device_sends_total{result="Accepted"} 1`,
		`hubjobs_cloud_to_device_sends_total{result="QueueFull"} 1`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q is missing in\n%s", want, w.Body)
		}
	}
}
