package hub

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Names of the policies that every hub has (IoT Hub docs: "Control access to
// IoT Hub by using shared access signatures").
const (
	PolicyOwner             = "iothubowner"
	PolicyService           = "service"
	PolicyDevice            = "device"
	PolicyRegistryRead      = "registryRead"
	PolicyRegistryReadWrite = "registryReadWrite"
)

var policyPermissions = map[string]sas.Permission{
	PolicyOwner:             sas.RegistryRead | sas.RegistryWrite | sas.ServiceConnect | sas.DeviceConnect,
	PolicyService:           sas.ServiceConnect,
	PolicyDevice:            sas.DeviceConnect,
	PolicyRegistryRead:      sas.RegistryRead,
	PolicyRegistryReadWrite: sas.RegistryRead | sas.RegistryWrite,
}

// Policy implements sas.Keyring.
func (h *Hub) Policy(name string) (sas.Policy, error) {
	if p, ok := h.policies[name]; ok {
		return p, nil
	}
	return sas.Policy{}, sas.ErrUnknownPolicy
}

// Device implements sas.Keyring.
func (h *Hub) Device(id string) (sas.Device, error) {
	d := h.device(id)
	if d == nil {
		return sas.Device{}, sas.ErrUnknownDevice
	}
	identity, _ := d.current()
	return sas.Device{Enabled: identity.Status == StatusEnabled, Keys: identity.Authentication.keys()}, nil
}

// Module implements sas.Keyring. A module is enabled while its device is.
func (h *Hub) Module(deviceID, moduleID string) (sas.Device, error) {
	device, err := h.Device(deviceID)
	if err != nil {
		return sas.Device{}, err
	}
	m, err := h.principal(Target{DeviceID: deviceID, ModuleID: moduleID})
	if err != nil {
		return sas.Device{}, sas.ErrUnknownDevice
	}
	identity, _ := m.current()
	return sas.Device{Enabled: device.Enabled, Keys: identity.Authentication.keys()}, nil
}

// keys are those that tokens may be signed with: none if the identity proves
// itself by a certificate.
func (a Authentication) keys() sas.Keys {
	if a.Type != AuthSAS {
		return sas.Keys{}
	}
	return sas.Keys{Primary: a.SymmetricKey.PrimaryKey, Secondary: a.SymmetricKey.SecondaryKey}
}

var _ sas.Keyring = (*Hub)(nil)

func openPolicies(s store.Store) (map[string]sas.Policy, error) {
	policies := make(map[string]sas.Policy, len(policyPermissions))
	for name, permissions := range policyPermissions {
		keys, err := OpenKeys(s, "hub/"+name)
		if err != nil {
			return nil, err
		}
		policies[name] = sas.Policy{Keys: keys, Permissions: permissions}
	}
	return policies, nil
}

// OpenKeys returns a pair of keys that the store has under a name. They are made
// by the first call.
func OpenKeys(s store.Store, name string) (sas.Keys, error) {
	key := "k/" + name
	var keys sas.Keys
	err := s.Load(key, func(found string, value []byte) error {
		if found != key {
			return nil // a longer name
		}
		return json.Unmarshal(value, &keys)
	})
	if err != nil {
		return sas.Keys{}, fmt.Errorf("read keys %s: %w", name, err)
	}
	if keys.Primary != "" {
		return keys, nil
	}
	keys = sas.Keys{Primary: newKey(), Secondary: newKey()}
	value, err := json.Marshal(keys)
	if err != nil {
		return sas.Keys{}, err
	}
	return keys, store.Commit(s, store.Put(key, value))
}

// newKey makes a key of the size that the cloud makes.
func newKey() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return base64.StdEncoding.EncodeToString(b[:])
}
