// Package event is what the consoles show: one [Event] for everything that happens, printed as a line for people or as a
// JSON object for programs.
package event

import (
	"encoding/base64"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// Kind says what happened, and with that which field of an [Event] is set.
type Kind string

// The kinds of events. Those of the device console come first, those of the cloud console last.
const (
	Connected    Kind = "connected"    // the connection is up; Host is set
	Disconnected Kind = "disconnected" // the connection is down, or could not be made again; Error is set
	Sent         Kind = "sent"         // the hub confirmed a device-to-cloud message; Message is set
	Received     Kind = "received"     // a cloud-to-device message came; Message is set
	Called       Kind = "method"       // a direct method was called and answered; Method is set
	Deregistered Kind = "deregistered" // the device identity is gone
	Failed       Kind = "error"        // something went wrong that does not end the console; Error is set
	Observed     Kind = "message"      // a device sent a message to the hub; Message is set
	Listed       Kind = "device"       // one device identity of the list; Device is set
	Counted      Kind = "statistics"   // counters of the hub; Statistics is set
)

// Event is one thing that happened. Fields that do not apply to its kind are empty and left out of the JSON.
type Event struct {
	// Time is when the console saw it, UTC.
	Time time.Time `json:"time"`
	Kind Kind      `json:"event"`
	// DeviceID is the device concerned: the console's own, or the sender of an observed message.
	DeviceID   string      `json:"deviceId,omitempty"`
	Host       string      `json:"host,omitempty"`
	Message    *Message    `json:"message,omitempty"`
	Method     *Method     `json:"method,omitempty"`
	Device     *Device     `json:"device,omitempty"`
	Statistics *Statistics `json:"statistics,omitempty"`
	Error      string      `json:"error,omitempty"`
}

// Message is a device-to-cloud or cloud-to-device message.
type Message struct {
	ID            string `json:"messageId,omitempty"`
	CorrelationID string `json:"correlationId,omitempty"`
	Body          Body   `json:"body"`
	// Properties are the application properties.
	Properties map[string]any `json:"properties,omitempty"`
	// System holds what the hub and the protocol add, by the names that they have on the wire.
	System map[string]any `json:"systemProperties,omitempty"`
}

// Body is a message's body as it was on the wire. It is written as text where it is UTF-8, and else as "base64:" followed by
// its base64 form, so that nothing is lost in either output.
type Body []byte

// String returns the text form described at [Body].
func (b Body) String() string {
	if utf8.Valid(b) {
		return string(b)
	}
	return "base64:" + base64.StdEncoding.EncodeToString(b)
}

// MarshalJSON writes the text form described at [Body] as a JSON string.
func (b Body) MarshalJSON() ([]byte, error) { return json.Marshal(b.String()) }

// Method is a direct method call and its answer.
type Method struct {
	Name string `json:"name"`
	// Payload is the caller's JSON; null if the call had none.
	Payload json.RawMessage `json:"payload"`
	// Status is the status code of the answer, 200 for success.
	Status int `json:"status"`
}

// Device is a device identity without its keys.
type Device struct {
	DeviceID        string `json:"deviceId"`
	ConnectionState string `json:"connectionState"`
	Status          string `json:"status"`
	// LastActivity is zero, and left out, for a device that never was active.
	LastActivity time.Time `json:"lastActivityTime,omitzero"`
	// Waiting is the number of cloud-to-device messages in the device's queue.
	Waiting int `json:"cloudToDeviceMessageCount"`
}

// Statistics are the hub's counters.
type Statistics struct {
	Connected int `json:"connectedDeviceCount"`
	Total     int `json:"totalDeviceCount"`
	Enabled   int `json:"enabledDeviceCount"`
	Disabled  int `json:"disabledDeviceCount"`
}
