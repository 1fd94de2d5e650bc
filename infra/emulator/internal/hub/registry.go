package hub

import (
	"context"
	"encoding/base64"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// IfMatch is the condition of an update or delete: an ETag without quotes, or
// AnyVersion.
type IfMatch string

// AnyVersion matches every version of an identity that exists.
const AnyVersion IfMatch = "*"

// CreateDevice adds an identity; keys that are empty are generated.
// CodeDeviceAlreadyExists if there is one of that ID.
func (h *Hub) CreateDevice(ctx context.Context, id Identity) (Identity, error) {
	return h.metered(ctx, id, h.createDevice)
}

// metered calls a change of an identity, if the gate admits it.
func (h *Hub) metered(ctx context.Context, id Identity, change func(Identity) (Identity, error)) (Identity, error) {
	if err := h.admit(OpRegistry, id.Target(), 0); err != nil {
		return Identity{}, err
	}
	if err := ctx.Err(); err != nil {
		return Identity{}, err
	}
	return change(id)
}

func (h *Hub) createDevice(id Identity) (Identity, error) {
	if !ValidID(id.DeviceID) {
		return Identity{}, invalidID("device", id.DeviceID)
	}
	d, err := h.reserve(id.DeviceID)
	if err != nil {
		return Identity{}, err
	}
	defer d.registry.Unlock()
	if err := d.create(id); err != nil {
		h.release(d)
		return Identity{}, err
	}
	return d.snapshot(), nil
}

// reserve puts a device that doesn't exist yet into the map and locks it, so
// that two creations of one ID can't both succeed.
func (h *Hub) reserve(id string) (*device, error) {
	for {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return nil, Errorf(CodeServiceUnavailable, "the hub is shutting down")
		}
		d := h.devices[id]
		if d == nil {
			d = h.newDevice(id)
			d.registry.Lock() // nobody else has it, so this can't wait
			h.devices[id] = d
			h.reorder()
			h.mu.Unlock()
			return d, nil
		}
		h.mu.Unlock()
		// Another creation or deletion may be under way: wait for its end.
		d.registry.Lock()
		_, exists := d.current()
		d.registry.Unlock()
		if exists {
			return nil, Errorf(CodeDeviceAlreadyExists, "device %q is already registered", id)
		}
	}
}

// release takes a device that doesn't exist out of the map.
func (h *Hub) release(d *device) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.devices[d.DeviceID] == d {
		delete(h.devices, d.DeviceID)
		h.reorder()
	}
}

// stored drops what isn't kept with the identity.
func (id Identity) stored() Identity {
	id.ConnectionState, id.CloudToDeviceMessageCount = "", 0
	id.ConnectionStateUpdatedTime, id.LastActivityTime = Time{}, Time{}
	return id
}

// lockExisting returns a device with its registry mutex held, if it exists and
// has the version that is asked for.
func (h *Hub) lockExisting(id string, match IfMatch) (*device, error) {
	h.mu.RLock()
	d := h.devices[id]
	h.mu.RUnlock()
	if d == nil {
		return nil, notFound(Target{DeviceID: id})
	}
	// A creation or deletion may be under way. Nobody acts on it, or takes it for
	// done, before it is on the disk.
	d.registry.Lock()
	if err := d.matches(match); err != nil {
		d.registry.Unlock()
		return nil, err
	}
	return d, nil
}

// UpdateDevice replaces what a caller may set of an identity: status,
// authentication, capabilities and scopes. Keys that are left out stay.
// CodePreconditionFailed if match doesn't match.
func (h *Hub) UpdateDevice(ctx context.Context, id Identity, match IfMatch) (Identity, error) {
	return h.metered(ctx, id, func(id Identity) (Identity, error) { return h.updateDevice(id, match) })
}

func (h *Hub) updateDevice(id Identity, match IfMatch) (Identity, error) {
	d, err := h.lockExisting(id.DeviceID, match)
	if err != nil {
		return Identity{}, err
	}
	defer d.registry.Unlock()
	updated, err := d.update(id)
	if err != nil {
		return Identity{}, err
	}
	if updated.Status == StatusDisabled {
		for _, s := range d.sessions() {
			s.end(Errorf(CodeUnauthorized, "%s was disabled", d.Target))
		}
	}
	return d.snapshot(), nil
}

// GetDevice returns an identity, or CodeDeviceNotFound.
func (h *Hub) GetDevice(deviceID string) (Identity, error) {
	if err := h.admit(OpRegistry, Target{DeviceID: deviceID}, 0); err != nil {
		return Identity{}, err
	}
	d, err := h.find(deviceID)
	if err != nil {
		return Identity{}, err
	}
	return d.snapshot(), nil
}

// DeleteDevice removes an identity with its modules and messages, and drops
// their connections. CodePreconditionFailed if match doesn't match.
func (h *Hub) DeleteDevice(ctx context.Context, deviceID string, match IfMatch) error {
	if err := h.admit(OpRegistry, Target{DeviceID: deviceID}, 0); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.deleteDevice(deviceID, match)
}

func (h *Hub) deleteDevice(deviceID string, match IfMatch) error {
	d, err := h.lockExisting(deviceID, match)
	if err != nil {
		return err
	}
	defer d.registry.Unlock()
	q, err := d.c2d() // opened so that its records are removed too
	if err != nil {
		return err
	}
	tx := broker.NewTx(h.store)
	d.remove() // from now on nothing is added
	for _, m := range d.sortedModules() {
		m.remove()
	}
	q.Delete(tx)
	h.feedback.forget(tx, d.DeviceID, d.identity.GenerationID)
	tx.Add(store.DeletePrefix(d.keys()))
	err = translate(tx.Commit(context.Background()), CodeServerError) // the hub has begun to forget the device
	h.release(d)
	q.Close()
	for _, s := range d.sessions() {
		s.end(Errorf(CodeDeviceNotFound, "%s was deleted", d.Target))
	}
	return err
}

// ListDevices returns up to top identities in order of their IDs.
func (h *Hub) ListDevices(top int) ([]Identity, error) {
	if err := h.admit(OpRegistry, Target{}, 0); err != nil {
		return nil, err
	}
	ids := []Identity{}
	for d := range h.inOrder("") {
		if len(ids) == top {
			break
		}
		ids = append(ids, d.snapshot())
	}
	return ids, nil
}

// inOrder yields the existing devices in the order of their IDs, from an ID on.
func (h *Hub) inOrder(from string) iter.Seq[*device] {
	return func(yield func(*device) bool) {
		devices := h.sorted()
		first, _ := slices.BinarySearchFunc(devices, from, func(d *device, id string) int { return strings.Compare(d.DeviceID, id) })
		for _, d := range devices[first:] {
			if _, exists := d.current(); exists && !yield(d) {
				return
			}
		}
	}
}

// sorted returns the devices in the order of their IDs, those under way included.
// It is kept, because whoever reads all of them asks again for each page.
func (h *Hub) sorted() []*device {
	h.mu.RLock()
	devices, changes := h.order, h.changes
	if devices == nil {
		devices = slices.Collect(maps.Values(h.devices))
	}
	kept := h.order != nil
	h.mu.RUnlock()
	if kept {
		return devices
	}
	slices.SortFunc(devices, func(a, b *device) int { return strings.Compare(a.DeviceID, b.DeviceID) })
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changes == changes {
		h.order = devices
	}
	return devices
}

// reorder forgets the order of the devices. The caller holds mu.
func (h *Hub) reorder() {
	h.changes++
	h.order = nil
}

// each calls f for all existing devices.
func (h *Hub) each(f func(*device)) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, d := range h.devices {
		if _, exists := d.current(); exists {
			f(d)
		}
	}
}

// DeviceStatistics counts identities, as GET /statistics/devices answers.
type DeviceStatistics struct {
	Total    int `json:"totalDeviceCount"`
	Enabled  int `json:"enabledDeviceCount"`
	Disabled int `json:"disabledDeviceCount"`
}

// DeviceStatistics counts identities.
func (h *Hub) DeviceStatistics() DeviceStatistics {
	var n DeviceStatistics
	h.each(func(d *device) {
		d.mu.Lock()
		defer d.mu.Unlock()
		n.Total++
		if d.identity.Status == StatusEnabled {
			n.Enabled++
		} else {
			n.Disabled++
		}
	})
	return n
}

// ServiceStatistics is what GET /statistics/service answers.
type ServiceStatistics struct {
	Connected int `json:"connectedDeviceCount"`
}

// ServiceStatistics counts connected devices.
func (h *Hub) ServiceStatistics() ServiceStatistics {
	return ServiceStatistics{Connected: int(h.connected.Load())}
}

// epochTicks is 1970 in the unit of generation IDs: 100 ns since the year 1.
const epochTicks = 621355968000000000

// newGenerationID makes the ID that tells a device from an earlier one of the
// same name. It has the look of those of the cloud: 18 digits.
func (h *Hub) newGenerationID() string {
	for {
		last := h.ticks.Load()
		next := max(last+1, epochTicks+time.Now().UnixNano()/100)
		if h.ticks.CompareAndSwap(last, next) {
			return strconv.FormatInt(next, 10)
		}
	}
}

// newETag makes the name of a version: like in the cloud, base64 of digits.
func newETag(before string) string {
	for {
		etag := base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(100000000 + rand.IntN(900000000))))
		if etag != before {
			return etag
		}
	}
}
