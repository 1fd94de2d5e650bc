package hub

// Disconnect ends the sessions of devices, and of their modules, whose ID
// matches, with CodeConnectionClosed. It returns how many there were. The
// devices may connect again at once.
func (h *Hub) Disconnect(match func(deviceID string) bool) int {
	n := 0
	for _, d := range h.matching(match) {
		for _, s := range d.sessions() {
			s.end(Errorf(CodeConnectionClosed, "%s was disconnected by the operator", s.Target()))
			n++
		}
	}
	return n
}

// ExpireLocks ends the locks of cloud-to-device messages for devices whose ID
// matches, and returns how many there were. Locks of MQTT devices have no end
// but that of the connection, and stay.
func (h *Hub) ExpireLocks(match func(deviceID string) bool) int {
	n := 0
	for _, d := range h.matching(match) {
		d.mu.Lock()
		q := d.queue
		d.mu.Unlock()
		if q != nil {
			n += q.ExpireLocks()
		}
	}
	return n
}

func (h *Hub) matching(match func(deviceID string) bool) []*device {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var found []*device
	for id, d := range h.devices {
		if match(id) {
			found = append(found, d)
		}
	}
	return found
}
