package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errNotFound    = serviceerror.NewNotFound("workflow not found")
	errUnavailable = serviceerror.NewUnavailable("connection refused")
	errTooMany     = serviceerror.NewInvalidArgument("exceeded workflow execution limit for signal events")
)

// temporal is a server on which some workflows run.
type temporal struct {
	mu       sync.Mutex
	running  map[string]bool
	failures map[string][]error // by workflow ID, one for each call
	signals  map[string][]any   // by workflow ID
	started  []string           // "workflow type ID on task queue"
}

func newTemporal(running ...string) *temporal {
	t := &temporal{running: make(map[string]bool), failures: make(map[string][]error), signals: make(map[string][]any)}
	for _, id := range running {
		t.running[id] = true
	}
	return t
}

func (f *temporal) SignalWorkflow(ctx context.Context, id, _, name string, arg any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errs := f.failures[id]; len(errs) > 0 {
		f.failures[id] = errs[1:]
		return errs[0]
	}
	if !f.running[id] {
		return errNotFound
	}
	switch arg := arg.(type) {
	case job.Inbound:
		if name != job.SignalInbound {
			return fmt.Errorf("inbound sent as %q", name)
		}
		f.signals[id] = append(f.signals[id], arg)
	case job.Feedback:
		if name != job.SignalFeedback {
			return fmt.Errorf("feedback sent as %q", name)
		}
		f.signals[id] = append(f.signals[id], arg)
	}
	return nil
}

func (f *temporal) SignalWithStartWorkflow(ctx context.Context, id, name string, arg any,
	o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error) {
	f.mu.Lock()
	if !f.running[id] {
		f.running[id] = true
		f.started = append(f.started, fmt.Sprintf("%v %+v on %s", workflow, args[0], o.TaskQueue))
	}
	f.mu.Unlock()
	return nil, f.SignalWorkflow(ctx, id, "", name, arg)
}

// ids returns the IDs of the messages that a workflow got, one slice a signal.
func (f *temporal) ids(workflowID string) [][]string {
	var all [][]string
	for _, s := range f.signals[workflowID] {
		var ids []string
		for _, m := range s.(job.Inbound).Messages {
			ids = append(ids, m.ID)
		}
		all = append(all, ids)
	}
	return all
}

// settlement notes how a delivery was settled.
type settlement struct {
	mu          sync.Mutex
	how         string // "completed", or the reason; empty: not settled
	description string
	err         error
}

func (s *settlement) Complete(context.Context) error { return s.settle("completed", "") }

func (s *settlement) DeadLetter(_ context.Context, reason job.Reason, description string) error {
	return s.settle(string(reason), description)
}

func (s *settlement) settle(how, description string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.how, s.description = how, description
	return nil
}

type counter struct {
	mu       sync.Mutex
	routed   int
	dead     []job.Reason
	feedback []string
}

func (c *counter) Routed(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routed += n
}

func (c *counter) DeadLettered(r job.Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = append(c.dead, r)
}

func (c *counter) Feedback(o job.Outcome, recorded bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.feedback = append(c.feedback, fmt.Sprintf("%s recorded=%v", o, recorded))
}

func newRouter(t *temporal) (*Router, *counter) {
	c := &counter{}
	return &Router{Workflows: t, Counter: c, Log: slog.New(slog.DiscardHandler)}, c
}

func delivery(device, id string, sequence int64) Delivery {
	return Delivery{
		DeviceID: device, SequenceNumber: sequence, Settlement: &settlement{},
		Message: job.Message{ID: id, CorrelationID: "job-1", Body: job.Body("hello")},
	}
}

func settled(d Delivery) *settlement { return d.Settlement.(*settlement) }

const solver = "device-solver::job-1"

func TestRoute(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		device string
		change func(*job.Message)
		want   string // how it is settled
		say    string // part of the description of a dead letter
		got    func(job.Message) bool
	}{
		"to the counterpart": {device: solver, want: "completed",
			got: func(m job.Message) bool { return m.From == solver && m.Kind == job.KindNone }},
		"to the device it names": {device: "sensor::job-1", want: "completed",
			change: func(m *job.Message) { m.To = "other" }},
		"the hub knows better who sent it": {device: solver, want: "completed",
			change: func(m *job.Message) { m.From = "device-solver::job-2" },
			got:    func(m job.Message) bool { return m.From == solver }},
		"a kind is found in the body": {device: solver, want: "completed",
			change: func(m *job.Message) { m.Body = job.Body(`{"correlationid":"job-1","step":"a","status":"Completed"}`) },
			got:    func(m job.Message) bool { return m.Kind == job.KindUpdate }},
		"any body is fine without a kind": {device: solver, want: "completed",
			change: func(m *job.Message) { m.Body = []byte{0xff, 0} }},
		"an ID is made": {device: solver, want: "completed",
			change: func(m *job.Message) { m.ID = "" },
			got:    func(m job.Message) bool { return m.ID == "device-messages-42" }},
		"as large as can be": {device: solver, want: "completed",
			change: func(m *job.Message) { fill(m, solver, 0) }},

		"no name that a target can have": {device: solver, want: "DeviceNotFound", say: `"no such/device"`,
			change: func(m *job.Message) { m.To = "no such/device" }},
		"not from the hub": {device: "", want: "DeviceIdNotFound", say: "device ID"},
		"claims a sender, but is not from the hub": {device: "", want: "DeviceIdNotFound",
			change: func(m *job.Message) { m.From = solver }},
		"a device outside of all pairs":  {device: "thermostat", want: "DeviceIdNotFound", say: `"thermostat"`},
		"a role that has no counterpart": {device: "sensor::job-1", want: "DeviceNotFound", say: "to-device"},
		"a body that is not what its kind says": {device: solver, want: "InvalidMessage", say: "not a JSON object",
			change: func(m *job.Message) { m.Kind = job.KindUpdate }},
		"an unknown kind": {device: solver, want: "InvalidMessage", say: `kind "poem"`,
			change: func(m *job.Message) { m.Kind = "poem" }},
		"too large": {device: solver, want: "DeviceMessageFailed", say: "65537 bytes",
			change: func(m *job.Message) { fill(m, solver, 1) }},
		"given back by the dispatch": {device: solver, want: "DeviceNotFound", say: "no device d2",
			change: func(m *job.Message) {
				m.Properties = map[string]string{"undeliverable-reason": "DeviceNotFound", "undeliverable-description": "no device d2"}
			}},
		"given back without a sender": {device: "", want: "DeviceMessageFailed",
			change: func(m *job.Message) {
				m.Properties = map[string]string{"undeliverable-reason": "DeviceMessageFailed"}
			}},
		"an undeliverable reason that nobody knows": {device: solver, want: "DeviceMessageFailed",
			change: func(m *job.Message) { m.Properties = map[string]string{"undeliverable-reason": "made up"} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			temporal := newTemporal("job-1")
			r, n := newRouter(temporal)
			d := delivery(c.device, "m1", 42)
			if c.change != nil {
				c.change(&d.Message)
			}
			r.Handle(t.Context(), []Delivery{d})
			s := settled(d)
			if s.how != c.want || !strings.Contains(s.description, c.say) {
				t.Fatalf("settled as %q: %q; want %q with %q", s.how, s.description, c.want, c.say)
			}
			if c.want != "completed" {
				if len(temporal.signals) != 0 || n.routed != 0 || !slices.Equal(n.dead, []job.Reason{job.Reason(c.want)}) {
					t.Errorf("signalled %v, counted %+v", temporal.signals, n)
				}
				return
			}
			got := temporal.signals["job-1"]
			if len(got) != 1 || n.routed != 1 || len(n.dead) != 0 {
				t.Fatalf("signalled %v, counted %+v", temporal.signals, n)
			}
			if m := got[0].(job.Inbound).Messages[0]; c.got != nil && !c.got(m) {
				t.Errorf("the workflow got %+v", m)
			}
		})
	}
}

// fill makes m, once it has its sender, exactly as large as a cloud-to-device message may be, plus over.
func fill(m *job.Message, from string, over int) {
	sized := *m
	sized.From, sized.Body = from, nil
	m.Body = job.Body(strings.Repeat("x", job.MaxCloudToDeviceSize-sized.Size()+over))
}

func TestRouteKeepsTheOrder(t *testing.T) {
	t.Parallel()
	temporal := newTemporal("job-1", "job-2")
	r, _ := newRouter(temporal)
	var batch []Delivery
	for i := range int64(6) {
		batch = append(batch, delivery(fmt.Sprintf("device-solver::job-%d", i%2+1), fmt.Sprintf("m%d", i), i))
	}
	r.Handle(t.Context(), batch)
	for id, want := range map[string][][]string{"job-1": {{"m0", "m2", "m4"}}, "job-2": {{"m1", "m3", "m5"}}} {
		if got := temporal.ids(id); !reflect.DeepEqual(got, want) {
			t.Errorf("%s got %v, want %v in one signal", id, got, want)
		}
	}
}

func TestRouteBothDevicesOfAPairInOneSignal(t *testing.T) {
	t.Parallel()
	temporal := newTemporal("job-1")
	r, _ := newRouter(temporal)
	r.Handle(t.Context(), []Delivery{delivery(solver, "m1", 1), delivery("device-scheduler::job-1", "m2", 2)})
	if got := temporal.ids("job-1"); !reflect.DeepEqual(got, [][]string{{"m1", "m2"}}) {
		t.Errorf("got %v", got)
	}
}

func TestRouteSplitsWhatIsTooMuchForOneSignal(t *testing.T) {
	t.Parallel()
	temporal := newTemporal("job-1")
	r, _ := newRouter(temporal)
	var batch []Delivery
	for i := range int64(20) {
		d := delivery(solver, fmt.Sprint(i), i)
		d.Message.Body = job.Body(strings.Repeat("\x00", 60<<10)) // JSON needs the most for them
		batch = append(batch, d)
	}
	r.Handle(t.Context(), batch)
	got := temporal.ids("job-1")
	if len(got) != 5 || len(got[0]) != 4 {
		t.Errorf("sent %d signals: %v", len(got), got)
	}
	for _, signal := range temporal.signals["job-1"] {
		payload, err := converter.GetDefaultDataConverter().ToPayload(signal)
		if size := len(payload.GetData()); err != nil || size > 2<<20 { // "limit.blobSize.error" of a Temporal server
			t.Errorf("a payload of %d bytes, %v", size, err)
		}
	}
	if all := slices.Concat(got...); len(all) != 20 || !slices.IsSortedFunc(batch, func(a, b Delivery) int {
		return slices.Index(all, a.Message.ID) - slices.Index(all, b.Message.ID)
	}) {
		t.Errorf("the order is lost: %v", all)
	}
}

func TestRouteStartsARelayWithoutAJob(t *testing.T) {
	t.Parallel()
	temporal := newTemporal()
	r, _ := newRouter(temporal)
	for i := range int64(2) {
		d := delivery("device-solver::us", fmt.Sprint(i), i)
		r.Handle(t.Context(), []Delivery{d})
		if s := settled(d); s.how != "completed" {
			t.Errorf("settled as %q", s.how)
		}
	}
	want := []string{fmt.Sprintf("Relay %+v on hubjobs-jobs", job.RelayInput{Pair: "us"})}
	if !slices.Equal(temporal.started, want) {
		t.Errorf("started %q, want %q", temporal.started, want)
	}
	if got := temporal.ids("relay/us"); !reflect.DeepEqual(got, [][]string{{"0"}, {"1"}}) {
		t.Errorf("the relay got %v", got)
	}
}

func TestRouteWaitsForTemporal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		temporal := newTemporal("job-1")
		temporal.failures["job-1"] = slices.Repeat([]error{errUnavailable}, 20)
		r, _ := newRouter(temporal)
		d := delivery(solver, "m1", 1)
		start := time.Now()
		r.Handle(t.Context(), []Delivery{d})
		if s := settled(d); s.how != "completed" {
			t.Errorf("settled as %q", s.how)
		}
		if took := time.Since(start); took < 3*time.Minute || took > 5*time.Minute {
			t.Errorf("20 failures took %s: that is no backoff", took)
		}
	})
}

func TestRouteLeavesWhatItCouldNotRoute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		temporal := newTemporal("job-1", "job-2")
		temporal.failures["job-1"] = slices.Repeat([]error{errUnavailable}, 1000)
		r, n := newRouter(temporal)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		stuck, fine := delivery(solver, "m1", 1), delivery("device-solver::job-2", "m2", 2)
		r.Handle(ctx, []Delivery{stuck, fine})
		if settled(stuck).how != "" || settled(fine).how != "completed" || n.routed != 1 || len(n.dead) != 0 {
			t.Errorf("settled %q and %q, counted %+v", settled(stuck).how, settled(fine).how, n)
		}
	})
}

func TestRouteDeadLettersWhatTemporalWillNeverTake(t *testing.T) {
	t.Parallel()
	temporal := newTemporal("job-1")
	temporal.failures["job-1"] = []error{errTooMany}
	r, _ := newRouter(temporal)
	d := delivery(solver, "m1", 1)
	r.Handle(t.Context(), []Delivery{d})
	if s := settled(d); s.how != "DeviceMessageFailed" || !strings.Contains(s.description, "limit") {
		t.Errorf("settled as %q: %q", s.how, s.description)
	}
}

func TestRouteGoesOnAfterALostLock(t *testing.T) {
	t.Parallel()
	temporal := newTemporal("job-1")
	r, n := newRouter(temporal)
	lost, dead, fine := delivery(solver, "m1", 1), delivery("", "m2", 2), delivery(solver, "m3", 3)
	settled(lost).err = errors.New("lock lost")
	settled(dead).err = errors.New("lock lost")
	r.Handle(t.Context(), []Delivery{lost, dead, fine})
	if s := settled(fine); s.how != "completed" {
		t.Errorf("settled as %q", s.how)
	}
	if len(n.dead) != 0 {
		t.Errorf("counted %v, though the message comes again", n.dead)
	}
}

func TestRouteServesManyPairsAtATime(t *testing.T) {
	t.Parallel()
	var running []string
	var batch []Delivery
	for i := range int64(3 * parallel) {
		running = append(running, fmt.Sprint("job-", i))
		batch = append(batch, delivery(fmt.Sprint("device-solver::job-", i), "m", i))
	}
	r, n := newRouter(newTemporal(running...))
	r.Handle(t.Context(), batch)
	if n.routed != len(batch) {
		t.Errorf("routed %d of %d", n.routed, len(batch))
	}
}

func TestFeedback(t *testing.T) {
	t.Parallel()
	record := func(device, message string, o job.Outcome) job.FeedbackRecord {
		return job.FeedbackRecord{DeviceID: device, MessageID: message, Outcome: o}
	}
	batch := []job.FeedbackRecord{
		record("device-solver::job-1", "m1", job.OutcomeSuccess),
		record("device-scheduler::us", "m2", job.OutcomeExpired),
		record("device-scheduler::job-1", "m3", job.OutcomeRejected),
		record("device-solver::old", "m4", job.OutcomeSuccess),
		record("thermostat", "m5", job.OutcomePurged),
	}
	temporal := newTemporal("job-1", "relay/us")
	n := &counter{}
	f := &Feedback{Workflows: temporal, Counter: n, Log: slog.New(slog.DiscardHandler)}
	if err := f.Handle(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	want := map[string][]any{
		"job-1":    {job.Feedback{Records: []job.FeedbackRecord{batch[0], batch[2]}}},
		"relay/us": {job.Feedback{Records: []job.FeedbackRecord{batch[1]}}},
	}
	if !reflect.DeepEqual(temporal.signals, want) {
		t.Errorf("signalled %+v, want %+v", temporal.signals, want)
	}
	if len(temporal.started) != 0 {
		t.Errorf("started %v", temporal.started)
	}
	slices.Sort(n.feedback)
	if want := []string{"Expired recorded=true", "Purged recorded=false", "Rejected recorded=true", "Success recorded=false", "Success recorded=true"}; !slices.Equal(n.feedback, want) {
		t.Errorf("counted %v, want %v", n.feedback, want)
	}
}

func TestFeedbackFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"no server":                     {errUnavailable, job.ErrUnavailable},
		"a workflow that takes no more": {errTooMany, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			temporal := newTemporal("job-1")
			temporal.failures["job-1"] = []error{c.err}
			f := &Feedback{Workflows: temporal, Counter: &counter{}, Log: slog.New(slog.DiscardHandler)}
			err := f.Handle(t.Context(), []job.FeedbackRecord{{DeviceID: solver, MessageID: "m1", Outcome: job.OutcomeSuccess}})
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}
