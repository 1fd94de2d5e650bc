package mqtt

import (
	"bytes"
	"sync"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	// outboxRoom is how many bytes may wait before no more packets are read.
	outboxRoom = 64 << 10
	// outboxLimit is how many bytes may wait at all. Method calls come from
	// elsewhere and can't be held up by not reading from the device.
	outboxLimit = 1 << 20
)

// outbox holds encoded packets until the writer takes them, so that no callback
// of the hub ever waits for a socket. Cloud-to-device messages, which can wait
// in their queue, don't go through it.
type outbox struct {
	wake chan struct{} // has a value when there is something for the writer to do

	mu     sync.Mutex
	room   sync.Cond
	buf    bytes.Buffer
	corked bool
	closed bool
}

func (o *outbox) init() {
	o.wake = make(chan struct{}, 1)
	o.room.L = &o.mu
}

// put adds a packet; errSlow if too much waits already. It never blocks.
func (o *outbox) put(p packets.ControlPacket) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	if o.buf.Len() > outboxLimit {
		return errSlow
	}
	if err := p.Write(&o.buf); err != nil {
		return err
	}
	o.notify()
	return nil
}

// notify makes the writer look again at what it has to do.
func (o *outbox) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// cork keeps everything back until uncork, so that what the reader puts in
// between comes out together, and before anything that follows from it.
func (o *outbox) cork() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.corked = true
}

func (o *outbox) uncork() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.corked = false
	o.notify()
}

// take returns all that waits and lets go of the memory; not ok while the outbox
// is corked.
func (o *outbox) take() (b []byte, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.corked {
		return nil, false
	}
	b = o.buf.Bytes()
	o.buf = bytes.Buffer{}
	o.room.Broadcast()
	return b, true
}

// awaitRoom waits while much is waiting: without it, a device that sends and
// doesn't read would fill the outbox.
func (o *outbox) awaitRoom() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.buf.Len() > outboxRoom && !o.closed {
		o.room.Wait()
	}
}

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.room.Broadcast()
}
