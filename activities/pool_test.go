package activities

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// dialer makes connections in memory.
type dialer struct {
	mu    sync.Mutex
	conns []*connection
	err   error
	wait  chan struct{} // a dial ends when this is closed; nil: at once
}

func (d *dialer) Dial(ctx context.Context, deviceID string, handle func(context.Context, job.Message) error) (Connection, error) {
	if d.wait != nil {
		select {
		case <-d.wait:
		case <-ctx.Done():
			return nil, &job.Error{Kind: job.ErrUnavailable, Err: ctx.Err()}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	c := &connection{deviceID: deviceID, handle: handle, done: make(chan struct{})}
	d.conns = append(d.conns, c)
	return c, nil
}

func (d *dialer) all() []*connection {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.conns)
}

type connection struct {
	outbox
	deviceID string
	handle   func(context.Context, job.Message) error
	done     chan struct{}
	once     sync.Once
}

func (c *connection) Publish(ctx context.Context, m job.Message) error { return c.Send(ctx, m) }
func (c *connection) Done() <-chan struct{}                            { return c.done }
func (c *connection) Close() error                                     { c.end(); return nil }
func (c *connection) end()                                             { c.once.Do(func() { close(c.done) }) }

// recorder keeps what was recorded, after it has failed as often as it is told to.
type recorder struct {
	mu       sync.Mutex
	failures []error
	recorded []string // "workflow ID: message ID"
}

func (r *recorder) Record(_ context.Context, s job.Session, m job.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failures) > 0 {
		err := r.failures[0]
		r.failures = r.failures[1:]
		return err
	}
	r.recorded = append(r.recorded, s.WorkflowID+": "+m.ID)
	return nil
}

func newPool(t *testing.T, d *dialer, r *recorder) *Pool {
	t.Helper()
	p := NewPool(d, r, slog.New(slog.DiscardHandler))
	t.Cleanup(p.Shutdown)
	return p
}

func TestPoolSharesOneConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{wait: make(chan struct{})}
		p := newPool(t, d, &recorder{})
		opened := make(chan error, 3)
		for range 3 {
			go func() { opened <- p.Open(t.Context(), session) }()
		}
		synctest.Wait()
		close(d.wait)
		for range 3 {
			if err := <-opened; err != nil {
				t.Error(err)
			}
		}
		if err := p.Publish(t.Context(), session, message("m1")); err != nil {
			t.Error(err)
		}
		conns := d.all()
		if len(conns) != 1 || !slices.Equal(conns[0].ids(), []string{"m1"}) {
			t.Errorf("%d connections were made", len(conns))
		}
	})
}

func TestPoolDialsOnDemandAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		p := newPool(t, d, &recorder{})
		if err := p.Open(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		d.all()[0].end()
		synctest.Wait()
		if n := p.Size(); n != 0 {
			t.Errorf("%d connections are left after the only one has ended", n)
		}
		if err := p.Publish(t.Context(), session, message("m1")); err != nil {
			t.Error(err)
		}
		if conns := d.all(); len(conns) != 2 || len(conns[1].sent) != 1 {
			t.Errorf("the message was not sent over a second connection: %d", len(conns))
		}
	})
}

func TestPoolGivesTheDialsErrorToAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{err: &job.Error{Kind: job.ErrUnauthorized}, wait: make(chan struct{})}
		p := newPool(t, d, &recorder{})
		opened := make(chan error, 2)
		for range 2 {
			go func() { opened <- p.Open(t.Context(), session) }()
		}
		synctest.Wait()
		close(d.wait)
		for range 2 {
			if err := <-opened; !errors.Is(err, job.ErrUnauthorized) {
				t.Errorf("got %v", err)
			}
		}
		synctest.Wait()
		if n := p.Size(); n != 0 {
			t.Errorf("%d connections after a failed dial", n)
		}
		d.mu.Lock()
		d.err = nil
		d.mu.Unlock()
		if err := p.Open(t.Context(), session); err != nil {
			t.Errorf("the next try failed: %v", err)
		}
	})
}

func TestPoolDialOutlivesItsFirstCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{wait: make(chan struct{})}
		p := newPool(t, d, &recorder{})
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- p.Open(ctx, session) }()
		synctest.Wait()
		go func() { second <- p.Open(t.Context(), session) }()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the first caller got %v", err)
		}
		close(d.wait)
		if err := <-second; err != nil {
			t.Errorf("the second caller got %v", err)
		}
	})
}

func TestPoolDialHasADeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, &dialer{wait: make(chan struct{})}, &recorder{})
		if err := p.Open(t.Context(), session); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPoolPublishTellsThatTheDeviceIsOffline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		p := newPool(t, d, &recorder{})
		if err := p.Open(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		d.all()[0].fail = map[string]error{
			"m1": &job.Error{Kind: job.ErrUnavailable},
			"m2": &job.Error{Kind: job.ErrTooLarge},
		}
		if err := p.Publish(t.Context(), session, message("m1")); !errors.Is(err, ErrOffline) || !errors.Is(err, job.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		if err := p.Publish(t.Context(), session, message("m2")); errors.Is(err, ErrOffline) || !errors.Is(err, job.ErrTooLarge) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPoolCloseEndsTheLastSessionsConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		p := newPool(t, d, &recorder{})
		other := job.Session{DeviceID: session.DeviceID, WorkflowID: "solve/job-2"}
		for _, s := range []job.Session{session, other} {
			if err := p.Open(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(t.Context(), session); err != nil || isClosed(d.all()[0].done) {
			t.Errorf("the connection was closed under the other session: %v", err)
		}
		if err := p.Close(t.Context(), other); err != nil || !isClosed(d.all()[0].done) {
			t.Errorf("the connection was not closed: %v", err)
		}
		if err := p.Close(t.Context(), other); err != nil {
			t.Errorf("closing what is closed: %v", err)
		}
	})
}

func TestPoolCloseInterruptsADial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, &dialer{wait: make(chan struct{})}, &recorder{})
		opened := make(chan error, 1)
		go func() { opened <- p.Open(t.Context(), session) }()
		synctest.Wait()
		if err := p.Close(t.Context(), session); err != nil {
			t.Error(err)
		}
		if err := <-opened; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPoolShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		p := newPool(t, d, &recorder{})
		if err := p.Open(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		p.Shutdown()
		p.Shutdown()
		if !isClosed(d.all()[0].done) || p.Size() != 0 {
			t.Error("a connection outlived the pool")
		}
		if err := p.Open(t.Context(), session); !errors.Is(err, ErrStopping) {
			t.Errorf("opening after the end: got %v", err)
		}
	})
}

func TestPoolRecordsWhatArrives(t *testing.T) {
	t.Parallel()
	second := job.Session{DeviceID: session.DeviceID, WorkflowID: "solve/job-2"}
	ofJob2, ofJob3 := message("m1"), message("m1")
	ofJob2.CorrelationID, ofJob3.CorrelationID = "job-2", "job-3"
	unavailable := &job.Error{Kind: job.ErrUnavailable}
	for name, c := range map[string]struct {
		sessions []job.Session
		message  job.Message
		failures []error
		want     []string
		err      error
		waited   time.Duration
	}{
		"of the only session": {sessions: []job.Session{session}, message: ofJob3, want: []string{"solve/job-1: m1"}},
		"of one of two":       {sessions: []job.Session{session, second}, message: ofJob2, want: []string{"solve/job-2: m1"}},
		"of none of two":      {sessions: []job.Session{session, second}, message: ofJob3, err: job.ErrUnavailable},
		"tried again until it is recorded": {sessions: []job.Session{session}, message: ofJob2,
			failures: []error{unavailable, unavailable, unavailable}, want: []string{"solve/job-1: m1"},
			waited: recordFirst + 2*recordFirst + 4*recordFirst},
		"acknowledged when the workflow is over": {sessions: []job.Session{session}, message: ofJob2,
			failures: []error{&job.Error{Kind: job.ErrNotFound}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d, r := &dialer{}, &recorder{failures: c.failures}
				p := newPool(t, d, r)
				for _, s := range c.sessions {
					if err := p.Open(t.Context(), s); err != nil {
						t.Fatal(err)
					}
				}
				start := time.Now()
				if err := d.all()[0].handle(t.Context(), c.message); !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
					t.Errorf("got error %v, want %v", err, c.err)
				}
				if waited := time.Since(start); waited != c.waited {
					t.Errorf("waited %s, want %s", waited, c.waited)
				}
				if !slices.Equal(r.recorded, c.want) {
					t.Errorf("recorded %v, want %v", r.recorded, c.want)
				}
			})
		})
	}
}

func TestPoolStopsRecordingWithTheConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{}
		r := &recorder{failures: slices.Repeat([]error{&job.Error{Kind: job.ErrUnavailable}}, 100)}
		p := newPool(t, d, r)
		if err := p.Open(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := d.all()[0].handle(ctx, message("m1")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v: the message would be taken for delivered", err)
		}
	})
}
