package hub

import (
	"bytes"
	"fmt"
	"math"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/consoles/internal/event"
)

// deviceIDAnnotation holds the sender that the hub authenticated (IoT Hub docs: "Create and read IoT Hub messages").
const deviceIDAnnotation = "iothub-connection-device-id"

// observed takes a message of the event stream apart. The library's own conversion knows a fixed set of properties, mixes
// application properties and annotations, and panics on message IDs that are no strings.
func observed(m *amqp.Message) (deviceID string, shown event.Message) {
	shown = event.Message{Body: body(m), Properties: map[string]any{}, System: map[string]any{}}
	for name, value := range m.ApplicationProperties {
		shown.Properties[name] = plain(value)
	}
	for name, value := range m.Annotations {
		shown.System[fmt.Sprint(name)] = plain(value)
	}
	if m.Properties != nil {
		addProperties(shown.System, m.Properties)
	}
	shown.ID, _ = shown.System["message-id"].(string)
	shown.CorrelationID, _ = shown.System["correlation-id"].(string)
	deviceID, _ = shown.System[deviceIDAnnotation].(string)
	return deviceID, shown
}

// addProperties adds the properties section by the names of AMQP 1.0 §3.2.4.
func addProperties(system map[string]any, p *amqp.MessageProperties) {
	if p.MessageID != nil {
		system["message-id"] = fmt.Sprint(p.MessageID)
	}
	if p.CorrelationID != nil {
		system["correlation-id"] = fmt.Sprint(p.CorrelationID)
	}
	if len(p.UserID) > 0 {
		system["user-id"] = event.Body(p.UserID).String()
	}
	for name, value := range map[string]*string{
		"to": p.To, "subject": p.Subject, "reply-to": p.ReplyTo, "content-type": p.ContentType,
		"content-encoding": p.ContentEncoding, "group-id": p.GroupID, "reply-to-group-id": p.ReplyToGroupID,
	} {
		if value != nil {
			system[name] = *value
		}
	}
	for name, value := range map[string]*time.Time{
		"absolute-expiry-time": p.AbsoluteExpiryTime, "creation-time": p.CreationTime,
	} {
		if value != nil {
			system[name] = *value
		}
	}
	if p.GroupSequence != nil {
		system["group-sequence"] = *p.GroupSequence
	}
}

// body returns the data sections, which devices' messages have, or else the text of the value section.
func body(m *amqp.Message) event.Body {
	if m.Value == nil {
		return bytes.Join(m.Data, nil)
	}
	if b, ok := m.Value.([]byte); ok {
		return b
	}
	return event.Body(fmt.Sprint(m.Value))
}

// plain turns an AMQP value into one that JSON can express.
func plain(value any) any {
	switch v := value.(type) {
	case nil, string, bool, int8, int16, int32, int64, uint8, uint16, uint32, uint64, time.Time:
		return v
	case []byte:
		return event.Body(v).String()
	case float64:
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			return v
		}
	}
	return fmt.Sprint(value)
}
