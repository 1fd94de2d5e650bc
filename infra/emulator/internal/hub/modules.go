package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// modulePrefix begins the keys of all modules behind those of their device.
const modulePrefix = "m/"

// MaxModules is how many modules a device may have (IoT Hub docs: "IoT Hub
// quotas and throttling").
const MaxModules = 50

// Module is a module identity as the registry's REST API shows it. Fields that
// the hub sets are ignored in requests. A module has no status: it may connect
// while its device is enabled.
type Module struct {
	ModuleID string `json:"moduleId"`
	// ManagedBy names what runs the module, such as iotEdge.
	ManagedBy    *string `json:"managedBy"`
	DeviceID     string  `json:"deviceId"`
	GenerationID string  `json:"generationId"`
	// ETag is without quotes.
	ETag                       string          `json:"etag"`
	ConnectionState            ConnectionState `json:"connectionState"`
	ConnectionStateUpdatedTime Time            `json:"connectionStateUpdatedTime"`
	LastActivityTime           Time            `json:"lastActivityTime"`
	CloudToDeviceMessageCount  int             `json:"cloudToDeviceMessageCount"`
	Authentication             Authentication  `json:"authentication"`
}

// moduleOf is the reverse of Module.identity.
func moduleOf(id Identity) Module {
	return Module{
		ModuleID:                   id.moduleID,
		ManagedBy:                  id.managedBy,
		DeviceID:                   id.DeviceID,
		GenerationID:               id.GenerationID,
		ETag:                       id.ETag,
		ConnectionState:            id.ConnectionState,
		ConnectionStateUpdatedTime: id.ConnectionStateUpdatedTime,
		LastActivityTime:           id.LastActivityTime,
		Authentication:             id.Authentication,
	}
}

// identity returns what the hub keeps of a module, in the form of a device's.
func (m Module) identity() Identity {
	return Identity{
		DeviceID:       m.DeviceID,
		GenerationID:   m.GenerationID,
		ETag:           m.ETag,
		Status:         StatusEnabled,
		Authentication: m.Authentication,
		moduleID:       m.ModuleID,
		managedBy:      m.ManagedBy,
	}
}

func (d *device) newModule(id string) *principal {
	return &principal{Target: Target{DeviceID: d.DeviceID, ModuleID: id}, hub: d.hub, device: d}
}

// module returns an existing module, or CodeModuleNotFound.
func (d *device) module(id string) (*principal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.modules[id]; m != nil {
		return m, nil
	}
	return nil, notFound(Target{DeviceID: d.DeviceID, ModuleID: id})
}

// CreateModule adds a module to a device; keys that are empty are generated.
//
// Errors: CodeDeviceNotFound, CodeModuleAlreadyExists, CodeTooManyModules,
// CodeArgumentInvalid.
func (h *Hub) CreateModule(ctx context.Context, m Module) (Module, error) {
	id, err := h.metered(ctx, m.identity(), h.createModule)
	return moduleOf(id), err
}

func (h *Hub) createModule(id Identity) (Identity, error) {
	if !ValidID(id.moduleID) {
		return Identity{}, invalidID("module", id.moduleID)
	}
	d, err := h.lockExisting(id.DeviceID, AnyVersion)
	if err != nil {
		return Identity{}, err
	}
	defer d.registry.Unlock()
	d.mu.Lock()
	_, exists := d.modules[id.moduleID]
	n := len(d.modules)
	d.mu.Unlock()
	switch {
	case exists:
		return Identity{}, Errorf(CodeModuleAlreadyExists, "%s is already registered", id.Target())
	case n >= MaxModules:
		return Identity{}, Errorf(CodeTooManyModules, "device %q has %d modules, which is the most it may have", d.DeviceID, n)
	}
	m := d.newModule(id.moduleID)
	if err := m.create(id); err != nil {
		return Identity{}, err
	}
	d.mu.Lock()
	if d.modules == nil {
		d.modules = make(map[string]*principal)
	}
	d.modules[id.moduleID] = m
	d.mu.Unlock()
	return m.snapshot(), nil
}

// UpdateModule replaces what a caller may set of a module: authentication and
// managedBy. Keys that are left out stay. CodePreconditionFailed if match
// doesn't match.
func (h *Hub) UpdateModule(ctx context.Context, m Module, match IfMatch) (Module, error) {
	id, err := h.metered(ctx, m.identity(), func(id Identity) (Identity, error) { return h.updateModule(id, match) })
	return moduleOf(id), err
}

func (h *Hub) updateModule(id Identity, match IfMatch) (Identity, error) {
	m, err := h.lockModule(id.Target(), match)
	if err != nil {
		return Identity{}, err
	}
	defer m.device.registry.Unlock()
	if _, err := m.update(id); err != nil {
		return Identity{}, err
	}
	return m.snapshot(), nil
}

// lockModule returns a module with the registry mutex of its device held, if it
// exists and has the version that is asked for.
func (h *Hub) lockModule(t Target, match IfMatch) (*principal, error) {
	d, err := h.lockExisting(t.DeviceID, AnyVersion)
	if err != nil {
		return nil, err
	}
	m, err := d.module(t.ModuleID)
	if err == nil {
		err = m.matches(match)
	}
	if err != nil {
		d.registry.Unlock()
		return nil, err
	}
	return m, nil
}

// GetModule returns a module identity; CodeDeviceNotFound or CodeModuleNotFound.
func (h *Hub) GetModule(t Target) (Module, error) {
	if err := h.admit(OpRegistry, t, 0); err != nil {
		return Module{}, err
	}
	d, err := h.find(t.DeviceID)
	if err != nil {
		return Module{}, err
	}
	m, err := d.module(t.ModuleID)
	if err != nil {
		return Module{}, err
	}
	return moduleOf(m.snapshot()), nil
}

// DeleteModule removes a module and drops its connection. CodePreconditionFailed
// if match doesn't match.
func (h *Hub) DeleteModule(ctx context.Context, t Target, match IfMatch) error {
	if err := h.admit(OpRegistry, t, 0); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.deleteModule(t, match)
}

func (h *Hub) deleteModule(t Target, match IfMatch) error {
	m, err := h.lockModule(t, match)
	if err != nil {
		return err
	}
	d := m.device
	defer d.registry.Unlock()
	s := m.remove() // from now on nothing is added
	err = translate(store.Commit(h.store, store.DeletePrefix(m.keys())), CodeServerError)
	d.mu.Lock()
	delete(d.modules, t.ModuleID)
	d.mu.Unlock()
	if s != nil {
		s.end(Errorf(CodeModuleNotFound, "%s was deleted", t))
	}
	return err
}

// ListModules returns the modules of a device in the order of their IDs, or
// CodeDeviceNotFound.
func (h *Hub) ListModules(deviceID string) ([]Module, error) {
	if err := h.admit(OpRegistry, Target{DeviceID: deviceID}, 0); err != nil {
		return nil, err
	}
	d, err := h.find(deviceID)
	if err != nil {
		return nil, err
	}
	principals := d.sortedModules()
	modules := make([]Module, len(principals))
	for i, m := range principals {
		modules[i] = moduleOf(m.snapshot())
	}
	return modules, nil
}

// sortedModules returns the modules in the order of their IDs.
func (d *device) sortedModules() []*principal {
	d.mu.Lock()
	defer d.mu.Unlock()
	modules := make([]*principal, 0, len(d.modules))
	for _, m := range d.modules {
		modules = append(modules, m)
	}
	slices.SortFunc(modules, func(a, b *principal) int { return strings.Compare(a.ModuleID, b.ModuleID) })
	return modules
}

// loadModule reads one record of a module, named <module>/<record>.
func (d *device) loadModule(key string, value []byte) error {
	escaped, record, _ := strings.Cut(key, "/")
	id, err := url.PathUnescape(escaped)
	if err != nil {
		return fmt.Errorf("module %q: %w", escaped, err)
	}
	m := d.modules[id]
	if m == nil {
		m = d.newModule(id)
		if d.modules == nil {
			d.modules = make(map[string]*principal)
		}
		d.modules[id] = m
	}
	if err := m.load(record, value); err != nil {
		return fmt.Errorf("module %s: %w", id, err)
	}
	return nil
}

// encode returns the identity as the store has it.
func (id Identity) encode() ([]byte, error) {
	if id.moduleID != "" {
		return json.Marshal(moduleOf(id))
	}
	return json.Marshal(id)
}

// decode is the reverse of encode.
func (id *Identity) decode(t Target, value []byte) error {
	if t.ModuleID == "" {
		return json.Unmarshal(value, id)
	}
	var m Module
	err := json.Unmarshal(value, &m)
	*id = m.identity()
	return err
}
