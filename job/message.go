package job

import (
	"encoding/base64"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// Kind tells what the body of a message is.
type Kind string

// The kinds of message. A message of KindNone is carried unread: any body is fine.
const (
	KindNone    Kind = ""
	KindJob     Kind = "job"
	KindUpdate  Kind = "update"
	KindReceipt Kind = "receipt"
)

// Confirmed reports whether the reader answers a message of this kind with a read receipt.
func (k Kind) Confirmed() bool { return k == KindJob || k == KindUpdate }

// Content type and encoding of every message with a JSON body.
const (
	ContentTypeJSON     = "application/json"
	ContentEncodingUTF8 = "utf-8"
)

// Names of application properties on the wire. All are optional for senders that don't know them.
const (
	PropertyKind        = "kind"
	PropertySequence    = "sequence"
	PropertyToDevice    = "to-device"
	PropertyFromDevice  = "from-device"
	PropertyTraceparent = "traceparent"

	// PropertyDeviceID is stamped by IoT Hub on routed messages: the authenticated sender
	// (IoT Hub docs, "Create and read IoT Hub messages", system properties).
	PropertyDeviceID = "iothub-connection-device-id"

	// PropertyUndeliverableReason and PropertyUndeliverableDescription are set on a message that went back to the
	// queue because only the dispatch could find out that it can't be delivered. The router dead-letters it then.
	PropertyUndeliverableReason      = "undeliverable-reason"
	PropertyUndeliverableDescription = "undeliverable-description"

	// PropertyResubmitted is set on the copy of a dead letter that an operator has put back: the dead letter's sequence
	// number. A workflow that has refused the message before takes it up again then.
	PropertyResubmitted = "resubmitted"

	// PropertyOriginalID is set on a copy that had to get a message ID of its own: the ID of the message that was first.
	PropertyOriginalID = "original-message-id"

	// Optional settings that travel with a job on the topic. Durations are in Go's form ("1s", "10m").
	PropertyStepTime       = "step-time"
	PropertyStepTimeout    = "step-timeout"
	PropertyStepRetries    = "step-retries"
	PropertyReceiptTimeout = "receipt-timeout"
	PropertyDeadline       = "deadline"      // RFC 3339
	PropertyAcceptBefore   = "accept-before" // RFC 3339
)

// Reason says why a message was dead-lettered.
type Reason string

// The reasons for which the router dead-letters a message.
const (
	ReasonDeviceIDNotFound    Reason = "DeviceIdNotFound"    // no device ID, or no "::" in it
	ReasonDeviceNotFound      Reason = "DeviceNotFound"      // no such target identity
	ReasonDeviceMessageFailed Reason = "DeviceMessageFailed" // anything else that is permanent
	ReasonInvalidMessage      Reason = "InvalidMessage"      // the body is not what its kind says
)

// Message is one message between two devices, as every hop of the pipeline carries it.
type Message struct {
	ID              string            `json:"id"`
	CorrelationID   string            `json:"correlationId,omitempty"` // the job ID
	Kind            Kind              `json:"kind,omitempty"`
	Sequence        int               `json:"sequence,omitempty"` // 1, 2, ... per sender and job; 0: none, order of arrival
	From            string            `json:"from,omitempty"`     // device ID of the sender
	To              string            `json:"to,omitempty"`       // device ID of the target; empty: the sender's counterpart
	ContentType     string            `json:"contentType,omitempty"`
	ContentEncoding string            `json:"contentEncoding,omitempty"`
	Traceparent     string            `json:"traceparent,omitempty"`
	Properties      map[string]string `json:"properties,omitempty"` // application properties other than those above
	Body            Body              `json:"body,omitempty"`
	SentAt          time.Time         `json:"sentAt,omitzero"` // when the hub or the topic took it; zero when unknown
}

// Target returns the device that m goes to: the one it names, else its sender's counterpart.
func (m Message) Target() (string, bool) {
	if m.To != "" {
		return m.To, true
	}
	return Counterpart(m.From)
}

// Size returns the bytes of m that IoT Hub counts: body, system property values, application property names and values.
func (m Message) Size() int {
	n := len(m.Body) + len(m.ID) + len(m.CorrelationID) + len(m.ContentType) + len(m.ContentEncoding)
	for k, v := range m.ApplicationProperties() {
		n += len(k) + len(v)
	}
	return n
}

// Body is the bytes of a message. As JSON, and so in a workflow's history, it is text where it can be read as text.
type Body []byte

type binaryBody struct {
	Base64 string `json:"base64"`
}

// MarshalJSON writes valid UTF-8 as a JSON string, anything else as {"base64": "..."}.
func (b Body) MarshalJSON() ([]byte, error) {
	if utf8.Valid(b) {
		return json.Marshal(string(b))
	}
	return json.Marshal(binaryBody{base64.StdEncoding.EncodeToString(b)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (b *Body) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err == nil {
		*b = Body(text)
		return nil
	}
	var binary binaryBody
	if err := json.Unmarshal(data, &binary); err != nil {
		return invalid("a message body is neither text nor base64: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(binary.Base64)
	if err != nil {
		return invalid("a message body is not base64: %w", err)
	}
	*b = raw
	return nil
}
