package amqpnodes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	client "github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/common"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const device = "device-solver::job-1"

func (e *emulator) createDevice(t *testing.T, id string) {
	t.Helper()
	if _, err := e.hub.CreateDevice(testContext(t), hub.Identity{DeviceID: id}); err != nil {
		t.Fatal(err)
	}
}

// putToken does what amenzhinsky/iothub v0.9.1 iotservice does: no message ID,
// default settle modes, and the reply accepted.
func putToken(ctx context.Context, s *client.Session, token string) error {
	return putTokenAs(ctx, s, "servicebus.windows.net:sastoken", token)
}

func putTokenAs(ctx context.Context, s *client.Session, kind, token string) error {
	send, err := s.NewSender(ctx, "$cbs", nil)
	if err != nil {
		return err
	}
	defer send.Close(ctx)
	receive, err := s.NewReceiver(ctx, "$cbs", nil)
	if err != nil {
		return err
	}
	defer receive.Close(ctx)
	to, replyTo := "$cbs", "cbs"
	err = send.Send(ctx, &client.Message{
		Value:      token,
		Properties: &client.MessageProperties{To: &to, ReplyTo: &replyTo},
		ApplicationProperties: map[string]any{
			"operation": "put-token", "type": kind, "name": hubName,
		},
	}, nil)
	if err != nil {
		return err
	}
	m, err := receive.Receive(ctx, nil)
	if err != nil {
		return err
	}
	if err := receive.AcceptMessage(ctx, m); err != nil {
		return err
	}
	if code, ok := m.ApplicationProperties["status-code"].(int32); !ok || code != 200 {
		return fmt.Errorf("put-token: %v", m.ApplicationProperties)
	}
	return nil
}

// service opens a session with the rights of a hub policy, without SASL.
func (e *emulator) service(t *testing.T, policy string) *client.Session {
	t.Helper()
	conn, err := e.dial(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	session := newSession(t, conn)
	if err := putToken(testContext(t), session, e.hubToken(t, policy)); err != nil {
		t.Fatal(err)
	}
	return session
}

func newSession(t *testing.T, conn *client.Conn) *client.Session {
	t.Helper()
	s, err := conn.NewSession(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newSender(t *testing.T, s *client.Session, target string) *client.Sender {
	t.Helper()
	link, err := s.NewSender(testContext(t), target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func newReceiver(t *testing.T, s *client.Session, source string) *client.Receiver {
	t.Helper()
	link, err := s.NewReceiver(testContext(t), source, nil)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// bound is a message for a device.
func bound(to, id, ack string) *client.Message {
	m := client.NewMessage([]byte("hello"))
	m.Properties = &client.MessageProperties{MessageID: id, To: &to}
	m.ApplicationProperties = map[string]any{"iothub-ack": ack}
	return m
}

const toDevice = "/devices/device-solver%3A%3Ajob-1/messages/devicebound"

// next takes the message that waits for the device.
func (e *emulator) next(t *testing.T) (*broker.Queue, *broker.Delivery) {
	t.Helper()
	session, err := e.hub.Connect(testContext(t), device, hub.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	consumer, err := session.Receive(broker.ConsumerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(consumer.Close)
	d, err := consumer.Next(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	queue, err := session.Queue()
	if err != nil {
		t.Fatal(err)
	}
	return queue, d
}

func TestCloudToDeviceAndFeedback(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	session := e.service(t, "service")
	sender := newSender(t, session, "/messages/devicebound")
	m := bound(toDevice, "m1", "full")
	never := time.Time{} // what amenzhinsky/iothub sends for none
	m.Properties.AbsoluteExpiryTime = &never
	if err := sender.Send(testContext(t), m, nil); err != nil {
		t.Fatal(err)
	}
	queue, d := e.next(t)
	if string(d.Message.Body()) != "hello" || d.Message.Properties.MessageID != "m1" {
		t.Errorf("message: %+v", d.Message)
	}
	if err := queue.Settle(testContext(t), d.LockToken, broker.Settlement{Action: broker.Complete}); err != nil {
		t.Fatal(err)
	}

	receiver := newReceiver(t, session, "/messages/serviceBound/feedback")
	first := receiveFeedback(t, receiver)
	if err := receiver.ReleaseMessage(testContext(t), first); err != nil {
		t.Fatal(err)
	}
	again := receiveFeedback(t, receiver)
	if again.Header.DeliveryCount != 1 {
		t.Errorf("delivery count after release: %d", again.Header.DeliveryCount)
	}
	if err := receiver.AcceptMessage(testContext(t), again); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the feedback is gone", func() bool { return e.hub.Feedback().Len() == 0 })
}

// waitUntil polls: the outcome of a link in mode first is not answered.
func waitUntil(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx := testContext(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

func receiveFeedback(t *testing.T, r *client.Receiver) *client.Message {
	t.Helper()
	m, err := r.Receive(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	var records []struct {
		OriginalMessageID, DeviceID, StatusCode string
		EnqueuedTimeUtc                         time.Time
	}
	if err := json.Unmarshal(m.GetData(), &records); err != nil {
		t.Fatal(err)
	}
	if len(records) != 1 || records[0].OriginalMessageID != "m1" || records[0].DeviceID != device || records[0].StatusCode != "Success" {
		t.Errorf("records: %+v", records)
	}
	if _, ok := m.Annotations["iothub-enqueuedtime"].(time.Time); !ok || len(m.DeliveryTag) != 16 {
		t.Errorf("annotations %v, tag %x", m.Annotations, m.DeliveryTag)
	}
	return m
}

func TestCloudToDeviceRefusals(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	sender := newSender(t, e.service(t, "iothubowner"), "messages/DeviceBound")
	large := bound(toDevice, "m", "none")
	large.Data[0] = make([]byte, 65<<10)
	past := bound(toDevice, "m", "none")
	expired := time.Now().Add(-time.Hour)
	past.Properties.AbsoluteExpiryTime = &expired
	for name, tt := range map[string]struct {
		m    *client.Message
		want client.ErrCond
	}{
		"unknown device":     {bound("/devices/nobody/messages/devicebound", "m", "none"), "amqp:not-found"},
		"module":             {bound(toDevice[:len(toDevice)-len("messages/devicebound")]+"modules/m/messages/devicebound", "m", "none"), "amqp:not-found"},
		"no device":          {bound("/messages/devicebound", "m", "none"), "com.microsoft:argument-error"},
		"bad encoding":       {bound("/devices/%zz/messages/devicebound", "m", "none"), "amqp:not-found"},
		"bytes, not text":    {bound("/devices/%ff/messages/devicebound", "m", "none"), "amqp:not-found"},
		"no properties":      {client.NewMessage(nil), "com.microsoft:argument-error"},
		"unknown ack":        {bound(toDevice, "m", "sometimes"), "com.microsoft:argument-error"},
		"too large":          {large, "amqp:link:message-size-exceeded"},
		"expired beforehand": {past, "com.microsoft:argument-error"},
	} {
		t.Run(name, func(t *testing.T) {
			err := sender.Send(testContext(t), tt.m, nil)
			wantCondition(t, err, tt.want)
		})
	}
	for i := range hub.MaxC2DQueueDepth {
		if err := sender.Send(testContext(t), bound(toDevice, fmt.Sprint(i), "none"), nil); err != nil {
			t.Fatal(err)
		}
	}
	err := sender.Send(testContext(t), bound(toDevice, "one-too-many", "none"), nil)
	wantCondition(t, err, "amqp:resource-limit-exceeded")
	var e2 *client.Error
	if errors.As(err, &e2) && e2.Info["com.microsoft:error-code"] != int32(hub.CodeMaxQueueDepthExceeded) {
		t.Errorf("info: %v", e2.Info)
	}
}

func TestUUIDsBecomeStrings(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	sender := newSender(t, e.service(t, "service"), "/messages/devicebound")
	m := bound(toDevice, "", "none")
	m.Properties.MessageID = client.UUID{0x0a, 0xbc, 15: 1}
	if err := sender.Send(testContext(t), m, nil); err != nil {
		t.Fatal(err)
	}
	_, d := e.next(t)
	if got := d.Message.Properties.MessageID; got != "0abc0000-0000-0000-0000-000000000001" {
		t.Errorf("message ID: %v", got)
	}
}

func TestFileNotificationsAttach(t *testing.T) {
	t.Parallel()
	e := start(t)
	newReceiver(t, e.service(t, "service"), "/messages/serviceBound/filenotifications")
}

func TestPlain(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	for name, tt := range map[string]struct {
		user, password string
		source         string
		want           client.ErrCond
		refused        bool
	}{
		"service policy":  {user: "service@sas.root.localhost", password: e.hubToken(t, "service"), source: "/messages/serviceBound/feedback"},
		"device policy":   {user: "device@sas.root.localhost", password: e.hubToken(t, "device"), source: "/messages/serviceBound/feedback", want: "amqp:unauthorized-access"},
		"other's token":   {user: "iothubowner@sas.root.localhost", password: e.hubToken(t, "service"), refused: true},
		"no token":        {user: "service@sas.root.localhost", password: e.policyKey(t, "service"), refused: true},
		"raw key":         {user: "iothubowner", password: e.policyKey(t, "iothubowner"), source: "/localhost/ConsumerGroups/$Default/Partitions/0"},
		"raw key, hub":    {user: "iothubowner", password: e.policyKey(t, "iothubowner"), source: "/messages/serviceBound/feedback", want: "amqp:unauthorized-access"},
		"raw key, queue":  {user: rootName, password: rootKey, source: "queue"},
		"wrong raw key":   {user: "iothubowner", password: "x", refused: true},
		"empty raw key":   {user: rootName, password: "", refused: true},
		"unknown policy":  {user: "nobody", password: rootKey, refused: true},
		"device, as such": {user: device + "@sas.localhost", password: e.hubToken(t, "service"), refused: false, source: "/messages/serviceBound/feedback"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := e.dial(t, client.SASLTypePlain(tt.user, tt.password))
			if tt.refused {
				if err == nil {
					t.Error("the connection was accepted")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = newSession(t, conn).NewReceiver(testContext(t), tt.source, nil)
			wantCondition(t, err, tt.want)
		})
	}
}

func TestLinksNeedAClaim(t *testing.T) {
	t.Parallel()
	e := start(t)
	conn, err := e.dial(t, client.SASLTypeAnonymous())
	if err != nil {
		t.Fatal(err)
	}
	session := newSession(t, conn)
	ctx := testContext(t)
	for _, source := range []string{
		"queue", "topic/Subscriptions/first", "queue/$DeadLetterQueue",
		"/messages/serviceBound/feedback", "/messages/serviceBound/filenotifications", "messages/events/",
		"localhost/ConsumerGroups/$Default/Partitions/0", "missing",
	} {
		_, err := session.NewReceiver(ctx, source, nil)
		wantCondition(t, err, client.ErrCondUnauthorizedAccess)
	}
	for _, target := range []string{"queue", "topic", "queue/$management", "/messages/devicebound", "telemetry", "telemetry/Partitions/0"} {
		_, err := session.NewSender(ctx, target, nil)
		wantCondition(t, err, client.ErrCondUnauthorizedAccess)
	}
	for _, address := range []string{"", "devices/d1/messages/events"} {
		_, err := session.NewSender(ctx, address, nil)
		if err == nil {
			t.Errorf("address %q was accepted", address)
		}
	}
}

func TestPutTokenRefusals(t *testing.T) {
	t.Parallel()
	e := start(t)
	conn, err := e.dial(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	session := newSession(t, conn)
	for name, token := range map[string]string{
		"no token":       "hello",
		"bearer":         "Bearer abc",
		"broken":         "SharedAccessSignature sr=localhost&sig=AAAA&se=99999999999&skn=service",
		"unknown policy": "SharedAccessSignature sr=localhost&sig=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D&se=99999999999&skn=nobody",
	} {
		t.Run(name, func(t *testing.T) {
			err := putToken(testContext(t), session, token)
			if err == nil {
				t.Fatal("the token was accepted")
			}
			contains(t, err.Error(), "401")
		})
	}
}

func TestLinkEndsWithItsToken(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	session := e.service(t, "service")
	sender := newSender(t, session, "/messages/devicebound")
	e.clock.advance(2 * time.Hour)
	err := sender.Send(testContext(t), bound(toDevice, "m1", "none"), nil)
	wantCondition(t, err, client.ErrCondUnauthorizedAccess)
	_, err = session.NewReceiver(testContext(t), "/messages/serviceBound/feedback", nil)
	wantCondition(t, err, client.ErrCondUnauthorizedAccess)
}

// A link on which nothing happens ends with its token too.
func TestIdleLinkEndsWithItsToken(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.service(t, "service") // its token lives for an hour
	e.clock.advance(time.Hour - 5*time.Second)
	_, err := newReceiver(t, session, "/messages/serviceBound/feedback").Receive(testContext(t), nil)
	wantCondition(t, err, client.ErrCondUnauthorizedAccess)
}

func TestRenewedTokenKeepsLinks(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.createDevice(t, device)
	session := e.service(t, "service")
	sender := newSender(t, session, "/messages/devicebound")
	longer, err := common.NewSharedAccessKey(hubName, "service", e.policyKey(t, "service")).Token(hubName, 3*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := putToken(testContext(t), session, longer.String()); err != nil {
		t.Fatal(err)
	}
	e.clock.advance(2 * time.Hour)
	if err := sender.Send(testContext(t), bound(toDevice, "m1", "none"), nil); err != nil {
		t.Errorf("with the newer token: %v", err)
	}
}

func TestRedirectToEventsEndpoint(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.service(t, "iothubowner")
	_, err := session.NewReceiver(testContext(t), "messages/events/", nil)
	var redirect *client.Error
	if !errors.As(err, &redirect) || redirect.Condition != client.ErrCondLinkRedirect {
		t.Fatalf("error: %v", err)
	}
	if got := redirect.Info["address"]; got != "amqps://127.0.0.1:5671/localhost/" {
		t.Errorf("address: %v", got)
	}
	if redirect.Info["hostname"] != e.addr || redirect.Info["network-host"] != "127.0.0.1" {
		t.Errorf("info: %v", redirect.Info)
	}
	// Other links of the session live on.
	newReceiver(t, session, "/messages/serviceBound/feedback")
}

// What amenzhinsky/iothub v0.9.1 eventhub/client.go does after the redirect.
func TestEventsOverPlainWithRawKey(t *testing.T) {
	t.Parallel()
	e := start(t)
	ctx := testContext(t)
	conn, err := e.dial(t, client.SASLTypePlain("iothubowner", e.policyKey(t, "iothubowner")))
	if err != nil {
		t.Fatal(err)
	}
	session := newSession(t, conn)
	replyTo := "0123456789abcdef"
	receiver, err := session.NewReceiver(ctx, "$management", &client.ReceiverOptions{TargetAddress: replyTo})
	if err != nil {
		t.Fatal(err)
	}
	sender, err := session.NewSender(ctx, "$management", &client.SenderOptions{SourceAddress: replyTo})
	if err != nil {
		t.Fatal(err)
	}
	err = sender.Send(ctx, &client.Message{
		Properties:            &client.MessageProperties{MessageID: "q1", ReplyTo: &replyTo},
		ApplicationProperties: map[string]any{"operation": "READ", "name": hubName, "type": "com.microsoft:eventhub"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := receiver.Receive(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	value, _ := m.Value.(map[string]any)
	if ids, _ := value["partition_ids"].([]string); len(ids) != 2 || m.Properties.CorrelationID != "q1" {
		t.Fatalf("reply: %v, correlation ID %v", m.Value, m.Properties.CorrelationID)
	}
	e.append(t, "old")
	since := client.NewSelectorFilter(fmt.Sprintf("amqp.annotation.x-opt-enqueuedtimeutc > '%d'", time.Now().Add(-time.Hour).UnixMilli()))
	events, err := session.NewReceiver(ctx, "/localhost/ConsumerGroups/$Default/Partitions/0", &client.ReceiverOptions{Filters: []client.LinkFilter{since}})
	if err != nil {
		t.Fatal(err)
	}
	event, err := events.Receive(ctx, nil)
	if err != nil || string(event.GetData()) != "old" {
		t.Fatalf("event %v, error %v", event, err)
	}
	if err := events.AcceptMessage(ctx, event); err != nil {
		t.Error(err)
	}
}
