package quota

import (
	"sync"
	"time"
)

// bucket is a token bucket. It is full at first, and holds the tokens of one
// minute: the page has its throttles "applied in minute ranges".
type bucket struct {
	perMinute float64

	mu    sync.Mutex // guards all below
	level float64
	at    time.Time // when level was right
}

func (b *bucket) init(perMinute float64) {
	b.perMinute, b.level, b.at = perMinute, perMinute, time.Now()
}

// take takes tokens out, or returns after what time there will be enough.
func (b *bucket) take(n float64) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.level = min(b.perMinute, b.level+b.perMinute*now.Sub(b.at).Minutes())
	b.at = now
	if n > b.level {
		return time.Duration((n - b.level) / b.perMinute * float64(time.Minute)), false
	}
	b.level -= n
	return 0, true
}
