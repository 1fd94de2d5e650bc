package conformance_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/coder/websocket"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

const (
	amqpPage     = `IoT Hub docs: "Communicate with your IoT hub by using the AMQP protocol"`
	amqpPorts    = `IoT Hub docs: "Choose a device communication protocol"`
	amqpC2DPage  = `IoT Hub docs: "Send cloud-to-device messages from an IoT hub"`
	amqpErrors   = `IoT Hub docs: "Understand Azure IoT Hub error codes"`
	amqpCSharp   = "azure-iot-sdk-csharp, iothub/device/src/Transport/AmqpIot"
	amqpNode     = "azure-iot-sdk-node, device/transport/amqp/src/amqp.ts"
	amqpNodeTwin = "azure-iot-sdk-node, device/transport/amqp/src/amqp_twin_client.ts"
	amqpNodeCall = "azure-iot-sdk-node, device/transport/amqp/src/amqp_device_method_client.ts"
)

var amqpDevices = area{
	name: "Devices over AMQP",
	emulated: slices.Concat(
		amqpConnecting, amqpTokens, amqpAddresses, amqpTelemetry, amqpDeviceBound, amqpCalls, amqpTwins, amqpConnections, amqpModules,
	),
	refused: []behaviour{
		{"Inputs and outputs of Edge modules", "a link that receives inputs is refused", amqpCSharp + "/AmqpIotConstants.cs", amqpRefusesSource("/devices/d/modules/m/messages/events")},
		{"Device streams (preview)", "a link for them is refused", amqpCSharp + "/AmqpIotSession.cs", amqpRefusesSource("/devices/d/streams/")},
		{"Feedback that devices send by themselves", "a link for it is refused", amqpPage, amqpRefusesTarget("/messages/serviceBound/feedback")},
		{"Sending without an address", "a link without a target is refused", "AMQP Anonymous Terminus 1.0 §2.2", amqpRefusesTarget("")},
	},
}

var amqpConnecting = []behaviour{
	{"AMQP 1.0 over TLS", "with a token on $cbs after SASL ANONYMOUS", amqpPage, amqpConnects(amqpOverTLS, amqpByToken(amqp.SASLTypeAnonymous()))},
	{"AMQP 1.0 over TLS", "with a token on $cbs and no SASL at all", amqpNode, amqpConnects(amqpOverTLS, amqpByToken(nil))},
	{"AMQP 1.0 over TLS", "with a token as the password of SASL PLAIN", amqpPage, amqpConnects(amqpOverTLS, amqpByPassword)},
	{"AMQP 1.0 over TLS", "with a certificate", amqpNode, amqpConnects(amqpOverTLS, amqpByCertificate)},
	{"AMQP 1.0 over TLS", "connections without TLS fail", amqpPorts, amqpNeedsTLS},
	{"AMQP 1.0 over WebSocket", "with a token on $cbs after SASL ANONYMOUS", amqpPorts, amqpConnects(amqpOverWebSocket("AMQPWSB10"), amqpByToken(amqp.SASLTypeAnonymous()))},
	{"AMQP 1.0 over WebSocket", "with a token on $cbs and no SASL at all", amqpNode, amqpConnects(amqpOverWebSocket("AMQPWSB10"), amqpByToken(nil))},
	{"AMQP 1.0 over WebSocket", "with a token as the password of SASL PLAIN", amqpPorts, amqpConnects(amqpOverWebSocket("AMQPWSB10"), amqpByPassword)},
	{"AMQP 1.0 over WebSocket", "with a certificate", amqpNode, amqpConnects(amqpOverWebSocket("AMQPWSB10"), amqpByCertificate)},
	{"AMQP 1.0 over WebSocket", "the sub-protocol may have the name of the standard", "AMQP WebSocket Binding 1.0 §2.1", amqpConnects(amqpOverWebSocket("amqp"), amqpByToken(amqp.SASLTypeAnonymous()))},
	{"AMQP 1.0 over WebSocket", "another sub-protocol is refused", "AMQP WebSocket Binding 1.0 §2.1", amqpNeedsSubProtocol},
}

var amqpTokens = []behaviour{
	{"Tokens on $cbs", "a reply carries the message ID of its request", "azure-iot-sdk-node, common/transport/amqp/src/amqp_cbs.ts", amqpRepliesToToken},
	{"Tokens on $cbs", "a token has any of the types that SDKs give it", "AMQP Claims-based Security 1.0", amqpTakesTypes},
	{"Tokens on $cbs", "a token of an unknown device is refused", amqpErrors, amqpRefusesTokenOfUnknown},
	{"Tokens on $cbs", "links need a token", amqpPage, amqpNeedsToken},
	{"Tokens on $cbs", "a token that is renewed keeps the links", amqpPage, amqpRenewsToken},
	{"Tokens on $cbs", "links end with their token", amqpPage, amqpEndsWithToken},
}

var amqpAddresses = []behaviour{
	{"Addresses of links", "are relative", amqpPage, amqpSendsTo("d", "/devices/d/messages/events")},
	{"Addresses of links", "may lack the first slash", "AMQP 1.0 §3.5.4", amqpSendsTo("d", "devices/d/messages/events")},
	{"Addresses of links", "may be absolute", amqpCSharp + "/AmqpIotSession.cs", amqpSendsTo("d", "amqps://localhost/devices/d/messages/events")},
	{"Addresses of links", "have their words in any case", amqpPage, amqpSendsTo("d", "/Devices/d/Messages/Events")},
	{"Addresses of links", "have device IDs percent-encoded", amqpNode, amqpSendsTo("a::b@c", "/devices/a%3A%3Ab%40c/messages/events")},
	{"Addresses of links", "have device IDs as they are, too", "azure-iot-sdk-java, AmqpsTelemetrySenderLinkHandler.java", amqpSendsTo("a::b@c", "/devices/a::b@c/messages/events")},
	{"Addresses of links", "of unknown nodes are refused", "AMQP 1.0 §2.6.3", amqpRefusesUnknownNodes},
}

var amqpTelemetry = slices.Concat([]behaviour{
	{"Telemetry", "is accepted when it is stored", amqpPage, amqpStoresBeforeAccepting},
	{"Telemetry", "may be sent settled", "AMQP 1.0 §2.6.12", amqpSendsSettled},
	{"Telemetry", "keeps its order", `IoT Hub docs: "IoT Hub endpoints"`, amqpKeepsOrder},
	{"Telemetry", "has up to 256 KB, and the link says so", `IoT Hub docs: "IoT Hub quotas and throttling"`, amqpSendsLarge},
	{"Batches of telemetry", "arrive as single messages, in order", amqpCSharp + "/AmqpIotMessageConverter.cs", amqpSendsBatch},
	{"Batches of telemetry", "a malformed one is rejected as a whole", "AMQP 1.0 §3.4.3", amqpRefusesBadBatch},
	{"Stamps on telemetry", "device, generation and authentication", mqttMessages, amqpStampsDevice},
	{"Stamps on telemetry", "the scope of a policy's token", mqttMessages, amqpStampsPolicy},
	{"Stamps on telemetry", "time and source, for Event Hubs", mqttMessages, amqpStampsEvents},
	{"Stamps on telemetry", "the model that the link names", amqpCSharp + "/AmqpIotConstants.cs", amqpStampsModel},
	{"Stamps on telemetry", "can't be forged", mqttMessages, amqpResistsForgery},
}, amqpProperties)

var amqpProperties = []behaviour{
	amqpProperty("message ID", amqpPage, &amqp.Message{Properties: &amqp.MessageProperties{MessageID: "m-1"}},
		shows{both: properties{"message-id": "m-1"}}),
	amqpProperty("a message ID that is a UUID becomes text", "azure-iot-sdk-node, common/transport/amqp/src/amqp_message.ts",
		&amqp.Message{Properties: &amqp.MessageProperties{MessageID: amqp.UUID{0x0a, 0xbc, 6: 0x40, 8: 0x80, 15: 1}}},
		shows{both: properties{"message-id": "0abc0000-0000-4000-8000-000000000001"}}),
	amqpProperty("correlation ID", amqpPage, &amqp.Message{Properties: &amqp.MessageProperties{CorrelationID: "c-1"}},
		shows{both: properties{"correlation-id": "c-1"}}),
	amqpProperty("user ID", amqpPage, &amqp.Message{Properties: &amqp.MessageProperties{UserID: []byte("ada")}},
		shows{both: properties{"user-id": "ada"}}),
	amqpProperty("content type and encoding", amqpPage,
		&amqp.Message{Properties: &amqp.MessageProperties{ContentType: new("application/json"), ContentEncoding: new("utf-8")}},
		shows{both: properties{"content-type": "application/json", "content-encoding": "utf-8"}}),
	amqpProperty("expiry", amqpPage,
		&amqp.Message{Properties: &amqp.MessageProperties{AbsoluteExpiryTime: new(time.Date(2098, 7, 6, 5, 4, 3, 0, time.UTC))}},
		shows{both: properties{"expiry": "2098-07-06T05:04:03Z"}}),
	amqpProperty("creation time", mqttMessages,
		&amqp.Message{ApplicationProperties: map[string]any{"iothub-creation-time-utc": "2021-04-21T11:30:16Z"}},
		shows{both: properties{"application iothub-creation-time-utc": "2021-04-21T11:30:16Z"}}),
	amqpProperty("component and interface are annotations", amqpCSharp+"/AmqpIotMessageConverter.cs",
		&amqp.Message{Annotations: amqp.Annotations{"dt-subject": "thermostat1", "iothub-interface-id": "urn:example:1"}},
		shows{
			queue: properties{"application dt-subject": "thermostat1", "application iothub-interface-id": "urn:example:1"},
			event: properties{"system dt-subject": "thermostat1", "system iothub-interface-id": "urn:example:1"},
		}),
	amqpProperty("application properties", amqpPage, &amqp.Message{ApplicationProperties: map[string]any{"color": "red", "a b&c": "ä=/&+", "empty": ""}},
		shows{both: properties{"application color": "red", "application a b&c": "ä=/&+", "application empty": ""}}),
}

var amqpDeviceBound = slices.Concat(
	[]behaviour{
		{"Cloud-to-device messages", "carry the sender's properties", amqpPage, amqpReceives},
		{"Cloud-to-device messages", "carry sequence number, lock token, time and delivery count", amqpCSharp + "/AmqpIotMessageConverter.cs", amqpReceivesAnnotations},
		{"Cloud-to-device messages", "come in order, as many as there is credit for", "AMQP 1.0 §2.6.7", amqpFollowsCredit},
		{"Cloud-to-device messages", "credit that is drained is gone", "AMQP 1.0 §2.6.7", amqpDrainsCredit},
		{"Cloud-to-device messages", "come again when their lock has expired", amqpC2DPage, amqpLockExpires},
		{"Cloud-to-device messages", "settling without the lock is refused", amqpErrors, amqpLockIsLost},
		{"Cloud-to-device messages", "what a lost connection left unsettled comes again", amqpC2DPage, amqpComesAgain},
	},
	amqpOutcome("accepted is completed", "Success", func(w *world, r *amqp.Receiver, m *amqp.Message) error { return r.AcceptMessage(w.ctx(), m) }),
	amqpOutcome("rejected is rejected", "Rejected", func(w *world, r *amqp.Receiver, m *amqp.Message) error {
		return r.RejectMessage(w.ctx(), m, &amqp.Error{Condition: "amqp:not-allowed"})
	}),
	amqpOutcome("released is abandoned", "DeliveryCountExceeded", func(w *world, r *amqp.Receiver, m *amqp.Message) error { return r.ReleaseMessage(w.ctx(), m) }),
	amqpOutcome("modified is abandoned", "DeliveryCountExceeded", func(w *world, r *amqp.Receiver, m *amqp.Message) error {
		return r.ModifyMessage(w.ctx(), m, &amqp.ModifyMessageOptions{DeliveryFailed: true})
	}),
)

var amqpCalls = []behaviour{
	{"Direct methods", "a request has a UUID, a name and a payload", amqpNodeCall, amqpMethodRequest},
	{"Direct methods", "an answer may have the UUID as text", amqpNodeCall, amqpMethodTextID},
	{"Direct methods", "a pair of links belongs together by its correlation ID", amqpNodeCall, amqpMethodPair},
	{"Direct methods", "links of different pairs don't", amqpNodeCall, amqpMethodNoPair},
	{"Direct methods", "the newer pair gets the calls", amqpNodeCall, amqpMethodNewerPair},
	{"Direct methods", "an answer to no call is ignored", amqpNodeCall, amqpMethodNoCall},
	{"Direct methods", "an answer without status is rejected", amqpNodeCall, amqpMethodNoStatus},
}

var amqpTwins = []behaviour{
	{"Twins", "GET is answered with status 200, without metadata", amqpNodeTwin, amqpReadsTwin},
	{"Twins", "PATCH is answered with the new version", amqpNodeTwin, amqpUpdatesTwin},
	{"Twins", "a property is deleted by null", `IoT Hub docs: "Understand and use device twins in IoT Hub"`, amqpDeletesProperty},
	{"Twins", "PUT asks for changes of desired properties", amqpNodeTwin, amqpHearsOfDesired},
	{"Twins", "DELETE ends them", amqpNodeTwin, amqpHearsNoMore},
	{"Twins", "answers have the correlation ID of their request, of any type", "azure-iot-sdk-java, AmqpsTwinReceiverLinkHandler.java", amqpTwinCorrelation},
	{"Twins", "what is wrong with a request is answered by status", amqpNodeTwin, amqpTwinErrors},
}

var amqpConnections = []behaviour{
	{"One connection per device", "a new one over AMQP takes the links of the one before", amqpErrors, amqpTakesOver(func(w *world, d device) {
		w.sender(w.amqpDevice(d), d.path("/messages/events"), nil)
	})},
	{"One connection per device", "a new one over MQTT does, too", amqpErrors, amqpTakesOver(func(w *world, d device) { w.mqtt(d, nil) })},
	{"One connection per device", "AMQP takes from MQTT, too", amqpErrors, amqpTakesFromMQTT},
	{"One connection per device", "who lost a device can take it back on the same connection", amqpErrors, amqpTakesBack},
	{"Several devices on one connection", "with a token of each", amqpCSharp + "/AmqpIotConnection.cs", amqpMultiplexes(false)},
	{"Several devices on one connection", "with one token of a policy", amqpCSharp + "/AmqpIotConnection.cs", amqpMultiplexes(true)},
	{"Several devices on one connection", "one that is taken over leaves the others alone", amqpCSharp + "/AmqpIotConnection.cs", amqpLosesOneOfMany},
	{"Disabled and deleted devices", "links of a device that is disabled end", amqpErrors, amqpDisabled},
	{"Disabled and deleted devices", "links of a device that is deleted end", amqpErrors, amqpDeleted},
	{"Disabled and deleted devices", "links of an unknown device are refused", amqpErrors, amqpUnknownDevice},
	{"Connection state", "a device is connected while it has a link", `IoT Hub docs: "Monitor device connection status"`, amqpState},
}

var amqpModules = []behaviour{
	{"Modules", "send telemetry with their own stamp", amqpCSharp + "/AmqpIotSession.cs", amqpModuleSends},
	{"Modules", "answer direct methods of their own", amqpCSharp + "/AmqpIotSession.cs", amqpModuleAnswers},
	{"Modules", "have a twin of their own", amqpCSharp + "/AmqpIotSession.cs", amqpModuleTwin},
	{"Modules", "share a connection with their device", amqpCSharp + "/AmqpIotConnection.cs", amqpModuleBesideDevice},
}

// amqpWay opens a connection.
type amqpWay func(*world, *tls.Config, *amqp.ConnOptions) (*amqp.Conn, error)

func amqpOverTLS(w *world, config *tls.Config, opts *amqp.ConnOptions) (*amqp.Conn, error) {
	opts.TLSConfig = config
	return amqp.Dial(w.ctx(), "amqps://"+w.emulator().AMQPSAddr(), opts)
}

func amqpOverWebSocket(protocol string) amqpWay {
	return func(w *world, config *tls.Config, opts *amqp.ConnOptions) (*amqp.Conn, error) {
		ws, err := amqpWebSocket(w, config, protocol)
		if err != nil {
			return nil, err
		}
		return amqp.NewConn(w.ctx(), websocket.NetConn(w.t.Context(), ws, websocket.MessageBinary), opts)
	}
}

func amqpWebSocket(w *world, config *tls.Config, protocol string) (*websocket.Conn, error) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	w.t.Cleanup(client.CloseIdleConnections)
	ws, _, err := websocket.Dial(w.ctx(), "https://"+w.emulator().HTTPSAddr()+"/$iothub/websocket", &websocket.DialOptions{
		HTTPClient: client, Subprotocols: []string{protocol},
	})
	return ws, err
}

// amqpProof makes a device and says how it proves who it is: with options of the
// connection, and with a token for $cbs unless that is empty.
type amqpProof func(*world, *tls.Config, *amqp.ConnOptions) (d device, token string)

func amqpByToken(sasl amqp.SASLType) amqpProof {
	return func(w *world, _ *tls.Config, opts *amqp.ConnOptions) (device, string) {
		d := w.newDevice("d")
		opts.SASLType = sasl
		return d, w.deviceToken(d)
	}
}

func amqpByPassword(w *world, _ *tls.Config, opts *amqp.ConnOptions) (device, string) {
	d := w.newDevice("d")
	opts.SASLType = amqp.SASLTypePlain(accessPlainUser(w, d.id, ""), w.deviceToken(d))
	return d, ""
}

func amqpByCertificate(w *world, config *tls.Config, opts *amqp.ConnOptions) (device, string) {
	own := accessIssue(w, "d", nil, false)
	config.Certificates = []tls.Certificate{own}
	opts.SASLType = amqp.SASLTypeExternal("")
	return accessPinned(w, own, own), ""
}

// amqpConnects shows that the way there and the way back are open.
func amqpConnects(way amqpWay, proof amqpProof) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		config, opts := w.tls(), &amqp.ConnOptions{HostName: w.emulator().HubName()}
		d, token := proof(w, config, opts)
		conn, err := way(w, config, opts)
		if err != nil {
			t.Fatal(err)
		}
		w.closing("AMQP connection", func(context.Context) error { return conn.Close() })
		session := amqpSession(w, conn)
		if token != "" {
			if err := w.putToken(session, w.resource(d.identity()), token); err != nil {
				t.Fatal(err)
			}
		}
		amqpSend(w, session, d.path("/messages/events"), amqp.NewMessage([]byte("up")))
		w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "up"}})
		if err := w.sendC2D(w.amqpService("service"), d, "m", "down", ""); err != nil {
			t.Fatal(err)
		}
		w.check("message", string(w.receive(w.receiver(session, d.path("/messages/devicebound"), nil)).GetData()), "down")
	}
}

func amqpSession(w *world, conn *amqp.Conn) *amqp.Session {
	w.t.Helper()
	session, err := conn.NewSession(w.ctx(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return session
}

// amqpSend sends messages over a link of their own, which is closed afterwards.
func amqpSend(w *world, s *amqp.Session, address string, all ...*amqp.Message) {
	w.t.Helper()
	sender := w.sender(s, address, nil)
	for _, m := range all {
		if err := sender.Send(w.ctx(), m, nil); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := sender.Close(w.ctx()); err != nil {
		w.t.Fatal(err)
	}
}

// amqpCondition is that of an error of the peer, empty for others.
func amqpCondition(err error) amqp.ErrCond {
	var refused *amqp.Error
	if errors.As(err, &refused) {
		return refused.Condition
	}
	var link *amqp.LinkError
	if errors.As(err, &link) && link.RemoteErr != nil {
		return link.RemoteErr.Condition
	}
	return ""
}

// amqpRefused fails the case unless an error of the peer has the condition.
func amqpRefused(w *world, what string, err error, want amqp.ErrCond) {
	w.t.Helper()
	if got := amqpCondition(err); got != want {
		w.t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// amqpDetached waits until the hub ends a link on which nothing comes.
func amqpDetached(w *world, r *amqp.Receiver, want amqp.ErrCond) {
	w.t.Helper()
	_, err := r.Receive(w.ctx(), nil)
	amqpRefused(w, "link "+r.Address(), err, want)
}

// amqpState is the connection state of a device.
func amqpStateOf(w *world, d device) any {
	w.t.Helper()
	return w.registered(d)["connectionState"]
}

func amqpNeedsTLS(t *testing.T, w *world) {
	if conn, err := amqp.Dial(w.ctx(), "amqp://"+w.emulator().AMQPSAddr(), &amqp.ConnOptions{HostName: w.emulator().HubName()}); err == nil {
		_ = conn.Close()
		t.Error("the hub speaks AMQP without TLS where it should not")
	}
}

func amqpNeedsSubProtocol(t *testing.T, w *world) {
	ws, err := amqpWebSocket(w, w.tls(), "chat")
	if err != nil {
		return // refused in the handshake, which is as good
	}
	defer ws.CloseNow()
	if _, _, err := ws.Read(w.ctx()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("the WebSocket ends with %v", err)
	}
}

// amqpTokenRequest is a request to $cbs.
func amqpTokenRequest(w *world, d device, id any, kind string) *amqp.Message {
	w.t.Helper()
	return &amqp.Message{
		Value:                 w.deviceToken(d),
		Properties:            &amqp.MessageProperties{MessageID: id, To: new("$cbs"), ReplyTo: new("cbs")},
		ApplicationProperties: map[string]any{"operation": "put-token", "type": kind, "name": w.resource(d.identity())},
	}
}

const (
	amqpTypeNode   = "servicebus.windows.net:sastoken"
	amqpTypeCSharp = "azure-devices.net:sastoken"
)

// amqpReplies sends requests to $cbs and returns the replies in their order.
func amqpReplies(w *world, requests ...*amqp.Message) []*amqp.Message {
	w.t.Helper()
	session := w.amqp(nil, nil)
	receiver, sender := w.receiver(session, "$cbs", nil), w.sender(session, "$cbs", nil)
	var replies []*amqp.Message
	for _, m := range requests {
		if err := sender.Send(w.ctx(), m, nil); err != nil {
			w.t.Fatal(err)
		}
		reply := w.receive(receiver)
		if err := receiver.AcceptMessage(w.ctx(), reply); err != nil {
			w.t.Fatal(err)
		}
		replies = append(replies, reply)
	}
	return replies
}

func amqpRepliesToToken(_ *testing.T, w *world) {
	d := w.newDevice("d")
	ids := []any{"0abc0000-0000-4000-8000-000000000001", amqp.UUID{0x0a, 6: 0x40, 8: 0x80}, uint64(7)}
	var requests []*amqp.Message
	for _, id := range ids {
		requests = append(requests, amqpTokenRequest(w, d, id, amqpTypeNode))
	}
	for i, reply := range amqpReplies(w, requests...) {
		w.check("status", fmt.Sprintf("%T %[1]v", reply.ApplicationProperties["status-code"]), "int32 200")
		w.check("correlation ID", fmt.Sprintf("%T %[1]v", reply.Properties.CorrelationID), fmt.Sprintf("%T %[1]v", ids[i]))
	}
}

func amqpTakesTypes(_ *testing.T, w *world) {
	d := w.newDevice("d")
	for _, reply := range amqpReplies(w, amqpTokenRequest(w, d, "1", amqpTypeNode), amqpTokenRequest(w, d, "2", amqpTypeCSharp)) {
		w.check("status", reply.ApplicationProperties["status-code"], 200)
	}
}

func amqpRefusesTokenOfUnknown(t *testing.T, w *world) {
	reply := amqpReplies(w, amqpTokenRequest(w, device{id: "nobody", primary: accessAnyKey}, "1", amqpTypeNode))[0]
	status, ok := reply.ApplicationProperties["status-code"].(int32)
	if !ok || status != http.StatusUnauthorized && status != http.StatusNotFound {
		t.Errorf("status %v", reply.ApplicationProperties["status-code"])
	}
	if text, _ := reply.ApplicationProperties["status-description"].(string); text == "" {
		t.Error("the refusal has no description")
	}
}

func amqpNeedsToken(_ *testing.T, w *world) {
	d := w.newDevice("d")
	session := w.amqp(nil, nil)
	for _, address := range []string{"/messages/events", "/methods/devicebound", "/twin"} {
		_, err := session.NewSender(w.ctx(), d.path(address), nil)
		amqpRefused(w, "sender to "+address, err, amqp.ErrCondUnauthorizedAccess)
	}
	for _, address := range []string{"/messages/devicebound", "/methods/devicebound", "/twin"} {
		_, err := session.NewReceiver(w.ctx(), d.path(address), nil)
		amqpRefused(w, "receiver from "+address, err, amqp.ErrCondUnauthorizedAccess)
	}
}

// amqpBrief opens a link of a device whose token expires soon.
func amqpBrief(w *world, d device) (s *amqp.Session, r *amqp.Receiver) {
	w.t.Helper()
	resource := w.resource(d.identity())
	accessBriefly(w, func(life time.Duration) (err error) {
		s = w.amqp(nil, nil)
		if err := w.putToken(s, resource, w.token(resource, "", d.primary, life)); err != nil {
			return err
		}
		r, err = s.NewReceiver(w.ctx(), d.path("/messages/devicebound"), nil)
		return err
	})
	return s, r
}

// amqpRenewsToken has two devices whose tokens expire one after the other. The one
// without another token shows when that is.
func amqpRenewsToken(t *testing.T, w *world) {
	renewed, other := w.newDevice("renewed"), w.newDevice("other")
	session, receiver := amqpBrief(w, renewed)
	if err := w.putToken(session, w.resource(renewed.identity()), w.deviceToken(renewed)); err != nil {
		t.Fatal(err)
	}
	_, last := amqpBrief(w, other)
	amqpDetached(w, last, amqp.ErrCondUnauthorizedAccess)
	if err := w.sendC2D(w.amqpService("service"), renewed, "m", "still here", ""); err != nil {
		t.Fatal(err)
	}
	w.check("message", string(w.receive(receiver).GetData()), "still here")
}

func amqpEndsWithToken(_ *testing.T, w *world) {
	d := w.newDevice("d")
	_, receiver := amqpBrief(w, d)
	amqpDetached(w, receiver, amqp.ErrCondUnauthorizedAccess)
	w.eventually("the device is disconnected", func() bool { return amqpStateOf(w, d) == "Disconnected" })
}

func amqpSendsTo(id, address string) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		amqpSend(w, w.amqpDevice(w.newDevice(id)), address, amqp.NewMessage([]byte("x")))
		w.check("device", w.routed(1)[0].inEvents()["system iothub-connection-device-id"], id)
	}
}

func amqpRefusesUnknownNodes(t *testing.T, w *world) {
	session := w.amqpDevice(w.newDevice("d"))
	for _, address := range []string{"/devices/d", "/devices/d/messages", "/devices/d/messages/other", "/devices/d/twin/more", "/other/d/messages/events"} {
		if _, err := session.NewSender(w.ctx(), address, nil); amqpCondition(err) == "" {
			t.Errorf("sender to %s: %v", address, err)
		}
		if _, err := session.NewReceiver(w.ctx(), address, nil); amqpCondition(err) == "" {
			t.Errorf("receiver from %s: %v", address, err)
		}
	}
}

func amqpStoresBeforeAccepting(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), nil)
	for i := range 3 {
		if err := sender.Send(w.ctx(), amqp.NewMessage(fmt.Append(nil, i)), nil); err != nil {
			w.t.Fatal(err)
		}
		receiver := w.busReceiver("device-messages", nil)
		seen, err := receiver.PeekMessages(w.ctx(), 10, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		w.check("stored messages", len(seen), i+1)
	}
}

func amqpSendsSettled(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), &amqp.SenderOptions{SettlementMode: amqp.SenderSettleModeSettled.Ptr()})
	if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil); err != nil {
		w.t.Fatal(err)
	}
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "x"}})
}

func amqpKeepsOrder(_ *testing.T, w *world) {
	const n = 100
	d := w.newDevice("d")
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), &amqp.SenderOptions{SettlementMode: amqp.SenderSettleModeSettled.Ptr()})
	for i := range n {
		if err := sender.Send(w.ctx(), amqp.NewMessage(fmt.Append(nil, i)), nil); err != nil {
			w.t.Fatal(err)
		}
	}
	for i, r := range w.routed(n) {
		w.check("message in the queue", string(r.queue.Body), i)
		w.check("event", string(r.event.Body), i)
	}
}

func amqpSendsLarge(_ *testing.T, w *world) {
	const most = 256 << 10
	d := w.newDevice("d")
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), nil)
	w.check("largest message", sender.MaxMessageSize(), most)
	if err := sender.Send(w.ctx(), amqp.NewMessage(make([]byte, most-100)), nil); err != nil {
		w.t.Fatal(err)
	}
	w.check("bytes", len(w.routed(1)[0].event.Body), most-100)
	amqpRefused(w, "a larger message", sender.Send(w.ctx(), amqp.NewMessage(make([]byte, most+1)), nil), amqp.ErrCondMessageSizeExceeded)
}

// amqpBatchFormat is the message format of a batch: each data section is an
// encoded message.
const amqpBatchFormat = 0x80013700

func amqpSendsBatch(_ *testing.T, w *world) {
	d := w.newDevice("d")
	batch := &amqp.Message{Format: amqpBatchFormat}
	for _, body := range []string{"one", "two", "three"} {
		m := amqp.NewMessage([]byte(body))
		m.Properties = &amqp.MessageProperties{MessageID: "m-" + body}
		m.ApplicationProperties = map[string]any{"color": "c-" + body}
		encoded, err := m.MarshalBinary()
		if err != nil {
			w.t.Fatal(err)
		}
		batch.Data = append(batch.Data, encoded)
	}
	amqpSend(w, w.amqpDevice(d), d.path("/messages/events"), batch)
	for i, r := range w.routed(3) {
		body := []string{"one", "two", "three"}[i]
		w.expectRouted(r, shows{both: properties{"body": body, "message-id": "m-" + body, "application color": "c-" + body}})
	}
}

func amqpRefusesBadBatch(t *testing.T, w *world) {
	d := w.newDevice("d")
	good, err := amqp.NewMessage([]byte("good")).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), nil)
	err = sender.Send(w.ctx(), &amqp.Message{Format: amqpBatchFormat, Data: [][]byte{good, []byte("bad")}}, nil)
	if amqpCondition(err) == "" {
		t.Errorf("the batch: %v", err)
	}
	if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("first")), nil); err != nil {
		t.Fatal(err)
	}
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "first"}})
}

// amqpProperty is a case about a part of a message, which has a body besides.
func amqpProperty(says, source string, m *amqp.Message, want shows) behaviour {
	return behaviour{"Properties of telemetry", says, source, func(_ *testing.T, w *world) {
		d := w.newDevice("d")
		m.Data = [][]byte{[]byte("hello")}
		amqpSend(w, w.amqpDevice(d), d.path("/messages/events"), m)
		w.expectRouted(w.routed(1)[0], want)
	}}
}

func amqpStampsDevice(_ *testing.T, w *world) {
	d := w.newDevice("d")
	amqpSend(w, w.amqpDevice(d), d.path("/messages/events"), amqp.NewMessage([]byte("x")))
	r := w.routed(1)[0]
	generation, _ := w.registered(d)["generationId"].(string)
	w.expectRouted(r, shows{
		queue: properties{"application iothub-connection-device-id": "d", "application iothub-connection-auth-generation-id": generation},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-connection-auth-generation-id": generation},
	})
	w.expectAuthentication(r, "device")
}

func amqpStampsPolicy(_ *testing.T, w *world) {
	d := w.newDevice("d")
	amqpSend(w, w.amqpService("device"), d.path("/messages/events"), amqp.NewMessage([]byte("x")))
	w.expectAuthentication(w.routed(1)[0], "hub")
}

func amqpStampsEvents(t *testing.T, w *world) {
	before := time.Now().Add(-time.Minute)
	d := w.newDevice("d")
	amqpSend(w, w.amqpDevice(d), d.path("/messages/events"), amqp.NewMessage([]byte("x")))
	system := w.events(1)[0].SystemProperties
	w.check("source", system["iothub-message-source"], "Telemetry")
	enqueued, ok := system["iothub-enqueuedtime"].(time.Time)
	if !ok || enqueued.Before(before) || enqueued.After(before.Add(time.Hour)) {
		t.Errorf("iothub-enqueuedtime is %v", system["iothub-enqueuedtime"])
	}
}

func amqpStampsModel(_ *testing.T, w *world) {
	const model = "dtmi:example:Thermostat;1"
	d := w.newDevice("d")
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), &amqp.SenderOptions{Properties: map[string]any{"com.microsoft:model-id": model}})
	if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil); err != nil {
		w.t.Fatal(err)
	}
	w.expectRouted(w.routed(1)[0], shows{
		queue: properties{"application dt-dataschema": model},
		event: properties{"system dt-dataschema": model},
	})
}

func amqpResistsForgery(t *testing.T, w *world) {
	w.newDevice("victim")
	d := w.newDevice("d")
	lies := map[string]any{
		"iothub-connection-device-id": "victim", "iothub-connection-module-id": "liar", "iothub-connection-auth-method": "none",
		"iothub-connection-auth-generation-id": "none", "iothub-message-source": "none",
	}
	m := amqp.NewMessage([]byte("x"))
	m.ApplicationProperties, m.Annotations = maps.Clone(lies), make(amqp.Annotations)
	for name, value := range lies {
		m.Annotations[name] = value
	}
	amqpSend(w, w.amqpDevice(d), d.path("/messages/events"), m)
	r := w.routed(1)[0]
	w.expectAuthentication(r, "device")
	for where, all := range map[string]properties{"queue": r.inQueue(), "events": r.inEvents()} {
		for name, value := range all {
			if slices.Contains([]string{"victim", "liar", "none"}, value) {
				t.Errorf("%s: %s is %q", where, name, value)
			}
		}
	}
}

func amqpReceives(_ *testing.T, w *world) {
	d := w.newDevice("d")
	m := w.c2d(d, "m-1", "hello")
	m.Properties.CorrelationID, m.Properties.UserID = "c-1", []byte("ada")
	m.Properties.ContentType, m.Properties.ContentEncoding = new("text/plain"), new("utf-8")
	m.ApplicationProperties = map[string]any{"color": "red"}
	amqpSend(w, w.amqpService("service"), "/messages/devicebound", m)
	got := w.receive(w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil))
	p := got.Properties
	w.check("properties", []any{p.MessageID, p.CorrelationID, string(p.UserID), *p.ContentType, *p.ContentEncoding, strings.ToLower(*p.To)},
		[]any{"m-1", "c-1", "ada", "text/plain", "utf-8", "/devices/d/messages/devicebound"})
	w.check("application property", got.ApplicationProperties["color"], "red")
	w.check("body", string(got.GetData()), "hello")
}

func amqpReceivesAnnotations(t *testing.T, w *world) {
	d := w.newDevice("d")
	if err := w.sendC2D(w.amqpService("service"), d, "m", "x", ""); err != nil {
		t.Fatal(err)
	}
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	for count := range 2 {
		m := w.receive(r)
		number, ok1 := m.Annotations["x-opt-sequence-number"].(uint64)
		token, ok2 := m.Annotations["x-opt-lock-token"].(amqp.UUID)
		enqueued, ok3 := m.Annotations["iothub-enqueuedtime"].(time.Time)
		if !ok1 || !ok2 || !ok3 || number == 0 || token == (amqp.UUID{}) || time.Since(enqueued) > time.Hour {
			t.Errorf("annotations %v", m.Annotations)
		}
		w.check("delivery count", fmt.Sprintf("%T %[1]v", m.Annotations["iothub-deliverycount"]), fmt.Sprintf("uint8 %d", count))
		w.check("bytes of the delivery tag", len(m.DeliveryTag), 16)
		if err := r.ReleaseMessage(w.ctx(), m); err != nil {
			t.Fatal(err)
		}
	}
}

// amqpQueue sends messages to a device, with their numbers as bodies.
func amqpQueue(w *world, d device, n int) {
	w.t.Helper()
	session := w.amqpService("service")
	for i := range n {
		if err := w.sendC2D(session, d, fmt.Sprint(i), fmt.Sprint(i), ""); err != nil {
			w.t.Fatal(err)
		}
	}
}

// amqpCredit is a link of a device for messages without credit of its own.
func amqpCredit(w *world, d device) *amqp.Receiver {
	w.t.Helper()
	return w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), &amqp.ReceiverOptions{Credit: -1})
}

func amqpFollowsCredit(t *testing.T, w *world) {
	d := w.newDevice("d")
	amqpQueue(w, d, 6)
	r := amqpCredit(w, d)
	count := 0
	for _, credit := range []uint32{1, 2, 3} {
		if err := r.IssueCredit(credit); err != nil {
			t.Fatal(err)
		}
		for range credit {
			m := w.receive(r)
			w.check("message", string(m.GetData()), count)
			count++
			if err := r.AcceptMessage(w.ctx(), m); err != nil {
				t.Fatal(err)
			}
		}
		if m := r.Prefetched(); m != nil {
			t.Errorf("%s came without credit", m.GetData())
		}
	}
}

func amqpDrainsCredit(t *testing.T, w *world) {
	d := w.newDevice("d")
	r := amqpCredit(w, d)
	if err := r.IssueCredit(5); err != nil {
		t.Fatal(err)
	}
	if err := r.DrainCredit(w.ctx(), nil); err != nil {
		t.Fatal(err)
	}
	amqpQueue(w, d, 2)
	if err := r.IssueCredit(1); err != nil {
		t.Fatal(err)
	}
	w.check("message", string(w.receive(r).GetData()), 0)
	// The second one would have come with the credit that was drained.
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 2)
	if m := r.Prefetched(); m != nil {
		t.Errorf("%s came without credit", m.GetData())
	}
}

// amqpBriefLocks gives messages for devices the shortest lock that there is.
func amqpBriefLocks(w *world) {
	w.t.Helper()
	cfg := emulator.DefaultConfig()
	cfg.Hub.CloudToDevice.LockDuration = 5 * time.Second
	w.with(emulatortest.Config(cfg))
}

func amqpLockExpires(_ *testing.T, w *world) {
	amqpBriefLocks(w)
	d := w.newDevice("d")
	amqpQueue(w, d, 1)
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), &amqp.ReceiverOptions{Credit: 2})
	first, again := w.receive(r), w.receive(r)
	w.check("message", again.Properties.MessageID, first.Properties.MessageID)
	w.check("sequence number", again.Annotations["x-opt-sequence-number"], first.Annotations["x-opt-sequence-number"])
	if first.Annotations["x-opt-lock-token"] == again.Annotations["x-opt-lock-token"] {
		w.t.Error("the lock is the same")
	}
	if err := r.AcceptMessage(w.ctx(), again); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("the message is complete", func() bool { return w.registered(d)["cloudToDeviceMessageCount"] == 0.0 })
}

func amqpLockIsLost(_ *testing.T, w *world) {
	amqpBriefLocks(w)
	d := w.newDevice("d")
	amqpQueue(w, d, 1)
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), &amqp.ReceiverOptions{
		Credit: 2, SettlementMode: amqp.ReceiverSettleModeSecond.Ptr(),
	})
	first := w.receive(r)
	w.receive(r) // when the lock has expired
	amqpRefused(w, "late settlement", r.AcceptMessage(w.ctx(), first), "com.microsoft:message-lock-lost")
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 1)
}

func amqpComesAgain(t *testing.T, w *world) {
	amqpBriefLocks(w)
	d := w.newDevice("d")
	amqpQueue(w, d, 2)
	session := w.amqpDevice(d)
	r := w.receiver(session, d.path("/messages/devicebound"), nil)
	if err := r.AcceptMessage(w.ctx(), w.receive(r)); err != nil {
		t.Fatal(err)
	}
	w.check("unsettled", w.receive(r).Properties.MessageID, "1")
	if err := session.Close(w.ctx()); err != nil {
		t.Fatal(err)
	}
	r = w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	w.check("message", w.receive(r).Properties.MessageID, "1")
}

// amqpOutcome makes a case for either settle mode of the receiver: in the second
// one, the client waits until the hub settles too.
func amqpOutcome(says, status string, settle func(*world, *amqp.Receiver, *amqp.Message) error) []behaviour {
	holds := func(mode amqp.ReceiverSettleMode) func(*testing.T, *world) {
		return func(_ *testing.T, w *world) { amqpSettles(w, mode, status, settle) }
	}
	return []behaviour{
		{"Settlement of messages", says, amqpC2DPage, holds(amqp.ReceiverSettleModeFirst)},
		{"Settlement of messages", says + ", in settle mode second", "AMQP 1.0 §2.6.12", holds(amqp.ReceiverSettleModeSecond)},
	}
}

func amqpSettles(w *world, mode amqp.ReceiverSettleMode, status string, settle func(*world, *amqp.Receiver, *amqp.Message) error) {
	cfg := emulator.DefaultConfig()
	cfg.Hub.CloudToDevice.MaxDeliveryCount = 1
	w.with(emulatortest.Config(cfg))
	d := w.newDevice("d")
	service := w.amqpService("service")
	if err := w.sendC2D(service, d, "m", "x", "full"); err != nil {
		w.t.Fatal(err)
	}
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), &amqp.ReceiverOptions{SettlementMode: &mode})
	if err := settle(w, r, w.receive(r)); err != nil {
		w.t.Fatal(err)
	}
	record := w.feedback(service, 1)[0]
	w.check("feedback", record.OriginalMessageID+" "+record.DeviceID+" "+record.StatusCode, "m d "+status)
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 0)
}

// amqpLinks attaches a sender and a receiver with correlation IDs; empty for none.
func amqpLinks(w *world, s *amqp.Session, address, sends, receives string) (*amqp.Sender, *amqp.Receiver) {
	w.t.Helper()
	properties := func(id string) map[string]any {
		if id == "" {
			return nil
		}
		return map[string]any{"com.microsoft:channel-correlation-id": id, "com.microsoft:api-version": apiVersion}
	}
	sender := w.sender(s, address, &amqp.SenderOptions{Properties: properties(sends)})
	return sender, w.receiver(s, address, &amqp.ReceiverOptions{Properties: properties(receives)})
}

// amqpAnswer answers a call.
func amqpAnswer(w *world, s *amqp.Sender, correlation any) {
	w.t.Helper()
	m := amqp.NewMessage([]byte(`{"done":true}`))
	m.Properties = &amqp.MessageProperties{CorrelationID: correlation}
	m.ApplicationProperties = map[string]any{"IoThub-status": int32(201)}
	if err := s.Send(w.ctx(), m, nil); err != nil {
		w.t.Fatal(err)
	}
}

// amqpAnswered is what the caller gets of amqpAnswer.
var amqpAnswered = map[string]any{"status": 201, "payload": map[string]any{"done": true}}

// amqpCall calls the method reboot.
func amqpCall(w *world, i identity) <-chan answer {
	w.t.Helper()
	return methodsCall(w, i, map[string]any{"methodName": "reboot", "payload": map[string]any{"delay": 5}, "responseTimeoutInSeconds": 60})
}

func amqpMethodRequest(t *testing.T, w *world) {
	d := w.newDevice("d")
	sender, receiver := amqpLinks(w, w.amqpDevice(d), d.path("/methods/devicebound"), "methods:1", "methods:1")
	call := amqpCall(w, d.identity())
	m := w.receive(receiver)
	if _, ok := m.Properties.CorrelationID.(amqp.UUID); !ok {
		t.Errorf("the correlation ID is a %T", m.Properties.CorrelationID)
	}
	w.check("name", m.ApplicationProperties["IoThub-methodname"], "reboot")
	w.check("payload", string(m.GetData()), `{"delay":5}`)
	amqpAnswer(w, sender, m.Properties.CorrelationID)
	w.check("answer", methodsAnswered(w, call), amqpAnswered)
}

func amqpMethodTextID(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender, receiver := amqpLinks(w, w.amqpDevice(d), d.path("/methods/devicebound"), "methods:1", "methods:1")
	call := amqpCall(w, d.identity())
	amqpAnswer(w, sender, fmt.Sprint(w.receive(receiver).Properties.CorrelationID))
	w.check("answer", methodsAnswered(w, call), amqpAnswered)
}

func amqpMethodPair(_ *testing.T, w *world) {
	d := w.newDevice("d")
	session := w.amqpDevice(d)
	w.sender(session, d.path("/methods/devicebound"), &amqp.SenderOptions{Properties: map[string]any{"com.microsoft:channel-correlation-id": "methods:0"}})
	sender, receiver := amqpLinks(w, session, d.path("/methods/devicebound"), "methods:1", "methods:1")
	call := amqpCall(w, d.identity())
	amqpAnswer(w, sender, w.receive(receiver).Properties.CorrelationID)
	w.check("answer", methodsAnswered(w, call), amqpAnswered)
}

func amqpMethodNoPair(_ *testing.T, w *world) {
	d := w.newDevice("d")
	amqpLinks(w, w.amqpDevice(d), d.path("/methods/devicebound"), "methods:1", "methods:2")
	w.check("status", next(w, "answer", amqpCall(w, d.identity())).status, http.StatusNotFound)
}

func amqpMethodNewerPair(_ *testing.T, w *world) {
	d := w.newDevice("d")
	session := w.amqpDevice(d)
	amqpLinks(w, session, d.path("/methods/devicebound"), "methods:1", "methods:1")
	sender, receiver := amqpLinks(w, session, d.path("/methods/devicebound"), "methods:2", "methods:2")
	call := amqpCall(w, d.identity())
	amqpAnswer(w, sender, w.receive(receiver).Properties.CorrelationID)
	w.check("answer", methodsAnswered(w, call), amqpAnswered)
}

func amqpMethodNoCall(_ *testing.T, w *world) {
	d := w.newDevice("d")
	sender, receiver := amqpLinks(w, w.amqpDevice(d), d.path("/methods/devicebound"), "methods:1", "methods:1")
	for _, id := range []any{amqp.UUID{1}, "another", nil} {
		amqpAnswer(w, sender, id)
	}
	call := amqpCall(w, d.identity())
	amqpAnswer(w, sender, w.receive(receiver).Properties.CorrelationID)
	w.check("answer", methodsAnswered(w, call), amqpAnswered)
}

func amqpMethodNoStatus(t *testing.T, w *world) {
	d := w.newDevice("d")
	sender, receiver := amqpLinks(w, w.amqpDevice(d), d.path("/methods/devicebound"), "methods:1", "methods:1")
	call := amqpCall(w, d.identity())
	id := w.receive(receiver).Properties.CorrelationID
	m := amqp.NewMessage([]byte("{}"))
	m.Properties = &amqp.MessageProperties{CorrelationID: id}
	if err := sender.Send(w.ctx(), m, nil); amqpCondition(err) == "" {
		t.Errorf("answer without status: %v", err)
	}
	amqpAnswer(w, sender, id) // the call still waits
	w.check("answer", methodsAnswered(w, call), amqpAnswered)
}

// amqpTwin is the pair of links of a twin.
type amqpTwin struct {
	w        *world
	sender   *amqp.Sender
	receiver *amqp.Receiver
	asked    int
}

const (
	amqpReported = "/properties/reported"
	amqpDesired  = "/notifications/twin/properties/desired"
)

func amqpTwinOf(w *world, i identity) *amqpTwin {
	w.t.Helper()
	sender, receiver := amqpLinks(w, w.amqpAs(i), i.path("/twin"), "twin:1", "twin:1")
	return &amqpTwin{w: w, sender: sender, receiver: receiver}
}

// send sends a request; resource and body may be empty.
func (c *amqpTwin) send(correlation any, operation, resource, body string) {
	c.w.t.Helper()
	m := amqp.NewMessage([]byte(body))
	m.Properties = &amqp.MessageProperties{CorrelationID: correlation}
	m.Annotations = amqp.Annotations{"operation": operation}
	if resource != "" {
		m.Annotations["resource"] = resource
	}
	if err := c.sender.Send(c.w.ctx(), m, nil); err != nil {
		c.w.t.Fatal(err)
	}
}

// next is what comes next: its status, which is 0 for a notification.
func (c *amqpTwin) next() (status int32, m *amqp.Message) {
	c.w.t.Helper()
	m = c.w.receive(c.receiver)
	status, _ = m.Annotations["status"].(int32)
	return status, m
}

// ask sends a request and wants its answer to have a status.
func (c *amqpTwin) ask(want int, operation, resource, body string) *amqp.Message {
	c.w.t.Helper()
	c.asked++
	id := fmt.Sprint("request ", c.asked)
	c.send(id, operation, resource, body)
	status, m := c.next()
	c.w.check("correlation ID", m.Properties.CorrelationID, id)
	if int(status) != want {
		c.w.t.Fatalf("%s %s: status %d, want %d: %s", operation, resource, status, want, m.GetData())
	}
	return m
}

// change changes a desired property.
func (c *amqpTwin) change(i identity, desired string) {
	c.w.t.Helper()
	body := map[string]any{"properties": map[string]any{"desired": json.RawMessage(desired)}}
	c.w.must(c.w.rest(http.MethodPatch, i.twinPath(""), body), http.StatusOK)
}

// amqpObject is the body of a message as an object.
func amqpObject(w *world, m *amqp.Message) map[string]any {
	w.t.Helper()
	return answer{body: m.GetData()}.object(w.t)
}

func amqpReadsTwin(_ *testing.T, w *world) {
	d := w.newDevice("d").identity()
	c := amqpTwinOf(w, d)
	c.change(d, `{"every":"5m"}`)
	w.check("twin", amqpObject(w, c.ask(200, "GET", "", " ")), map[string]any{
		"desired": map[string]any{"every": "5m", "$version": 2}, "reported": map[string]any{"$version": 1},
	})
}

func amqpUpdatesTwin(_ *testing.T, w *world) {
	c := amqpTwinOf(w, w.newDevice("d").identity())
	for version := range 3 {
		m := c.ask(200, "PATCH", amqpReported, fmt.Sprintf(`{"battery":%d}`, version))
		w.check("version", fmt.Sprintf("%T %[1]v", m.Annotations["version"]), fmt.Sprintf("int64 %d", version+2))
	}
	twin := w.must(w.rest(http.MethodGet, "/twins/d", nil), http.StatusOK).object(w.t)
	w.check("battery", at(twin, "properties", "reported", "battery"), 2)
}

func amqpDeletesProperty(_ *testing.T, w *world) {
	c := amqpTwinOf(w, w.newDevice("d").identity())
	c.ask(200, "PATCH", amqpReported, `{"battery":60,"firmware":{"version":"1","beta":true}}`)
	c.ask(200, "PATCH", amqpReported, `{"battery":null,"firmware":{"beta":null}}`)
	w.check("reported", amqpObject(w, c.ask(200, "GET", "", ""))["reported"], map[string]any{
		"$version": 3, "firmware": map[string]any{"version": "1"},
	})
}

func amqpHearsOfDesired(t *testing.T, w *world) {
	d := w.newDevice("d").identity()
	c := amqpTwinOf(w, d)
	c.change(d, `{"unseen":1}`)
	c.ask(200, "PUT", amqpDesired, "")
	c.change(d, `{"every":"5m","route":null}`)
	status, m := c.next()
	w.check("status", status, 0)
	w.check("patch", amqpObject(w, m), map[string]any{"every": "5m", "route": nil, "$version": 3})
	if p := m.Properties; p != nil && p.CorrelationID != nil {
		t.Errorf("the notification has the correlation ID %v", p.CorrelationID)
	}
}

func amqpHearsNoMore(_ *testing.T, w *world) {
	d := w.newDevice("d").identity()
	c := amqpTwinOf(w, d)
	c.ask(200, "PUT", amqpDesired, "")
	c.ask(200, "DELETE", amqpDesired, "")
	c.change(d, `{"unseen":1}`)
	c.ask(200, "GET", "", "") // and not a notification
}

func amqpTwinCorrelation(_ *testing.T, w *world) {
	c := amqpTwinOf(w, w.newDevice("d").identity())
	for _, id := range []any{"text", amqp.UUID{1}, uint64(7)} {
		c.send(id, "GET", "", "")
		_, m := c.next()
		w.check("correlation ID", fmt.Sprintf("%T %[1]v", m.Properties.CorrelationID), fmt.Sprintf("%T %[1]v", id))
	}
}

func amqpTwinErrors(_ *testing.T, w *world) {
	c := amqpTwinOf(w, w.newDevice("d").identity())
	c.ask(400, "PATCH", amqpReported, `{"battery":`)
	c.ask(400, "PATCH", amqpReported, `[]`)
	c.ask(400, "POST", amqpReported, `{}`)
	c.ask(400, "GET", "/properties/tags", "")
	twin := amqpObject(w, c.ask(200, "GET", "", ""))
	w.check("reported", twin["reported"], map[string]any{"$version": 1})
}

// amqpTakesOver has another connection take the device.
func amqpTakesOver(other func(*world, device)) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		d := w.newDevice("d")
		session := w.amqpDevice(d)
		var links []*amqp.Receiver
		for _, address := range []string{"/messages/devicebound", "/methods/devicebound", "/twin"} {
			links = append(links, w.receiver(session, d.path(address), nil))
		}
		other(w, d)
		for _, link := range links {
			amqpDetached(w, link, amqp.ErrCondStolen)
		}
		w.check("connection state", amqpStateOf(w, d), "Connected")
	}
}

func amqpTakesFromMQTT(_ *testing.T, w *world) {
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	c.dropped()
	w.check("connection state", amqpStateOf(w, d), "Connected")
}

func amqpTakesBack(_ *testing.T, w *world) {
	d := w.newDevice("d")
	session := w.amqpDevice(d)
	link := w.receiver(session, d.path("/messages/devicebound"), nil)
	c := w.mqtt(d, nil)
	amqpDetached(w, link, amqp.ErrCondStolen)
	amqpSend(w, session, d.path("/messages/events"), amqp.NewMessage([]byte("back")))
	c.dropped()
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "back"}})
}

// amqpMany is a connection with a sending link for each of several devices, in a
// session of its own.
func amqpMany(w *world, conn *amqp.Conn, devices []device) map[string]*amqp.Sender {
	w.t.Helper()
	senders := make(map[string]*amqp.Sender)
	for _, d := range devices {
		senders[d.id] = w.sender(amqpSession(w, conn), d.path("/messages/events"), nil)
	}
	return senders
}

// amqpShared opens a connection for several devices.
func amqpShared(w *world, devices []device, byPolicy bool) *amqp.Conn {
	w.t.Helper()
	opts := &amqp.ConnOptions{HostName: w.emulator().HubName(), SASLType: amqp.SASLTypeAnonymous()}
	conn, err := amqpOverTLS(w, w.tls(), opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("AMQP connection", func(context.Context) error { return conn.Close() })
	tokens := map[string]string{w.emulator().HubName(): w.policyToken("device")}
	if !byPolicy {
		tokens = make(map[string]string)
		for _, d := range devices {
			tokens[w.resource(d.identity())] = w.deviceToken(d)
		}
	}
	session := amqpSession(w, conn)
	for resource, token := range tokens {
		if err := w.putToken(session, resource, token); err != nil {
			w.t.Fatal(err)
		}
	}
	return conn
}

func amqpThree(w *world) []device {
	w.t.Helper()
	return []device{w.newDevice("a"), w.newDevice("b"), w.newDevice("c")}
}

func amqpMultiplexes(byPolicy bool) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		devices := amqpThree(w)
		for id, sender := range amqpMany(w, amqpShared(w, devices, byPolicy), devices) {
			if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("of "+id)), nil); err != nil {
				w.t.Error(err)
			}
		}
		seen := make(map[string]string)
		for _, e := range w.events(len(devices)) {
			seen[fmt.Sprint(e.SystemProperties["iothub-connection-device-id"])] = string(e.Body)
		}
		w.check("messages", seen, map[string]string{"a": "of a", "b": "of b", "c": "of c"})
		for _, d := range devices {
			w.check("state of "+d.id, amqpStateOf(w, d), "Connected")
		}
	}
}

func amqpLosesOneOfMany(_ *testing.T, w *world) {
	devices := amqpThree(w)
	conn := amqpShared(w, devices, false)
	lost := w.receiver(amqpSession(w, conn), devices[0].path("/messages/devicebound"), nil)
	senders := amqpMany(w, conn, devices[1:])
	w.mqtt(devices[0], nil)
	amqpDetached(w, lost, amqp.ErrCondStolen)
	for id, sender := range senders {
		if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil); err != nil {
			w.t.Errorf("%s: %v", id, err)
		}
	}
}

func amqpDisabled(_ *testing.T, w *world) {
	d := w.newDevice("d")
	session := w.amqpDevice(d)
	link := w.receiver(session, d.path("/messages/devicebound"), nil)
	registrySetStatus(w, d, "disabled")
	amqpDetached(w, link, amqp.ErrCondUnauthorizedAccess)
	_, err := session.NewReceiver(w.ctx(), d.path("/messages/devicebound"), nil)
	amqpRefused(w, "link of a disabled device", err, amqp.ErrCondUnauthorizedAccess)
	registrySetStatus(w, d, "enabled")
	amqpSend(w, session, d.path("/messages/events"), amqp.NewMessage([]byte("x")))
}

func amqpDeleted(_ *testing.T, w *world) {
	d := w.newDevice("d")
	link := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	w.must(w.rest(http.MethodDelete, d.path(""), nil, "If-Match: *"), http.StatusNoContent)
	amqpDetached(w, link, amqp.ErrCondNotFound)
}

func amqpUnknownDevice(_ *testing.T, w *world) {
	session := w.amqpService("device")
	_, err := session.NewSender(w.ctx(), "/devices/nobody/messages/events", nil)
	amqpRefused(w, "link of an unknown device", err, amqp.ErrCondNotFound)
	d := w.newDevice("d")
	_, err = session.NewSender(w.ctx(), d.path("/modules/nobody/messages/events"), nil)
	amqpRefused(w, "link of an unknown module", err, amqp.ErrCondNotFound)
}

func amqpState(_ *testing.T, w *world) {
	d := w.newDevice("d")
	session := w.amqpDevice(d)
	w.check("with a token alone", amqpStateOf(w, d), "Disconnected")
	sender := w.sender(session, d.path("/messages/events"), nil)
	receiver := w.receiver(session, d.path("/messages/devicebound"), nil)
	w.check("with two links", amqpStateOf(w, d), "Connected")
	if err := sender.Close(w.ctx()); err != nil {
		w.t.Fatal(err)
	}
	w.check("with one link", amqpStateOf(w, d), "Connected")
	if err := receiver.Close(w.ctx()); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("the device is disconnected", func() bool { return amqpStateOf(w, d) == "Disconnected" })
}

func amqpModuleSends(_ *testing.T, w *world) {
	m := w.newIdentity("d/m")
	amqpSend(w, w.amqpAs(m), m.path("/messages/events"), amqp.NewMessage([]byte("x")))
	r := w.routed(1)[0]
	w.expectRouted(r, shows{
		queue: properties{"application iothub-connection-device-id": "d", "application iothub-connection-module-id": "m"},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-connection-module-id": "m"},
	})
	w.expectAuthentication(r, "module")
}

func amqpModuleAnswers(_ *testing.T, w *world) {
	m := w.newIdentity("d/m")
	sender, receiver := amqpLinks(w, w.amqpAs(m), m.path("/methods/devicebound"), "methods:1", "methods:1")
	call := amqpCall(w, m)
	amqpAnswer(w, sender, w.receive(receiver).Properties.CorrelationID)
	w.check("answer", methodsAnswered(w, call), amqpAnswered)
	w.check("its device", next(w, "answer", amqpCall(w, identity{deviceID: "d"})).status, http.StatusNotFound)
}

func amqpModuleTwin(_ *testing.T, w *world) {
	m := w.newIdentity("d/m")
	c := amqpTwinOf(w, m)
	c.ask(200, "PATCH", amqpReported, `{"of":"module"}`)
	for path, want := range map[string]any{"/twins/d/modules/m": "module", "/twins/d": nil} {
		twin := w.must(w.rest(http.MethodGet, path, nil), http.StatusOK).object(w.t)
		w.check(path, at(twin, "properties", "reported", "of"), want)
	}
}

func amqpModuleBesideDevice(_ *testing.T, w *world) {
	d := w.newDevice("d")
	m := w.newModule(d, "m")
	session := w.amqp(map[string]string{w.resource(m): w.identityToken(m), w.resource(d.identity()): w.deviceToken(d)}, nil)
	for _, i := range []identity{d.identity(), m, d.identity()} {
		sender := w.sender(session, i.path("/messages/events"), nil)
		if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil); err != nil {
			w.t.Errorf("%s: %v", i.path(""), err)
		}
	}
}

func amqpRefusesSource(address string) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		w.newIdentity("d/m")
		_, err := w.amqpService("device").NewReceiver(w.ctx(), address, nil)
		amqpRefused(w, "receiver from "+address, err, amqp.ErrCondNotImplemented)
	}
}

func amqpRefusesTarget(address string) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		w.newDevice("d")
		_, err := w.amqpService("device").NewSender(w.ctx(), address, nil)
		if c := amqpCondition(err); c != amqp.ErrCondNotImplemented && c != amqp.ErrCondInvalidField {
			t.Errorf("sender to %q: %v", address, err)
		}
	}
}
