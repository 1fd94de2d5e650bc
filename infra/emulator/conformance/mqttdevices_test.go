package conformance_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/coder/websocket"
	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	mqttPage     = `IoT Hub docs: "Communicate with an IoT hub using the MQTT protocol"`
	mqttMessages = `IoT Hub docs: "Create and read IoT Hub messages"`
	mqttNode     = "azure-iot-sdk-node, device/transport/mqtt/src/mqtt.ts"
	mqttCSharp   = "azure-iot-sdk-csharp, iothub/device/src/Transport/Mqtt/MqttIotHubAdapter.cs"
)

var mqttDevices = area{
	name: "Devices over MQTT",
	emulated: slices.Concat(
		mqttConnecting, mqttUserNames, mqttTelemetry, mqttProperties, mqttStamps, mqttWills,
		mqttSessions, mqttDeviceBound, mqttTopics, mqttModules,
	),
	refused: []behaviour{
		{"MQTT 5 (preview)", "is refused with return code 1", "MQTT 3.1.1 [MQTT-3.1.2-2]", mqttRefusesLevel5},
		{"QoS 2", "a message at QoS 2 ends the connection", mqttPage, mqttRefusesQoS2},
		{"QoS 2", "a subscription at QoS 2 is granted QoS 1", mqttPage, mqttGrantsQoS1},
		{"Retained messages", "are passed on with the property mqtt-retain", mqttPage, mqttPassesRetainedOn},
		{"Inputs and outputs of Edge modules", "a subscription is refused", mqttPage, mqttRefusesFilters(
			"devices/d/modules/m/#", "devices/d/modules/m/inputs/#")},
	},
}

var mqttConnecting = []behaviour{
	{"MQTT 3.1.1 over TLS", "a device connects, sends and receives", mqttPage, mqttConnects(nil)},
	{"MQTT 3.1.1 over TLS", "protocol level 3 is refused with return code 1", "MQTT 3.1.1 [MQTT-3.1.2-2]", mqttRefusesLevel3},
	{"MQTT 3.1.1 over TLS", "connections without TLS fail", mqttPage, mqttNeedsTLS},
	{"MQTT 3.1.1 over TLS", "a client ID that is not the user name's is refused with return code 2", mqttPage, mqttRefusesClientID},
	{"MQTT 3.1.1 over TLS", "a wrong password is refused with return code 5", "MQTT 3.1.1 §3.2.2.3", mqttRefusesPassword},
	{"MQTT 3.1.1 over TLS", "any first packet but CONNECT ends the connection", "MQTT 3.1.1 [MQTT-3.1.0-1]", mqttNeedsConnect},
	{"MQTT 3.1.1 over TLS", "a second CONNECT ends the connection", "MQTT 3.1.1 [MQTT-3.1.0-2]", mqttRefusesSecondConnect},
	{"MQTT 3.1.1 over TLS", "a device that is silent for one and a half times its keep-alive is dropped", mqttPage, mqttDropsSilent},
	{"MQTT 3.1.1 over TLS", "a new connection drops the one before", mqttPage, mqttTakesOver},
	{"MQTT 3.1.1 over WebSocket", "a device connects, sends and receives", mqttPage, mqttConnects(mqttOverWebSocket)},
	{"MQTT 3.1.1 over WebSocket", "the sub-protocol has to be mqtt", "MQTT 3.1.1 [MQTT-6.0.0-3]", mqttNeedsSubProtocol},
}

var mqttUserNames = []behaviour{
	{"User names", "{host}/{device}/?api-version={version}", mqttPage, mqttUserName("localhost/d/?api-version=2021-04-12")},
	{"User names", "with a model and the type of the client", mqttNode, mqttUserName(
		"localhost/d/?api-version=2021-04-12&model-id=dtmi%3Aexample%3AThermostat%3B1&DeviceClientType=azure-iot-device%2F1.18.4%20(node%20v20)")},
	{"User names", "without a question mark", "amenzhinsky/iothub, iotdevice/transport/mqtt/mqtt.go", mqttUserName("localhost/d/api-version=2020-09-30")},
	{"User names", "without a version", mqttPage, mqttUserName("localhost/d")},
	{"User names", "without a version, with a slash at the end", mqttPage, mqttUserName("localhost/d/")},
}

var mqttTelemetry = []behaviour{
	{"Telemetry", "QoS 1 is acknowledged when the message is stored", mqttPage, mqttStoresBeforePuback},
	{"Telemetry", "QoS 0 arrives too", mqttPage, mqttSendsAtQoS0},
	{"Telemetry", "PUBACKs come in the order of the messages", "MQTT 3.1.1 [MQTT-4.6.0-2]", mqttAcknowledgesInOrder},
	{"Telemetry", "messages of a device keep their order", `IoT Hub docs: "IoT Hub endpoints"`, mqttKeepsOrder},
	{"Telemetry", "the topic may lack its last slash", mqttNode, mqttSendsTo("devices/d/messages/events")},
	{"Telemetry", "a message may have up to 256 KB", `IoT Hub docs: "IoT Hub quotas and throttling"`, mqttSendsLarge},
	{"Telemetry", "a larger one ends the connection", `IoT Hub docs: "IoT Hub quotas and throttling"`, mqttRefusesTooLarge},
}

var mqttProperties = []behaviour{
	mqttProperty("message ID", "%24.mid=m-1", mqttPage, shows{both: properties{"message-id": "m-1"}}),
	mqttProperty("correlation ID", "%24.cid=c-1", mqttPage, shows{both: properties{"correlation-id": "c-1"}}),
	mqttProperty("user ID", "%24.uid=ada", mqttNode, shows{both: properties{"user-id": "ada"}}),
	mqttProperty("to", "%24.to=somewhere", mqttNode, shows{both: properties{"to": "somewhere"}}),
	mqttProperty("content type and encoding", "%24.ct=application%2Fjson%3Bcharset%3Dutf-8&%24.ce=utf-8", mqttPage,
		shows{both: properties{"content-type": "application/json;charset=utf-8", "content-encoding": "utf-8"}}),
	mqttProperty("expiry", "%24.exp=2098-07-06T05%3A04%3A03Z", mqttNode, shows{both: properties{"expiry": "2098-07-06T05:04:03Z"}}),
	mqttProperty("creation time", "%24.ctime=2021-04-21T11%3A30%3A16Z", mqttMessages,
		shows{both: properties{"application iothub-creation-time-utc": "2021-04-21T11:30:16Z"}}),
	mqttProperty("message schema", "%24.schema=v2", mqttCSharp, shows{both: properties{"application iothub-message-schema": "v2"}}),
	mqttProperty("component", "%24.sub=thermostat1", `IoT Plug and Play docs: "IoT Plug and Play conventions"`,
		shows{queue: properties{"application dt-subject": "thermostat1"}, event: properties{"system dt-subject": "thermostat1"}}),
	mqttProperty("interface", "%24.ifid=urn%3Aexample%3A1", mqttNode,
		shows{queue: properties{"application iothub-interface-id": "urn:example:1"}, event: properties{"system iothub-interface-id": "urn:example:1"}}),
	mqttProperty("application properties", "color=red&Size=large", mqttPage,
		shows{both: properties{"application color": "red", "application Size": "large"}}),
	mqttProperty("names and values are percent-encoded", "a%20b%26c=%C3%A4%3D%2F%26%2B", mqttPage,
		shows{both: properties{"application a b&c": "ä=/&+"}}),
	mqttProperty("a property may be empty, or null", "empty=&null", mqttPage,
		shows{both: properties{"application empty": "", "application null": "<nil>"}}),
	mqttProperty("a question mark may come first", "?prop1=x", mqttPage, shows{both: properties{"application prop1": "x"}}),
}

var mqttStamps = []behaviour{
	{"Stamps on telemetry", "device, generation and authentication", mqttMessages, mqttStampsDevice},
	{"Stamps on telemetry", "the scope of a policy's token", mqttMessages, mqttStampsPolicy},
	{"Stamps on telemetry", "time and source, for Event Hubs", mqttMessages, mqttStampsEvents},
	{"Stamps on telemetry", "the model of the connection", mqttMessages, mqttStampsModel},
	{"Stamps on telemetry", "can't be forged", mqttMessages, mqttResistsForgery},
}

var mqttWills = []behaviour{
	{"Wills", "a lost connection leaves its will as telemetry", mqttPage, mqttLeavesWill},
	{"Wills", "so does one that another replaces", "MQTT 3.1.1 §3.1.2.5", mqttLeavesWillToSuccessor},
	{"Wills", "a DISCONNECT leaves none", mqttPage, mqttTakesWillAlong},
	{"Wills", "the topic has a property bag", mqttPage, mqttWillHasProperties},
}

var mqttSessions = []behaviour{
	{"Persistent sessions", "the second connection finds the session of the first", "MQTT 3.1.1 [MQTT-3.2.2-2]", mqttFindsSession},
	{"Persistent sessions", "a clean session forgets it", "MQTT 3.1.1 [MQTT-3.1.2-6]", mqttForgetsSession},
	{"Persistent sessions", "a kept subscription delivers what came meanwhile", mqttPage, mqttKeepsSubscription},
	{"Persistent sessions", "a clean session gets nothing before it subscribes", mqttPage, mqttWaitsForSubscription},
	{"Persistent sessions", "what was unsubscribed stays so", "MQTT 3.1.1 §3.10", mqttKeepsUnsubscribed},
	{"Persistent sessions", "method calls come without subscribing again", "MQTT 3.1.1 §3.1.2.4", mqttKeepsMethods},
}

var mqttDeviceBound = []behaviour{
	{"Cloud-to-device messages", "come with their properties in the topic", mqttPage, mqttReceives},
	{"Cloud-to-device messages", "a property may be empty, or null", mqttPage, mqttReceivesNull},
	{"Cloud-to-device messages", "at QoS 1, the PUBACK completes", mqttPage, mqttCompletes},
	{"Cloud-to-device messages", "at QoS 1, without a PUBACK they come again after reconnecting, in order", "MQTT 3.1.1 [MQTT-4.4.0-1]", mqttRedelivers},
	{"Cloud-to-device messages", "at QoS 0, they are complete when sent", mqttPage, mqttCompletesAtQoS0},
	{"Cloud-to-device messages", "wait for the subscription", mqttPage, mqttWaitsForSubscription},
}

var mqttTopics = []behaviour{
	{"Direct methods", "call and answer share a request ID", mqttPage, mqttAnswersMethod},
	{"Direct methods", "an answer may be empty", mqttPage, mqttAnswersMethodEmpty},
	{"Direct methods", "an answer to no call is ignored", mqttPage, mqttIgnoresAnswer},
	{"Twins", "are read with status 200, without metadata", mqttPage, mqttReadsTwin},
	{"Twins", "an update is answered with status 204 and the version", mqttPage, mqttUpdatesTwin},
	{"Twins", "a malformed update is answered with status 400", mqttPage, mqttRefusesBadTwin},
	{"Twins", "changes of desired properties are told with their version", mqttPage, mqttHearsOfDesired},
	{"Topics of the hub alone", "a message on another topic ends the connection", mqttPage, mqttRefusesTopics},
	{"Topics of the hub alone", "another filter is refused with 0x80", mqttPage, mqttRefusesFilters(
		"#", "devices/d/messages/devicebound/+", "devices/+/messages/devicebound/#", "devices/other/messages/devicebound/#",
		"devices/d/messages/events/#", "$SYS/#", "any/topic")},
}

var mqttModules = []behaviour{
	{"Modules", "send telemetry with their own stamp", mqttPage, mqttModuleSends},
	{"Modules", "have a connection beside their device's", mqttPage, mqttModuleBesideDevice},
	{"Modules", "have a twin of their own", mqttPage, mqttModuleTwin},
	{"Modules", "leave wills on their own topic", mqttPage, mqttModuleWill},
	{"Modules", "get no cloud-to-device messages", `IoT Hub docs: "Understand and use module twins in IoT Hub"`, mqttModuleGetsNoC2D},
}

// properties are what an SDK shows of a message, by name. Names of application
// properties and of annotations begin with application and system.
type properties map[string]string

// shows are properties that a message has to have at the endpoints.
type shows struct{ both, queue, event properties }

// routed is a device-to-cloud message as the endpoints of the default
// configuration give it out: a queue and the built-in one.
type routed struct {
	queue *azservicebus.ReceivedMessage
	event *azeventhubs.ReceivedEventData
}

// routed returns the first n messages of devices.
func (w *world) routed(n int) []routed {
	w.t.Helper()
	messages := w.busReceive(w.busReceiver("device-messages", nil), n)
	// azservicebus gives back what arrives between two calls, to get it later.
	slices.SortFunc(messages, func(a, b *azservicebus.ReceivedMessage) int { return cmp.Compare(*a.SequenceNumber, *b.SequenceNumber) })
	events := w.events(n)
	all := make([]routed, n)
	for i := range all {
		all[i] = routed{messages[i], events[i]}
	}
	return all
}

func (r routed) inQueue() properties {
	m := r.queue
	all := nativeProperties(m.RawAMQPMessage.Properties)
	maps.Copy(all, properties{"message-id": m.MessageID, "body": string(m.Body)})
	for name, text := range map[string]*string{"correlation-id": m.CorrelationID, "content-type": m.ContentType, "to": m.To} {
		if text != nil {
			all[name] = *text
		}
	}
	for name, value := range m.ApplicationProperties {
		all["application "+name] = fmt.Sprint(value)
	}
	return all
}

func (r routed) inEvents() properties {
	e := r.event
	all := properties{"body": string(e.Body)}
	if p := e.RawAMQPMessage.Properties; p != nil {
		all["user-id"] = string(p.UserID)
		if p.To != nil {
			all["to"] = *p.To
		}
		if p.ContentEncoding != nil {
			all["content-encoding"] = *p.ContentEncoding
		}
		if p.AbsoluteExpiryTime != nil {
			all["expiry"] = p.AbsoluteExpiryTime.UTC().Format(time.RFC3339)
		}
	}
	if e.MessageID != nil {
		all["message-id"] = *e.MessageID
	}
	if e.CorrelationID != nil {
		all["correlation-id"] = fmt.Sprint(e.CorrelationID)
	}
	if e.ContentType != nil {
		all["content-type"] = *e.ContentType
	}
	for name, value := range e.Properties {
		all["application "+name] = fmt.Sprint(value)
	}
	for name, value := range e.SystemProperties {
		all["system "+name] = fmt.Sprint(value)
	}
	return all
}

// nativeProperties are those that azservicebus shows in the raw message alone.
func nativeProperties(p *azservicebus.AMQPAnnotatedMessageProperties) properties {
	all := make(properties)
	if p == nil {
		return all
	}
	all["user-id"] = string(p.UserID)
	if p.ContentEncoding != nil {
		all["content-encoding"] = *p.ContentEncoding
	}
	if p.AbsoluteExpiryTime != nil {
		all["expiry"] = p.AbsoluteExpiryTime.UTC().Format(time.RFC3339)
	}
	return all
}

// expect checks that a routed message has properties.
func (w *world) expectRouted(r routed, want shows) {
	w.t.Helper()
	for where, seen := range map[string]struct{ got, want properties }{
		"queue": {r.inQueue(), want.queue}, "events": {r.inEvents(), want.event},
	} {
		for _, wanted := range []properties{want.both, seen.want} {
			for name, value := range wanted {
				if got, ok := seen.got[name]; !ok || got != value {
					w.t.Errorf("%s: %s is %q, want %q, among %v", where, name, got, value, seen.got)
				}
			}
		}
	}
}

// mqttConnects shows that the way there and the way back are open.
func mqttConnects(change func(*world, *paho.ClientOptions)) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		d := w.newDevice("d")
		c := w.mqtt(d, func(o *paho.ClientOptions) {
			if change != nil {
				change(w, o)
			}
		})
		c.subscribe("devices/d/messages/devicebound/#", 1)
		c.publish("devices/d/messages/events/", 1, "up")
		w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "up"}})
		if err := w.sendC2D(w.amqpService("service"), d, "m", "down", ""); err != nil {
			t.Fatal(err)
		}
		w.check("payload", string(c.receive("devices/d/messages/devicebound/").Payload()), "down")
	}
}

func mqttOverWebSocket(w *world, o *paho.ClientOptions) {
	o.Servers = nil
	o.AddBroker("wss://" + w.emulator().HTTPSAddr() + "/$iothub/websocket")
}

func mqttRefusesLevel3(t *testing.T, w *world) {
	_, err := w.tryMQTT(w.newDevice("d"), func(o *paho.ClientOptions) { o.SetProtocolVersion(3) })
	if !errors.Is(err, packets.ErrorRefusedBadProtocolVersion) {
		t.Errorf("got %v", err)
	}
}

func mqttRefusesLevel5(t *testing.T, w *world) {
	c := w.mqttWire()
	// MQTT 5 §3.1: name, level, flags, keep-alive, no properties, client ID.
	body := "\x00\x04MQTT\x05\x02\x00\x3c\x00" + "\x00\x01d"
	if _, err := c.conn.Write([]byte("\x10" + string(rune(len(body))) + body)); err != nil {
		t.Fatal(err)
	}
	w.check("return code", expect[*packets.ConnackPacket](c).ReturnCode, packets.ErrRefusedBadProtocolVersion)
	c.ended()
}

func mqttNeedsTLS(t *testing.T, w *world) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(w.ctx(), "tcp", w.emulator().MQTTSAddr())
	if err != nil {
		t.Fatal(err)
	}
	plain := &wire{w, conn}
	defer plain.lose()
	if err := conn.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	plain.send(w.mqttConnect(w.newDevice("d")))
	p, err := packets.ReadPacket(conn) // an alert of TLS is none of MQTT
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the hub answers with %v, %v", p, err)
	}
}

func mqttRefusesClientID(t *testing.T, w *world) {
	_, err := w.tryMQTT(w.newDevice("d"), func(o *paho.ClientOptions) { o.SetClientID("another") })
	if !errors.Is(err, packets.ErrorRefusedIDRejected) {
		t.Errorf("got %v", err)
	}
}

func mqttRefusesPassword(t *testing.T, w *world) {
	d, other := w.newDevice("d"), w.newDevice("other")
	for name, password := range map[string]string{
		"empty":             "",
		"another device's":  w.deviceToken(other),
		"another key's":     w.token(w.emulator().HubName()+"/devices/d", "", other.primary, time.Hour),
		"expired":           w.token(w.emulator().HubName()+"/devices/d", "", d.primary, -time.Hour),
		"not a token":       "secret",
		"a policy's, wrong": w.policyToken("service"),
	} {
		_, err := w.tryMQTT(d, func(o *paho.ClientOptions) { o.SetPassword(password) })
		if !errors.Is(err, packets.ErrorRefusedNotAuthorised) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func mqttNeedsConnect(t *testing.T, w *world) {
	c := w.mqttWire()
	c.send(packets.NewControlPacket(packets.Pingreq))
	c.ended()
}

func mqttRefusesSecondConnect(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.ping()
	c.send(w.mqttConnect(d))
	c.ended()
}

func mqttDropsSilent(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, func(p *packets.ConnectPacket) { p.Keepalive = 1 })
	w.check("connection state", w.registered(d)["connectionState"], "Connected")
	c.ended()
	w.eventually("the device shows as disconnected", func() bool { return w.registered(d)["connectionState"] == "Disconnected" })
}

func mqttTakesOver(t *testing.T, w *world) {
	d := w.newDevice("d")
	first := w.mqtt(d, nil)
	second := w.mqtt(d, nil)
	first.dropped()
	second.publish("devices/d/messages/events/", 1, "still here")
	w.check("connection state", w.registered(d)["connectionState"], "Connected")
}

func mqttNeedsSubProtocol(t *testing.T, w *world) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: w.tls()}}
	t.Cleanup(client.CloseIdleConnections)
	url := "https://" + w.emulator().HTTPSAddr() + "/$iothub/websocket"
	conn, _, err := websocket.Dial(w.ctx(), url, &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"chat"}})
	if err != nil {
		return // refused in the handshake, which is as good
	}
	defer conn.CloseNow()
	if _, _, err := conn.Read(w.ctx()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("the WebSocket ends with %v", err)
	}
}

func mqttUserName(name string) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		c := w.mqtt(w.newDevice("d"), func(o *paho.ClientOptions) { o.SetUsername(name) })
		c.publish("devices/d/messages/events/", 1, "hello")
	}
}

func mqttStoresBeforePuback(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	c.publish("devices/d/messages/events/", 1, "hello")
	// Unlike receiving, peeking doesn't wait for messages.
	found, err := w.busReceiver("device-messages", nil).PeekMessages(w.ctx(), 10, nil)
	if err != nil || len(found) != 1 || string(found[0].Body) != "hello" {
		t.Errorf("after the PUBACK the queue has %v, %v", found, err)
	}
}

func mqttSendsAtQoS0(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	c.publish("devices/d/messages/events/", 0, "hello")
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "hello"}})
}

func mqttSendsTo(topic string) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		c := w.mqtt(w.newDevice("d"), nil)
		c.publish(topic, 1, "hello")
		w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "hello"}})
	}
}

func mqttAcknowledgesInOrder(t *testing.T, w *world) {
	c, _ := w.mqttPackets(w.newDevice("d"), nil)
	ids := []uint16{7, 3, 65535, 1, 4}
	for _, id := range ids {
		c.send(publication("devices/d/messages/events/", 1, id, "hello"))
	}
	for _, id := range ids {
		w.check("PUBACK", expect[*packets.PubackPacket](c).MessageID, id)
	}
}

func mqttKeepsOrder(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	const n = 50
	var last paho.Token
	for i := range n {
		last = c.Publish("devices/d/messages/events/", 1, false, fmt.Sprint(i))
	}
	if err := w.wait(last); err != nil {
		t.Fatal(err)
	}
	var queue, events, want []string
	for i, r := range w.routed(n) {
		queue, events, want = append(queue, string(r.queue.Body)), append(events, string(r.event.Body)), append(want, fmt.Sprint(i))
	}
	w.check("queue", queue, want)
	w.check("events", events, want)
}

func mqttSendsLarge(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	body := strings.Repeat("x", 256<<10-100)
	c.publish("devices/d/messages/events/key=value", 1, body)
	w.check("bytes", len(w.routed(1)[0].event.Body), len(body))
}

func mqttRefusesTooLarge(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	c.Publish("devices/d/messages/events/", 1, false, strings.Repeat("x", 256<<10+1))
	c.dropped()
}

// mqttProperty is a case about a property bag.
func mqttProperty(says, bag, source string, want shows) behaviour {
	return behaviour{"Properties of telemetry", says, source, func(t *testing.T, w *world) {
		c := w.mqtt(w.newDevice("d"), nil)
		c.publish("devices/d/messages/events/"+bag, 1, "hello")
		w.expectRouted(w.routed(1)[0], want)
	}}
}

func mqttStampsDevice(t *testing.T, w *world) {
	d := w.newDevice("d")
	w.mqtt(d, nil).publish("devices/d/messages/events/", 1, "hello")
	r := w.routed(1)[0]
	generation, _ := w.registered(d)["generationId"].(string)
	w.expectRouted(r, shows{
		queue: properties{"application iothub-connection-device-id": "d", "application iothub-connection-auth-generation-id": generation},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-connection-auth-generation-id": generation},
	})
	w.expectAuthentication(r, "device")
}

// expectAuthentication checks what the hub says of how the sender proved who it
// is.
func (w *world) expectAuthentication(r routed, scope string) {
	w.t.Helper()
	for where, text := range map[string]string{
		"queue":  r.inQueue()["application iothub-connection-auth-method"],
		"events": r.inEvents()["system iothub-connection-auth-method"],
	} {
		var method struct{ Scope, Type, Issuer string }
		if err := json.Unmarshal([]byte(text), &method); err != nil {
			w.t.Errorf("%s: method %q: %v", where, text, err)
		}
		w.check(where, method, struct{ Scope, Type, Issuer string }{scope, "sas", "iothub"})
	}
}

func mqttStampsPolicy(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), func(o *paho.ClientOptions) { o.SetPassword(w.policyToken("device")) })
	c.publish("devices/d/messages/events/", 1, "hello")
	w.expectAuthentication(w.routed(1)[0], "hub")
}

func mqttStampsEvents(t *testing.T, w *world) {
	before := time.Now().Add(-time.Minute)
	w.mqtt(w.newDevice("d"), nil).publish("devices/d/messages/events/", 1, "hello")
	system := w.events(1)[0].SystemProperties
	w.check("source", system["iothub-message-source"], "Telemetry")
	enqueued, ok := system["iothub-enqueuedtime"].(time.Time)
	if !ok || enqueued.Before(before) || enqueued.After(before.Add(time.Hour)) {
		t.Errorf("iothub-enqueuedtime is %v", system["iothub-enqueuedtime"])
	}
}

func mqttStampsModel(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), func(o *paho.ClientOptions) {
		o.SetUsername(o.Username + "&model-id=dtmi%3Aexample%3AThermostat%3B1")
	})
	c.publish("devices/d/messages/events/", 1, "hello")
	w.expectRouted(w.routed(1)[0], shows{
		queue: properties{"application dt-dataschema": "dtmi:example:Thermostat;1"},
		event: properties{"system dt-dataschema": "dtmi:example:Thermostat;1"},
	})
}

func mqttResistsForgery(t *testing.T, w *world) {
	w.newDevice("victim")
	c := w.mqtt(w.newDevice("d"), nil)
	c.publish("devices/d/messages/events/iothub-connection-device-id=victim&iothub-connection-module-id=m"+
		"&iothub-connection-auth-method=none&iothub-connection-auth-generation-id=0&iothub-message-source=twin"+
		"&iothub-enqueuedtime=2001-01-01T00%3A00%3A00Z&%24.cdid=victim&%24.cmid=m", 1, "hello")
	r := w.routed(1)[0]
	w.expectRouted(r, shows{
		queue: properties{"application iothub-connection-device-id": "d"},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-message-source": "Telemetry"},
	})
	w.expectAuthentication(r, "device")
	for where, all := range map[string]properties{"queue": r.inQueue(), "events": r.inEvents()} {
		for name, value := range all {
			if strings.Contains(name, "module") || slices.Contains([]string{"victim", "m", "none", "0", "twin"}, value) {
				t.Errorf("%s: %s is %q", where, name, value)
			}
		}
	}
}

// withWill leaves a will at QoS 1.
func withWill(topic, message string) func(*packets.ConnectPacket) {
	return func(p *packets.ConnectPacket) {
		p.WillFlag, p.WillQos, p.WillTopic, p.WillMessage = true, 1, topic, []byte(message)
	}
}

func mqttLeavesWill(t *testing.T, w *world) {
	c, _ := w.mqttPackets(w.newDevice("d"), withWill("devices/d/messages/events/", "gone"))
	c.lose()
	w.expectRouted(w.routed(1)[0], shows{
		both:  properties{"body": "gone", "application iothub-MessageType": "Will"},
		event: properties{"system iothub-connection-device-id": "d"},
	})
}

func mqttLeavesWillToSuccessor(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, withWill("devices/d/messages/events/", "replaced"))
	w.mqtt(d, nil)
	c.ended()
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "replaced", "application iothub-MessageType": "Will"}})
}

func mqttTakesWillAlong(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, withWill("devices/d/messages/events/", "gone"))
	c.disconnect()
	// What the will would come before.
	w.mqtt(d, nil).publish("devices/d/messages/events/", 1, "back")
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "back"}})
}

func mqttWillHasProperties(t *testing.T, w *world) {
	c, _ := w.mqttPackets(w.newDevice("d"), withWill("devices/d/messages/events/%24.mid=w1&%24.ct=text%2Fplain&reason=power", "gone"))
	c.lose()
	w.expectRouted(w.routed(1)[0], shows{both: properties{
		"message-id": "w1", "content-type": "text/plain", "application reason": "power", "application iothub-MessageType": "Will",
	}})
}

func mqttFindsSession(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, present := w.mqttPackets(d, nil)
	w.check("session present at first", present, false)
	c.disconnect()
	_, present = w.mqttPackets(d, nil)
	w.check("session present later", present, true)
}

func mqttForgetsSession(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	c.disconnect()
	c, present := w.mqttPackets(d, cleanSession)
	w.check("session present in a clean session", present, false)
	c.disconnect()
	c, present = w.mqttPackets(d, nil)
	w.check("session present after a clean session", present, false)
	w.mqttSubscribesFirst(d, c)
}

// mqttSubscribesFirst shows that a device has no subscription, and that it gets
// its messages with one.
func (w *world) mqttSubscribesFirst(d device, c *wire) {
	w.t.Helper()
	if err := w.sendC2D(w.amqpService("service"), d, "m", "hello", ""); err != nil {
		w.t.Fatal(err)
	}
	c.ping()
	w.check("granted QoS", c.subscribe("devices/d/messages/devicebound/#", 1), 1)
	w.check("payload", string(expect[*packets.PublishPacket](c).Payload), "hello")
}

func mqttWaitsForSubscription(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, cleanSession)
	w.mqttSubscribesFirst(d, c)
}

func mqttKeepsSubscription(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	c.disconnect()
	if err := w.sendC2D(w.amqpService("service"), d, "m", "meanwhile", ""); err != nil {
		t.Fatal(err)
	}
	c, _ = w.mqttPackets(d, nil)
	w.check("payload", string(expect[*packets.PublishPacket](c).Payload), "meanwhile")
}

func mqttKeepsUnsubscribed(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	c.unsubscribe("devices/d/messages/devicebound/#")
	c.disconnect()
	c, present := w.mqttPackets(d, nil)
	w.check("session present", present, true)
	w.mqttSubscribesFirst(d, c)
}

func mqttKeepsMethods(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("$iothub/methods/POST/#", 0)
	c.disconnect()
	device := w.mqtt(d, nil)
	calls := device.answerMethods("{}")
	w.check("status", w.mqttInvoke(d, "{}").status, http.StatusOK)
	next(w, "call", calls)
}

// mqttReceives compares everything that a topic carries.
func mqttReceives(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	m := w.c2d(d, "m-1", "hello")
	expiry := time.Date(2098, 7, 6, 5, 4, 3, 0, time.UTC)
	p := m.Properties
	p.CorrelationID, p.UserID, p.AbsoluteExpiryTime = "c-1", []byte("ada"), &expiry
	p.ContentType, p.ContentEncoding = new("application/json"), new("utf-8")
	m.ApplicationProperties = map[string]any{"iothub-ack": "full", "color": "red & blue"}
	if err := w.sender(w.amqpService("service"), "/messages/devicebound", nil).Send(w.ctx(), m, nil); err != nil {
		t.Fatal(err)
	}
	got := expect[*packets.PublishPacket](c)
	w.check("payload", string(got.Payload), "hello")
	w.check("QoS", got.Qos, 1)
	bag := w.bagOf(got.TopicName, "devices/d/messages/devicebound/")
	if until, err := time.Parse(time.RFC3339, bag["$.exp"]); err != nil || !until.Equal(expiry) {
		t.Errorf("expiry %q", bag["$.exp"])
	}
	delete(bag, "$.exp")
	w.check("to", strings.ToLower(bag["$.to"]), "/devices/d/messages/devicebound")
	delete(bag, "$.to")
	w.check("properties", bag, map[string]string{
		"$.mid": "m-1", "$.cid": "c-1", "$.uid": "ada", "$.ct": "application/json", "$.ce": "utf-8",
		"iothub-ack": "full", "color": "red & blue",
	})
}

func mqttReceivesNull(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	m := w.c2d(d, "m", "hello")
	m.ApplicationProperties = map[string]any{"prop1": nil, "prop2": "", "prop3": "a string"}
	if err := w.sender(w.amqpService("service"), "/messages/devicebound", nil).Send(w.ctx(), m, nil); err != nil {
		t.Fatal(err)
	}
	bag := w.bagOf(expect[*packets.PublishPacket](c).TopicName, "devices/d/messages/devicebound/")
	for name, want := range map[string]string{"prop1": "null", "prop2": "", "prop3": "a string"} {
		w.check(name, bag[name], want)
	}
}

func mqttCompletes(t *testing.T, w *world) {
	d := w.newDevice("d")
	service := w.amqpService("service")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	if err := w.sendC2D(service, d, "m", "hello", "full"); err != nil {
		t.Fatal(err)
	}
	p := expect[*packets.PublishPacket](c)
	w.check("waiting before the PUBACK", w.registered(d)["cloudToDeviceMessageCount"], 1)
	c.puback(p)
	w.check("feedback", w.feedback(service, 1)[0].StatusCode, "Success")
	w.check("waiting after the PUBACK", w.registered(d)["cloudToDeviceMessageCount"], 0)
}

func mqttRedelivers(t *testing.T, w *world) {
	d := w.newDevice("d")
	service := w.amqpService("service")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	for _, id := range []string{"m1", "m2", "m3"} {
		if err := w.sendC2D(service, d, id, id, "full"); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"m1", "m2", "m3"} {
		p := expect[*packets.PublishPacket](c)
		w.check("payload", string(p.Payload), id)
		if id == "m1" {
			c.puback(p)
		}
	}
	w.check("feedback", w.feedback(service, 1)[0].OriginalMessageID, "m1")
	c.lose()
	c, _ = w.mqttPackets(d, nil)
	for _, id := range []string{"m2", "m3"} {
		p := expect[*packets.PublishPacket](c)
		w.check("payload again", string(p.Payload), id)
		c.puback(p)
	}
	for i, r := range w.feedback(service, 2) {
		w.check("feedback", r.OriginalMessageID+" "+r.StatusCode, []string{"m2 Success", "m3 Success"}[i])
	}
}

func mqttCompletesAtQoS0(t *testing.T, w *world) {
	d := w.newDevice("d")
	service := w.amqpService("service")
	c, _ := w.mqttPackets(d, nil)
	w.check("granted QoS", c.subscribe("devices/d/messages/devicebound/#", 0), 0)
	if err := w.sendC2D(service, d, "m", "hello", "full"); err != nil {
		t.Fatal(err)
	}
	w.check("QoS", expect[*packets.PublishPacket](c).Qos, 0)
	w.check("feedback", w.feedback(service, 1)[0].StatusCode, "Success")
}

func mqttGrantsQoS1(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	w.check("granted QoS", c.subscribe("devices/d/messages/devicebound/#", 2), 1)
	if err := w.sendC2D(w.amqpService("service"), d, "m", "hello", ""); err != nil {
		t.Fatal(err)
	}
	w.check("QoS", expect[*packets.PublishPacket](c).Qos, 1)
}

func mqttRefusesQoS2(t *testing.T, w *world) {
	c, _ := w.mqttPackets(w.newDevice("d"), nil)
	c.send(publication("devices/d/messages/events/", 2, 1, "hello"))
	c.ended()
}

func mqttPassesRetainedOn(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	if err := w.wait(c.Publish("devices/d/messages/events/color=red", 1, true, "hello")); err != nil {
		t.Fatal(err)
	}
	w.expectRouted(w.routed(1)[0], shows{both: properties{"application mqtt-retain": "true", "application color": "red"}})
}

// answerMethods answers calls with status 200 and a payload, and tells of them.
func (c *mqttClient) answerMethods(payload string) <-chan paho.Message {
	calls := make(chan paho.Message, 10)
	c.AddRoute("$iothub/methods/POST/#", func(client paho.Client, m paho.Message) {
		_, rid, _ := strings.Cut(m.Topic(), "$rid=")
		client.Publish("$iothub/methods/res/200/?$rid="+rid, 0, false, payload)
		calls <- m
	})
	return calls
}

// mqttInvoke calls the method reboot.
func (w *world) mqttInvoke(d device, payload string) answer {
	w.t.Helper()
	return w.rest(http.MethodPost, "/twins/"+d.id+"/methods", map[string]any{
		"methodName": "reboot", "payload": json.RawMessage(payload), "connectTimeoutInSeconds": 30, "responseTimeoutInSeconds": 30,
	})
}

func mqttAnswersMethod(t *testing.T, w *world) {
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	calls := c.answerMethods(`{"done":true}`)
	c.subscribe("$iothub/methods/POST/#", 0)
	got := w.must(w.mqttInvoke(d, `{"delay":5}`), http.StatusOK).object(t)
	w.check("answer", got, map[string]any{"status": 200, "payload": map[string]any{"done": true}})
	call := next(w, "call", calls)
	if !regexp.MustCompile(`^\$iothub/methods/POST/reboot/\?\$rid=[^&]+$`).MatchString(call.Topic()) {
		t.Errorf("topic %q", call.Topic())
	}
	w.check("payload", string(call.Payload()), `{"delay":5}`)
}

func mqttAnswersMethodEmpty(t *testing.T, w *world) {
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	c.answerMethods("")
	c.subscribe("$iothub/methods/POST/#", 0)
	got := w.must(w.mqttInvoke(d, `{}`), http.StatusOK).object(t)
	w.check("answer", got, map[string]any{"status": 200, "payload": nil})
}

func mqttIgnoresAnswer(t *testing.T, w *world) {
	c, _ := w.mqttPackets(w.newDevice("d"), nil)
	c.send(publication("$iothub/methods/res/200/?$rid=1", 0, 0, "{}"))
	c.ping()
}

func mqttReadsTwin(t *testing.T, w *world) {
	d := w.newDevice("d")
	w.must(w.rest(http.MethodPatch, "/twins/d", map[string]any{
		"tags": map[string]any{"site": "north"}, "properties": map[string]any{"desired": map[string]any{"every": "5m"}},
	}), http.StatusOK)
	c := w.mqtt(d, nil)
	c.subscribe("$iothub/twin/res/#", 0)
	c.publish("$iothub/twin/GET/?$rid=0af", 0, "")
	m := c.receive("$iothub/twin/")
	w.check("topic", m.Topic(), "$iothub/twin/res/200/?$rid=0af")
	w.check("twin", w.decoded(m), map[string]any{
		"desired": map[string]any{"every": "5m", "$version": 2}, "reported": map[string]any{"$version": 1},
	})
}

// decoded is the payload of a message as an object.
func (w *world) decoded(m paho.Message) map[string]any {
	w.t.Helper()
	return answer{body: m.Payload()}.object(w.t)
}

func mqttUpdatesTwin(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	c.subscribe("$iothub/twin/res/#", 0)
	for i, patch := range []string{`{"battery":60,"firmware":{"version":"1","beta":true}}`, `{"battery":null,"firmware":{"beta":null}}`} {
		c.publish("$iothub/twin/PATCH/properties/reported/?$rid=r", 0, patch)
		m := c.receive("$iothub/twin/")
		w.check("topic", m.Topic(), fmt.Sprintf("$iothub/twin/res/204/?$rid=r&$version=%d", i+2))
		w.check("payload", len(m.Payload()), 0)
	}
	c.publish("$iothub/twin/GET/?$rid=g", 0, "")
	w.check("reported", w.decoded(c.receive("$iothub/twin/"))["reported"], map[string]any{
		"$version": 3, "firmware": map[string]any{"version": "1"},
	})
}

func mqttRefusesBadTwin(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	c.subscribe("$iothub/twin/res/#", 0)
	c.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", 0, `{"battery":`)
	w.check("topic", c.receive("$iothub/twin/").Topic(), "$iothub/twin/res/400/?$rid=1")
	c.publish("$iothub/twin/GET/?$rid=2", 0, "")
	w.check("the connection", c.receive("$iothub/twin/").Topic(), "$iothub/twin/res/200/?$rid=2")
}

func mqttHearsOfDesired(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	c.subscribe("$iothub/twin/PATCH/properties/desired/#", 0)
	w.must(w.rest(http.MethodPatch, "/twins/d", map[string]any{
		"properties": map[string]any{"desired": map[string]any{"every": "5m", "route": nil}},
	}), http.StatusOK)
	m := c.receive("$iothub/twin/")
	w.check("topic", m.Topic(), "$iothub/twin/PATCH/properties/desired/?$version=2")
	w.check("patch", w.decoded(m), map[string]any{"every": "5m", "route": nil, "$version": 2})
}

func mqttRefusesTopics(t *testing.T, w *world) {
	w.newDevice("other")
	d := w.newDevice("d")
	for _, topic := range []string{
		"any/topic", "devices/other/messages/events/", "devices/d/messages/devicebound/", "devices/d/messages/eventsx/",
		"devices/d/modules/m/messages/events/", "$iothub/twin/other", "$iothub/methods/POST/reboot/?$rid=1", "$SYS/broker",
	} {
		c, _ := w.mqttPackets(d, nil)
		c.send(publication(topic, 1, 1, "hello"))
		c.ended()
	}
}

// mqttRefusesFilters subscribes as device d, or as its module m for filters of
// modules, to filters that the hub doesn't know.
func mqttRefusesFilters(filters ...string) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		d := w.newDevice("d")
		m := w.newModule(d, "m")
		for _, filter := range filters {
			var change func(*packets.ConnectPacket)
			if strings.Contains(filter, "/modules/") {
				change = w.asModule(m)
			}
			c, _ := w.mqttPackets(d, change)
			w.check(filter, c.subscribe(filter, 1), 0x80)
			c.ping()
		}
	}
}

// asModule turns the CONNECT of a device into that of one of its modules.
func (w *world) asModule(m identity) func(*packets.ConnectPacket) {
	w.t.Helper()
	token := w.identityToken(m)
	return func(p *packets.ConnectPacket) {
		p.ClientIdentifier = m.deviceID + "/" + m.moduleID
		p.Username = w.emulator().HubName() + "/" + p.ClientIdentifier + "/?api-version=" + apiVersion
		p.Password = []byte(token)
	}
}

func mqttModuleSends(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, w.asModule(w.newModule(d, "m")))
	c.send(publication("devices/d/modules/m/messages/events/color=red", 1, 1, "hello"))
	expect[*packets.PubackPacket](c)
	r := w.routed(1)[0]
	w.expectRouted(r, shows{
		both:  properties{"application color": "red"},
		queue: properties{"application iothub-connection-device-id": "d", "application iothub-connection-module-id": "m"},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-connection-module-id": "m"},
	})
	w.expectAuthentication(r, "module")
}

func mqttModuleBesideDevice(t *testing.T, w *world) {
	d := w.newDevice("d")
	module, _ := w.mqttPackets(d, w.asModule(w.newModule(d, "m")))
	device, _ := w.mqttPackets(d, nil)
	module.ping()
	device.ping()
}

func mqttModuleTwin(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, w.asModule(w.newModule(d, "m")))
	w.check("granted QoS", c.subscribe("$iothub/twin/res/#", 0), 0)
	c.send(publication("$iothub/twin/PATCH/properties/reported/?$rid=1", 0, 0, `{"of":"module"}`))
	w.check("topic", expect[*packets.PublishPacket](c).TopicName, "$iothub/twin/res/204/?$rid=1&$version=2")
	for path, want := range map[string]any{"/twins/d/modules/m": "module", "/twins/d": nil} {
		var twin struct {
			Properties struct{ Reported map[string]any }
		}
		w.must(w.rest(http.MethodGet, path, nil), http.StatusOK).decode(t, &twin)
		w.check(path, twin.Properties.Reported["of"], want)
	}
}

func mqttModuleWill(t *testing.T, w *world) {
	d := w.newDevice("d")
	asModule := w.asModule(w.newModule(d, "m"))
	c, _ := w.mqttPackets(d, func(p *packets.ConnectPacket) {
		asModule(p)
		withWill("devices/d/modules/m/messages/events/", "gone")(p)
	})
	c.lose()
	w.expectRouted(w.routed(1)[0], shows{
		both:  properties{"body": "gone", "application iothub-MessageType": "Will"},
		event: properties{"system iothub-connection-module-id": "m"},
	})
}

func mqttModuleGetsNoC2D(t *testing.T, w *world) {
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, w.asModule(w.newModule(d, "m")))
	for _, filter := range []string{"devices/d/messages/devicebound/#", "devices/d/modules/m/messages/devicebound/#"} {
		w.check(filter, c.subscribe(filter, 1), 0x80)
	}
}
