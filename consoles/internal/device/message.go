package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/amenzhinsky/iothub/common"
)

// Limits of IoT Hub (docs: "IoT Hub quotas and throttling", "Understand the identity registry").
const (
	// maxMessage bounds a device-to-cloud message with its properties, in bytes. The hub answers a larger one by closing
	// the connection, after which the MQTT client would send it again, for ever.
	maxMessage  = 256 << 10
	maxDeviceID = 128
	// deviceIDSymbols may stand in a device ID beside ASCII letters and digits.
	deviceIDSymbols = "-:.+%_#*?!(),=@$'"
)

// Keys of the system properties in the property bag of an MQTT topic (IoT Hub docs: "Communicate with an IoT hub using the
// MQTT protocol"). The library knows the other ones, but not these.
const (
	contentTypeKey     = "$.ct"
	contentEncodingKey = "$.ce"
)

// ErrTooLarge is the kind of error that says that a message exceeds what a hub accepts.
var ErrTooLarge = errors.New("message is larger than 256 KiB, properties included")

// Outgoing is a device-to-cloud message.
type Outgoing struct {
	// ID and CorrelationID are optional. With an ID whoever gets the message can recognise a repeat and confirm it.
	ID, CorrelationID string
	// Body is sent as it is; JSON objects are marked as such, other text as plain text.
	Body []byte
	// Properties are the application properties.
	Properties map[string]string
}

// libraryMessage brings the message into the library's form. The library writes every property as it is into the topic,
// which is how the content type and encoding get there.
func (m Outgoing) libraryMessage() (*common.Message, error) {
	size := len(m.Body) + len(m.ID) + len(m.CorrelationID)
	properties := make(map[string]string, len(m.Properties)+2)
	for name, value := range m.Properties {
		if err := CheckProperty(name); err != nil {
			return nil, err
		}
		properties[name] = value
		size += len(name) + len(value)
	}
	if size > maxMessage {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrTooLarge, size)
	}
	if utf8.Valid(m.Body) {
		properties[contentTypeKey] = contentType(m.Body)
		properties[contentEncodingKey] = "utf-8"
	}
	return &common.Message{MessageID: m.ID, CorrelationID: m.CorrelationID, Payload: m.Body, Properties: properties}, nil
}

// contentType tells JSON objects, which the hub's routing queries can look into, from other text.
func contentType(body []byte) string {
	var object map[string]any
	if json.Unmarshal(body, &object) == nil && object != nil {
		return "application/json"
	}
	return "text/plain"
}

// CheckProperty says whether name can be that of an application property: those of the hub are not for devices to set.
func CheckProperty(name string) error {
	if name == "" || strings.HasPrefix(name, "$.") || strings.HasPrefix(name, "iothub-") {
		return fmt.Errorf("property name %q is empty or reserved for the hub", name)
	}
	return nil
}

// CheckID says whether the text can be a device ID.
func CheckID(id string) error {
	allowed := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(deviceIDSymbols, r)
	}
	invalid := func(r rune) bool { return !allowed(r) }
	// Dots alone would change the path of the manager's URL.
	if id == "" || id == "." || id == ".." || len(id) > maxDeviceID || strings.ContainsFunc(id, invalid) {
		return fmt.Errorf("device ID %q must have 1 to %d ASCII letters, digits or %s", id, maxDeviceID, deviceIDSymbols)
	}
	return nil
}

// PairName returns the part that a pair of devices has in common: "foo" for "device-scheduler::foo" and for
// "device-solver::foo"; nothing if the ID has no "::".
func PairName(id string) string {
	_, name, _ := strings.Cut(id, "::")
	return name
}
