package amqpnodes_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	client "github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/common"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// module is one of device.
var module = hub.Target{DeviceID: device, ModuleID: "camera"}

var bare = hub.Target{DeviceID: device}

// create registers a device, or a module and its device.
func (e *emulator) create(t *testing.T, target hub.Target) {
	t.Helper()
	if _, err := e.hub.GetDevice(target.DeviceID); err != nil {
		e.createDevice(t, target.DeviceID)
	}
	if target.ModuleID != "" {
		must[hub.Module](t)(e.hub.CreateModule(testContext(t), hub.Module{DeviceID: target.DeviceID, ModuleID: target.ModuleID}))
	}
}

// keys are those of an identity.
func (e *emulator) keys(t *testing.T, target hub.Target) hub.SymmetricKey {
	t.Helper()
	if target.ModuleID != "" {
		return must[hub.Module](t)(e.hub.GetModule(target)).Authentication.SymmetricKey
	}
	return must[hub.Identity](t)(e.hub.GetDevice(target.DeviceID)).Authentication.SymmetricKey
}

// resource is what a token of an identity names.
func resource(target hub.Target) string {
	r := hubName + "/devices/" + target.DeviceID
	if target.ModuleID != "" {
		r += "/modules/" + target.ModuleID
	}
	return r
}

// sign makes a token with a key; policy is empty for the key of an identity.
func sign(t *testing.T, resource, policy, key string, life time.Duration) string {
	t.Helper()
	token := must[*common.SharedAccessSignature](t)(common.NewSharedAccessKey(hubName, policy, key).Token(resource, life))
	return token.String()
}

// identityToken is a token with an identity's own key, for an hour.
func (e *emulator) identityToken(t *testing.T, target hub.Target) string {
	t.Helper()
	return sign(t, resource(target), "", e.keys(t, target).PrimaryKey, time.Hour)
}

// address is that of a node of an identity.
func address(target hub.Target, node string) string {
	a := "/devices/" + url.PathEscape(target.DeviceID)
	if target.ModuleID != "" {
		a += "/modules/" + url.PathEscape(target.ModuleID)
	}
	return a + node
}

const (
	nodeEvents  = "/messages/events"
	nodeC2D     = "/messages/devicebound"
	nodeMethods = "/methods/devicebound"
	nodeTwin    = "/twin"
)

// connect opens a connection with a token of the identity, as the IoT SDK for C#
// does, and returns it with a session.
func (e *emulator) connect(t *testing.T, target hub.Target) (*client.Conn, *client.Session) {
	t.Helper()
	conn := must[*client.Conn](t)(e.dial(t, client.SASLTypeAnonymous()))
	session := newSession(t, conn)
	if err := putTokenAs(testContext(t), session, "azure-devices.net:sastoken", e.identityToken(t, target)); err != nil {
		t.Fatal(err)
	}
	return conn, session
}

// start registers an identity and connects it.
func (e *emulator) startDevice(t *testing.T, target hub.Target) *client.Session {
	t.Helper()
	e.create(t, target)
	_, session := e.connect(t, target)
	return session
}

func (e *emulator) state(t *testing.T, id string) hub.ConnectionState {
	t.Helper()
	return must[hub.Identity](t)(e.hub.GetDevice(id)).ConnectionState
}

func (e *emulator) waitForState(t *testing.T, id string, want hub.ConnectionState) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("%s is %s", id, want), func() bool { return e.state(t, id) == want })
}

// wantDetached waits until the server detaches a link on which nothing comes.
func wantDetached(t *testing.T, r *client.Receiver, want client.ErrCond) {
	t.Helper()
	_, err := r.Receive(testContext(t), nil)
	wantCondition(t, err, want)
}

// secret makes what a test case authenticates with.
type secret func(t *testing.T, e *emulator) string

func ownKey(target hub.Target) secret {
	return func(t *testing.T, e *emulator) string { return e.identityToken(t, target) }
}

func secondaryKey(target hub.Target) secret {
	return func(t *testing.T, e *emulator) string {
		return sign(t, resource(target), "", e.keys(t, target).SecondaryKey, time.Hour)
	}
}

func policyKey(policy, resource string) secret {
	return func(t *testing.T, e *emulator) string {
		return sign(t, resource, policy, e.policyKey(t, policy), time.Hour)
	}
}

func TestDeviceAuthentication(t *testing.T) {
	t.Parallel()
	const cSharp, node = "azure-devices.net:sastoken", "servicebus.windows.net:sastoken"
	other, disabled := hub.Target{DeviceID: "other"}, hub.Target{DeviceID: "disabled"}
	noDevice, noModule := hub.Target{DeviceID: "nobody"}, hub.Target{DeviceID: device, ModuleID: "nobody"}
	for name, tt := range map[string]struct {
		user   string // of PLAIN, whose password is the token; else the token is put to $cbs
		kind   string // of the token for $cbs
		token  secret
		target hub.Target // whose link is attached
		want   client.ErrCond
	}{
		"own key":                  {kind: cSharp, token: ownKey(bare), target: bare},
		"own key, Node.js":         {kind: node, token: ownKey(bare), target: bare},
		"secondary key":            {kind: cSharp, token: secondaryKey(bare), target: bare},
		"policy":                   {kind: cSharp, token: policyKey("device", hubName), target: bare},
		"policy for the device":    {kind: cSharp, token: policyKey("iothubowner", resource(bare)), target: bare},
		"policy for another":       {kind: cSharp, token: policyKey("device", resource(other)), target: bare, want: client.ErrCondUnauthorizedAccess},
		"policy without the right": {kind: cSharp, token: policyKey("service", hubName), target: bare, want: client.ErrCondUnauthorizedAccess},
		"policy, unknown device":   {kind: cSharp, token: policyKey("device", hubName), target: noDevice, want: client.ErrCondNotFound},
		"policy, unknown module":   {kind: cSharp, token: policyKey("device", hubName), target: noModule, want: client.ErrCondNotFound},
		"policy, disabled device":  {kind: cSharp, token: policyKey("device", hubName), target: disabled, want: client.ErrCondUnauthorizedAccess},
		"another device's key":     {kind: cSharp, token: ownKey(bare), target: other, want: client.ErrCondUnauthorizedAccess},
		"no token":                 {target: bare, want: client.ErrCondUnauthorizedAccess},
		"module's key":             {kind: node, token: ownKey(module), target: module},
		"module by policy":         {kind: cSharp, token: policyKey("device", hubName), target: module},
		"module by device's key":   {kind: cSharp, token: ownKey(bare), target: module, want: client.ErrCondUnauthorizedAccess},
		"device by module's key":   {kind: cSharp, token: ownKey(module), target: bare, want: client.ErrCondUnauthorizedAccess},
		"PLAIN":                    {user: device + "@sas.localhost", token: ownKey(bare), target: bare},
		"PLAIN, by policy":         {user: device + "@sas.localhost", token: policyKey("device", hubName), target: bare},
		"PLAIN of a policy":        {user: "device@sas.root.localhost", token: policyKey("device", hubName), target: bare},
		"PLAIN of a module":        {user: device + "/camera@sas.localhost", token: ownKey(module), target: module},
		"PLAIN, another device":    {user: device + "@sas.localhost", token: ownKey(bare), target: other, want: client.ErrCondUnauthorizedAccess},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			e.create(t, module)
			e.create(t, other)
			must[hub.Identity](t)(e.hub.CreateDevice(testContext(t), hub.Identity{DeviceID: disabled.DeviceID, Status: hub.StatusDisabled}))
			sasl := client.SASLTypeAnonymous()
			switch {
			case tt.user != "":
				sasl = client.SASLTypePlain(tt.user, tt.token(t, e))
			case tt.kind == node:
				sasl = nil // no SASL layer at all
			}
			session := newSession(t, must[*client.Conn](t)(e.dial(t, sasl)))
			if tt.kind != "" {
				if err := putTokenAs(testContext(t), session, tt.kind, tt.token(t, e)); err != nil {
					t.Fatal(err)
				}
			}
			sender, err := session.NewSender(testContext(t), address(tt.target, nodeEvents), nil)
			wantCondition(t, err, tt.want)
			if err != nil {
				return
			}
			if err := sender.Send(testContext(t), client.NewMessage([]byte("x")), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPlainRefusesDevices(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.create(t, module)
	e.createDevice(t, "other")
	for name, user := range map[string]string{
		"another device": "other@sas.localhost",
		"unknown device": "nobody@sas.localhost",
		"a module":       device + "/camera@sas.localhost",
		"a policy":       device + "@sas.root.localhost",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := e.dial(t, client.SASLTypePlain(user, e.identityToken(t, bare))); err == nil {
				t.Error("the connection was accepted")
			}
		})
	}
}

func TestPutTokenOfUnknownDevice(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := newSession(t, must[*client.Conn](t)(e.dial(t, nil)))
	key := "bm90IGEga2V5IG9mIGFueWJvZHk="
	err := putToken(testContext(t), session, sign(t, hubName+"/devices/nobody", "", key, time.Hour))
	if err == nil {
		t.Fatal("the token was accepted")
	}
	contains(t, err.Error(), "404")
	e.createDevice(t, "somebody")
	err = putToken(testContext(t), session, sign(t, hubName+"/devices/somebody", "", key, time.Hour))
	if err == nil {
		t.Fatal("the token was accepted")
	}
	contains(t, err.Error(), "401")
	contains(t, err.Error(), "not signed with this key")
}

func TestDeviceLinksEndWithTheToken(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	session := newSession(t, must[*client.Conn](t)(e.dial(t, nil)))
	key := e.keys(t, bare).PrimaryKey
	if err := putToken(testContext(t), session, sign(t, resource(bare), "", key, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	wantDetached(t, newReceiver(t, session, address(bare, nodeC2D)), client.ErrCondUnauthorizedAccess)
	e.waitForState(t, device, hub.Disconnected)
}

func TestRenewedTokenKeepsDeviceLinks(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	sender := newSender(t, session, address(bare, nodeEvents))
	if err := putToken(testContext(t), session, sign(t, resource(bare), "", e.keys(t, bare).PrimaryKey, 3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	e.clock.advance(2 * time.Hour)
	if err := sender.Send(testContext(t), client.NewMessage(nil), nil); err != nil {
		t.Errorf("with the newer token: %v", err)
	}
	e.clock.advance(2 * time.Hour)
	wantCondition(t, sender.Send(testContext(t), client.NewMessage(nil), nil), client.ErrCondUnauthorizedAccess)
}

func TestConnectionState(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	conn, session := e.connect(t, bare)
	if got := e.state(t, device); got != hub.Disconnected {
		t.Errorf("with a token and no link: %s", got)
	}
	first := newSender(t, session, address(bare, nodeEvents))
	second := newReceiver(t, newSession(t, conn), address(bare, nodeC2D))
	if got := e.state(t, device); got != hub.Connected {
		t.Errorf("with links: %s", got)
	}
	if err := first.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	// The second link is still good for messages.
	newSender(t, e.service(t, "service"), "/messages/devicebound")
	if got := e.state(t, device); got != hub.Connected {
		t.Errorf("with one link: %s", got)
	}
	if err := second.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	e.waitForState(t, device, hub.Disconnected)
	newReceiver(t, session, address(bare, nodeTwin))
	if got := e.state(t, device); got != hub.Connected {
		t.Errorf("with a link again: %s", got)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	e.waitForState(t, device, hub.Disconnected)
	if last := must[hub.Identity](t)(e.hub.GetDevice(device)).LastActivityTime; last.IsZero() {
		t.Error("no activity was noted")
	}
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(t *testing.T, e *emulator){
		"by AMQP": func(t *testing.T, e *emulator) {
			_, session := e.connect(t, bare)
			newSender(t, session, address(bare, nodeEvents))
		},
		"by another protocol": func(t *testing.T, e *emulator) {
			session := must[*hub.Session](t)(e.hub.Connect(testContext(t), device, hub.ConnectOptions{}))
			t.Cleanup(session.Close)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			session := e.startDevice(t, bare)
			links := []*client.Receiver{
				newReceiver(t, session, address(bare, nodeC2D)),
				newReceiver(t, session, address(bare, nodeMethods)),
				newReceiver(t, session, address(bare, nodeTwin)),
			}
			other(t, e)
			for _, link := range links {
				wantDetached(t, link, "amqp:link:stolen")
			}
			if got := e.state(t, device); got != hub.Connected {
				t.Errorf("state: %s", got)
			}
			// The connection lives on, and can take the device back.
			newReceiver(t, session, address(bare, nodeC2D))
		})
	}
}

func TestDisabledAndDeletedDevices(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	link := newReceiver(t, session, address(bare, nodeC2D))
	must[hub.Identity](t)(e.hub.UpdateDevice(testContext(t), hub.Identity{DeviceID: device, Status: hub.StatusDisabled}, hub.AnyVersion))
	wantDetached(t, link, client.ErrCondUnauthorizedAccess)
	_, err := session.NewReceiver(testContext(t), address(bare, nodeC2D), nil)
	wantCondition(t, err, client.ErrCondUnauthorizedAccess)

	must[hub.Identity](t)(e.hub.UpdateDevice(testContext(t), hub.Identity{DeviceID: device, Status: hub.StatusEnabled}, hub.AnyVersion))
	link = newReceiver(t, session, address(bare, nodeC2D))
	if err := e.hub.DeleteDevice(testContext(t), device, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	wantDetached(t, link, client.ErrCondNotFound)
	_, err = session.NewReceiver(testContext(t), address(bare, nodeC2D), nil)
	wantCondition(t, err, client.ErrCondNotFound)
}

// The IoT SDK for C# gives each device of a pooled connection a session of its
// own, and names the links of all the same.
func TestMultiplexedDevices(t *testing.T) {
	t.Parallel()
	for name, tokens := range map[string]func(t *testing.T, e *emulator, targets []hub.Target) []string{
		"by one policy": func(t *testing.T, e *emulator, _ []hub.Target) []string {
			return []string{e.hubToken(t, "device")}
		},
		"by tokens of their own": func(t *testing.T, e *emulator, targets []hub.Target) []string {
			var all []string
			for _, target := range targets {
				all = append(all, e.identityToken(t, target))
			}
			return all
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			targets := []hub.Target{module}
			e.create(t, module)
			for i := range 5 {
				target := hub.Target{DeviceID: fmt.Sprintf("device-%d", i)}
				e.create(t, target)
				targets = append(targets, target)
			}
			conn := must[*client.Conn](t)(e.dial(t, client.SASLTypeAnonymous()))
			cbs := newSession(t, conn)
			for _, token := range tokens(t, e, targets) {
				if err := putToken(testContext(t), cbs, token); err != nil {
					t.Fatal(err)
				}
			}
			senders := make(map[hub.Target]*client.Sender)
			receivers := make(map[hub.Target]*client.Receiver)
			for _, target := range targets {
				session := newSession(t, conn)
				senders[target] = must[*client.Sender](t)(session.NewSender(testContext(t), "amqps://localhost"+address(target, nodeEvents), &client.SenderOptions{Name: "TelemetrySenderLink"}))
				receivers[target] = must[*client.Receiver](t)(session.NewReceiver(testContext(t), "amqps://localhost"+address(target, nodeC2D), &client.ReceiverOptions{Name: "TelemetryReceiverLink"}))
			}
			lost := targets[1]
			taker := must[*hub.Session](t)(e.hub.Connect(testContext(t), lost.DeviceID, hub.ConnectOptions{}))
			t.Cleanup(taker.Close)
			wantDetached(t, receivers[lost], "amqp:link:stolen")
			for _, target := range targets {
				err := senders[target].Send(testContext(t), client.NewMessage([]byte(target.DeviceID)), nil)
				if target == lost {
					wantCondition(t, err, "amqp:link:stolen")
				} else if err != nil {
					t.Errorf("%s: %v", target, err)
				}
			}
			if n := e.hub.ServiceStatistics().Connected; n != 5 {
				t.Errorf("%d devices are connected, want 5", n)
			}
		})
	}
}

// A device that attaches and detaches all the time leaves nothing behind.
func TestAttachAndDetach(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	for range 100 {
		for _, node := range []string{nodeC2D, nodeMethods, nodeTwin} {
			link := newReceiver(t, session, address(bare, node))
			if err := link.Close(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
		link := newSender(t, session, address(bare, nodeTwin))
		if err := link.Close(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	e.waitForState(t, device, hub.Disconnected)
}

func TestUnknownDeviceNodes(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	for _, a := range []string{"/devices", "/devices/", "/devices/d", "/devices/d/modules", "/devices/d/modules/m", "/devices/d/files", "/devices//twin/x"} {
		if _, err := session.NewSender(testContext(t), a, nil); err == nil {
			t.Errorf("address %q was accepted", a)
		}
	}
	if _, err := session.NewReceiver(testContext(t), address(bare, nodeEvents), nil); condition(err) != client.ErrCondNotImplemented {
		t.Errorf("receiving telemetry: %v", err)
	}
}
