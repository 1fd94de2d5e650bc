package job

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"strconv"
	"strings"
)

// Encode returns the wire form of a Job, Update or Receipt.
func Encode[T Job | Update | Receipt](v T) (Body, error) {
	return json.Marshal(v)
}

// DecodeJob reads a job from a message body. The error matches ErrInvalid.
func DecodeJob(b []byte) (Job, error) {
	var j Job
	if err := decode(b, "job", &j); err != nil {
		return Job{}, err
	}
	if err := j.Validate(); err != nil {
		return Job{}, err
	}
	return j, nil
}

// DecodeUpdate reads an update from a message body. The error matches ErrInvalid.
func DecodeUpdate(b []byte) (Update, error) {
	var u Update
	if err := decode(b, "update", &u); err != nil {
		return Update{}, err
	}
	if err := ValidateID(u.CorrelationID); err != nil {
		return Update{}, err
	}
	if err := validateText("step", u.Step, MaxStepLength); err != nil {
		return Update{}, err
	}
	if !u.Status.Valid() {
		return Update{}, invalid("update: unknown status %q", cut(string(u.Status), 40))
	}
	u.Reason = cut(u.Reason, MaxReasonLength)
	return u, nil
}

// DecodeReceipt reads a receipt from a message body. The error matches ErrInvalid.
func DecodeReceipt(b []byte) (Receipt, error) {
	var r Receipt
	if err := decode(b, "receipt", &r); err != nil {
		return Receipt{}, err
	}
	switch n := len(r.MessageIDs); {
	case n == 0:
		return Receipt{}, invalid("receipt: names no message")
	case n > MaxReceiptMessageCount:
		return Receipt{}, invalid("receipt: names %d messages, the limit is %d", n, MaxReceiptMessageCount)
	}
	for _, id := range r.MessageIDs {
		if id == "" || len(id) > MaxMessageIDLength {
			return Receipt{}, invalid("receipt: a message ID has %d characters, allowed are 1 to %d", len(id), MaxMessageIDLength)
		}
	}
	return r, nil
}

// decode reads exactly one JSON object; encoding/json matches member names without regard to case.
func decode(b []byte, what string, v any) error {
	if len(b) > MaxDeviceToCloudSize {
		return &Error{Op: "decode " + what, Kind: ErrInvalid, Err: ErrTooLarge}
	}
	trimmed := bytes.TrimSpace(b)
	if len(trimmed) == 0 || trimmed[0] != '{' {
		return invalid("%s: the body is not a JSON object", what)
	}
	dec := json.NewDecoder(bytes.NewReader(trimmed))
	if err := dec.Decode(v); err != nil {
		return invalid("%s: %w", what, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return invalid("%s: there is more after the JSON object", what)
	}
	return nil
}

// Infer returns the kind of a body whose sender gave none: by the members that only one kind has.
func Infer(b []byte) Kind {
	var members map[string]json.RawMessage
	if json.Unmarshal(b, &members) != nil {
		return KindNone
	}
	has := make(map[string]bool, len(members))
	for name := range members {
		has[strings.ToLower(name)] = true
	}
	switch {
	case has["steps"]:
		return KindJob
	case has["step"] && has["status"]:
		return KindUpdate
	case has["messageids"]:
		return KindReceipt
	}
	return KindNone
}

// Check reports whether the body of m is what its kind says. A message without a kind gets the one that its body shows,
// if it is valid as such. The error matches ErrInvalid.
func (m Message) Check() (Message, error) {
	given := m.Kind
	if given == KindNone {
		m.Kind = Infer(m.Body)
	}
	var err error
	switch m.Kind {
	case KindNone:
	case KindJob:
		_, err = DecodeJob(m.Body)
	case KindUpdate:
		_, err = DecodeUpdate(m.Body)
	case KindReceipt:
		_, err = DecodeReceipt(m.Body)
	default:
		err = invalid("unknown message kind %q", cut(string(m.Kind), 40))
	}
	if err != nil && given == KindNone {
		m.Kind, err = KindNone, nil
	}
	return m, err
}

// ApplicationProperties returns the application properties of m as they travel on the wire.
func (m Message) ApplicationProperties() map[string]string {
	p := make(map[string]string, len(m.Properties)+5)
	maps.Copy(p, m.Properties)
	set := func(name, value string) {
		if value != "" {
			p[name] = value
		}
	}
	set(PropertyKind, string(m.Kind))
	set(PropertyToDevice, m.To)
	set(PropertyFromDevice, m.From)
	set(PropertyTraceparent, m.Traceparent)
	if m.Sequence > 0 {
		p[PropertySequence] = strconv.Itoa(m.Sequence)
	}
	return p
}

// SetApplicationProperties takes the application properties of a received message apart: those of the contract into
// m's fields, the rest into m.Properties. A sequence that is no positive number counts as none.
func (m *Message) SetApplicationProperties(p map[string]string) {
	for name, value := range p {
		switch name {
		case PropertyKind:
			m.Kind = Kind(value)
		case PropertySequence:
			if n, err := strconv.Atoi(value); err == nil && n > 0 {
				m.Sequence = n
			}
		case PropertyToDevice:
			m.To = value
		case PropertyFromDevice:
			m.From = value
		case PropertyTraceparent:
			m.Traceparent = value
		default:
			if m.Properties == nil {
				m.Properties = make(map[string]string)
			}
			m.Properties[name] = value
		}
	}
}

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("...")], "") + "..."
}
