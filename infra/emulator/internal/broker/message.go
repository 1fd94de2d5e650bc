package broker

import (
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// annotationScheduled asks for a later time of arrival (azservicebus v1.11
// message.go).
const annotationScheduled = "x-opt-scheduled-enqueue-time"

// MessageSize returns how many bytes of a message count against limits: the
// body, and names and values of all properties and annotations. It is smaller
// than the encoded message by the encoding's own bytes.
func MessageSize(m *amqp.Message) int {
	n := mapSize(m.Annotations) + mapSize(m.ApplicationProperties)
	for _, d := range m.Data {
		n += len(d)
	}
	for _, s := range m.Sequence {
		n += valueSize(s)
	}
	if m.HasValue {
		n += valueSize(m.Value)
	}
	if m.Properties != nil {
		n += propertiesSize(m.Properties)
	}
	return n
}

// maxProperties bounds the application properties and the annotations of a
// message. The codec reads maps of 32,768 entries at most, and a hub, a
// dead-letter queue and a receiver add some of their own: a message that could
// be stored and never be read again would keep the emulator from starting.
const maxProperties = 16384

func checkProperties(m *amqp.Message) error {
	if n := max(len(m.ApplicationProperties), len(m.Annotations)); n > maxProperties {
		return fmt.Errorf("%w: it has %d properties of at most %d", ErrTooLarge, n, maxProperties)
	}
	return nil
}

// identify gives a message ID to each message that has none, as Service Bus does
// (azure-service-bus-java, issue 69). The SDK for JavaScript relies on it: it can't
// settle a message without one. What the messages share with others stays as it is.
func identify(msgs []*amqp.Message) {
	for _, m := range msgs {
		var p amqp.Properties
		if m.Properties != nil {
			p = *m.Properties
		}
		if p.MessageID == nil || p.MessageID == "" {
			id := uuid.New()
			p.MessageID = hex.EncodeToString(id[:])
			m.Properties = &p
		}
	}
}

func propertiesSize(p *amqp.Properties) int {
	n := valueSize(p.MessageID) + valueSize(p.CorrelationID) + len(p.UserID)
	for _, s := range []*string{p.To, p.Subject, p.ReplyTo, p.ContentType, p.ContentEncoding, p.GroupID, p.ReplyToGroupID} {
		if s != nil {
			n += len(*s)
		}
	}
	return n
}

func mapSize(m map[string]any) int {
	n := 0
	for k, v := range m {
		n += len(k) + valueSize(v)
	}
	return n
}

// valueSize takes eight bytes for everything that has no length of its own.
func valueSize(v any) int {
	switch v := v.(type) {
	case nil:
		return 0
	case string:
		return len(v)
	case amqp.Symbol:
		return len(v)
	case []byte:
		return len(v)
	case map[string]any:
		return mapSize(v)
	case []any:
		return eachSize(v)
	case map[any]any:
		n := 0
		for k, e := range v {
			n += valueSize(k) + valueSize(e)
		}
		return n
	case amqp.Described:
		return valueSize(v.Descriptor) + valueSize(v.Value)
	}
	return arraySize(v)
}

func eachSize[T any](list []T) int {
	n := 0
	for _, e := range list {
		n += valueSize(e)
	}
	return n
}

// arraySize is the size of an array, whose elements are all of one type. Nothing
// else comes here that has a length of its own.
func arraySize(v any) int {
	switch v := v.(type) {
	case []string:
		return eachSize(v)
	case []amqp.Symbol:
		return eachSize(v)
	case [][]byte:
		return eachSize(v)
	case [][]any:
		return eachSize(v)
	case []map[any]any:
		return eachSize(v)
	case []time.Time:
		return 8 * len(v)
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice {
		return r.Len() * int(r.Type().Elem().Size())
	}
	return 8
}

// messageID returns the message ID as text, or an empty string.
func messageID(m *amqp.Message) string {
	if m.Properties == nil {
		return ""
	}
	switch id := m.Properties.MessageID.(type) {
	case nil:
		return ""
	case string:
		return id
	default:
		return fmt.Sprint(id)
	}
}

// scheduledTime returns the time of arrival that the sender asked for, or zero.
func scheduledTime(m *amqp.Message) time.Time {
	t, _ := m.Annotations[annotationScheduled].(time.Time)
	return t
}

// withProperties returns a copy of the message that has more application
// properties and shares everything else.
func withProperties(m *amqp.Message, more map[string]any) *amqp.Message {
	if len(more) == 0 {
		return m
	}
	c := *m
	c.ApplicationProperties = maps.Clone(m.ApplicationProperties)
	if c.ApplicationProperties == nil {
		c.ApplicationProperties = make(map[string]any, len(more))
	}
	maps.Copy(c.ApplicationProperties, more)
	return &c
}
