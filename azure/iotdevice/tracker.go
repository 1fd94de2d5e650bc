package iotdevice

import "sync"

// tracker counts what is under way on a connection, so that the connection can be closed in between.
type tracker struct {
	mu       sync.Mutex
	under    int
	draining bool
	idle     chan struct{} // closed when draining and nothing is under way
}

func newTracker() *tracker { return &tracker{idle: make(chan struct{})} }

// enter reports whether something new may begin; if so, leave must follow.
func (t *tracker) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.draining {
		return false
	}
	t.under++
	return true
}

func (t *tracker) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.under--
	t.settle()
}

// drain lets nothing new begin and returns a channel that is closed when all has ended.
func (t *tracker) drain() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.draining {
		t.draining = true
		t.settle()
	}
	return t.idle
}

func (t *tracker) settle() {
	if t.draining && t.under == 0 {
		close(t.idle)
	}
}
