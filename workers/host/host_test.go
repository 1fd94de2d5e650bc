package host

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNegotiator(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		header http.Header
		body   string
		want   string
		kind   error
		after  time.Duration
	}{
		"found":                   {status: 200, body: `{"url":"HostName=hub;DeviceId=d"}`, want: "HostName=hub;DeviceId=d"},
		"no such device":          {status: 404, body: `{"error":"there is no device"}`, kind: job.ErrNotFound},
		"wrong key":               {status: 401, body: `{"error":"wrong"}`, kind: job.ErrUnauthorized},
		"a device ID that can't":  {status: 400, body: `{"error":"no"}`, kind: job.ErrInvalid},
		"busy":                    {status: 429, header: http.Header{"Retry-After": {"3"}}, body: `{"error":"later"}`, kind: job.ErrThrottled, after: 3 * time.Second},
		"the hub is down":         {status: 502, body: `{"error":"the hub"}`, kind: job.ErrUnavailable},
		"a page of a proxy":       {status: 503, body: `<html>SharedAccessKey=secret`, kind: job.ErrUnavailable},
		"not what was asked for":  {status: 200, body: `{"other":"SharedAccessKey=secret"}`, kind: job.ErrUnavailable},
		"cut off":                 {status: 200, body: `{"url":"SharedAccessKey=secret`, kind: job.ErrUnavailable},
		"a redirect is no answer": {status: 307, header: http.Header{"Location": {"http://127.0.0.1:1/"}}, body: `{}`, kind: job.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *http.Request
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got = r
				for name, values := range c.header {
					w.Header()[name] = values
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}))
			defer server.Close()
			n, err := NewNegotiator(server.URL+"/api", "the-key")
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			s, err := n.ConnectionString(t.Context(), "device-solver::a%b")
			if s != c.want || !errors.Is(err, c.kind) || (err == nil) != (c.kind == nil) {
				t.Fatalf("got %q, %v; want %q, %v", s, err, c.want, c.kind)
			}
			if got.URL.EscapedPath() != "/api/negotiate/device-solver::a%25b" || got.URL.RawQuery != "existing=true" || got.Header.Get("x-api-key") != "the-key" {
				t.Errorf("asked %s %s with %v", got.Method, got.URL, got.Header)
			}
			var classified *job.Error
			if errors.As(err, &classified) && classified.RetryAfter != c.after {
				t.Errorf("retry after %s, want %s", classified.RetryAfter, c.after)
			}
			if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "the-key")) {
				t.Errorf("the error gives a secret away: %v", err)
			}
		})
	}
}

func TestNegotiatorWithoutAManager(t *testing.T) {
	t.Parallel()
	n, err := NewNegotiator("http://127.0.0.1:1", "the-key")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.ConnectionString(t.Context(), "d"); !errors.Is(err, job.ErrUnavailable) || strings.Contains(err.Error(), "the-key") {
		t.Errorf("got %v", err)
	}
}

func TestSettingsValidate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		url, key string
		problem  string
	}{
		"fine":             {"http://manager:8080", "k", ""},
		"fine with a path": {"https://example.com/manager/", "k", ""},
		"no URL":           {"", "k", "not set"},
		"no key":           {"http://manager", "", "key"},
		"no scheme":        {"manager:8080", "k", "should look like"},
		"another scheme":   {"ftp://manager", "k", "should look like"},
		"no host":          {"http://", "k", "should look like"},
		"a password in it": {"http://u:secret@manager", "k", "should look like"},
		"a query":          {"http://manager/?code=1", "k", "should look like"},
		"not a URL":        {"http://%zz", "k", "should look like"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := Settings{ManagerURL: c.url, APIKey: c.key}.Validate()
			if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Errorf("got %v, want %q", err, c.problem)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error gives the password away: %v", err)
			}
		})
	}
}

func TestNewName(t *testing.T) {
	t.Parallel()
	a, b := NewName(), NewName()
	if a == b || !regexp.MustCompile(`^.+-\d+-[a-z0-9]{6}$`).MatchString(a) {
		t.Errorf("got %q and %q", a, b)
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	h, err := New(Settings{Name: "h1", ManagerURL: "http://manager", APIKey: "k"}, job.RoleScheduler, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if q := h.Queue(); q.Name != "hubjobs-scheduler/h1" {
		t.Errorf("got %q", q.Name)
	}
}
