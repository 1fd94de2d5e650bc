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

// buffers are for what waits in an outbox: an idle connection has none.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// keepBuffer is the largest buffer that is used again.
const keepBuffer = 16 << 10

func releaseBuffer(b *bytes.Buffer) {
	if b != nil && b.Cap() <= keepBuffer {
		b.Reset()
		buffers.Put(b)
	}
}

// outbox holds encoded packets until the writer takes them, so that no callback
// of the hub ever waits for a socket. Cloud-to-device messages, which can wait
// in their queue, don't go through it.
//
// The writer is a goroutine that is there while it has something to do: of ten
// thousand connections, nearly all are idle.
type outbox struct {
	writers sync.WaitGroup

	mu      sync.Mutex
	room    sync.Cond
	write   func()        // sends what there is to send; nil before start
	buf     *bytes.Buffer // nil while nothing waits
	waking  bool          // there is something to do
	writing bool          // a writer is there
	corked  bool
	closed  bool
}

func (o *outbox) init() { o.room.L = &o.mu }

// put adds a packet; errSlow if too much waits already. It never blocks.
func (o *outbox) put(p packets.ControlPacket) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	b, err := o.open()
	if b == nil || err != nil {
		return err
	}
	if err := p.Write(b); err != nil {
		return err
	}
	o.wakeLocked()
	return nil
}

// puback is put of a PUBACK.
func (o *outbox) puback(id uint16) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	b, err := o.open()
	if b == nil || err != nil {
		return err
	}
	b.Write([]byte{packets.Puback << 4, 2, byte(id >> 8), byte(id)})
	o.wakeLocked()
	return nil
}

// publish is put of a PUBLISH at QoS 0.
func (o *outbox) publish(topic string, payload []byte) error {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload = topic, payload
	return o.put(p)
}

// open returns the buffer to write to; nil when nothing is sent any more. The
// caller holds mu.
func (o *outbox) open() (*bytes.Buffer, error) {
	switch {
	case o.closed:
		return nil, nil
	case o.buf == nil:
		o.buf = buffers.Get().(*bytes.Buffer)
	case o.buf.Len() > outboxLimit:
		return nil, errSlow
	}
	return o.buf, nil
}

// waiting is how many bytes wait. The caller holds mu.
func (o *outbox) waiting() int {
	if o.buf == nil {
		return 0
	}
	return o.buf.Len()
}

// start lets the writer begin, which calls write whenever there is something to
// send.
func (o *outbox) start(write func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.write = write
	o.wakeLocked()
}

// wake makes the writer look again at what it has to do. It never blocks.
func (o *outbox) wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wakeLocked()
}

func (o *outbox) wakeLocked() {
	o.waking = true
	if o.writing || o.write == nil || o.closed {
		return
	}
	o.writing = true
	o.writers.Go(o.work)
}

// work is the writer.
func (o *outbox) work() {
	for {
		o.mu.Lock()
		if !o.waking || o.closed {
			o.writing = false
			o.mu.Unlock()
			return
		}
		o.waking = false
		o.mu.Unlock()
		o.write()
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
	o.wakeLocked()
}

// take returns all that waits, nil if that is nothing, to be released by the
// caller; not ok while the outbox is corked.
func (o *outbox) take() (b *bytes.Buffer, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.corked {
		return nil, false
	}
	b, o.buf = o.buf, nil
	o.room.Broadcast()
	return b, true
}

// awaitRoom waits while much is waiting: without it, a device that sends and
// doesn't read would fill the outbox.
func (o *outbox) awaitRoom() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.waiting() > outboxRoom && !o.closed {
		o.room.Wait()
	}
}

// close makes the writer end. It doesn't wait for that.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.room.Broadcast()
}
