package servicebus

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/job"
)

// hubPrefix begins the names of the properties that IoT Hub stamps on what it routes to a queue or topic (IoT Hub docs,
// "Create and read IoT Hub messages"). They are the hub's, not the sender's, and don't travel on.
const hubPrefix = "iothub-"

// outgoing returns m in AMQP terms: azservicebus's plain message has no content encoding.
func outgoing(m job.Message) *azservicebus.AMQPAnnotatedMessage {
	p := &azservicebus.AMQPAnnotatedMessageProperties{
		ContentType: optional(m.ContentType), ContentEncoding: optional(m.ContentEncoding),
	}
	if m.ID != "" {
		p.MessageID = m.ID
	}
	if m.CorrelationID != "" {
		p.CorrelationID = m.CorrelationID
	}
	application := make(map[string]any)
	for name, value := range m.ApplicationProperties() {
		application[name] = value
	}
	return &azservicebus.AMQPAnnotatedMessage{
		Properties: p, ApplicationProperties: application,
		Body: azservicebus.AMQPAnnotatedMessageBody{Data: [][]byte{m.Body}},
	}
}

// incoming returns a received message and all its application properties as text. The sender is the one that the hub
// authenticated; what a message says of its sender counts only where no hub has stamped it.
func incoming(in *azservicebus.ReceivedMessage) (job.Message, map[string]string) {
	properties := make(map[string]string, len(in.ApplicationProperties))
	own := make(map[string]string, len(in.ApplicationProperties))
	for name, value := range in.ApplicationProperties {
		properties[name] = text(value)
		if !strings.HasPrefix(name, hubPrefix) {
			own[name] = properties[name]
		}
	}
	m := job.Message{ID: in.MessageID, Body: body(in)}
	m.SetApplicationProperties(own)
	if from := properties[job.PropertyDeviceID]; from != "" {
		m.From = from
	}
	if in.CorrelationID != nil {
		m.CorrelationID = *in.CorrelationID
	}
	if in.ContentType != nil {
		m.ContentType = *in.ContentType
	}
	if in.EnqueuedTime != nil {
		m.SentAt = in.EnqueuedTime.UTC()
	}
	if raw := in.RawAMQPMessage; raw != nil && raw.Properties != nil && raw.Properties.ContentEncoding != nil {
		m.ContentEncoding = *raw.Properties.ContentEncoding
	}
	return m, properties
}

// body returns the payload in whatever section of AMQP the sender put it (AMQP 1.0 §3.2.5-§3.2.8).
func body(in *azservicebus.ReceivedMessage) []byte {
	if in.Body != nil || in.RawAMQPMessage == nil {
		return in.Body
	}
	if parts := in.RawAMQPMessage.Body.Data; len(parts) > 0 {
		return bytes.Join(parts, nil)
	}
	switch v := in.RawAMQPMessage.Body.Value.(type) {
	case string:
		return []byte(v)
	case []byte:
		return v
	}
	return nil
}

func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return fmt.Sprint(v)
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
