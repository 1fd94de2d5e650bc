package hub

import (
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// devicePrefix begins the keys of all devices in the store.
const devicePrefix = "d/"

// device is what the hub knows of a device identity.
type device struct {
	principal

	// registry is held during a whole change of the identity or of one of its
	// modules, disk included.
	registry sync.Mutex

	// Guarded by the principal's mu.
	queue   *broker.Queue
	modules map[string]*principal
}

func (h *Hub) newDevice(id string) *device {
	d := &device{principal: principal{Target: Target{DeviceID: id}, hub: h}}
	d.device = d
	return d
}

// device returns an existing device, or nil.
func (h *Hub) device(id string) *device {
	h.mu.RLock()
	d := h.devices[id]
	h.mu.RUnlock()
	if d == nil {
		return nil
	}
	if _, exists := d.current(); !exists {
		return nil
	}
	return d
}

// find is device that answers as the hub does when there is none.
func (h *Hub) find(id string) (*device, error) {
	if d := h.device(id); d != nil {
		return d, nil
	}
	return nil, notFound(Target{DeviceID: id})
}

// waiting is how many cloud-to-device messages there are. The caller holds mu.
func (d *device) waiting() int {
	if d.queue == nil {
		return 0
	}
	return d.queue.Len()
}

// c2d returns the device's cloud-to-device queue, which is opened when it is
// first needed: most devices have none in use.
func (d *device) c2d() (*broker.Queue, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.exists {
		return nil, notFound(d.Target)
	}
	if d.queue != nil {
		return d.queue, nil
	}
	generation := d.identity.GenerationID
	q, err := broker.OpenQueue(d.hub.store, c2dQueueName(d.DeviceID, generation), d.hub.c2dOptions(d.DeviceID, generation))
	if err != nil {
		return nil, fmt.Errorf("cloud-to-device queue of %s: %w", d.DeviceID, err)
	}
	d.queue = q
	return q, nil
}

// sessions returns the sessions of the device and of its modules.
func (d *device) sessions() []*Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	var sessions []*Session
	if d.session != nil {
		sessions = append(sessions, d.session)
	}
	for _, m := range d.modules {
		m.mu.Lock()
		if m.session != nil {
			sessions = append(sessions, m.session)
		}
		m.mu.Unlock()
	}
	return sessions
}

func (d *device) close() {
	sessions := d.sessions()
	d.mu.Lock()
	q := d.queue
	d.mu.Unlock()
	for _, s := range sessions {
		s.end(Errorf(CodeServiceUnavailable, "the hub is shutting down"))
	}
	if q != nil {
		q.Close()
	}
}

// loadDevices reads the records of all devices and modules. Those of one
// principal come one after the other, and those of a device before those of its
// modules, because the keys are in order.
func (h *Hub) loadDevices() error {
	err := h.store.Load(devicePrefix, func(key string, value []byte) error {
		escaped, record, _ := strings.Cut(key[len(devicePrefix):], "/")
		id, err := url.PathUnescape(escaped)
		if err != nil {
			return fmt.Errorf("stored device %q: %w", escaped, err)
		}
		d := h.devices[id]
		if d == nil {
			d = h.newDevice(id)
			h.devices[id] = d
		}
		if err := d.load(record, value); err != nil {
			return fmt.Errorf("stored device %s: %w", id, err)
		}
		return nil
	})
	for id, d := range h.devices {
		if !d.exists {
			delete(h.devices, id)
		}
	}
	return err
}

// load reads one record of the device or of a module.
func (d *device) load(record string, value []byte) error {
	if rest, ok := strings.CutPrefix(record, modulePrefix); ok {
		return d.loadModule(rest, value)
	}
	return d.principal.load(record, value)
}
