package conformance_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/Azure/go-amqp"
	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/job"
)

// Where direct methods are documented.
const (
	methodsPage   = "IoT Hub docs: Understand and invoke direct methods from IoT Hub"
	methodsREST   = "IoT Hub REST API: Devices - Invoke Method"
	methodsErrors = "IoT Hub REST API: IoT Hub API common error codes"
)

var methods = area{
	name: "Direct methods",
	emulated: slices.Concat(
		methodsOn("Calls", "the device's status and payload come back", methodsPage, methodsAnswer),
		methodsOn("Calls", "any JSON goes both ways", methodsPage, methodsPayloads),
		methodsOn("Calls", "a call without payload is null to the device", methodsPage, methodsNoPayload),
		methodsOn("Calls", "an answer needs no payload", methodsPage, methodsNoAnswer),
		methodsOn("Calls", "a failure of the device is no failure of the call", methodsPage, methodsFailure),
		methodsOn("Calls", "answers come in any order", methodsPage, methodsConcurrent),
		[]behaviour{
			{"Calls", "an answer to an unknown call is ignored", methodsPage, methodsUnasked},
			{"Calls", "the service client calls a method", methodsREST, methodsClient},

			{"Limits of calls", "a payload has up to 128 KB each way", methodsPage, methodsLargest},
			{"Limits of calls", "a larger payload is refused", methodsPage, methodsTooLarge},
			{"Limits of calls", "the response timeout is 5 to 300 seconds", methodsPage, methodsResponseTimeouts},
			{"Limits of calls", "the connect timeout is up to 300 seconds", methodsPage, methodsConnectTimeouts},
			{"Limits of calls", "a method has a name", methodsREST, methodsNoName},

			{"Absent devices", "an unknown device is 404001", methodsErrors, methodsUnknown},
			{"Absent devices", "a device that is not connected is 404103", methodsErrors, methodsOffline},
			{"Absent devices", "a device that doesn't listen for methods is 404103", methodsErrors, methodsDeaf},
			{"Absent devices", "a connect timeout waits for the device", methodsREST, methodsConnectLater},
			{"Absent devices", "a device that stops listening is absent", methodsPage, methodsUnsubscribe},
			{"Absent devices", "an AMQP device that closes its links is absent", methodsPage, methodsDetach},
			{"Absent devices", "errors carry number, tracking ID and message", "Azure/azure-iot-sdk-csharp, ExceptionHandlingHelper.cs", methodsError},

			{"Lost answers", "a device that disconnects is 404104", methodsErrors, methodsDisconnect},
			{"Lost answers", "a device that doesn't answer is 504101", "azure-iot-sdk-csharp, ErrorCode.cs", methodsTimeout},
		},
	),
	refused: []behaviour{
		{"Subscription to a single method", "the filter is refused", methodsPage, methodsSingle},
		{"Methods that one module calls on another", "the request is refused", "azure-iot-device-http, HttpClient.invokeMethod", methodsOfModules},
	},
}

// methodsRequest is a call as a device gets it.
type methodsRequest struct {
	name, payload string
	// answer sends the device's answer; without payload if that is empty.
	answer func(status int, payload string)
}

// methodsDevice is a device that takes calls.
type methodsDevice struct {
	identity
	take func() methodsRequest
}

// methodsOn makes a case for devices and modules over either protocol.
func methodsOn(feature, says, source string, holds func(*world, methodsDevice)) []behaviour {
	var cases []behaviour
	for _, v := range []struct {
		what, name string
		connect    func(*world, identity) methodsDevice
	}{
		{"device over MQTT", "d", methodsMQTT},
		{"module over MQTT", "d/camera", methodsMQTT},
		{"device over AMQP", "d", methodsAMQP},
		{"module over AMQP", "d/camera", methodsAMQP},
	} {
		cases = append(cases, behaviour{feature, says + ", " + v.what, source, func(_ *testing.T, w *world) {
			holds(w, v.connect(w, w.newIdentity(v.name)))
		}})
	}
	return cases
}

const (
	methodsTopic    = "$iothub/methods/POST/"
	methodsResponse = "$iothub/methods/res/%d/?$rid=%s"
)

// methodsMQTT connects over MQTT and listens for methods.
func methodsMQTT(w *world, i identity) methodsDevice {
	w.t.Helper()
	c := w.mqttAs(i)
	c.subscribe(methodsTopic+"#", 0)
	return methodsDevice{i, func() methodsRequest { return methodsTake(c) }}
}

// methodsTake is the next call that comes over MQTT.
func methodsTake(c *mqttClient) methodsRequest {
	c.w.t.Helper()
	m := c.receive(methodsTopic)
	name, rid, found := strings.Cut(strings.TrimPrefix(m.Topic(), methodsTopic), "/?$rid=")
	if !found {
		c.w.t.Fatalf("topic %s", m.Topic())
	}
	return methodsRequest{name, string(m.Payload()), func(status int, payload string) {
		c.publish(fmt.Sprintf(methodsResponse, status, rid), 0, payload)
	}}
}

// methodsAMQP connects over AMQP with links for methods.
func methodsAMQP(w *world, i identity) methodsDevice {
	w.t.Helper()
	sender, receiver := w.amqpPair(w.amqpAs(i), i.path("/methods/devicebound"))
	return methodsDevice{i, func() methodsRequest {
		m := w.receive(receiver)
		name, _ := m.ApplicationProperties["IoThub-methodname"].(string)
		return methodsRequest{name, string(m.GetData()), func(status int, payload string) {
			answer := amqp.NewMessage([]byte(payload))
			answer.Properties = &amqp.MessageProperties{CorrelationID: m.Properties.CorrelationID}
			answer.ApplicationProperties = map[string]any{"IoThub-status": int32(status)}
			if err := sender.Send(w.ctx(), answer, nil); err != nil {
				w.t.Error(err)
			}
		}}
	}}
}

// methodsCall calls a method, while the case plays the device.
func methodsCall(w *world, i identity, body map[string]any) <-chan answer {
	w.t.Helper()
	done := make(chan answer, 1)
	var wg sync.WaitGroup
	w.emulator() // is started by the case's own goroutine
	wg.Go(func() { done <- w.rest(http.MethodPost, i.twinPath("/methods"), body) })
	w.t.Cleanup(wg.Wait)
	return done
}

// methodsAnswered is the answer of a call that must succeed.
func methodsAnswered(w *world, call <-chan answer) map[string]any {
	w.t.Helper()
	return w.must(next(w, "answer to the call", call), http.StatusOK).object(w.t)
}

func methodsAnswer(w *world, d methodsDevice) {
	call := methodsCall(w, d.identity, map[string]any{
		"methodName": "reboot", "payload": map[string]any{"delay": 3}, "responseTimeoutInSeconds": 30,
	})
	request := d.take()
	w.check("name", request.name, "reboot")
	w.check("payload", request.payload, `{"delay":3}`)
	request.answer(202, `{"at":"noon"}`)
	w.check("answer", methodsAnswered(w, call), map[string]any{"status": 202, "payload": map[string]any{"at": "noon"}})
}

func methodsPayloads(w *world, d methodsDevice) {
	for _, text := range []string{`[1,"two",null]`, `"text"`, `12.5`, `true`, `{}`} {
		call := methodsCall(w, d.identity, map[string]any{"methodName": "echo", "payload": json.RawMessage(text)})
		request := d.take()
		w.check("payload", request.payload, text)
		request.answer(200, request.payload)
		back, err := json.Marshal(methodsAnswered(w, call)["payload"])
		if err != nil {
			w.t.Fatal(err)
		}
		w.check("payload of the answer", string(back), text)
	}
}

func methodsNoPayload(w *world, d methodsDevice) {
	for _, body := range []map[string]any{{"methodName": "ping"}, {"methodName": "ping", "payload": nil}} {
		call := methodsCall(w, d.identity, body)
		request := d.take()
		w.check("payload", request.payload, "null")
		request.answer(200, `{}`)
		methodsAnswered(w, call)
	}
}

func methodsNoAnswer(w *world, d methodsDevice) {
	call := methodsCall(w, d.identity, map[string]any{"methodName": "ping"})
	d.take().answer(204, "")
	w.check("answer", methodsAnswered(w, call), map[string]any{"status": 204, "payload": nil})
}

func methodsFailure(w *world, d methodsDevice) {
	for _, status := range []int{404, 500, -1} {
		call := methodsCall(w, d.identity, map[string]any{"methodName": "fail"})
		d.take().answer(status, `"broken"`)
		w.check("answer", methodsAnswered(w, call), map[string]any{"status": status, "payload": "broken"})
	}
}

func methodsConcurrent(w *world, d methodsDevice) {
	const n = 5
	calls := make(map[string]<-chan answer)
	for i := range n {
		name := fmt.Sprint("m", i)
		calls[name] = methodsCall(w, d.identity, map[string]any{"methodName": name})
	}
	var requests []methodsRequest
	for range n {
		requests = append(requests, d.take())
	}
	slices.SortFunc(requests, func(a, b methodsRequest) int { return strings.Compare(b.name, a.name) })
	for _, r := range requests {
		r.answer(200, fmt.Sprintf("%q", r.name))
	}
	for name, call := range calls {
		w.check("answer to "+name, methodsAnswered(w, call)["payload"], name)
	}
}

func methodsUnasked(_ *testing.T, w *world) {
	i := w.newIdentity("d")
	c := w.mqttAs(i)
	c.subscribe(methodsTopic+"#", 0)
	c.publish(fmt.Sprintf(methodsResponse, 200, "abc"), 0, `"to nobody"`)
	call := methodsCall(w, i, map[string]any{"methodName": "m"})
	request := methodsTake(c)
	request.answer(200, `"first"`)
	w.check("answer", methodsAnswered(w, call)["payload"], "first")
	request.answer(200, `"second"`) // the call has its answer
	c.publish(i.topic("/messages/events/"), 1, "still here")
}

func methodsClient(t *testing.T, w *world) {
	d := methodsMQTT(w, w.newIdentity("d"))
	client := w.service()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		got, err := client.InvokeMethod(w.ctx(), "d", iothub.Method{Name: "reboot", Payload: json.RawMessage(`1`)})
		if err != nil || got.Status != 201 || string(got.Payload) != `"done"` {
			t.Errorf("answer %+v, %v", got, err)
		}
	})
	request := d.take()
	w.check("name and payload", []string{request.name, request.payload}, []string{"reboot", "1"})
	request.answer(201, `"done"`)
}

// methodsText is JSON text of a length in bytes.
func methodsText(length int) json.RawMessage {
	return json.RawMessage(`"` + strings.Repeat("x", length-2) + `"`)
}

const methodsMost = 128 << 10

func methodsLargest(t *testing.T, w *world) {
	d := methodsMQTT(w, w.newIdentity("d"))
	largest := methodsText(methodsMost)
	call := methodsCall(w, d.identity, map[string]any{"methodName": "echo", "payload": largest})
	request := d.take()
	if !bytes.Equal([]byte(request.payload), largest) {
		t.Errorf("the device got %d bytes", len(request.payload))
	}
	request.answer(200, request.payload)
	if got, _ := methodsAnswered(w, call)["payload"].(string); len(got) != methodsMost-2 {
		t.Errorf("the caller got %d characters", len(got))
	}
}

func methodsTooLarge(t *testing.T, w *world) {
	d := methodsMQTT(w, w.newIdentity("d"))
	a := w.rest(http.MethodPost, d.twinPath("/methods"), map[string]any{"methodName": "m", "payload": methodsText(methodsMost + 1)})
	if a.status/100 != 4 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func methodsResponseTimeouts(_ *testing.T, w *world) {
	d := methodsMQTT(w, w.newIdentity("d"))
	for _, seconds := range []int{-1, 1, 4, 301} {
		body := map[string]any{"methodName": "m", "responseTimeoutInSeconds": seconds}
		w.must(w.rest(http.MethodPost, d.twinPath("/methods"), body), http.StatusBadRequest)
	}
	for _, seconds := range []int{5, 300} {
		call := methodsCall(w, d.identity, map[string]any{"methodName": "m", "responseTimeoutInSeconds": seconds})
		d.take().answer(200, "1")
		methodsAnswered(w, call)
	}
}

func methodsConnectTimeouts(_ *testing.T, w *world) {
	d := methodsMQTT(w, w.newIdentity("d"))
	for _, seconds := range []int{-1, 301} {
		body := map[string]any{"methodName": "m", "connectTimeoutInSeconds": seconds}
		w.must(w.rest(http.MethodPost, d.twinPath("/methods"), body), http.StatusBadRequest)
	}
	call := methodsCall(w, d.identity, map[string]any{"methodName": "m", "connectTimeoutInSeconds": 300})
	d.take().answer(200, "1")
	methodsAnswered(w, call)
}

func methodsNoName(_ *testing.T, w *world) {
	d := methodsMQTT(w, w.newIdentity("d"))
	w.must(w.rest(http.MethodPost, d.twinPath("/methods"), map[string]any{"payload": 1}), http.StatusBadRequest)
}

// methodsRefused calls a method of an identity in vain.
func methodsRefused(w *world, i identity, code string) {
	w.t.Helper()
	a := w.rest(http.MethodPost, i.twinPath("/methods"), map[string]any{"methodName": "m"})
	methodsRefusal(w, a, http.StatusNotFound, code)
}

// methodsRefusal checks an answer whose body has the number of the error instead
// of its name.
func methodsRefusal(w *world, a answer, status int, code string) {
	w.t.Helper()
	if a.status != status || a.code() != code {
		w.t.Errorf("status %d %s, want %d %s: %s", a.status, a.code(), status, code, a.body)
	}
}

func methodsUnknown(t *testing.T, w *world) {
	w.newDevice("d")
	methodsRefused(w, identity{deviceID: "nobody"}, "DeviceNotFound")
	methodsRefused(w, identity{deviceID: "d", moduleID: "nothing"}, "ModuleNotFound")
	if _, err := w.service().InvokeMethod(w.ctx(), "nobody", iothub.Method{Name: "m"}); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("client: %v", err)
	}
}

func methodsOffline(t *testing.T, w *world) {
	methodsRefused(w, w.newIdentity("d/camera"), "DeviceNotOnline")
	methodsRefused(w, identity{deviceID: "d"}, "DeviceNotOnline")
	if _, err := w.service().InvokeMethod(w.ctx(), "d", iothub.Method{Name: "m"}); !errors.Is(err, job.ErrUnavailable) {
		t.Errorf("client: %v", err)
	}
}

func methodsDeaf(_ *testing.T, w *world) {
	i := w.newIdentity("d")
	c := w.mqttAs(i)
	methodsRefused(w, i, "DeviceNotOnline")
	c.subscribe("devices/d/messages/devicebound/#", 1)
	methodsRefused(w, i, "DeviceNotOnline")
}

// methodsConnectLater has the device connect when the call has most likely come:
// another one that was made after it has been answered.
func methodsConnectLater(_ *testing.T, w *world) {
	i := w.newIdentity("d")
	call := methodsCall(w, i, map[string]any{"methodName": "wake", "connectTimeoutInSeconds": 60})
	methodsRefused(w, i, "DeviceNotOnline")
	request := methodsMQTT(w, i).take()
	w.check("name", request.name, "wake")
	request.answer(200, "1")
	methodsAnswered(w, call)
}

func methodsUnsubscribe(t *testing.T, w *world) {
	i := w.newIdentity("d")
	c := w.mqttAs(i)
	c.subscribe(methodsTopic+"#", 0)
	if err := w.wait(c.Unsubscribe(methodsTopic + "#")); err != nil {
		t.Fatal(err)
	}
	methodsRefused(w, i, "DeviceNotOnline")
}

func methodsDetach(t *testing.T, w *world) {
	i := w.newIdentity("d")
	_, receiver := w.amqpPair(w.amqpAs(i), i.path("/methods/devicebound"))
	if err := receiver.Close(w.ctx()); err != nil {
		t.Fatal(err)
	}
	methodsRefused(w, i, "DeviceNotOnline")
}

// methodsError reads the body of an error of a method as the C# SDK does: an
// object as text in the field Message.
func methodsError(t *testing.T, w *world) {
	a := w.must(w.rest(http.MethodPost, w.newIdentity("d").twinPath("/methods"), map[string]any{"methodName": "m"}), http.StatusNotFound)
	outer, _ := a.object(t)["Message"].(string)
	var inner struct {
		ErrorCode           int
		TrackingID, Message string
		TimestampUTC        string
	}
	if err := json.Unmarshal([]byte(outer), &inner); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	w.check("number", inner.ErrorCode, 404103)
	if inner.TrackingID == "" || inner.Message == "" || inner.TimestampUTC == "" {
		t.Errorf("incomplete: %s", outer)
	}
}

func methodsDisconnect(_ *testing.T, w *world) {
	i := w.newIdentity("d")
	c := w.mqttAs(i)
	c.subscribe(methodsTopic+"#", 0)
	call := methodsCall(w, i, map[string]any{"methodName": "m"})
	methodsTake(c)
	c.Disconnect(0)
	methodsRefusal(w, next(w, "answer", call), http.StatusNotFound, "DeviceConnectionClosedRemotely")
}

func methodsTimeout(_ *testing.T, w *world) {
	d := methodsMQTT(w, w.newIdentity("d"))
	call := methodsCall(w, d.identity, map[string]any{"methodName": "m", "responseTimeoutInSeconds": 5})
	request := d.take()
	methodsRefusal(w, next(w, "answer", call), http.StatusGatewayTimeout, "GatewayTimeout")
	request.answer(200, "1") // too late
}

func methodsSingle(t *testing.T, w *world) {
	c := w.mqttAs(w.newIdentity("d"))
	const filter = methodsTopic + "reboot/#"
	token := c.Subscribe(filter, 0, nil)
	err := w.wait(token)
	if granted := token.(*paho.SubscribeToken).Result()[filter]; err == nil && granted != 0x80 {
		t.Errorf("granted %d", granted)
	}
}

func methodsOfModules(_ *testing.T, w *world) {
	m := w.newModule(w.newDevice("d"), "caller")
	a := w.restAs(w.identityToken(m), http.MethodPost, "/twins/d/modules/other/methods", map[string]any{"methodName": "m"})
	w.must(a, http.StatusUnauthorized)
}
