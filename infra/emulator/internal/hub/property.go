package hub

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// Names that the hub stamps on device-to-cloud messages (IoT Hub docs: "Create
// and read IoT Hub messages"). A queue or topic gets them as application
// properties and the built-in endpoint as message annotations.
const (
	PropertyDeviceID      = "iothub-connection-device-id"
	PropertyModuleID      = "iothub-connection-module-id"
	PropertyGenerationID  = "iothub-connection-auth-generation-id"
	PropertyAuthMethod    = "iothub-connection-auth-method"
	PropertyEnqueuedTime  = "iothub-enqueuedtime"
	PropertyMessageSource = "iothub-message-source"

	sourceTelemetry = "Telemetry"
)

// Application properties in which a device says what has no place among AMQP's
// own (same page; azure-iot-device-mqtt mqtt.ts).
const (
	PropertyCreationTime = "iothub-creation-time-utc"
	PropertySchema       = "iothub-message-schema"
)

// Annotations of a device's messages, which go the way of the stamps: the
// component and the interface that a message is from (azure-iot-sdk-csharp,
// AmqpIotMessageConverter.cs), and the model that the device said it implements
// when it connected (IoT Hub docs: "IoT Plug and Play device developer guide").
const (
	AnnotationComponent = "dt-subject"
	AnnotationInterface = "iothub-interface-id"
	AnnotationModel     = "dt-dataschema"
)

// reserved tells the application properties that only the hub may set.
func reserved(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "iothub-connection-") || name == PropertyEnqueuedTime || name == PropertyMessageSource
}

// Text writes an AMQP value for protocols whose properties are text: topics of
// MQTT, headers of HTTP.
func Text(v any) string {
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
