package rest_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const deviceBound = "/devices/d/messages/devicebound"

// lockOf returns the lock token of a message or a feedback batch.
func lockOf(t *testing.T, a answer) string {
	t.Helper()
	token := strings.Trim(a.header.Get("ETag"), `"`)
	if a.status != 200 || len(token) != 36 {
		t.Fatalf("%s, ETag %q", a, a.header.Get("ETag"))
	}
	return token
}

// sendC2D sends a message that wants all feedback.
func (f *fixture) sendC2D(id string) {
	f.t.Helper()
	m := &amqp.Message{
		Properties:            &amqp.Properties{MessageID: id},
		ApplicationProperties: map[string]any{hub.PropertyAck: "full"},
		Data:                  [][]byte{[]byte(id)},
	}
	must(f.t, f.hub.SendC2D(f.t.Context(), "d", m))
}

// nextFeedback waits for a batch of feedback, and returns it with what it says
// about messages.
func (f *fixture) nextFeedback() (answer, map[string]string) {
	f.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		a := f.call("GET", "/messages/serviceBound/feedback", "")
		if a.status == 204 {
			continue
		}
		outcomes := make(map[string]string)
		for _, r := range decode[[]struct{ OriginalMessageID, StatusCode, DeviceID string }](f.t, a) {
			outcomes[r.OriginalMessageID] = r.StatusCode + " " + r.DeviceID
		}
		return a, outcomes
	}
	f.t.Fatal("no feedback")
	return answer{}, nil
}

func TestReceiveC2D(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	if a := f.call("GET", deviceBound, ""); a.status != 204 {
		t.Fatalf("empty queue: %s", a)
	}
	contentType, expiry := "text/plain", time.Date(2098, 7, 6, 5, 4, 3, 0, time.UTC)
	must(t, f.hub.SendC2D(t.Context(), "d", &amqp.Message{
		Properties: &amqp.Properties{
			MessageID: "m1", CorrelationID: "c1", UserID: []byte("u1"), ContentType: &contentType, AbsoluteExpiryTime: &expiry,
		},
		ApplicationProperties: map[string]any{hub.PropertyAck: "full", "Kind": "job", "no header": "x", "raw": []byte{1, 2}, "none": nil, "n": int64(7)},
		Data:                  [][]byte{[]byte("hello")},
	}))
	a := f.call("GET", deviceBound, "")
	token := lockOf(t, a)
	got := make(map[string]string)
	for name, values := range a.header {
		if strings.HasPrefix(name, "Iothub-") {
			got[name] = strings.Join(values, "|")
		}
	}
	if enqueued, err := time.Parse(time.RFC3339, got["Iothub-Enqueuedtime"]); err != nil || time.Since(enqueued) > time.Minute {
		t.Errorf("enqueued %q", got["Iothub-Enqueuedtime"])
	}
	delete(got, "Iothub-Enqueuedtime")
	want := map[string]string{
		"Iothub-Messageid": "m1", "Iothub-Correlationid": "c1", "Iothub-Userid": "u1", "Iothub-Contenttype": "text/plain",
		"Iothub-To": "/devices/d/messages/deviceBound", "Iothub-Expiry": "2098-07-06T05:04:03.0000000Z", "Iothub-Ack": "full",
		"Iothub-Sequencenumber": "1", "Iothub-Deliverycount": "0", "Iothub-App-Kind": "job",
		"Iothub-App-Raw": "AQI=", "Iothub-App-None": "", "Iothub-App-N": "7",
	}
	if !maps.Equal(got, want) || string(a.body) != "hello" {
		t.Errorf("body %q, headers\n%v, want\n%v", a.body, got, want)
	}
	if a := f.call("GET", deviceBound, ""); a.status != 204 {
		t.Errorf("a locked message was handed out: %s", a)
	}
	if a := f.call("DELETE", deviceBound+"/"+token, "", "If-Match", token); a.status != 204 {
		t.Errorf("complete: %s", a)
	}
	expectFailure(t, f.call("DELETE", deviceBound+"/"+token, ""), hub.CodeMessageLockLost)
	if n := f.hub.ServiceStatistics().Connected; n != 0 {
		t.Errorf("%d devices show as connected", n)
	}
}

// Names of headers keep their case, for clients that don't ignore it.
func TestC2DHeaderCase(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	must(t, f.hub.SendC2D(t.Context(), "d", &amqp.Message{ApplicationProperties: map[string]any{"jobType": "x"}}))
	raw := f.all("GET " + deviceBound + "?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: " + f.policyToken(hub.PolicyDevice) + "\r\n\r\n")
	for _, want := range []string{"\r\niothub-app-jobType: x\r\n", "\r\niothub-sequencenumber: 1\r\n"} {
		if !strings.Contains(raw, want) {
			t.Errorf("%q is missing in\n%s", want, raw)
		}
	}
}

// TestSettleC2D ends messages in each way and reads of it over HTTP.
func TestSettleC2D(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	for _, tt := range []struct{ id, method, suffix, outcome string }{
		{"completed", "DELETE", "", "Success d"},
		{"rejected like Node", "DELETE", "?api-version=2021-04-12&reject", "Rejected d"},
		{"rejected like Java", "DELETE", "?reject=true&api-version=2020-09-30", "Rejected d"},
	} {
		f.sendC2D(strings.ReplaceAll(tt.id, " ", "-"))
		token := lockOf(t, f.call("GET", deviceBound, ""))
		if a := f.call(tt.method, deviceBound+"/"+token+tt.suffix, ""); a.status != 204 {
			t.Errorf("%s: %s", tt.id, a)
		}
		a, outcomes := f.nextFeedback()
		if outcomes[strings.ReplaceAll(tt.id, " ", "-")] != tt.outcome {
			t.Errorf("%s: feedback %s", tt.id, a)
		}
		if a := f.call("DELETE", "/messages/serviceBound/feedback/"+lockOf(t, a), ""); a.status != 204 {
			t.Errorf("%s: complete feedback: %s", tt.id, a)
		}
	}
}

func TestAbandonC2D(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	f.sendC2D("m")
	for count := range hub.DefaultC2DMaxDeliveryCount {
		a := f.call("GET", deviceBound, "")
		if got := a.header.Get("iothub-deliverycount"); got != string(rune('0'+count)) {
			t.Fatalf("delivery %d has count %q", count, got)
		}
		if a := f.call("POST", deviceBound+"/"+lockOf(t, a)+"/abandon", ""); a.status != 204 {
			t.Fatalf("abandon %d: %s", count, a)
		}
	}
	if a := f.call("GET", deviceBound, ""); a.status != 204 {
		t.Errorf("handed out once too often: %s", a)
	}
	if a, outcomes := f.nextFeedback(); outcomes["m"] != "DeliveryCountExceeded d" {
		t.Errorf("feedback %s", a)
	}
}

// A lock ends by itself, as early as the request asked for.
func TestC2DLockTimeout(t *testing.T) {
	t.Parallel()
	for name, header := range map[string][]string{
		"header":    {"IotHub-MessageLockTimeout", "1"},
		"parameter": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.add("d")
			f.sendC2D("m")
			path := deviceBound
			if header == nil {
				path += "?iothub-messagelocktimeout=1&api-version=2021-04-12"
			}
			token := lockOf(t, f.call("GET", path, "", header...))
			var again answer
			for deadline := time.Now().Add(30 * time.Second); again.status != 200 && time.Now().Before(deadline); {
				again = f.call("GET", deviceBound, "")
			}
			if lockOf(t, again) == token {
				t.Error("the new lock has the old token")
			}
			expectFailure(t, f.call("DELETE", deviceBound+"/"+token, ""), hub.CodeMessageLockLost)
			if a := f.call("DELETE", deviceBound+"/"+lockOf(t, again), ""); a.status != 204 {
				t.Errorf("complete: %s", a)
			}
		})
	}
}

func TestReceiveRefusals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d", "off")
	_, err := f.hub.UpdateDevice(t.Context(), hub.Identity{DeviceID: "off", Status: hub.StatusDisabled}, hub.AnyVersion)
	must(t, err)
	const unknown = "/6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	for _, tt := range []struct {
		method, path string
		want         hub.Code
	}{
		{"GET", "/devices/ghost/messages/devicebound", hub.CodeDeviceNotFound},
		{"GET", "/devices/off/messages/devicebound", hub.CodeUnauthorized},
		{"DELETE", "/devices/off/messages/devicebound" + unknown, hub.CodeUnauthorized},
		{"GET", deviceBound + "?api-version=2021-04-12&IotHub-MessageLockTimeout=soon", hub.CodeArgumentInvalid},
		{"GET", deviceBound + "?api-version=2021-04-12&iothub-messagelocktimeout=0", hub.CodeArgumentInvalid},
		{"DELETE", deviceBound + unknown, hub.CodeMessageLockLost},
		{"POST", deviceBound + unknown + "/abandon", hub.CodeMessageLockLost},
		{"DELETE", deviceBound + "/token", hub.CodeArgumentInvalid},
		{"DELETE", "/messages/serviceBound/feedback" + unknown, hub.CodeMessageLockLost},
	} {
		expectFailure(t, f.call(tt.method, tt.path, ""), tt.want)
	}
}

func TestFeedback(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	if a := f.call("GET", "/messages/serviceBound/feedback", ""); a.status != 204 {
		t.Fatalf("no feedback: %s", a)
	}
	f.sendC2D("m")
	f.call("DELETE", "/devices/d/commands", "")
	first, outcomes := f.nextFeedback()
	if outcomes["m"] != "Purged d" {
		t.Errorf("feedback %s", first)
	}
	if !json.Valid(first.body) || first.header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("%s %s", first.header, first.body)
	}
	if a := f.call("POST", "/messages/serviceBound/feedback/"+lockOf(t, first)+"/abandon", ""); a.status != 204 {
		t.Fatalf("abandon: %s", a)
	}
	again, _ := f.nextFeedback()
	if string(again.body) != string(first.body) || lockOf(t, again) == lockOf(t, first) {
		t.Errorf("abandoned feedback comes as %s with lock %s, was %s", again, lockOf(t, again), first)
	}
	if a := f.call("DELETE", "/messages/serviceBound/feedback/"+lockOf(t, again), ""); a.status != 204 {
		t.Errorf("complete: %s", a)
	}
	if a := f.call("GET", "/messages/serviceBound/feedback", ""); a.status != http.StatusNoContent {
		t.Errorf("completed feedback comes again: %s", a)
	}
}
