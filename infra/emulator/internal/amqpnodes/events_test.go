package amqpnodes_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// consumer reads the built-in endpoint with a policy of the hub.
func (e *emulator) consumer(t *testing.T) *azeventhubs.ConsumerClient {
	t.Helper()
	cs := e.connectionString("service", e.policyKey(t, "service"), hubName)
	c, err := azeventhubs.NewConsumerClientFromConnectionString(cs, "", azeventhubs.DefaultConsumerGroup, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(testContext(t)) })
	return c
}

func partition(t *testing.T, c *azeventhubs.ConsumerClient, opts azeventhubs.PartitionClientOptions) *azeventhubs.PartitionClient {
	t.Helper()
	p, err := c.NewPartitionClient("0", &opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(testContext(t)) })
	return p
}

func receiveEvents(t *testing.T, p *azeventhubs.PartitionClient, n int) []*azeventhubs.ReceivedEventData {
	t.Helper()
	ctx := testContext(t)
	var all []*azeventhubs.ReceivedEventData
	for len(all) < n {
		got, err := p.ReceiveEvents(ctx, n-len(all), nil)
		if err != nil {
			t.Fatalf("after %d of %d events: %v", len(all), n, err)
		}
		all = append(all, got...)
	}
	return all
}

// append stores events in partition 0 of the built-in endpoint, as the hub does.
func (e *emulator) append(t *testing.T, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		m := &amqp.Message{
			Annotations: map[string]any{"iothub-connection-device-id": "d1", "iothub-enqueuedtime": time.Now()},
			Properties:  &amqp.Properties{MessageID: "id-" + body},
			Data:        [][]byte{[]byte(body)},
		}
		opts := broker.AppendOptions{PartitionID: "0", PartitionKey: "d1"}
		if err := e.events.Append(testContext(t), opts, m); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEventsFromAllStartPositions(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.append(t, "a")
	// Events a millisecond apart, so that a time can tell them apart.
	middle := time.Now().Add(2 * time.Millisecond)
	waitUntil(t, "the clock has moved on", func() bool { return time.Now().After(middle) })
	e.append(t, "b", "c")
	earliest, sequence, yes := true, int64(1), true
	stamps := receiveEvents(t, partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: &earliest},
	}), 3)
	offset := stamps[1].Offset
	for name, tt := range map[string]struct {
		start azeventhubs.StartPosition
		want  string
	}{
		"earliest":           {azeventhubs.StartPosition{Earliest: &earliest}, "abc"},
		"sequence":           {azeventhubs.StartPosition{SequenceNumber: &sequence}, "c"},
		"sequence inclusive": {azeventhubs.StartPosition{SequenceNumber: &sequence, Inclusive: yes}, "bc"},
		"offset":             {azeventhubs.StartPosition{Offset: &offset}, "c"},
		"offset inclusive":   {azeventhubs.StartPosition{Offset: &offset, Inclusive: yes}, "bc"},
		"enqueued time":      {azeventhubs.StartPosition{EnqueuedTime: stamps[0].EnqueuedTime}, "bc"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{StartPosition: tt.start})
			var got string
			for _, event := range receiveEvents(t, p, len(tt.want)) {
				got += string(event.Body)
			}
			if got != tt.want {
				t.Errorf("events %q, want %q", got, tt.want)
			}
		})
	}
}

func TestEventIsComplete(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.append(t, "a")
	earliest := true
	event := receiveEvents(t, partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: &earliest},
	}), 1)[0]
	if *event.MessageID != "id-a" || event.SequenceNumber != 0 || event.EnqueuedTime == nil || *event.PartitionKey != "d1" {
		t.Errorf("event: %+v", event)
	}
	if event.SystemProperties["iothub-connection-device-id"] != "d1" {
		t.Errorf("system properties: %v", event.SystemProperties)
	}
}

// The default position is behind the last event, so the test has to send until
// the link is there.
func TestLatestSeesOnlyNewEvents(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.append(t, "old")
	p := partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{})
	ctx := testContext(t)
	for {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		got, err := p.ReceiveEvents(short, 1, nil)
		cancel()
		if err == nil {
			if string(got[0].Body) != "new" {
				t.Errorf("event: %s", got[0].Body)
			}
			return
		}
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		e.append(t, "new")
	}
}

// More events than the credit that a client gives at once: it must get it again
// without settling anything.
func TestManyEvents(t *testing.T) {
	t.Parallel()
	e := start(t)
	const n = 1000
	for range n {
		e.append(t, "x")
	}
	earliest := true
	p := partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: &earliest},
	})
	for i, event := range receiveEvents(t, p, n) {
		if event.SequenceNumber != int64(i) {
			t.Fatalf("position %d: sequence number %d", i, event.SequenceNumber)
		}
	}
}

func TestHigherOwnerLevelStealsPartition(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.append(t, "a")
	earliest, low, high := true, int64(1), int64(2)
	first := partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: &earliest}, OwnerLevel: &low,
	})
	receiveEvents(t, first, 1)
	second := partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: &earliest}, OwnerLevel: &high,
	})
	receiveEvents(t, second, 1)
	if _, err := first.ReceiveEvents(testContext(t), 1, nil); !ownershipLost(err) {
		t.Errorf("first reader after the steal: %v", err)
	}
	third := partition(t, e.consumer(t), azeventhubs.PartitionClientOptions{OwnerLevel: &low})
	if _, err := third.ReceiveEvents(testContext(t), 1, nil); !ownershipLost(err) {
		t.Errorf("reader of a lower level: %v", err)
	}
}

func ownershipLost(err error) bool {
	var e *azeventhubs.Error
	return errors.As(err, &e) && e.Code == azeventhubs.ErrorCodeOwnershipLost
}

func TestEventHubProperties(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.consumer(t)
	ctx := testContext(t)
	h, err := c.GetEventHubProperties(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if h.Name != hubName || len(h.PartitionIDs) != 2 || h.PartitionIDs[1] != "1" || h.CreatedOn.IsZero() {
		t.Errorf("event hub: %+v", h)
	}
	empty, err := c.GetPartitionProperties(ctx, "0", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !empty.IsEmpty {
		t.Errorf("empty partition: %+v", empty)
	}
	e.append(t, "a", "b")
	p, err := c.GetPartitionProperties(ctx, "0", nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.IsEmpty || p.LastEnqueuedSequenceNumber != 1 || p.LastEnqueuedOffset == "" || p.LastEnqueuedOn.IsZero() {
		t.Errorf("partition: %+v", p)
	}
	if _, err := c.GetPartitionProperties(ctx, "7", nil); err == nil {
		t.Error("an unknown partition has properties")
	}
}

func TestProducer(t *testing.T) {
	t.Parallel()
	e := start(t)
	ctx := testContext(t)
	p, err := azeventhubs.NewProducerClientFromConnectionString(e.connectionString(sendName, sendKey, otherName), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(testContext(t)) })
	key, id := "k", "1"
	for _, opts := range []*azeventhubs.EventDataBatchOptions{{PartitionKey: &key}, {PartitionID: &id}} {
		batch, err := p.NewEventDataBatch(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := batch.AddEventData(&azeventhubs.EventData{Body: []byte("x")}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.SendEventDataBatch(ctx, batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	total := int64(0)
	for _, id := range e.other.PartitionIDs() {
		p, err := e.other.Partition(id)
		if err != nil {
			t.Fatal(err)
		}
		total += p.LastEnqueuedSequenceNumber + 1
	}
	if total != 20 {
		t.Errorf("%d events stored, want 20", total)
	}
}

func TestEventsNeedTheRightKey(t *testing.T) {
	t.Parallel()
	e := start(t)
	for name, cs := range map[string]string{
		"wrong key":           e.connectionString("service", "not the key", hubName),
		"policy may not read": e.connectionString("device", e.policyKey(t, "device"), hubName),
		"send only":           e.connectionString(sendName, sendKey, otherName),
		"hub policy on the namespace's event hub": e.connectionString("service", e.policyKey(t, "service"), otherName),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := azeventhubs.NewConsumerClientFromConnectionString(cs, "", azeventhubs.DefaultConsumerGroup, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close(testContext(t)) })
			var unauthorized *azeventhubs.Error
			p := partition(t, c, azeventhubs.PartitionClientOptions{})
			if _, err := p.ReceiveEvents(testContext(t), 1, nil); !errors.As(err, &unauthorized) || unauthorized.Code != azeventhubs.ErrorCodeUnauthorizedAccess {
				t.Errorf("receive: %v", err)
			}
			if _, err := c.GetEventHubProperties(testContext(t), nil); err == nil {
				t.Error("properties were given")
			}
		})
	}
}
