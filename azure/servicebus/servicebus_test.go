package servicebus

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/job"
)

type anyToken struct{}

func (anyToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "x"}, nil
}

func TestNewRefusesIncompleteSettings(t *testing.T) {
	t.Parallel()
	const secret = "dG9wLXNlY3JldA=="
	for name, cfg := range map[string]Config{
		"nothing":        {},
		"no namespace":   {Credential: anyToken{}},
		"no credential":  {Namespace: "n.servicebus.windows.net"},
		"both":           {ConnectionString: "Endpoint=sb://h", Credential: anyToken{}},
		"no pairs":       {ConnectionString: secret},
		"no endpoint":    {ConnectionString: "SharedAccessKeyName=p;SharedAccessKey=" + secret},
		"no policy":      {ConnectionString: "Endpoint=sb://h;SharedAccessKey=" + secret},
		"emulator's URL": {ConnectionString: "Endpoint=http://h;SharedAccessKeyName=p;UseDevelopmentEmulator=true;SharedAccessKey=" + secret},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(cfg)
			if !errors.Is(err, job.ErrInvalid) || strings.Contains(err.Error(), secret) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOutgoing(t *testing.T) {
	t.Parallel()
	out := outgoing(job.Message{
		ID: "m1", CorrelationID: "job-1", Kind: job.KindJob, From: "device-scheduler::1", ContentType: "application/json",
		ContentEncoding: "utf-8", Properties: map[string]string{"site": "north"}, Body: job.Body("{}"),
	})
	p := out.Properties
	if p.MessageID != "m1" || p.CorrelationID != "job-1" || *p.ContentType != "application/json" || *p.ContentEncoding != "utf-8" {
		t.Errorf("got %+v", p)
	}
	want := map[string]any{"kind": "job", "from-device": "device-scheduler::1", "site": "north"}
	if !reflect.DeepEqual(out.ApplicationProperties, want) || string(out.Body.Data[0]) != "{}" {
		t.Errorf("got %v, %q", out.ApplicationProperties, out.Body.Data)
	}
	if bare := outgoing(job.Message{}); bare.Properties.MessageID != nil || bare.Properties.CorrelationID != nil || bare.Properties.ContentType != nil {
		t.Errorf("a bare message got %+v", bare.Properties)
	}
}

func TestIncoming(t *testing.T) {
	t.Parallel()
	encoding, contentType, correlation := "utf-8", "application/json", "job-1"
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	m, properties := incoming(&azservicebus.ReceivedMessage{
		MessageID: "m1", CorrelationID: &correlation, ContentType: &contentType, EnqueuedTime: &at, Body: []byte("{}"),
		ApplicationProperties: map[string]any{
			"kind": "update", "sequence": int32(4), "from-device": "device-solver::forged", "site": "north", "ratio": 1.5,
			"iothub-connection-device-id": "device-solver::1", "iothub-connection-auth-method": "{}", "iothub-message-source": "Telemetry",
		},
		RawAMQPMessage: &azservicebus.AMQPAnnotatedMessage{Properties: &azservicebus.AMQPAnnotatedMessageProperties{ContentEncoding: &encoding}},
	})
	want := job.Message{
		ID: "m1", CorrelationID: "job-1", Kind: job.KindUpdate, Sequence: 4, From: "device-solver::1",
		ContentType: "application/json", ContentEncoding: "utf-8",
		Properties: map[string]string{"site": "north", "ratio": "1.5"}, Body: job.Body("{}"), SentAt: at.UTC(),
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got %+v\nwant %+v", m, want)
	}
	if len(properties) != 8 || properties["iothub-connection-auth-method"] != "{}" || properties["sequence"] != "4" {
		t.Errorf("got properties %v", properties)
	}
}

func TestIncomingWithoutAHub(t *testing.T) {
	t.Parallel()
	m, _ := incoming(&azservicebus.ReceivedMessage{ApplicationProperties: map[string]any{"from-device": "device-solver::1"}})
	if m.From != "device-solver::1" {
		t.Errorf("is from %q", m.From)
	}
}

func TestBodySections(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   azservicebus.AMQPAnnotatedMessageBody
		want string
	}{
		"two data sections": {azservicebus.AMQPAnnotatedMessageBody{Data: [][]byte{[]byte("a"), []byte("b")}}, "ab"},
		"text value":        {azservicebus.AMQPAnnotatedMessageBody{Value: "text"}, "text"},
		"binary value":      {azservicebus.AMQPAnnotatedMessageBody{Value: []byte{1}}, "\x01"},
		"other value":       {azservicebus.AMQPAnnotatedMessageBody{Value: 1}, ""},
	} {
		got := body(&azservicebus.ReceivedMessage{RawAMQPMessage: &azservicebus.AMQPAnnotatedMessage{Body: c.in}})
		if string(got) != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"too large":    {azservicebus.ErrMessageTooLarge, job.ErrTooLarge},
		"wrong key":    {&azservicebus.Error{Code: azservicebus.CodeUnauthorizedAccess}, job.ErrUnauthorized},
		"no entity":    {&azservicebus.Error{Code: azservicebus.CodeNotFound}, job.ErrNotFound},
		"lock lost":    {&azservicebus.Error{Code: azservicebus.CodeLockLost}, job.ErrLockLost},
		"lost":         {&azservicebus.Error{Code: azservicebus.CodeConnectionLost}, job.ErrUnavailable},
		"timeout":      {&azservicebus.Error{Code: azservicebus.CodeTimeout}, job.ErrUnavailable},
		"closed":       {&azservicebus.Error{Code: azservicebus.CodeClosed}, job.ErrUnavailable},
		"new code":     {&azservicebus.Error{Code: "new"}, job.ErrUnavailable},
		"attach":       {&amqp.Error{Condition: amqp.ErrCondNotFound}, job.ErrNotFound},
		"entity full":  {&amqp.Error{Condition: amqp.ErrCondResourceLimitExceeded}, job.ErrThrottled},
		"server busy":  {&amqp.Error{Condition: "com.microsoft:server-busy"}, job.ErrThrottled},
		"disabled":     {&amqp.Error{Condition: "com.microsoft:entity-disabled"}, job.ErrUnavailable},
		"cancellation": {context.Canceled, job.ErrUnavailable},
	} {
		if err := classify("do it", c.err); !errors.Is(err, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if classify("nothing", nil) != nil {
		t.Error("no error became one")
	}
}

func TestSourceString(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]Source{
		"q":                                  {Queue: "q"},
		"q/$DeadLetterQueue":                 {Queue: "q", DeadLetter: true},
		"t/Subscriptions/s":                  {Topic: "t", Subscription: "s"},
		"t/Subscriptions/s/$DeadLetterQueue": {Topic: "t", Subscription: "s", DeadLetter: true},
	} {
		if s.String() != want {
			t.Errorf("got %s, want %s", s, want)
		}
	}
}

func TestReceiveWithoutASource(t *testing.T) {
	t.Parallel()
	c, err := New(Config{ConnectionString: "Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=p;SharedAccessKey=eA==;UseDevelopmentEmulator=true"})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Receive(t.Context(), Source{Topic: "t"}, ReceiveOptions{}, nil)
	if !errors.Is(err, job.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestNextRenewal(t *testing.T) {
	t.Parallel()
	now := time.Unix(1700000000, 0)
	delivery := func(lock time.Duration, settled bool) *Delivery {
		until := now.Add(lock)
		return &Delivery{Received: Received{sdk: &azservicebus.ReceivedMessage{LockedUntil: &until}}, settled: settled}
	}
	unlocked := &Delivery{Received: Received{sdk: &azservicebus.ReceivedMessage{}}}
	for name, c := range map[string]struct {
		in   []*Delivery
		wait time.Duration
		any  bool
	}{
		"half of the shortest lock": {[]*Delivery{delivery(30*time.Second, false), delivery(20*time.Second, false)}, 10 * time.Second, true},
		"settled ones don't count":  {[]*Delivery{delivery(30*time.Second, false), delivery(2*time.Second, true)}, 15 * time.Second, true},
		"clock ahead":               {[]*Delivery{delivery(-time.Minute, false)}, minRenewal, true},
		"clock behind":              {[]*Delivery{delivery(time.Hour, false)}, maxRenewal, true},
		"all settled":               {[]*Delivery{delivery(time.Minute, true), unlocked}, maxRenewal, false},
	} {
		if wait, any := nextRenewal(c.in, now); wait != c.wait || any != c.any {
			t.Errorf("%s: got %s, %v; want %s, %v", name, wait, any, c.wait, c.any)
		}
	}
}
