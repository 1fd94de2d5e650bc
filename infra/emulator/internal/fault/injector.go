package fault

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Subject is what faults act on that are over as soon as they have begun. Its
// methods return how many were hit, and must not call the Injector.
type Subject interface {
	// ExpireDeviceLocks ends the locks in the cloud-to-device queues of devices.
	ExpireDeviceLocks(match func(deviceID string) bool) int
	// ExpireEntityLocks ends the locks in queues and subscriptions.
	ExpireEntityLocks(match func(name string) bool) int
	// Disconnect ends the sessions of devices and their modules.
	Disconnect(match func(deviceID string) bool) int
}

// maxFaults bounds how many faults there are at a time.
const maxFaults = 1000

// Errors of Inject.
var (
	ErrClosed  = errors.New("the emulator is closed")
	ErrTooMany = fmt.Errorf("there are %d faults already", maxFaults)
)

// Injector holds the faults of one emulator. It is safe for concurrent use.
type Injector struct {
	subject Subject
	log     *slog.Logger
	// watched is how many faults of operations there are, for a look without the
	// mutex.
	watched atomic.Int32

	mu      sync.Mutex // guards all below, and what is said so in rule and Conn
	rules   []*rule    // in order of injection
	last    int        // number given last
	conns   map[*Conn]struct{}
	closed  bool
	running sync.WaitGroup // timers that fire, and goroutines of connections; Add only under mu, and not when closed
}

// rule is a fault in force. The injector's mutex guards it.
type rule struct {
	Fault
	id     string
	begins time.Time // of faults of operations
	random *rand.Rand
	timer  *time.Timer // of the end, or of the beginning of what is over at once
	taken  int         // connections or operations that were chosen
	hits   int         // those of them that were hit by now
	over   bool
	// conns are the connections for which the choice is made, each with what the
	// fault does to it, or nil.
	conns map[*Conn]*effect
}

// Active is a fault in force.
type Active struct {
	ID string
	Fault
	// Hits is how often it took effect.
	Hits int
}

// New returns an injector without faults, to be closed by the caller. A nil
// logger means none.
func New(s Subject, log *slog.Logger) *Injector {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Injector{subject: s, log: log, conns: make(map[*Conn]struct{})}
}

// Inject puts a fault into force and returns its ID; ErrInvalid, ErrTooMany or
// ErrClosed. What is over at once has happened when Inject returns, unless it is
// to begin later.
func (in *Injector) Inject(f Fault) (id string, err error) {
	if err := f.Check(); err != nil {
		return "", err
	}
	r, err := in.add(f)
	if err != nil {
		return "", err
	}
	in.log.Info("fault injected", "fault", r.id, "kind", string(f.Kind))
	if f.Kind.once() && f.After == 0 {
		in.strike(r)
	}
	return r.id, nil
}

func (in *Injector) add(f Fault) (*rule, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return nil, ErrClosed
	case len(in.rules) >= maxFaults:
		return nil, ErrTooMany
	}
	in.last++
	r := &rule{
		Fault:  f,
		id:     strconv.Itoa(in.last),
		begins: time.Now().Add(f.After),
		random: rand.New(rand.NewPCG(f.Seed, 0)),
		conns:  make(map[*Conn]*effect),
	}
	in.rules = append(in.rules, r)
	switch {
	case f.Kind.once() && f.After > 0:
		r.timer = in.after(f.After, func() { in.strike(r) })
	case f.Duration > 0 && f.Kind.onConnections():
		r.timer = in.after(f.Duration, func() { in.Remove(r.id) })
	case f.Duration > 0:
		r.timer = in.after(f.After+f.Duration, func() { in.Remove(r.id) })
	}
	if f.Kind.onOperations() {
		in.watched.Add(1)
	}
	for c := range in.conns {
		in.choose(r, c)
	}
	return r, nil
}

// after calls f after a time, unless the timer is stopped with stop. The caller
// holds mu.
func (in *Injector) after(d time.Duration, f func()) *time.Timer {
	in.running.Add(1)
	return time.AfterFunc(d, func() {
		defer in.running.Done()
		f()
	})
}

// stop stops a timer of after, which may be nil.
func (in *Injector) stop(t *time.Timer) {
	if t != nil && t.Stop() {
		in.running.Done()
	}
}

// strike does what is over at once.
func (in *Injector) strike(r *rule) {
	n := 0
	switch {
	case r.Kind == Disconnect:
		n = in.subject.Disconnect(r.matchesDevice)
	default:
		if r.Entity == "" {
			n += in.subject.ExpireDeviceLocks(r.matchesDevice)
		}
		if r.Device == "" {
			n += in.subject.ExpireEntityLocks(r.matchesEntity)
		}
	}
	in.log.Info("fault took effect", "fault", r.id, "kind", string(r.Kind), "hits", n)
	in.Remove(r.id)
}

// Active returns the faults in force, in the order of their injection.
func (in *Injector) Active() []Active {
	in.mu.Lock()
	defer in.mu.Unlock()
	all := make([]Active, len(in.rules))
	for i, r := range in.rules {
		all[i] = Active{ID: r.id, Fault: r.Fault, Hits: r.hits}
	}
	return all
}

// Remove ends a fault, and reports whether there was one of that ID. What it
// held up goes on; what it cut stays cut.
func (in *Injector) Remove(id string) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	i := slices.IndexFunc(in.rules, func(r *rule) bool { return r.id == id })
	if i < 0 {
		return false
	}
	in.remove(in.rules[i])
	return true
}

// Clear ends all faults and returns how many there were.
func (in *Injector) Clear() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := len(in.rules)
	for _, r := range slices.Clone(in.rules) {
		in.remove(r)
	}
	return n
}

// remove ends a fault. The caller holds mu.
func (in *Injector) remove(r *rule) {
	if r.over {
		return
	}
	r.over = true
	in.rules = slices.DeleteFunc(in.rules, func(other *rule) bool { return other == r })
	in.stop(r.timer)
	if r.Kind.onOperations() {
		in.watched.Add(-1)
	}
	for c, e := range r.conns {
		if e != nil {
			in.stop(e.timer)
			c.lift(e)
		}
	}
	r.conns = nil
}

// Close ends all faults, resets the connections that are left, and waits until
// nothing of the injector runs any more.
func (in *Injector) Close() {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	in.Clear()
	in.mu.Lock()
	for _, c := range slices.Collect(maps.Keys(in.conns)) {
		c.reset()
	}
	in.mu.Unlock()
	in.running.Wait()
}

// spawn runs f in a goroutine that Close waits for; false after Close.
func (in *Injector) spawn(f func()) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.running.Go(f)
	}
	return !in.closed
}

// exhausted reports whether the fault has taken all that it may.
func (r *rule) exhausted() bool { return r.Count > 0 && r.taken >= r.Count }

// take makes the choice for one that the fault selects. The caller holds mu.
func (r *rule) take() bool {
	if r.exhausted() || r.Probability > 0 && r.random.Float64() >= r.Probability {
		return false
	}
	r.taken++
	return true
}

// hit is take for an operation. The caller holds mu.
func (in *Injector) hit(r *rule) bool {
	if time.Now().Before(r.begins) || !r.take() {
		return false
	}
	r.hits++
	if r.exhausted() {
		in.remove(r)
	}
	return true
}

// find returns the first fault of a kind that hits an operation which it
// selects, or nil.
func (in *Injector) find(k Kind, selects func(*rule) bool) *rule {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, r := range slices.Clone(in.rules) {
		if r.Kind == k && selects(r) && in.hit(r) {
			return r
		}
	}
	return nil
}

// Admit implements hub.Gate.
func (in *Injector) Admit(op hub.Operation, t hub.Target, _ int) error {
	if in.watched.Load() == 0 {
		return nil
	}
	return in.find(Refuse, func(r *rule) bool { return r.matchesOperation(op, t) }).refusal()
}

// AdmitAll implements hub.Gate. A batch is refused if one of its parts is.
func (in *Injector) AdmitAll(op hub.Operation, parts []hub.Part) error {
	for _, p := range parts {
		if err := in.Admit(op, p.Target, p.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// Repeat implements hub.Gate.
func (in *Injector) Repeat(op hub.Operation, t hub.Target) bool {
	if in.watched.Load() == 0 {
		return false
	}
	return in.find(Duplicate, func(r *rule) bool { return r.matchesOperation(op, t) }) != nil
}

// AdmitSend is Admit for sending to a queue, topic or event hub.
func (in *Injector) AdmitSend(entity string) error { return in.admitAccess(OpSend, entity) }

// AdmitReceive is Admit for receiving from a queue, subscription or event hub.
func (in *Injector) AdmitReceive(entity string) error { return in.admitAccess(OpReceive, entity) }

func (in *Injector) admitAccess(op, entity string) error {
	if in.watched.Load() == 0 {
		return nil
	}
	return in.find(Refuse, func(r *rule) bool { return r.matchesAccess(op, entity) }).refusal()
}

// RepeatEntity reports whether a message of a queue or subscription is to be
// delivered once more after it was completed.
func (in *Injector) RepeatEntity(name string) bool {
	if in.watched.Load() == 0 {
		return false
	}
	return in.find(Duplicate, func(r *rule) bool { return r.matchesAccess(OpReceive, name) }) != nil
}

// refusal is the error of a fault that hit, or nil.
func (r *rule) refusal() error {
	if r == nil {
		return nil
	}
	return &hub.Error{
		Code:       r.code(),
		Message:    "refused by the injected fault " + r.id,
		TrackingID: uuid.NewString(),
		RetryAfter: r.RetryAfter,
	}
}
