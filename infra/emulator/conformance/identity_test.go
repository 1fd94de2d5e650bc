package conformance_test

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/go-amqp"
	paho "github.com/eclipse/paho.mqtt.golang"
)

// identity is a device, or a module of one, with a key of its own. Where the hub
// does the same for both, cases are run for both.
type identity struct{ deviceID, moduleID, key string }

func (d device) identity() identity { return identity{deviceID: d.id, key: d.primary} }

// newModule registers a module with generated keys.
func (w *world) newModule(d device, moduleID string) identity {
	w.t.Helper()
	m := identity{deviceID: d.id, moduleID: moduleID}
	var made struct {
		Authentication struct{ SymmetricKey struct{ PrimaryKey string } }
	}
	body := map[string]any{"deviceId": d.id, "moduleId": moduleID}
	w.must(w.rest(http.MethodPut, m.path(""), body), http.StatusOK).decode(w.t, &made)
	m.key = made.Authentication.SymmetricKey.PrimaryKey
	return m
}

// newIdentity registers a device, and if its name has a slash a module of it.
func (w *world) newIdentity(name string) identity {
	w.t.Helper()
	deviceID, moduleID, isModule := strings.Cut(name, "/")
	d := w.newDevice(deviceID)
	if !isModule {
		return d.identity()
	}
	return w.newModule(d, moduleID)
}

// path returns /devices/{id}[/modules/{id}] and what follows.
func (i identity) path(rest string) string { return "/devices/" + i.segments(url.PathEscape) + rest }

// twinPath is path of the twin.
func (i identity) twinPath(rest string) string { return "/twins/" + i.segments(url.PathEscape) + rest }

func (i identity) segments(escape func(string) string) string {
	if i.moduleID == "" {
		return escape(i.deviceID)
	}
	return escape(i.deviceID) + "/modules/" + escape(i.moduleID)
}

// topic returns devices/{id}[/modules/{id}] and what follows.
func (i identity) topic(rest string) string { return "devices/" + i.segments(plain) + rest }

func plain(s string) string { return s }

// resource is what a token of the identity's own names.
func (w *world) resource(i identity) string {
	w.t.Helper()
	return w.emulator().HubName() + "/devices/" + i.segments(plain)
}

// identityToken is a token that the identity signs itself.
func (w *world) identityToken(i identity) string {
	w.t.Helper()
	return w.token(w.resource(i), "", i.key, time.Hour)
}

// asIdentity makes options of a device those of the identity: a module has both
// IDs in its client ID and user name (IoT Hub docs: "Communicate with an IoT hub
// using the MQTT protocol").
func (w *world) asIdentity(i identity) func(*paho.ClientOptions) {
	name := i.deviceID
	if i.moduleID != "" {
		name += "/" + i.moduleID
	}
	return func(o *paho.ClientOptions) {
		o.SetClientID(name)
		o.SetUsername(w.emulator().HubName() + "/" + name + "/?api-version=" + apiVersion)
		o.SetPassword(w.identityToken(i))
	}
}

// mqttAs connects an identity over MQTT.
func (w *world) mqttAs(i identity) *mqttClient {
	w.t.Helper()
	return w.mqtt(device{id: i.deviceID, primary: i.key}, w.asIdentity(i))
}

// amqpAs connects an identity over AMQP.
func (w *world) amqpAs(i identity) *amqp.Session {
	w.t.Helper()
	return w.amqp(map[string]string{w.resource(i): w.identityToken(i)}, nil)
}

// amqpPair attaches the two links of a device to one of its nodes, methods or
// twin, as the SDKs do (azure-iot-device-amqp, amqp_twin_client.ts).
func (w *world) amqpPair(s *amqp.Session, address string) (*amqp.Sender, *amqp.Receiver) {
	w.t.Helper()
	properties := map[string]any{
		"com.microsoft:channel-correlation-id": "pair:1",
		"com.microsoft:api-version":            apiVersion,
	}
	sender := w.sender(s, address, &amqp.SenderOptions{Properties: properties})
	receiver := w.receiver(s, address, &amqp.ReceiverOptions{
		Properties: properties, RequestedSenderSettleMode: amqp.SenderSettleModeSettled.Ptr(),
	})
	return sender, receiver
}

// refuses fails the case unless the hub refused with a status and its name of the
// error, in the header and in the body.
func (w *world) refuses(a answer, status int, code string) {
	w.t.Helper()
	if a.status != status || a.code() != code || !strings.Contains(string(a.body), code) {
		w.t.Errorf("status %d %s, want %d %s: %s", a.status, a.code(), status, code, a.body)
	}
}

// at returns what stands at a path of decoded JSON, nil for nothing.
func at(document any, path ...string) any {
	for _, name := range path {
		object, _ := document.(map[string]any)
		document = object[name]
	}
	return document
}
