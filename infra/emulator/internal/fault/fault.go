// Package fault does to an emulator what happens to clients of a real hub:
// connections that break, stall or are slow, messages that come twice,
// operations that are refused, locks that are lost.
//
// An Injector holds the faults that are in force. Faults of connections act
// below TLS, in a Conn around the socket. Faults of operations act in the hub,
// of which the Injector is a gate, and in the AMQP nodes of Service Bus. While
// there are none, each costs a look at an atomic value.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Kind is what a fault does.
type Kind string

const (
	// Cut resets connections: at once, After a time, or after so many Bytes.
	Cut Kind = "cut"
	// Delay lets what a connection carries arrive later, in both directions, by
	// Latency and up to Jitter.
	Delay Kind = "delay"
	// HalfOpen lets nothing through a connection any more while both ends think
	// that it is open. When the fault ends, what was held up arrives.
	HalfOpen Kind = "half-open"
	// Duplicate lets messages come twice: those of devices (d2c) are stored
	// twice, those for devices (c2d) and in queues and subscriptions are
	// delivered once more after they were completed, as when the hub loses the
	// acknowledgement.
	Duplicate Kind = "duplicate"
	// Refuse answers operations with the error Code.
	Refuse Kind = "refuse"
	// ExpireLocks ends the locks of messages, once: in queues, subscriptions,
	// and in the cloud-to-device queues of devices that receive over AMQP or
	// HTTPS.
	ExpireLocks Kind = "expire-locks"
	// Disconnect makes the hub end the connections of devices, once.
	Disconnect Kind = "disconnect"
)

// Protocols of connections. WebSockets are of the protocol that they carry.
const (
	MQTT  = "mqtt"
	AMQP  = "amqp"
	HTTPS = "https"
)

// Operations on queues, topics and event hubs. Those on the hub are the names of
// hub.Operation.
const (
	OpSend    = "send"
	OpReceive = "receive"
)

// Fault says what is to go wrong, for whom, and for how long. Fields that a kind
// has no use for must be zero.
type Fault struct {
	// Kind is required.
	Kind Kind

	// Protocol selects connections: mqtt, amqp or https; empty means any. For
	// the kinds cut, delay and half-open.
	Protocol string
	// Device selects by device ID, in which * stands for any characters; empty
	// means any, also what belongs to no device. A connection belongs to a
	// device from the moment that the device has proved who it is.
	Device string
	// Operation selects operations, for the kinds refuse and duplicate: connect,
	// d2c, c2d, c2d-receive, registry, method, twin-read, twin-update, query,
	// job; send and receive are those on queues, topics and event hubs. Empty
	// means any.
	Operation string
	// Entity selects a queue, topic, subscription (topic/Subscriptions/name) or
	// event hub by name, in any case and with * for any characters; empty means
	// any, also what belongs to no entity. A connection belongs to an entity
	// from its first link to it.
	Entity string

	// After is the time until the fault begins: for a connection, from when it
	// is selected; otherwise from the injection.
	After time.Duration
	// Bytes is how many bytes a connection carries, both directions together,
	// before it is cut; not together with After.
	Bytes int64
	// Duration is how long the fault lasts; 0 means until it is removed. It runs
	// from the injection for connections, otherwise from when the fault begins.
	Duration time.Duration
	// Count is how often the fault takes effect, on a connection or an
	// operation, before it ends; 0 means without end.
	Count int
	// Probability is how likely each connection or operation that is selected is
	// hit, above 0 and up to 1; 0 means 1.
	Probability float64
	// Seed makes the same choices again for the same sequence of events.
	Seed uint64

	// Latency and Jitter are those of a delay: each chunk of data comes later by
	// Latency and a random part of Jitter, and none overtakes another.
	Latency, Jitter time.Duration

	// Code is the hub's code for refusals, such as 429001; a status such as 429
	// stands for its commonest code: 401003, 403002 (quota), 404001, 429001,
	// 500001, 503001, 504101.
	Code int
	// RetryAfter is when refused clients are told to try again; 0 means nothing
	// is said of that.
	RetryAfter time.Duration
}

// codeOf are the codes that a status stands for.
var codeOf = map[int]hub.Code{
	401: hub.CodeUnauthorized,
	403: hub.CodeQuotaExceeded,
	404: hub.CodeDeviceNotFound,
	429: hub.CodeThrottling,
	500: hub.CodeServerError,
	503: hub.CodeServiceUnavailable,
	504: hub.CodeGatewayTimeout,
}

// code is that of a refusal.
func (f *Fault) code() hub.Code {
	if c, ok := codeOf[f.Code]; ok {
		return c
	}
	return hub.Code(f.Code)
}

// onConnections reports whether the fault acts on connections.
func (k Kind) onConnections() bool { return k == Cut || k == Delay || k == HalfOpen }

// onOperations reports whether the fault acts on operations.
func (k Kind) onOperations() bool { return k == Refuse || k == Duplicate }

// once reports whether the fault is over as soon as it has begun.
func (k Kind) once() bool { return k == ExpireLocks || k == Disconnect }

// ErrInvalid is wrapped by all errors about what a fault says.
var ErrInvalid = errors.New("invalid fault")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Check returns what is wrong with the fault.
func (f *Fault) Check() error {
	if !f.Kind.onConnections() && !f.Kind.onOperations() && !f.Kind.once() {
		return invalid("kind is %q and must be cut, delay, half-open, duplicate, refuse, expire-locks or disconnect", f.Kind)
	}
	if err := f.checkUseless(); err != nil {
		return err
	}
	if err := f.checkValues(); err != nil {
		return err
	}
	switch f.Kind {
	case Cut, HalfOpen:
		return f.checkTimes()
	case Delay:
		if f.Latency == 0 && f.Jitter == 0 {
			return invalid("a delay needs a latency or a jitter")
		}
		return f.checkTimes()
	case Refuse:
		return f.checkRefusal()
	case Duplicate:
		return f.checkOperation("d2c", "c2d", OpReceive)
	}
	return nil
}

// checkUseless refuses fields that the kind has no use for: who sets them
// expects something that will not happen.
func (f *Fault) checkUseless() error {
	connection, operation, once := f.Kind.onConnections(), f.Kind.onOperations(), f.Kind.once()
	for _, field := range []struct {
		name        string
		set, useful bool
	}{
		{"protocol", f.Protocol != "", connection},
		{"operation", f.Operation != "", operation},
		{"entity", f.Entity != "", f.Kind != Disconnect},
		{"bytes", f.Bytes != 0, f.Kind == Cut},
		{"duration", f.Duration != 0, !once},
		{"count", f.Count != 0, !once},
		{"probability", f.Probability != 0, !once},
		{"seed", f.Seed != 0, !once},
		{"latency", f.Latency != 0, f.Kind == Delay},
		{"jitter", f.Jitter != 0, f.Kind == Delay},
		{"code", f.Code != 0, f.Kind == Refuse},
		{"retryAfter", f.RetryAfter != 0, f.Kind == Refuse},
		{"device and entity", f.Device != "" && f.Entity != "", connection},
	} {
		if field.set && !field.useful {
			return invalid("%s has no use for %s", f.Kind, field.name)
		}
	}
	return nil
}

// maxDuration bounds all times of a fault.
const maxDuration = 30 * 24 * time.Hour

func (f *Fault) checkValues() error {
	switch f.Protocol {
	case "", MQTT, AMQP, HTTPS:
	default:
		return invalid("protocol is %q and must be mqtt, amqp or https", f.Protocol)
	}
	for name, d := range map[string]time.Duration{
		"after": f.After, "duration": f.Duration, "latency": f.Latency, "jitter": f.Jitter, "retryAfter": f.RetryAfter,
	} {
		if d < 0 || d > maxDuration {
			return invalid("%s is %s and must be from 0 to %s", name, d, maxDuration)
		}
	}
	switch {
	case !utf8.ValidString(f.Device), !utf8.ValidString(f.Entity):
		return invalid("device and entity must be UTF-8")
	case f.Bytes < 0 || f.Count < 0:
		return invalid("bytes and count can't be negative")
	case !(f.Probability >= 0 && f.Probability <= 1): // also not a number
		return invalid("probability is %v and must be from 0 to 1", f.Probability)
	}
	return nil
}

func (f *Fault) checkTimes() error {
	switch {
	case f.After > 0 && f.Bytes > 0:
		return invalid("a connection is cut after a time or a number of bytes, not both")
	case f.Duration > 0 && f.After >= f.Duration:
		return invalid("the fault is over after %s, before it begins after %s", f.Duration, f.After)
	}
	return nil
}

func (f *Fault) checkRefusal() error {
	if f.Code == 0 {
		return invalid("refuse needs a code such as 429")
	}
	if c := f.code(); c.Name() == unknownName {
		return invalid("code %d is none that the hub answers with", f.Code)
	}
	names := []string{OpSend, OpReceive}
	for op := range hub.NumOperations {
		names = append(names, op.String())
	}
	return f.checkOperation(names...)
}

// unknownName is that of codes which the hub doesn't know.
var unknownName = hub.Code(0).Name()

// checkOperation checks that there is such an operation and that it belongs to
// what is selected.
func (f *Fault) checkOperation(names ...string) error {
	onEntity := f.Operation == OpSend || f.Operation == OpReceive
	switch {
	case f.Operation != "" && !slices.Contains(names, f.Operation):
		return invalid("%s takes none of the operations %q; there are %s", f.Kind, f.Operation, strings.Join(names, ", "))
	case f.Operation != "" && f.Entity != "" && !onEntity:
		return invalid("%s is no operation on an entity", f.Operation)
	case onEntity && f.Device != "":
		return invalid("%s is no operation of a device", f.Operation)
	}
	return nil
}

// matchesDevice and matchesEntity say whether the fault selects a name.
func (f *Fault) matchesDevice(id string) bool {
	return f.Device == "" || id != "" && glob(f.Device, id)
}

func (f *Fault) matchesEntity(name string) bool {
	return f.Entity == "" || glob(strings.ToLower(f.Entity), strings.ToLower(name))
}

// matchesOperation reports whether the fault selects an operation of the hub.
func (f *Fault) matchesOperation(op hub.Operation, t hub.Target) bool {
	return f.Entity == "" && (f.Operation == "" || f.Operation == op.String()) && f.matchesDevice(t.DeviceID)
}

// matchesAccess reports whether it selects an operation on an entity.
func (f *Fault) matchesAccess(op, entity string) bool {
	return f.Device == "" && (f.Operation == "" || f.Operation == op) && f.matchesEntity(entity)
}

// glob reports whether the whole of s matches a pattern in which * stands for
// any characters. All others stand for themselves: device IDs may have question
// marks and brackets.
func glob(pattern, s string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	s, ok := strings.CutPrefix(s, first)
	if !ok || !wild {
		return ok && s == ""
	}
	parts := strings.Split(rest, "*")
	last := parts[len(parts)-1]
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, last)
}
