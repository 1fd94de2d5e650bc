package role

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func TestTogetherEndsWithTheContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	wait := func(ctx context.Context) error { <-ctx.Done(); return nil }
	early := func(context.Context) error { return nil }
	ended := make(chan error)
	go func() { ended <- Together(ctx, wait, early, wait) }()
	select {
	case err := <-ended:
		t.Fatalf("ended by itself: %v", err)
	default:
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTogetherEndsWithTheFirstError(t *testing.T) {
	t.Parallel()
	boom, also := errors.New("boom"), errors.New("also")
	err := Together(t.Context(),
		func(ctx context.Context) error { <-ctx.Done(); return also },
		func(context.Context) error { return boom })
	if !errors.Is(err, boom) || !errors.Is(err, also) {
		t.Errorf("got %v, want both errors", err)
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	unavailable := serviceerror.NewUnavailable("no")
	invalid := serviceerror.NewInvalidArgument("too large")
	for name, c := range map[string]struct {
		errs  []error // one for each call
		want  error
		calls int
		took  time.Duration
	}{
		"at once":                   {[]error{nil}, nil, 1, 0},
		"after a while":             {[]error{unavailable, unavailable, nil}, nil, 3, 3 * retryFirst},
		"never, and it is known so": {[]error{unavailable, invalid}, invalid, 2, retryFirst},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start, calls := time.Now(), 0
				err := Retry(t.Context(), quiet, "test", func(context.Context) error {
					calls++
					return c.errs[calls-1]
				})
				if !errors.Is(err, c.want) || calls != c.calls || time.Since(start) != c.took {
					t.Errorf("got %v after %d calls and %s; want %v, %d, %s", err, calls, time.Since(start), c.want, c.calls, c.took)
				}
			})
		})
	}
}

func TestRetryEndsWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		calls := 0
		err := Retry(ctx, quiet, "test", func(ctx context.Context) error {
			calls++
			<-ctx.Done() // as long as a call may take
			return ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() == nil {
			t.Errorf("got %v", err)
		}
		if limit := int(time.Hour/CallTimeout) + 1; calls < 10 || calls > limit {
			t.Errorf("%d calls in an hour", calls)
		}
	})
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var broken error
	mux := http.NewServeMux()
	Health(mux, func(context.Context) error { return nil }, func(context.Context) error { return broken })
	for _, c := range []struct {
		path   string
		broken error
		status int
		body   string
	}{
		{"/healthz", nil, 200, `{"status":"ok"}`},
		{"/readyz", nil, 200, `{"status":"ready"}`},
		{"/healthz", errors.New("no server"), 200, `{"status":"ok"}`},
		{"/readyz", errors.New("no server"), 503, `{"error":"no server"}`},
	} {
		broken = c.broken
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, c.path, nil))
		if got := strings.TrimSpace(w.Body.String()); w.Code != c.status || got != c.body {
			t.Errorf("%s with %v: got %d %s, want %d %s", c.path, c.broken, w.Code, got, c.status, c.body)
		}
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	s, err := Listen(t.Context(), "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		JSON(w, http.StatusOK, "done")
	}), quiet)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.Addr(), "127.0.0.1:") {
		t.Errorf("listens on %s without having been told so", s.Addr())
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	answered := make(chan string, 1)
	go func() {
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get("http://" + s.Addr())
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		var v string
		_ = json.NewDecoder(resp.Body).Decode(&v)
		answered <- v
	}()
	<-entered
	cancel()
	close(release)
	if got := <-answered; got != "done" {
		t.Errorf("the request under way got %q", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestListenFails(t *testing.T) {
	t.Parallel()
	s, err := Listen(t.Context(), "127.0.0.1:0", http.NotFoundHandler(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := Listen(t.Context(), s.Addr(), http.NotFoundHandler(), quiet); err == nil || !strings.Contains(err.Error(), s.Addr()) {
		t.Errorf("listening twice on %s: %v", s.Addr(), err)
	}
}

func TestDialSaysWhatToDo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, client.Options{HostPort: "127.0.0.1:1"}, "test", quiet)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "TEMPORAL_ADDRESS") {
		t.Errorf("got %v", err)
	}
}

func TestDialIsInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.NewTextHandler(&onWrite{cancel}, nil)) // the first line of the log says that it waits
	if _, err := Dial(ctx, client.Options{HostPort: "127.0.0.1:1"}, "test", log); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type onWrite struct{ f func() }

func (w *onWrite) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "waiting for the Temporal server") {
		w.f()
	}
	return io.Discard.Write(p)
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	if got := Identity("manager"); !strings.HasPrefix(got, "manager@") || len(got) == len("manager@") {
		t.Errorf("got %q", got)
	}
}
