package broker

import (
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// Mode says when a queue forgets a message that it hands out.
type Mode uint8

const (
	// PeekLock locks the message until it is settled or the lock expires.
	PeekLock Mode = iota
	// ReceiveAndDelete deletes the message as it is handed out.
	ReceiveAndDelete
)

// State is where a message is in its life. The values are those of the
// annotation x-opt-message-state (azservicebus v1.11 message.go).
type State int

const (
	Active State = iota
	Deferred
	Scheduled
)

// Delivery is a message as a queue hands it out.
type Delivery struct {
	// Message must not be modified: see the package comment. Header and
	// annotations are those of the sender.
	Message *amqp.Message
	// SequenceNumber is the message's place in this queue: 1, 2, ...
	SequenceNumber int64
	// EnqueuedSequenceNumber is its place in the entity that it was sent to:
	// another one for subscriptions and dead-letter queues.
	EnqueuedSequenceNumber int64
	// EnqueuedTime is when the queue took it; for a scheduled message, the time
	// that it is scheduled for, and then that of its arrival.
	EnqueuedTime time.Time
	// ScheduledTime is the time that the sender asked for, or zero.
	ScheduledTime time.Time
	// ExpiresAt is the end of the time to live, or zero for never.
	ExpiresAt time.Time
	// DeliveryCount is the number of earlier deliveries that count.
	DeliveryCount uint32
	// State is Active except for messages seen by Peek and ReceiveDeferred.
	State State
	// LockToken settles the message. Zero without a lock.
	LockToken amqp.UUID
	// LockedUntil is zero without a lock and for a lock that is held until the
	// consumer closes.
	LockedUntil time.Time
	// DeadLetterSource names the entity where the message was dead-lettered,
	// or is empty.
	DeadLetterSource string
}

// Action is what a receiver decides about a locked message.
type Action uint8

const (
	// Complete removes the message: it has been dealt with.
	Complete Action = iota
	// Abandon makes it available again and counts the delivery.
	Abandon
	// Release makes it available again without counting.
	Release
	// DeadLetter moves it to the dead-letter queue.
	DeadLetter
	// Defer sets it aside, to be received by sequence number.
	Defer
)

// Settlement ends the lock of a message.
type Settlement struct {
	Action Action
	// Reason and Description become the application properties
	// DeadLetterReason and DeadLetterErrorDescription; for DeadLetter only.
	Reason, Description string
	// Properties are merged into the application properties; for Abandon,
	// DeadLetter and Defer.
	Properties map[string]any
}

// Cause says why a message left its queue.
type Cause uint8

const (
	// Completed: the receiver was done with it.
	Completed Cause = iota
	// Expired: its time to live ended.
	Expired
	// DeliveryCountExceeded: it was delivered as often as it may be.
	DeliveryCountExceeded
	// Rejected: the receiver dead-lettered it.
	Rejected
	// Purged: the queue was purged.
	Purged
)

// Outcome is the end of a message in its queue.
type Outcome struct {
	Cause Cause
	// Reason and Description are the receiver's; for Rejected only.
	Reason, Description string
	Delivery            Delivery
}

// Reasons that the broker gives for dead-lettering (Service Bus docs: "Overview
// of Service Bus dead-letter queues").
const (
	ReasonExpired          = "TTLExpiredException"
	ReasonDeliveryExceeded = "MaxDeliveryCountExceeded"
)

// Descriptions beside these reasons, as on the same page.
const (
	descriptionExpired          = "The message expired and was dead lettered."
	descriptionDeliveryExceeded = "Message could not be consumed after %d delivery attempts."
)

// Application properties of a dead-lettered message (azservicebus v1.11
// message.go).
const (
	PropertyDeadLetterReason      = "DeadLetterReason"
	PropertyDeadLetterDescription = "DeadLetterErrorDescription"
)
