package accept

import (
	"net"
	"sync"
	"sync/atomic"
)

// Limit bounds how many connections are open, of several listeners together: a
// crowd of clients, or one that leaks connections, must not exhaust the memory.
type Limit struct {
	max  int64
	open atomic.Int64
	// full is told when a connection is turned away and none was before it since
	// there was room.
	full func(limit int)
	told atomic.Bool
}

// NewLimit returns a limit of max connections. It tells full, if not nil, when
// the first one is turned away, and again after there was room.
func NewLimit(max int, full func(limit int)) *Limit {
	return &Limit{max: int64(max), full: full}
}

// Open returns how many connections are open.
func (l *Limit) Open() int { return int(l.open.Load()) }

// Listener returns a listener that closes connections beyond the limit as they
// come.
func (l *Limit) Listener(inner net.Listener) net.Listener { return &limited{inner, l} }

type limited struct {
	net.Listener
	limit *Limit
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.limit.enter() {
			return &counted{Conn: nc, leave: sync.OnceFunc(l.limit.leave)}, nil
		}
		_ = nc.Close() // the client sees it either way
	}
}

func (l *Limit) enter() bool {
	if l.open.Add(1) <= l.max {
		return true
	}
	l.open.Add(-1)
	if l.full != nil && l.told.CompareAndSwap(false, true) {
		l.full(int(l.max))
	}
	return false
}

func (l *Limit) leave() {
	l.open.Add(-1)
	l.told.Store(false)
}

// counted is a connection that counts until it is closed.
type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// SetLinger sets what Close does with data that is not sent, as of *net.TCPConn.
func (c *counted) SetLinger(seconds int) error {
	if t, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return t.SetLinger(seconds)
	}
	return nil
}
