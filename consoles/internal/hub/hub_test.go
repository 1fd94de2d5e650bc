package hub

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/consoles/internal/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connectionString names a host that the certificate of httptest is for.
const connectionString = "HostName=example.com;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0"

// newTestClient returns a client of a REST interface that the handler stands in for.
func newTestClient(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client, err := New(connectionString, &Options{Roots: roots, HTTPSAddress: server.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func answer(w http.ResponseWriter, body string) { _, _ = io.WriteString(w, body) }

func TestStatistics(t *testing.T) {
	t.Parallel()
	client := newTestClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "example.com" || !strings.HasPrefix(r.Header.Get("Authorization"), "SharedAccessSignature sr=example.com&") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/statistics/devices":
			answer(w, `{"totalDeviceCount":3,"enabledDeviceCount":2,"disabledDeviceCount":1}`)
		case "/statistics/service":
			answer(w, `{"connectedDeviceCount":2}`)
		}
	})
	got, err := client.Statistics(t.Context())
	if want := (event.Statistics{Connected: 2, Total: 3, Enabled: 2, Disabled: 1}); got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestDevicesAllPages(t *testing.T) {
	t.Parallel()
	client := newTestClient(t, func(w http.ResponseWriter, r *http.Request) {
		var query struct{ Query string }
		if r.URL.Path != "/devices/query" || json.NewDecoder(r.Body).Decode(&query) != nil || query.Query != allDevices {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.Header.Get("x-ms-continuation") == "" {
			w.Header().Set("x-ms-continuation", "next")
			answer(w, `[{"deviceId":"a","connectionState":"Connected","status":"enabled","lastActivityTime":"2026-01-02T12:00:00.1234567Z","cloudToDeviceMessageCount":3}]`)
			return
		}
		answer(w, `[{"deviceId":"b","connectionState":"Disconnected","status":"disabled","lastActivityTime":"0001-01-01T00:00:00","cloudToDeviceMessageCount":0}]`)
	})
	var got []event.Device
	if err := client.Devices(t.Context(), func(d event.Device) { got = append(got, d) }); err != nil {
		t.Fatal(err)
	}
	want := []event.Device{
		{DeviceID: "a", ConnectionState: "Connected", Status: "enabled", LastActivity: time.Date(2026, 1, 2, 12, 0, 0, 123456700, time.UTC), Waiting: 3},
		{DeviceID: "b", ConnectionState: "Disconnected", Status: "disabled"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRefusedCredentials(t *testing.T) {
	t.Parallel()
	for status, refused := range map[int]bool{401: true, 403: true, 429: false, 500: false} {
		client := newTestClient(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		_, err := client.Statistics(t.Context())
		if err == nil || errors.Is(err, ErrRefused) != refused {
			t.Errorf("status %d: error %v", status, err)
		}
		if err := client.Devices(t.Context(), func(event.Device) {}); err == nil || errors.Is(err, ErrRefused) != refused {
			t.Errorf("status %d: error %v", status, err)
		}
	}
}

func TestNewRefusesConnectionString(t *testing.T) {
	t.Parallel()
	for _, cs := range []string{"", "c2VjcmV0", "HostName=h;SharedAccessKey=c2VjcmV0", "HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0"} {
		_, err := New(cs, nil)
		if err == nil || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("connection string %q: error %v", cs, err)
		}
	}
}

func TestRedirected(t *testing.T) {
	t.Parallel()
	redirect := func(info map[string]any) *amqp.Error {
		return &amqp.Error{Condition: amqp.ErrCondLinkRedirect, Info: info}
	}
	usual := redirect(map[string]any{"hostname": "ns.test", "address": "amqps://ns.test:5671/my-hub/"})
	tests := map[string]struct {
		refused error
		want    stream
		ok      bool
	}{
		"with the attach":  {usual, stream{"ns.test", "my-hub"}, true},
		"after the attach": {&amqp.DetachError{RemoteErr: usual}, stream{"ns.test", "my-hub"}, true},
		"host with port":   {redirect(map[string]any{"hostname": "localhost:15671", "address": "amqps://localhost:5671/hub/"}), stream{"localhost:15671", "hub"}, true},
		"address alone":    {redirect(map[string]any{"address": "amqps://localhost:15671/hub"}), stream{"localhost:15671", "hub"}, true},
		"no address":       {redirect(nil), stream{}, false},
		"address not text": {redirect(map[string]any{"address": 5}), stream{}, false},
		"no name":          {redirect(map[string]any{"address": "amqps://ns.test:5671/"}), stream{}, false},
		"no host":          {redirect(map[string]any{"address": "my-hub"}), stream{}, false},
		"other condition":  {&amqp.Error{Condition: amqp.ErrCondUnauthorizedAccess}, stream{}, false},
		"detached bare":    {&amqp.DetachError{}, stream{}, false},
		"other error":      {io.EOF, stream{}, false},
		"a message":        {nil, stream{}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := redirected(test.refused)
			if got != test.want || (err == nil) != test.ok {
				t.Errorf("got %+v, %v, want %+v", got, err, test.want)
			}
			if err != nil && !errors.Is(err, errNoRedirect) {
				t.Errorf("error %v, want %v", err, errNoRedirect)
			}
		})
	}
}

func TestObserved(t *testing.T) {
	t.Parallel()
	text := func(s string) *string { return &s }
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	deviceID, got := observed(&amqp.Message{
		Data: [][]byte{[]byte("hel"), []byte("lo")},
		Properties: &amqp.MessageProperties{
			MessageID: amqp.UUID{1}, CorrelationID: uint64(7), UserID: []byte("me"), ContentType: text("text/plain"),
			ContentEncoding: text("utf-8"), To: text("/devices/d/messages/events"), AbsoluteExpiryTime: &noon,
		},
		Annotations: amqp.Annotations{
			deviceIDAnnotation: "d", "x-opt-sequence-number": int64(5), "iothub-enqueuedtime": noon, 17: []byte("number as name"),
		},
		ApplicationProperties: map[string]any{"kind": "update", "nan": math.NaN(), "n": int32(3), "list": []any{"x"}},
	})
	want := event.Message{
		ID: amqp.UUID{1}.String(), CorrelationID: "7", Body: event.Body("hello"),
		Properties: map[string]any{"kind": "update", "nan": "NaN", "n": int32(3), "list": "[x]"},
		System: map[string]any{
			"message-id": amqp.UUID{1}.String(), "correlation-id": "7", "user-id": "me", "content-type": "text/plain",
			"content-encoding": "utf-8", "to": "/devices/d/messages/events", "absolute-expiry-time": noon,
			deviceIDAnnotation: "d", "x-opt-sequence-number": int64(5), "iothub-enqueuedtime": noon, "17": "number as name",
		},
	}
	if deviceID != "d" || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %+v\nwant %+v", deviceID, got, want)
	}
	if _, err := json.Marshal(got); err != nil {
		t.Errorf("can't be written as JSON: %v", err)
	}
}

func TestObservedOddMessages(t *testing.T) {
	t.Parallel()
	for want, m := range map[string]*amqp.Message{
		"":      {},
		"value": {Value: "value"},
		"bytes": {Value: []byte("bytes")},
		"[1 2]": {Value: []any{1, 2}},
		"other": {Data: [][]byte{[]byte("other")}, Annotations: amqp.Annotations{deviceIDAnnotation: int64(5)}},
	} {
		if deviceID, got := observed(m); string(got.Body) != want || deviceID != "" {
			t.Errorf("got %q from %q, want %q", got.Body, deviceID, want)
		}
	}
}
