package hub

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// Identity is a device identity as the registry's REST API shows it. Fields
// that the hub sets are ignored in requests.
type Identity struct {
	DeviceID     string `json:"deviceId"`
	GenerationID string `json:"generationId"`
	// ETag is without quotes.
	ETag                       string          `json:"etag"`
	ConnectionState            ConnectionState `json:"connectionState"`
	Status                     Status          `json:"status"`
	StatusReason               *string         `json:"statusReason"`
	ConnectionStateUpdatedTime Time            `json:"connectionStateUpdatedTime"`
	StatusUpdatedTime          Time            `json:"statusUpdatedTime"`
	LastActivityTime           Time            `json:"lastActivityTime"`
	CloudToDeviceMessageCount  int             `json:"cloudToDeviceMessageCount"`
	Authentication             Authentication  `json:"authentication"`
	Capabilities               Capabilities    `json:"capabilities"`
	DeviceScope                string          `json:"deviceScope,omitempty"`
	ParentScopes               []string        `json:"parentScopes,omitempty"`
}

// Status is whether a device may connect.
type Status string

const (
	StatusEnabled  Status = "enabled"
	StatusDisabled Status = "disabled"
)

// ConnectionState is whether a device is connected.
type ConnectionState string

const (
	Connected    ConnectionState = "Connected"
	Disconnected ConnectionState = "Disconnected"
)

// Kinds of authentication of a device.
const (
	AuthSAS        = "sas"
	AuthSelfSigned = "selfSigned"
	AuthAuthority  = "certificateAuthority"
	AuthNone       = "none"
)

// Authentication is how a device proves who it is.
type Authentication struct {
	// Type is one of the Auth constants; empty means sas, or selfSigned if
	// there is a thumbprint.
	Type           string         `json:"type"`
	SymmetricKey   SymmetricKey   `json:"symmetricKey"`
	X509Thumbprint X509Thumbprint `json:"x509Thumbprint"`
}

// SymmetricKey holds two keys of 16 to 64 bytes in base64.
type SymmetricKey struct {
	PrimaryKey   string `json:"primaryKey"`
	SecondaryKey string `json:"secondaryKey"`
}

// X509Thumbprint holds the thumbprints of two self-signed certificates.
type X509Thumbprint struct {
	PrimaryThumbprint   *string `json:"primaryThumbprint"`
	SecondaryThumbprint *string `json:"secondaryThumbprint"`
}

// Capabilities of a device.
type Capabilities struct {
	IotEdge bool `json:"iotEdge"`
}

// Time is a time as the registry writes it: RFC 3339 in UTC with seven digits
// of fraction, and 0001-01-01T00:00:00Z for never.
type Time struct{ time.Time }

const timeFormat = "2006-01-02T15:04:05.0000000Z"

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte(`"0001-01-01T00:00:00Z"`), nil
	}
	return []byte(`"` + t.UTC().Format(timeFormat) + `"`), nil
}

// UnmarshalJSON implements json.Unmarshaler. The hub sets all times itself and
// SDKs send them back in formats of their own, so one that can't be read is not
// an error but zero.
func (t *Time) UnmarshalJSON(b []byte) error {
	t.Time = time.Time{}
	var s string
	if json.Unmarshal(b, &s) != nil {
		return nil
	}
	parsed, err := time.Parse(time.RFC3339, strings.TrimSuffix(s, "Z")+"Z")
	if err == nil {
		t.Time = parsed
	}
	return nil
}

// Limits of identities (IoT Hub docs: "Understand the identity registry").
const (
	maxIDLength     = 128
	maxReasonLength = 128
	minKeyBytes     = 16
	maxKeyBytes     = 64
)

// idCharacters are allowed in IDs beside letters and digits.
const idCharacters = "-:.+%_#*?!(),=@;$'"

// ValidID reports whether a device or message ID has 1 to 128 characters of the
// allowed set.
func ValidID(id string) bool {
	if id == "" || len(id) > maxIDLength {
		return false
	}
	for i := range len(id) {
		c := id[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && strings.IndexByte(idCharacters, c) < 0 {
			return false
		}
	}
	return true
}

// normalise checks what a caller may set and fills in defaults.
func (id *Identity) normalise() error {
	if !ValidID(id.DeviceID) {
		return refuse(CodeArgumentInvalid, "device ID %q must have 1 to %d characters: letters, digits and %s", id.DeviceID, maxIDLength, idCharacters)
	}
	switch Status(strings.ToLower(string(id.Status))) {
	case "", StatusEnabled:
		id.Status = StatusEnabled
	case StatusDisabled:
		id.Status = StatusDisabled
	default:
		return refuse(CodeArgumentInvalid, "status %q is neither enabled nor disabled", id.Status)
	}
	if r := id.StatusReason; r != nil && len(*r) > maxReasonLength {
		return refuse(CodeArgumentInvalid, "status reason has more than %d characters", maxReasonLength)
	}
	return id.Authentication.normalise()
}

func (a *Authentication) normalise() error {
	if a.Type == "" {
		a.Type = AuthSAS
		if a.X509Thumbprint.PrimaryThumbprint != nil {
			a.Type = AuthSelfSigned
		}
	}
	switch a.Type {
	case AuthSelfSigned, AuthAuthority, AuthNone:
		a.SymmetricKey = SymmetricKey{}
		return nil
	case AuthSAS:
	default:
		return refuse(CodeArgumentInvalid, "authentication type %q is unknown", a.Type)
	}
	a.X509Thumbprint = X509Thumbprint{}
	for _, key := range []*string{&a.SymmetricKey.PrimaryKey, &a.SymmetricKey.SecondaryKey} {
		if *key == "" {
			*key = newKey()
		}
		b, err := base64.StdEncoding.DecodeString(*key)
		if err != nil || len(b) < minKeyBytes || len(b) > maxKeyBytes {
			return refuse(CodeArgumentInvalid, "a symmetric key must be base64 of %d to %d bytes", minKeyBytes, maxKeyBytes)
		}
	}
	return nil
}

// keepKeys takes keys that an update leaves out from the identity before it.
func (a *Authentication) keepKeys(before Authentication) {
	if a.Type != "" && a.Type != before.Type {
		return
	}
	if a.SymmetricKey == (SymmetricKey{}) {
		a.SymmetricKey = before.SymmetricKey
	}
	if a.X509Thumbprint == (X509Thumbprint{}) {
		a.X509Thumbprint = before.X509Thumbprint
	}
}
