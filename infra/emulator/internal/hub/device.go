package hub

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Keys in the store: d/<device>/i holds the identity, d/<device>/a when the
// device was last seen.
const (
	devicePrefix   = "d/"
	identitySuffix = "i"
	activitySuffix = "a"
)

func deviceKeys(id string) string { return devicePrefix + url.PathEscape(id) + "/" }

// device is what the hub knows of a device identity.
type device struct {
	hub *Hub
	id  string

	// registry is held during a whole change of the identity, disk included.
	registry sync.Mutex

	// lastActivity is in nanoseconds since 1970, 0 for never.
	lastActivity atomic.Int64

	mu             sync.Mutex // guards all below
	exists         bool       // false until created and after deletion
	identity       Identity   // what doesn't come from the fields below
	session        *Session
	stateUpdated   time.Time // connection state
	queue          *broker.Queue
	methodsAwaited chan struct{} // closed when a session handles methods; nil while nobody waits
}

// activity is the record of when a device was last seen.
type activity struct {
	Last         time.Time
	StateUpdated time.Time
}

// device returns an existing device, or nil.
func (h *Hub) device(id string) *device {
	h.mu.RLock()
	d := h.devices[id]
	h.mu.RUnlock()
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.exists {
		return nil
	}
	return d
}

// find is device that answers as the hub does when there is none.
func (h *Hub) find(id string) (*device, error) {
	if d := h.device(id); d != nil {
		return d, nil
	}
	return nil, notFound(id)
}

func notFound(id string) error { return refuse(CodeDeviceNotFound, "device %q is not registered", id) }

// touch notes that the device was active.
func (d *device) touch() { d.lastActivity.Store(time.Now().UnixNano()) }

// snapshot returns the identity with all that the hub adds to it.
func (d *device) snapshot() Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.identity
	id.ConnectionState = Disconnected
	if d.session != nil {
		id.ConnectionState = Connected
	}
	id.ConnectionStateUpdatedTime = Time{d.stateUpdated}
	if n := d.lastActivity.Load(); n != 0 {
		id.LastActivityTime = Time{time.Unix(0, n).UTC()}
	}
	if d.queue != nil {
		id.CloudToDeviceMessageCount = d.queue.Len()
	}
	return id
}

// c2d returns the device's cloud-to-device queue, which is opened when it is
// first needed: most devices have none in use.
func (d *device) c2d() (*broker.Queue, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.exists {
		return nil, notFound(d.id)
	}
	if d.queue != nil {
		return d.queue, nil
	}
	q, err := broker.OpenQueue(d.hub.store, c2dQueueName(d.id, d.identity.GenerationID), d.hub.c2dOptions(d.id, d.identity.GenerationID))
	if err != nil {
		return nil, fmt.Errorf("cloud-to-device queue of %s: %w", d.id, err)
	}
	d.queue = q
	return q, nil
}

// recordActivity makes what is known of the device's presence outlive the
// process. Nothing waits for it, and a device that is deleted is forgotten.
func (d *device) recordActivity() {
	if !d.hub.store.Durable() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.exists {
		return
	}
	a := activity{StateUpdated: d.stateUpdated}
	if n := d.lastActivity.Load(); n != 0 {
		a.Last = time.Unix(0, n).UTC()
	}
	if value, err := json.Marshal(a); err == nil { // two times: it never fails
		d.hub.store.Submit(nil, store.Put(deviceKeys(d.id)+activitySuffix, value))
	}
}

func (d *device) close() {
	d.mu.Lock()
	s, q := d.session, d.queue
	d.mu.Unlock()
	if s != nil {
		s.end(refuse(CodeServiceUnavailable, "the hub is shutting down"))
	}
	if q != nil {
		q.Close()
	}
}

func (h *Hub) loadDevices() error {
	seen := make(map[string]activity)
	return h.store.Load(devicePrefix, func(key string, value []byte) error {
		escaped, kind, _ := strings.Cut(key[len(devicePrefix):], "/")
		id, err := url.PathUnescape(escaped)
		if err != nil {
			return fmt.Errorf("stored device %q: %w", escaped, err)
		}
		if kind == activitySuffix { // comes before the identity
			var a activity
			err := json.Unmarshal(value, &a)
			seen[id] = a
			return err
		}
		d := &device{hub: h, id: id, exists: true, stateUpdated: seen[id].StateUpdated}
		if last := seen[id].Last; !last.IsZero() {
			d.lastActivity.Store(last.UnixNano())
		}
		if err := json.Unmarshal(value, &d.identity); err != nil {
			return fmt.Errorf("stored device %s: %w", id, err)
		}
		h.devices[id] = d
		return nil
	})
}
