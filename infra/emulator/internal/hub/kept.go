package hub

import (
	"bytes"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Kept returns what a session of the same device or module has kept with Keep;
// nil if nothing is. It must not be modified.
func (s *Session) Kept() []byte {
	p := s.principal
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept
}

// Keep stores state that outlives the session and the process, such as the
// subscriptions of a persistent MQTT session, and returns when it is on the disk:
// at once if it is there already. It goes with the identity; nil removes it. The
// hub takes the slice over. A session that has ended can't keep anything.
func (s *Session) Keep(state []byte) error {
	p := s.principal
	p.mu.Lock()
	if !p.exists || p.session != s {
		p.mu.Unlock()
		if err := s.Err(); err != nil {
			return err
		}
		return ErrSessionClosed
	}
	if p.keeping == 0 && (state == nil) == (p.kept == nil) && bytes.Equal(state, p.kept) {
		p.mu.Unlock()
		return nil
	}
	op := store.Delete(p.key(keptSuffix))
	if state != nil {
		op = store.Put(op.Key, state)
	}
	p.kept = state
	p.keeping++ // also what is the same already may be on its way from an earlier session
	result := make(chan error, 1)
	// With the lock held, because changes have to reach the store in this order.
	p.hub.store.Submit(func(err error) { result <- err }, op)
	p.mu.Unlock()
	err := <-result
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keeping--
	return translate(err, CodeServiceUnavailable)
}
