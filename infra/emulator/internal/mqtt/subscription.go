package mqtt

import (
	"maps"
	"strings"
	"sync"
)

// refused is the return code of a SUBACK for a filter that is not granted
// (MQTT 3.1.1 §3.9.3).
const refused byte = 0x80

// feature is something that a device subscribes to.
type feature uint8

const (
	featureNone feature = iota
	featureDevicebound
	featureMethods
	featureTwinResponses
	featureTwinDesired
)

// featureOf returns what a filter subscribes to. A hub knows four filters and
// no others: no wildcards but the last #.
func featureOf(deviceID, filter string) feature {
	switch filter {
	case topicMethodRequest + "#":
		return featureMethods
	case topicTwinResponse + "#":
		return featureTwinResponses
	case topicTwinDesired + "#":
		return featureTwinDesired
	}
	rest, ok := strings.CutPrefix(filter, topicDevices)
	if !ok {
		return featureNone
	}
	rest, ok = strings.CutSuffix(rest, topicDevicebound+"#")
	if !ok || !isDevice(rest, deviceID) {
		return featureNone
	}
	return featureDevicebound
}

// grant is a filter that a device has subscribed to.
type grant struct {
	// filter is as the device wrote it, which may be with its ID encoded.
	filter string
	qos    byte
}

// subscriptions are a device's, at most one filter a feature: there is no need
// for the hub's limit of 5. It is not safe for concurrent use.
type subscriptions map[feature]grant

// add grants a filter or refuses it, and returns the code for the SUBACK. The
// hub grants QoS 1 to those who ask for 2.
func (s subscriptions) add(deviceID, filter string, qos byte) byte {
	f := featureOf(deviceID, filter)
	if f == featureNone {
		return refused
	}
	s[f] = grant{filter: filter, qos: min(qos, 1)}
	return s[f].qos
}

func (s subscriptions) remove(filter string) {
	maps.DeleteFunc(s, func(_ feature, g grant) bool { return g.filter == filter })
}

// persistence keeps the subscriptions of devices that connect with clean
// session 0, in memory: after a restart of the hub their CONNACK says that no
// session is present, and they subscribe again [MQTT-3.2.2-3].
type persistence struct {
	// alive reports whether the registry still has the identity of that
	// generation.
	alive func(deviceID, generation string) bool

	mu       sync.Mutex
	sessions map[string]kept
	prunedAt int // the next size at which sessions of deleted devices go
}

// kept is what outlives a connection.
type kept struct {
	// generation tells a device from an earlier one of the same ID.
	generation string
	subs       subscriptions
}

// minPrune is the size below which pruning isn't worth a look at the registry.
const minPrune = 1024

// resume returns the kept subscriptions of a device, and whether there were
// any kept. With clean set it forgets them instead [MQTT-3.1.2-6].
func (p *persistence) resume(deviceID, generation string, clean bool) (subscriptions, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.sessions[deviceID]
	if ok && k.generation == generation && !clean {
		return maps.Clone(k.subs), true
	}
	delete(p.sessions, deviceID)
	return make(subscriptions), false
}

// keep stores a copy of the subscriptions of a device.
func (p *persistence) keep(deviceID, generation string, subs subscriptions) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sessions == nil {
		p.sessions = make(map[string]kept)
	}
	p.sessions[deviceID] = kept{generation: generation, subs: maps.Clone(subs)}
	if len(p.sessions) < max(p.prunedAt, minPrune) {
		return
	}
	maps.DeleteFunc(p.sessions, func(id string, k kept) bool { return !p.alive(id, k.generation) })
	p.prunedAt = 2 * len(p.sessions)
}
