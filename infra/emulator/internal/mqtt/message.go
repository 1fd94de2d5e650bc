package mqtt

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
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

// Names under which a message carries what has no place in AMQP's properties.
const (
	propertyCreationTime = "iothub-creation-time-utc"
	propertySchema       = "iothub-message-schema"
	propertyOutput       = "iothub-outputname"
	propertyRetain       = "mqtt-retain"
	propertyMessageType  = "iothub-MessageType"
	annotationSubject    = "dt-subject"
	annotationInterface  = "iothub-interface-id"
	annotationModel      = "dt-dataschema"
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
		setAnnotation(m, annotationSubject, p.value)
	case keyInterface:
		setAnnotation(m, annotationInterface, p.value)
	default:
		setApplicationProperty(m, p)
	}
	return nil
}

func setApplicationProperty(m *amqp.Message, p property) {
	key := p.key
	switch p.key {
	case keyCreationTime:
		key = propertyCreationTime
	case keySchema:
		key = propertySchema
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
		bag = append(bag, property{key: key, value: text(value), null: value == nil})
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
	add(keyMessageID, text(p.MessageID))
	add(keyTo, to)
	add(keyCorrelationID, text(p.CorrelationID))
	add(keyUserID, string(p.UserID))
	add(keyContentType, deref(p.ContentType))
	add(keyContentEncoding, deref(p.ContentEncoding))
	add(keyExpiry, expiryText(p.AbsoluteExpiryTime))
	return bag
}

// topicSlash starts the address in $.to, which, unlike a topic, has one.
const topicSlash = "/"

// expiryText is RFC 3339, which amenzhinsky/iothub insists on. It sends Go's
// zero time for no expiry, so times before 1970 count as unset.
func expiryText(t *time.Time) string {
	if t == nil || t.Unix() <= 0 {
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

// text writes an AMQP value as a property of a topic, where all values are text.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case amqp.Symbol:
		return string(v)
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return fmt.Sprint(v) // numbers, booleans, and amqp.UUID by its String
}
