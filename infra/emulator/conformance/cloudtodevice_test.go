package conformance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/job"
)

const (
	c2dPage     = `IoT Hub docs: "Understand cloud-to-device messaging from an IoT hub"`
	c2dErrors   = "azure-iot-sdk-node, common/transport/amqp/src/amqp_common_errors.ts"
	c2dRegistry = `IoT Hub docs: "Understand the identity registry in your IoT hub"`
)

var cloudToDevice = area{
	name: "Cloud-to-device messages",
	emulated: slices.Concat(
		c2dDelivery, c2dQueue, c2dTimeToLive, c2dReturns, c2dAcks(), c2dFeedback, c2dDevices, c2dSending,
	),
	refused: []behaviour{
		{"Messages to modules", "are refused as not allowed", `IoT Hub docs: "Understand and use module twins in IoT Hub"`, c2dRefusesModules},
		{"Rejecting and abandoning over MQTT", "a device can but complete a message, or get it again", c2dPage, c2dMQTTReturns},
	},
}

var c2dDelivery = []behaviour{
	{"Delivery over MQTT", "all that the sender set, and the message ID", c2dPage, c2dDelivers(c2dOverMQTT)},
	{"Delivery over MQTT", "in order", c2dPage, c2dKeepsOrder(c2dOverMQTT)},
	{"Delivery over MQTT", "to a device that was offline", c2dPage, c2dWaits(c2dOverMQTT)},
	{"Delivery over AMQP", "all that the sender set, and the message ID", c2dPage, c2dDelivers(c2dOverAMQP)},
	{"Delivery over AMQP", "in order", c2dPage, c2dKeepsOrder(c2dOverAMQP)},
	{"Delivery over AMQP", "to a device that was offline", c2dPage, c2dWaits(c2dOverAMQP)},
	{"Delivery over HTTPS", "all that the sender set, and the message ID", c2dPage, c2dDelivers(c2dOverHTTPS)},
	{"Delivery over HTTPS", "in order", c2dPage, c2dKeepsOrder(c2dOverHTTPS)},
	{"Delivery over HTTPS", "to a device that was offline", c2dPage, c2dWaits(c2dOverHTTPS)},
}

var c2dQueue = []behaviour{
	{"Queue of 50 messages", "the 51st is refused", c2dPage, c2dRefuses51st},
	{"Queue of 50 messages", "each device has its own", c2dPage, c2dSeparatesQueues},
	{"Queue of 50 messages", "a completed message makes room", c2dPage, c2dMakesRoom},
	{"Queue of 50 messages", "the registry tells how many wait", c2dRegistry, c2dCounts},
	{"Purge", "removes what waits and says how many", `IoT Hub docs: "Cloud To Device Messages - Purge Cloud To Device Message Queue"`, c2dPurges},
}

var c2dTimeToLive = []behaviour{
	{"Time to live", "one hour by default", c2dPage, c2dLives("", time.Hour)},
	{"Time to live", "as the hub is configured", c2dPage, c2dLives("Hub: {CloudToDevice: {DefaultTimeToLive: PT1M}}", time.Minute)},
	{"Time to live", "a message may set its own expiry", c2dPage, c2dExpires},
	{"Time to live", "an expiry in the past is refused", c2dErrors, c2dRefusesPast},
	{"Time to live", "Go's zero time is none", "amenzhinsky/iothub, iotservice/client.go", c2dTakesZeroTime},
}

var c2dReturns = []behaviour{
	{"Max delivery count", "10 by default, counting what the device abandons", c2dPage, c2dGivesUp("", 10)},
	{"Max delivery count", "as the hub is configured", c2dPage, c2dGivesUp("Hub: {CloudToDevice: {MaxDeliveryCount: 2}}", 2)},
	{"Lock timeout", "returns the message to the queue, and doesn't count", c2dPage, c2dReturnsUnlocked},
	{"Lock timeout", "lets nobody settle afterwards", `IoT Hub docs: "Troubleshoot Azure IoT Hub error codes"`, c2dLosesLock},
	{"Rejecting over AMQP and HTTPS", "ends the message", c2dPage, c2dRejects},
}

// c2dAcks are all kinds of acknowledgement with all outcomes (IoT Hub docs, table
// of ack property values).
func c2dAcks() []behaviour {
	var all []behaviour
	for _, outcome := range c2dOutcomes {
		for _, ack := range []string{"", "none", "positive", "negative", "full"} {
			wanted := ack == "full" || ack == "positive" && outcome.status == "Success" || ack == "negative" && outcome.status != "Success"
			says := fmt.Sprintf("%s of a message with ack %q is told: %t", outcome.status, ack, wanted)
			all = append(all, behaviour{"Feedback", says, c2dPage, c2dTells(ack, outcome, wanted)})
		}
	}
	return all
}

var c2dFeedback = []behaviour{
	{"Feedback", "records name message, device and generation", c2dPage, c2dRecords},
	{"Feedback", "the format of a batch", c2dPage, c2dBatch},
	{"Feedback", "64 records make a batch at once", c2dPage, c2dFillsBatch},
	{"Feedback", "lives for an hour by default", c2dPage, c2dFeedbackLives("", time.Hour)},
	{"Feedback", "lives as long as is configured", c2dPage, c2dFeedbackLives("Hub: {Feedback: {TimeToLive: PT2M}}", 2*time.Minute)},
	{"Feedback", "is locked for other receivers, and comes again when it is abandoned", c2dPage, c2dFeedbackReturns},
	{"Feedback", "is dropped after its max delivery count", c2dPage, c2dFeedbackGivesUp},
	{"Feedback", "pending records go with their device", c2dPage, c2dForgets},
	{"Feedback", "reaches azure/iothub, the pipeline's client", c2dPage, c2dPipeline},
	{"Feedback over HTTPS", "nothing is answered with 204", c2dHTTPPage("Receive"), c2dFeedbackNothing},
	{"Feedback over HTTPS", "a batch is locked, and completed", c2dHTTPPage("Complete"), c2dFeedbackCompletes},
	{"Feedback over HTTPS", "an abandoned batch comes again", c2dHTTPPage("Abandon"), c2dFeedbackAbandons},
	{"Feedback over HTTPS", "without the lock, 412 says so", c2dHTTPPage("Complete"), c2dFeedbackLosesLock},
}

func c2dHTTPPage(verb string) string {
	return `IoT Hub docs: "Cloud To Device Messages - ` + verb + ` Feedback Notification"`
}

var c2dDevices = []behaviour{
	{"Offline, disabled and deleted devices", "a disabled device finds its messages when it is enabled", c2dPage, c2dKeepsForDisabled},
	{"Offline, disabled and deleted devices", "a new device of the same name finds none", c2dRegistry, c2dDeletes},
}

var c2dSending = []behaviour{
	{"Sending", "to an unknown device is refused as not found", c2dErrors, c2dRefusesUnknown},
	{"Sending", "a message has up to 64 KB", httpLimits, c2dSendsLarge},
	{"Sending", "more is refused as too large", c2dErrors, c2dRefusesLarge},
	{"Sending", "to an address that is no device's is refused", c2dErrors, c2dRefusesTo},
	{"Sending", "with an unknown ack is refused", c2dPage, c2dRefusesAck},
	{"Sending", "with an impossible message ID is refused", mqttMessages, c2dRefusesID},
	{"Sending", "goes on after a refusal", "AMQP 1.0 §3.4.3", c2dGoesOn},
	{"Sending", "a message ID in binary form comes as text", "azure-iot-sdk-node, common/transport/amqp/src/amqp_message.ts", c2dTakesUUID},
	{"File upload notifications", "the link is there, and silent without file upload", `IoT Hub docs: "Upload files with IoT Hub"`, c2dSilentFiles},
}

// c2dReceived is a message as a device got it, whatever the protocol.
type c2dReceived struct {
	body       string
	properties properties
	complete   func()
}

// c2dProtocol opens a device's way to its messages, and returns what waits for
// the next one.
type c2dProtocol func(*world, device) func() c2dReceived

func c2dOverMQTT(w *world, d device) func() c2dReceived {
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/"+d.id+"/messages/devicebound/#", 1)
	return func() c2dReceived {
		p := expect[*packets.PublishPacket](c)
		all := properties{}
		for name, value := range w.bagOf(p.TopicName, "devices/"+d.id+"/messages/devicebound/") {
			all[c2dName(name)] = value
		}
		return c2dReceived{string(p.Payload), all, func() { c.puback(p) }}
	}
}

// c2dName is the one name for what each protocol calls differently.
func c2dName(name string) string {
	for _, names := range [][]string{
		{"message-id", "$.mid", "messageid"}, {"correlation-id", "$.cid", "correlationid"}, {"user-id", "$.uid", "userid"},
		{"content-type", "$.ct", "contenttype"}, {"content-encoding", "$.ce", "contentencoding"}, {"expiry", "$.exp"}, {"to", "$.to"},
		{"ack", "iothub-ack"},
	} {
		if slices.Contains(names, name) {
			return names[0]
		}
	}
	return name
}

func c2dOverHTTPS(w *world, d device) func() c2dReceived {
	return func() c2dReceived {
		var a answer
		w.eventually("a message", func() bool {
			a = w.httpNext(d, "")
			return a.status == http.StatusOK
		})
		all := properties{}
		for name := range a.header {
			if short, ok := strings.CutPrefix(strings.ToLower(name), "iothub-"); ok {
				all[c2dName(strings.TrimPrefix(short, "app-"))] = a.header.Get(name)
			}
		}
		lock := strings.Trim(a.header.Get("ETag"), `"`)
		return c2dReceived{string(a.body), all, func() { w.must(w.httpSettle(d, lock, ""), http.StatusNoContent) }}
	}
}

func c2dOverAMQP(w *world, d device) func() c2dReceived {
	receiver := w.c2dReceiver(d)
	return func() c2dReceived {
		m := w.receive(receiver)
		p := m.Properties
		all := properties{
			"message-id": fmt.Sprint(p.MessageID), "correlation-id": fmt.Sprint(p.CorrelationID), "user-id": string(p.UserID),
		}
		for name, text := range map[string]*string{"to": p.To, "content-type": p.ContentType, "content-encoding": p.ContentEncoding} {
			if text != nil {
				all[name] = *text
			}
		}
		if p.AbsoluteExpiryTime != nil {
			all["expiry"] = p.AbsoluteExpiryTime.UTC().Format(time.RFC3339)
		}
		for name, value := range m.ApplicationProperties {
			all[c2dName(name)] = fmt.Sprint(value)
		}
		return c2dReceived{string(m.GetData()), all, func() {
			if err := receiver.AcceptMessage(w.ctx(), m); err != nil {
				w.t.Fatal(err)
			}
		}}
	}
}

// c2dReceiver attaches a device's link for its messages.
func (w *world) c2dReceiver(d device) *amqp.Receiver {
	w.t.Helper()
	return w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), &amqp.ReceiverOptions{Credit: 10})
}

// c2dSender attaches the service's link for messages to all devices.
func (w *world) c2dSender() *amqp.Sender {
	w.t.Helper()
	return w.sender(w.amqpService("service"), "/messages/devicebound", nil)
}

// c2dSend sends a message after change, if that is not nil.
func (w *world) c2dSend(s *amqp.Sender, d device, id, ack string, change func(*amqp.Message)) error {
	w.t.Helper()
	m := w.c2d(d, id, id)
	m.ApplicationProperties = map[string]any{}
	if ack != "" {
		m.ApplicationProperties["iothub-ack"] = ack
	}
	if change != nil {
		change(m)
	}
	return s.Send(w.ctx(), m, nil)
}

// c2dSends is c2dSend of messages that the hub takes.
func (w *world) c2dSends(s *amqp.Sender, d device, ack string, ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		if err := w.c2dSend(s, d, id, ack, nil); err != nil {
			w.t.Fatal(err)
		}
	}
}

// c2dRefused fails the case unless the error has a condition and the hub's code.
func (w *world) c2dRefused(err error, condition amqp.ErrCond, code int32) {
	w.t.Helper()
	var refusal *amqp.Error
	if !errors.As(err, &refusal) || refusal.Condition != condition || code != 0 && refusal.Info["com.microsoft:error-code"] != code {
		w.t.Errorf("got %v, want %s with code %d", err, condition, code)
	}
}

func c2dIDs(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s%02d", prefix, i+1)
	}
	return ids
}

func c2dDelivers(protocol c2dProtocol) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		d := w.newDevice("d::1")
		receive := protocol(w, d)
		sender := w.c2dSender()
		err := w.c2dSend(sender, d, "m-1", "full", func(m *amqp.Message) {
			p := m.Properties
			p.CorrelationID, p.UserID, p.AbsoluteExpiryTime = "c-1", []byte("ada"), new(time.Date(2098, 7, 6, 5, 4, 3, 0, time.UTC))
			p.ContentType, p.ContentEncoding = new("application/json"), new("utf-8")
			m.ApplicationProperties["color"] = "red & blue = purple"
			m.Data = [][]byte{[]byte(`{"hello":"world"}`)}
		})
		if err != nil {
			t.Fatal(err)
		}
		m := receive()
		w.check("body", m.body, `{"hello":"world"}`)
		for name, want := range (properties{
			"message-id": "m-1", "correlation-id": "c-1", "user-id": "ada", "content-type": "application/json", "content-encoding": "utf-8",
			"ack": "full", "color": "red & blue = purple",
		}) {
			w.check(name, m.properties[name], want)
		}
		w.check("to", strings.ReplaceAll(strings.ToLower(m.properties["to"]), "%3a", ":"), "/devices/d::1/messages/devicebound")
		if expiry, err := time.Parse(time.RFC3339, m.properties["expiry"]); err != nil || expiry.Year() != 2098 {
			t.Errorf("expiry %q", m.properties["expiry"])
		}
		m.complete()
		w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].StatusCode, "Success")
	}
}

func c2dKeepsOrder(protocol c2dProtocol) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		d := w.newDevice("d")
		receive := protocol(w, d)
		ids := c2dIDs("m", 20)
		w.c2dSends(w.c2dSender(), d, "", ids...)
		for _, id := range ids {
			m := receive()
			w.check("message", m.body, id)
			m.complete()
		}
	}
}

// c2dWaits sends before the device has ever connected.
func c2dWaits(protocol c2dProtocol) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		d := w.newDevice("d")
		w.c2dSends(w.c2dSender(), d, "", "first", "second")
		receive := protocol(w, d)
		for _, want := range []string{"first", "second"} {
			m := receive()
			w.check("message", m.body, want)
			m.complete()
		}
	}
}

func c2dRefuses51st(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.c2dSender()
	w.c2dSends(sender, d, "", c2dIDs("m", 50)...)
	w.c2dRefused(w.c2dSend(sender, d, "m51", "", nil), amqp.ErrCondResourceLimitExceeded, 403004)
}

func c2dSeparatesQueues(_ *testing.T, w *world) {
	sender := w.c2dSender()
	w.c2dSends(sender, w.newDevice("full"), "", c2dIDs("m", 50)...)
	w.c2dSends(sender, w.newDevice("empty"), "", "m")
}

func c2dMakesRoom(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.c2dSender()
	w.c2dSends(sender, d, "", c2dIDs("m", 50)...)
	_, lock := w.httpLocked(d, "")
	w.c2dRefused(w.c2dSend(sender, d, "m51", "", nil), amqp.ErrCondResourceLimitExceeded, 403004) // locked isn't gone
	w.must(w.httpSettle(d, lock, ""), http.StatusNoContent)
	w.c2dSends(sender, d, "", "m51")
}

func c2dCounts(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.c2dSends(w.c2dSender(), d, "", "one", "two")
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 2)
	twin := w.must(w.rest(http.MethodGet, "/twins/d", nil), http.StatusOK).object(w.t)
	w.check("waiting, as the twin has it", twin["cloudToDeviceMessageCount"], 2)
}

func c2dPurges(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.c2dSends(w.c2dSender(), d, "", "one", "two", "three")
	got := w.must(w.rest(http.MethodDelete, d.path("/commands"), nil), http.StatusOK).object(w.t)
	w.check("answer", got, map[string]any{"totalMessagesPurged": 3, "deviceId": "d", "moduleId": nil})
	w.must(w.httpNext(d, ""), http.StatusNoContent)
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 0)
}

// c2dLives looks at the time to live that a message shows on an AMQP link.
func c2dLives(config string, want time.Duration) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		if config != "" {
			w.configure(config)
		}
		d := w.newDevice("d")
		w.c2dSends(w.c2dSender(), d, "", "m")
		w.check("time to live", w.receive(w.c2dReceiver(d)).Header.TTL, want)
	}
}

// soonExpired is the expiry of a message that nobody will get: late enough for the
// hub to take it.
func soonExpired(m *amqp.Message) { m.Properties.AbsoluteExpiryTime = new(time.Now().Add(time.Second)) }

func c2dExpires(t *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.c2dSender()
	if err := w.c2dSend(sender, d, "short-lived", "full", soonExpired); err != nil {
		t.Fatal(err)
	}
	w.c2dSends(sender, d, "full", "long-lived")
	r := w.feedback(w.amqpService("service"), 1)[0]
	w.check("feedback", r.OriginalMessageID+" "+r.StatusCode, "short-lived Expired")
	a, _ := w.httpLocked(d, "")
	w.check("what is left", string(a.body), "long-lived")
}

func c2dRefusesPast(_ *testing.T, w *world) {
	err := w.c2dSend(w.c2dSender(), w.newDevice("d"), "m", "", func(m *amqp.Message) {
		m.Properties.AbsoluteExpiryTime = new(time.Now().Add(-time.Minute))
	})
	w.c2dRefused(err, "com.microsoft:argument-error", 400004)
}

func c2dTakesZeroTime(t *testing.T, w *world) {
	d := w.newDevice("d")
	if err := w.c2dSend(w.c2dSender(), d, "m", "", func(m *amqp.Message) { m.Properties.AbsoluteExpiryTime = new(time.Time) }); err != nil {
		t.Fatal(err)
	}
	w.httpLocked(d, "")
}

// c2dGivesUp abandons a message as often as the hub lets it.
func c2dGivesUp(config string, times int) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		if config != "" {
			w.configure(config)
		}
		d := w.newDevice("d")
		receiver := w.c2dReceiver(d)
		w.c2dSends(w.c2dSender(), d, "full", "m")
		for i := range times {
			m := w.receive(receiver)
			w.check("delivery count", m.Annotations["iothub-deliverycount"], i)
			if err := receiver.ReleaseMessage(w.ctx(), m); err != nil {
				t.Fatal(err)
			}
		}
		w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].StatusCode, "DeliveryCountExceeded")
		w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 0)
	}
}

// endLocks lets the time of all locks be over.
func (w *world) endLocks() {
	w.t.Helper()
	if _, err := w.emulator().InjectFault(emulator.Fault{Kind: emulator.FaultExpireLocks, Device: "*"}); err != nil {
		w.t.Fatal(err)
	}
}

func c2dReturnsUnlocked(_ *testing.T, w *world) {
	w.configure("Hub: {CloudToDevice: {MaxDeliveryCount: 1}}")
	d := w.newDevice("d")
	receiver := w.c2dReceiver(d)
	w.c2dSends(w.c2dSender(), d, "", "one", "two")
	for range 3 {
		for _, want := range []string{"one", "two"} {
			m := w.receive(receiver)
			w.check("message", string(m.GetData()), want)
			w.check("delivery count", m.Annotations["iothub-deliverycount"], 0)
		}
		w.endLocks()
	}
}

func c2dLosesLock(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.c2dSends(w.c2dSender(), d, "", "m")
	_, lock := w.httpLocked(d, "")
	w.endLocks()
	w.refuses(w.httpSettle(d, lock, ""), http.StatusPreconditionFailed, "DeviceMessageLockLost")
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 1)
}

func c2dRejects(t *testing.T, w *world) {
	d := w.newDevice("d")
	sender, service := w.c2dSender(), w.amqpService("service")
	w.c2dSends(sender, d, "full", "over-AMQP")
	receiver := w.c2dReceiver(d)
	if err := receiver.RejectMessage(w.ctx(), w.receive(receiver), nil); err != nil {
		t.Fatal(err)
	}
	w.check("feedback", w.feedback(service, 1)[0].StatusCode, "Rejected")
	if err := receiver.Close(w.ctx()); err != nil {
		t.Fatal(err)
	}
	w.c2dSends(sender, d, "full", "over-HTTPS")
	_, lock := w.httpLocked(d, "")
	w.must(w.httpSettle(d, lock, "?reject"), http.StatusNoContent)
	w.check("feedback", w.feedback(service, 1)[0].StatusCode, "Rejected")
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 0)
}

// c2dOutcome is what may become of a message.
type c2dOutcome struct {
	status string
	// send changes the message; nil leaves it as it is.
	send func(*amqp.Message)
	// end brings the outcome about.
	end func(*world, device)
}

var c2dOutcomes = []c2dOutcome{
	{"Success", nil, c2dSettles("")},
	{"Rejected", nil, c2dSettles("?reject")},
	{"DeliveryCountExceeded", nil, c2dSettles("/abandon")}, // the case allows one delivery
	{"Expired", soonExpired, func(*world, device) {}},
	{"Purged", nil, func(w *world, d device) {
		w.must(w.rest(http.MethodDelete, d.path("/commands"), nil), http.StatusOK)
	}},
}

func c2dSettles(end string) func(*world, device) {
	return func(w *world, d device) {
		_, lock := w.httpLocked(d, "")
		w.must(w.httpSettle(d, lock, end), http.StatusNoContent)
	}
}

// c2dTells brings an outcome about, and then that of another message, whose
// feedback shows that there was no other before.
func c2dTells(ack string, outcome c2dOutcome, wanted bool) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		w.configure("Hub: {CloudToDevice: {MaxDeliveryCount: 1}}")
		d := w.newDevice("d")
		sender := w.c2dSender()
		if err := w.c2dSend(sender, d, "m", ack, outcome.send); err != nil {
			t.Fatal(err)
		}
		outcome.end(w, d)
		w.eventually("the message is gone", func() bool { return w.registered(d)["cloudToDeviceMessageCount"] == 0.0 })
		w.c2dSends(sender, d, "full", "after")
		c2dSettles("")(w, d)
		want := []string{"after Success"}
		if wanted {
			want = append(want, "m "+outcome.status)
		}
		w.check("feedback", c2dOutcomesOf(w.feedback(w.amqpService("service"), len(want))), want)
	}
}

func c2dRecords(t *testing.T, w *world) {
	d := w.newDevice("d")
	before := time.Now().Add(-time.Minute)
	w.c2dSends(w.c2dSender(), d, "full", "m-1")
	c2dSettles("")(w, d)
	r := w.feedback(w.amqpService("service"), 1)[0]
	at, err := time.Parse(time.RFC3339, r.EnqueuedTimeUTC)
	if err != nil || at.Before(before) || !strings.HasSuffix(r.EnqueuedTimeUTC, "Z") {
		t.Errorf("enqueuedTimeUtc is %q", r.EnqueuedTimeUTC)
	}
	r.EnqueuedTimeUTC = ""
	generation, _ := w.registered(d)["generationId"].(string)
	w.check("record", r, feedbackRecord{
		OriginalMessageID: "m-1", Description: "Success", DeviceGenerationID: generation, DeviceID: "d", StatusCode: "Success",
	})
}

// c2dPurged makes a batch of feedback: a record for each ID.
func (w *world) c2dPurged(d device, ids ...string) {
	w.t.Helper()
	w.c2dSends(w.c2dSender(), d, "full", ids...)
	w.must(w.rest(http.MethodDelete, d.path("/commands"), nil), http.StatusOK)
}

// c2dFeedbackReceiver attaches a service's link for feedback, without credit of
// its own: what is received is asked for.
func (w *world) c2dFeedbackReceiver() *amqp.Receiver {
	w.t.Helper()
	return w.receiver(w.amqpService("service"), "/messages/serviceBound/feedback", &amqp.ReceiverOptions{Credit: -1})
}

// c2dNext receives one message on a link without credit of its own.
func (w *world) c2dNext(r *amqp.Receiver) *amqp.Message {
	w.t.Helper()
	if err := r.IssueCredit(1); err != nil {
		w.t.Fatal(err)
	}
	return w.receive(r)
}

// c2dNothing shows that there is nothing on a link without credit of its own.
func (w *world) c2dNothing(r *amqp.Receiver) {
	w.t.Helper()
	if err := r.IssueCredit(1); err != nil {
		w.t.Fatal(err)
	}
	if err := r.DrainCredit(w.ctx(), nil); err != nil {
		w.t.Fatal(err)
	}
	if m := r.Prefetched(); m != nil {
		w.t.Errorf("there is %s", m.GetData())
	}
}

func c2dBatch(t *testing.T, w *world) {
	d := w.newDevice("d")
	w.c2dPurged(d, "one", "two", "three")
	m := w.c2dNext(w.c2dFeedbackReceiver())
	var records []feedbackRecord
	if err := json.Unmarshal(m.GetData(), &records); err != nil {
		t.Fatal(err)
	}
	w.check("content type", *m.Properties.ContentType, "application/vnd.microsoft.iothub.feedback.json")
	w.check("user ID", string(m.Properties.UserID), w.emulator().HubName())
	if at, ok := m.Annotations["iothub-enqueuedtime"].(time.Time); !ok || time.Since(at) > time.Hour {
		t.Errorf("enqueued time %v", m.Annotations["iothub-enqueuedtime"])
	}
	w.check("records", c2dOutcomesOf(records), []string{"one Purged", "three Purged", "two Purged"})
}

// c2dOutcomesOf says in short what records say, in alphabetical order.
func c2dOutcomesOf(records []feedbackRecord) []string {
	var all []string
	for _, r := range records {
		all = append(all, r.OriginalMessageID+" "+r.StatusCode)
	}
	slices.Sort(all)
	return all
}

// everyHour keeps feedback together that a test's emulator would deliver at once.
func everyHour(o *emulator.Options) { o.FeedbackInterval = time.Hour }

func c2dFillsBatch(_ *testing.T, w *world) {
	w.with(everyHour)
	w.c2dPurged(w.newDevice("a"), c2dIDs("a", 40)...)
	w.c2dPurged(w.newDevice("b"), c2dIDs("b", 24)...)
	w.check("records", len(w.feedback(w.amqpService("service"), 1)), 64)
}

func c2dFeedbackLives(config string, want time.Duration) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		if config != "" {
			w.configure(config)
		}
		w.c2dPurged(w.newDevice("d"), "m")
		w.check("time to live", w.c2dNext(w.c2dFeedbackReceiver()).Header.TTL, want)
	}
}

func c2dFeedbackReturns(t *testing.T, w *world) {
	w.c2dPurged(w.newDevice("d"), "m")
	first, second := w.c2dFeedbackReceiver(), w.c2dFeedbackReceiver()
	m := w.c2dNext(first)
	w.c2dNothing(second)
	if err := first.ReleaseMessage(w.ctx(), m); err != nil {
		t.Fatal(err)
	}
	again := w.c2dNext(second)
	w.check("batch", string(again.GetData()), string(m.GetData()))
	if err := second.AcceptMessage(w.ctx(), again); err != nil {
		t.Fatal(err)
	}
	w.c2dNothing(first)
}

func c2dFeedbackGivesUp(t *testing.T, w *world) {
	w.configure("Hub: {Feedback: {MaxDeliveryCount: 2}}")
	w.c2dPurged(w.newDevice("d"), "m")
	receiver := w.c2dFeedbackReceiver()
	for range 2 {
		if err := receiver.ReleaseMessage(w.ctx(), w.c2dNext(receiver)); err != nil {
			t.Fatal(err)
		}
	}
	w.c2dPurged(w.newDevice("other"), "later")
	got := string(w.c2dNext(receiver).GetData())
	if !strings.Contains(got, "later") {
		t.Errorf("there is still %s", got)
	}
}

// c2dForgets deletes a device whose feedback waits for its batch, which another
// device fills.
func c2dForgets(_ *testing.T, w *world) {
	w.with(everyHour)
	gone := w.newDevice("gone")
	w.c2dPurged(gone, "gone")
	w.must(w.rest(http.MethodDelete, gone.path(""), nil, "If-Match: *"), http.StatusNoContent)
	for i, n := range []int{40, 24} {
		w.c2dPurged(w.newDevice([]string{"a", "b"}[i]), c2dIDs("m", n)...)
	}
	for _, r := range w.feedback(w.amqpService("service"), 64) {
		if r.DeviceID == "gone" {
			w.t.Errorf("feedback of a deleted device: %v", r)
		}
	}
}

func c2dPipeline(t *testing.T, w *world) {
	d := w.newDevice("device-solver::job-1")
	client := w.service()
	if err := client.SendCloudToDevice(w.ctx(), d.id, job.Message{ID: "m-1", Body: []byte("{}")}, time.Hour); err != nil {
		t.Fatal(err)
	}
	c2dSettles("")(w, d)
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	var got []job.FeedbackRecord
	err := client.ReceiveFeedback(ctx, func(_ context.Context, records []job.FeedbackRecord) error {
		got = append(got, records...)
		cancel()
		return nil
	})
	if len(got) != 1 || got[0].MessageID != "m-1" || got[0].DeviceID != d.id || got[0].Outcome != job.OutcomeSuccess {
		t.Errorf("got %v, %v", got, err)
	}
}

const c2dFeedbackPath = "/messages/serviceBound/feedback"

// c2dFeedbackLocked receives a batch over HTTPS.
func (w *world) c2dFeedbackLocked() (a answer, lock string) {
	w.t.Helper()
	w.eventually("feedback", func() bool {
		a = w.rest(http.MethodGet, c2dFeedbackPath, nil)
		return a.status == http.StatusOK
	})
	return a, strings.Trim(a.header.Get("ETag"), `"`)
}

func c2dFeedbackNothing(_ *testing.T, w *world) {
	w.must(w.rest(http.MethodGet, c2dFeedbackPath, nil), http.StatusNoContent)
}

func c2dFeedbackCompletes(_ *testing.T, w *world) {
	w.c2dPurged(w.newDevice("d"), "m")
	a, lock := w.c2dFeedbackLocked()
	var records []feedbackRecord
	a.decode(w.t, &records)
	if len(records) != 1 || records[0].OriginalMessageID != "m" {
		w.t.Errorf("got %s", a.body)
	}
	w.must(w.rest(http.MethodGet, c2dFeedbackPath, nil), http.StatusNoContent)
	w.must(w.rest(http.MethodDelete, c2dFeedbackPath+"/"+lock, nil), http.StatusNoContent)
	w.c2dNothing(w.c2dFeedbackReceiver())
}

func c2dFeedbackAbandons(_ *testing.T, w *world) {
	w.c2dPurged(w.newDevice("d"), "m")
	a, lock := w.c2dFeedbackLocked()
	w.must(w.rest(http.MethodPost, c2dFeedbackPath+"/"+lock+"/abandon", nil), http.StatusNoContent)
	again, _ := w.c2dFeedbackLocked()
	w.check("batch", string(again.body), string(a.body))
}

func c2dFeedbackLosesLock(_ *testing.T, w *world) {
	w.c2dPurged(w.newDevice("d"), "m")
	_, lock := w.c2dFeedbackLocked()
	w.must(w.rest(http.MethodDelete, c2dFeedbackPath+"/"+lock, nil), http.StatusNoContent)
	w.refuses(w.rest(http.MethodDelete, c2dFeedbackPath+"/"+lock, nil), http.StatusPreconditionFailed, "DeviceMessageLockLost")
	w.refuses(w.rest(http.MethodPost, c2dFeedbackPath+"/"+lock+"/abandon", nil), http.StatusPreconditionFailed, "DeviceMessageLockLost")
}

func c2dKeepsForDisabled(_ *testing.T, w *world) {
	d := w.newDevice("d")
	status := func(status string) {
		identity := w.registered(d)
		identity["status"] = status
		w.must(w.rest(http.MethodPut, d.path(""), identity, "If-Match: *"), http.StatusOK)
	}
	sender := w.c2dSender()
	w.c2dSends(sender, d, "", "before")
	status("disabled")
	w.c2dSends(sender, d, "", "meanwhile")
	w.must(w.httpNext(d, ""), http.StatusUnauthorized)
	status("enabled")
	for _, want := range []string{"before", "meanwhile"} {
		a, _ := w.httpLocked(d, "")
		w.check("message", string(a.body), want)
	}
}

func c2dDeletes(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.c2dSends(w.c2dSender(), d, "full", "for-the-first")
	w.must(w.rest(http.MethodDelete, d.path(""), nil, "If-Match: *"), http.StatusNoContent)
	second := w.newDevice("d")
	w.must(w.httpNext(second, ""), http.StatusNoContent)
	w.c2dSends(w.c2dSender(), second, "full", "for-the-second")
	c2dSettles("")(w, second)
	w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].OriginalMessageID, "for-the-second")
}

func c2dRefusesUnknown(_ *testing.T, w *world) {
	w.c2dRefused(w.c2dSend(w.c2dSender(), device{id: "nobody"}, "m", "", nil), amqp.ErrCondNotFound, 404001)
}

func c2dSendsLarge(t *testing.T, w *world) {
	d := w.newDevice("d")
	body := strings.Repeat("x", 64<<10-200)
	if err := w.c2dSend(w.c2dSender(), d, "m", "", func(m *amqp.Message) { m.Data = [][]byte{[]byte(body)} }); err != nil {
		t.Fatal(err)
	}
	a, _ := w.httpLocked(d, "")
	w.check("bytes", len(a.body), len(body))
}

func c2dRefusesLarge(_ *testing.T, w *world) {
	body := strings.Repeat("x", 64<<10+1)
	err := w.c2dSend(w.c2dSender(), w.newDevice("d"), "m", "", func(m *amqp.Message) { m.Data = [][]byte{[]byte(body)} })
	w.c2dRefused(err, amqp.ErrCondMessageSizeExceeded, 413001)
}

func c2dRefusesTo(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.c2dSender()
	for _, to := range []*string{nil, new(""), new("/devices/d/messages/events"), new("d"), new("/devices//messages/devicebound")} {
		err := w.c2dSend(sender, d, "m", "", func(m *amqp.Message) { m.Properties.To = to })
		w.c2dRefused(err, "com.microsoft:argument-error", 0)
	}
}

func c2dRefusesAck(_ *testing.T, w *world) {
	w.c2dRefused(w.c2dSend(w.c2dSender(), w.newDevice("d"), "m", "perhaps", nil), "com.microsoft:argument-error", 400004)
}

func c2dRefusesID(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.c2dSender()
	w.c2dSends(sender, d, "", strings.Repeat("x", 128), "all-:.+%_#*?!(),=@;$'allowed")
	for _, id := range []string{strings.Repeat("x", 129), "a b", "ä", "a/b"} {
		w.c2dRefused(w.c2dSend(sender, d, id, "", nil), "com.microsoft:argument-error", 400004)
	}
}

func c2dGoesOn(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.c2dSender()
	w.c2dRefused(w.c2dSend(sender, device{id: "nobody"}, "m", "", nil), amqp.ErrCondNotFound, 404001)
	w.c2dSends(sender, d, "", "m")
}

// c2dTakesUUID sends a message ID as the SDK for Node does when it looks like a
// UUID.
func c2dTakesUUID(t *testing.T, w *world) {
	d := w.newDevice("d")
	id := amqp.UUID{0x9f, 0x2b, 0x0d, 0x4e, 0x5a, 0x11, 0x4c, 0x3d, 0x8e, 0x7f, 1, 2, 3, 4, 5, 6}
	if err := w.c2dSend(w.c2dSender(), d, "m", "full", func(m *amqp.Message) { m.Properties.MessageID = id }); err != nil {
		t.Fatal(err)
	}
	const text = "9f2b0d4e-5a11-4c3d-8e7f-010203040506"
	a, lock := w.httpLocked(d, "")
	w.check("message ID", a.header.Get("iothub-messageid"), text)
	w.must(w.httpSettle(d, lock, ""), http.StatusNoContent)
	w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].OriginalMessageID, text)
}

func c2dSilentFiles(_ *testing.T, w *world) {
	service := w.amqpService("service")
	w.c2dNothing(w.receiver(service, "/messages/serviceBound/filenotifications", &amqp.ReceiverOptions{Credit: -1}))
}

func c2dRefusesModules(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.newModule(d, "m")
	sender := w.c2dSender()
	for path, refusal := range map[string]struct {
		condition amqp.ErrCond
		code      int32
	}{
		"/modules/m/messages/devicebound":       {amqp.ErrCondNotAllowed, 0},
		"/modules/unknown/messages/devicebound": {amqp.ErrCondNotFound, 404010},
	} {
		err := w.c2dSend(sender, d, "m", "", func(m *amqp.Message) { m.Properties.To = new(d.path(path)) })
		w.c2dRefused(err, refusal.condition, refusal.code)
	}
}

// c2dMQTTReturns shows that a device that goes without a PUBACK has decided
// nothing: the message comes again, and doesn't count, and nothing is told.
func c2dMQTTReturns(_ *testing.T, w *world) {
	w.configure("Hub: {CloudToDevice: {MaxDeliveryCount: 1}}")
	d := w.newDevice("d")
	w.c2dSends(w.c2dSender(), d, "full", "m")
	for range 3 {
		c, _ := w.mqttPackets(d, cleanSession)
		c.subscribe("devices/d/messages/devicebound/#", 1)
		w.check("message", string(expect[*packets.PublishPacket](c).Payload), "m")
		c.lose()
	}
	c2dOverMQTT(w, d)().complete()
	w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].StatusCode, "Success")
}
