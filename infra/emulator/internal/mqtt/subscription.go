package mqtt

import (
	"encoding/json"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// refused is the return code of a SUBACK for a filter that is not granted
// (MQTT 3.1.1 §3.9.3).
const refused byte = 0x80

// feature is something that a device or module subscribes to.
type feature uint8

const (
	featureNone feature = iota
	featureDevicebound
	featureMethods
	featureTwinResponses
	featureTwinDesired

	features
)

// featureOf returns what a filter subscribes to. A hub knows four filters and
// no others: no wildcards but the last #, and none for a single method, which
// devices have to pick out themselves (IoT Hub docs: "Understand and invoke direct
// methods from IoT Hub", MQTT, Method invocation). Modules receive no
// cloud-to-device messages, and know three.
func featureOf(t hub.Target, filter string) feature {
	switch filter {
	case topicMethodRequest + "#":
		return featureMethods
	case topicTwinResponse + "#":
		return featureTwinResponses
	case topicTwinDesired + "#":
		return featureTwinDesired
	}
	rest, ok := strings.CutPrefix(filter, topicDevices)
	if !ok || t.ModuleID != "" {
		return featureNone
	}
	rest, ok = strings.CutSuffix(rest, topicDevicebound+"#")
	if !ok || !isID(rest, t.DeviceID) {
		return featureNone
	}
	return featureDevicebound
}

// grant is a filter that has been subscribed to.
type grant struct {
	// Filter is as the device wrote it, which may be with its ID encoded; empty
	// if there is none.
	Filter string `json:"filter"`
	QoS    byte   `json:"qos"`
}

// subscriptions are those of one device or module, at most one filter a
// feature. They are not safe for concurrent use.
type subscriptions [features]grant

func (s *subscriptions) has(f feature) bool { return s[f].Filter != "" }

// add grants a filter or refuses it, and returns the code for the SUBACK. The
// hub grants QoS 1 to those who ask for 2.
func (s *subscriptions) add(t hub.Target, filter string, qos byte) byte {
	f := featureOf(t, filter)
	if f == featureNone {
		return refused
	}
	s[f] = grant{Filter: filter, QoS: min(qos, 1)}
	return s[f].QoS
}

// encode makes the state of a persistent session: a JSON array of grants.
func (s *subscriptions) encode() ([]byte, error) {
	grants := []grant{}
	for _, g := range s {
		if g.Filter != "" {
			grants = append(grants, g)
		}
	}
	return json.Marshal(grants)
}

// decodeSubscriptions reads what encode made. What isn't known any more is left
// out.
func decodeSubscriptions(t hub.Target, state []byte) (subscriptions, error) {
	var s subscriptions
	var grants []grant
	if err := json.Unmarshal(state, &grants); err != nil {
		return s, err
	}
	for _, g := range grants {
		s.add(t, g.Filter, g.QoS)
	}
	return s, nil
}
