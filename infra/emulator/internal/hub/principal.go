package hub

import (
	"encoding/json"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/twin"
)

// Names of records in the store, each behind the keys of its principal.
const (
	identitySuffix = "i"
	activitySuffix = "a" // when it was last seen
	keptSuffix     = "k" // see Session.Keep
	twinSuffix     = "d" // the twin's document
)

// principal is what a device and a module have in common: an identity that
// proves who it is, connects, publishes and answers direct methods.
type principal struct {
	Target
	hub *Hub
	// device is the device itself, or the device of the module.
	device *device

	// lastActivity is in nanoseconds since 1970, 0 for never.
	lastActivity atomic.Int64
	// doc is the twin; nil until somebody writes it. Who stores it holds the
	// device's registry.
	doc atomic.Pointer[twin.Document]

	mu             sync.Mutex // guards all below; that of a device comes before those of its modules
	exists         bool       // false until created and after deletion
	identity       Identity   // what doesn't come from the fields below
	session        *Session
	kept           []byte        // what sessions keep; nil for nothing
	keeping        int           // how many changes of it are on their way to the disk
	stateUpdated   time.Time     // connection state
	methodsAwaited chan struct{} // closed when a session handles methods; nil while nobody waits
}

// activity is the record of when a principal was last seen.
type activity struct {
	Last         time.Time
	StateUpdated time.Time
}

// principal returns the existing identity of a target, or
// CodeDeviceNotFound or CodeModuleNotFound.
func (h *Hub) principal(t Target) (*principal, error) {
	d, err := h.find(t.DeviceID)
	if err != nil {
		return nil, err
	}
	if t.ModuleID == "" {
		return &d.principal, nil
	}
	return d.module(t.ModuleID)
}

func notFound(t Target) error {
	if t.ModuleID != "" {
		return Errorf(CodeModuleNotFound, "%s is not registered", t)
	}
	return Errorf(CodeDeviceNotFound, "%s is not registered", t)
}

// key is that of a record of the principal in the store.
func (p *principal) key(suffix string) string { return p.keys() + suffix }

// keys begins the keys of all records of the principal: d/<device>/, or
// d/<device>/m/<module>/. Those of a device begin those of its modules, which
// go with it.
func (p *principal) keys() string {
	keys := devicePrefix + url.PathEscape(p.DeviceID) + "/"
	if p.ModuleID != "" {
		keys += modulePrefix + url.PathEscape(p.ModuleID) + "/"
	}
	return keys
}

// touch notes that the principal was active.
func (p *principal) touch() { p.lastActivity.Store(time.Now().UnixNano()) }

// snapshot returns the identity with all that the hub adds to it.
func (p *principal) snapshot() Identity {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := p.identity
	id.ConnectionState = Disconnected
	if p.session != nil {
		id.ConnectionState = Connected
	}
	id.ConnectionStateUpdatedTime = Time{p.stateUpdated}
	if n := p.lastActivity.Load(); n != 0 {
		id.LastActivityTime = Time{time.Unix(0, n).UTC()}
	}
	if p.ModuleID == "" {
		id.CloudToDeviceMessageCount = p.device.waiting()
	}
	return id
}

// usable reports why the principal can't be used now, if it can't. The caller
// holds mu.
func (p *principal) usable() error {
	switch {
	case !p.exists:
		return notFound(p.Target)
	case p.identity.Status != StatusEnabled:
		return Errorf(CodeUnauthorized, "%s is disabled", p.Target)
	}
	return nil
}

// current returns the identity and whether it exists.
func (p *principal) current() (Identity, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.identity, p.exists
}

// matches returns an error unless the principal exists and has the version that
// is asked for.
func (p *principal) matches(match IfMatch) error {
	id, exists := p.current()
	switch {
	case !exists:
		return notFound(p.Target)
	case match != AnyVersion && string(match) != id.ETag:
		return Errorf(CodePreconditionFailed, "%s has another ETag than If-Match says", p.Target)
	}
	return nil
}

// create makes the principal exist. The caller holds registry.
func (p *principal) create(id Identity) error {
	if err := id.normalise(); err != nil {
		return err
	}
	id = id.stored()
	id.GenerationID, id.ETag = p.hub.newGenerationID(), newETag("")
	id.StatusUpdatedTime = Time{}
	if err := p.write(id); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.identity, p.exists = id, true
	return nil
}

// update replaces what a caller may set of the identity, and returns what it is
// then. The caller holds registry.
func (p *principal) update(id Identity) (Identity, error) {
	before, _ := p.current()
	id.Authentication.keepKeys(before.Authentication)
	if err := id.normalise(); err != nil {
		return Identity{}, err
	}
	id = id.stored()
	id.GenerationID, id.ETag = before.GenerationID, newETag(before.ETag)
	id.StatusUpdatedTime = before.StatusUpdatedTime
	if id.Status != before.Status {
		id.StatusUpdatedTime = Time{time.Now().UTC()}
	}
	if err := p.write(id); err != nil {
		return Identity{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.identity = id
	return id, nil
}

func (p *principal) write(id Identity) error {
	value, err := id.encode()
	if err != nil {
		return err
	}
	return translate(store.Commit(p.hub.store, store.Put(p.key(identitySuffix), value)), CodeServerError)
}

// remove makes the principal one that doesn't exist, and returns its session.
func (p *principal) remove() *Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exists = false
	p.wakeMethods()
	return p.session
}

// recordActivity makes what is known of the principal's presence outlive the
// process. Nothing waits for it, and one that is deleted is forgotten.
func (p *principal) recordActivity() {
	if !p.hub.store.Durable() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.exists {
		return
	}
	a := activity{StateUpdated: p.stateUpdated}
	if n := p.lastActivity.Load(); n != 0 {
		a.Last = time.Unix(0, n).UTC()
	}
	if value, err := json.Marshal(a); err == nil { // two times: it never fails
		p.hub.store.Submit(nil, store.Put(p.key(activitySuffix), value))
	}
}

// load reads one record of the store.
func (p *principal) load(record string, value []byte) error {
	switch record {
	case identitySuffix:
		p.exists = true
		return p.identity.decode(p.Target, value)
	case activitySuffix:
		var a activity
		if err := json.Unmarshal(value, &a); err != nil {
			return err
		}
		p.stateUpdated = a.StateUpdated
		if !a.Last.IsZero() {
			p.lastActivity.Store(a.Last.UnixNano())
		}
		return nil
	case keptSuffix:
		p.kept = value
		return nil
	case twinSuffix:
		return p.loadTwin(value)
	}
	return fmt.Errorf("unknown record %q", record)
}
