package mqtt

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Keys of system properties in a property bag (IoT Hub docs: "Create and read
// IoT Hub messages"; azure-iot-device-mqtt mqtt.ts).
const (
	systemPrefix       = "$."
	keyMessageID       = "$.mid"
	keyCorrelationID   = "$.cid"
	keyUserID          = "$.uid"
	keyTo              = "$.to"
	keyExpiry          = "$.exp"
	keyContentType     = "$.ct"
	keyContentEncoding = "$.ce"
	keyCreationTime    = "$.ctime"
	keySchema          = "$.schema"
	keyComponent       = "$.sub"
	keyInterface       = "$.ifid"
	keyOutput          = "$.on"
)

// Application properties that only messages over MQTT have (IoT Hub docs:
// "Communicate with an IoT hub using the MQTT protocol"; azure-iot-device-mqtt
// mqtt.ts).
const (
	propertyOutput      = "iothub-outputname"
	propertyRetain      = "mqtt-retain"
	propertyMessageType = "iothub-MessageType"
)

// messageTypeWill marks telemetry that is a device's last will.
const messageTypeWill = "Will"

// telemetry makes the message of a published payload and its property bag.
func telemetry(bag []property, payload []byte) (*amqp.Message, error) {
	m := &amqp.Message{
		Properties: &amqp.Properties{},
		Data:       [][]byte{payload},
	}
	for _, p := range bag {
		if err := setProperty(m, p); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func setProperty(m *amqp.Message, p property) error {
	system := strings.HasPrefix(p.key, systemPrefix)
	switch {
	case !system:
		setApplicationProperty(m, p)
		return nil
	case p.value == "":
		return nil // as good as not set
	}
	return setSystemProperty(m, p)
}

func setSystemProperty(m *amqp.Message, p property) error {
	props := m.Properties
	text := func() *string { s := p.value; return &s }
	switch p.key {
	case keyMessageID:
		props.MessageID = p.value
	case keyCorrelationID:
		props.CorrelationID = p.value
	case keyUserID:
		props.UserID = []byte(p.value)
	case keyTo:
		props.To = text()
	case keyContentType:
		props.ContentType = text()
	case keyContentEncoding:
		props.ContentEncoding = text()
	case keyExpiry:
		t, err := time.Parse(time.RFC3339, p.value)
		if err != nil {
			return fmt.Errorf("property %s is not a time in RFC 3339", keyExpiry)
		}
		props.AbsoluteExpiryTime = &t
	case keyComponent:
		setAnnotation(m, hub.AnnotationComponent, p.value)
	case keyInterface:
		setAnnotation(m, hub.AnnotationInterface, p.value)
	default:
		setApplicationProperty(m, p)
	}
	return nil
}

func setApplicationProperty(m *amqp.Message, p property) {
	key := p.key
	switch p.key {
	case keyCreationTime:
		key = hub.PropertyCreationTime
	case keySchema:
		key = hub.PropertySchema
	case keyOutput:
		key = propertyOutput
	case "$.cdid", "$.cmid", "$.diagid", "$.diagctx":
		// The connection's device and module are for an Edge hub to set, and
		// distributed tracing is not offered.
		return
	}
	var value any
	if !p.null {
		value = p.value
	}
	addApplicationProperty(m, key, value)
}

func addApplicationProperty(m *amqp.Message, key string, value any) {
	if m.ApplicationProperties == nil {
		m.ApplicationProperties = make(map[string]any)
	}
	m.ApplicationProperties[key] = value
}

func setAnnotation(m *amqp.Message, key, value string) {
	if m.Annotations == nil {
		m.Annotations = make(map[string]any)
	}
	m.Annotations[key] = value
}

// deviceboundBag is the property bag with which a cloud-to-device message is
// delivered. Lock token, sequence number and delivery count have no place in it
// (IoT Hub docs: "Communicate with an IoT hub using the MQTT protocol").
//
// System properties come first: amenzhinsky/iothub looks for the first "$." and
// drops what stands before it, and drops the message if there is none. For it
// $.to is always there.
func deviceboundBag(deviceID string, m *amqp.Message) []property {
	bag := systemProperties(deviceID, m.Properties)
	for _, key := range slices.Sorted(maps.Keys(m.ApplicationProperties)) {
		value := m.ApplicationProperties[key]
		bag = append(bag, property{key: key, value: hub.Text(value), null: value == nil})
	}
	return bag
}

func systemProperties(deviceID string, p *amqp.Properties) []property {
	if p == nil {
		p = &amqp.Properties{}
	}
	to := topicSlash + topicDevices + deviceID + "/messages/deviceBound"
	if p.To != nil && *p.To != "" {
		to = *p.To
	}
	var bag []property
	add := func(key, value string) {
		if value != "" {
			bag = append(bag, property{key: key, value: value})
		}
	}
	add(keyMessageID, hub.Text(p.MessageID))
	add(keyTo, to)
	add(keyCorrelationID, hub.Text(p.CorrelationID))
	add(keyUserID, string(p.UserID))
	add(keyContentType, deref(p.ContentType))
	add(keyContentEncoding, deref(p.ContentEncoding))
	add(keyExpiry, expiryText(p.AbsoluteExpiryTime))
	return bag
}

// topicSlash starts the address in $.to, which, unlike a topic, has one.
const topicSlash = "/"

// expiryText is RFC 3339, which amenzhinsky/iothub insists on.
func expiryText(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
