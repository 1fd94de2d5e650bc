package iotdevice

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/hubjobs/hubjobs/job"
)

// Keys of system properties in the property bag of a topic (IoT Hub docs, "Communicate with your IoT hub using the MQTT
// protocol", sending device-to-cloud and receiving cloud-to-device messages).
const (
	keyMessageID       = "$.mid"
	keyCorrelationID   = "$.cid"
	keyContentType     = "$.ct"
	keyContentEncoding = "$.ce"

	systemPrefix = "$."
	propertyAck  = "iothub-ack" // the sender's wish for feedback; none of the device's business
)

// maxTopic is the longest topic in bytes: MQTT counts a string's length in 16 bits (MQTT 3.1.1 §1.5.3).
const maxTopic = 65535

func topicEvents(deviceID string) string { return "devices/" + deviceID + "/messages/events/" }
func topicDevicebound(deviceID string) string {
	return "devices/" + deviceID + "/messages/devicebound/"
}

const (
	topicMethods      = "$iothub/methods/POST/"
	topicMethodResult = "$iothub/methods/res/"
)

// eventTopic returns the topic that carries m's properties to the hub. Properties are in the order of their names.
func eventTopic(deviceID string, m job.Message) (string, error) {
	properties := m.ApplicationProperties()
	pairs := make([]string, 0, len(properties)+4)
	add := func(name, value string) { pairs = append(pairs, escape(name)+"="+escape(value)) }
	for _, p := range [][2]string{
		{keyMessageID, m.ID}, {keyCorrelationID, m.CorrelationID},
		{keyContentType, m.ContentType}, {keyContentEncoding, m.ContentEncoding},
	} {
		if p[1] != "" {
			add(p[0], p[1])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if name == "" || strings.HasPrefix(name, systemPrefix) {
			return "", fmt.Errorf("%q can't be the name of an application property", name)
		}
		add(name, properties[name])
	}
	return topicEvents(deviceID) + strings.Join(pairs, "&"), nil
}

// escape percent-encodes all but the unreserved characters of RFC 3986 §2.3: a space as %20, as hubs take "+" literally.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// unescape undoes escape. What isn't encoded properly is taken as it stands: no message shall be lost for it.
func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

// parseDevicebound reads a cloud-to-device message; ok is false for other topics.
func parseDevicebound(deviceID, topic string, payload []byte) (m job.Message, ok bool) {
	bag, ok := strings.CutPrefix(topic, topicDevicebound(deviceID))
	if !ok {
		return job.Message{}, false
	}
	application := make(map[string]string)
	for pair := range strings.SplitSeq(strings.TrimPrefix(bag, "?"), "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, value = unescape(name), unescape(value)
		switch {
		case name == keyMessageID:
			m.ID = value
		case name == keyCorrelationID:
			m.CorrelationID = value
		case name == keyContentType:
			m.ContentType = value
		case name == keyContentEncoding:
			m.ContentEncoding = value
		case name != "" && name != propertyAck && !strings.HasPrefix(name, systemPrefix):
			application[name] = value
		}
	}
	m.SetApplicationProperties(application)
	m.To = deviceID
	m.Body = payload
	return m, true
}

// parseMethod reads "$iothub/methods/POST/{name}/?$rid={request ID}".
func parseMethod(topic string) (name, requestID string, ok bool) {
	rest, ok := strings.CutPrefix(topic, topicMethods)
	if !ok {
		return "", "", false
	}
	name, query, ok := strings.Cut(rest, "/?")
	if !ok || name == "" {
		return "", "", false
	}
	for pair := range strings.SplitSeq(query, "&") {
		if key, value, _ := strings.Cut(pair, "="); unescape(key) == "$rid" && value != "" {
			return name, value, true // the ID goes back as it came
		}
	}
	return "", "", false
}

func methodResultTopic(status int, requestID string) string {
	return fmt.Sprintf("%s%d/?$rid=%s", topicMethodResult, status, requestID)
}
