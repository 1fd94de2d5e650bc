package device

import (
	"context"
	"strings"
	"sync"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// outgoing begins the keys of what the MQTT client sends (paho v1.5.1 store.go).
const outgoing = "o."

// outbox is the MQTT client's store of messages that are not confirmed yet. The client itself can't be asked: when it has
// reconnected it declares every waiting message done before it sends it again (paho v1.5.1 messageids.go, claimID). But it
// takes a message out of its store only for a PUBACK.
type outbox struct {
	*paho.MemoryStore

	mu          sync.Mutex
	unconfirmed map[string]struct{} // guarded by mu; keys of messages
	empty       chan struct{}       // guarded by mu; closed while there is none
}

func newOutbox() *outbox {
	o := &outbox{MemoryStore: paho.NewMemoryStore(), unconfirmed: map[string]struct{}{}, empty: make(chan struct{})}
	close(o.empty)
	return o
}

// Put keeps a packet.
func (o *outbox) Put(key string, packet packets.ControlPacket) {
	o.MemoryStore.Put(key, packet)
	if _, message := packet.(*packets.PublishPacket); !message || !strings.HasPrefix(key, outgoing) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.unconfirmed) == 0 {
		o.empty = make(chan struct{})
	}
	o.unconfirmed[key] = struct{}{}
}

// Del forgets a packet.
func (o *outbox) Del(key string) {
	o.MemoryStore.Del(key)
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, there := o.unconfirmed[key]; !there {
		return
	}
	if delete(o.unconfirmed, key); len(o.unconfirmed) == 0 {
		close(o.empty)
	}
}

// wait waits until the hub has confirmed all messages.
func (o *outbox) wait(ctx context.Context) error {
	o.mu.Lock()
	empty := o.empty
	o.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
