package store

import "sync/atomic"

// Memory returns a store that forgets: every change succeeds at once and
// nothing is ever loaded.
func Memory() Store { return new(memory) }

type memory struct{ closed atomic.Bool }

func (m *memory) Submit(done func(error), _ ...Op) {
	var err error
	if m.closed.Load() {
		err = ErrClosed
	}
	if done != nil {
		done(err)
	}
}

func (m *memory) Load(string, func(string, []byte) error) error { return nil }

func (m *memory) Durable() bool { return false }

func (m *memory) Failed() <-chan error { return nil }

func (m *memory) Close() error {
	m.closed.Store(true)
	return nil
}
