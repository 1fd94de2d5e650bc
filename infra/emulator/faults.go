package emulator

import (
	"github.com/hubjobs/hubjobs/infra/emulator/internal/fault"
)

// Fault is something that goes wrong on purpose: what, for whom, when and for how
// long. Its fields are
//
//	Kind         FaultKind      what goes wrong; required
//	Protocol     string         mqtt, amqp or https: which connections
//	Device       string         device ID, * for any characters
//	Operation    string         connect, d2c, c2d, c2d-receive, registry, method, twin-read, twin-update,
//	                            query, job; on entities send, receive
//	Entity       string         queue, topic, topic/Subscriptions/name or event hub, * for any characters
//	After        time.Duration  time until it begins
//	Bytes        int64          bytes until a connection is cut
//	Duration     time.Duration  how long it lasts; 0: until it is removed
//	Count        int            how many connections or operations it hits; 0: all
//	Probability  float64        how likely each of them is hit; 0: 1
//	Seed         uint64         of the choices by probability
//	Latency      time.Duration  of a delay
//	Jitter       time.Duration  random part of a delay, on top
//	Code         int            of a refusal: 429, 403, 503, 401, ..., or a code of the hub such as 403004
//	RetryAfter   time.Duration  hint to clients that are refused
//
// Empty selections mean any. Fields that a kind has no use for must be zero.
type Fault = fault.Fault

// FaultKind is what a Fault does.
type FaultKind = fault.Kind

// Kinds of faults.
const (
	// FaultCut resets connections: at once, after a time, or after some bytes.
	FaultCut = fault.Cut
	// FaultDelay lets what connections carry arrive later.
	FaultDelay = fault.Delay
	// FaultHalfOpen lets nothing through connections that stay open.
	FaultHalfOpen = fault.HalfOpen
	// FaultDuplicate stores messages of devices twice, and delivers messages for
	// devices and in queues and subscriptions once more after they were
	// completed.
	FaultDuplicate = fault.Duplicate
	// FaultRefuse answers operations with an error.
	FaultRefuse = fault.Refuse
	// FaultExpireLocks ends the locks of messages, once.
	FaultExpireLocks = fault.ExpireLocks
	// FaultDisconnect makes the hub end the connections of devices, once.
	FaultDisconnect = fault.Disconnect
)

// ActiveFault is a fault in force: its ID, the Fault, and Hits, how often it took
// effect.
type ActiveFault = fault.Active

// ErrInvalidFault is wrapped by errors about what a Fault says.
var ErrInvalidFault = fault.ErrInvalid

// ParseFault reads a fault as the flag --fault has it: the kind and settings,
// separated by commas, such as
//
//	cut,protocol=mqtt,device=sensor-*,after=10s
//
// The names are those of the fields of Fault, in lower case but for retryAfter.
func ParseFault(text string) (Fault, error) { return fault.Parse(text) }

// InjectFault puts a fault into force and returns its ID. What is over at once,
// FaultExpireLocks and FaultDisconnect, has happened when it returns, unless it
// is to begin later.
func (e *Emulator) InjectFault(f Fault) (id string, err error) { return e.faults.Inject(f) }

// Faults returns the faults in force, in the order of their injection.
func (e *Emulator) Faults() []ActiveFault { return e.faults.Active() }

// RemoveFault ends a fault, and reports whether there was one of that ID. What it
// held up goes on.
func (e *Emulator) RemoveFault(id string) bool { return e.faults.Remove(id) }

// ClearFaults ends all faults and returns how many there were.
func (e *Emulator) ClearFaults() int { return e.faults.Clear() }

// subject is what faults act on that are over at once; it implements
// fault.Subject.
type subject struct{ *Emulator }

func (s subject) ExpireDeviceLocks(match func(string) bool) int { return s.hub.ExpireLocks(match) }

func (s subject) ExpireEntityLocks(match func(string) bool) int {
	return s.namespace.ExpireLocks(match)
}

func (s subject) Disconnect(match func(string) bool) int { return s.hub.Disconnect(match) }
