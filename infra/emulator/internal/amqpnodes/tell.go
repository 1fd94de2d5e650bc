package amqpnodes

import (
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/netconn"
)

// A listener may want to know whose connections are, and what they lead to: one
// that injects faults picks them by that. The handler tells it through the methods
// SetPeer and SetEntity of the connection, or of one below it.

// tellPeer says that a device or module, which has proved who it is, uses the
// connection.
func (h *handler) tellPeer(t hub.Target) {
	if c, ok := netconn.As[interface{ SetPeer(hub.Target) }](h.conn); ok {
		c.SetPeer(t)
	}
}

// tellEntity says that the connection has a link to an entity of the namespace or
// an event hub.
func (h *handler) tellEntity(addr address) {
	if addr.entity == "" {
		return
	}
	if c, ok := netconn.As[interface{ SetEntity(name string) }](h.conn); ok {
		c.SetEntity(addr.entity)
	}
}
