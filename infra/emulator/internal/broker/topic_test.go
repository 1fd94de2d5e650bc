package broker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func newTopic(t *testing.T, opts broker.TopicOptions, subs ...string) (*broker.Topic, []*broker.Queue) {
	t.Helper()
	n := broker.NewNamespace(store.Memory())
	t.Cleanup(n.Close)
	topic, err := n.CreateTopic("t", opts)
	if err != nil {
		t.Fatal(err)
	}
	var queues []*broker.Queue
	for _, name := range subs {
		q, err := n.CreateSubscription("t", name, broker.QueueOptions{})
		if err != nil {
			t.Fatal(err)
		}
		queues = append(queues, q)
	}
	return topic, queues
}

func TestTopicCopiesToEachSubscription(t *testing.T) {
	t.Parallel()
	topic, subs := newTopic(t, broker.TopicOptions{}, "one", "two")
	send(t, topic, msgs("a", "b")...)
	settle(t, subs[0], receive(t, newConsumer(t, subs[0], broker.ConsumerOptions{})), broker.Settlement{})
	check(t, "left in one", peek(subs[0]), "b")
	check(t, "left in two", peek(subs[1]), "a b")
	check(t, "name", subs[0].Name(), "t/Subscriptions/one")
}

func TestTopicWithoutSubscriptionsAccepts(t *testing.T) {
	t.Parallel()
	topic, _ := newTopic(t, broker.TopicOptions{})
	send(t, topic, msg("a"))
}

func TestTopicDropsDuplicates(t *testing.T) {
	t.Parallel()
	topic, subs := newTopic(t, broker.TopicOptions{DuplicateWindow: time.Minute}, "one")
	send(t, topic, withID(msg("a"), "1"), withID(msg("b"), "1"))
	send(t, topic, withID(msg("c"), "1"), msg("d"))
	check(t, "kept", peek(subs[0]), "a d")
	check(t, "number at the topic", subs[0].Peek(2, 1)[0].EnqueuedSequenceNumber, 2)
}

func TestTopicSchedules(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		topic, subs := newTopic(t, broker.TopicOptions{}, "one", "two")
		seqs, err := topic.Schedule(t.Context(), time.Now().Add(time.Minute), msgs("a", "b")...)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "numbers", seqs, "[1 2]")
		if err := topic.CancelScheduled(t.Context(), 1, 99); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("cancel of an unknown number: %v", err)
		}
		if err := topic.CancelScheduled(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		check(t, "seen before", peek(subs[0]), "")
		time.Sleep(time.Minute)
		synctest.Wait()
		check(t, "number at the topic", subs[0].Peek(0, 1)[0].EnqueuedSequenceNumber, 2)
		for _, q := range subs {
			check(t, q.Name(), receiveAll(t, newConsumer(t, q, broker.ConsumerOptions{})), "b")
		}
	})
}

func TestTopicLimitsItsSubscriptions(t *testing.T) {
	t.Parallel()
	topic, subs := newTopic(t, broker.TopicOptions{DefaultTTL: time.Minute, MaxMessageSize: 3}, "one")
	check(t, "time to live", subs[0].Options().DefaultTTL, time.Minute)
	if err := topic.Send(t.Context(), msg("abcd")); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("a message that is too large: %v", err)
	}
}

func TestNamespace(t *testing.T) {
	t.Parallel()
	n := broker.NewNamespace(store.Memory())
	t.Cleanup(n.Close)
	if _, err := n.CreateQueue("Device-Messages", broker.QueueOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CreateTopic("Jobs", broker.TopicOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CreateSubscription("jobs", "Mine", broker.QueueOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CreateEventLog("Hub", broker.EventLogOptions{}); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"device-messages":                          "Device-Messages",
		"DEVICE-MESSAGES/$deadletterqueue":         "Device-Messages/$DeadLetterQueue",
		"jobs/subscriptions/mine":                  "Jobs/Subscriptions/Mine",
		"Jobs/Subscriptions/Mine/$DeadLetterQueue": "Jobs/Subscriptions/Mine/$DeadLetterQueue",
		"jobs":                               "",
		"jobs/subscriptions/other":           "",
		"jobs/subscriptions/":                "",
		"hub":                                "",
		"":                                   "",
		"/$DeadLetterQueue":                  "",
		"device-messages/subscriptions/mine": "",
		"device-messages/$DeadLetterQueue/something": "",
	} {
		q, err := n.Source(address)
		if want == "" {
			if !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("source %q: %v", address, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("source %q: %v", address, err)
			continue
		}
		check(t, address, q.Name(), want)
	}
	for name, found := range map[string]bool{"DEVICE-messages": true, "JOBS": true, "hub": false, "jobs/subscriptions/mine": false} {
		if _, err := n.Target(name); (err == nil) != found {
			t.Errorf("target %q: %v", name, err)
		}
	}
	if _, err := n.EventLog("HUB"); err != nil {
		t.Error(err)
	}
	for what, create := range map[string]func() error{
		"queue":        func() error { _, err := n.CreateQueue("JOBS", broker.QueueOptions{}); return err },
		"topic":        func() error { _, err := n.CreateTopic("hub", broker.TopicOptions{}); return err },
		"event log":    func() error { _, err := n.CreateEventLog("jobs", broker.EventLogOptions{}); return err },
		"subscription": func() error { _, err := n.CreateSubscription("jobs", "MINE", broker.QueueOptions{}); return err },
	} {
		if err := create(); !errors.Is(err, broker.ErrExists) {
			t.Errorf("%s under a name that is taken: %v", what, err)
		}
	}
	if _, err := n.CreateSubscription("none", "x", broker.QueueOptions{}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("subscription of no topic: %v", err)
	}
}
