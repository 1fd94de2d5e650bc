package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// Connection is one device's connection to the hub. It outlives interruptions: it connects again by itself.
type Connection interface {
	// Publish returns when the hub has stored m.
	Publish(ctx context.Context, m job.Message) error
	// Done is closed when the connection has ended for good.
	Done() <-chan struct{}
	// Close ends the connection and waits until its handler has returned; the handler's context ends too. It may be
	// called more than once.
	Close() error
}

// Dialer connects a device. Each cloud-to-device message that arrives is passed to handle, and acknowledged to the hub
// only when handle returns nil; otherwise the hub delivers it again. Errors are classified as a job.Error.
type Dialer interface {
	Dial(ctx context.Context, deviceID string, handle func(context.Context, job.Message) error) (Connection, error)
}

// Recorder records what a device received in the session's workflow and returns when that is durable. The error
// matches job.ErrNotFound when the workflow is over.
type Recorder interface {
	Record(ctx context.Context, s job.Session, m job.Message) error
}

// A message that could not be recorded is tried again after recordFirst, then twice that, up to recordMost.
const (
	recordFirst = 200 * time.Millisecond
	recordMost  = 5 * time.Second
)

// Pool holds at most one connection a device in this process, opened on demand and shared by all sessions of the
// device. A Pool is safe for concurrent use.
type Pool struct {
	dialer   Dialer
	recorder Recorder
	log      *slog.Logger

	stop  chan struct{}  // closed by Shutdown
	links sync.WaitGroup // of the goroutines that hold a link

	mu       sync.Mutex // guards what follows
	stopped  bool
	byDevice map[string]*link
}

// link is a device's connection from the dial to its end.
type link struct {
	deviceID string
	sessions map[string]job.Session // by workflow ID; guarded by Pool.mu
	release  func()                 // ends the link; its context is that of the dial
	opened   chan struct{}          // closed when the dial has ended; conn and err are set before that
	conn     Connection
	err      error
	ended    chan struct{} // closed when the connection is closed and its handler has returned
}

// NewPool returns an empty pool. Shutdown must be called.
func NewPool(d Dialer, r Recorder, log *slog.Logger) *Pool {
	return &Pool{dialer: d, recorder: r, log: log, stop: make(chan struct{}), byDevice: make(map[string]*link)}
}

// Open implements Devices.
func (p *Pool) Open(ctx context.Context, s job.Session) error {
	_, err := p.connection(ctx, s)
	return err
}

// Publish implements Devices.
func (p *Pool) Publish(ctx context.Context, s job.Session, m job.Message) error {
	conn, err := p.connection(ctx, s)
	if err != nil {
		return err
	}
	if err = conn.Publish(ctx, m); errors.Is(err, job.ErrUnavailable) {
		return fmt.Errorf("%w: %w", ErrOffline, err)
	}
	return err
}

// Close implements Devices: it ends one session.
func (p *Pool) Close(ctx context.Context, s job.Session) error {
	l := p.leave(s)
	if l == nil {
		return nil
	}
	select {
	case <-l.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Shutdown ends all sessions and waits until every connection is closed.
func (p *Pool) Shutdown() {
	p.mu.Lock()
	if !p.stopped {
		p.stopped = true
		close(p.stop)
	}
	p.mu.Unlock()
	p.links.Wait()
}

// Size returns how many devices are connected or being connected.
func (p *Pool) Size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byDevice)
}

// connection returns the open connection of the session's device. If the dial fails, all who wait for it get the error.
func (p *Pool) connection(ctx context.Context, s job.Session) (Connection, error) {
	l, err := p.join(s)
	if err != nil {
		return nil, err
	}
	select {
	case <-l.opened:
		return l.conn, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join adds the session to the link of its device, which it starts if there is none.
func (p *Pool) join(s job.Session) (*link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, &job.Error{Kind: job.ErrUnavailable, Err: ErrStopping}
	}
	l := p.byDevice[s.DeviceID]
	if l == nil || l.lost() {
		l = p.start(s.DeviceID)
	}
	l.sessions[s.WorkflowID] = s
	return l, nil
}

// start begins to connect a device. The dial is not bound to whoever asked first, as others may wait for it too. The
// caller holds mu.
func (p *Pool) start(deviceID string) *link {
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{
		deviceID: deviceID,
		sessions: make(map[string]job.Session),
		release:  cancel,
		opened:   make(chan struct{}),
		ended:    make(chan struct{}),
	}
	p.byDevice[deviceID] = l
	p.links.Go(func() { p.hold(ctx, l) })
	return l
}

// leave removes the session and returns its device's link if it has ended it, because no other session needs it.
func (p *Pool) leave(s job.Session) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.byDevice[s.DeviceID]
	if l == nil {
		return nil
	}
	delete(l.sessions, s.WorkflowID)
	if len(l.sessions) > 0 {
		return nil
	}
	delete(p.byDevice, s.DeviceID)
	l.release()
	return l
}

// lost reports whether the link's dial failed or its connection has ended.
func (l *link) lost() bool {
	return isClosed(l.opened) && (l.err != nil || isClosed(l.conn.Done()))
}

// hold dials and keeps the connection as long as it lasts and is needed.
func (p *Pool) hold(ctx context.Context, l *link) {
	defer close(l.ended)
	defer p.drop(l)
	unwatch := p.releaseOnStop(l)
	defer unwatch()
	l.conn, l.err = p.dial(ctx, l.deviceID)
	close(l.opened)
	if l.err != nil {
		return
	}
	select {
	case <-l.conn.Done():
		p.log.Warn("device connection has ended", "device", l.deviceID)
		p.drop(l) // at once: Close may take a while
	case <-ctx.Done():
	}
	if err := l.conn.Close(); err != nil {
		p.log.Debug("device connection was closed with an error", "device", l.deviceID, "error", line(err))
	}
}

// releaseOnStop ends the link when the pool is shut down.
func (p *Pool) releaseOnStop(l *link) (unwatch func()) {
	done := make(chan struct{})
	p.links.Go(func() {
		select {
		case <-p.stop:
		case <-done:
		}
		l.release()
	})
	return func() { close(done) }
}

func (p *Pool) dial(ctx context.Context, deviceID string) (Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	return p.dialer.Dial(ctx, deviceID, func(ctx context.Context, m job.Message) error {
		return p.receive(ctx, deviceID, m)
	})
}

// drop takes a link that has ended out of the pool, unless another one has taken its place already.
func (p *Pool) drop(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byDevice[l.deviceID] == l {
		delete(p.byDevice, l.deviceID)
	}
}

// receive records a cloud-to-device message; the hub takes it for delivered when it returns nil.
func (p *Pool) receive(ctx context.Context, deviceID string, m job.Message) error {
	for wait := recordFirst; ; wait = min(2*wait, recordMost) {
		s, ok := p.session(deviceID, m)
		if !ok {
			return &job.Error{Op: fmt.Sprintf("record message %q of device %q", m.ID, deviceID), Kind: job.ErrUnavailable,
				Err: errors.New("no session of this device has its job")}
		}
		err := p.recorder.Record(ctx, s, m)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, job.ErrNotFound):
			p.log.Info("message for a workflow that is over", "device", deviceID, "message", m.ID, "workflow", s.WorkflowID)
			return nil
		}
		p.log.Warn("received message could not be recorded yet", "device", deviceID, "message", m.ID, "error", line(err))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// session returns the session that a message belongs to: the one of its job, or the only one there is.
func (p *Pool) session(deviceID string, m job.Message) (job.Session, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.byDevice[deviceID]
	if l == nil {
		return job.Session{}, false
	}
	for _, s := range l.sessions {
		if len(l.sessions) == 1 || job.JobIDOf(s.WorkflowID) == m.CorrelationID {
			return s, true
		}
	}
	return job.Session{}, false
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
