package sas

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// KeyMode says how the text of a key becomes the bytes of the HMAC key.
type KeyMode uint8

const (
	// HubKeys are base64 and are decoded: IoT Hub policies and devices.
	HubKeys KeyMode = iota
	// NamespaceKeys are used as they are written: Service Bus, Event Hubs, and
	// the hub's built-in Event Hubs endpoint.
	NamespaceKeys
)

// Keys are the two keys of a policy, device or module, as they stand in
// connection strings. An empty key matches nothing.
type Keys struct {
	Primary, Secondary string
}

// Policy is a shared access policy.
type Policy struct {
	Keys        Keys
	Permissions Permission
}

// Device is what authentication needs to know of a device or module identity.
type Device struct {
	Keys    Keys
	Enabled bool
}

// Keyring looks up keys. Implementations must allow concurrent use, and answer
// from memory or a local store: a verification has no deadline of its own.
type Keyring interface {
	// Policy returns the policy of that name, or an error that wraps
	// ErrUnknownPolicy.
	Policy(name string) (Policy, error)
	// Device returns the device of that ID, or an error that wraps
	// ErrUnknownDevice.
	Device(id string) (Device, error)
	// Module returns the module of that ID, or an error that wraps
	// ErrUnknownDevice. It is enabled while its device is.
	Module(deviceID, moduleID string) (Device, error)
}

// Verifier checks tokens for one hub or one namespace. It is safe for
// concurrent use once its fields are set.
type Verifier struct {
	// Hosts are the names that the hub or namespace answers to, without port;
	// case doesn't matter. A token for another host is refused.
	Hosts []string
	// Mode is how the keys of the Keyring are used. Device tokens exist in
	// mode HubKeys only.
	Mode KeyMode
	// Keys looks up the keys.
	Keys Keyring
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Claims are what a verified token grants.
type Claims struct {
	// Policy is the name of the policy; empty for an identity's own key.
	Policy string
	// DeviceID is the device whose own key, or whose module's key, signed the
	// token; empty for a policy.
	DeviceID string
	// ModuleID is the module whose own key signed the token; empty for a
	// device's key, which doesn't reach the modules.
	ModuleID string
	// Permissions of the policy; DeviceConnect for an identity's own key.
	Permissions Permission
	// Expires is the end of the token's life: what was opened with the token
	// has to be closed then.
	Expires time.Time

	hosts []string
	scope resource
	same  func(granted, asked string) bool
}

// Resource is what the claims reach: host[/segment...], the host in lower case.
func (c Claims) Resource() string { return c.scope.String() }

// Covers reports whether the claims reach a resource, given as
// host[:port]/segment... with or without a scheme, not percent-encoded.
func (c Claims) Covers(asked string) bool {
	r := parseResource(asked)
	if c.same == nil || !knownHost(c.hosts, r.host) || !c.scope.covers(r, c.same) {
		return false
	}
	id, _ := r.identity()
	return c.DeviceID == "" || id == identity{c.DeviceID, c.ModuleID}
}

// Verify checks the token against the resource that is asked for, in the form
// of Claims.Covers. An empty resource asks for what the token itself names: the
// caller then checks Claims.Covers at each use. A token without policy name is
// checked against the key of the device or module in the asked resource. The
// token's own resource must be the asked one or a parent of it, by whole segments.
func (v *Verifier) Verify(token, asked string) (Claims, error) {
	t, err := Parse(token)
	if err != nil {
		return Claims{}, err
	}
	claims := Claims{Expires: t.Expires, hosts: v.Hosts, scope: parseResource(t.Resource)}
	if !knownHost(v.Hosts, claims.scope.host) {
		return Claims{}, fmt.Errorf("%w: it names another host", ErrScope)
	}
	if t.Policy != "" {
		err = v.verifyPolicy(t, &claims)
	} else {
		err = v.verifyIdentity(t, asked, &claims)
	}
	if err != nil {
		return Claims{}, err
	}
	if asked != "" && !claims.Covers(asked) {
		return Claims{}, ErrScope
	}
	if !v.now().Before(t.Expires) {
		return Claims{}, ErrExpired
	}
	return claims, nil
}

func (v *Verifier) now() time.Time {
	if v.Now != nil {
		return v.Now()
	}
	return time.Now()
}

func (v *Verifier) verifyPolicy(t Token, claims *Claims) error {
	policy, err := v.Keys.Policy(t.Policy)
	if err != nil {
		return err
	}
	if err := v.checkSignature(t, policy.Keys); err != nil {
		return err
	}
	claims.Policy, claims.Permissions = t.Policy, policy.Permissions
	claims.same = sameSegment
	if v.Mode == NamespaceKeys {
		// Names of Service Bus entities don't mind case, and azservicebus
		// signs them in lower case (internal/sas/sas.go).
		claims.same = strings.EqualFold
	}
	return nil
}

func (v *Verifier) verifyIdentity(t Token, asked string, claims *Claims) error {
	if v.Mode != HubKeys {
		return fmt.Errorf("%w: parameter skn is missing", ErrMalformed)
	}
	id, device, err := v.findIdentity(asked, claims.scope)
	if err != nil {
		return err
	}
	if err := v.checkSignature(t, device.Keys); err != nil {
		return err
	}
	scope, err := identityScope(claims.scope, id)
	if err != nil {
		return err
	}
	if !device.Enabled {
		return ErrDeviceDisabled
	}
	claims.DeviceID, claims.ModuleID = id.device, id.module
	claims.Permissions = DeviceConnect
	claims.scope, claims.same = scope, exactSegment
	return nil
}

// findIdentity looks up the device or module that the asked resource names, or
// else the token. The C# SDK encodes the IDs in a token twice (see sameSegment),
// so those from a token are tried as they stand and then decoded.
func (v *Verifier) findIdentity(asked string, granted resource) (identity, Device, error) {
	want := granted
	if asked != "" {
		want = parseResource(asked)
	}
	id, ok := want.identity()
	if !ok {
		return identity{}, Device{}, fmt.Errorf("%w: without skn it must be for a device", ErrScope)
	}
	device, err := v.lookUp(id)
	if asked != "" || !errors.Is(err, ErrUnknownDevice) {
		return id, device, err
	}
	decoded, ok := id.unescaped()
	if !ok {
		return id, device, err
	}
	device, err = v.lookUp(decoded)
	return decoded, device, err
}

func (v *Verifier) lookUp(id identity) (Device, error) {
	if id.module != "" {
		return v.Keys.Module(id.device, id.module)
	}
	return v.Keys.Device(id.device)
}

// identityScope narrows the resource of a token to the device or module whose
// key signed it. Beside the identity's own resource it allows those above it,
// because amenzhinsky/iothub signs the host alone (its MQTT transport), and
// host/{id} (its HTTP transport).
func identityScope(granted resource, id identity) (resource, error) {
	own := resource{host: granted.host, path: id.path()}
	path := granted.path
	if granted.covers(own, sameSegment) || len(path) == 1 && sameSegment(path[0], id.device) {
		return own, nil
	}
	return resource{}, ErrScope
}

func (v *Verifier) checkSignature(t Token, keys Keys) error {
	for _, key := range []string{keys.Primary, keys.Secondary} {
		if key == "" {
			continue // an empty HMAC key is one that everybody knows
		}
		secret, err := v.Mode.secret(key)
		if err != nil {
			return err
		}
		if t.SignedBy(secret) {
			return nil
		}
	}
	return ErrSignature
}

func (m KeyMode) secret(key string) ([]byte, error) {
	if m == NamespaceKeys {
		return []byte(key), nil
	}
	secret, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(secret) == 0 {
		return nil, errors.New("the stored key is not base64")
	}
	return secret, nil
}

func knownHost(hosts []string, host string) bool {
	return slices.ContainsFunc(hosts, func(known string) bool { return bareHost(known) == host })
}
