package iothub

import (
	"encoding/json"
	"strings"
	"time"
)

// Device is a device identity and what the hub knows of it. The hub refreshes connection state and activity with a
// delay of up to some minutes.
type Device struct {
	ID              string
	Enabled         bool
	StatusReason    string // why it was disabled, as an operator wrote it
	Connected       bool
	LastActivityAt  time.Time // of a connection, a message, ...; zero: never
	PendingMessages int       // cloud-to-device messages that wait for it
}

// deviceJSON is the part of a registry entry or a twin that both have.
type deviceJSON struct {
	DeviceID         string    `json:"deviceId"`
	Status           string    `json:"status"`
	StatusReason     string    `json:"statusReason"`
	ConnectionState  string    `json:"connectionState"`
	LastActivityTime timestamp `json:"lastActivityTime"`
	Pending          int       `json:"cloudToDeviceMessageCount"`
	Authentication   struct {
		SymmetricKey struct {
			PrimaryKey string `json:"primaryKey"`
		} `json:"symmetricKey"`
	} `json:"authentication"`
}

func (d deviceJSON) device() Device {
	return Device{
		ID:              d.DeviceID,
		Enabled:         strings.EqualFold(d.Status, "enabled"),
		StatusReason:    d.StatusReason,
		Connected:       strings.EqualFold(d.ConnectionState, "connected"),
		LastActivityAt:  time.Time(d.LastActivityTime),
		PendingMessages: d.Pending,
	}
}

// timestamp is a time of the service API: RFC 3339, sometimes without a zone, then UTC. The year 1 stands for never.
type timestamp time.Time

// UnmarshalJSON reads a time; what is none counts as never, as no call should fail for it.
func (t *timestamp) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) != nil {
		return nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if at, err := time.Parse(layout, s); err == nil && at.Year() > 1 {
			*t = timestamp(at.UTC())
			return nil
		}
	}
	return nil
}
