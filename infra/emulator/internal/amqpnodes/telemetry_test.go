package amqpnodes_test

import (
	"testing"
	"time"

	client "github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// stored returns what the built-in endpoint has, at least n events.
func (e *emulator) stored(t *testing.T, n int) []*broker.Event {
	t.Helper()
	var all []*broker.Event
	for _, id := range e.events.PartitionIDs() {
		reader := must[*broker.Reader](t)(e.events.OpenReader(broker.ReaderOptions{ConsumerGroup: "$Default", PartitionID: id}))
		defer reader.Close()
		if p := must[broker.PartitionProperties](t)(e.events.Partition(id)); !p.Empty {
			all = append(all, must[[]*broker.Event](t)(reader.Next(testContext(t), 1000))...)
		}
	}
	if len(all) < n {
		t.Fatalf("%d events, want %d", len(all), n)
	}
	return all
}

func TestTelemetry(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]hub.Target{"device": bare, "module": module} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			session := e.startDevice(t, target)
			sender := must[*client.Sender](t)(session.NewSender(testContext(t), address(target, nodeEvents), &client.SenderOptions{
				Properties: map[string]any{"com.microsoft:model-id": "dtmi:a:b;1", "com.microsoft:client-version": "x"},
			}))
			if n := sender.MaxMessageSize(); n != hub.MaxD2CMessageSize {
				t.Errorf("messages may have %d bytes", n)
			}
			contentType := "application/json"
			m := &client.Message{
				Annotations:           client.Annotations{"dt-subject": "thermostat", "iothub-interface-id": "i", "iothub-connection-device-id": "liar", "other": "o"},
				Properties:            &client.MessageProperties{MessageID: client.UUID{0x0a, 0xbc, 15: 1}, ContentType: &contentType},
				ApplicationProperties: map[string]any{"iothub-creation-time-utc": "2020-01-01T00:00:00Z", "a": "b", "iothub-connection-device-id": "liar"},
				Data:                  [][]byte{[]byte("{}")},
			}
			if err := sender.Send(testContext(t), m, nil); err != nil {
				t.Fatal(err)
			}
			got := e.stored(t, 1)[0].Message
			if string(got.Body()) != "{}" || *got.Properties.ContentType != contentType || got.Properties.MessageID != "0abc0000-0000-0000-0000-000000000001" {
				t.Errorf("message: %+v", got)
			}
			for key, want := range map[string]any{
				"dt-subject": "thermostat", "iothub-interface-id": "i", "dt-dataschema": "dtmi:a:b;1",
				hub.PropertyDeviceID: device, "other": nil,
			} {
				if got.Annotations[key] != want {
					t.Errorf("annotation %s: %v, want %v", key, got.Annotations[key], want)
				}
			}
			if id := got.Annotations["iothub-connection-module-id"]; target == module && id != target.ModuleID || target == bare && id != nil {
				t.Errorf("module: %v", id)
			}
			if p := got.ApplicationProperties; p["a"] != "b" || p["iothub-creation-time-utc"] != "2020-01-01T00:00:00Z" || p["iothub-connection-device-id"] != nil {
				t.Errorf("application properties: %v", p)
			}
		})
	}
}

func TestTelemetryBatch(t *testing.T) {
	t.Parallel()
	e := start(t)
	sender := newSender(t, e.startDevice(t, bare), address(bare, nodeEvents))
	batch := &client.Message{Format: 0x80013700}
	for _, body := range []string{"one", "two", "three"} {
		m := client.NewMessage([]byte(body))
		m.ApplicationProperties = map[string]any{"body": body}
		batch.Data = append(batch.Data, must[[]byte](t)(m.MarshalBinary()))
	}
	if err := sender.Send(testContext(t), batch, nil); err != nil {
		t.Fatal(err)
	}
	events := e.stored(t, 3)
	for i, want := range []string{"one", "two", "three"} {
		if m := events[i].Message; string(m.Body()) != want || m.ApplicationProperties["body"] != want {
			t.Errorf("event %d: %q %v", i, m.Body(), m.ApplicationProperties)
		}
	}
	broken := &client.Message{Format: 0x80013700, Data: append(batch.Data, []byte("x"))}
	wantCondition(t, sender.Send(testContext(t), broken, nil), "amqp:decode-error")
	if got := e.stored(t, 3); len(got) != 3 {
		t.Errorf("%d events, want none of the broken batch", len(got))
	}
}

func TestTelemetryBodies(t *testing.T) {
	t.Parallel()
	e := start(t)
	sender := newSender(t, e.startDevice(t, bare), address(bare, nodeEvents))
	for name, tt := range map[string]struct {
		m    *client.Message
		want client.ErrCond
	}{
		"several sections": {m: &client.Message{Data: [][]byte{[]byte("bo"), []byte("dy")}}},
		"string":           {m: &client.Message{Value: "body"}},
		"binary":           {m: &client.Message{Value: []byte("body")}},
		"number":           {m: &client.Message{Value: int64(7)}, want: client.ErrCondNotImplemented},
		"sequence":         {m: &client.Message{Sequence: [][]any{{"body"}}}, want: client.ErrCondNotImplemented},
		"unknown format":   {m: &client.Message{Format: 7, Data: [][]byte{nil}}, want: client.ErrCondNotImplemented},
		"too large":        {m: client.NewMessage(make([]byte, hub.MaxD2CMessageSize)), want: client.ErrCondMessageSizeExceeded},
	} {
		wantCondition(t, sender.Send(testContext(t), tt.m, nil), tt.want)
		if err := sender.Send(testContext(t), client.NewMessage([]byte("body")), nil); err != nil {
			t.Fatalf("after %s: %v", name, err)
		}
	}
	for _, event := range e.stored(t, 10) {
		if got := string(event.Message.Body()); got != "body" {
			t.Errorf("body: %q", got)
		}
	}
}

// refuser is a gate that refuses device-to-cloud messages.
type refuser struct {
	hub.Gates // which admits all
	err       *hub.Error
}

func (r refuser) Admit(op hub.Operation, _ hub.Target, _ int) error {
	if op == hub.OpD2C {
		return r.err
	}
	return nil
}

func TestRefusedTelemetry(t *testing.T) {
	t.Parallel()
	for code, want := range map[hub.Code]client.ErrCond{
		hub.CodeThrottling:         "com.microsoft:device-container-throttled",
		hub.CodeQuotaExceeded:      "com.microsoft:quota-exceeded",
		hub.CodeServiceUnavailable: "com.microsoft:timeout",
	} {
		t.Run(code.Name(), func(t *testing.T) {
			t.Parallel()
			e := startWith(t, func(o *hub.Options) { o.Gate = refuser{err: &hub.Error{Code: code, Message: "not now"}} })
			sender := newSender(t, e.startDevice(t, bare), address(bare, nodeEvents))
			ctx := testContext(t)
			wantCondition(t, sender.Send(ctx, client.NewMessage([]byte("x")), nil), want)
			if last := must[hub.Identity](t)(e.hub.GetDevice(device)).LastActivityTime; time.Since(last.Time) > testTimeout {
				t.Errorf("last activity: %v", last)
			}
		})
	}
}
