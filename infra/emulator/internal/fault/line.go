package fault

import (
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// maxHeld is how many bytes are held up in each direction before the sender
	// has to wait; about what the buffers of a socket take.
	maxHeld = 64 << 10
	// chunkSize is how much is read at a time.
	chunkSize = 16 << 10
	// lingerTimeout is how long a peer may take to read what is left when the
	// connection is closed.
	lingerTimeout = 5 * time.Second
)

// line carries the data of a connection on which a fault has begun. Two
// goroutines move it between the socket and two queues, where it waits; so
// writers need not wait with it, and the socket never shows that nobody reads.
type line struct {
	conn *Conn
	pump sync.Once // from the socket
	send sync.Once // to the socket

	mu      sync.Mutex    // guards all below
	changed chan struct{} // closed, and made anew, whenever something changes
	effects []*effect
	in, out queue
	sendErr error // of the socket
	closed  bool  // by its owner
	aborted bool
}

// queue is data on its way.
type queue struct {
	chunks []chunk
	bytes  int
	last   time.Time // when the newest chunk is due
}

// hasten makes all due at once: nothing is delayed any more.
func (q *queue) hasten() {
	for i := range q.chunks {
		q.chunks[i].due = time.Time{}
	}
	q.last = time.Time{}
}

type chunk struct {
	due  time.Time
	data []byte
	err  error // of the socket; comes after all data
}

func newLine(c *Conn) *line { return &line{conn: c, changed: make(chan struct{})} }

// wake lets all who wait look again.
func (l *line) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broadcast()
}

func (l *line) broadcast() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait waits until something changes, or until a time that is not zero. The
// caller holds mu.
func (l *line) wait(until time.Time) {
	changed := l.changed
	l.mu.Unlock()
	defer l.mu.Lock()
	if until.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

func (l *line) add(e *effect) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.effects = append(l.effects, e)
	l.broadcast()
}

func (l *line) remove(e *effect) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.effects = slices.DeleteFunc(l.effects, func(other *effect) bool { return other == e })
	if !slices.ContainsFunc(l.effects, func(e *effect) bool { return e.rule.Kind == Delay }) {
		l.in.hasten()
		l.out.hasten()
	}
	l.broadcast()
}

// stalled reports whether nothing may pass. The caller holds mu, as for push and
// spend.
func (l *line) stalled() bool {
	return slices.ContainsFunc(l.effects, func(e *effect) bool { return e.rule.Kind == HalfOpen })
}

// push adds data, which it keeps, to a queue.
func (l *line) push(q *queue, data []byte, err error) {
	due := time.Now()
	for _, e := range l.effects {
		due = due.Add(e.rule.Latency)
		if j := e.rule.Jitter; j > 0 {
			due = due.Add(time.Duration(e.random.Int64N(int64(j) + 1)))
		}
	}
	if due.Before(q.last) {
		due = q.last
	}
	q.last = due
	q.chunks = append(q.chunks, chunk{due: due, data: data, err: err})
	q.bytes += len(data)
	l.broadcast()
}

// spend counts bytes that pass. It returns how many of them may, and the effect
// that cuts the connection behind them, if one does.
func (l *line) spend(n int) (int, *effect) {
	var cut *effect
	for _, e := range l.effects {
		if e.rule.Kind == Cut && e.left <= int64(n) {
			n, cut = int(e.left), e
		}
	}
	for _, e := range l.effects {
		e.left -= int64(n) // means nothing where nothing is cut
	}
	return n, cut
}

// expired reports whether a deadline has passed, and is that of a wait until then
// otherwise.
func expired(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// earlier returns the earlier of two times, of which the first may be zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// ended says why the line takes no more calls, or nil. The caller holds mu.
func (l *line) ended(op string) error {
	switch {
	case l.aborted:
		return l.conn.errReset(op)
	case l.closed:
		return net.ErrClosed
	}
	return nil
}

// enter takes what a read from the socket returned during which the line was
// attached. That woke the read with a timeout, which means nothing.
func (l *line) enter(b []byte, err error) {
	if timedOut(err) {
		err = nil
	}
	if len(b) == 0 && err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.push(&l.in, slices.Clone(b), err)
}

func timedOut(err error) bool {
	t, ok := err.(net.Error)
	return ok && t.Timeout()
}

// read is Conn.Read.
func (l *line) read(b []byte) (int, error) {
	l.pump.Do(func() { l.conn.injector.spawn(l.receive) })
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.ended("read"); err != nil {
			return 0, err
		}
		deadline := l.conn.readUntil.load()
		if expired(deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		until := deadline
		if len(l.in.chunks) > 0 && !l.stalled() {
			c := &l.in.chunks[0]
			if !time.Now().Before(c.due) {
				return l.deliver(b, c)
			}
			until = earlier(until, c.due)
		}
		l.wait(until)
	}
}

// deliver hands out the first chunk, or a part of it. An error stays there.
func (l *line) deliver(b []byte, c *chunk) (int, error) {
	n := copy(b, c.data)
	c.data = c.data[n:]
	l.in.bytes -= n
	err := c.err
	switch {
	case len(c.data) > 0:
		err = nil
	case err == nil:
		l.in.chunks = l.in.chunks[1:]
	}
	l.broadcast()
	return n, err
}

// receive moves data from the socket into its queue until the connection ends.
func (l *line) receive() {
	buf := make([]byte, chunkSize)
	for l.awaitRoom() {
		n, err := l.conn.Conn.Read(buf)
		if timedOut(err) {
			// It is the deadline that woke the reader before.
			err = l.conn.Conn.SetReadDeadline(time.Time{})
		}
		if !l.received(buf[:n], err) {
			return
		}
	}
}

// awaitRoom waits until the queue of what was received has room; false when the
// connection has ended.
func (l *line) awaitRoom() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.in.bytes >= maxHeld && l.ended("read") == nil {
		l.wait(time.Time{})
	}
	return l.ended("read") == nil
}

// received reports whether there may be more.
func (l *line) received(b []byte, err error) bool {
	l.mu.Lock()
	n, cut := l.spend(len(b))
	if n > 0 || err != nil {
		l.push(&l.in, slices.Clone(b[:n]), err)
	}
	l.mu.Unlock()
	if cut != nil {
		l.conn.injector.sever(cut, l.conn)
	}
	return cut == nil && err == nil
}

// write is Conn.Write.
func (l *line) write(b []byte) (int, error) {
	l.start()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.ended("write"); err != nil {
			return 0, err
		}
		deadline := l.conn.sendUntil.load()
		switch {
		case l.sendErr != nil:
			return 0, l.sendErr
		case expired(deadline):
			return 0, os.ErrDeadlineExceeded
		case l.out.bytes == 0 || l.out.bytes+len(b) <= maxHeld:
			l.push(&l.out, slices.Clone(b), nil)
			return len(b), nil
		}
		l.wait(deadline)
	}
}

// start starts the goroutine that writes to the socket, which also closes it.
func (l *line) start() {
	l.send.Do(func() {
		if !l.conn.injector.spawn(l.transmit) {
			l.conn.reset() // the emulator is closed
		}
	})
}

// transmit moves data from its queue into the socket until the connection ends.
func (l *line) transmit() {
	l.mu.Lock()
	if !l.closed {
		_ = l.conn.Conn.SetWriteDeadline(time.Time{}) // else a write fails, and says so
	}
	l.mu.Unlock()
	for {
		data, cut, ok := l.next()
		if !ok {
			break
		}
		_, err := l.conn.Conn.Write(data)
		if cut != nil {
			l.conn.injector.sever(cut, l.conn)
		}
		if err != nil {
			l.fail(err)
		}
	}
	_ = l.conn.Conn.Close()
	l.conn.injector.forget(l.conn)
}

// next waits for data that is due; false when the line is closed and empty, or
// aborted.
func (l *line) next() (data []byte, cut *effect, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		var until time.Time
		switch {
		case l.aborted, l.closed && len(l.out.chunks) == 0 && !l.stalled():
			return nil, nil, false
		case len(l.out.chunks) > 0 && !l.stalled():
			until = l.out.chunks[0].due
			if !time.Now().Before(until) {
				data, cut = l.pop()
				return data, cut, true
			}
		}
		l.wait(until)
	}
}

func (l *line) pop() ([]byte, *effect) {
	data := l.out.chunks[0].data
	l.out.chunks = l.out.chunks[1:]
	l.out.bytes -= len(data)
	n, cut := l.spend(len(data))
	l.broadcast()
	return data[:n], cut
}

func (l *line) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sendErr = err
	l.out = queue{}
	l.broadcast()
}

// close is Conn.Close. The socket is closed when what is held up is sent, and
// not while the connection is half open.
func (l *line) close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		_ = l.conn.Conn.SetWriteDeadline(time.Now().Add(lingerTimeout)) // fails if it is closed already
		l.broadcast()
	}
	aborted := l.aborted
	l.mu.Unlock()
	l.start()
	if aborted {
		l.conn.injector.forget(l.conn)
	}
}

// abort drops everything; the socket is closed.
func (l *line) abort() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aborted = true
	l.in, l.out = queue{}, queue{}
	l.broadcast()
}
