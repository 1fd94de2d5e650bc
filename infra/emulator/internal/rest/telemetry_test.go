package rest_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const (
	batchOf = "application/vnd.microsoft.iothub.json"
	events  = "/devices/d/messages/events"
)

// TestSendBatch sends what the Node and the C SDK send.
func TestSendBatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	a := f.call("POST", events, `[
		{"body": "aGVsbG8=", "properties":{"iothub-app-Kind":"job","iothub-messageid":"m1","IoTHub-contentType":"text/plain","other":"x"}},
		{"body":"a \"string\"","base64Encoded":false},
		{"body":""}
	]`, "Content-Type", batchOf)
	if a.status != 204 {
		t.Fatal(a)
	}
	m := f.nextEvent()
	if string(m.Body()) != "hello" || m.Properties.MessageID != "m1" || *m.Properties.ContentType != "text/plain" {
		t.Errorf("first: %q %+v", m.Body(), m.Properties)
	}
	if m.ApplicationProperties["Kind"] != "job" || m.ApplicationProperties["other"] != nil || m.ApplicationProperties[hub.PropertyDeviceID] != "d" {
		t.Errorf("first: %v", m.ApplicationProperties)
	}
	for _, want := range []string{`a "string"`, ""} {
		if got := f.nextEvent(); string(got.Body()) != want {
			t.Errorf("got %q, want %q", got.Body(), want)
		}
	}
}

func TestBatchLimits(t *testing.T) {
	t.Parallel()
	half := base64.StdEncoding.EncodeToString(make([]byte, hub.MaxD2CMessageSize/2))
	for name, tt := range map[string]struct {
		body string
		want hub.Code // 0 means accepted
	}{
		"none":              {`[]`, hub.CodeArgumentInvalid},
		"500":               {"[" + strings.Repeat(`{"body":""},`, 499) + `{"body":""}]`, 0},
		"501":               {"[" + strings.Repeat(`{"body":""},`, 500) + `{"body":""}]`, hub.CodeArgumentInvalid},
		"as large as one":   {fmt.Sprintf(`[{"body":%q},{"body":%q}]`, half, half), 0},
		"larger than one":   {fmt.Sprintf(`[{"body":%q},{"body":%q},{"body":"AA=="}]`, half, half), hub.CodeMessageTooLarge},
		"no array":          {`{"body":""}`, hub.CodeFormatError},
		"no base64":         {`[{"body":"aGVsbG8="},{"body":"?"}]`, hub.CodeFormatError},
		"one expiry is bad": {`[{"body":"aGVsbG8="},{"body":"","properties":{"iothub-expiry":"soon"}}]`, hub.CodeArgumentInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.add("d")
			a := f.call("POST", events, tt.body, "Content-Type", batchOf+"; charset=utf-8")
			if tt.want == 0 {
				if a.status != 204 {
					t.Error(a)
				}
				return
			}
			expectFailure(t, a, tt.want)
			if n := f.telemetry.Len(); n != 0 {
				t.Errorf("%d messages of a refused batch were stored", n)
			}
		})
	}
}

// TestSystemProperties sends those that have no place among the properties of
// AMQP.
func TestSystemProperties(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	if a := f.call("POST", events, "x", "dt-subject", "thermostat", "iothub-creationtimeutc", "2026-01-02T03:04:05Z"); a.status != 204 {
		t.Fatal(a)
	}
	got := f.nextEvent().ApplicationProperties
	if got["dt-subject"] != "thermostat" || got["iothub-creation-time-utc"] != "2026-01-02T03:04:05Z" {
		t.Errorf("got %v", got)
	}
}

func TestModuleTelemetry(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	m, err := f.hub.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "m"})
	must(t, err)
	own := f.token(hubName+"/devices/d/modules/m", "", m.Authentication.SymmetricKey.PrimaryKey)
	if a := f.call("POST", "/devices/d/modules/m/messages/events", "x", "Authorization", own); a.status != 204 {
		t.Fatal(a)
	}
	got := f.nextEvent().ApplicationProperties
	if got[hub.PropertyDeviceID] != "d" || got["iothub-connection-module-id"] != "m" {
		t.Errorf("got %v", got)
	}
	if method, _ := got[hub.PropertyAuthMethod].(string); !strings.Contains(method, `"scope":"module"`) {
		t.Errorf("authentication method %s", method)
	}
	expectFailure(t, f.call("POST", "/devices/d/modules/ghost/messages/events", "x"), hub.CodeModuleNotFound)
	if a := f.call("POST", events, "x", "Authorization", own); a.status != 401 {
		t.Errorf("a module sent as its device: %s", a)
	}
}
