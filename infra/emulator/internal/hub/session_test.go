package hub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestConnectionState(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, store.Memory())
		create(t, h, "d")
		time.Sleep(time.Second)
		s := connect(t, h, "d")
		d, err := h.GetDevice("d")
		if err != nil {
			t.Fatal(err)
		}
		check(t, "state", d.ConnectionState, "Connected")
		check(t, "updated", d.ConnectionStateUpdatedTime.Equal(time.Now()), true)
		time.Sleep(time.Second)
		s.Touch()
		seen := time.Now()
		time.Sleep(time.Second)
		s.Close()
		<-s.Done()
		d, err = h.GetDevice("d")
		if err != nil {
			t.Fatal(err)
		}
		check(t, "state", d.ConnectionState, "Disconnected")
		check(t, "updated", d.ConnectionStateUpdatedTime.Equal(time.Now()), true)
		check(t, "last activity", d.LastActivityTime.Equal(seen), true)
	})
}

func TestSecondConnectionTakesOver(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	sendC2D(t, h, "d", c2d("1", ""))
	first := connect(t, h, "d")
	c, _ := receiver(t, first)
	receive(t, c)
	second := connect(t, h, "d")
	select {
	case <-first.Done():
	default:
		t.Fatal("the first session goes on")
	}
	wantCode(t, "reason", first.Err(), hub.CodeConnectionReplaced)
	wantCode(t, "publishing", first.Publish(t.Context(), msg("a")), hub.CodeConnectionReplaced)
	_, err := first.Receive(broker.ConsumerOptions{})
	wantCode(t, "receiving", err, hub.CodeConnectionReplaced)
	first.Close() // must not end the second
	check(t, "second session ended", second.Err(), nil)
	check(t, "connected", h.ServiceStatistics().Connected, 1)
	c, q := receiver(t, second)
	d := receive(t, c) // the message that the first had locked
	settle(t, q, d, broker.Complete)
}

func TestTransientSessionsDontShow(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	lasting := connect(t, h, "d")
	s, err := h.Connect(t.Context(), "d", hub.ConnectOptions{Transient: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(t.Context(), msg("a")); err != nil {
		t.Error(err)
	}
	s.Close()
	check(t, "lasting session ended", lasting.Err(), nil)
	check(t, "connected", h.ServiceStatistics().Connected, 1)
}

func TestTransientSessionsAreNoActivity(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	sendC2D(t, h, "d", c2d("1", ""))
	s, err := h.Connect(t.Context(), "d", hub.ConnectOptions{Transient: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Publish(t.Context(), msg("a")); err != nil {
		t.Error(err)
	}
	if _, err := s.Poll(t.Context(), 0); err != nil {
		t.Error(err)
	}
	s.Touch()
	d, err := h.GetDevice("d")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "state", d.ConnectionState, "Disconnected")
	check(t, "last activity", d.LastActivityTime.IsZero(), true)
	check(t, "state updated", d.ConnectionStateUpdatedTime.IsZero(), true)
}

func TestWhoMayConnect(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	_, err := h.Connect(t.Context(), "other", hub.ConnectOptions{})
	wantCode(t, "unknown device", err, hub.CodeDeviceNotFound)
	s := connect(t, h, "d")
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "disabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	wantCode(t, "reason", s.Err(), hub.CodeUnauthorized)
	_, err = h.Connect(t.Context(), "d", hub.ConnectOptions{})
	wantCode(t, "disabled device", err, hub.CodeUnauthorized)
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "enabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	s = connect(t, h, "d")
	h.Close()
	<-s.Done()
	wantCode(t, "reason", s.Err(), hub.CodeServiceUnavailable)
	_, err = h.Connect(t.Context(), "d", hub.ConnectOptions{})
	wantCode(t, "closed hub", err, hub.CodeServiceUnavailable)
}

func TestDeviceToCloudStamps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, store.Memory())
		identity := create(t, h, deviceID)
		s, err := h.Connect(t.Context(), deviceID, hub.ConnectOptions{Auth: hub.AuthMethod{Scope: "hub", Type: "sas"}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		contentType := "application/json"
		err = s.Publish(t.Context(), &amqp.Message{
			Properties: &amqp.Properties{
				MessageID: "m", CorrelationID: "c", ContentType: &contentType,
			},
			Annotations: map[string]any{"dt-subject": "thermostat"},
			ApplicationProperties: map[string]any{
				"temperature": "20", "iothub-creation-time-utc": "2026-01-01T00:00:00Z",
				"iothub-connection-device-id": "another", "IoTHub-Connection-Module-Id": "m",
				"iothub-enqueuedtime": "never", "iothub-message-source": "me",
			},
			Data: [][]byte{[]byte("bo"), []byte("dy")},
		})
		if err != nil {
			t.Fatal(err)
		}
		method := `{"scope":"hub","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}`

		q := h.queue.Peek(0, 1)[0].Message
		check(t, "queue: body", string(q.Data[0]), "body")
		check(t, "queue: message ID", q.Properties.MessageID, "m")
		check(t, "queue: correlation ID", q.Properties.CorrelationID, "c")
		check(t, "queue: content type", *q.Properties.ContentType, "application/json")
		check(t, "queue: annotations", len(q.Annotations), 0)
		check(t, "queue: application properties", q.ApplicationProperties, map[string]any{
			"temperature": "20", "iothub-creation-time-utc": "2026-01-01T00:00:00Z", "dt-subject": "thermostat",
			"iothub-connection-device-id": deviceID, "iothub-connection-auth-generation-id": identity.GenerationID,
			"iothub-connection-auth-method": method,
		})

		r, err := h.events.OpenReader(broker.ReaderOptions{PartitionID: "0"})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		es, err := r.Next(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		e := es[0].Message
		check(t, "events: partition key", es[0].PartitionKey, deviceID)
		check(t, "events: body", string(e.Body()), "body")
		check(t, "events: application properties", e.ApplicationProperties, map[string]any{
			"temperature": "20", "iothub-creation-time-utc": "2026-01-01T00:00:00Z",
		})
		check(t, "events: annotations", e.Annotations, map[string]any{
			"dt-subject": "thermostat", "iothub-connection-device-id": deviceID,
			"iothub-connection-auth-generation-id": identity.GenerationID, "iothub-connection-auth-method": method,
			"iothub-enqueuedtime": time.Now().UTC(), "iothub-message-source": "Telemetry",
		})
	})
}

func TestRouting(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change        func(*hub.Options)
		queue, events int
	}{
		"both":               {func(*hub.Options) {}, 1, 1},
		"queue only":         {func(o *hub.Options) { o.Routes, o.FallbackRoute = o.Routes[:1], true }, 1, 0},
		"twice to the queue": {func(o *hub.Options) { o.Routes = append(o.Routes, o.Routes[0]) }, 1, 1},
		"fallback":           {func(o *hub.Options) { o.Routes, o.FallbackRoute = nil, true }, 0, 1},
		"nowhere":            {func(o *hub.Options) { o.Routes = nil }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, store.Memory(), tc.change)
			create(t, h, "d")
			if err := connect(t, h, "d").Publish(t.Context(), msg("a")); err != nil {
				t.Fatal(err)
			}
			check(t, "in the queue", h.queue.Len(), tc.queue)
			p, err := h.events.Partition("0")
			if err != nil {
				t.Fatal(err)
			}
			check(t, "in the events", p.LastEnqueuedSequenceNumber+1, tc.events)
		})
	}
}

func TestTelemetryIsStoredEverywhereOrNowhere(t *testing.T) {
	t.Parallel()
	s := store.Memory()
	full, err := broker.OpenQueue(s, "full", broker.QueueOptions{MaxMessages: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	h := newHub(t, s, func(o *hub.Options) { o.Routes = append(o.Routes, hub.Route{Name: "full", Endpoint: full}) })
	create(t, h, "d")
	session := connect(t, h, "d")
	if err := session.Publish(t.Context(), msg("a")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "full endpoint", session.Publish(t.Context(), msg("b")), hub.CodeServiceUnavailable)
	check(t, "in the queue", h.queue.Len(), 1)
	wantCode(t, "too large", session.Publish(t.Context(), &amqp.Message{Data: [][]byte{make([]byte, hub.MaxD2CMessageSize+1)}}), hub.CodeMessageTooLarge)
}

func TestCloudToDevice(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, deviceID)
	for i := range 3 { // the device is not connected yet
		sendC2D(t, h, deviceID, c2d(fmt.Sprint(i), ""))
	}
	d, err := h.GetDevice(deviceID)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "count", d.CloudToDeviceMessageCount, 3)
	c, q := receiver(t, connect(t, h, deviceID))
	for i := range 3 {
		d := receive(t, c)
		check(t, "message", d.Message.Properties.MessageID, i)
		check(t, "to", *d.Message.Properties.To, "/devices/device-solver::job-1%25$%27%28%3F%23%29/messages/deviceBound")
		settle(t, q, d, broker.Complete)
	}
	check(t, "left", q.Len(), 0)
}

func TestCloudToDeviceRefusals(t *testing.T) {
	t.Parallel()
	past, future := time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	expiring := func(at time.Time) *amqp.Message {
		m := c2d("1", "")
		m.Properties.AbsoluteExpiryTime = &at
		return m
	}
	for name, tc := range map[string]struct {
		device string
		msg    *amqp.Message
		want   hub.Code
	}{
		"accepted":               {"d", c2d("1", "full"), 0},
		"ack in capitals":        {"d", c2d("1", "Negative"), 0},
		"expiry":                 {"d", expiring(future), 0},
		"zero time of Go":        {"d", expiring(time.Time{}), 0},
		"64 KiB":                 {"d", msg(string(make([]byte, hub.MaxC2DMessageSize-200))), 0},
		"unknown device":         {"other", c2d("1", ""), hub.CodeDeviceNotFound},
		"unknown ack":            {"d", c2d("1", "maybe"), hub.CodeArgumentInvalid},
		"expired":                {"d", expiring(past), hub.CodeArgumentInvalid},
		"beyond 64 KiB":          {"d", msg(string(make([]byte, hub.MaxC2DMessageSize+1))), hub.CodeMessageTooLarge},
		"message ID too long":    {"d", c2d(fmt.Sprintf("%0129d", 1), ""), hub.CodeArgumentInvalid},
		"message ID with spaces": {"d", c2d("a b", ""), hub.CodeArgumentInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, store.Memory())
			create(t, h, "d")
			err := h.SendC2D(t.Context(), tc.device, tc.msg)
			if tc.want == 0 && err != nil {
				t.Error(err)
			}
			if tc.want != 0 {
				wantCode(t, "send", err, tc.want)
			}
		})
	}
}

func TestQueueDepth(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	for i := range hub.MaxC2DQueueDepth {
		sendC2D(t, h, "d", c2d(fmt.Sprint(i), ""))
	}
	wantCode(t, "one too many", h.SendC2D(t.Context(), "d", c2d("x", "")), hub.CodeMaxQueueDepthExceeded)
	purged, err := h.PurgeC2D(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "purged", purged.TotalMessagesPurged, hub.MaxC2DQueueDepth)
	sendC2D(t, h, "d", c2d("x", ""))
	_, err = h.PurgeC2D(t.Context(), "other")
	wantCode(t, "unknown device", err, hub.CodeDeviceNotFound)
}

func TestDeliveryCounting(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		every bool
		act   func(*testing.T, fixture)
		count int
	}{
		"reconnect":                      {false, func(t *testing.T, h fixture) { connect(t, h, "d") }, 0},
		"reconnect, every return counts": {true, func(t *testing.T, h fixture) { connect(t, h, "d") }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, store.Memory(), func(o *hub.Options) { o.C2D.CountEveryReturn = tc.every })
			create(t, h, "d")
			sendC2D(t, h, "d", c2d("1", ""))
			c, _ := receiver(t, connect(t, h, "d"))
			receive(t, c)
			tc.act(t, h)
			c, q := receiver(t, connect(t, h, "d"))
			d := receive(t, c)
			check(t, "count", d.DeliveryCount, tc.count)
			settle(t, q, d, broker.Abandon)
			check(t, "count after abandoning", receive(t, c).DeliveryCount, tc.count+1)
		})
	}
}

func TestFeedback(t *testing.T) {
	t.Parallel()
	for ack, want := range map[string]string{
		"full":     "[completed Success exceeded DeliveryCountExceeded rejected Rejected purged Purged expired Expired]",
		"positive": "[completed Success]",
		"negative": "[exceeded DeliveryCountExceeded rejected Rejected purged Purged expired Expired]",
		"none":     "[]",
		"":         "[]",
	} {
		t.Run("ack "+ack, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHub(t, store.Memory(), func(o *hub.Options) {
					o.C2D.MaxDeliveryCount = 2
					o.Feedback.Interval = 2 * time.Hour
				})
				create(t, h, "d")
				c, q := receiver(t, connect(t, h, "d"))
				sendC2D(t, h, "d", c2d("completed", ack))
				settle(t, q, receive(t, c), broker.Complete)
				sendC2D(t, h, "d", c2d("exceeded", ack))
				settle(t, q, receive(t, c), broker.Abandon)
				settle(t, q, receive(t, c), broker.Abandon)
				sendC2D(t, h, "d", c2d("rejected", ack))
				settle(t, q, receive(t, c), broker.DeadLetter)
				sendC2D(t, h, "d", c2d("purged", ack))
				if _, err := h.PurgeC2D(t.Context(), "d"); err != nil {
					t.Fatal(err)
				}
				sendC2D(t, h, "d", c2d("expired", ack))
				time.Sleep(time.Hour) // the time to live
				check(t, "records before the interval", feedbackOf(t, h), "[]")
				time.Sleep(time.Hour)
				synctest.Wait()
				check(t, "records", feedbackOf(t, h), want)
			})
		})
	}
}

func TestFeedbackBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, store.Memory())
		create(t, h, "d")
		c, q := receiver(t, connect(t, h, "d"))
		for i := range 70 {
			sendC2D(t, h, "d", c2d(fmt.Sprint(i), "full"))
			settle(t, q, receive(t, c), broker.Complete)
		}
		check(t, "records of the full batch", len(feedbackOf(t, h)), 64)
		time.Sleep(15*time.Second - time.Nanosecond)
		synctest.Wait()
		check(t, "records before 15 s", len(feedbackOf(t, h)), 64)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		check(t, "records after 15 s", len(feedbackOf(t, h)), 70)
		check(t, "batches", h.Feedback().Len(), 2)
	})
}

func TestFeedbackMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, store.Memory())
		identity := create(t, h, deviceID)
		c, q := receiver(t, connect(t, h, deviceID))
		sendC2D(t, h, deviceID, c2d("1", "full"))
		settle(t, q, receive(t, c), broker.Complete)
		at := time.Now().UTC()
		time.Sleep(15 * time.Second)
		synctest.Wait()
		m := h.Feedback().Peek(0, 1)[0].Message
		check(t, "user ID", string(m.Properties.UserID), "hub.local")
		check(t, "content type", *m.Properties.ContentType, "application/vnd.microsoft.iothub.feedback.json")
		check(t, "enqueued", m.Annotations["iothub-enqueuedtime"], time.Now().UTC())
		var records []map[string]string
		if err := json.Unmarshal(m.Body(), &records); err != nil {
			t.Fatal(err)
		}
		check(t, "records", records, []map[string]string{{
			"originalMessageId": "1", "description": "Success", "deviceGenerationId": identity.GenerationID,
			"deviceId": deviceID, "enqueuedTimeUtc": at.Format("2006-01-02T15:04:05.0000000Z"), "statusCode": "Success",
		}})
		time.Sleep(time.Hour)
		synctest.Wait()
		check(t, "batches that nobody fetched in an hour", h.Feedback().Len(), 0)
	})
}

func TestMessagesAndFeedbackSurviveKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHub(t, openStore(t, dir))
	create(t, h, deviceID)
	create(t, h, "deleted")
	sendC2D(t, h, "deleted", c2d("gone", "full"))
	if err := h.DeleteDevice(t.Context(), "deleted", hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	c, q := receiver(t, connect(t, h, deviceID))
	for _, id := range []string{"done", "locked", "waiting"} {
		sendC2D(t, h, deviceID, c2d(id, "full"))
	}
	settle(t, q, receive(t, c), broker.Complete)
	receive(t, c)
	if err := connect(t, h, deviceID).Publish(t.Context(), msg("telemetry")); err != nil {
		t.Fatal(err)
	}

	again := newHub(t, afterKill(t, dir), func(o *hub.Options) { o.Feedback.Interval = time.Nanosecond })
	d, err := again.GetDevice(deviceID)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "messages", d.CloudToDeviceMessageCount, 2)
	c, _ = receiver(t, connect(t, again, deviceID))
	for _, want := range []string{"locked", "waiting"} {
		check(t, "message", string(receive(t, c).Message.Body()), want)
	}
	check(t, "telemetry", string(again.queue.Peek(0, 1)[0].Message.Body()), "telemetry")
	batch, err := again.Feedback().NewConsumer(broker.ConsumerOptions{}).Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var records []map[string]string
	if err := json.Unmarshal(batch.Message.Body(), &records); err != nil {
		t.Fatal(err)
	}
	check(t, "feedback records", len(records), 1)
	check(t, "feedback", records[0]["originalMessageId"]+" "+records[0]["statusCode"], "done Success")
}

// A device's message that expires while nobody has opened its queue since the
// start must still be told to its sender.
func TestExpiryAfterRestartGivesFeedback(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHub(t, openStore(t, dir))
	create(t, h, "d")
	m := c2d("1", "full")
	soon := time.Now().Add(50 * time.Millisecond)
	m.Properties.AbsoluteExpiryTime = &soon
	sendC2D(t, h, "d", m)
	again := newHub(t, afterKill(t, dir), func(o *hub.Options) { o.Feedback.Interval = time.Nanosecond })
	batch, err := again.Feedback().NewConsumer(broker.ConsumerOptions{}).Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var records []map[string]string
	if err := json.Unmarshal(batch.Message.Body(), &records); err != nil {
		t.Fatal(err)
	}
	check(t, "feedback", records[0]["statusCode"], "Expired")
}

func TestDirectMethods(t *testing.T) {
	t.Parallel()
	answering := func(h fixture, t *testing.T) {
		s := connect(t, h, "d")
		s.HandleMethods(func(r hub.MethodRequest) {
			go s.RespondMethod(r.RequestID, hub.MethodResult{Status: 200, Payload: json.RawMessage(`{"got":` + string(r.Payload) + `}`)})
		})
	}
	silent := func(h fixture, t *testing.T) { connect(t, h, "d").HandleMethods(func(hub.MethodRequest) {}) }
	call := hub.MethodCall{Name: "m", Payload: json.RawMessage(`1`)}
	for name, tc := range map[string]struct {
		device string
		call   hub.MethodCall
		before func(fixture, *testing.T)
		during func(fixture, *testing.T) // after a minute
		want   hub.Code
		after  time.Duration
	}{
		"answered":       {device: "d", call: call, before: answering},
		"not connected":  {device: "d", call: call, want: hub.CodeDeviceNotOnline},
		"not listening":  {device: "d", call: call, before: func(h fixture, t *testing.T) { connect(t, h, "d") }, want: hub.CodeDeviceNotOnline},
		"unknown device": {device: "x", call: call, want: hub.CodeDeviceNotFound},
		"no answer":      {device: "d", call: call, before: silent, want: hub.CodeGatewayTimeout, after: 30 * time.Second},
		"no answer in its own time": {
			device: "d", call: hub.MethodCall{Name: "m", ResponseTimeout: 5 * time.Second},
			before: silent, want: hub.CodeGatewayTimeout, after: 5 * time.Second,
		},
		"device goes away": {
			device: "d", call: hub.MethodCall{Name: "m", ResponseTimeout: 300 * time.Second},
			before: silent, during: func(h fixture, t *testing.T) { connect(t, h, "d") },
			want: hub.CodeConnectionClosed, after: time.Minute,
		},
		"device comes": {
			device: "d", call: hub.MethodCall{Name: "m", Payload: json.RawMessage(`1`), ConnectTimeout: 300 * time.Second},
			during: answering, after: time.Minute,
		},
		"device doesn't come": {
			device: "d", call: hub.MethodCall{Name: "m", ConnectTimeout: 10 * time.Second},
			want: hub.CodeDeviceNotOnline, after: 10 * time.Second,
		},
		"no name":                  {device: "d", call: hub.MethodCall{}, want: hub.CodeArgumentInvalid},
		"response timeout too low": {device: "d", call: hub.MethodCall{Name: "m", ResponseTimeout: 4 * time.Second}, want: hub.CodeArgumentInvalid},
		"connect timeout too high": {device: "d", call: hub.MethodCall{Name: "m", ConnectTimeout: 301 * time.Second}, want: hub.CodeArgumentInvalid},
		"payload no JSON":          {device: "d", call: hub.MethodCall{Name: "m", Payload: json.RawMessage(`{`)}, want: hub.CodeFormatError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHub(t, store.Memory())
				create(t, h, "d")
				if tc.before != nil {
					tc.before(h, t)
				}
				if tc.during != nil {
					time.AfterFunc(time.Minute, func() { tc.during(h, t) })
				}
				begun := time.Now()
				result, err := h.InvokeMethod(t.Context(), hub.Target{DeviceID: tc.device}, tc.call)
				check(t, "after", time.Since(begun), tc.after)
				if tc.want != 0 {
					wantCode(t, "call", err, tc.want)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				check(t, "result", fmt.Sprint(result.Status, string(result.Payload)), `200{"got":1}`)
			})
		})
	}
}

func TestMethodCallEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	ctx, cancel := context.WithCancel(t.Context())
	s := connect(t, h, "d")
	s.HandleMethods(func(hub.MethodRequest) { cancel() })
	_, err := h.InvokeMethod(ctx, hub.Target{DeviceID: "d"}, hub.MethodCall{Name: "m"})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.RespondMethod("late", hub.MethodResult{})
	s.HandleMethods(nil)
	_, err = h.InvokeMethod(t.Context(), hub.Target{DeviceID: "d"}, hub.MethodCall{Name: "m"})
	wantCode(t, "after giving up methods", err, hub.CodeDeviceNotOnline)
}
