package hub

import (
	"cmp"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
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

	// Of a module, whose identity is a device's with fewer fields in use.
	moduleID  string
	managedBy *string
}

// Target returns the address of the identity.
func (id Identity) Target() Target { return Target{DeviceID: id.DeviceID, ModuleID: id.moduleID} }

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

var authTypes = []string{AuthSAS, AuthSelfSigned, AuthAuthority, AuthNone}

// Authentication is how a device proves who it is.
type Authentication struct {
	// Type is one of the Auth constants, in any case; empty means sas, or
	// selfSigned if there is a thumbprint.
	Type           string         `json:"type"`
	SymmetricKey   SymmetricKey   `json:"symmetricKey"`
	X509Thumbprint X509Thumbprint `json:"x509Thumbprint"`
}

// SymmetricKey holds two keys of 16 to 64 bytes in base64.
type SymmetricKey struct {
	PrimaryKey   string `json:"primaryKey"`
	SecondaryKey string `json:"secondaryKey"`
}

// MarshalJSON implements json.Marshaler: null stands for a key that there isn't.
func (k SymmetricKey) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		PrimaryKey   *string `json:"primaryKey"`
		SecondaryKey *string `json:"secondaryKey"`
	}{orNull(k.PrimaryKey), orNull(k.SecondaryKey)})
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// X509Thumbprint holds the thumbprints of two self-signed certificates: SHA-1 or
// SHA-256 in hexadecimal, in any case.
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
	maxReasonLength = 128 // characters
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

// normalise checks what a caller may set, but for the IDs, and fills in defaults.
func (id *Identity) normalise() error {
	switch Status(strings.ToLower(string(id.Status))) {
	case "", StatusEnabled:
		id.Status = StatusEnabled
	case StatusDisabled:
		id.Status = StatusDisabled
	default:
		return Errorf(CodeArgumentInvalid, "status %q is neither enabled nor disabled", id.Status)
	}
	if r := id.StatusReason; r != nil && utf8.RuneCountInString(*r) > maxReasonLength {
		return Errorf(CodeArgumentInvalid, "status reason has more than %d characters", maxReasonLength)
	}
	return id.Authentication.normalise()
}

func invalidID(kind, id string) error {
	return Errorf(CodeArgumentInvalid, "%s ID %q must have 1 to %d characters: letters, digits and %s", kind, id, maxIDLength, idCharacters)
}

// normalise checks what a caller may set, fills in defaults, and drops what the
// kind of authentication doesn't use.
func (a *Authentication) normalise() error {
	a.X509Thumbprint.normalise()
	if a.Type == "" {
		a.Type = AuthSAS
		if a.X509Thumbprint != (X509Thumbprint{}) {
			a.Type = AuthSelfSigned
		}
	}
	i := slices.IndexFunc(authTypes, func(known string) bool { return strings.EqualFold(known, a.Type) })
	if i < 0 {
		return Errorf(CodeArgumentInvalid, "authentication type %q is none of %v", a.Type, authTypes)
	}
	a.Type = authTypes[i]
	if a.Type != AuthSAS {
		a.SymmetricKey = SymmetricKey{}
	}
	if a.Type != AuthSelfSigned {
		a.X509Thumbprint = X509Thumbprint{}
	}
	switch a.Type {
	case AuthSAS:
		return a.SymmetricKey.complete()
	case AuthSelfSigned:
		return a.X509Thumbprint.check()
	}
	return nil
}

// complete makes keys that are missing, and checks those that are there.
func (k *SymmetricKey) complete() error {
	for _, key := range []*string{&k.PrimaryKey, &k.SecondaryKey} {
		if *key == "" {
			*key = newKey()
		}
		b, err := base64.StdEncoding.DecodeString(*key)
		if err != nil || len(b) < minKeyBytes || len(b) > maxKeyBytes {
			return Errorf(CodeArgumentInvalid, "a symmetric key must be base64 of %d to %d bytes", minKeyBytes, maxKeyBytes)
		}
	}
	return nil
}

// normalise makes thumbprints that are empty absent.
func (x *X509Thumbprint) normalise() {
	for _, thumbprint := range []**string{&x.PrimaryThumbprint, &x.SecondaryThumbprint} {
		if *thumbprint != nil && **thumbprint == "" {
			*thumbprint = nil
		}
	}
}

// check returns an error unless there is a thumbprint and all are well-formed.
func (x X509Thumbprint) check() error {
	if x == (X509Thumbprint{}) {
		return Errorf(CodeArgumentInvalid, "authentication type %s needs a thumbprint", AuthSelfSigned)
	}
	for _, thumbprint := range []*string{x.PrimaryThumbprint, x.SecondaryThumbprint} {
		if thumbprint == nil {
			continue
		}
		b, err := hex.DecodeString(*thumbprint)
		if err != nil || len(b) != sha1.Size && len(b) != sha256.Size {
			return Errorf(CodeArgumentInvalid, "a thumbprint must be a SHA-1 or SHA-256 of %d or %d hexadecimal digits", 2*sha1.Size, 2*sha256.Size)
		}
	}
	return nil
}

// keepKeys takes what an update leaves out from the identity before it: all of
// the authentication, or the keys or thumbprints of the same kind.
func (a *Authentication) keepKeys(before Authentication) {
	a.X509Thumbprint.normalise()
	switch {
	case *a == (Authentication{}):
		*a = before
	case a.Type == "" && a.X509Thumbprint != (X509Thumbprint{}):
		a.Type = AuthSelfSigned
	case a.Type == "":
		a.Type = AuthSAS
	}
	if !strings.EqualFold(a.Type, before.Type) {
		return
	}
	a.SymmetricKey.PrimaryKey = cmp.Or(a.SymmetricKey.PrimaryKey, before.SymmetricKey.PrimaryKey)
	a.SymmetricKey.SecondaryKey = cmp.Or(a.SymmetricKey.SecondaryKey, before.SymmetricKey.SecondaryKey)
	if a.X509Thumbprint == (X509Thumbprint{}) {
		a.X509Thumbprint = before.X509Thumbprint
	}
}
