package servicebus

import (
	"context"
	"maps"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
)

// Names of properties and annotations that the service gives to messages (azservicebus v1.11, message.go).
const (
	annotationPrefix       = "x-opt-"
	annotationPartitionKey = "x-opt-partition-key"

	propertyDeadLetterReason      = "DeadLetterReason"
	propertyDeadLetterDescription = "DeadLetterErrorDescription"
)

// Change says in what a copy differs from its original.
type Change struct {
	MessageID string            // empty: the original's
	Set       map[string]string // application properties, by name
	Unset     []string          // names of application properties that the copy has not
}

// SendCopy sends a copy of a message that was received or browsed, and returns when the entity has stored it. The copy
// has the body, the properties with their types and the time to live of the original. It has nothing that the service
// has stamped: no reason for which it was dead-lettered, no count of deliveries, no schedule, and no end of life, which
// begins anew. The errors are those of Send.
func (s *Sender) SendCopy(ctx context.Context, r *Received, change Change) error {
	ctx, cancel := context.WithTimeout(ctx, s.client.timeout)
	defer cancel()
	err := s.sdk.SendAMQPAnnotatedMessage(ctx, copyOf(r.sdk, change), nil)
	return classify("send a copy of message "+r.Message.ID+" to "+s.entity, err)
}

func copyOf(in *azservicebus.ReceivedMessage, change Change) *azservicebus.AMQPAnnotatedMessage {
	raw := in.RawAMQPMessage
	if raw == nil {
		raw = &azservicebus.AMQPAnnotatedMessage{}
	}
	out := &azservicebus.AMQPAnnotatedMessage{
		ApplicationProperties: copyApplicationProperties(raw.ApplicationProperties, change),
		Body:                  raw.Body,
		MessageAnnotations:    sendersAnnotations(raw.MessageAnnotations),
		Properties:            &azservicebus.AMQPAnnotatedMessageProperties{},
	}
	if b := &out.Body; len(b.Data) == 0 && len(b.Sequence) == 0 && b.Value == nil {
		b.Data = [][]byte{{}} // a message has a body, if an empty one (AMQP 1.0 §3.2)
	}
	if raw.Properties != nil {
		*out.Properties = *raw.Properties
		out.Properties.AbsoluteExpiryTime, out.Properties.CreationTime = nil, nil
	}
	if change.MessageID != "" {
		out.Properties.MessageID = change.MessageID
	}
	if h := raw.Header; h != nil {
		out.Header = &azservicebus.AMQPAnnotatedMessageHeader{Durable: h.Durable, Priority: h.Priority, TTL: h.TTL}
	}
	return out
}

func copyApplicationProperties(in map[string]any, change Change) map[string]any {
	out := maps.Clone(in)
	if out == nil {
		out = make(map[string]any)
	}
	delete(out, propertyDeadLetterReason)
	delete(out, propertyDeadLetterDescription)
	for _, name := range change.Unset {
		delete(out, name)
	}
	for name, value := range change.Set {
		out[name] = value
	}
	return out
}

// sendersAnnotations leaves out those of the service, but for the one of them that senders set.
func sendersAnnotations(in map[any]any) map[any]any {
	out := make(map[any]any)
	for name, value := range in {
		text, ok := name.(string)
		if ok && (!strings.HasPrefix(text, annotationPrefix) || text == annotationPartitionKey && value != nil) {
			out[name] = value
		}
	}
	return out
}
