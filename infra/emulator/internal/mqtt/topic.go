package mqtt

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Topics of a hub (IoT Hub docs: "Communicate with an IoT hub using the MQTT
// protocol").
const (
	topicDevices        = "devices/"
	topicEvents         = "/messages/events"
	topicDevicebound    = "/messages/devicebound/"
	topicMethodRequest  = "$iothub/methods/POST/"
	topicMethodResponse = "$iothub/methods/res/"
	topicTwinResponse   = "$iothub/twin/res/"
	topicTwinGet        = "$iothub/twin/GET/"
	topicTwinReported   = "$iothub/twin/PATCH/properties/reported/"
	topicTwinDesired    = "$iothub/twin/PATCH/properties/desired/"
)

// requestIDKey is the property of method and twin topics that pairs a request
// with its response.
const requestIDKey = "$rid"

var errTopic = errors.New("not a topic of this device")

// parseEventsTopic returns the property bag of a telemetry topic of the device:
// devices/{id}/messages/events[/[bag]].
func parseEventsTopic(deviceID, topic string) (string, error) {
	rest, ok := strings.CutPrefix(topic, topicDevices)
	if !ok {
		return "", errTopic
	}
	i := strings.IndexByte(rest, '/')
	if i < 0 || !isDevice(rest[:i], deviceID) {
		return "", errTopic
	}
	rest, ok = strings.CutPrefix(rest[i:], topicEvents)
	switch {
	case !ok:
		return "", errTopic
	case rest == "":
		return "", nil
	case rest[0] != '/':
		return "", errTopic
	}
	return rest[1:], nil
}

// isDevice reports whether a topic segment is the device's ID. IDs stand raw in
// topics; the encoded form is for those that contain + or #, which MQTT keeps
// for itself (MQTT 3.1.1 §4.7.1).
func isDevice(segment, deviceID string) bool {
	if segment == deviceID {
		return true
	}
	decoded, err := url.PathUnescape(segment)
	return err == nil && decoded == deviceID
}

// methodResponse is the topic of a method response taken apart.
type methodResponse struct {
	status    int
	requestID string
}

// parseMethodResponse reads {status}/?$rid={rid}, what follows the prefix of a
// method response topic.
func parseMethodResponse(rest string) (methodResponse, error) {
	text, query, ok := strings.Cut(rest, "/")
	if !ok {
		return methodResponse{}, errors.New("method response topic is not .../res/{status}/?$rid={rid}")
	}
	status, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return methodResponse{}, errors.New("status in the method response topic is not an integer")
	}
	rid, err := requestID(query)
	return methodResponse{status: int(status), requestID: rid}, err
}

// requestID finds the request ID in ?$rid={rid}. It is returned as the device
// wrote it, because clients parse an echo of it back, each in its own base.
func requestID(query string) (string, error) {
	for pair := range strings.SplitSeq(strings.TrimPrefix(query, "?"), "&") {
		key, value, _ := strings.Cut(pair, "=")
		decoded, err := url.PathUnescape(key)
		if err == nil && decoded == requestIDKey && value != "" {
			return value, nil
		}
	}
	return "", fmt.Errorf("topic has no %s", requestIDKey)
}

// methodRequestTopic is where a method call is delivered. Names usually are
// letters, digits, dots, dashes and the asterisk between component and command;
// what could end the segment or has a meaning to MQTT is percent-encoded.
func methodRequestTopic(name, requestID string) string {
	var b strings.Builder
	b.WriteString(topicMethodRequest)
	for segment := range strings.SplitAfterSeq(name, "*") {
		bare, starred := strings.CutSuffix(segment, "*")
		escape(&b, bare)
		if starred {
			b.WriteByte('*')
		}
	}
	return b.String() + "/?" + requestIDKey + "=" + requestID
}

func twinResponseTopic(status int, requestID string) string {
	return topicTwinResponse + strconv.Itoa(status) + "/?" + requestIDKey + "=" + requestID
}
