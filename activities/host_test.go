package activities

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/job"
)

// devices is a pool without connections.
type devices struct {
	outbox
	opened, closed []job.Session
	err            error
}

func (d *devices) Open(_ context.Context, s job.Session) error {
	d.opened = append(d.opened, s)
	return d.err
}

func (d *devices) Publish(ctx context.Context, _ job.Session, m job.Message) error {
	if err := cmp.Or(d.err, ctx.Err()); err != nil {
		return err
	}
	return d.Send(ctx, m)
}

func (d *devices) Close(_ context.Context, s job.Session) error {
	d.closed = append(d.closed, s)
	return d.err
}

var session = job.Session{DeviceID: "device-solver::job-1", WorkflowID: "solve/job-1"}

func newHost(d *devices, s StepRunner) *Host {
	return &Host{Name: "h1", Role: job.RoleSolver, Devices: d, Steps: s}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	d := &devices{}
	out, err := run(t, attempt{}, job.Connect, newHost(d, nil).Connect, job.ConnectInput{Session: session})
	if err != nil {
		t.Fatal(err)
	}
	if want := (job.ConnectOutput{Host: "h1", TaskQueue: "hubjobs-solver/h1"}); out != want {
		t.Errorf("got %+v, want %+v", out, want)
	}
	if !slices.Equal(d.opened, []job.Session{session}) {
		t.Errorf("opened %v", d.opened)
	}
}

func TestConnectFails(t *testing.T) {
	t.Parallel()
	h := newHost(&devices{err: &job.Error{Kind: job.ErrNotFound}}, nil)
	_, err := run(t, attempt{}, job.Connect, h.Connect, job.ConnectInput{Session: session})
	if app := application(t, err); app.Type() != "NotFound" || !strings.Contains(app.Message(), session.DeviceID) {
		t.Errorf("got %v", err)
	}
	_, err = run(t, attempt{}, job.Connect, h.Connect, job.ConnectInput{})
	if app := application(t, err); app.Type() != "Invalid" {
		t.Errorf("without a device ID: got %v", err)
	}
}

func TestAccept(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		runner          *stepRunner
		step, rejection string
	}{
		"every step can be run": {&stepRunner{}, "", ""},
		"one can't":             {&stepRunner{reject: "a"}, "a", "can't"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &devices{}
			h := newHost(d, c.runner)
			out, err := run(t, attempt{}, job.Accept, h.Accept, job.AcceptInput{Session: session, Job: someJob()})
			if err != nil {
				t.Fatal(err)
			}
			if out.RejectedStep != c.step || out.Rejection != c.rejection || out.TaskQueue != "hubjobs-solver/h1" {
				t.Errorf("got %+v", out)
			}
			if len(d.opened) != 1 {
				t.Error("the device must be connected in any case, to report")
			}
		})
	}
}

func TestSend(t *testing.T) {
	t.Parallel()
	d := &devices{outbox: outbox{fail: map[string]error{"m2": &job.Error{Kind: job.ErrUnavailable}}}}
	h := newHost(d, nil)
	in := job.SendInput{Session: session, Messages: []job.Message{message("m1"), message("m2"), message("m3")}}
	_, err := run(t, attempt{}, job.Send, h.Send, in)
	if app := application(t, err); app.Type() != "Unavailable" || !strings.Contains(app.Message(), `message "m2"`) {
		t.Errorf("got %v", err)
	}
	d.fail = nil
	if _, err := run(t, attempt{details: ledger{Done: []string{"m1"}}}, job.Send, h.Send, in); err != nil {
		t.Fatal(err)
	}
	if got := d.ids(); !slices.Equal(got, []string{"m1", "m2", "m3"}) {
		t.Errorf("both attempts sent %v", got)
	}
}

func TestSendRefusesWhatTheHubWould(t *testing.T) {
	t.Parallel()
	d := &devices{}
	big := message("m2")
	big.Body = make(job.Body, job.MaxDeviceToCloudSize)
	in := job.SendInput{Session: session, Messages: []job.Message{message("m1"), big}}
	_, err := run(t, attempt{}, job.Send, newHost(d, nil).Send, in)
	if app := application(t, err); app.Type() != "TooLarge" || !app.NonRetryable() {
		t.Errorf("got %v", err)
	}
	if len(d.sent) != 0 {
		t.Errorf("sent %v, want nothing of a batch that can't be sent whole", d.ids())
	}
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	d := &devices{}
	if _, err := run(t, attempt{}, job.Disconnect, newHost(d, nil).Disconnect, job.DisconnectInput{Session: session}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.closed, []job.Session{session}) {
		t.Errorf("closed %v", d.closed)
	}
	d.err = &job.Error{Kind: job.ErrUnavailable}
	_, err := run(t, attempt{}, job.Disconnect, newHost(d, nil).Disconnect, job.DisconnectInput{Session: session})
	if app := application(t, err); app.Type() != "Unavailable" {
		t.Errorf("got %v", err)
	}
}
