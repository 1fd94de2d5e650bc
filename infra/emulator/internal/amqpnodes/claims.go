package amqpnodes

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// realmKind tells the three sets of keys apart.
type realmKind uint8

const (
	hubRealm       realmKind = iota // hub policies and devices
	eventsRealm                     // hub policies, on the built-in events endpoint
	namespaceRealm                  // namespace policies
)

// realm is a set of keys.
type realm struct {
	kind   realmKind
	tokens *sas.Verifier
}

// resource makes a path one of the realm's own, for sas.Claims.Covers.
func (r realm) resource(path string) string {
	if len(r.tokens.Hosts) == 0 {
		return path
	}
	return r.tokens.Hosts[0] + "/" + path
}

func (r realm) now() time.Time {
	if r.tokens.Now != nil {
		return r.tokens.Now()
	}
	return time.Now()
}

// grant is what a token, or a key itself, opened.
type grant struct {
	realm       realm
	permissions sas.Permission
	claims      sas.Claims // of a token; otherwise the grant reaches everything
	byKey       bool
	resource    string
}

func tokenGrant(r realm, c sas.Claims) grant {
	return grant{realm: r, permissions: c.Permissions, claims: c, resource: c.Resource()}
}

func (g grant) valid() bool {
	return g.byKey || g.realm.now().Before(g.claims.Expires)
}

func (g grant) covers(path string) bool {
	return g.byKey || g.claims.Covers(g.realm.resource(path))
}

// right is what a link needs: the permission in the realm.
type right struct {
	realm      realmKind
	permission sas.Permission
}

// Rights that links ask for. One of those in a list is enough.
var (
	serviceRights = []right{{hubRealm, sas.ServiceConnect}}
	deviceRights  = []right{{hubRealm, sas.DeviceConnect}}
	listenRights  = []right{{namespaceRealm, sas.Listen}}
	sendRights    = []right{{namespaceRealm, sas.Send}}
	// The built-in endpoint is opened by the hub's policies. The namespace's
	// are accepted too, which the cloud does not do: here both are keys to the
	// same emulator.
	builtInRights = []right{{eventsRealm, sas.ServiceConnect}, {namespaceRealm, sas.Listen}}
)

// maxGrants bounds the tokens of one connection. One that multiplexes devices
// has a token for each.
const maxGrants = 10_000

// claims are the grants of one connection.
type claims struct {
	mu     sync.Mutex
	grants map[grantKey]grant
}

type grantKey struct {
	realm    realmKind
	resource string
}

// put adds a grant. A newer one for the same resource takes the place of the
// older.
func (c *claims) put(g grant) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.grants == nil {
		c.grants = make(map[grantKey]grant)
	}
	maps.DeleteFunc(c.grants, func(_ grantKey, g grant) bool { return !g.valid() })
	if len(c.grants) >= maxGrants {
		return fmt.Errorf("more than %d tokens on one connection", maxGrants)
	}
	c.grants[grantKey{g.realm.kind, g.resource}] = g
	return nil
}

// any reports whether there was a token at all.
func (c *claims) any() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.grants) > 0
}

// find returns a valid grant with one of the rights on a path.
func (c *claims) find(path string, rights []right) (grant, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.grants {
		for _, r := range rights {
			if g.realm.kind == r.realm && g.permissions.Has(r.permission) && g.valid() && g.covers(path) {
				return g, true
			}
		}
	}
	return grant{}, false
}

// permit is what a link goes by. check says whether it still holds.
type permit interface {
	check() error
	Close()
}

// guard checks, for as long as a link lives, that its connection has a claim for
// it. Nodes embed it for its Close.
type guard struct {
	claims *claims
	path   string
	rights []right

	mu     sync.Mutex
	last   grant // the one found last
	timer  *time.Timer
	closed bool
}

// admit opens a guard, or refuses the link.
func (h *handler) admit(path string, rights ...right) (*guard, error) {
	g := &guard{claims: &h.claims, path: path, rights: rights}
	return g, g.check()
}

// admitIdentity checks the right to the links of a device or module: by a token,
// or else by the certificate of the connection. It also says how the identity was
// proved.
func (h *handler) admitIdentity(t hub.Target) (*guard, hub.AuthMethod, error) {
	path := t.Path()
	if h.nodes.cfg.Hub == nil {
		return nil, hub.AuthMethod{}, amqp.Errorf(amqp.CondNotFound, "no node %q: there is no hub here", path)
	}
	g, err := h.admit(path, deviceRights...)
	if err == nil {
		return g, hub.ByToken(g.last.claims), nil
	}
	if len(h.certificates) == 0 {
		return nil, hub.AuthMethod{}, err
	}
	auth, err := h.nodes.cfg.Hub.VerifyCertificate(t, h.certificates)
	if err != nil {
		return nil, hub.AuthMethod{}, hubError(err)
	}
	g.last = h.nodes.certified()
	return g, auth, nil
}

// certified is a grant of a link whose certificate was verified. It is not one of
// the connection's.
func (n *Nodes) certified() grant { return grant{realm: n.realms[0], byKey: true} }

// check looks for a claim when the one found last has expired.
func (g *guard) check() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last.realm.tokens != nil && g.last.valid() {
		return nil
	}
	found, ok := g.claims.find(g.path, g.rights)
	if !ok {
		return g.unauthorized()
	}
	g.last = found
	return nil
}

// watch detaches the link when its token expires and no other has been put. Links
// on which nothing happens would otherwise outlive their tokens.
func (g *guard) watch(a *amqpserver.Attach) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.last.byKey {
		return
	}
	left := g.last.claims.Expires.Sub(g.last.realm.now())
	g.timer = time.AfterFunc(left, func() {
		if err := g.check(); err != nil {
			a.Detach(err)
			return
		}
		g.watch(a)
	})
}

// Close ends the watch.
func (g *guard) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.timer != nil {
		g.timer.Stop()
	}
}

func (g *guard) unauthorized() error {
	var names []string
	for _, r := range g.rights {
		names = append(names, r.permission.String())
	}
	return amqp.Errorf(amqp.CondUnauthorizedAccess,
		"no valid token on this connection grants %s on %q; put one to $cbs first", strings.Join(names, " or "), g.path)
}

// verify finds the realm in which a token is good. The same text can be so in
// one only, because keys differ, or else are used differently.
func (n *Nodes) verify(token string) (grant, error) {
	var reason error
	for _, r := range n.realms {
		c, err := r.tokens.Verify(token, "")
		if err == nil {
			return tokenGrant(r, c), nil
		}
		if reason == nil || progress(err) > progress(reason) {
			reason = err
		}
	}
	return grant{}, reason
}

// progress is how far a verification came before it failed. The realm where it
// came farthest is the one that the token is meant for.
func progress(err error) int {
	switch {
	case errors.Is(err, sas.ErrUnknownPolicy), errors.Is(err, sas.ErrMalformed):
		return 0 // the token of a device is malformed where there are none
	case errors.Is(err, sas.ErrScope):
		return 1
	case errors.Is(err, sas.ErrSignature):
		return 2
	}
	return 3
}

// Names in SASL PLAIN (IoT Hub docs: "Control access to IoT Hub by using shared
// access signatures": protocol specifics).
const (
	sasInfix     = "@sas."
	policyPrefix = "root."
)

// Plain checks the credentials of SASL PLAIN, for amqpserver.Options.Plain. The
// password is a token for {policy}@sas.root.{hub}, {device}@sas.{hub} and
// {device}/{module}@sas.{hub}; any other user is a policy and the password its
// key, as on Service Bus and Event Hubs.
func (n *Nodes) Plain(_ context.Context, c amqpserver.Credentials) (any, error) {
	// The last one, because IDs of devices may contain the infix.
	if i := strings.LastIndex(c.User, sasInfix); i >= 0 {
		name, host := c.User[:i], c.User[i+len(sasInfix):]
		if strings.HasPrefix(host, policyPrefix) {
			return n.plainPolicy(name, c.Password)
		}
		return n.plainDevice(name, c.Password)
	}
	for _, r := range n.realms {
		if r.kind == hubRealm {
			continue // its policies are those of the events realm
		}
		policy, err := r.tokens.Keys.Policy(c.User)
		if err == nil && sameKey(policy.Keys, c.Password) {
			return grant{realm: r, permissions: policy.Permissions, byKey: true, resource: c.User}, nil
		}
		if err != nil && !errors.Is(err, sas.ErrUnknownPolicy) {
			return nil, err
		}
	}
	return nil, errors.New("no policy has this name and key")
}

func (n *Nodes) plainPolicy(name, token string) (any, error) {
	g, err := n.verify(token)
	if err == nil && (g.realm.kind != hubRealm || g.claims.Policy != name) {
		err = errors.New("the token is not one of the policy in the user name")
	}
	return g, err
}

func (n *Nodes) plainDevice(name, token string) (any, error) {
	var t hub.Target
	t.DeviceID, t.ModuleID, _ = strings.Cut(name, "/")
	for _, r := range n.realms {
		if r.kind == hubRealm {
			c, err := r.tokens.Verify(token, r.resource(t.Path()))
			return tokenGrant(r, c), err
		}
	}
	return nil, errors.New("there is no hub here")
}

// External lets a peer in that has a TLS client certificate, for
// amqpserver.Options.External. Whose certificate it is shows when a link names
// the device.
func (n *Nodes) External(_ context.Context, nc net.Conn) (any, error) {
	if len(amqpserver.PeerCertificates(nc)) == 0 {
		return nil, errors.New("the connection has no TLS client certificate")
	}
	return nil, nil
}

func sameKey(keys sas.Keys, key string) bool {
	same := func(k string) bool {
		return k != "" && subtle.ConstantTimeCompare([]byte(k), []byte(key)) == 1
	}
	return same(keys.Primary) || same(keys.Secondary)
}
