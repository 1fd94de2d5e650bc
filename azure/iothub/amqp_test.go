package iothub

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/job"
)

func TestDeviceboundMessage(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	m := job.Message{
		ID: "m1", CorrelationID: "job-1", Kind: job.KindUpdate, Sequence: 3, From: "device-solver::1", To: "device-scheduler::1",
		ContentType: job.ContentTypeJSON, ContentEncoding: job.ContentEncodingUTF8, Traceparent: "00-1-2-01",
		Properties: map[string]string{"site": "north", PropertyAck: "none"}, Body: job.Body(`{}`),
	}
	out := deviceboundMessage("device-scheduler::1/x", m, time.Hour, now)
	p := out.Properties
	if p.MessageID != "m1" || p.CorrelationID != "job-1" || *p.ContentType != "application/json" || *p.ContentEncoding != "utf-8" {
		t.Errorf("got %+v", p)
	}
	if *p.To != "/devices/device-scheduler::1%2Fx/messages/devicebound" {
		t.Errorf("goes to %s", *p.To)
	}
	if !p.AbsoluteExpiryTime.Equal(now.Add(time.Hour)) {
		t.Errorf("expires at %s", p.AbsoluteExpiryTime)
	}
	want := map[string]any{
		"iothub-ack": "full", "site": "north", "kind": "update", "sequence": "3",
		"from-device": "device-solver::1", "to-device": "device-scheduler::1", "traceparent": "00-1-2-01",
	}
	for k, v := range want {
		if out.ApplicationProperties[k] != v {
			t.Errorf("%s: got %v, want %v", k, out.ApplicationProperties[k], v)
		}
	}
	if len(out.ApplicationProperties) != len(want) || string(out.GetData()) != "{}" {
		t.Errorf("got %v and %q", out.ApplicationProperties, out.GetData())
	}
	bare := deviceboundMessage("d", job.Message{ID: "m2"}, 0, now)
	if bare.Properties.AbsoluteExpiryTime != nil || bare.Properties.CorrelationID != nil || bare.Properties.ContentType != nil {
		t.Errorf("a bare message got %+v", bare.Properties)
	}
}

func TestSendRefusesBeforeSending(t *testing.T) {
	t.Parallel()
	c := newFakeHub(t, Config{AMQPSAddr: "127.0.0.1:1"}, nil)
	ok := job.Message{ID: "m", Body: job.Body("x")}
	for name, s := range map[string]struct {
		device string
		m      job.Message
		ttl    time.Duration
		want   error
	}{
		"bad device ID":   {"a b", ok, 0, job.ErrInvalid},
		"no message ID":   {"d", job.Message{}, 0, job.ErrInvalid},
		"long message ID": {"d", job.Message{ID: strings.Repeat("x", 129)}, 0, job.ErrInvalid},
		"negative ttl":    {"d", ok, -1, job.ErrInvalid},
		"too large":       {"d", job.Message{ID: "m", Body: make(job.Body, job.MaxCloudToDeviceSize)}, 0, job.ErrTooLarge},
		"no hub there":    {"d", ok, 0, job.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := c.SendCloudToDevice(t.Context(), s.device, s.m, s.ttl); !errors.Is(err, s.want) {
				t.Errorf("got %v, want %v", err, s.want)
			}
		})
	}
}

func TestAMQPConditions(t *testing.T) {
	t.Parallel()
	for condition, want := range map[amqp.ErrCond]error{
		"amqp:not-found":                           job.ErrNotFound,
		"amqp:resource-limit-exceeded":             job.ErrQueueFull,
		"amqp:link:message-size-exceeded":          job.ErrTooLarge,
		"amqp:unauthorized-access":                 job.ErrUnauthorized,
		"amqp:not-allowed":                         job.ErrInvalid,
		"com.microsoft:argument-error":             job.ErrInvalid,
		"com.microsoft:argument-out-of-range":      job.ErrInvalid,
		"com.microsoft:device-container-throttled": job.ErrThrottled,
		"com.microsoft:quota-exceeded":             job.ErrQuota,
		"com.microsoft:device-already-exists":      job.ErrExists,
		"com.microsoft:precondition-failed":        job.ErrPrecondition,
		"com.microsoft:iot-hub-suspended":          job.ErrUnauthorized,
		"com.microsoft:iot-hub-not-found-error":    job.ErrUnauthorized,
		"com.microsoft:message-lock-lost":          job.ErrLockLost,
		"com.microsoft:timeout":                    job.ErrUnavailable,
		"amqp:link:detach-forced":                  job.ErrUnavailable,
		"amqp:internal-error":                      job.ErrUnavailable,
	} {
		if err := classify("send", &amqp.Error{Condition: condition}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", condition, err, want)
		}
	}
}

func TestClaimResult(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		properties map[string]any
		want       error
	}{
		"ok":           {map[string]any{"status-code": int32(200), "status-description": "OK"}, nil},
		"accepted":     {map[string]any{"status-code": int32(202)}, nil},
		"wrong key":    {map[string]any{"status-code": int32(401), "status-description": "no"}, job.ErrUnauthorized},
		"server error": {map[string]any{"status-code": int32(500)}, job.ErrUnavailable},
		"no code":      {map[string]any{}, job.ErrUnavailable},
		"wrong type":   {map[string]any{"status-code": "200"}, job.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := claimResult(c.properties); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestClaimOfACredential(t *testing.T) {
	t.Parallel()
	auth, err := newAuthenticator(Config{HostName: "h.azure-devices.net", Credential: fixedToken("a.b.c")})
	if err != nil {
		t.Fatal(err)
	}
	got, err := auth.cbsToken(t.Context())
	if err != nil || got.kind != "Bearer" || got.value != "Bearer a.b.c" || got.audience != "amqps://h.azure-devices.net:5671/" || got.expires.IsZero() {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestDecodeFeedback(t *testing.T) {
	t.Parallel()
	got, err := decodeFeedback(&amqp.Message{Data: [][]byte{[]byte(`[
		{"originalMessageId":"m1","enqueuedTimeUtc":"2026-01-02T03:04:05.1234567Z","statusCode":"Success","description":"Success","deviceId":"d1","deviceGenerationId":"1"},
		{"originalMessageId":"m2","enqueuedTimeUtc":"","statusCode":"Expired","description":"gone","deviceId":"d2"}]`)}})
	want := []job.FeedbackRecord{
		{MessageID: "m1", DeviceID: "d1", Outcome: job.OutcomeSuccess, Description: "Success", At: time.Date(2026, 1, 2, 3, 4, 5, 123456700, time.UTC)},
		{MessageID: "m2", DeviceID: "d2", Outcome: job.OutcomeExpired, Description: "gone"},
	}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, body := range []string{"", "{}", "not JSON"} {
		if _, err := decodeFeedback(&amqp.Message{Data: [][]byte{[]byte(body)}}); err == nil {
			t.Errorf("%q was taken for feedback", body)
		}
	}
}

func FuzzErrorBody(f *testing.F) {
	f.Add([]byte(`{"Message":"ErrorCode:DeviceNotFound;text"}`))
	f.Add([]byte(`{"Message":"{\"errorCode\":404103}"}`))
	f.Add([]byte(`{"errorCode":null,"message":1}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if _, message := errorBody(payload); len(message) > maxMessage+3 {
			t.Errorf("kept %d bytes", len(message))
		}
	})
}
