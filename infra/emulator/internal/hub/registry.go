package hub

import (
	"context"
	"encoding/base64"
	"encoding/json"
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
	if err := ctx.Err(); err != nil {
		return Identity{}, err
	}
	if err := id.normalise(); err != nil {
		return Identity{}, err
	}
	d, err := h.reserve(id.DeviceID)
	if err != nil {
		return Identity{}, err
	}
	defer d.registry.Unlock()
	id.GenerationID = h.newGenerationID()
	id.StatusUpdatedTime = Time{}
	created := id.stored()
	created.ETag = newETag("")
	if err := h.writeIdentity(created); err != nil {
		h.release(d)
		return Identity{}, err
	}
	d.mu.Lock()
	d.identity, d.exists = created, true
	d.mu.Unlock()
	return d.snapshot(), nil
}

// reserve puts a device that doesn't exist yet into the map and locks it, so
// that two creations of one ID can't both succeed.
func (h *Hub) reserve(id string) (*device, error) {
	for {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return nil, refuse(CodeServiceUnavailable, "the hub is shutting down")
		}
		d := h.devices[id]
		if d == nil {
			d = &device{hub: h, id: id}
			d.registry.Lock() // nobody else has it, so this can't wait
			h.devices[id] = d
			h.mu.Unlock()
			return d, nil
		}
		h.mu.Unlock()
		// Another creation or deletion may be under way: wait for its end.
		d.registry.Lock()
		d.mu.Lock()
		exists := d.exists
		d.mu.Unlock()
		d.registry.Unlock()
		if exists {
			return nil, refuse(CodeDeviceAlreadyExists, "device %q is already registered", id)
		}
	}
}

// release takes a device that doesn't exist out of the map.
func (h *Hub) release(d *device) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.devices[d.id] == d {
		delete(h.devices, d.id)
	}
}

// stored drops what isn't kept with the identity.
func (id Identity) stored() Identity {
	id.ConnectionState, id.CloudToDeviceMessageCount = "", 0
	id.ConnectionStateUpdatedTime, id.LastActivityTime = Time{}, Time{}
	return id
}

func (h *Hub) writeIdentity(id Identity) error {
	value, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return store.Commit(h.store, store.Put(deviceKeys(id.DeviceID)+identitySuffix, value))
}

// lockExisting returns a device with its registry mutex held, if it exists and
// has the version that is asked for.
func (h *Hub) lockExisting(id string, match IfMatch) (*device, error) {
	d, err := h.find(id)
	if err != nil {
		return nil, err
	}
	d.registry.Lock()
	d.mu.Lock()
	exists, etag := d.exists, d.identity.ETag
	d.mu.Unlock()
	switch {
	case !exists:
		err = notFound(id)
	case match != AnyVersion && string(match) != etag:
		err = refuse(CodePreconditionFailed, "device %q has another ETag than If-Match says", id)
	default:
		return d, nil
	}
	d.registry.Unlock()
	return nil, err
}

// UpdateDevice replaces what a caller may set of an identity: status,
// authentication, capabilities and scopes. Keys that are left out stay.
// CodePreconditionFailed if match doesn't match.
func (h *Hub) UpdateDevice(ctx context.Context, id Identity, match IfMatch) (Identity, error) {
	if err := ctx.Err(); err != nil {
		return Identity{}, err
	}
	d, err := h.lockExisting(id.DeviceID, match)
	if err != nil {
		return Identity{}, err
	}
	defer d.registry.Unlock()
	d.mu.Lock()
	before := d.identity
	d.mu.Unlock()
	id.Authentication.keepKeys(before.Authentication)
	if err := id.normalise(); err != nil {
		return Identity{}, err
	}
	updated := id.stored()
	updated.GenerationID, updated.ETag = before.GenerationID, newETag(before.ETag)
	updated.StatusUpdatedTime = before.StatusUpdatedTime
	if updated.Status != before.Status {
		updated.StatusUpdatedTime = Time{time.Now().UTC()}
	}
	if err := h.writeIdentity(updated); err != nil {
		return Identity{}, err
	}
	d.replace(updated)
	return d.snapshot(), nil
}

// replace puts an identity into effect, and drops the connection of a device
// that is disabled now.
func (d *device) replace(id Identity) {
	d.mu.Lock()
	d.identity = id
	s := d.session
	d.mu.Unlock()
	if s != nil && id.Status == StatusDisabled {
		s.end(refuse(CodeUnauthorized, "device %q was disabled", d.id))
	}
}

// GetDevice returns an identity, or CodeDeviceNotFound.
func (h *Hub) GetDevice(deviceID string) (Identity, error) {
	d, err := h.find(deviceID)
	if err != nil {
		return Identity{}, err
	}
	return d.snapshot(), nil
}

// DeleteDevice removes an identity with its messages, and drops its connection.
// CodePreconditionFailed if match doesn't match.
func (h *Hub) DeleteDevice(ctx context.Context, deviceID string, match IfMatch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := h.lockExisting(deviceID, match)
	if err != nil {
		return err
	}
	defer d.registry.Unlock()
	if _, err := d.c2d(); err != nil { // opened so that its records are removed too
		return err
	}
	tx := broker.NewTx(h.store)
	d.mu.Lock()
	d.exists = false // from now on nothing is added
	s, q := d.session, d.queue
	d.mu.Unlock()
	q.Delete(tx)
	tx.Add(store.DeletePrefix(deviceKeys(deviceID)))
	err = tx.Commit(context.WithoutCancel(ctx))
	h.release(d)
	q.Close()
	if s != nil {
		s.end(refuse(CodeDeviceNotFound, "device %q was deleted", deviceID))
	}
	return err
}

// ListDevices returns up to top identities in order of their IDs.
func (h *Hub) ListDevices(top int) []Identity {
	devices := h.sorted("")
	ids := make([]Identity, 0, min(top, len(devices)))
	for _, d := range devices[:cap(ids)] {
		ids = append(ids, d.snapshot())
	}
	return ids
}

// sorted returns the existing devices behind an ID in the order of their IDs.
func (h *Hub) sorted(behind string) []*device {
	var devices []*device
	h.each(func(d *device) {
		if d.id > behind {
			devices = append(devices, d)
		}
	})
	slices.SortFunc(devices, func(a, b *device) int { return strings.Compare(a.id, b.id) })
	return devices
}

// each calls f for all existing devices.
func (h *Hub) each(f func(*device)) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, d := range h.devices {
		d.mu.Lock()
		exists := d.exists
		d.mu.Unlock()
		if exists {
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
