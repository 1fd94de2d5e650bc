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

// corkLimit is how many bytes wait at most for the frames that are still to be
// handled.
const corkLimit = 16 << 10

// outbox gathers frames for the goroutine that writes them, so that nobody else
// ever waits for the network, and many small frames become one write.
type outbox struct {
	mu       sync.Mutex
	pending  []byte
	accepted run           // the dispositions that pending ends with
	corked   bool          // more is about to come
	closed   bool          // nothing more is taken; what is pending will be written
	broken   bool          // nothing more will be written
	wake     chan struct{} // holds a value when pending or closed changed
	room     chan struct{} // closed when pending was taken; nil while nobody waits
}

// run is a disposition that accepts a range of deliveries, where it stands in the
// pending bytes. The next one in the range makes it longer: senders with many
// deliveries under way get one frame for all that were stored together.
type run struct {
	frame   amqp.Disposition // Last is what the next one is to follow
	channel uint16
	at, end int // in pending; end is 0 for none
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// put adds a frame. After close it is dropped: the peer will not miss it.
func (o *outbox) put(channel uint16, p amqp.Performative, payload []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	before := len(o.pending)
	d, accepts := accepting(p)
	if accepts && o.accepted.continues(before, channel, d) {
		before = o.accepted.at
		d.First = o.accepted.frame.First
		p = &d
	}
	b, err := amqp.AppendFrame(o.pending[:before], channel, p, payload)
	if err != nil {
		o.pending = o.pending[:before]
		return err
	}
	o.pending = b
	if accepts {
		o.accepted = run{frame: d, channel: channel, at: before, end: len(b)}
	}
	if !o.corked || len(b) >= corkLimit {
		o.signal()
	}
	return nil
}

// accepting returns the disposition by which the server, as the receiver, accepts
// deliveries.
func accepting(p amqp.Performative) (amqp.Disposition, bool) {
	d, ok := p.(*amqp.Disposition)
	if !ok || d.Role != amqp.RoleReceiver || !d.Settled {
		return amqp.Disposition{}, false
	}
	_, ok = d.State.(*amqp.Accepted)
	return *d, ok
}

// continues reports whether a disposition follows the run, which nothing came
// after.
func (r run) continues(pending int, channel uint16, d amqp.Disposition) bool {
	return r.end > 0 && r.end == pending && r.channel == channel && d.First == r.frame.Last+1
}

// cork keeps frames back for those that are put soon; uncork lets them go.
func (o *outbox) cork() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.corked = true
}

func (o *outbox) uncork() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.corked {
		return
	}
	o.corked = false
	if len(o.pending) > 0 {
		o.signal()
	}
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
		room := o.wait()
		if room == nil {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-room:
		}
	}
}

// wait returns nil if there is room, or a channel that is closed when there may
// be.
func (o *outbox) wait() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.pending) < highWater || o.broken {
		return nil
	}
	if o.room == nil {
		o.room = make(chan struct{})
	}
	return o.room
}

// makeRoom wakes those who wait for it.
func (o *outbox) makeRoom() {
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// take swaps the pending bytes for an empty buffer.
func (o *outbox) take(empty []byte) (pending []byte, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	pending, o.pending = o.pending, empty[:0]
	o.accepted = run{}
	o.makeRoom()
	return pending, o.closed
}

func (o *outbox) fail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.broken = true, true
	o.makeRoom()
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
