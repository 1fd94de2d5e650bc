package conformance_test

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	httpSend     = `IoT Hub docs: "Device - Send Device Event"`
	httpReceive  = `IoT Hub docs: "Device - Receive Device Bound Notification"`
	httpComplete = `IoT Hub docs: "Device - Complete Device Bound Notification"`
	httpAbandon  = `IoT Hub docs: "Device - Abandon Device Bound Notification"`
	httpNode     = "azure-iot-sdk-node, device/transport/http/src/http.ts"
	httpCSharp   = "azure-iot-sdk-csharp, iothub/device/src/Transport/HttpTransportHandler.cs"
	httpLimits   = `IoT Hub docs: "IoT Hub quotas and throttling"`
	httpErrors   = `IoT Hub docs: "Troubleshoot Azure IoT Hub error codes"`
)

var httpDevices = area{
	name:     "Devices over HTTPS",
	emulated: slices.Concat(httpTelemetry, httpBatches, httpDeviceBound),
	refused: []behaviour{
		{"File upload", "is said to be not emulated", `IoT Hub docs: "Upload files with IoT Hub"`, httpRefusesFiles},
		{"Twins and direct methods", "a device has no right to them", `IoT Hub docs: "Choose a device communication protocol"`, httpRefusesTwins},
	},
}

var httpTelemetry = []behaviour{
	{"Telemetry", "is stored when it is answered with 204", httpSend, httpStores},
	{"Telemetry", "has system properties in headers", httpNode, httpCarriesSystemProperties},
	{"Telemetry", "has application properties in headers", httpSend, httpCarriesProperties},
	{"Telemetry", "has its creation time in a header", mqttMessages, httpCarriesCreationTime},
	{"Telemetry", "is stamped with device, generation and authentication", mqttMessages, httpStamps},
	{"Telemetry", "stamps can't be forged", mqttMessages, httpResistsForgery},
	{"Telemetry", "may have up to 256 KB", httpLimits, httpSendsLarge},
	{"Telemetry", "of more is refused with 413", httpErrors, httpRefusesTooLarge},
	{"Telemetry", "doesn't make a device connected", `IoT Hub docs: "Understand the identity registry in your IoT hub"`, httpStaysDisconnected},
	{"Telemetry", "of a module is stamped with it", httpCSharp, httpModuleSends},
}

var httpBatches = []behaviour{
	{"Batches of telemetry", "are several messages, each with properties", httpCSharp, httpSendsBatch},
	{"Batches of telemetry", "may hold text instead of base64", "azure-iot-sdk-c, iothub_client/src/iothubtransporthttp.c", httpSendsTextBatch},
	{"Batches of telemetry", "are stored as a whole or not at all", httpCSharp, httpRefusesBadBatch},
	{"Batches of telemetry", "of more than 256 KB are refused with 413", httpLimits, httpRefusesLargeBatch},
}

var httpDeviceBound = []behaviour{
	{"Receiving cloud-to-device messages", "nothing is answered with 204", httpReceive, httpReceivesNothing},
	{"Receiving cloud-to-device messages", "come with their properties in headers", httpNode, httpReceives},
	{"Receiving cloud-to-device messages", "are locked for others", httpReceive, httpLocks},
	{"Receiving cloud-to-device messages", "are the device's alone", httpReceive, httpReceivesOwn},
	{"Completing, rejecting and abandoning", "completed, it is gone", httpComplete, httpCompletes},
	{"Completing, rejecting and abandoning", "rejected, it is gone, and so is told", httpComplete, httpRejects},
	{"Completing, rejecting and abandoning", "abandoned, it comes again and counts", httpAbandon, httpAbandons},
	{"Completing, rejecting and abandoning", "without the lock, 412 says so", httpErrors, httpLosesLock},
	{"Lock timeout", "the device can choose it in a header", "azure-iot-sdk-java, HttpsIotHubConnection.java", httpChoosesLock("", "iothub-messagelocktimeout: 1")},
	{"Lock timeout", "the device can choose it in the query", httpCSharp, httpChoosesLock("?iothub-messagelocktimeout=1")},
}

// httpAs makes a request as a device with its own token.
func (w *world) httpAs(d device, method, path string, body any, headers ...string) answer {
	w.t.Helper()
	return w.restAs(w.deviceToken(d), method, path, body, headers...)
}

// httpPost sends telemetry as a device.
func (w *world) httpPost(d device, body string, headers ...string) {
	w.t.Helper()
	w.must(w.httpAs(d, http.MethodPost, d.path("/messages/events"), []byte(body), headers...), http.StatusNoContent)
}

func httpStores(t *testing.T, w *world) {
	w.httpPost(w.newDevice("d"), "hello")
	found, err := w.busReceiver("device-messages", nil).PeekMessages(w.ctx(), 10, nil)
	if err != nil || len(found) != 1 || string(found[0].Body) != "hello" {
		t.Errorf("after the answer the queue has %v, %v", found, err)
	}
}

func httpCarriesSystemProperties(_ *testing.T, w *world) {
	w.httpPost(w.newDevice("d"), "hello",
		"IoTHub-MessageId: m-1", "IoTHub-CorrelationId: c-1", "IoTHub-UserId: ada", "IoTHub-To: somewhere",
		"IoTHub-Expiry: 2098-07-06T05:04:03.000Z", "iothub-contenttype: application/json", "iothub-contentencoding: utf-8",
		"iothub-interface-id: urn:example:1")
	w.expectRouted(w.routed(1)[0], shows{
		both: properties{
			"message-id": "m-1", "correlation-id": "c-1", "user-id": "ada", "to": "somewhere", "expiry": "2098-07-06T05:04:03Z",
			"content-type": "application/json", "content-encoding": "utf-8",
		},
		queue: properties{"application iothub-interface-id": "urn:example:1"},
		event: properties{"system iothub-interface-id": "urn:example:1"},
	})
}

func httpCarriesProperties(_ *testing.T, w *world) {
	w.httpPost(w.newDevice("d"), "hello", "iothub-app-color: red & blue", "iothub-app-size: large")
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "hello", "application color": "red & blue", "application size": "large"}})
}

func httpCarriesCreationTime(_ *testing.T, w *world) {
	w.httpPost(w.newDevice("d"), "hello", "iothub-app-iothub-creation-time-utc: 2021-04-21T11:30:16Z")
	w.expectRouted(w.routed(1)[0], shows{both: properties{"application iothub-creation-time-utc": "2021-04-21T11:30:16Z"}})
}

func httpStamps(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.httpPost(d, "hello")
	r := w.routed(1)[0]
	generation, _ := w.registered(d)["generationId"].(string)
	w.expectRouted(r, shows{
		queue: properties{"application iothub-connection-device-id": "d", "application iothub-connection-auth-generation-id": generation},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-connection-auth-generation-id": generation},
	})
	w.expectAuthentication(r, "device")
}

func httpResistsForgery(t *testing.T, w *world) {
	w.httpPost(w.newDevice("d"), "hello",
		"iothub-connection-device-id: victim", "iothub-app-iothub-connection-device-id: victim",
		"iothub-app-iothub-connection-module-id: victim", "iothub-app-iothub-message-source: victim")
	r := w.routed(1)[0]
	w.expectRouted(r, shows{
		queue: properties{"application iothub-connection-device-id": "d"},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-message-source": "Telemetry"},
	})
	for _, all := range []properties{r.inQueue(), r.inEvents()} {
		for name, value := range all {
			if value == "victim" {
				t.Errorf("%s is forged", name)
			}
		}
	}
}

func httpSendsLarge(_ *testing.T, w *world) {
	body := strings.Repeat("x", 256<<10-100)
	w.httpPost(w.newDevice("d"), body, "iothub-app-key: value")
	w.check("bytes", len(w.routed(1)[0].event.Body), len(body))
}

func httpRefusesTooLarge(_ *testing.T, w *world) {
	d := w.newDevice("d")
	body := []byte(strings.Repeat("x", 256<<10+1))
	w.refuses(w.httpAs(d, http.MethodPost, d.path("/messages/events"), body), http.StatusRequestEntityTooLarge, "MessageTooLarge")
}

func httpStaysDisconnected(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.httpPost(d, "hello")
	w.check("connection state", w.registered(d)["connectionState"], "Disconnected")
}

func httpModuleSends(_ *testing.T, w *world) {
	m := w.newIdentity("d/m")
	w.must(w.restAs(w.identityToken(m), http.MethodPost, m.path("/messages/events"), []byte("hello")), http.StatusNoContent)
	r := w.routed(1)[0]
	w.expectRouted(r, shows{
		queue: properties{"application iothub-connection-device-id": "d", "application iothub-connection-module-id": "m"},
		event: properties{"system iothub-connection-device-id": "d", "system iothub-connection-module-id": "m"},
	})
	w.expectAuthentication(r, "module")
}

// batchHeader marks several messages in one request.
const batchHeader = "Content-Type: application/vnd.microsoft.iothub.json"

// httpBatched is a message of a batch.
func httpBatched(body string, named map[string]string) map[string]any {
	return map[string]any{"body": base64.StdEncoding.EncodeToString([]byte(body)), "properties": named}
}

func httpSendsBatch(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.must(w.httpAs(d, http.MethodPost, d.path("/messages/events"), []any{
		httpBatched("one", map[string]string{"iothub-messageid": "m1", "iothub-app-Color": "red"}),
		httpBatched("two", map[string]string{"iothub-messageid": "m2", "iothub-contenttype": "text/plain"}),
	}, batchHeader), http.StatusNoContent)
	all := w.routed(2)
	w.expectRouted(all[0], shows{both: properties{"body": "one", "message-id": "m1", "application Color": "red"}})
	w.expectRouted(all[1], shows{both: properties{"body": "two", "message-id": "m2", "content-type": "text/plain"}})
}

func httpSendsTextBatch(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.must(w.httpAs(d, http.MethodPost, d.path("/messages/events"), []any{
		map[string]any{"body": "plain text", "base64Encoded": false},
	}, batchHeader), http.StatusNoContent)
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "plain text"}})
}

// httpOnly shows that the hub has taken one message, and none before.
func (w *world) httpOnly(d device, body string) {
	w.t.Helper()
	w.httpPost(d, body)
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": body}})
}

func httpRefusesBadBatch(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.must(w.httpAs(d, http.MethodPost, d.path("/messages/events"), []any{
		httpBatched("one", nil), map[string]any{"body": "?not base64?"},
	}, batchHeader), http.StatusBadRequest)
	w.httpOnly(d, "after")
}

func httpRefusesLargeBatch(_ *testing.T, w *world) {
	d := w.newDevice("d")
	large := strings.Repeat("x", 100<<10)
	w.refuses(w.httpAs(d, http.MethodPost, d.path("/messages/events"), []any{
		httpBatched(large, nil), httpBatched(large, nil), httpBatched(large, nil),
	}, batchHeader), http.StatusRequestEntityTooLarge, "MessageTooLarge")
	w.httpOnly(d, "after")
}

// httpNext asks for the device's next message.
func (w *world) httpNext(d device, query string, headers ...string) answer {
	w.t.Helper()
	return w.httpAs(d, http.MethodGet, d.path("/messages/devicebound"+query), nil, headers...)
}

// httpLocked is httpNext when there is one. The lock is in the header ETag.
func (w *world) httpLocked(d device, query string, headers ...string) (a answer, lock string) {
	w.t.Helper()
	a = w.must(w.httpNext(d, query, headers...), http.StatusOK)
	lock = strings.Trim(a.header.Get("ETag"), `"`)
	if lock == "" {
		w.t.Fatal("the answer has no ETag")
	}
	return a, lock
}

// httpSettle ends a lock: end is empty to complete, or ?reject or /abandon.
func (w *world) httpSettle(d device, lock, end string) answer {
	w.t.Helper()
	method := http.MethodDelete
	if end == "/abandon" {
		method = http.MethodPost
	}
	return w.httpAs(d, method, d.path("/messages/devicebound/"+lock+end), nil, `If-Match: "`+lock+`"`)
}

func httpReceivesNothing(_ *testing.T, w *world) {
	a := w.must(w.httpNext(w.newDevice("d"), ""), http.StatusNoContent)
	w.check("body", len(a.body), 0)
}

func httpReceives(t *testing.T, w *world) {
	d := w.newDevice("d")
	m := w.c2d(d, "m-1", "hello")
	expiry := time.Date(2098, 7, 6, 5, 4, 3, 0, time.UTC)
	p := m.Properties
	p.CorrelationID, p.UserID, p.AbsoluteExpiryTime = "c-1", []byte("ada"), &expiry
	p.ContentType, p.ContentEncoding = new("application/json"), new("utf-8")
	m.ApplicationProperties = map[string]any{"iothub-ack": "full", "color": "red & blue"}
	if err := w.sender(w.amqpService("service"), "/messages/devicebound", nil).Send(w.ctx(), m, nil); err != nil {
		t.Fatal(err)
	}
	a, _ := w.httpLocked(d, "")
	w.check("body", string(a.body), "hello")
	for name, want := range map[string]string{
		"messageid": "m-1", "correlationid": "c-1", "userid": "ada", "contenttype": "application/json", "contentencoding": "utf-8",
		"ack": "full", "app-color": "red & blue", "deliverycount": "0", "sequencenumber": "1",
	} {
		w.check(name, a.header.Get("iothub-"+name), want)
	}
	w.check("to", strings.ToLower(a.header.Get("iothub-to")), "/devices/d/messages/devicebound")
	for _, name := range []string{"expiry", "enqueuedtime"} {
		at, err := time.Parse(time.RFC3339, a.header.Get("iothub-"+name))
		if err != nil || name == "expiry" && !at.Equal(expiry) {
			t.Errorf("%s is %q", name, a.header.Get("iothub-"+name))
		}
	}
}

// httpSendsC2D sends messages to a device, with their IDs as bodies.
func (w *world) httpSendsC2D(d device, ids ...string) {
	w.t.Helper()
	service := w.amqpService("service")
	for _, id := range ids {
		if err := w.sendC2D(service, d, id, id, "full"); err != nil {
			w.t.Fatal(err)
		}
	}
}

func httpLocks(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.httpSendsC2D(d, "one", "two")
	for _, want := range []string{"one", "two"} {
		a, _ := w.httpLocked(d, "")
		w.check("message", string(a.body), want)
	}
	w.must(w.httpNext(d, ""), http.StatusNoContent)
}

func httpReceivesOwn(_ *testing.T, w *world) {
	d, other := w.newDevice("d"), w.newDevice("other")
	w.httpSendsC2D(d, "private")
	w.must(w.httpNext(other, ""), http.StatusNoContent)
	w.must(w.restAs(w.deviceToken(other), http.MethodGet, d.path("/messages/devicebound"), nil), http.StatusUnauthorized)
}

func httpCompletes(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.httpSendsC2D(d, "m")
	_, lock := w.httpLocked(d, "")
	w.must(w.httpSettle(d, lock, ""), http.StatusNoContent)
	w.must(w.httpNext(d, ""), http.StatusNoContent)
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 0)
	w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].StatusCode, "Success")
}

func httpRejects(_ *testing.T, w *world) {
	for i, end := range []string{"?reject", "?reject=true"} {
		d := w.newDevice([]string{"a", "b"}[i])
		w.httpSendsC2D(d, "m")
		_, lock := w.httpLocked(d, "")
		w.must(w.httpSettle(d, lock, end), http.StatusNoContent)
		w.must(w.httpNext(d, ""), http.StatusNoContent)
		w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].StatusCode, "Rejected")
	}
}

func httpAbandons(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.httpSendsC2D(d, "one", "two")
	for i, count := range []string{"0", "1", "2"} {
		a, lock := w.httpLocked(d, "")
		w.check("message", string(a.body), "one")
		w.check("delivery count", a.header.Get("iothub-deliverycount"), count)
		if i < 2 {
			w.must(w.httpSettle(d, lock, "/abandon"), http.StatusNoContent)
		}
	}
}

func httpLosesLock(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.httpSendsC2D(d, "m")
	_, lock := w.httpLocked(d, "")
	w.must(w.httpSettle(d, lock, "/abandon"), http.StatusNoContent)
	for _, end := range []string{"", "?reject", "/abandon"} {
		w.refuses(w.httpSettle(d, lock, end), http.StatusPreconditionFailed, "DeviceMessageLockLost")
	}
	_, lock = w.httpLocked(d, "")
	w.must(w.httpSettle(d, lock, ""), http.StatusNoContent)
}

// httpChoosesLock receives twice, the second time after the lock of the first has
// run out. The hub's own lasts a minute, which is longer than a case may wait.
func httpChoosesLock(query string, headers ...string) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		d := w.newDevice("d")
		w.httpSendsC2D(d, "m")
		_, lock := w.httpLocked(d, query, headers...)
		w.must(w.httpNext(d, ""), http.StatusNoContent)
		var again answer
		w.eventually("the message comes again", func() bool {
			again = w.httpNext(d, "")
			return again.status == http.StatusOK
		})
		w.check("delivery count", again.header.Get("iothub-deliverycount"), "0")
		w.refuses(w.httpSettle(d, lock, ""), http.StatusPreconditionFailed, "DeviceMessageLockLost")
	}
}

func httpRefusesFiles(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.refuses(w.httpAs(d, http.MethodPost, d.path("/files"), map[string]any{"blobName": "log.txt"}), http.StatusNotImplemented, "NotImplemented")
	w.refuses(w.httpAs(d, http.MethodPost, d.path("/files/notifications"), map[string]any{"correlationId": "1"}), http.StatusNotImplemented, "NotImplemented")
}

func httpRefusesTwins(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.must(w.httpAs(d, http.MethodGet, "/twins/d", nil), http.StatusUnauthorized)
	w.must(w.httpAs(d, http.MethodPatch, "/twins/d", map[string]any{"properties": map[string]any{}}), http.StatusUnauthorized)
	w.must(w.httpAs(d, http.MethodPost, "/twins/d/methods", map[string]any{"methodName": "reboot"}), http.StatusUnauthorized)
}
