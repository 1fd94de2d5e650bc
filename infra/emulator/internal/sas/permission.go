package sas

import "strings"

// Permission is a set of the rights that a shared access policy grants.
type Permission uint8

// Permissions of IoT Hub policies (IoT Hub docs: "Control access to IoT Hub by
// using shared access signatures") and of Service Bus and Event Hubs policies
// (Service Bus docs: "Shared Access Signatures").
const (
	RegistryRead Permission = 1 << iota
	RegistryWrite
	ServiceConnect
	DeviceConnect
	Listen
	Send
	Manage
)

var permissionNames = [...]string{
	"RegistryRead", "RegistryWrite", "ServiceConnect", "DeviceConnect",
	"Listen", "Send", "Manage",
}

// Has reports whether p holds every right of wanted.
func (p Permission) Has(wanted Permission) bool { return p&wanted == wanted }

// String lists the rights by the names that the service uses.
func (p Permission) String() string {
	var names []string
	for i, name := range permissionNames {
		if p.Has(1 << i) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}
