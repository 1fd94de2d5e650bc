package servicebus_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
	"github.com/hubjobs/hubjobs/job"
)

const (
	queue   = "device-messages"
	reason  = job.ReasonInvalidMessage
	timeout = time.Minute
)

var (
	active = servicebus.Source{Queue: queue}
	dead   = servicebus.Source{Queue: queue, DeadLetter: true}
)

// fixture is a namespace of its own with a client.
type fixture struct {
	emulator *emulator.Emulator
	bus      *servicebus.Client
	ctx      context.Context
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	e := emulatortest.Start(t)
	bus, err := servicebus.New(servicebus.Config{ConnectionString: e.ServiceBusConnectionString()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return &fixture{e, bus, ctx}
}

func (f *fixture) sender(t *testing.T, entity string) *servicebus.Sender {
	t.Helper()
	s, err := f.bus.Sender(entity)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// receive handles n messages of a source.
func (f *fixture) receive(t *testing.T, from servicebus.Source, n int, handle func(*servicebus.Delivery) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	got := 0
	err := f.bus.Receive(ctx, from, servicebus.ReceiveOptions{}, func(_ context.Context, batch []*servicebus.Delivery) {
		for _, d := range batch {
			if err := handle(d); err != nil {
				t.Error(err)
			}
			if got++; got == n {
				cancel()
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got < n {
		t.Fatalf("got %d of %d messages of %s", got, n, from)
	}
}

// kill dead-letters n messages, m1 and so on, and returns their numbers.
func (f *fixture) kill(t *testing.T, n int) []int64 {
	t.Helper()
	s := f.sender(t, queue)
	for i := range n {
		if err := s.Send(f.ctx, job.Message{ID: fmt.Sprintf("m%d", i+1), Body: job.Body("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	f.receive(t, active, n, func(d *servicebus.Delivery) error { return d.DeadLetter(f.ctx, reason, "no good") })
	var numbers []int64
	for _, r := range f.browse(t, dead) {
		numbers = append(numbers, r.SequenceNumber)
	}
	if len(numbers) != n {
		t.Fatalf("%d dead letters, want %d", len(numbers), n)
	}
	return numbers
}

func (f *fixture) browse(t *testing.T, from servicebus.Source) []*servicebus.Received {
	t.Helper()
	var all []*servicebus.Received
	for r, err := range f.bus.Browse(f.ctx, from, 1) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func ids(all []*servicebus.Received) []string {
	var ids []string
	for _, r := range all {
		ids = append(ids, r.Message.ID)
	}
	return ids
}

func TestBrowseShowsWithoutLocking(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	numbers := f.kill(t, 70) // more than one call gives
	for range 2 {
		all := f.browse(t, dead)
		first := all[0]
		if len(all) != 70 || first.Message.ID != "m1" || first.DeadLetterReason != string(reason) || first.DeadLetterDescription != "no good" {
			t.Fatalf("got %d, the first %+v", len(all), first)
		}
		if first.EnqueuedAt.IsZero() || first.DeliveryCount != 1 || first.OriginalNumber != 1 || first.SystemProperties()["message-id"] != "m1" {
			t.Errorf("got %+v", first)
		}
	}
	f.receive(t, dead, 70, func(d *servicebus.Delivery) error { return nil }) // nothing is locked
	found, err := f.bus.Find(f.ctx, dead, numbers[3], numbers[69], numbers[69]+1)
	if err != nil || len(found) != 2 || found[numbers[3]].Message.ID != "m4" || found[numbers[69]].Message.ID != "m70" {
		t.Errorf("found %v, %v", found, err)
	}
	for range f.bus.Browse(f.ctx, dead, numbers[60]) { // may be left early
		break
	}
}

func TestTakeGetsWhatIsAskedForAndGivesBackTheRest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	numbers := f.kill(t, 6)
	var took []string
	left, err := f.bus.Take(f.ctx, dead, []int64{numbers[4], numbers[1]}, servicebus.TakeOptions{}, func(ctx context.Context, d *servicebus.Delivery) error {
		took = append(took, d.Message.ID)
		return d.Complete(ctx)
	})
	if err != nil || len(left) != 0 || !slices.Equal(took, []string{"m2", "m5"}) {
		t.Errorf("took %v, left %v, %v", took, left, err)
	}
	if got := ids(f.browse(t, dead)); !slices.Equal(got, []string{"m1", "m3", "m4", "m6"}) {
		t.Errorf("there are %v", got)
	}
	// They are free at once, not when their locks end.
	f.receive(t, dead, 4, func(d *servicebus.Delivery) error { return d.Complete(f.ctx) })
}

func TestTakeReportsWhatItDidNotGet(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	numbers := f.kill(t, 2)
	absent := numbers[1] + 10
	left, err := f.bus.Take(f.ctx, dead, []int64{absent, numbers[0]}, servicebus.TakeOptions{Patience: 100 * time.Millisecond},
		func(ctx context.Context, d *servicebus.Delivery) error { return d.Complete(ctx) })
	if err != nil || !slices.Equal(left, []int64{absent}) {
		t.Errorf("left %v, %v", left, err)
	}
	if left, err := f.bus.Take(f.ctx, dead, nil, servicebus.TakeOptions{}, nil); err != nil || len(left) != 0 {
		t.Errorf("nothing wanted: %v, %v", left, err)
	}
}

func TestTakeEndsWithTheHandlersErrorAndLosesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	numbers := f.kill(t, 3)
	broken := errors.New("broken")
	calls := 0
	left, err := f.bus.Take(f.ctx, dead, numbers, servicebus.TakeOptions{}, func(ctx context.Context, d *servicebus.Delivery) error {
		if calls++; calls == 2 {
			return broken
		}
		return d.Complete(ctx)
	})
	if !errors.Is(err, broken) || !slices.Equal(left, numbers[1:]) {
		t.Errorf("left %v, %v", left, err)
	}
	f.receive(t, dead, 2, func(d *servicebus.Delivery) error { return d.Complete(f.ctx) })
}

func TestTakeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	numbers := f.kill(t, 3)
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	left, err := f.bus.Take(ctx, dead, numbers, servicebus.TakeOptions{}, func(ctx context.Context, d *servicebus.Delivery) error {
		cancel()
		return d.Complete(ctx) // what is done is done
	})
	if !errors.Is(err, context.Canceled) || !slices.Equal(left, numbers[1:]) {
		t.Errorf("left %v, %v", left, err)
	}
	if got := ids(f.browse(t, dead)); !slices.Equal(got, []string{"m2", "m3"}) {
		t.Errorf("there are %v", got)
	}
}

// Whoever puts a message back may lose the lock in between: it gets the message again, and not another's.
func TestTakeHandlesAgainWhatItHasLostTheLockOf(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	numbers := f.kill(t, 2)
	sender := f.sender(t, queue)
	calls := make(map[string]int)
	left, err := f.bus.Take(f.ctx, dead, numbers, servicebus.TakeOptions{}, func(ctx context.Context, d *servicebus.Delivery) error {
		if calls[d.Message.ID]++; d.Message.ID == "m1" && calls["m1"] == 1 {
			if err := sender.SendCopy(ctx, &d.Received, servicebus.Change{}); err != nil {
				return err
			}
			if _, err := f.emulator.InjectFault(emulator.Fault{Kind: emulator.FaultExpireLocks}); err != nil {
				return err
			}
		}
		return d.Complete(ctx)
	})
	if err != nil || len(left) != 0 || calls["m1"] != 2 {
		t.Errorf("called %v, left %v, %v", calls, left, err)
	}
	if got := ids(f.browse(t, active)); !slices.Equal(got, []string{"m1"}) {
		t.Errorf("in the queue are %v", got)
	}
	if got := f.browse(t, dead); len(got) != 0 {
		t.Errorf("dead are %v", ids(got))
	}
}

func TestCopyKeepsWhatTheSenderSaid(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	raw, err := azservicebus.NewClientFromConnectionString(f.emulator.ServiceBusConnectionString(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close(f.ctx)
	s, err := raw.NewSender(queue, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := func(s string) *string { return &s }
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	original := &azservicebus.AMQPAnnotatedMessage{
		ApplicationProperties: map[string]any{"text": "a", "number": int32(4), "ratio": 1.5, "yes": true, "old": "x"},
		Body:                  azservicebus.AMQPAnnotatedMessageBody{Data: [][]byte{[]byte("one"), []byte("two")}},
		Header:                &azservicebus.AMQPAnnotatedMessageHeader{Durable: true, Priority: 7, TTL: time.Hour},
		Properties: &azservicebus.AMQPAnnotatedMessageProperties{
			MessageID: "m1", CorrelationID: "c", ContentType: text("application/json"), ContentEncoding: text("utf-8"), Subject: text("s"),
			To: text("t"), ReplyTo: text("r"), AbsoluteExpiryTime: &at, CreationTime: &at,
		},
	}
	if err := s.SendAMQPAnnotatedMessage(f.ctx, original, nil); err != nil {
		t.Fatal(err)
	}
	f.receive(t, active, 1, func(d *servicebus.Delivery) error { return d.DeadLetter(f.ctx, reason, "why") })
	copies := f.sender(t, queue)
	change := servicebus.Change{Set: map[string]string{"text": "b", "new": "n"}, Unset: []string{"old", "absent"}}
	if err := copies.SendCopy(f.ctx, f.browse(t, dead)[0], change); err != nil {
		t.Fatal(err)
	}
	r, err := raw.NewReceiverForQueue(queue, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.ReceiveMessages(f.ctx, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := got[0].RawAMQPMessage
	if want := map[string]any{"text": "b", "number": int32(4), "ratio": 1.5, "yes": true, "new": "n"}; !reflect.DeepEqual(m.ApplicationProperties, want) {
		t.Errorf("properties %v, want %v", m.ApplicationProperties, want)
	}
	want := *original.Properties
	want.AbsoluteExpiryTime, want.CreationTime = nil, nil // those times may be over
	if !reflect.DeepEqual(*m.Properties, want) {
		t.Errorf("got %+v, want %+v", *m.Properties, want)
	}
	if !reflect.DeepEqual(m.Body, original.Body) || m.Header.TTL != time.Hour || m.Header.Priority != 7 || m.Header.DeliveryCount != 0 {
		t.Errorf("got %+v with header %+v", m.Body, m.Header)
	}
	if got[0].DeadLetterSource != nil || *got[0].SequenceNumber != 2 {
		t.Errorf("got %+v", got[0])
	}
}

func TestCopyOfAnEmptyMessageWithAnIDOfItsOwn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if err := f.sender(t, queue).Send(f.ctx, job.Message{ID: "m1"}); err != nil {
		t.Fatal(err)
	}
	if err := f.sender(t, queue).SendCopy(f.ctx, f.browse(t, active)[0], servicebus.Change{MessageID: "m2"}); err != nil {
		t.Fatal(err)
	}
	if got := ids(f.browse(t, active)); !slices.Equal(got, []string{"m1", "m2"}) {
		t.Errorf("there are %v", got)
	}
}

func TestNoSuchDeadLetterQueue(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, c := range []struct {
		from servicebus.Source
		want error
	}{
		{servicebus.Source{Queue: "absent", DeadLetter: true}, job.ErrNotFound},
		{servicebus.Source{Topic: "jobs", Subscription: "absent", DeadLetter: true}, job.ErrNotFound},
		{servicebus.Source{Topic: "jobs", DeadLetter: true}, job.ErrInvalid},
	} {
		for _, err := range f.bus.Browse(f.ctx, c.from, 1) {
			if !errors.Is(err, c.want) {
				t.Errorf("browse %s: %v", c.from, err)
			}
		}
		if _, err := f.bus.Find(f.ctx, c.from, 1); !errors.Is(err, c.want) {
			t.Errorf("find in %s: %v", c.from, err)
		}
		if left, err := f.bus.Take(f.ctx, c.from, []int64{1}, servicebus.TakeOptions{}, nil); !errors.Is(err, c.want) || len(left) != 1 {
			t.Errorf("take from %s: %v, %v", c.from, left, err)
		}
	}
}
