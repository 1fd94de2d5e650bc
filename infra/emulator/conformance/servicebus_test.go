package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus/admin"
	"github.com/Azure/go-amqp"
	"github.com/coder/websocket"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// Pages of the Service Bus documentation.
const (
	docsEntities   = "Service Bus docs: Service Bus queues, topics, and subscriptions"
	docsSettlement = "Service Bus docs: Message transfers, locks, and settlement"
	docsSequence   = "Service Bus docs: Message sequencing and timestamps"
	docsPayload    = "Service Bus docs: Messages, payloads, and serialization"
	docsDeadLetter = "Service Bus docs: Overview of Service Bus dead-letter queues"
	docsExpiration = "Service Bus docs: Message expiration (Time to Live)"
	docsDeferral   = "Service Bus docs: Message deferral"
	docsBrowsing   = "Service Bus docs: Message browsing"
	docsDuplicates = "Service Bus docs: Duplicate detection"
	docsBusQuotas  = "Service Bus docs: Service Bus quotas"
	docsBusManage  = "Service Bus docs: AMQP 1.0 in Azure Service Bus: request-response-based operations"
	docsBusGuide   = "Service Bus docs: AMQP 1.0 in Azure Service Bus and Event Hubs protocol guide"
	docsBusConfig  = "Azure/azure-service-bus-emulator-installer: Config.json"
)

var serviceBus = area{
	name: "Service Bus",
	emulated: []behaviour{
		{"Queues", "a message arrives with its body and broker properties", docsPayload, busBrokerProperties},
		{"Queues", "application properties keep every type of AMQP", docsPayload, busPropertyTypes},
		{"Queues", "bodies keep their kind of section", "azservicebus v1.11: amqp_message.go", busBodyKinds},
		{"Queues", "messages come in the order of arrival, numbered without gaps", docsSequence, busOrder},
		{"Queues", "competing receivers get different messages", docsEntities, busCompeting},
		{"Queues", "a queue keeps what it holds when its receivers go", docsEntities, busStateAfterDetach},
		{"Queues", "a queue that doesn't exist is not found", "azservicebus v1.11: error.go, CodeNotFound", busUnknownEntities},
		{"Queues", "a wrong key is unauthorized", "azservicebus v1.11: error.go, CodeUnauthorizedAccess", busWrongKey},

		{"Topics and subscriptions", "each subscription gets a copy", docsEntities, busFanOut},
		{"Topics and subscriptions", "subscriptions settle and count for themselves", docsEntities, busSubscriptionsApart},
		{"Topics and subscriptions", "a copy tells the number that the topic gave", docsPayload, busTopicNumber},
		{"Topics and subscriptions", "a topic without subscriptions accepts messages and drops them", docsEntities, busNoSubscription},
		{"Topics and subscriptions", "a subscription that doesn't exist is not found", "azservicebus v1.11: error.go, CodeNotFound", busUnknownSubscription},
		{"Topics and subscriptions", "a subscription can't be sent to", docsEntities, busSendToSubscription},

		{"Peek-lock", "a locked message is hidden from others", docsSettlement, busLockHides},
		{"Peek-lock", "a completed message is gone", docsSettlement, busComplete},
		{"Peek-lock", "an abandoned message comes again at once, and counts", docsSettlement, busAbandon},
		{"Peek-lock", "abandoning changes properties", docsBusGuide, busAbandonProperties},
		{"Peek-lock", "a lock ends after the lock duration", docsSettlement, busLockDuration},
		{"Peek-lock", "what is settled after the lock's end is refused", docsSettlement, busLockLost},
		{"Peek-lock", "renewing a lock makes it last longer", docsSettlement, busRenew},
		{"Peek-lock", "a settled message has no lock to renew", docsBusManage, busRenewSettled},
		{"Peek-lock", "a message can be settled over another link", "azservicebus v1.11: messageSettler.go", busSettleElsewhere},
		{"Peek-lock", "a lock outlives the connection", "azservicebus v1.11: messageSettler.go", busLockOutlivesConnection},
		{"Peek-lock", "what nobody has read is given back without counting", "azservicebus v1.11: receiver.go, newReleaserFunc", busReleased},
		{"Receive and delete", "a message is deleted as it is sent", docsSettlement, busReceiveAndDelete},

		{"Deferral", "a deferred message comes by its sequence number only", docsDeferral, busDefer},
		{"Deferral", "deferring changes properties", docsBusGuide, busDeferProperties},
		{"Deferral", "an abandoned message stays deferred", docsDeferral, busAbandonDeferred},
		{"Deferral", "a deferred message can be received and deleted", docsBusManage, busDeleteDeferred},
		{"Deferral", "a number that is not of a deferred message is not found", "Azure/azure-service-bus issue 415", busDeferredUnknown},
		{"Deferral", "a deferred message expires when it is asked for", docsDeferral, busDeferredExpires},

		{"Dead-letter queues", "dead-lettering keeps reason, description and properties", docsDeadLetter, busDeadLetter},
		{"Dead-letter queues", "abandoning too often dead-letters", docsDeadLetter, busAbandonTooOften},
		{"Dead-letter queues", "locks that end too often dead-letter", docsDeadLetter, busExpireTooOften},
		{"Dead-letter queues", "a dead-letter queue counts without end", docsDeadLetter, busDeadLetterCounts},
		{"Dead-letter queues", "a dead-lettered message can be sent again", docsDeadLetter, busResubmit},
		{"Dead-letter queues", "a dead-lettered message can't be dead-lettered", docsDeadLetter, busDeadLetterTwice},
		{"Dead-letter queues", "a dead-letter queue can't be sent to", docsDeadLetter, busSendToDeadLetter},
		{"Dead-letter queues", "time to live is not observed", docsDeadLetter, busDeadLetterTTL},
		{"Dead-letter queues", "each subscription has one", docsDeadLetter, busSubscriptionDeadLetter},

		{"Time to live", "an expired message is dropped", docsExpiration, busExpires},
		{"Time to live", "an expired message is dead-lettered where that is set", docsExpiration, busExpiresToDeadLetter},
		{"Time to live", "the queue's time to live is a ceiling", docsExpiration, busTTLCeiling},
		{"Time to live", "a locked message can be completed after its time", docsExpiration, busLockedExpires},

		{"Scheduled messages", "a scheduled message waits for its time", docsSequence, busScheduled},
		{"Scheduled messages", "it arrives at the end, with a new sequence number", docsSequence, busScheduledArrives},
		{"Scheduled messages", "a scheduled message can be cancelled", docsSequence, busCancelScheduled},
		{"Scheduled messages", "an unknown number can't be cancelled", docsBusManage, busCancelUnknown},
		{"Scheduled messages", "messages scheduled on a topic reach its subscriptions", docsSequence, busScheduleOnTopic},

		{"Duplicate detection", "a repeated message ID is accepted and dropped", docsDuplicates, busDuplicate},
		{"Duplicate detection", "the ID is remembered after the message has gone", docsDuplicates, busDuplicateAfterComplete},
		{"Duplicate detection", "a topic detects for all its subscriptions", docsDuplicates, busDuplicateOnTopic},
		{"Duplicate detection", "scheduled messages take part", docsDuplicates, busDuplicateScheduled},
		{"Duplicate detection", "without it, repeated IDs arrive", docsDuplicates, busNoDetection},
		{"Duplicate detection", "the window is 20 seconds to 7 days", docsDuplicates, busWindowBounds},

		{"Browsing", "peeking starts at a sequence number and goes on", docsBrowsing, busPeekGoesOn},
		{"Browsing", "peeking shows messages in every state", docsBrowsing, busPeekStates},
		{"Browsing", "peeking neither locks nor counts", docsBrowsing, busPeekLeaves},
		{"Browsing", "scheduled messages are shown by queues, not by subscriptions", docsBrowsing, busPeekSubscription},

		{"Batches", "a batch arrives in order", docsBusGuide, busBatch},
		{"Batches", "a batch takes what fits", "azservicebus v1.11: message_batch.go, ErrMessageTooLarge", busBatchFull},
		{"Message size", "a message above 256 KB is too large", docsBusQuotas, busTooLarge},

		{"AMQP over TLS", "a client on the TLS port sends and receives", docsBusGuide, busTLS},
		{"AMQP over WebSockets", "a client on a WebSocket sends and receives", "azservicebus v1.11: example_websockets_and_proxies_test.go", busWebSocket},
		{"SASL PLAIN", "policy and key are user and password", docsBusGuide, busPlain},
	},
	refused: []behaviour{
		{"Sessions", "accepting a session is not allowed", "azservicebus v1.11: client.go, AcceptSessionForQueue", busAcceptSession},
		{"Sessions", "listing sessions is not implemented", "azservicebus v1.11: client.go, NewListSessionsForQueuePager", busListSessions},
		{"Sessions", "a queue that requires sessions is refused", docsBusConfig, busSessionConfig},
		{"Rules and filters", "adding a rule is not implemented", docsBusManage, busAddRule},
		{"Rules and filters", "a subscription with a filter is refused", docsBusConfig, busFilterConfig},
		{"Auto-forwarding", "an entity that forwards is refused", docsBusConfig, busForwardConfig},
		{"Auto-forwarding", "a transfer dead-letter queue is not found", "azservicebus v1.11: receiver.go, SubQueueTransfer", busTransferQueue},
		{"Transactions", "a coordinator is refused", "AMQP 1.0 §4.5.1", busTransaction},
		{"Management over HTTP", "entities can't be managed", "azservicebus v1.11: admin", busAdmin},
		{"Microsoft Entra ID", "a bearer token is unauthorized", "azservicebus v1.11: client.go, NewClient", busEntra},
	},
}

// busQueue gives the emulator one queue, named q.
func busQueue(w *world, q emulator.Queue) {
	w.t.Helper()
	q.Name = "q"
	w.with(emulatortest.Config(&emulator.Config{Queues: []emulator.Queue{q}}))
}

// busTopic gives the emulator one topic, named t, with subscriptions of the same
// properties.
func busTopic(w *world, topic emulator.Topic, d emulator.Delivery, subscriptions ...string) {
	w.t.Helper()
	topic.Name = "t"
	for _, name := range subscriptions {
		topic.Subscriptions = append(topic.Subscriptions, emulator.Subscription{Name: name, Delivery: d})
	}
	w.with(emulatortest.Config(&emulator.Config{Topics: []emulator.Topic{topic}}))
}

// busSendText sends messages that have a body and nothing else.
func busSendText(w *world, entity string, bodies ...string) {
	w.t.Helper()
	for _, body := range bodies {
		w.busSend(entity, &azservicebus.Message{Body: []byte(body)})
	}
}

func busSender(w *world, entity string) *azservicebus.Sender {
	w.t.Helper()
	s, err := w.serviceBus().NewSender(entity, nil)
	busDone(w, err)
	w.closing("sender", s.Close)
	return s
}

func busSubscriber(w *world, name string, opts *azservicebus.ReceiverOptions) *azservicebus.Receiver {
	w.t.Helper()
	r, err := w.serviceBus().NewReceiverForSubscription("t", name, opts)
	busDone(w, err)
	w.closing("receiver", r.Close)
	return r
}

func busDeadLetters(w *world) *azservicebus.Receiver {
	w.t.Helper()
	return w.busReceiver("q", &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
}

func busOne(w *world, r *azservicebus.Receiver) *azservicebus.ReceivedMessage {
	w.t.Helper()
	return w.busReceive(r, 1)[0]
}

// busDone ends the case if something failed that it only needs.
func busDone(w *world, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func busBodies(msgs []*azservicebus.ReceivedMessage) string {
	var bodies []string
	for _, m := range msgs {
		bodies = append(bodies, string(m.Body))
	}
	return strings.Join(bodies, " ")
}

// busPeek returns all that a queue shows.
func busPeek(w *world, r *azservicebus.Receiver) []*azservicebus.ReceivedMessage {
	w.t.Helper()
	msgs, err := r.PeekMessages(w.ctx(), 100, &azservicebus.PeekMessagesOptions{FromSequenceNumber: new(int64(0))})
	busDone(w, err)
	return msgs
}

// busWants fails the case unless the SDK gave the error a code.
func busWants(w *world, what string, err error, code azservicebus.Code) {
	w.t.Helper()
	var e *azservicebus.Error
	if !errors.As(err, &e) || e.Code != code {
		w.t.Errorf("%s: got %v, want an error of code %s", what, err, code)
	}
}

// busCondition fails the case unless the service sent a condition with a text.
func busCondition(w *world, what string, err error, condition amqp.ErrCond, text string) {
	w.t.Helper()
	var e *amqp.Error
	if !errors.As(err, &e) || e.Condition != condition || !strings.Contains(e.Description, text) {
		w.t.Errorf("%s: got %v, want %s with %q", what, err, condition, text)
	}
}

// busExpireLocks lets the time of all locks be over.
func busExpireLocks(w *world) {
	w.t.Helper()
	_, err := w.emulator().InjectFault(emulator.Fault{Kind: emulator.FaultExpireLocks})
	busDone(w, err)
}

// busKey is the namespace's policy and its key.
func busKey(w *world) (name, key string) {
	w.t.Helper()
	for _, part := range strings.Split(w.emulator().ServiceBusConnectionString(), ";") {
		switch field, value, _ := strings.Cut(part, "="); field {
		case "SharedAccessKeyName":
			name = value
		case "SharedAccessKey":
			key = value
		}
	}
	return name, key
}

// busRoundTrip sends and receives a message with a client of its own.
func busRoundTrip(w *world, client *azservicebus.Client) {
	w.t.Helper()
	s, err := client.NewSender("q", nil)
	busDone(w, err)
	busDone(w, s.SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("a")}, nil))
	r, err := client.NewReceiverForQueue("q", nil)
	busDone(w, err)
	m := busOne(w, r)
	w.check("body", string(m.Body), "a")
	busDone(w, r.CompleteMessage(w.ctx(), m, nil))
}

func busBrokerProperties(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	w.busSend("q", &azservicebus.Message{
		Body: []byte("body"), MessageID: new("id"), CorrelationID: new("correlation"), ContentType: new("text/plain"),
		Subject: new("subject"), To: new("to"), ReplyTo: new("reply"), ReplyToSessionID: new("reply session"),
		SessionID: new("key"), PartitionKey: new("key"), TimeToLive: new(time.Hour),
	})
	m := busOne(w, w.busReceiver("q", nil))
	w.check("body", string(m.Body), "body")
	for what, pair := range map[string][2]any{
		"message ID": {m.MessageID, "id"}, "correlation ID": {*m.CorrelationID, "correlation"},
		"content type": {*m.ContentType, "text/plain"}, "subject": {*m.Subject, "subject"}, "to": {*m.To, "to"},
		"reply to": {*m.ReplyTo, "reply"}, "reply to session": {*m.ReplyToSessionID, "reply session"},
		"session": {*m.SessionID, "key"}, "partition key": {*m.PartitionKey, "key"},
		"time to live": {*m.TimeToLive, time.Hour}, "delivery count": {m.DeliveryCount, 1},
		"sequence number": {*m.SequenceNumber, 1}, "state": {m.State, azservicebus.MessageStateActive},
	} {
		w.check(what, pair[0], pair[1])
	}
	if m.EnqueuedTime == nil || m.ExpiresAt == nil || !m.ExpiresAt.Equal(m.EnqueuedTime.Add(time.Hour)) {
		t.Errorf("enqueued at %v, expires at %v", m.EnqueuedTime, m.ExpiresAt)
	}
	if m.LockedUntil == nil || !m.LockedUntil.After(*m.EnqueuedTime) || m.LockToken == [16]byte{} {
		t.Errorf("locked until %v with token %x", m.LockedUntil, m.LockToken)
	}
}

func busPropertyTypes(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	sent := map[string]any{
		"null": nil, "bool": true, "byte": int8(-1), "short": int16(-2), "int": int32(-3), "long": int64(-4),
		"ubyte": uint8(1), "ushort": uint16(2), "uint": uint32(3), "ulong": uint64(4),
		"float": float32(1.5), "double": 2.5, "string": "text", "binary": []byte{1, 2},
		"timestamp": time.UnixMilli(1234567890123).UTC(), "uuid": amqp.UUID{1, 2, 3},
	}
	w.busSend("q", &azservicebus.Message{Body: []byte("a"), ApplicationProperties: sent})
	got := busOne(w, w.busReceiver("q", nil)).ApplicationProperties
	for name, value := range sent {
		if at, ok := got[name].(time.Time); ok {
			got[name] = at.UTC()
		}
		if !reflect.DeepEqual(got[name], value) {
			t.Errorf("%s: got %T %v, want %T %v", name, got[name], got[name], value, value)
		}
	}
	w.check("number of properties", len(got), len(sent))
}

func busBodyKinds(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	bodies := []azservicebus.AMQPAnnotatedMessageBody{
		{Data: [][]byte{[]byte("one"), []byte("two")}},
		{Value: "text"},
		{Sequence: [][]any{{"a", int64(1)}, {true}}},
	}
	s, r := busSender(w, "q"), w.busReceiver("q", nil)
	for _, body := range bodies {
		busDone(w, s.SendAMQPAnnotatedMessage(w.ctx(), &azservicebus.AMQPAnnotatedMessage{Body: body}, nil))
		if got := busOne(w, r).RawAMQPMessage.Body; !reflect.DeepEqual(got, body) {
			t.Errorf("got %v, want %v", got, body)
		}
	}
}

func busOrder(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	const n = 20
	for i := range n {
		busSendText(w, "q", fmt.Sprint(i))
	}
	var last time.Time
	for i, m := range w.busReceive(w.busReceiver("q", nil), n) {
		w.check("body", string(m.Body), i)
		w.check("sequence number", *m.SequenceNumber, i+1)
		if m.EnqueuedTime.Before(last) {
			t.Errorf("message %d was enqueued at %v, the one before at %v", i, m.EnqueuedTime, last)
		}
		last = *m.EnqueuedTime
	}
}

func busCompeting(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a", "b", "c", "d", "e", "f")
	receivers := []*azservicebus.Receiver{w.busReceiver("q", nil), w.busReceiver("q", nil), w.busReceiver("q", nil)}
	seen := make(map[string]bool)
	for range 2 {
		for _, r := range receivers {
			body := string(busOne(w, r).Body)
			if seen[body] {
				t.Errorf("message %s came twice", body)
			}
			seen[body] = true
		}
	}
	w.check("messages", len(seen), 6)
}

func busStateAfterDetach(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "deferred", "dead", "locked", "active")
	s := busSender(w, "q")
	_, err := s.ScheduleMessages(w.ctx(), []*azservicebus.Message{{Body: []byte("scheduled")}}, time.Now().Add(time.Hour), nil)
	busDone(w, err)
	busDone(w, s.Close(w.ctx()))
	r := w.busReceiver("q", nil)
	got := w.busReceive(r, 3)
	busDone(w, r.DeferMessage(w.ctx(), got[0], nil))
	busDone(w, r.DeadLetterMessage(w.ctx(), got[1], nil))
	busDone(w, r.Close(w.ctx()))

	r = w.busReceiver("q", nil)
	w.check("messages", busBodies(busPeek(w, r)), "deferred locked active scheduled")
	w.check("available", string(busOne(w, r).Body), "active")
	deferred, err := r.ReceiveDeferredMessages(w.ctx(), []int64{1}, nil)
	busDone(w, err)
	w.check("deferred", busBodies(deferred), "deferred")
	w.check("dead-lettered", busBodies(busPeek(w, busDeadLetters(w))), "dead")
}

func busUnknownEntities(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	err := busSender(w, "nowhere").SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("a")}, nil)
	busWants(w, "send", err, azservicebus.CodeNotFound)
	_, err = w.busReceiver("nowhere", nil).ReceiveMessages(w.ctx(), 1, nil)
	busWants(w, "receive", err, azservicebus.CodeNotFound)
	_, err = w.busReceiver("nowhere", &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter}).ReceiveMessages(w.ctx(), 1, nil)
	busWants(w, "receive from the dead-letter queue", err, azservicebus.CodeNotFound)
}

func busWrongKey(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	policy, key := busKey(w)
	for what, text := range map[string]string{
		"wrong key":      strings.Replace(w.emulator().ServiceBusConnectionString(), key, "AAAA"+key[4:], 1),
		"unknown policy": strings.Replace(w.emulator().ServiceBusConnectionString(), policy, "Nobody", 1),
	} {
		client, err := azservicebus.NewClientFromConnectionString(text, nil)
		busDone(w, err)
		w.closing("client", client.Close)
		s, err := client.NewSender("q", nil)
		busDone(w, err)
		err = s.SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("a")}, nil)
		busWants(w, what+", send", err, azservicebus.CodeUnauthorizedAccess)
		r, err := client.NewReceiverForQueue("q", nil)
		busDone(w, err)
		_, err = r.ReceiveMessages(w.ctx(), 1, nil)
		busWants(w, what+", receive", err, azservicebus.CodeUnauthorizedAccess)
	}
}

func busFanOut(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one", "two")
	w.busSend("t", &azservicebus.Message{Body: []byte("a"), MessageID: new("id"), ApplicationProperties: map[string]any{"p": "x"}})
	for _, name := range []string{"one", "two"} {
		m := busOne(w, busSubscriber(w, name, nil))
		w.check(name, fmt.Sprint(string(m.Body), m.MessageID, m.ApplicationProperties), "aidmap[p:x]")
	}
}

func busSubscriptionsApart(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one", "two")
	busSendText(w, "t", "a")
	one, two := busSubscriber(w, "one", nil), busSubscriber(w, "two", nil)
	busDone(w, one.CompleteMessage(w.ctx(), busOne(w, one), nil))
	busDone(w, two.AbandonMessage(w.ctx(), busOne(w, two), nil))
	w.check("left in one", len(busPeek(w, one)), 0)
	w.check("delivery count in two", busOne(w, two).DeliveryCount, 2)
}

func busTopicNumber(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one")
	busSendText(w, "t", "a", "b")
	one := busSubscriber(w, "one", nil)
	m := w.busReceive(one, 2)[1]
	w.check("number at the topic", *m.EnqueuedSequenceNumber, 2)
	busDone(w, one.DeadLetterMessage(w.ctx(), m, nil))
	dead := busOne(w, busSubscriber(w, "one", &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter}))
	w.check("number in the dead-letter queue", *dead.SequenceNumber, 1)
	w.check("number at the topic, dead-lettered", *dead.EnqueuedSequenceNumber, 2)
}

func busNoSubscription(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{})
	busSendText(w, "t", "a") // is accepted
}

func busUnknownSubscription(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one")
	_, err := busSubscriber(w, "nobody", nil).ReceiveMessages(w.ctx(), 1, nil)
	busWants(w, "unknown subscription", err, azservicebus.CodeNotFound)
	r, err := w.serviceBus().NewReceiverForSubscription("nowhere", "one", nil)
	busDone(w, err)
	w.closing("receiver", r.Close)
	_, err = r.ReceiveMessages(w.ctx(), 1, nil)
	busWants(w, "unknown topic", err, azservicebus.CodeNotFound)
}

func busSendToSubscription(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one")
	err := busSender(w, "t/Subscriptions/one").SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("a")}, nil)
	busCondition(w, "send", err, amqp.ErrCondNotAllowed, "can't be sent to")
}

func busLockHides(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a", "b")
	w.check("first receiver", string(busOne(w, w.busReceiver("q", nil)).Body), "a")
	w.check("second receiver", string(busOne(w, w.busReceiver("q", nil)).Body), "b")
}

func busComplete(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a", "b")
	r := w.busReceiver("q", nil)
	busDone(w, r.CompleteMessage(w.ctx(), busOne(w, r), nil))
	w.check("left", busBodies(busPeek(w, r)), "b")
}

func busAbandon(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a", "b")
	r := w.busReceiver("q", nil)
	for count := 1; count <= 3; count++ {
		m := busOne(w, r)
		w.check("message", string(m.Body), "a") // before those that arrived later
		w.check("delivery count", m.DeliveryCount, count)
		busDone(w, r.AbandonMessage(w.ctx(), m, nil))
	}
}

func busAbandonProperties(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	w.busSend("q", &azservicebus.Message{Body: []byte("a"), ApplicationProperties: map[string]any{"kept": "x", "changed": "y"}})
	r := w.busReceiver("q", nil)
	change := map[string]any{"changed": int64(7), "new": true}
	busDone(w, r.AbandonMessage(w.ctx(), busOne(w, r), &azservicebus.AbandonMessageOptions{PropertiesToModify: change}))
	w.check("properties", busOne(w, r).ApplicationProperties, "map[changed:7 kept:x new:true]")
}

// busLockDuration waits for the end of the shortest lock that there is.
func busLockDuration(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{LockDuration: 5 * time.Second}})
	busSendText(w, "q", "a")
	first := busOne(w, w.busReceiver("q", nil))
	again := busOne(w, w.busReceiver("q", nil))
	w.check("delivery count", again.DeliveryCount, 2)
	w.check("the first lock is over", again.LockedUntil.After(*first.LockedUntil), true)
}

func busLockLost(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	for what, settle := range map[string]func(*azservicebus.ReceivedMessage) error{
		"complete":    func(m *azservicebus.ReceivedMessage) error { return r.CompleteMessage(w.ctx(), m, nil) },
		"abandon":     func(m *azservicebus.ReceivedMessage) error { return r.AbandonMessage(w.ctx(), m, nil) },
		"defer":       func(m *azservicebus.ReceivedMessage) error { return r.DeferMessage(w.ctx(), m, nil) },
		"dead-letter": func(m *azservicebus.ReceivedMessage) error { return r.DeadLetterMessage(w.ctx(), m, nil) },
		"renew":       func(m *azservicebus.ReceivedMessage) error { return r.RenewMessageLock(w.ctx(), m, nil) },
	} {
		m := busOne(w, r)
		busExpireLocks(w)
		busWants(w, what, settle(m), azservicebus.CodeLockLost)
	}
	if m := busOne(w, r); m.DeliveryCount != 6 {
		t.Errorf("delivery count %d after 5 locks that ended", m.DeliveryCount)
	}
}

func busRenew(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	m := busOne(w, r)
	before := *m.LockedUntil
	w.eventually("the lock lasts longer", func() bool {
		busDone(w, r.RenewMessageLock(w.ctx(), m, nil))
		return m.LockedUntil.After(before)
	})
	busDone(w, r.CompleteMessage(w.ctx(), m, nil))
}

func busRenewSettled(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	m := busOne(w, r)
	busDone(w, r.CompleteMessage(w.ctx(), m, nil))
	busWants(w, "renew", r.RenewMessageLock(w.ctx(), m, nil), azservicebus.CodeLockLost)
}

func busSettleElsewhere(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "completed", "abandoned", "dead", "deferred")
	first := w.busReceiver("q", nil)
	got := w.busReceive(first, 4)
	busDone(w, first.Close(w.ctx()))
	other := w.busReceiver("q", nil)
	busDone(w, other.CompleteMessage(w.ctx(), got[0], nil))
	busDone(w, other.AbandonMessage(w.ctx(), got[1], &azservicebus.AbandonMessageOptions{PropertiesToModify: map[string]any{"p": "x"}}))
	busDone(w, other.DeadLetterMessage(w.ctx(), got[2], &azservicebus.DeadLetterOptions{Reason: new("why"), ErrorDescription: new("because")}))
	busDone(w, other.DeferMessage(w.ctx(), got[3], nil))

	left := busPeek(w, other)
	w.check("left", busBodies(left), "abandoned deferred")
	w.check("abandoned", fmt.Sprint(left[0].DeliveryCount, left[0].ApplicationProperties), "2 map[p:x]")
	w.check("state", left[1].State, azservicebus.MessageStateDeferred)
	dead := busOne(w, busDeadLetters(w))
	w.check("dead-lettered", fmt.Sprint(*dead.DeadLetterReason, *dead.DeadLetterErrorDescription), "whybecause")
}

func busLockOutlivesConnection(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a", "b")
	var conn *websocket.Conn
	client := busOverWebSocket(w, func(made *websocket.Conn) { conn = made })
	r, err := client.NewReceiverForQueue("q", nil)
	busDone(w, err)
	m := busOne(w, r)
	busDone(w, conn.CloseNow())
	other := w.busReceiver("q", nil)
	w.check("still locked", string(busOne(w, other).Body), "b")
	busDone(w, other.CompleteMessage(w.ctx(), &azservicebus.ReceivedMessage{LockToken: m.LockToken}, nil))
	w.check("left", busBodies(busPeek(w, other)), "b")
}

func busReleased(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{MaxDeliveryCount: 1}})
	idle := w.busReceiver("q", nil)
	busPeek(w, idle) // attaches
	ctx, cancel := context.WithTimeout(w.ctx(), 50*time.Millisecond)
	defer cancel()
	if got, err := idle.ReceiveMessages(ctx, 5, nil); err == nil { // its credit stays
		t.Fatalf("received %d messages from an empty queue", len(got))
	}
	busSendText(w, "q", "a", "b", "c")
	for _, m := range w.busReceive(w.busReceiver("q", nil), 3) {
		w.check("delivery count", m.DeliveryCount, 1)
	}
}

func busReceiveAndDelete(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a", "b", "c")
	r := w.busReceiver("q", &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	got := w.busReceive(r, 2)
	w.check("received", busBodies(got), "a b")
	w.check("delivery count", got[0].DeliveryCount, 1)
	w.check("lock", got[0].LockedUntil == nil, true)
	busDone(w, r.Close(w.ctx()))
	w.check("left", busBodies(busPeek(w, w.busReceiver("q", nil))), "c")
}

// busDeferred sends a message and defers it, and returns its number.
func busDeferred(w *world, r *azservicebus.Receiver, opts *azservicebus.DeferMessageOptions) int64 {
	w.t.Helper()
	busSendText(w, "q", "deferred")
	m := busOne(w, r)
	busDone(w, r.DeferMessage(w.ctx(), m, opts))
	return *m.SequenceNumber
}

func busReceiveDeferred(w *world, r *azservicebus.Receiver, seq int64) *azservicebus.ReceivedMessage {
	w.t.Helper()
	got, err := r.ReceiveDeferredMessages(w.ctx(), []int64{seq}, nil)
	busDone(w, err)
	if len(got) != 1 {
		w.t.Fatalf("%d deferred messages", len(got))
	}
	return got[0]
}

func busDefer(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	r := w.busReceiver("q", nil)
	seq := busDeferred(w, r, nil)
	busSendText(w, "q", "next")
	w.check("next", string(busOne(w, r).Body), "next")
	m := busReceiveDeferred(w, r, seq)
	w.check("deferred", fmt.Sprint(string(m.Body), *m.SequenceNumber, m.LockedUntil != nil), "deferred1 true")
	busDone(w, r.CompleteMessage(w.ctx(), m, nil))
	w.check("left", busBodies(busPeek(w, r)), "next")
}

func busDeferProperties(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	r := w.busReceiver("q", nil)
	seq := busDeferred(w, r, &azservicebus.DeferMessageOptions{PropertiesToModify: map[string]any{"why": "later"}})
	w.check("properties", busReceiveDeferred(w, r, seq).ApplicationProperties, "map[why:later]")
}

func busAbandonDeferred(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	r := w.busReceiver("q", nil)
	seq := busDeferred(w, r, nil)
	busDone(w, r.AbandonMessage(w.ctx(), busReceiveDeferred(w, r, seq), nil))
	busSendText(w, "q", "next")
	w.check("next", string(busOne(w, r).Body), "next")
	m := busReceiveDeferred(w, r, seq)
	w.check("delivery count", m.DeliveryCount, 2)
	busDone(w, r.DeadLetterMessage(w.ctx(), m, nil))
	w.check("dead-lettered", busBodies(busPeek(w, busDeadLetters(w))), "deferred")
}

func busDeleteDeferred(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	seq := busDeferred(w, w.busReceiver("q", nil), nil)
	r := w.busReceiver("q", &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	w.check("deferred", string(busReceiveDeferred(w, r, seq).Body), "deferred")
	w.check("left", len(busPeek(w, r)), 0)
}

func busDeferredUnknown(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	r := w.busReceiver("q", nil)
	seq := busDeferred(w, r, nil)
	busSendText(w, "q", "active")
	for _, seqs := range [][]int64{{99}, {seq, 99}, {seq + 1}} {
		got, err := r.ReceiveDeferredMessages(w.ctx(), seqs, nil)
		busWants(w, fmt.Sprint(seqs, len(got)), err, azservicebus.CodeNotFound)
	}
	w.check("still deferred", string(busReceiveDeferred(w, r, seq).Body), "deferred")
	_, err := r.ReceiveDeferredMessages(w.ctx(), []int64{seq}, nil)
	busWants(w, "a locked one", err, azservicebus.CodeNotFound)
}

// busShortLived makes a queue whose messages expire, and a receiver that is
// attached before there are any.
func busShortLived(w *world) *azservicebus.Receiver {
	w.t.Helper()
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{DefaultTTL: time.Second, DeadLetterOnExpiry: true}})
	r := w.busReceiver("q", nil)
	busPeek(w, r)
	return r
}

func busDeferredExpires(_ *testing.T, w *world) {
	r := busShortLived(w)
	seq := busDeferred(w, r, nil)
	busSendText(w, "q", "later")
	dead := busDeadLetters(w)
	m := busOne(w, dead) // and so the time of the deferred one is over
	w.check("expired by itself", string(m.Body), "later")
	w.check("still deferred", busBodies(busPeek(w, r)), "deferred")
	_, err := r.ReceiveDeferredMessages(w.ctx(), []int64{seq}, nil)
	busWants(w, "receive", err, azservicebus.CodeNotFound)
	m = busOne(w, dead)
	w.check("expired", fmt.Sprint(string(m.Body), *m.DeadLetterReason), "deferredTTLExpiredException")
}

func busDeadLetter(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	w.busSend("q", &azservicebus.Message{Body: []byte("a"), MessageID: new("id"), ApplicationProperties: map[string]any{"p": "x"}})
	r := w.busReceiver("q", nil)
	busDone(w, r.DeadLetterMessage(w.ctx(), busOne(w, r), &azservicebus.DeadLetterOptions{
		Reason: new("why"), ErrorDescription: new("because"), PropertiesToModify: map[string]any{"new": int64(1)},
	}))
	w.check("left", len(busPeek(w, r)), 0)
	m := busOne(w, busDeadLetters(w))
	w.check("reason", *m.DeadLetterReason, "why")
	w.check("description", *m.DeadLetterErrorDescription, "because")
	w.check("message", fmt.Sprint(string(m.Body), m.MessageID), "aid")
	w.check("properties", fmt.Sprint(m.ApplicationProperties["p"], m.ApplicationProperties["new"]), "x1")
}

// busExceeded takes a message that was delivered twice from the dead-letter queue.
func busExceeded(w *world) {
	w.t.Helper()
	m := busOne(w, busDeadLetters(w))
	w.check("reason", *m.DeadLetterReason, "MaxDeliveryCountExceeded")
	w.check("description", *m.DeadLetterErrorDescription, "Message could not be consumed after 2 delivery attempts.")
	w.check("message", string(m.Body), "a")
}

func busAbandonTooOften(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{MaxDeliveryCount: 2}})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	for range 2 {
		busDone(w, r.AbandonMessage(w.ctx(), busOne(w, r), nil))
	}
	busExceeded(w)
}

func busExpireTooOften(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{MaxDeliveryCount: 2}})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	for range 2 {
		busOne(w, r)
		busExpireLocks(w)
	}
	busExceeded(w)
}

func busDeadLetterCounts(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{MaxDeliveryCount: 2}})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	busDone(w, r.DeadLetterMessage(w.ctx(), busOne(w, r), nil))
	dead := busDeadLetters(w)
	for range 5 {
		busDone(w, dead.AbandonMessage(w.ctx(), busOne(w, dead), nil))
	}
	busDone(w, dead.CompleteMessage(w.ctx(), busOne(w, dead), nil))
	w.check("left", len(busPeek(w, dead)), 0)
}

func busResubmit(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	w.busSend("q", &azservicebus.Message{Body: []byte("a"), MessageID: new("id"), ApplicationProperties: map[string]any{"p": "x"}})
	r := w.busReceiver("q", nil)
	busDone(w, r.DeadLetterMessage(w.ctx(), busOne(w, r), nil))
	dead := busDeadLetters(w)
	m := busOne(w, dead)
	w.busSend("q", m.Message())
	busDone(w, dead.CompleteMessage(w.ctx(), m, nil))
	m = busOne(w, r)
	w.check("message", fmt.Sprint(string(m.Body), m.MessageID, m.ApplicationProperties["p"]), "aidx")
	w.check("delivery count and number", fmt.Sprint(m.DeliveryCount, *m.SequenceNumber), "1 2")
	w.check("left in the dead-letter queue", len(busPeek(w, dead)), 0)
}

func busDeadLetterTwice(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	busDone(w, r.DeadLetterMessage(w.ctx(), busOne(w, r), nil))
	dead := busDeadLetters(w)
	if err := dead.DeadLetterMessage(w.ctx(), busOne(w, dead), nil); err == nil {
		t.Error("a dead-lettered message was dead-lettered")
	}
	w.check("left", busBodies(busPeek(w, dead)), "a")
}

func busSendToDeadLetter(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	err := busSender(w, "q/$DeadLetterQueue").SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("a")}, nil)
	busCondition(w, "send", err, amqp.ErrCondNotAllowed, "can't be sent to")
}

func busDeadLetterTTL(_ *testing.T, w *world) {
	r := busShortLived(w)
	busSendText(w, "q", "first")
	busDone(w, r.DeadLetterMessage(w.ctx(), busOne(w, r), nil))
	busSendText(w, "q", "second")
	dead := busDeadLetters(w)
	w.eventually("the second message expires", func() bool { return busBodies(busPeek(w, dead)) == "first second" })
}

func busSubscriptionDeadLetter(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one", "two")
	busSendText(w, "t", "a")
	one := busSubscriber(w, "one", nil)
	busDone(w, one.DeadLetterMessage(w.ctx(), busOne(w, one), &azservicebus.DeadLetterOptions{Reason: new("why")}))
	opts := &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter}
	w.check("of one", *busOne(w, busSubscriber(w, "one", opts)).DeadLetterReason, "why")
	w.check("of two", len(busPeek(w, busSubscriber(w, "two", opts))), 0)
}

func busExpires(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	w.busSend("q", &azservicebus.Message{Body: []byte("short"), TimeToLive: new(100 * time.Millisecond)})
	busSendText(w, "q", "long")
	r := w.busReceiver("q", nil)
	w.eventually("the message expires", func() bool { return busBodies(busPeek(w, r)) == "long" })
	w.check("received", string(busOne(w, r).Body), "long")
	w.check("dead-lettered", len(busPeek(w, busDeadLetters(w))), 0)
}

func busExpiresToDeadLetter(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{DeadLetterOnExpiry: true}})
	w.busSend("q", &azservicebus.Message{Body: []byte("a"), TimeToLive: new(100 * time.Millisecond)})
	m := busOne(w, busDeadLetters(w))
	w.check("reason", *m.DeadLetterReason, "TTLExpiredException")
	w.check("description", *m.DeadLetterErrorDescription, "The message expired and was dead lettered.")
	w.check("message", string(m.Body), "a")
	w.check("left", len(busPeek(w, w.busReceiver("q", nil))), 0)
}

func busTTLCeiling(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{Delivery: emulator.Delivery{DefaultTTL: time.Hour}})
	for _, ttl := range []*time.Duration{nil, new(2 * time.Hour), new(time.Minute)} {
		w.busSend("q", &azservicebus.Message{Body: []byte("a"), TimeToLive: ttl})
	}
	got := w.busReceive(w.busReceiver("q", nil), 3)
	for i, want := range []time.Duration{time.Hour, time.Hour, time.Minute} {
		w.check("time to live", *got[i].TimeToLive, want)
		w.check("expires", got[i].ExpiresAt.Equal(got[i].EnqueuedTime.Add(want)), true)
	}
}

func busLockedExpires(_ *testing.T, w *world) {
	r := busShortLived(w)
	busSendText(w, "q", "completed", "abandoned")
	got := w.busReceive(r, 2)
	busSendText(w, "q", "later")
	dead := busDeadLetters(w)
	w.check("expired", string(busOne(w, dead).Body), "later") // and so the time of the others is over
	busDone(w, r.CompleteMessage(w.ctx(), got[0], nil))
	busDone(w, r.AbandonMessage(w.ctx(), got[1], nil))
	m := busOne(w, dead)
	w.check("expired", fmt.Sprint(string(m.Body), *m.DeadLetterReason), "abandonedTTLExpiredException")
	w.check("left", len(busPeek(w, r)), 0)
}

func busScheduled(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	s, r := busSender(w, "q"), w.busReceiver("q", nil)
	later := time.Now().Add(time.Hour).Truncate(time.Millisecond).UTC()
	numbers, err := s.ScheduleMessages(w.ctx(), []*azservicebus.Message{{Body: []byte("a")}}, later, nil)
	busDone(w, err)
	busDone(w, s.SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("b"), ScheduledEnqueueTime: &later}, nil))
	busSendText(w, "q", "now")
	w.check("available", string(busOne(w, r).Body), "now")
	waiting := busPeek(w, r)[:2]
	w.check("waiting", busBodies(waiting), "a b")
	w.check("number", numbers[0], *waiting[0].SequenceNumber)
	for _, m := range waiting {
		w.check("state", m.State, azservicebus.MessageStateScheduled)
		w.check("scheduled for", m.ScheduledEnqueueTime.UTC(), later)
	}
}

func busScheduledArrives(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	s, r := busSender(w, "q"), w.busReceiver("q", nil)
	at, number := busOvertaken(w, s, r)
	w.eventually("the message arrives", func() bool {
		shown := busPeek(w, r)
		return len(shown) == 2 && shown[0].State == azservicebus.MessageStateActive
	})
	got := w.busReceive(r, 2)
	w.check("order", busBodies(got), "sent scheduled")
	if *got[1].SequenceNumber <= max(number, *got[0].SequenceNumber) {
		t.Errorf("number %d, %d before it arrived, %d before it", *got[1].SequenceNumber, number, *got[0].SequenceNumber)
	}
	if got[1].EnqueuedTime.Before(at.Truncate(time.Millisecond)) {
		t.Errorf("enqueued at %v, scheduled for %v", got[1].EnqueuedTime, at)
	}
}

// busOvertaken schedules a message and sends another before its time, however slow
// the machine is. It returns the time and the number of the scheduled one.
func busOvertaken(w *world, s *azservicebus.Sender, r *azservicebus.Receiver) (at time.Time, number int64) {
	w.t.Helper()
	for delay := 200 * time.Millisecond; ; delay *= 2 {
		at = time.Now().Add(delay)
		numbers, err := s.ScheduleMessages(w.ctx(), []*azservicebus.Message{{Body: []byte("scheduled")}}, at, nil)
		busDone(w, err)
		busDone(w, s.SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("sent")}, nil))
		if busPeek(w, r)[0].State == azservicebus.MessageStateScheduled {
			return at, numbers[0]
		}
		for _, m := range w.busReceive(r, 2) {
			busDone(w, r.CompleteMessage(w.ctx(), m, nil))
		}
	}
}

func busCancelScheduled(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	s := busSender(w, "q")
	msgs := []*azservicebus.Message{{Body: []byte("a")}, {Body: []byte("b")}, {Body: []byte("c")}}
	numbers, err := s.ScheduleMessages(w.ctx(), msgs, time.Now().Add(time.Hour), nil)
	busDone(w, err)
	busDone(w, s.CancelScheduledMessages(w.ctx(), []int64{numbers[0], numbers[2]}, nil))
	w.check("left", busBodies(busPeek(w, w.busReceiver("q", nil))), "b")
}

func busCancelUnknown(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a")
	s := busSender(w, "q")
	busWants(w, "unknown", s.CancelScheduledMessages(w.ctx(), []int64{99}, nil), azservicebus.CodeNotFound)
	busWants(w, "not scheduled", s.CancelScheduledMessages(w.ctx(), []int64{1}, nil), azservicebus.CodeNotFound)
}

func busScheduleOnTopic(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one", "two")
	s := busSender(w, "t")
	soon, later := time.Now().Add(100*time.Millisecond), time.Now().Add(time.Hour)
	_, err := s.ScheduleMessages(w.ctx(), []*azservicebus.Message{{Body: []byte("soon")}}, soon, nil)
	busDone(w, err)
	numbers, err := s.ScheduleMessages(w.ctx(), []*azservicebus.Message{{Body: []byte("never")}}, later, nil)
	busDone(w, err)
	busDone(w, s.CancelScheduledMessages(w.ctx(), numbers, nil))
	for _, name := range []string{"one", "two"} {
		w.check(name, string(busOne(w, busSubscriber(w, name, nil)).Body), "soon")
	}
}

func busWithID(id, body string) *azservicebus.Message {
	return &azservicebus.Message{MessageID: &id, Body: []byte(body)}
}

func busDuplicate(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{DuplicateWindow: time.Minute})
	w.busSend("q", busWithID("1", "a"), busWithID("1", "b"), busWithID("2", "c"))
	busSendText(w, "q", "no ID", "no ID")
	w.check("messages", busBodies(w.busReceive(w.busReceiver("q", nil), 4)), "a c no ID no ID")
}

func busDuplicateAfterComplete(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{DuplicateWindow: time.Minute})
	r := w.busReceiver("q", nil)
	w.busSend("q", busWithID("1", "a"))
	busDone(w, r.CompleteMessage(w.ctx(), busOne(w, r), nil))
	w.busSend("q", busWithID("1", "b"), busWithID("2", "c"))
	w.check("next", string(busOne(w, r).Body), "c")
}

func busDuplicateOnTopic(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{DuplicateWindow: time.Minute}, emulator.Delivery{}, "one", "two")
	w.busSend("t", busWithID("1", "a"), busWithID("1", "b"), busWithID("2", "c"))
	for _, name := range []string{"one", "two"} {
		w.check(name, busBodies(w.busReceive(busSubscriber(w, name, nil), 2)), "a c")
	}
}

func busDuplicateScheduled(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{DuplicateWindow: time.Minute})
	later := time.Now().Add(time.Hour)
	s := busSender(w, "q")
	_, err := s.ScheduleMessages(w.ctx(), []*azservicebus.Message{busWithID("1", "scheduled")}, later, nil)
	busDone(w, err)
	w.busSend("q", busWithID("1", "dropped"), busWithID("2", "sent"))
	_, err = s.ScheduleMessages(w.ctx(), []*azservicebus.Message{busWithID("2", "dropped")}, later, nil)
	busDone(w, err)
	w.check("messages", busBodies(busPeek(w, w.busReceiver("q", nil))), "scheduled sent")
}

func busNoDetection(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	w.busSend("q", busWithID("1", "a"), busWithID("1", "b"))
	w.check("messages", busBodies(w.busReceive(w.busReceiver("q", nil), 2)), "a b")
}

func busWindowBounds(t *testing.T, _ *world) {
	for window, fits := range map[string]bool{"PT20S": true, "P7D": true, "PT19S": false, "P7DT1S": false} {
		_, err := emulator.ParseConfig("case.yaml", fmt.Appendf(nil, `
UserConfig:
  Namespaces:
    - Queues:
        - Name: q
          Properties: {RequiresDuplicateDetection: true, DuplicateDetectionHistoryTimeWindow: %s}
`, window))
		if (err == nil) != fits {
			t.Errorf("window %s: %v", window, err)
		}
	}
}

func busPeekGoesOn(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a", "b", "c", "d", "e")
	r := w.busReceiver("q", nil)
	for _, want := range []string{"a b", "c d", "e", ""} {
		got, err := r.PeekMessages(w.ctx(), 2, nil)
		busDone(w, err)
		w.check("peeked", busBodies(got), want)
	}
	got, err := r.PeekMessages(w.ctx(), 2, &azservicebus.PeekMessagesOptions{FromSequenceNumber: new(int64(2))})
	busDone(w, err)
	w.check("from number 2", busBodies(got), "b c")
}

func busPeekStates(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	r := w.busReceiver("q", nil)
	busDeferred(w, r, nil)
	busSendText(w, "q", "locked", "active")
	busOne(w, r)
	later := time.Now().Add(time.Hour)
	w.busSend("q", &azservicebus.Message{Body: []byte("scheduled"), ScheduledEnqueueTime: &later})
	states := map[string]azservicebus.MessageState{
		"deferred":  azservicebus.MessageStateDeferred,
		"locked":    azservicebus.MessageStateActive,
		"active":    azservicebus.MessageStateActive,
		"scheduled": azservicebus.MessageStateScheduled,
	}
	for _, m := range busPeek(w, r) {
		w.check(string(m.Body), m.State, states[string(m.Body)])
		w.check("lock of "+string(m.Body), m.LockedUntil == nil, true)
		delete(states, string(m.Body))
	}
	w.check("not shown", len(states), 0)
}

func busPeekLeaves(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busSendText(w, "q", "a")
	r := w.busReceiver("q", nil)
	busPeek(w, r)
	busPeek(w, r)
	w.check("delivery count", busOne(w, w.busReceiver("q", nil)).DeliveryCount, 1)
}

func busPeekSubscription(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one")
	later := time.Now().Add(time.Hour)
	w.busSend("t", &azservicebus.Message{Body: []byte("scheduled"), ScheduledEnqueueTime: &later})
	busSendText(w, "t", "active")
	w.check("shown", busBodies(busPeek(w, busSubscriber(w, "one", nil))), "active")
}

func busBatch(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	s := busSender(w, "q")
	batch, err := s.NewMessageBatch(w.ctx(), nil)
	busDone(w, err)
	const n = 100
	for i := range n {
		busDone(w, batch.AddMessage(busWithID(fmt.Sprint("id-", i), fmt.Sprint(i)), nil))
	}
	busDone(w, s.SendMessageBatch(w.ctx(), batch, nil))
	for i, m := range w.busReceive(w.busReceiver("q", nil), n) {
		if string(m.Body) != fmt.Sprint(i) || m.MessageID != fmt.Sprint("id-", i) || *m.SequenceNumber != int64(i+1) {
			t.Fatalf("position %d: message %s, ID %s, number %d", i, m.Body, m.MessageID, *m.SequenceNumber)
		}
	}
}

func busBatchFull(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	s := busSender(w, "q")
	batch, err := s.NewMessageBatch(w.ctx(), nil)
	busDone(w, err)
	m := &azservicebus.Message{Body: bytes.Repeat([]byte("x"), 50<<10)}
	for err == nil {
		err = batch.AddMessage(m, nil)
	}
	if !errors.Is(err, azservicebus.ErrMessageTooLarge) {
		t.Fatal(err)
	}
	w.check("messages of 50 KB that fit", batch.NumMessages(), 5)
	busDone(w, s.SendMessageBatch(w.ctx(), batch, nil))
	w.check("messages that arrive", len(w.busReceive(w.busReceiver("q", nil), 5)), 5)
}

func busTooLarge(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	s := busSender(w, "q")
	busDone(w, s.SendMessage(w.ctx(), &azservicebus.Message{Body: make([]byte, 255<<10)}, nil))
	err := s.SendMessage(w.ctx(), &azservicebus.Message{Body: make([]byte, 256<<10)}, nil)
	if !errors.Is(err, azservicebus.ErrMessageTooLarge) {
		t.Errorf("a message above the limit: %v", err)
	}
	busDone(w, s.SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("small")}, nil)) // the link is still there
	w.check("messages", len(w.busReceive(w.busReceiver("q", nil), 2)), 2)
}

// busNamespace is a connection string as the cloud has it, without port.
func busNamespace(w *world) string {
	w.t.Helper()
	policy, key := busKey(w)
	return fmt.Sprintf("Endpoint=sb://%s/;SharedAccessKeyName=%s;SharedAccessKey=%s", w.emulator().HubName(), policy, key)
}

func busClient(w *world, opts *azservicebus.ClientOptions) *azservicebus.Client {
	w.t.Helper()
	client, err := azservicebus.NewClientFromConnectionString(busNamespace(w), opts)
	busDone(w, err)
	w.closing("client", client.Close)
	return client
}

func busTLS(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busRoundTrip(w, busClient(w, &azservicebus.ClientOptions{TLSConfig: w.tls(), CustomEndpoint: w.emulator().AMQPSAddr()}))
}

// busOverWebSocket is a client that tells of each connection that it makes.
func busOverWebSocket(w *world, made func(*websocket.Conn)) *azservicebus.Client {
	w.t.Helper()
	return busClient(w, &azservicebus.ClientOptions{NewWebSocketConn: func(ctx context.Context, args azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
		return busDialWebSocket(ctx, w, args.Host, made)
	}})
}

// busDialWebSocket opens a WebSocket on the path that an SDK asks for.
func busDialWebSocket(ctx context.Context, w *world, address string, made func(*websocket.Conn)) (net.Conn, error) {
	to, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	to.Host = w.emulator().HTTPSAddr()
	ws, _, err := websocket.Dial(ctx, to.String(), &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: &http.Transport{TLSClientConfig: w.tls()}},
		Subprotocols: []string{"amqp"},
	})
	if err != nil {
		return nil, err
	}
	made(ws)
	return websocket.NetConn(context.WithoutCancel(ctx), ws, websocket.MessageBinary), nil
}

func busWebSocket(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	busRoundTrip(w, busOverWebSocket(w, func(*websocket.Conn) {}))
}

// busSession connects to the namespace with a policy's key.
func busSession(w *world) *amqp.Session {
	w.t.Helper()
	policy, key := busKey(w)
	return w.amqp(nil, func(o *amqp.ConnOptions) { o.SASLType = amqp.SASLTypePlain(policy, key) })
}

func busPlain(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	session := busSession(w)
	busDone(w, w.sender(session, "q", nil).Send(w.ctx(), amqp.NewMessage([]byte("a")), nil))
	r := w.receiver(session, "q", nil)
	m := w.receive(r)
	w.check("body", string(m.GetData()), "a")
	busDone(w, r.AcceptMessage(w.ctx(), m))
	w.check("left", len(busPeek(w, w.busReceiver("q", nil))), 0)
}

func busAcceptSession(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	client := w.serviceBus()
	_, err := client.AcceptSessionForQueue(w.ctx(), "q", "s", nil)
	busCondition(w, "a session", err, amqp.ErrCondNotAllowed, "no sessions")
	_, err = client.AcceptNextSessionForQueue(w.ctx(), "q", nil)
	busCondition(w, "the next session", err, amqp.ErrCondNotAllowed, "no sessions")
}

func busListSessions(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	client, err := azservicebus.NewClientFromConnectionString(w.emulator().ServiceBusConnectionString(), &azservicebus.ClientOptions{
		RetryOptions: azservicebus.RetryOptions{MaxRetries: -1},
	})
	busDone(w, err)
	w.closing("client", client.Close)
	_, err = client.NewListSessionsForQueuePager("q", nil).NextPage(w.ctx())
	if err == nil || !strings.Contains(err.Error(), "com.microsoft:get-message-sessions") {
		t.Errorf("list: %v", err)
	}
}

// busConfigRefused fails the case unless a configuration is refused, with the
// line of what is wrong and the text.
func busConfigRefused(t *testing.T, yaml string, line int, text string) {
	t.Helper()
	_, err := emulator.ParseConfig("case.yaml", []byte(strings.TrimPrefix(yaml, "\n")))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("case.yaml:%d:", line)) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want an error in line %d with %q", err, line, text)
	}
}

func busSessionConfig(t *testing.T, _ *world) {
	busConfigRefused(t, `
UserConfig:
  Namespaces:
    - Queues:
        - Name: q
          Properties:
            RequiresSession: true
`, 6, "sessions are not emulated")
}

func busAddRule(_ *testing.T, w *world) {
	busTopic(w, emulator.Topic{}, emulator.Delivery{}, "one")
	session, node := busSession(w), "t/Subscriptions/one/$management"
	replies := w.receiver(session, node, &amqp.ReceiverOptions{TargetAddress: "replies"})
	request := &amqp.Message{
		Properties:            &amqp.MessageProperties{MessageID: "1", ReplyTo: new("replies")},
		ApplicationProperties: map[string]any{"operation": "com.microsoft:add-rule"},
		Value: map[string]any{
			"rule-name":        "r",
			"rule-description": map[string]any{"sql-filter": map[string]any{"expression": "a = 1"}},
		},
	}
	busDone(w, w.sender(session, node, nil).Send(w.ctx(), request, nil))
	reply := w.receive(replies)
	w.check("status", reply.ApplicationProperties["statusCode"], http.StatusNotImplemented)
	w.check("description", reply.ApplicationProperties["statusDescription"], "the emulator has no operation com.microsoft:add-rule on t/Subscriptions/one")
}

func busFilterConfig(t *testing.T, _ *world) {
	const rule = `
UserConfig:
  Namespaces:
    - Topics:
        - Name: t
          Subscriptions:
            - Name: s
              Rules:
                - Name: r
                  Properties:
                    FilterType: %s
`
	busConfigRefused(t, fmt.Sprintf(rule, "Correlation"), 8, "is not emulated")
	busConfigRefused(t, fmt.Sprintf(rule, "Sql\n                    SqlFilter: {SqlExpression: a = 1}"), 8, "is not emulated")
}

func busForwardConfig(t *testing.T, _ *world) {
	const queue = `
UserConfig:
  Namespaces:
    - Queues:
        - Name: q
          Properties:
            %s: other
`
	busConfigRefused(t, fmt.Sprintf(queue, "ForwardTo"), 6, "forwarding is not emulated")
	busConfigRefused(t, fmt.Sprintf(queue, "ForwardDeadLetteredMessagesTo"), 6, "forwarding is not emulated")
}

func busTransferQueue(_ *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	r := w.busReceiver("q", &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueTransfer})
	_, err := r.ReceiveMessages(w.ctx(), 1, nil)
	busWants(w, "receive", err, azservicebus.CodeNotFound)
}

// busTransaction attaches to a coordinator, which go-amqp can't: the bytes are
// SASL ANONYMOUS, open, begin, and an attach whose target has the descriptor
// 0x30.
func busTransaction(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	conn, err := net.Dial("tcp", w.emulator().AMQPAddr())
	busDone(w, err)
	defer conn.Close()
	deadline, _ := w.ctx().Deadline()
	busDone(w, conn.SetDeadline(deadline))
	_, err = conn.Write([]byte("AMQP\x03\x01\x00\x00" +
		"\x00\x00\x00\x19\x02\x01\x00\x00\x00\x53\x41\xc0\x0c\x01\xa3\x09ANONYMOUS" +
		"AMQP\x00\x01\x00\x00" +
		"\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01c" +
		"\x00\x00\x00\x14\x02\x00\x00\x00\x00\x53\x11\xc0\x07\x04\x40\x43\x52\x64\x52\x64" +
		"\x00\x00\x00\x1d\x02\x00\x00\x00\x00\x53\x12\xc0\x10\x07\xa1\x01n\x43\x42\x40\x40\x40\x00\x53\x30\xc0\x02\x01\x40"))
	busDone(w, err)
	var answer []byte
	for !bytes.Contains(answer, []byte("transactions are not supported")) {
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if answer = append(answer, buf[:n]...); err != nil {
			t.Fatalf("got %q and %v", answer, err)
		}
	}
	if !bytes.Contains(answer, []byte("amqp:not-implemented")) {
		t.Errorf("got %q", answer)
	}
}

func busAdmin(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	text := strings.Replace(busNamespace(w), "sb://"+w.emulator().HubName(), "sb://"+w.emulator().HTTPSAddr(), 1)
	transport := &http.Transport{TLSClientConfig: w.tls(), DisableKeepAlives: true}
	client, err := admin.NewClientFromConnectionString(text, &admin.ClientOptions{
		ClientOptions: azcore.ClientOptions{Transport: &http.Client{Transport: transport}},
	})
	busDone(w, err)
	calls := map[string]func() error{
		"get":    func() error { _, err := client.GetQueue(w.ctx(), "q", nil); return err },
		"create": func() error { _, err := client.CreateQueue(w.ctx(), "new", nil); return err },
		"delete": func() error { _, err := client.DeleteQueue(w.ctx(), "q", nil); return err },
		"rule":   func() error { _, err := client.CreateRule(w.ctx(), "t", "s", &admin.CreateRuleOptions{}); return err },
		"list":   func() error { _, err := client.NewListQueuesPager(nil).NextPage(w.ctx()); return err },
	}
	for what, call := range calls {
		var e *azcore.ResponseError
		if err := call(); !errors.As(err, &e) || e.StatusCode != http.StatusNotImplemented || !strings.Contains(err.Error(), "not emulated") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// busCredential is one of Microsoft Entra ID.
type busCredential struct{}

// GetToken implements azcore.TokenCredential.
func (busCredential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "e30.e30.c2ln", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func busEntra(t *testing.T, w *world) {
	busQueue(w, emulator.Queue{})
	client, err := azservicebus.NewClient(w.emulator().HubName(), busCredential{}, &azservicebus.ClientOptions{
		TLSConfig: w.tls(), CustomEndpoint: w.emulator().AMQPSAddr(),
	})
	busDone(w, err)
	w.closing("client", client.Close)
	s, err := client.NewSender("q", nil)
	busDone(w, err)
	err = s.SendMessage(w.ctx(), &azservicebus.Message{Body: []byte("a")}, nil)
	busWants(w, "send", err, azservicebus.CodeUnauthorizedAccess)
	if err == nil || !strings.Contains(err.Error(), "shared access signatures only") {
		t.Errorf("send: %v", err)
	}
}
