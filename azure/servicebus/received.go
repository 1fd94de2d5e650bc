package servicebus

import (
	"fmt"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/job"
)

// Received is a message as the service has given it out, locked or not.
type Received struct {
	Message        job.Message
	SequenceNumber int64
	EnqueuedAt     time.Time         // when it was first stored; a dead-letter queue keeps that time
	DeliveryCount  int               // 1 for the first delivery
	Properties     map[string]string // all application properties, those of the hub included

	// OriginalNumber is the sequence number that the message had where it was first stored. It differs from
	// SequenceNumber where a message gets a new number on its way into the dead-letter queue.
	OriginalNumber int64

	DeadLetterReason      string // set in a dead-letter queue
	DeadLetterDescription string

	sdk *azservicebus.ReceivedMessage
}

func received(in *azservicebus.ReceivedMessage) Received {
	r := Received{
		DeliveryCount: int(in.DeliveryCount), SequenceNumber: valueOf(in.SequenceNumber), OriginalNumber: valueOf(in.EnqueuedSequenceNumber),
		DeadLetterReason: valueOf(in.DeadLetterReason), DeadLetterDescription: valueOf(in.DeadLetterErrorDescription), sdk: in,
	}
	if r.OriginalNumber == 0 {
		r.OriginalNumber = r.SequenceNumber
	}
	r.Message, r.Properties = incoming(in)
	r.EnqueuedAt = r.Message.SentAt
	return r
}

// SystemProperties returns the properties that AMQP has names for (AMQP 1.0 §3.2.4), those that are set, as text.
func (r *Received) SystemProperties() map[string]string {
	all := make(map[string]string)
	if r.sdk.RawAMQPMessage == nil || r.sdk.RawAMQPMessage.Properties == nil {
		return all
	}
	p := r.sdk.RawAMQPMessage.Properties
	for name, value := range map[string]any{"message-id": p.MessageID, "correlation-id": p.CorrelationID} {
		if value != nil {
			all[name] = text(value)
		}
	}
	for name, value := range map[string]*string{
		"content-type": p.ContentType, "content-encoding": p.ContentEncoding, "group-id": p.GroupID, "reply-to": p.ReplyTo,
		"reply-to-group-id": p.ReplyToGroupID, "subject": p.Subject, "to": p.To,
	} {
		if value != nil {
			all[name] = *value
		}
	}
	for name, value := range map[string]*time.Time{"absolute-expiry-time": p.AbsoluteExpiryTime, "creation-time": p.CreationTime} {
		if value != nil {
			all[name] = value.UTC().Format(time.RFC3339Nano)
		}
	}
	if len(p.UserID) > 0 {
		all["user-id"] = fmt.Sprintf("%q", p.UserID)
	}
	return all
}

func valueOf[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
