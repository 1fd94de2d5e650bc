package manager

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const (
	key              = "the-api-key"
	connectionString = "HostName=localhost;DeviceId=d;SharedAccessKey=c2VjcmV0"
)

// serve starts a manager that gives every request the same answer, and returns a client of it.
func serve(t *testing.T, status int, body string, seen chan<- *http.Request) *Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seen != nil {
			seen <- r
		}
		w.Header().Set("Location", "http://elsewhere.test/")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	client, err := New(server.URL+"/", key)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestNegotiate(t *testing.T) {
	t.Parallel()
	seen := make(chan *http.Request, 1)
	got, err := serve(t, 200, `{"url":"`+connectionString+`"}`, seen).Negotiate(t.Context(), "device-solver::foo#1")
	if got != connectionString || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	request := <-seen
	if request.Method != http.MethodGet || request.URL.Path != "/negotiate/device-solver::foo#1" || request.Header.Get("x-api-key") != key {
		t.Errorf("asked %s %s with the headers %v", request.Method, request.URL.Path, request.Header)
	}
}

func TestNegotiateErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status   int
		body     string
		refused  bool
		code     int
		mentions string
	}{
		"wrong key":       {status: 401, refused: true},
		"forbidden":       {status: 403, refused: true},
		"reason":          {status: 503, body: `{"error":"hub is away"}`, code: 503, mentions: "hub is away"},
		"proxy page":      {status: 502, body: "<html>" + connectionString, code: 502},
		"redirect":        {status: 302, code: 302},
		"not JSON":        {status: 200, body: connectionString, mentions: "a manager?"},
		"without URL":     {status: 200, body: `{}`, mentions: "no connection string"},
		"endless garbage": {status: 200, body: strings.Repeat("x", 1<<20), mentions: "no connection string"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := serve(t, test.status, test.body, nil).Negotiate(t.Context(), "d")
			if err == nil {
				t.Fatal("no error")
			}
			if errors.Is(err, ErrKeyRefused) != test.refused {
				t.Errorf("error %v", err)
			}
			var status *StatusError
			if errors.As(err, &status) != (test.code != 0) || status != nil && status.Code != test.code {
				t.Errorf("error %v, want status %d", err, test.code)
			}
			if !strings.Contains(err.Error(), test.mentions) {
				t.Errorf("error %v does not mention %q", err, test.mentions)
			}
			if strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("error %v holds a secret", err)
			}
		})
	}
}

func TestDeregister(t *testing.T) {
	t.Parallel()
	for status, ok := range map[int]bool{200: true, 204: true, 404: true, 401: false, 500: false} {
		seen := make(chan *http.Request, 1)
		if err := serve(t, status, "", seen).Deregister(t.Context(), "d"); (err == nil) != ok {
			t.Errorf("status %d: error %v", status, err)
		}
		if request := <-seen; request.URL.Path != "/deregister/d" {
			t.Errorf("asked %s", request.URL.Path)
		}
	}
}

func TestNoManager(t *testing.T) {
	t.Parallel()
	client, err := New("http://127.0.0.1:1", key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Negotiate(t.Context(), "d"); err == nil || !strings.Contains(err.Error(), "is the manager running?") {
		t.Errorf("error %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "localhost:8080", "ftp://h", "http://", "http://a b", "http://u:p@h", "http://h?q=1"} {
		if _, err := New(address, key); err == nil {
			t.Errorf("URL %q is accepted", address)
		}
	}
	if _, err := New(DefaultURL, ""); err == nil {
		t.Error("no key is accepted")
	}
}
