package amqpserver

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// highWater is how many bytes may wait to be written before senders of
// transfers, and the reading goroutine, pause. Frames in answer to others may go
// beyond it: whoever puts them holds locks and cannot wait.
const highWater = 1 << 20

// outbox gathers frames for the goroutine that writes them, so that nobody else
// ever waits for the network, and many small frames become one write.
type outbox struct {
	mu      sync.Mutex
	pending []byte
	closed  bool          // nothing more is taken; what is pending will be written
	broken  bool          // nothing more will be written
	wake    chan struct{} // holds a value when pending or closed changed
	room    chan struct{} // closed and replaced when pending was taken
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), room: make(chan struct{})}
}

// put adds a frame. After close it is dropped: the peer will not miss it.
func (o *outbox) put(channel uint16, p amqp.Performative, payload []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	before := len(o.pending)
	b, err := amqp.AppendFrame(o.pending, channel, p, payload)
	if err != nil {
		o.pending = o.pending[:before]
		return err
	}
	o.pending = b
	o.signal()
	return nil
}

// close adds a last frame, if not nil.
func (o *outbox) close(last amqp.Performative) {
	if last != nil {
		// A close frame with a clean description always encodes.
		_ = o.put(0, last, nil)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// await waits until there is room for more.
func (o *outbox) await(ctx context.Context) error {
	for {
		o.mu.Lock()
		full, room := len(o.pending) >= highWater && !o.broken, o.room
		o.mu.Unlock()
		if !full {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-room:
		}
	}
}

// take swaps the pending bytes for an empty buffer.
func (o *outbox) take(empty []byte) (pending []byte, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	pending, o.pending = o.pending, empty[:0]
	close(o.room)
	o.room = make(chan struct{})
	return pending, o.closed
}

func (o *outbox) fail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.broken = true, true
	close(o.room)
	o.room = make(chan struct{})
}

// failed reports whether writing has failed.
func (o *outbox) failed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.broken
}

// emptyFrame is a heartbeat (AMQP 1.0 §2.4.5).
var emptyFrame = []byte{0, 0, 0, 8, 2, 0, 0, 0}

// write writes what is put until the outbox is closed. A peer that gets nothing
// else gets an empty frame every beat.
func (o *outbox) write(nc net.Conn, beat, timeout time.Duration) error {
	timer := time.NewTimer(beat)
	defer timer.Stop()
	var spare []byte
	for {
		idle := false
		select {
		case <-o.wake:
		case <-timer.C:
			idle = true
		}
		b, closed := o.take(spare)
		out := b
		if idle && len(b) == 0 && !closed {
			out = emptyFrame
		}
		if len(out) > 0 {
			if err := writeAll(nc, out, timeout); err != nil {
				o.fail()
				return err
			}
			timer.Reset(beat)
		}
		if closed {
			return nil
		}
		if spare = b; cap(spare) > highWater {
			spare = nil // after a burst, give the memory back
		}
	}
}

func writeAll(nc net.Conn, b []byte, timeout time.Duration) error {
	if err := nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := nc.Write(b)
	return err
}
