package amqpnodes

import (
	"context"
	"sync"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

// Bounds on the messages of a connection that wait for credit, those of all
// mailboxes together.
const (
	maxWaiting      = 1000
	maxWaitingBytes = 8 << 20
)

// waiting counts the messages of a connection that wait for credit.
type waiting struct {
	mu    sync.Mutex
	count int
	bytes int
}

// add counts a message, unless there are too many. The first one always has room,
// whatever its size.
func (w *waiting) add(bytes int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count >= maxWaiting || w.bytes > 0 && w.bytes+bytes > maxWaitingBytes {
		return false
	}
	w.count++
	w.bytes += bytes
	return true
}

func (w *waiting) remove(count, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count -= count
	w.bytes -= bytes
}

// mailbox holds messages that nobody else can have, until a link has credit for
// them. It has the methods of an amqpserver.Source but for Close.
type mailbox struct {
	waiting *waiting
	ready   chan struct{}

	mu     sync.Mutex // guards all below
	queue  []letter
	bytes  int // of those in queue
	closed bool
}

type letter struct {
	msg   *amqp.Message
	bytes int
}

func newMailbox(w *waiting) *mailbox {
	return &mailbox{waiting: w, ready: make(chan struct{}, 1)}
}

// push queues a message of about so many bytes; false if too many wait. One for a
// link that has gone meanwhile is dropped.
func (b *mailbox) push(m *amqp.Message, bytes int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return true
	}
	if !b.waiting.add(bytes) {
		return false
	}
	b.queue = append(b.queue, letter{m, bytes})
	b.bytes += bytes
	select {
	case b.ready <- struct{}{}:
	default:
	}
	return true
}

func (b *mailbox) Next(context.Context) (*amqpserver.Outgoing, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return nil, nil
	}
	first := b.queue[0]
	b.queue[0] = letter{}
	if b.queue = b.queue[1:]; len(b.queue) == 0 {
		b.queue = nil // an idle link keeps no array
	}
	b.bytes -= first.bytes
	b.waiting.remove(1, first.bytes)
	return &amqpserver.Outgoing{Message: first.msg}, nil
}

func (b *mailbox) Ready() <-chan struct{} { return b.ready }

// close drops what waits, and what is pushed from now on.
func (b *mailbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting.remove(len(b.queue), b.bytes)
	b.queue, b.bytes, b.closed = nil, 0, true
}
