package broker_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// msg returns a message with a body, which serves as its name.
func msg(body string) *amqp.Message { return &amqp.Message{Data: [][]byte{[]byte(body)}} }

func msgs(bodies ...string) []*amqp.Message {
	var all []*amqp.Message
	for _, b := range bodies {
		all = append(all, msg(b))
	}
	return all
}

func withID(m *amqp.Message, id any) *amqp.Message {
	m.Properties = &amqp.Properties{MessageID: id}
	return m
}

func withTTL(m *amqp.Message, ttl time.Duration) *amqp.Message {
	m.Header = &amqp.Header{TTL: ttl}
	return m
}

func newQueue(t *testing.T, s store.Store, opts broker.QueueOptions) *broker.Queue {
	t.Helper()
	q, err := broker.OpenQueue(s, "q", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	return q
}

func newConsumer(t *testing.T, q *broker.Queue, opts broker.ConsumerOptions) *broker.Consumer {
	t.Helper()
	c := q.NewConsumer(opts)
	t.Cleanup(c.Close)
	return c
}

func send(t *testing.T, to interface {
	Send(context.Context, ...*amqp.Message) error
}, m ...*amqp.Message) {
	t.Helper()
	if err := to.Send(t.Context(), m...); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next message, which must be there already.
func receive(t *testing.T, c *broker.Consumer) *broker.Delivery {
	t.Helper()
	ds, err := c.TryReceive(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(ds) == 0 {
		t.Fatal("no message is available")
	}
	return ds[0]
}

// receiveAll names the messages that are available.
func receiveAll(t *testing.T, c *broker.Consumer) string {
	t.Helper()
	ds, err := c.TryReceive(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	return names(ds)
}

func names(ds []*broker.Delivery) string {
	var all []string
	for _, d := range ds {
		all = append(all, string(d.Message.Body()))
	}
	return strings.Join(all, " ")
}

func settle(t *testing.T, q *broker.Queue, d *broker.Delivery, s broker.Settlement) {
	t.Helper()
	if err := q.Settle(t.Context(), d.LockToken, s); err != nil {
		t.Fatal(err)
	}
}

// peek names the messages of a queue in whatever state.
func peek(q *broker.Queue) string { return names(q.Peek(0, 1000)) }

func check(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// outcomes gathers what a queue tells of the end of its messages.
type outcomes []string

func (o *outcomes) add(_ *broker.Tx, out broker.Outcome) {
	names := map[broker.Cause]string{
		broker.Completed: "completed", broker.Expired: "expired", broker.DeliveryCountExceeded: "exceeded",
		broker.Rejected: "rejected", broker.Purged: "purged",
	}
	*o = append(*o, string(out.Delivery.Message.Body())+" "+names[out.Cause])
	slices.Sort(*o)
}
