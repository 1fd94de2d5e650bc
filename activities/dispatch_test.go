package activities

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

const target = "device-scheduler::job-1"

func dispatchInput(ids ...string) job.DispatchInput {
	in := job.DispatchInput{DeviceID: target, TTL: time.Hour}
	for _, id := range ids {
		in.Messages = append(in.Messages, message(id))
	}
	return in
}

func TestDispatchSendsInOrder(t *testing.T) {
	t.Parallel()
	hub := &outbox{}
	var outcomes []error
	a := &CloudToDevice{Hub: hub, Sent: func(err error) { outcomes = append(outcomes, err) }}
	out, err := run(t, attempt{}, job.Dispatch, a.Dispatch, dispatchInput("m1", "m2", "m3"))
	if err != nil || len(out.Refused) != 0 {
		t.Fatalf("got %+v, %v", out, err)
	}
	if got := hub.ids(); !slices.Equal(got, []string{"m1", "m2", "m3"}) {
		t.Errorf("sent %v", got)
	}
	if !slices.Equal(hub.to, []string{target, target, target}) || hub.ttl != time.Hour {
		t.Errorf("sent to %v with TTL %s", hub.to, hub.ttl)
	}
	if !slices.Equal(outcomes, []error{nil, nil, nil}) {
		t.Errorf("outcomes %v", outcomes)
	}
}

func TestDispatchListsWhatTheHubWillNeverTake(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		reason job.Reason
	}{
		"no such device": {&job.Error{Kind: job.ErrNotFound}, job.ReasonDeviceNotFound},
		"too large":      {&job.Error{Kind: job.ErrTooLarge}, job.ReasonDeviceMessageFailed},
		"invalid":        {&job.Error{Kind: job.ErrInvalid}, job.ReasonDeviceMessageFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub := &outbox{fail: map[string]error{"m2": c.err}}
			a := &CloudToDevice{Hub: hub}
			out, err := run(t, attempt{}, job.Dispatch, a.Dispatch, dispatchInput("m1", "m2", "m3"))
			if err != nil {
				t.Fatal(err)
			}
			want := []job.Refusal{{MessageID: "m2", Reason: c.reason, Description: c.err.Error()}}
			if !reflect.DeepEqual(out.Refused, want) {
				t.Errorf("refused %+v, want %+v", out.Refused, want)
			}
			if got := hub.ids(); !slices.Equal(got, []string{"m1", "m3"}) {
				t.Errorf("sent %v", got)
			}
		})
	}
}

// An error would leave the workflow with messages that it can neither send nor give back.
func TestDispatchRefusesWhatNamesNoDevice(t *testing.T) {
	t.Parallel()
	hub := &outbox{}
	in := dispatchInput("m1", "m2")
	in.DeviceID = "no such/device"
	out, err := run(t, attempt{}, job.Dispatch, (&CloudToDevice{Hub: hub}).Dispatch, in)
	if err != nil || len(hub.sent) != 0 || len(out.Refused) != 2 {
		t.Fatalf("refused %+v, sent %v, %v", out.Refused, hub.ids(), err)
	}
	for i, id := range []string{"m1", "m2"} {
		if r := out.Refused[i]; r.MessageID != id || r.Reason != job.ReasonDeviceNotFound || !strings.Contains(r.Description, in.DeviceID) {
			t.Errorf("refused %+v", r)
		}
	}
}

func TestDispatchChecksTheSizeBeforeItSpendsASend(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body    int
		refused bool
	}{
		"at the limit":       {job.MaxCloudToDeviceSize - len("m1") - len("job-1"), false},
		"one byte too large": {job.MaxCloudToDeviceSize - len("m1") - len("job-1") + 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub := &outbox{}
			in := dispatchInput("m1")
			in.Messages[0].Body = job.Body(strings.Repeat("x", c.body))
			out, err := run(t, attempt{}, job.Dispatch, (&CloudToDevice{Hub: hub}).Dispatch, in)
			if err != nil {
				t.Fatal(err)
			}
			if refused := len(out.Refused) == 1; refused != c.refused || len(hub.sent) == 1 == refused {
				t.Errorf("refused %+v, sent %v", out.Refused, hub.ids())
			}
		})
	}
}

func TestDispatchGoesOnWhereTheLastAttemptStopped(t *testing.T) {
	t.Parallel()
	full := &job.Error{Op: "send", Kind: job.ErrQueueFull}
	hub := &outbox{fail: map[string]error{"m1": &job.Error{Kind: job.ErrTooLarge}, "m3": full}}
	a := &CloudToDevice{Hub: hub}
	beats := newBeatLog()
	in := dispatchInput("m1", "m2", "m3", "m4")
	_, err := run(t, attempt{beats: beats}, job.Dispatch, a.Dispatch, in)
	if app := application(t, err); app.Type() != "QueueFull" || app.NonRetryable() {
		t.Fatalf("got %v", err)
	}
	if got := hub.ids(); !slices.Equal(got, []string{"m2"}) {
		t.Fatalf("the first attempt sent %v: nothing may overtake m3", got)
	}
	var details ledger
	if err := json.Unmarshal([]byte(beats.last()), &details); err != nil {
		t.Fatal(err)
	}
	delete(hub.fail, "m3")
	out, err := run(t, attempt{details: details}, job.Dispatch, a.Dispatch, in)
	if err != nil {
		t.Fatal(err)
	}
	if got := hub.ids(); !slices.Equal(got, []string{"m2", "m3", "m4"}) {
		t.Errorf("both attempts sent %v", got)
	}
	if len(out.Refused) != 1 || out.Refused[0].MessageID != "m1" {
		t.Errorf("the refusal of the first attempt was lost: %+v", out.Refused)
	}
}

func TestDispatchStartsOverWhenTheDetailsAreOfAnotherShape(t *testing.T) {
	t.Parallel()
	hub := &outbox{}
	_, err := run(t, attempt{details: "a version ago"}, job.Dispatch, (&CloudToDevice{Hub: hub}).Dispatch, dispatchInput("m1"))
	if got := hub.ids(); err != nil || !slices.Equal(got, []string{"m1"}) {
		t.Errorf("sent %v, %v", got, err)
	}
}

func TestReturn(t *testing.T) {
	t.Parallel()
	queue := &outbox{}
	a := &DeviceMessages{Queue: queue}
	m := message("m1")
	m.From, m.To = "device-solver::job-1", "d2"
	m.Properties = map[string]string{"own": "kept"}
	in := job.ReturnInput{Messages: []job.Undeliverable{
		{Message: m, Reason: job.ReasonDeviceNotFound, Description: "no device d2"},
		{Message: message("m2"), Reason: job.ReasonDeviceMessageFailed},
	}}
	if _, err := run(t, attempt{details: ledger{Done: []string{"m2"}}}, job.Return, a.Return, in); err != nil {
		t.Fatal(err)
	}
	if got := queue.ids(); !slices.Equal(got, []string{"m1"}) {
		t.Fatalf("returned %v", got)
	}
	got := queue.sent[0]
	want := map[string]string{
		"own": "kept", "undeliverable-reason": "DeviceNotFound", "undeliverable-description": "no device d2",
		"iothub-connection-device-id": "device-solver::job-1",
	}
	if !reflect.DeepEqual(got.Properties, want) || got.From != "" || got.To != "d2" || string(got.Body) != string(m.Body) {
		t.Errorf("returned %+v", got)
	}
	if len(m.Properties) != 1 {
		t.Errorf("the input was changed: %v", m.Properties)
	}
}

func TestReturnFails(t *testing.T) {
	t.Parallel()
	a := &DeviceMessages{Queue: &outbox{fail: map[string]error{"m1": &job.Error{Kind: job.ErrUnavailable}}}}
	_, err := run(t, attempt{}, job.Return, a.Return, job.ReturnInput{Messages: []job.Undeliverable{{Message: message("m1")}}})
	if app := application(t, err); app.Type() != "Unavailable" || app.NonRetryable() {
		t.Errorf("got %v", err)
	}
}
