package hub

import (
	"fmt"
	"net/url"
)

// Target names a device identity, or one of its modules.
type Target struct {
	DeviceID string
	// ModuleID is empty for the device itself.
	ModuleID string
}

// String names the target for people.
func (t Target) String() string {
	if t.ModuleID == "" {
		return fmt.Sprintf("device %q", t.DeviceID)
	}
	return fmt.Sprintf("module %q of device %q", t.ModuleID, t.DeviceID)
}

// Path is what a token for the target names behind the host:
// devices/{id}[/modules/{id}], not percent-encoded.
func (t Target) Path() string { return t.join(func(id string) string { return id }) }

// address begins the addresses of what the target sends and receives.
func (t Target) address() string { return "/" + t.join(url.PathEscape) }

func (t Target) join(encode func(string) string) string {
	path := "devices/" + encode(t.DeviceID)
	if t.ModuleID != "" {
		path += "/modules/" + encode(t.ModuleID)
	}
	return path
}

// scope is that of an AuthMethod with the target's own key.
func (t Target) scope() string {
	if t.ModuleID != "" {
		return "module"
	}
	return "device"
}
