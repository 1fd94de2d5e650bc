package conformance_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/go-amqp"
	"github.com/coder/websocket"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// Pages of the Event Hubs and IoT Hub documentation.
const (
	docsEventFeatures = "Event Hubs docs: Features and terminology in Azure Event Hubs"
	docsEventQuotas   = "Event Hubs docs: Azure Event Hubs quotas and limits"
	docsEpochs        = "Event Hubs docs: EventHubClient.CreateEpochReceiver Method"
	docsEventConfig   = "Azure/azure-event-hubs-emulator-installer: Config.json"
	docsBuiltIn       = "IoT Hub docs: Read device-to-cloud messages from the built-in endpoint"
	docsHubAccess     = "IoT Hub docs: Control access to IoT Hub by using shared access signatures"
	docsHubMessages   = "IoT Hub docs: Create and read IoT Hub messages"
	docsPositions     = "azeventhubs v2.0.2: partition_client.go, StartPosition"
	docsEventErrors   = "azeventhubs v2.0.2: internal/errors.go"
)

var eventHubs = area{
	name: "Event Hubs",
	emulated: []behaviour{
		{"Properties", "an event hub tells its name, partitions and age", "azeventhubs v2.0.2: mgmt.go", eventsHubProperties},
		{"Properties", "a partition tells what it holds", "azeventhubs v2.0.2: mgmt.go", eventsPartitionProperties},
		{"Properties", "what doesn't exist is not found", docsEventErrors, eventsUnknownProperties},

		{"Receiving", "events of a partition come in order, numbered from 0", docsEventFeatures, eventsOrder},
		{"Receiving", "an event keeps body and properties", docsEventFeatures, eventsFields},
		{"Receiving", "bodies keep their kind of section", "azeventhubs v2.0.2: amqp_message.go", eventsBodyKinds},
		{"Receiving", "events can be read again", docsEventFeatures, eventsReadAgain},
		{"Receiving", "a client without prefetch gets what it asks for", "azeventhubs v2.0.2: partition_client.go, Prefetch", eventsWithoutPrefetch},
		{"Receiving", "an unknown partition is out of range", docsEventErrors, eventsUnknownPartition},
		{"Receiving", "an unknown event hub is not found", docsEventErrors, eventsUnknownHub},
		{"Receiving", "a wrong key is unauthorized", docsEventErrors, eventsWrongKey},

		{"Start positions", "from the earliest event", docsPositions, eventsFrom("abcd", func(*eventsSent) azeventhubs.StartPosition {
			return azeventhubs.StartPosition{Earliest: new(true)}
		})},
		{"Start positions", "after a sequence number", docsPositions, eventsFrom("cd", func(s *eventsSent) azeventhubs.StartPosition {
			return azeventhubs.StartPosition{SequenceNumber: &s.events[1].SequenceNumber}
		})},
		{"Start positions", "from a sequence number on", docsPositions, eventsFrom("bcd", func(s *eventsSent) azeventhubs.StartPosition {
			return azeventhubs.StartPosition{SequenceNumber: &s.events[1].SequenceNumber, Inclusive: true}
		})},
		{"Start positions", "after an offset", docsPositions, eventsFrom("cd", func(s *eventsSent) azeventhubs.StartPosition {
			return azeventhubs.StartPosition{Offset: &s.events[1].Offset}
		})},
		{"Start positions", "from an offset on", docsPositions, eventsFrom("bcd", func(s *eventsSent) azeventhubs.StartPosition {
			return azeventhubs.StartPosition{Offset: &s.events[1].Offset, Inclusive: true}
		})},
		{"Start positions", "after an enqueued time", docsPositions, eventsFrom("cd", func(s *eventsSent) azeventhubs.StartPosition {
			return azeventhubs.StartPosition{EnqueuedTime: s.events[1].EnqueuedTime}
		})},
		{"Start positions", "from an enqueued time on", docsPositions, eventsFrom("bcd", func(s *eventsSent) azeventhubs.StartPosition {
			return azeventhubs.StartPosition{EnqueuedTime: s.events[1].EnqueuedTime, Inclusive: true}
		})},
		{"Start positions", "behind the latest event", docsPositions, eventsLatest(azeventhubs.StartPosition{Latest: new(true)})},
		{"Start positions", "behind the latest event by default", docsPositions, eventsLatest(azeventhubs.StartPosition{})},

		{"Consumer groups", "each group gets every event", docsEventFeatures, eventsGroups},
		{"Consumer groups", "an unknown group is not found", docsEventErrors, eventsUnknownGroup},
		{"Consumer groups", "five readers without owner level share a partition", docsEventQuotas, eventsFiveReaders},

		{"Owner levels", "a higher level takes the partition over", docsEpochs, eventsHigherLevel},
		{"Owner levels", "the same level takes the partition over", "Microsoft Learn, archived blogs: Event Hubs Receiver Epoch", eventsSameLevel},
		{"Owner levels", "a lower level is refused", "Microsoft Learn, archived blogs: Event Hubs Receiver Epoch", eventsLowerLevel},
		{"Owner levels", "a reader without level is refused while there is an owner", docsEpochs, eventsNoLevel},
		{"Owner levels", "an owner ends readers without level", docsEpochs, eventsOwnerEndsReaders},
		{"Owner levels", "a partition is free when its owner goes", docsEpochs, eventsOwnerGoes},
		{"Owner levels", "groups have their own owners", docsEpochs, eventsLevelsByGroup},

		{"Producing", "a batch goes to one partition, in order", docsEventFeatures, eventsBatch},
		{"Producing", "a partition can be chosen by its ID", docsEventFeatures, eventsPartitionID},
		{"Producing", "events without key spread over the partitions", docsEventFeatures, eventsSpread},
		{"Producing", "a batch takes up to 1 MB", docsEventQuotas, eventsBatchFull},
		{"Producing", "an unknown partition is out of range", docsEventErrors, eventsSendUnknownPartition},
		{"Producing", "a wrong key is unauthorized", docsEventErrors, eventsSendWrongKey},
		{"Partition keys", "events of a key share a partition and tell the key", docsEventFeatures, eventsPartitionKey},
		{"Partition keys", "events of a device share a partition, in order", docsBuiltIn, eventsOfDevices},

		{"Built-in endpoint", "device-to-cloud messages carry the hub's annotations", docsHubMessages, eventsOfHub},
		{"Built-in endpoint", "it has partitions and consumer groups of its own", docsBuiltIn, eventsBuiltInGroups},
		{"Built-in endpoint", "policies with ServiceConnect open it, others don't", docsHubAccess, eventsHubPolicies},
		{"Built-in endpoint", "the hub's policies don't send to it", docsHubAccess, eventsHubPolicySends},
		{"Built-in endpoint", "receivers on the hub's own address are redirected", "AMQP 1.0 §2.7.1, amqp:link:redirect; amenzhinsky/iothub v0.9.1: iotservice/client.go", eventsRedirect},
		{"Built-in endpoint", "SASL PLAIN with policy and key opens it", "amenzhinsky/iothub v0.9.1: eventhub/client.go", eventsPlain},
		{"Retention", "1 to 7 days", docsBuiltIn, eventsRetentionBounds},
		{"Retention", "a reader passes over what isn't kept any more", docsEventFeatures, eventsTrimmed},

		{"AMQP over TLS", "a client on the TLS port sends and receives", docsBusGuide, eventsTLS},
		{"AMQP over WebSockets", "a client on a WebSocket sends and receives", "azeventhubs v2.0.2: example_websockets_and_proxies_test.go", eventsWebSocket},
	},
	refused: []behaviour{
		{"Capture", "an event hub with capture is refused", docsEventConfig, eventsCaptureConfig},
		{"Retention of single event hubs", "an event hub with a retention is refused", docsEventConfig, eventsRetentionConfig},
		{"Publishers", "a publisher's address is not found", docsEventFeatures, eventsPublisher},
		{"Other selectors", "a selector that is no start position is refused", docsPositions, eventsSelector},
		{"Sending over HTTP", "events can't be posted", "Event Hubs docs: Send event (REST API)", eventsPost},
		{"Kafka", "a Kafka client is turned away", "AMQP 1.0 §2.2", eventsKafka},
		{"Microsoft Entra ID", "a bearer token is unauthorized", "azeventhubs v2.0.2: consumer_client.go, NewConsumerClient", eventsEntra},
	},
}

// eventsHub gives the emulator an event hub named e, beside the built-in endpoint
// of two partitions.
func eventsHub(w *world, e emulator.EventHub) {
	w.t.Helper()
	e.Name = "e"
	w.with(emulatortest.Config(&emulator.Config{
		EventHubs: []emulator.EventHub{e},
		Hub:       emulator.Hub{Partitions: 2, ConsumerGroups: []string{"console"}},
	}))
}

func eventsProducer(w *world) *azeventhubs.ProducerClient {
	w.t.Helper()
	p, err := azeventhubs.NewProducerClientFromConnectionString(w.emulator().EventHubsConnectionString(), "e", nil)
	busDone(w, err)
	w.closing("producer", p.Close)
	return p
}

// eventsSend sends a batch of events that have a body and nothing else.
func eventsSend(w *world, p *azeventhubs.ProducerClient, opts *azeventhubs.EventDataBatchOptions, bodies ...string) {
	w.t.Helper()
	batch, err := p.NewEventDataBatch(w.ctx(), opts)
	busDone(w, err)
	for _, body := range bodies {
		busDone(w, batch.AddEventData(&azeventhubs.EventData{Body: []byte(body)}, nil))
	}
	busDone(w, p.SendEventDataBatch(w.ctx(), batch, nil))
}

func eventsConsumer(w *world, group string) *azeventhubs.ConsumerClient {
	w.t.Helper()
	c, err := azeventhubs.NewConsumerClientFromConnectionString(w.emulator().EventHubsConnectionString(), "e", group, nil)
	busDone(w, err)
	w.closing("consumer", c.Close)
	return c
}

func eventsPartition(w *world, c *azeventhubs.ConsumerClient, id string, opts azeventhubs.PartitionClientOptions) *azeventhubs.PartitionClient {
	w.t.Helper()
	p, err := c.NewPartitionClient(id, &opts)
	busDone(w, err)
	w.closing("partition client", p.Close)
	return p
}

// eventsReader reads a partition of e from the beginning.
func eventsReader(w *world, group, id string, level *int64) *azeventhubs.PartitionClient {
	w.t.Helper()
	return eventsPartition(w, eventsConsumer(w, group), id, azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: new(true)}, OwnerLevel: level,
	})
}

func eventsReceive(w *world, p *azeventhubs.PartitionClient, n int) []*azeventhubs.ReceivedEventData {
	w.t.Helper()
	events, err := p.ReceiveEvents(w.ctx(), n, nil)
	busDone(w, err)
	w.check("number of events", len(events), n)
	return events
}

func eventsBodies(events []*azeventhubs.ReceivedEventData) string {
	var bodies strings.Builder
	for _, e := range events {
		bodies.Write(e.Body)
	}
	return bodies.String()
}

// eventsHeld is how many events each partition of an event hub holds.
func eventsHeld(w *world, c *azeventhubs.ConsumerClient) map[string]int64 {
	w.t.Helper()
	props, err := c.GetEventHubProperties(w.ctx(), nil)
	busDone(w, err)
	held := make(map[string]int64)
	for _, id := range props.PartitionIDs {
		p, err := c.GetPartitionProperties(w.ctx(), id, nil)
		busDone(w, err)
		if !p.IsEmpty {
			held[id] = p.LastEnqueuedSequenceNumber - p.BeginningSequenceNumber + 1
		}
	}
	return held
}

// eventsWants fails the case unless the SDK gave the error a code.
func eventsWants(w *world, what string, err error, code azeventhubs.ErrorCode) {
	w.t.Helper()
	var e *azeventhubs.Error
	if !errors.As(err, &e) || e.Code != code {
		w.t.Errorf("%s: got %v, want an error of code %s", what, err, code)
	}
}

// eventsStatus fails the case unless $management answered with a status, which the
// SDK tells in the text of the error alone.
func eventsStatus(w *world, what string, err error, status int) {
	w.t.Helper()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint("status code ", status)) {
		w.t.Errorf("%s: got %v, want status %d", what, err, status)
	}
}

func eventsHubProperties(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 3})
	props, err := eventsConsumer(w, azeventhubs.DefaultConsumerGroup).GetEventHubProperties(w.ctx(), nil)
	busDone(w, err)
	w.check("name", props.Name, "e")
	w.check("partitions", props.PartitionIDs, "[0 1 2]")
	w.check("created", props.CreatedOn.IsZero(), false)
	w.check("geo-replication", props.GeoReplicationEnabled, false)
	props, err = eventsProducer(w).GetEventHubProperties(w.ctx(), nil)
	busDone(w, err)
	w.check("name, for a producer", props.Name, "e")
}

func eventsPartitionProperties(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 2})
	c := eventsConsumer(w, azeventhubs.DefaultConsumerGroup)
	empty, err := c.GetPartitionProperties(w.ctx(), "1", nil)
	busDone(w, err)
	w.check("empty", empty.IsEmpty, true)
	w.check("last number of an empty partition", empty.LastEnqueuedSequenceNumber, -1)
	eventsSend(w, eventsProducer(w), &azeventhubs.EventDataBatchOptions{PartitionID: new("1")}, "a", "b")
	last := eventsReceive(w, eventsReader(w, azeventhubs.DefaultConsumerGroup, "1", nil), 2)[1]
	p, err := c.GetPartitionProperties(w.ctx(), "1", nil)
	busDone(w, err)
	w.check("event hub and partition", p.EventHubName+p.PartitionID, "e1")
	w.check("empty", p.IsEmpty, false)
	w.check("numbers", fmt.Sprint(p.BeginningSequenceNumber, p.LastEnqueuedSequenceNumber), "0 1")
	w.check("last offset", p.LastEnqueuedOffset, last.Offset)
	w.check("last time", p.LastEnqueuedOn.Equal(*last.EnqueuedTime), true)
}

func eventsUnknownProperties(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 2})
	_, err := eventsConsumer(w, azeventhubs.DefaultConsumerGroup).GetPartitionProperties(w.ctx(), "7", nil)
	eventsStatus(w, "an unknown partition", err, http.StatusNotFound)
	c, err := azeventhubs.NewConsumerClientFromConnectionString(w.emulator().EventHubsConnectionString(), "nowhere", azeventhubs.DefaultConsumerGroup, nil)
	busDone(w, err)
	w.closing("consumer", c.Close)
	_, err = c.GetEventHubProperties(w.ctx(), nil)
	eventsStatus(w, "an unknown event hub", err, http.StatusNotFound)
}

func eventsOrder(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	p := eventsProducer(w)
	const n = 400 // more than a client's credit
	var bodies []string
	for i := range n {
		bodies = append(bodies, fmt.Sprint(i))
	}
	eventsSend(w, p, nil, bodies[:n/2]...)
	eventsSend(w, p, nil, bodies[n/2:]...)
	var last *azeventhubs.ReceivedEventData
	for i, e := range eventsReceive(w, eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil), n) {
		if string(e.Body) != bodies[i] || e.SequenceNumber != int64(i) {
			t.Fatalf("position %d: event %s, number %d", i, e.Body, e.SequenceNumber)
		}
		if last != nil && (e.Offset == last.Offset || e.EnqueuedTime.Before(*last.EnqueuedTime)) {
			t.Errorf("event %d: offset %s at %v, the one before: %s at %v", i, e.Offset, e.EnqueuedTime, last.Offset, last.EnqueuedTime)
		}
		last = e
	}
}

func eventsFields(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	p := eventsProducer(w)
	properties := map[string]any{"string": "x", "int": int32(1), "long": int64(2), "bool": true, "double": 1.5}
	batch, err := p.NewEventDataBatch(w.ctx(), nil)
	busDone(w, err)
	busDone(w, batch.AddEventData(&azeventhubs.EventData{
		Body: []byte("body"), MessageID: new("id"), CorrelationID: "correlation", ContentType: new("text/plain"), Properties: properties,
	}, nil))
	busDone(w, p.SendEventDataBatch(w.ctx(), batch, nil))
	e := eventsReceive(w, eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil), 1)[0]
	w.check("body", string(e.Body), "body")
	w.check("message ID", *e.MessageID, "id")
	w.check("correlation ID", e.CorrelationID, "correlation")
	w.check("content type", *e.ContentType, "text/plain")
	w.check("partition key", e.PartitionKey == nil, true)
	if !reflect.DeepEqual(e.Properties, properties) {
		t.Errorf("properties: got %v, want %v", e.Properties, properties)
	}
}

func eventsBodyKinds(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	bodies := []azeventhubs.AMQPAnnotatedMessageBody{
		{Data: [][]byte{[]byte("one"), []byte("two")}},
		{Value: "text"},
		{Sequence: [][]any{{"a", int64(1)}}},
	}
	p := eventsProducer(w)
	for _, body := range bodies {
		batch, err := p.NewEventDataBatch(w.ctx(), nil)
		busDone(w, err)
		busDone(w, batch.AddAMQPAnnotatedMessage(&azeventhubs.AMQPAnnotatedMessage{Body: body}, nil))
		busDone(w, p.SendEventDataBatch(w.ctx(), batch, nil))
	}
	for i, e := range eventsReceive(w, eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil), len(bodies)) {
		if !reflect.DeepEqual(e.RawAMQPMessage.Body, bodies[i]) {
			t.Errorf("got %v, want %v", e.RawAMQPMessage.Body, bodies[i])
		}
	}
}

func eventsReadAgain(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	eventsSend(w, eventsProducer(w), nil, "a", "b")
	for range 2 {
		p := eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil)
		w.check("events", eventsBodies(eventsReceive(w, p, 2)), "ab")
		busDone(w, p.Close(w.ctx()))
	}
}

func eventsWithoutPrefetch(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	eventsSend(w, eventsProducer(w), nil, "a", "b", "c")
	p := eventsPartition(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup), "0", azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: new(true)}, Prefetch: -1,
	})
	w.check("first", eventsBodies(eventsReceive(w, p, 2)), "ab")
	w.check("then", eventsBodies(eventsReceive(w, p, 1)), "c")
}

func eventsUnknownPartition(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 2})
	_, err := eventsReader(w, azeventhubs.DefaultConsumerGroup, "7", nil).ReceiveEvents(w.ctx(), 1, nil)
	busCondition(w, "receive", err, "com.microsoft:argument-out-of-range", `"7"`)
}

func eventsUnknownHub(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	c, err := azeventhubs.NewConsumerClientFromConnectionString(w.emulator().EventHubsConnectionString(), "nowhere", azeventhubs.DefaultConsumerGroup, nil)
	busDone(w, err)
	w.closing("consumer", c.Close)
	_, err = eventsPartition(w, c, "0", azeventhubs.PartitionClientOptions{}).ReceiveEvents(w.ctx(), 1, nil)
	if err == nil || !strings.Contains(err.Error(), "could not be found") {
		t.Errorf("receive: %v", err)
	}
}

// eventsWrong is the namespace's connection string with another key.
func eventsWrong(w *world) string {
	w.t.Helper()
	_, key := busKey(w)
	return strings.Replace(w.emulator().EventHubsConnectionString(), key, "AAAA"+key[4:], 1)
}

func eventsWrongKey(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	c, err := azeventhubs.NewConsumerClientFromConnectionString(eventsWrong(w), "e", azeventhubs.DefaultConsumerGroup, nil)
	busDone(w, err)
	w.closing("consumer", c.Close)
	_, err = eventsPartition(w, c, "0", azeventhubs.PartitionClientOptions{}).ReceiveEvents(w.ctx(), 1, nil)
	eventsWants(w, "receive", err, azeventhubs.ErrorCodeUnauthorizedAccess)
	_, err = c.GetEventHubProperties(w.ctx(), nil)
	eventsStatus(w, "properties", err, http.StatusUnauthorized)
}

// eventsSent are the events a, b, c and d of a partition, all of different times.
type eventsSent struct {
	events []*azeventhubs.ReceivedEventData
}

// eventsFrom is a case of a start position: the events that follow it.
func eventsFrom(want string, start func(*eventsSent) azeventhubs.StartPosition) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		eventsHub(w, emulator.EventHub{Partitions: 1})
		p, r := eventsProducer(w), eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil)
		var sent eventsSent
		for _, body := range []string{"a", "b", "c", "d"} {
			eventsSend(w, p, nil, body)
			e := eventsReceive(w, r, 1)[0]
			sent.events = append(sent.events, e)
			w.eventually("the clock goes on", func() bool { return time.Since(*e.EnqueuedTime) > time.Millisecond })
		}
		from := eventsPartition(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup), "0", azeventhubs.PartitionClientOptions{StartPosition: start(&sent)})
		w.check("events", eventsBodies(eventsReceive(w, from, len(want))), want)
	}
}

// eventsLatest is a case of a start behind the last event. The client attaches
// at its first call, so events are sent until it gets one.
func eventsLatest(start azeventhubs.StartPosition) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		eventsHub(w, emulator.EventHub{Partitions: 1})
		p := eventsProducer(w)
		eventsSend(w, p, nil, "old")
		r := eventsPartition(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup), "0", azeventhubs.PartitionClientOptions{StartPosition: start})
		received := make(chan string, 1)
		go func() {
			events, err := r.ReceiveEvents(w.ctx(), 1, nil)
			if err != nil {
				t.Error(err)
			}
			received <- eventsBodies(events)
		}()
		w.eventually("an event is received", func() bool {
			eventsSend(w, p, nil, "new")
			return len(received) > 0
		})
		w.check("first event", <-received, "new")
	}
}

func eventsGroups(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1, ConsumerGroups: []string{"one", "two"}})
	eventsSend(w, eventsProducer(w), nil, "a", "b")
	for _, group := range []string{azeventhubs.DefaultConsumerGroup, "one", "two"} {
		w.check(group, eventsBodies(eventsReceive(w, eventsReader(w, group, "0", nil), 2)), "ab")
	}
}

func eventsUnknownGroup(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	_, err := eventsReader(w, "nobody", "0", nil).ReceiveEvents(w.ctx(), 1, nil)
	busCondition(w, "receive", err, amqp.ErrCondNotFound, `"nobody"`)
}

func eventsFiveReaders(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1, ConsumerGroups: []string{"other"}})
	eventsSend(w, eventsProducer(w), nil, "a")
	for range 5 {
		w.check("event", eventsBodies(eventsReceive(w, eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil), 1)), "a")
	}
	_, err := eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil).ReceiveEvents(w.ctx(), 1, nil)
	busCondition(w, "sixth reader", err, amqp.ErrCondResourceLimitExceeded, "")
	w.check("in another group", eventsBodies(eventsReceive(w, eventsReader(w, "other", "0", nil), 1)), "a")
}

// eventsOwner has the partition of a level, as the event that it gets shows.
func eventsOwner(w *world, group string, level *int64) *azeventhubs.PartitionClient {
	w.t.Helper()
	p := eventsReader(w, group, "0", level)
	w.check("event", eventsBodies(eventsReceive(w, p, 1)), "a")
	return p
}

// eventsOwned sends the event that eventsOwner gets.
func eventsOwned(w *world) {
	w.t.Helper()
	eventsHub(w, emulator.EventHub{Partitions: 1, ConsumerGroups: []string{"other"}})
	eventsSend(w, eventsProducer(w), nil, "a")
}

// eventsLost fails the case unless a reader has lost its partition.
func eventsLost(w *world, what string, p *azeventhubs.PartitionClient) {
	w.t.Helper()
	_, err := p.ReceiveEvents(w.ctx(), 1, nil)
	eventsWants(w, what, err, azeventhubs.ErrorCodeOwnershipLost)
}

func eventsHigherLevel(_ *testing.T, w *world) {
	eventsOwned(w)
	first := eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(1)))
	eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(2)))
	eventsLost(w, "the first owner", first)
}

func eventsSameLevel(_ *testing.T, w *world) {
	eventsOwned(w)
	first := eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(0)))
	eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(0)))
	eventsLost(w, "the first owner", first)
}

func eventsLowerLevel(_ *testing.T, w *world) {
	eventsOwned(w)
	owner := eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(2)))
	eventsLost(w, "a lower level", eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", new(int64(1))))
	eventsSend(w, eventsProducer(w), nil, "b")
	w.check("the owner goes on", eventsBodies(eventsReceive(w, owner, 1)), "b")
}

func eventsNoLevel(_ *testing.T, w *world) {
	eventsOwned(w)
	eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(0)))
	eventsLost(w, "a reader without level", eventsReader(w, azeventhubs.DefaultConsumerGroup, "0", nil))
}

func eventsOwnerEndsReaders(_ *testing.T, w *world) {
	eventsOwned(w)
	reader := eventsOwner(w, azeventhubs.DefaultConsumerGroup, nil)
	eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(0)))
	eventsLost(w, "the reader", reader)
}

func eventsOwnerGoes(_ *testing.T, w *world) {
	eventsOwned(w)
	busDone(w, eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(5))).Close(w.ctx()))
	busDone(w, eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(1))).Close(w.ctx()))
	eventsOwner(w, azeventhubs.DefaultConsumerGroup, nil)
}

func eventsLevelsByGroup(_ *testing.T, w *world) {
	eventsOwned(w)
	owner := eventsOwner(w, azeventhubs.DefaultConsumerGroup, new(int64(5)))
	eventsOwner(w, "other", new(int64(1)))
	eventsSend(w, eventsProducer(w), nil, "b")
	w.check("the owner goes on", eventsBodies(eventsReceive(w, owner, 1)), "b")
}

func eventsBatch(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 4})
	eventsSend(w, eventsProducer(w), nil, "a", "b", "c")
	held := eventsHeld(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup))
	w.check("partitions with events", len(held), 1)
	for id := range held {
		w.check("events", eventsBodies(eventsReceive(w, eventsReader(w, azeventhubs.DefaultConsumerGroup, id, nil), 3)), "abc")
	}
}

func eventsPartitionID(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 4})
	p := eventsProducer(w)
	for range 3 {
		eventsSend(w, p, &azeventhubs.EventDataBatchOptions{PartitionID: new("2")}, "a")
	}
	w.check("events", eventsHeld(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup)), "map[2:3]")
}

func eventsSpread(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 4})
	p := eventsProducer(w)
	for range 8 {
		eventsSend(w, p, nil, "a")
	}
	w.check("events", eventsHeld(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup)), "map[0:2 1:2 2:2 3:2]")
}

func eventsBatchFull(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	p := eventsProducer(w)
	batch, err := p.NewEventDataBatch(w.ctx(), nil)
	busDone(w, err)
	e := &azeventhubs.EventData{Body: make([]byte, 200<<10)}
	for err == nil {
		err = batch.AddEventData(e, nil)
	}
	if !errors.Is(err, azeventhubs.ErrEventDataTooLarge) {
		t.Fatal(err)
	}
	w.check("events of 200 KB that fit", batch.NumEvents(), 5)
	busDone(w, p.SendEventDataBatch(w.ctx(), batch, nil))
	w.check("events", eventsHeld(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup)), "map[0:5]")
}

func eventsSendUnknownPartition(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 2})
	_, err := eventsProducer(w).NewEventDataBatch(w.ctx(), &azeventhubs.EventDataBatchOptions{PartitionID: new("7")})
	busCondition(w, "send", err, "com.microsoft:argument-out-of-range", `"7"`)
}

func eventsSendWrongKey(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	p, err := azeventhubs.NewProducerClientFromConnectionString(eventsWrong(w), "e", nil)
	busDone(w, err)
	w.closing("producer", p.Close)
	_, err = p.NewEventDataBatch(w.ctx(), nil)
	eventsWants(w, "send", err, azeventhubs.ErrorCodeUnauthorizedAccess)
}

func eventsPartitionKey(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 4})
	p := eventsProducer(w)
	for _, body := range []string{"a", "b", "c"} {
		eventsSend(w, p, &azeventhubs.EventDataBatchOptions{PartitionKey: new("key")}, body)
	}
	held := eventsHeld(w, eventsConsumer(w, azeventhubs.DefaultConsumerGroup))
	w.check("partitions with events", len(held), 1)
	for id := range held {
		events := eventsReceive(w, eventsReader(w, azeventhubs.DefaultConsumerGroup, id, nil), 3)
		w.check("events", eventsBodies(events), "abc")
		for _, e := range events {
			w.check("partition key", *e.PartitionKey, "key")
		}
	}
}

// eventsTelemetry sends device-to-cloud messages.
func eventsTelemetry(w *world, id, properties string, bodies ...string) {
	w.t.Helper()
	c := w.mqtt(w.newDevice(id), nil)
	for _, body := range bodies {
		c.publish("devices/"+id+"/messages/events/"+properties, 1, body)
	}
}

func eventsOfDevices(_ *testing.T, w *world) {
	devices := []string{"one", "two", "three", "four", "five"}
	for _, id := range devices {
		eventsTelemetry(w, id, "", "a", "b", "c")
	}
	got := make(map[string]string)
	for _, e := range w.events(3 * len(devices)) { // those of a partition are in order
		id := fmt.Sprint(e.SystemProperties["iothub-connection-device-id"])
		got[id] += string(e.Body)
		w.check("partition key", *e.PartitionKey, id)
	}
	for _, id := range devices {
		w.check("events of "+id, got[id], "abc")
	}
	held := eventsHeld(w, w.eventHub(azeventhubs.DefaultConsumerGroup))
	for id, n := range held {
		w.check("partition "+id+" has all events of its devices", n%3, 0)
	}
}

func eventsOfHub(t *testing.T, w *world) {
	eventsTelemetry(w, "one", "%24.mid=id&%24.cid=correlation&%24.ct=application%2Fjson&%24.ce=utf-8&p=x%20y", "{}")
	e := w.events(1)[0]
	w.check("body", string(e.Body), "{}")
	w.check("message ID", *e.MessageID, "id")
	w.check("correlation ID", e.CorrelationID, "correlation")
	w.check("content type", *e.ContentType, "application/json")
	w.check("content encoding", *e.RawAMQPMessage.Properties.ContentEncoding, "utf-8")
	w.check("properties", e.Properties, "map[p:x y]")
	w.check("device", e.SystemProperties["iothub-connection-device-id"], "one")
	w.check("source", e.SystemProperties["iothub-message-source"], "Telemetry")
	generation := w.registered(device{id: "one"})["generationId"]
	w.check("generation", e.SystemProperties["iothub-connection-auth-generation-id"], generation)
	method := fmt.Sprint(e.SystemProperties["iothub-connection-auth-method"])
	w.check("auth method", strings.HasPrefix(method, `{"scope":"device","type":"sas","issuer":"iothub"`), true)
	at, ok := e.SystemProperties["iothub-enqueuedtime"].(time.Time)
	if !ok || at.After(e.EnqueuedTime.Add(time.Millisecond)) {
		t.Errorf("enqueued at the hub at %v, at the endpoint at %v", e.SystemProperties["iothub-enqueuedtime"], e.EnqueuedTime)
	}
}

func eventsBuiltInGroups(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	eventsTelemetry(w, "one", "", "a")
	for _, group := range []string{azeventhubs.DefaultConsumerGroup, "console"} {
		c := w.eventHub(group)
		props, err := c.GetEventHubProperties(w.ctx(), nil)
		busDone(w, err)
		w.check("name", props.Name, w.emulator().EventsName())
		w.check("partitions", props.PartitionIDs, "[0 1]")
		for id := range eventsHeld(w, c) {
			p := eventsPartition(w, c, id, azeventhubs.PartitionClientOptions{StartPosition: azeventhubs.StartPosition{Earliest: new(true)}})
			w.check("event in "+group, eventsBodies(eventsReceive(w, p, 1)), "a")
		}
	}
}

// eventsEndpoint is the connection string of the built-in endpoint for one of the
// hub's policies.
func eventsEndpoint(w *world, policy string) string {
	w.t.Helper()
	endpoint, _, _ := strings.Cut(w.emulator().EventsConnectionString(), ";")
	return fmt.Sprintf("%s;SharedAccessKeyName=%s;SharedAccessKey=%s;UseDevelopmentEmulator=true;EntityPath=%s",
		endpoint, policy, w.policyKey(policy), w.emulator().EventsName())
}

func eventsHubPolicies(_ *testing.T, w *world) {
	for policy, opens := range map[string]bool{
		"iothubowner": true, "service": true, "device": false, "registryRead": false, "registryReadWrite": false,
	} {
		c, err := azeventhubs.NewConsumerClientFromConnectionString(eventsEndpoint(w, policy), "", azeventhubs.DefaultConsumerGroup, nil)
		busDone(w, err)
		w.closing("consumer", c.Close)
		_, err = c.GetEventHubProperties(w.ctx(), nil)
		if opens {
			busDone(w, err)
			continue
		}
		eventsStatus(w, policy+", properties", err, http.StatusUnauthorized)
		_, err = eventsPartition(w, c, "0", azeventhubs.PartitionClientOptions{}).ReceiveEvents(w.ctx(), 1, nil)
		eventsWants(w, policy+", receive", err, azeventhubs.ErrorCodeUnauthorizedAccess)
	}
}

func eventsHubPolicySends(_ *testing.T, w *world) {
	p, err := azeventhubs.NewProducerClientFromConnectionString(eventsEndpoint(w, "iothubowner"), "", nil)
	busDone(w, err)
	w.closing("producer", p.Close)
	_, err = p.NewEventDataBatch(w.ctx(), nil)
	eventsWants(w, "send", err, azeventhubs.ErrorCodeUnauthorizedAccess)
}

func eventsRedirect(t *testing.T, w *world) {
	session := w.amqpService("service")
	for _, address := range []string{"messages/events", "/messages/events/", "messages/events/ConsumerGroups/$Default/Partitions/0"} {
		_, err := session.NewReceiver(w.ctx(), address, nil)
		var e *amqp.Error
		if !errors.As(err, &e) || e.Condition != amqp.ErrCondLinkRedirect {
			t.Errorf("%s: got %v, want a redirect", address, err)
			continue
		}
		host, port, err := net.SplitHostPort(w.emulator().AMQPSAddr())
		busDone(w, err)
		w.check("host and port", fmt.Sprint(e.Info["network-host"], e.Info["port"]), host+port)
		target, err := url.Parse(fmt.Sprint(e.Info["address"]))
		busDone(w, err)
		w.check("address", target.Scheme+target.Path, "amqps/"+w.emulator().EventsName()+"/")
	}
	_, err := w.amqpService("device").NewReceiver(w.ctx(), "messages/events", nil)
	busCondition(w, "without ServiceConnect", err, amqp.ErrCondUnauthorizedAccess, "")
}

func eventsPlain(_ *testing.T, w *world) {
	eventsTelemetry(w, "one", "", "a")
	session := w.amqp(nil, func(o *amqp.ConnOptions) { o.SASLType = amqp.SASLTypePlain("service", w.policyKey("service")) })
	for id := range eventsHeld(w, w.eventHub(azeventhubs.DefaultConsumerGroup)) {
		r := w.receiver(session, "/"+w.emulator().EventsName()+"/ConsumerGroups/$Default/Partitions/"+id, &amqp.ReceiverOptions{
			Filters: []amqp.LinkFilter{amqp.NewSelectorFilter("amqp.annotation.x-opt-offset > '-1'")},
		})
		w.check("event", string(w.receive(r).GetData()), "a")
	}
}

func eventsRetentionBounds(t *testing.T, _ *world) {
	for retention, fits := range map[string]bool{"P1D": true, "P7D": true, "PT23H": false, "P8D": false} {
		_, err := emulator.ParseConfig("case.yaml", []byte("Hub: {Retention: "+retention+"}\n"))
		if (err == nil) != fits {
			t.Errorf("retention %s: %v", retention, err)
		}
	}
}

// eventsTrimmed sends more than the emulator keeps of a partition.
func eventsTrimmed(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	p := eventsProducer(w)
	c := eventsConsumer(w, azeventhubs.DefaultConsumerGroup)
	e := &azeventhubs.EventData{Body: make([]byte, 1000<<10)}
	var props azeventhubs.PartitionProperties
	for range 100 {
		batch, err := p.NewEventDataBatch(w.ctx(), nil)
		busDone(w, err)
		busDone(w, batch.AddEventData(e, nil))
		busDone(w, p.SendEventDataBatch(w.ctx(), batch, nil))
		props, err = c.GetPartitionProperties(w.ctx(), "0", nil)
		busDone(w, err)
		if props.BeginningSequenceNumber > 0 {
			break
		}
	}
	if props.BeginningSequenceNumber == 0 || props.LastEnqueuedSequenceNumber < 30 {
		t.Fatalf("kept events %d to %d", props.BeginningSequenceNumber, props.LastEnqueuedSequenceNumber)
	}
	for _, start := range []azeventhubs.StartPosition{
		{Earliest: new(true)},
		{SequenceNumber: new(int64(0)), Inclusive: true},
		{Offset: new("0"), Inclusive: true},
	} {
		r := eventsPartition(w, c, "0", azeventhubs.PartitionClientOptions{StartPosition: start, Prefetch: -1})
		w.check("first event", eventsReceive(w, r, 1)[0].SequenceNumber, props.BeginningSequenceNumber)
		busDone(w, r.Close(w.ctx()))
	}
}

// eventsRoundTrip sends and receives an event over connections of a kind.
func eventsRoundTrip(w *world, endpoint string, dial func(context.Context, azeventhubs.WebSocketConnParams) (net.Conn, error)) {
	w.t.Helper()
	p, err := azeventhubs.NewProducerClientFromConnectionString(busNamespace(w), "e", &azeventhubs.ProducerClientOptions{
		TLSConfig: w.tls(), CustomEndpoint: endpoint, NewWebSocketConn: dial,
	})
	busDone(w, err)
	w.closing("producer", p.Close)
	eventsSend(w, p, nil, "a")
	c, err := azeventhubs.NewConsumerClientFromConnectionString(busNamespace(w), "e", azeventhubs.DefaultConsumerGroup, &azeventhubs.ConsumerClientOptions{
		TLSConfig: w.tls(), CustomEndpoint: endpoint, NewWebSocketConn: dial,
	})
	busDone(w, err)
	w.closing("consumer", c.Close)
	r := eventsPartition(w, c, "0", azeventhubs.PartitionClientOptions{StartPosition: azeventhubs.StartPosition{Earliest: new(true)}})
	w.check("event", eventsBodies(eventsReceive(w, r, 1)), "a")
}

func eventsTLS(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	eventsRoundTrip(w, w.emulator().AMQPSAddr(), nil)
}

func eventsWebSocket(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{Partitions: 1})
	eventsRoundTrip(w, "", func(ctx context.Context, params azeventhubs.WebSocketConnParams) (net.Conn, error) {
		return busDialWebSocket(ctx, w, params.Host, func(*websocket.Conn) {})
	})
}

func eventsCaptureConfig(t *testing.T, _ *world) {
	busConfigRefused(t, `
UserConfig:
  NamespaceConfig:
    - Entities:
        - Name: e
          CaptureDescription: {Enabled: true}
`, 5, "CaptureDescription is not a setting")
}

func eventsRetentionConfig(t *testing.T, _ *world) {
	busConfigRefused(t, `
UserConfig:
  NamespaceConfig:
    - Entities:
        - Name: e
          MessageRetentionInDays: 3
`, 5, "MessageRetentionInDays is not a setting")
}

func eventsPublisher(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	_, err := busSession(w).NewSender(w.ctx(), "e/Publishers/p", nil)
	busCondition(w, "send", err, amqp.ErrCondNotFound, "e/Publishers/p")
}

func eventsSelector(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	session := busSession(w)
	for _, selector := range []string{"amqp.annotation.x-opt-partition-key = 'a'", "p > '1'"} {
		_, err := session.NewReceiver(w.ctx(), "e/ConsumerGroups/$Default/Partitions/0", &amqp.ReceiverOptions{
			Filters: []amqp.LinkFilter{amqp.NewSelectorFilter(selector)},
		})
		busCondition(w, selector, err, "com.microsoft:argument-error", "start position")
	}
}

func eventsPost(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	policy, key := busKey(w)
	address := "https://" + w.emulator().HTTPSAddr() + "/e/messages?timeout=60&api-version=2014-01"
	req, err := http.NewRequestWithContext(w.ctx(), http.MethodPost, address, strings.NewReader("a"))
	busDone(w, err)
	req.Header.Set("Authorization", w.token(w.emulator().HubName(), policy, key, time.Hour))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: w.tls(), DisableKeepAlives: true}}
	resp, err := client.Do(req)
	busDone(w, err)
	defer resp.Body.Close()
	reason, err := io.ReadAll(resp.Body)
	busDone(w, err)
	if resp.StatusCode != http.StatusNotImplemented || !strings.Contains(string(reason), "not emulated") {
		t.Errorf("status %s: %s", resp.Status, reason)
	}
}

// eventsKafka sends an ApiVersions request, the first of every Kafka client. The
// answer to what isn't AMQP is the protocol header that is supported, and the end.
func eventsKafka(_ *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	dialer := &tls.Dialer{Config: w.tls()}
	conn, err := dialer.DialContext(w.ctx(), "tcp", w.emulator().AMQPSAddr())
	busDone(w, err)
	defer conn.Close()
	deadline, _ := w.ctx().Deadline()
	busDone(w, conn.SetDeadline(deadline))
	_, err = conn.Write([]byte("\x00\x00\x00\x0b\x00\x12\x00\x00\x00\x00\x00\x01\x00\x01c"))
	busDone(w, err)
	answer, err := io.ReadAll(conn)
	busDone(w, err)
	w.check("answer", strings.HasPrefix(string(answer), "AMQP"), true)
}

func eventsEntra(t *testing.T, w *world) {
	eventsHub(w, emulator.EventHub{})
	c, err := azeventhubs.NewConsumerClient(w.emulator().HubName(), "e", azeventhubs.DefaultConsumerGroup, busCredential{}, &azeventhubs.ConsumerClientOptions{
		TLSConfig: w.tls(), CustomEndpoint: w.emulator().AMQPSAddr(),
	})
	busDone(w, err)
	w.closing("consumer", c.Close)
	_, err = eventsPartition(w, c, "0", azeventhubs.PartitionClientOptions{}).ReceiveEvents(w.ctx(), 1, nil)
	eventsWants(w, "receive", err, azeventhubs.ErrorCodeUnauthorizedAccess)
	if err == nil || !strings.Contains(err.Error(), "shared access signatures only") {
		t.Errorf("receive: %v", err)
	}
}
