package deadletters_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/deadletters"
)

var (
	queue = servicebus.Source{Queue: deadletters.QueueDeviceMessages}
	jobs  = servicebus.Source{Topic: "jobs", Subscription: "jobs"}
)

// fixture is a namespace of its own and the dead-letter queue of one of its sources.
type fixture struct {
	*deadletters.Queue
	emulator *emulator.Emulator
	bus      *servicebus.Client
	from     servicebus.Source
	ctx      context.Context
}

func newFixture(t *testing.T, from servicebus.Source) *fixture {
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return &fixture{deadletters.Of(bus, from), e, bus, from, ctx}
}

// kill sends messages and dead-letters each for a reason; it returns their numbers.
func (f *fixture) kill(t *testing.T, reason job.Reason, messages ...job.Message) []int64 {
	t.Helper()
	before, err := f.Select(f.ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.bus.Sender(f.Entity())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := s.Send(f.ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	f.receive(t, len(messages), func(d *servicebus.Delivery) error { return d.DeadLetter(f.ctx, reason, "no good") })
	after, err := f.Select(f.ctx, "")
	if err != nil || len(after) != len(before)+len(messages) {
		t.Fatalf("dead letters are %v, were %v, %v", after, before, err)
	}
	return after[len(before):]
}

// receive handles n messages of the source.
func (f *fixture) receive(t *testing.T, n int, handle func(*servicebus.Delivery) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	got := 0
	err := f.bus.Receive(ctx, f.from, servicebus.ReceiveOptions{}, func(_ context.Context, batch []*servicebus.Delivery) {
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
	if err != nil || got < n {
		t.Fatalf("got %d of %d messages, %v", got, n, err)
	}
}

// alive returns what is in the source itself.
func (f *fixture) alive(t *testing.T) []*servicebus.Received {
	t.Helper()
	var all []*servicebus.Received
	for r, err := range f.bus.Browse(f.ctx, f.from, 1) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func (f *fixture) dead(t *testing.T) []string {
	t.Helper()
	found, _, err := f.List(f.ctx, deadletters.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	return ids(found)
}

func (f *fixture) resubmit(t *testing.T, numbers []int64) []deadletters.Outcome {
	t.Helper()
	var all []deadletters.Outcome
	err := f.Resubmit(f.ctx, numbers, deadletters.Change{}, func(o deadletters.Outcome) { all = append(all, o) })
	if err != nil {
		t.Fatal(err)
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

func named(names ...string) []job.Message {
	var all []job.Message
	for _, name := range names {
		all = append(all, job.Message{ID: name, Body: job.Body("{}"), Properties: map[string]string{job.PropertyDeviceID: "device-solver::1"}})
	}
	return all
}

func TestList(t *testing.T) {
	t.Parallel()
	f := newFixture(t, queue)
	f.kill(t, job.ReasonInvalidMessage, named("a", "b")...)
	f.kill(t, job.ReasonDeviceNotFound, named("c")...)
	f.kill(t, job.ReasonInvalidMessage, named("d")...)
	for _, c := range []struct {
		filter deadletters.Filter
		want   string
		more   bool
	}{
		{deadletters.Filter{}, "a b c d", false},
		{deadletters.Filter{Limit: 4}, "a b c d", false},
		{deadletters.Filter{Limit: 3}, "a b c", true},
		{deadletters.Filter{Newest: true}, "d c b a", false},
		{deadletters.Filter{Newest: true, Limit: 2}, "d c", true},
		{deadletters.Filter{Reason: "InvalidMessage", Limit: 2}, "a b", true},
		{deadletters.Filter{Reason: "InvalidMessage", Newest: true, Limit: 3}, "d b a", false},
		{deadletters.Filter{Reason: "Other"}, "", false},
	} {
		found, more, err := f.List(f.ctx, c.filter)
		if got := strings.Join(ids(found), " "); err != nil || got != c.want || more != c.more {
			t.Errorf("%+v: got %s, more %v, %v", c.filter, got, more, err)
		}
	}
}

func TestFindAndCheck(t *testing.T) {
	t.Parallel()
	f := newFixture(t, queue)
	numbers := f.kill(t, job.ReasonInvalidMessage, named("a", "b")...)
	if r, err := f.Find(f.ctx, numbers[1]); err != nil || r.Message.ID != "b" {
		t.Errorf("found %+v, %v", r, err)
	}
	absent := numbers[1] + 1
	want := fmt.Sprintf("device-messages has no dead letter %d", absent)
	if _, err := f.Find(f.ctx, absent); !errors.Is(err, job.ErrNotFound) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := f.Check(f.ctx, numbers); err != nil {
		t.Error(err)
	}
	if err := f.Check(f.ctx, append(numbers, absent)); !errors.Is(err, job.ErrNotFound) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestResubmitKeepsTheMessageIDWhereTheWorkflowsKnowItBy(t *testing.T) {
	t.Parallel()
	f := newFixture(t, queue)
	m := named("a")[0]
	m.Properties[job.PropertyUndeliverableReason] = string(job.ReasonDeviceNotFound)
	m.Properties[job.PropertyUndeliverableDescription] = "no such device"
	numbers := f.kill(t, job.ReasonDeviceNotFound, m, named("b")[0])
	out := f.resubmit(t, numbers[:1])
	if len(out) != 1 || out[0].Err != nil || out[0].MessageID != "a" || out[0].NewID != "" {
		t.Errorf("got %+v", out)
	}
	alive := f.alive(t)
	if !slices.Equal(ids(alive), []string{"a"}) || !slices.Equal(f.dead(t), []string{"b"}) {
		t.Fatalf("alive %v, dead %v", ids(alive), f.dead(t))
	}
	got := alive[0].Properties
	if len(got) != 2 || got[job.PropertyDeviceID] != "device-solver::1" || got[job.PropertyResubmitted] != fmt.Sprint(numbers[0]) {
		t.Errorf("the copy has %v: with the old reason the router would refuse it unseen", got)
	}
}

// The topic remembers the ID of a job: a copy with the same would be dropped and its dead letter completed.
func TestResubmitGetsPastDuplicateDetection(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jobs)
	numbers := f.kill(t, job.ReasonInvalidMessage, named("job-1")...)
	out := f.resubmit(t, numbers)
	alive := f.alive(t)
	if len(alive) != 1 || len(f.dead(t)) != 0 {
		t.Fatalf("alive %v, dead %v", ids(alive), f.dead(t))
	}
	first := alive[0].Message.ID
	if first == "job-1" || out[0].NewID != first || alive[0].Properties[job.PropertyOriginalID] != "job-1" {
		t.Errorf("got %+v, copy %s with %v", out, first, alive[0].Properties)
	}
	// Refused and put back once more it gets another ID, and still tells the first.
	f.receive(t, 1, func(d *servicebus.Delivery) error { return d.DeadLetter(f.ctx, job.ReasonInvalidMessage, "again") })
	again, err := f.Select(f.ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	f.resubmit(t, again)
	alive = f.alive(t)
	if len(alive) != 1 || alive[0].Message.ID == first || alive[0].Properties[job.PropertyOriginalID] != "job-1" {
		t.Errorf("alive %v with %v", ids(alive), alive[0].Properties)
	}
}

// Between the copy and the completion of its dead letter the process may end. Whoever goes on repeats the message in the
// queue, under the same ID; the topic drops the repeat, and keeps the copy.
func TestNothingIsLostBetweenCopyAndCompletion(t *testing.T) {
	t.Parallel()
	for _, from := range []servicebus.Source{queue, jobs} {
		t.Run(from.String(), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, from)
			numbers := f.kill(t, job.ReasonInvalidMessage, named("a", "b")...)
			if err := f.Crash(f.ctx, numbers[0]); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(f.dead(t), []string{"a", "b"}) || len(f.alive(t)) != 1 {
				t.Fatalf("dead %v, alive %v", f.dead(t), ids(f.alive(t)))
			}
			f.resubmit(t, numbers)
			want := []string{"a", "a", "b"}
			if from == jobs {
				want = []string{"a", "b"}
			}
			var got []string
			for _, r := range f.alive(t) {
				id := r.Message.ID
				if original := r.Properties[job.PropertyOriginalID]; original != "" {
					id = original
				}
				got = append(got, id)
			}
			if !slices.Equal(got, want) || len(f.dead(t)) != 0 {
				t.Errorf("alive %v, want %v; dead %v", got, want, f.dead(t))
			}
		})
	}
}

func TestResubmitOfWhatIsNotToBeHad(t *testing.T) {
	t.Parallel()
	f := newFixture(t, queue)
	numbers := f.kill(t, job.ReasonInvalidMessage, named("a", "b")...)
	from := f.from
	from.DeadLetter = true
	var out []deadletters.Outcome
	_, err := f.bus.Take(f.ctx, from, numbers[:1], servicebus.TakeOptions{}, func(context.Context, *servicebus.Delivery) error {
		out = f.resubmit(t, append(numbers, numbers[1]+1))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, o := range out {
		told = append(told, fmt.Sprintf("%d %v", o.SequenceNumber-numbers[0], o.Err))
	}
	slices.Sort(told)
	const held = "somebody else has it locked, or it is deferred: try again in a minute"
	// All are locked: whoever takes one locks its neighbours for a while.
	want := []string{"0 " + held, "1 " + held, "2 it is gone: somebody else has put it back or removed it"}
	if !slices.Equal(told, want) || len(f.alive(t)) != 0 || len(f.dead(t)) != 2 {
		t.Errorf("got %q, want %q", told, want)
	}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jobs)
	numbers := f.kill(t, job.ReasonInvalidMessage, named("a", "b", "c")...)
	var out []deadletters.Outcome
	if err := f.Purge(f.ctx, []int64{numbers[0], numbers[2]}, func(o deadletters.Outcome) { out = append(out, o) }); err != nil {
		t.Fatal(err)
	}
	if len(out) != 2 || out[0].MessageID != "a" || out[0].Err != nil || !slices.Equal(f.dead(t), []string{"b"}) || len(f.alive(t)) != 0 {
		t.Errorf("got %+v, dead %v", out, f.dead(t))
	}
}

func TestErrorsThatConcernAllEndIt(t *testing.T) {
	t.Parallel()
	f := newFixture(t, queue)
	numbers := f.kill(t, job.ReasonInvalidMessage, named("a", "b")...)
	if _, err := f.emulator.InjectFault(emulator.Fault{Kind: emulator.FaultRefuse, Operation: "send", Entity: queue.Queue, Code: 401}); err != nil {
		t.Fatal(err)
	}
	err := f.Resubmit(f.ctx, numbers, deadletters.Change{}, func(o deadletters.Outcome) { t.Errorf("reported %+v", o) })
	if !errors.Is(err, job.ErrUnauthorized) || !strings.Contains(err.Error(), fmt.Sprintf("dead letter %d: ", numbers[0])) {
		t.Errorf("got %v", err)
	}
	if len(f.dead(t)) != 2 {
		t.Errorf("dead are %v", f.dead(t))
	}
}
