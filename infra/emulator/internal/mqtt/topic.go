package mqtt

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Topics of a hub (IoT Hub docs: "Communicate with an IoT hub using the MQTT
// protocol").
const (
	topicDevices        = "devices/"
	topicModules        = "/modules/"
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

// versionKey is the property of twin topics that carries the version of the
// properties.
const versionKey = "$version"

var errTopic = errors.New("not a topic of this device or module")

// parseEventsTopic returns the property bag of a telemetry topic of the device
// or module: devices/{id}[/modules/{id}]/messages/events[/[bag]].
func parseEventsTopic(t hub.Target, topic string) (string, error) {
	rest, ok := strings.CutPrefix(topic, topicDevices)
	if ok {
		rest, ok = cutID(rest, t.DeviceID)
	}
	if ok && t.ModuleID != "" {
		if rest, ok = strings.CutPrefix(rest, topicModules); ok {
			rest, ok = cutID(rest, t.ModuleID)
		}
	}
	if ok {
		rest, ok = strings.CutPrefix(rest, topicEvents)
	}
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

// cutID returns what follows the topic segment that is an ID.
func cutID(s, id string) (rest string, ok bool) {
	i := strings.IndexByte(s, '/')
	if i < 0 || !isID(s[:i], id) {
		return "", false
	}
	return s[i:], true
}

// isID reports whether a topic segment is an ID. IDs stand raw in topics; the
// encoded form is for those that contain + or #, which MQTT keeps for itself
// (MQTT 3.1.1 §4.7.1).
func isID(segment, id string) bool {
	if segment == id {
		return true
	}
	decoded, err := url.PathUnescape(segment)
	return err == nil && decoded == id
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
	if id := queryValue(query, requestIDKey); id != "" {
		return id, nil
	}
	return "", fmt.Errorf("topic has no %s", requestIDKey)
}

// baseVersion finds the version in $version={n} that the reported properties must
// have for an update; 0 if the device doesn't say, as only azure-iot-sdk-java
// does.
func baseVersion(query string) (int64, error) {
	text := queryValue(query, versionKey)
	if text == "" {
		return 0, nil
	}
	version, err := strconv.ParseInt(text, 10, 64)
	if err != nil || version < 1 {
		return 0, fmt.Errorf("%s in the topic is not a version", versionKey)
	}
	return version, nil
}

// queryValue returns the value of a key in the query of a topic as it stands
// there, or "".
func queryValue(query, key string) string {
	for pair := range strings.SplitSeq(strings.TrimPrefix(query, "?"), "&") {
		k, value, _ := strings.Cut(pair, "=")
		if decoded, err := url.PathUnescape(k); err == nil && decoded == key {
			return value
		}
	}
	return ""
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

// reportedTopic is where an update of reported properties is answered with their
// version.
func reportedTopic(requestID string, version int64) string {
	return twinResponseTopic(204, requestID) + "&" + versionKey + "=" + strconv.FormatInt(version, 10)
}

// desiredTopic is where a change of the desired properties is delivered.
func desiredTopic(version int64) string {
	return topicTwinDesired + "?" + versionKey + "=" + strconv.FormatInt(version, 10)
}
