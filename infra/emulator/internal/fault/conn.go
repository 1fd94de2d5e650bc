package fault

import (
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Listener returns a listener whose connections, of type *Conn, are subject to
// faults. TLS comes on top of it.
func (in *Injector) Listener(l net.Listener, protocol string) net.Listener {
	return &listener{Listener: l, injector: in, protocol: protocol}
}

type listener struct {
	net.Listener
	injector *Injector
	protocol string
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.injector.Conn(nc, l.protocol), nil
}

// Conn is a connection that is subject to faults. It passes through what no
// fault selects.
type Conn struct {
	net.Conn
	injector *Injector
	// line carries the data once a fault has held some of it up; nil before.
	line atomic.Pointer[line]
	cut  atomic.Bool

	// deadlines makes them go either to the socket or to the line.
	deadlines            sync.Mutex
	readUntil, sendUntil moment

	// guarded by the injector's mutex
	protocol string
	peers    []string // device IDs
	entities []string // in lower case
}

// Conn returns a connection that is subject to faults.
func (in *Injector) Conn(nc net.Conn, protocol string) *Conn {
	c := &Conn{Conn: nc, injector: in, protocol: protocol}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.conns[c] = struct{}{}
	in.chooseAll(c)
	return c
}

// SetPeer tells whose connection it is, once the device has proved that. A
// connection may be that of several.
func (c *Conn) SetPeer(t hub.Target) {
	c.injector.mu.Lock()
	defer c.injector.mu.Unlock()
	if !slices.Contains(c.peers, t.DeviceID) {
		c.peers = append(c.peers, t.DeviceID)
		c.injector.chooseAll(c)
	}
}

// SetEntity tells that the connection has a link to a queue, topic, subscription
// or event hub.
func (c *Conn) SetEntity(name string) {
	name = strings.ToLower(name)
	c.injector.mu.Lock()
	defer c.injector.mu.Unlock()
	if !slices.Contains(c.entities, name) {
		c.entities = append(c.entities, name)
		c.injector.chooseAll(c)
	}
}

// SetProtocol tells what a WebSocket carries.
func (c *Conn) SetProtocol(protocol string) {
	c.injector.mu.Lock()
	defer c.injector.mu.Unlock()
	c.protocol = protocol
	c.injector.chooseAll(c)
}

// effect is what a fault does to one connection.
type effect struct {
	rule  *rule
	timer *time.Timer // until it begins; guarded by the injector's mutex

	// guarded by the line's mutex
	left   int64 // bytes until the cut
	random *rand.Rand
}

// chooseAll makes the choices of all faults for a connection of which more is
// known. The caller holds mu, as for choose, begin and forget.
func (in *Injector) chooseAll(c *Conn) {
	for _, r := range slices.Clone(in.rules) {
		in.choose(r, c)
	}
}

// choose makes the choice of a fault for a connection, once.
func (in *Injector) choose(r *rule, c *Conn) {
	if _, chosen := r.conns[c]; chosen || r.over || !r.Kind.onConnections() || !r.selects(c) || r.exhausted() {
		return
	}
	if !r.take() {
		r.conns[c] = nil
		return
	}
	e := &effect{rule: r, left: r.Bytes, random: rand.New(rand.NewPCG(r.Seed, uint64(r.taken)))}
	r.conns[c] = e
	if r.After == 0 {
		in.begin(e, c)
		return
	}
	e.timer = in.after(r.After, func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if _, open := in.conns[c]; open && !r.over {
			in.begin(e, c)
		}
	})
}

// selects reports whether the fault is for the connection, as far as is known.
func (r *rule) selects(c *Conn) bool {
	return (r.Protocol == "" || r.Protocol == c.protocol) &&
		(r.Device == "" || slices.ContainsFunc(c.peers, r.matchesDevice)) &&
		(r.Entity == "" || slices.ContainsFunc(c.entities, r.matchesEntity))
}

// begin lets a fault take effect on a connection. One that is cut after some
// bytes is hit when it is.
func (in *Injector) begin(e *effect, c *Conn) {
	if e.rule.Kind == Cut && e.rule.Bytes == 0 {
		e.rule.hits++
		c.reset()
		return
	}
	if e.rule.Kind != Cut {
		e.rule.hits++
	}
	c.attach().add(e)
}

// sever cuts a connection that has carried its bytes.
func (in *Injector) sever(e *effect, c *Conn) {
	in.mu.Lock()
	defer in.mu.Unlock()
	e.rule.hits++
	c.reset()
}

// forget drops a connection that is closed for good, and ends the faults that
// only waited for it.
func (in *Injector) forget(c *Conn) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.conns, c)
	for _, r := range slices.Clone(in.rules) {
		if e := r.conns[c]; e != nil {
			in.stop(e.timer)
		}
		delete(r.conns, c)
		if r.Kind.onConnections() && r.exhausted() && !r.acts() {
			in.remove(r)
		}
	}
}

// acts reports whether the fault acts on a connection, or will.
func (r *rule) acts() bool {
	for _, e := range r.conns {
		if e != nil {
			return true
		}
	}
	return false
}

// lift ends what a fault does to the connection. The injector's mutex is held.
func (c *Conn) lift(e *effect) {
	if l := c.line.Load(); l != nil {
		l.remove(e)
	}
}

// attach makes the connection carry its data over a line.
func (c *Conn) attach() *line {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	if l := c.line.Load(); l != nil {
		return l
	}
	l := newLine(c)
	c.line.Store(l)
	// Wakes who reads from the socket, and from now on reads from the line. An
	// error means that the connection is closed.
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	return l
}

// errReset is what the server's end of a connection sees that was cut.
func (c *Conn) errReset(op string) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: c.RemoteAddr(), Err: syscall.ECONNRESET}
}

// reset breaks the connection as a network does: nothing that is under way
// arrives, and no end says goodbye.
func (c *Conn) reset() {
	if c.cut.Swap(true) {
		return
	}
	if t, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0) // fails if the connection is closed, which is as good
	}
	_ = c.Conn.Close()
	if l := c.line.Load(); l != nil {
		l.abort()
	}
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	l := c.line.Load()
	if l == nil {
		n, err := c.Conn.Read(b)
		if l = c.line.Load(); l == nil {
			return n, c.told("read", err)
		}
		l.enter(b[:n], err) // a fault began meanwhile: it holds for this too
	}
	return l.read(b)
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	if l := c.line.Load(); l != nil {
		return l.write(b)
	}
	n, err := c.Conn.Write(b)
	return n, c.told("write", err)
}

// told makes the errors of a connection that was cut those of a network.
func (c *Conn) told(op string, err error) error {
	if err != nil && c.cut.Load() {
		return c.errReset(op)
	}
	return err
}

// Close implements net.Conn. What is held up still arrives, as it would from
// the buffers of the system.
func (c *Conn) Close() error {
	c.deadlines.Lock()
	l := c.line.Load()
	c.deadlines.Unlock()
	if l != nil {
		l.close()
		return nil
	}
	c.injector.forget(c)
	err := c.Conn.Close()
	if c.cut.Load() && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	c.readUntil.store(t)
	if l := c.line.Load(); l != nil {
		l.wake()
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	c.sendUntil.store(t)
	if l := c.line.Load(); l != nil {
		l.wake()
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// moment is a time, or none.
type moment struct{ nanoseconds atomic.Int64 }

func (m *moment) store(t time.Time) {
	if t.IsZero() {
		m.nanoseconds.Store(0)
		return
	}
	m.nanoseconds.Store(t.UnixNano())
}

func (m *moment) load() time.Time {
	n := m.nanoseconds.Load()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
