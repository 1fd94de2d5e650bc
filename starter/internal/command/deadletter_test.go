package command

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/azure/iotdevice"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/router"
)

const deviceMessages = "device-messages"

// namespace is a Service Bus namespace, and the hub that it belongs to, with the starter before it.
type namespace struct {
	*emulator.Emulator
	bus *servicebus.Client
	ctx context.Context
}

func newNamespace(t *testing.T) *namespace {
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
	return &namespace{e, bus, ctx}
}

func (n *namespace) process(args ...string) (Process, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	return Process{
		Args: append([]string{"starter", "deadletter"}, args...), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
		Environ: []string{"SERVICEBUS_CONNECTION_STRING=" + n.ServiceBusConnectionString(), noConfigFile},
	}, &stdout, &stderr
}

func (n *namespace) run(t *testing.T, args ...string) output {
	t.Helper()
	p, stdout, stderr := n.process(args...)
	code := Run(n.ctx, p)
	return output{code, stdout.String(), stderr.String()}
}

// entries runs a command with JSON output and decodes its lines.
func entries[T any](t *testing.T, n *namespace, args ...string) []T {
	t.Helper()
	out := n.run(t, append(args, "--output", "json")...)
	if out.code != ExitOK {
		t.Fatalf("%v: got %+v", args, out)
	}
	var all []T
	for line := range strings.Lines(out.stdout) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, v)
	}
	return all
}

func (n *namespace) dead(t *testing.T) []string {
	t.Helper()
	var ids []string
	for _, e := range entries[deadLetterEntry](t, n, "list") {
		ids = append(ids, e.MessageID)
	}
	return ids
}

// alive returns what is in the queue itself.
func (n *namespace) alive(t *testing.T) []string {
	t.Helper()
	var ids []string
	for r, err := range n.bus.Browse(n.ctx, servicebus.Source{Queue: deviceMessages}, 1) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.Message.ID)
	}
	return ids
}

// kill sends messages and dead-letters them.
func (n *namespace) kill(t *testing.T, messages ...job.Message) {
	t.Helper()
	s, err := n.bus.Sender(deviceMessages)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := s.Send(n.ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	left := len(messages)
	err = n.bus.Receive(ctx, servicebus.Source{Queue: deviceMessages}, servicebus.ReceiveOptions{}, func(_ context.Context, batch []*servicebus.Delivery) {
		for _, d := range batch {
			if err := d.DeadLetter(n.ctx, job.ReasonInvalidMessage, "no good"); err != nil {
				t.Error(err)
			}
			if left--; left == 0 {
				cancel()
			}
		}
	})
	if err != nil || left != 0 {
		t.Fatalf("%d of %d messages are not dead, %v", left, len(messages), err)
	}
}

func message(id string, body string) job.Message {
	return job.Message{
		ID: id, Kind: job.KindUpdate, Body: job.Body(body),
		Properties: map[string]string{job.PropertyDeviceID: "device-solver::job-1", "site": "north\x1b"},
	}
}

func TestDeadLetterListAndShow(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	if out := n.run(t, "list"); out != (output{0, "no dead letters\n", ""}) {
		t.Errorf("got %+v", out)
	}
	n.kill(t, message("a", `{"Step":"<x>","n":1}`), message("b", "two\nlines\x1b"), message("c", "\xff\xfe"+strings.Repeat("\x00", 300)))
	out := n.run(t, "list", "--limit", "2")
	if lines := strings.Split(out.stdout, "\n"); out.code != ExitOK || len(lines) != 4 ||
		strings.Join(strings.Fields(lines[0]), " ") != "NUMBER AGE REASON DEVICE JOB MESSAGE KIND SIZE" ||
		!strings.HasSuffix(strings.Join(strings.Fields(lines[1]), " "), "s InvalidMessage device-solver::job-1 job-1 a update 20") {
		t.Errorf("got %+v", out)
	}
	listed := entries[deadLetterEntry](t, n, "list", "--newest")
	if len(listed) != 3 || listed[0].MessageID != "c" || listed[0].Reason != "InvalidMessage" || listed[0].Description != "no good" || listed[0].EnqueuedAt.IsZero() {
		t.Fatalf("got %+v", listed)
	}
	for i, want := range []string{
		"Body, 302 bytes:\n00000000  ff fe 00", "Body, 10 bytes:\ntwo\nlines\ufffd\n", "Body, 20 bytes:\n{\n  \"Step\": \"<x>\",\n  \"n\": 1\n}\n",
	} {
		out := n.run(t, "show", fmt.Sprint(listed[i].SequenceNumber))
		for _, want := range []string{
			want, "Reason:       InvalidMessage\nDescription:  no good\n", "  message-id = " + listed[i].MessageID + "\n", "  site = north\ufffd\n",
		} {
			if out.code != ExitOK || !strings.Contains(out.stdout, want) {
				t.Errorf("got %+v, want %q", out, want)
			}
		}
	}
	whole := entries[struct {
		deadLetterEntry
		SystemProperties      map[string]string
		ApplicationProperties map[string]string
		Body                  job.Body
	}](t, n, "show", fmt.Sprint(listed[1].SequenceNumber))
	if got := whole[0]; string(got.Body) != "two\nlines\x1b" || got.SystemProperties["message-id"] != "b" || got.ApplicationProperties["kind"] != "update" {
		t.Errorf("got %+v", got)
	}
}

func TestDeadLetterResubmit(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.kill(t, message("a", "{}"), message("b", "{}"), message("c", "{}"))
	listed := entries[deadLetterEntry](t, n, "list")
	number := fmt.Sprint(listed[1].SequenceNumber)
	if out := n.run(t, "resubmit", number, number); out != (output{0, "1 of 1 dead letter of device-messages resubmitted\n", ""}) {
		t.Errorf("got %+v", out)
	}
	if dead, alive := n.dead(t), n.alive(t); !slices.Equal(dead, []string{"a", "c"}) || !slices.Equal(alive, []string{"b"}) {
		t.Errorf("dead %v, alive %v", dead, alive)
	}
	if out := n.run(t, "resubmit", number); out.code != ExitError || out.stdout != "" ||
		out.stderr != "starter: device-messages has no dead letter "+number+" (starter deadletter list shows all)\n" {
		t.Errorf("got %+v", out)
	}
	told := n.run(t, "resubmit", "--reason", "InvalidMessage", "-o", "json").stdout
	want := fmt.Sprintf(`{"event":"resubmitted","sequenceNumber":%d,"messageId":"a"}
{"event":"resubmitted","sequenceNumber":%d,"messageId":"c"}
{"event":"summary","done":2,"failed":0,"left":0}
`, listed[0].SequenceNumber, listed[2].SequenceNumber)
	if told != want || !slices.Equal(n.alive(t), []string{"b", "a", "c"}) {
		t.Errorf("got %s, alive %v", told, n.alive(t))
	}
	if out := n.run(t, "resubmit", "--all"); out != (output{0, "no dead letters\n", ""}) {
		t.Errorf("got %+v", out)
	}
}

// Ctrl-C ends between two messages, with a count of what was done.
func TestDeadLetterResubmitInterrupted(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.kill(t, message("a", "{}"), message("b", "{}"), message("c", "{}"))
	p, _, stderr := n.process("resubmit", "--all", "--output", "json")
	signals := make(chan os.Signal)
	w := &firstWrite{done: func() { signals <- os.Interrupt }}
	p.Signals, p.Stdout = signals, w
	if code := Run(n.ctx, p); code != ExitInterrupted || stderr.String() != "starter: interrupted\n" {
		t.Errorf("code %d, %q", code, stderr)
	}
	alive := n.alive(t)
	if !strings.HasSuffix(w.String(), fmt.Sprintf(`{"event":"summary","done":%d,"failed":0,"left":%d}`+"\n", len(alive), 3-len(alive))) || len(alive) == 0 {
		t.Errorf("got %s, alive %v", w, alive)
	}
	if dead := n.dead(t); len(dead)+len(alive) != 3 {
		t.Errorf("dead %v, alive %v", dead, alive)
	}
}

// firstWrite calls done after the first thing that is written.
type firstWrite struct {
	written bytes.Buffer
	once    sync.Once
	done    func()
}

func (w *firstWrite) String() string { return w.written.String() }

func (w *firstWrite) Write(b []byte) (int, error) {
	defer w.once.Do(w.done)
	return w.written.Write(b)
}

func TestDeadLetterPurge(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.kill(t, message("a", "{}"), message("b", "{}"))
	const refusal = "starter: purge removes messages for good: say --yes where nobody can be asked (see: starter deadletter purge --help)\n"
	if out := n.run(t, "purge", "--all"); out != (output{1, "", refusal}) {
		t.Errorf("got %+v", out)
	}
	for _, c := range []struct {
		answers string
		asked   int
		stdout  string
		dead    int
	}{
		{"n\n", 1, "", 2}, {"", 1, "", 2}, {"what?\nno\n", 2, "", 2}, {"Yes\n", 1, "2 of 2 dead letters of device-messages purged\n", 0},
	} {
		p, stdout, stderr := n.process("purge", "--all")
		p.Stdin, p.Terminal = strings.NewReader(c.answers), Terminal{In: true, Err: true}
		if code := Run(n.ctx, p); code != ExitOK || stdout.String() != c.stdout {
			t.Errorf("%q: code %d, %q, %q", c.answers, code, stdout, stderr)
		}
		if got := strings.Count(stderr.String(), "Remove 2 dead letters of device-messages for good? (y/n) "); got != c.asked {
			t.Errorf("%q: asked %d times: %q", c.answers, got, stderr)
		}
		if got := n.dead(t); len(got) != c.dead {
			t.Errorf("%q: dead are %v", c.answers, got)
		}
	}
	n.kill(t, message("c", "{}"))
	if out := n.run(t, "purge", "--all", "--yes"); out != (output{0, "1 of 1 dead letter of device-messages purged\n", ""}) {
		t.Errorf("got %+v", out)
	}
	if alive := n.alive(t); len(alive) != 0 {
		t.Errorf("alive are %v", alive)
	}
}

func TestCtrlCAtTheQuestionPurgesNothing(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.kill(t, message("a", "{}"))
	p, stdout, _ := n.process("purge", "--all")
	never, end := io.Pipe()
	defer end.Close()
	signals := make(chan os.Signal)
	stderr := &firstWrite{done: func() { go func() { signals <- os.Interrupt }() }}
	p.Stdin, p.Stderr, p.Signals, p.Terminal = never, stderr, signals, Terminal{In: true, Err: true}
	if code := Run(n.ctx, p); code != ExitInterrupted || stdout.Len() != 0 || !strings.HasSuffix(stderr.String(), "(y/n) \nstarter: interrupted\n") {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	if got := n.dead(t); len(got) != 1 {
		t.Errorf("dead are %v", got)
	}
}

func TestDeadLetterErrors(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	key := strings.SplitAfter(n.ServiceBusConnectionString(), "SharedAccessKey=")[1]
	key, _, _ = strings.Cut(key, ";")
	wrong := strings.Replace(n.ServiceBusConnectionString(), key, "d3Jvbmcta2V5", 1)
	for _, test := range []struct {
		name string
		args string
		env  []string // instead of a good one
		want string
	}{
		{"no connection string", "list", []string{}, `SERVICEBUS_CONNECTION_STRING is not set: run a local hub with "go run ./infra/local up", or set it`},
		{"a bad one", "list", []string{"SERVICEBUS_CONNECTION_STRING=SharedAccessKey=" + key}, "configure the Service Bus client: invalid"},
		{"a wrong key", "list", []string{"SERVICEBUS_CONNECTION_STRING=" + wrong}, `the Service Bus refuses access to queue "device-messages": the settings need a key`},
		{"no CA file", "list", []string{"EMULATOR_CA_FILE=/nowhere"}, "read the CA file: invalid"},
		{"unknown queue", "list --queue absent", nil, `the Service Bus namespace has no queue "absent": name another with --queue or --subscription`},
		{"unknown queue to put back to", "resubmit --all --queue absent", nil, `has no queue "absent"`},
		{"unknown subscription", "show 1 --subscription jobs/absent", nil, `has no subscription "absent" of topic "jobs"`},
		{"half a subscription", "list --subscription jobs", nil, `--subscription is "jobs": write TOPIC/NAME, such as jobs/jobs`},
		{"two sources", "list --subscription jobs/jobs --queue q", nil, "name a --queue or a --subscription, not both"},
		{"a number too many", "list 1", nil, `unexpected argument "1"`},
		{"no limit", "list --limit 0", nil, "--limit is 0: it must be at least 1"},
		{"no number", "show x", nil, `"x" is no sequence number: starter deadletter list shows them`},
		{"a number below one", "resubmit 0", nil, `"0" is no sequence number`},
		{"no such number", "show 7 --subscription jobs/jobs", nil, "jobs/jobs has no dead letter 7 (starter deadletter list shows all)"},
		{"which", "resubmit", nil, "name dead letters by their numbers, or say --all or --reason (see: starter deadletter resubmit --help)"},
		{"numbers and all", "purge 1 --all --yes", nil, "by their numbers, or by --all or --reason, not both"},
		{"no value", "resubmit --all --set kind", nil, `--set is "kind": write NAME=VALUE`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, stdout, stderr := n.process(strings.Fields(test.args)...)
			if test.env != nil {
				p.Environ = test.env
			}
			code := Run(n.ctx, p)
			if code != ExitError || stdout.Len() != 0 || !strings.Contains(stderr.String(), test.want) || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("code %d, %q, %q, want %q", code, stdout, stderr, test.want)
			}
			if strings.Contains(stderr.String(), key) {
				t.Error("the error shows the key")
			}
		})
	}
}

func TestAge(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	for d, want := range map[time.Duration]string{
		-time.Minute: "0s", 59 * time.Second: "59s", time.Minute: "1m", 59 * time.Minute: "59m", time.Hour: "1h", 47 * time.Hour: "47h", 48 * time.Hour: "2d",
	} {
		if got := age(now.Add(-d), now); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
	if got := age(time.Time{}, now); got != "" {
		t.Errorf("unknown: got %s", got)
	}
}

// signalled takes what the router brings to workflows: it stands for a Temporal server on which every job runs.
type signalled struct {
	mu  sync.Mutex
	got map[string]string // bodies of messages by workflow and message ID
}

func (s *signalled) SignalWorkflow(_ context.Context, workflowID, _, _ string, arg any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range arg.(job.Inbound).Messages {
		s.got[workflowID+" "+m.ID] = string(m.Body)
	}
	return nil
}

func (s *signalled) SignalWithStartWorkflow(context.Context, string, string, any, client.StartWorkflowOptions, any, ...any) (client.WorkflowRun, error) {
	panic("every job runs")
}

func (s *signalled) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.got[id]
	return ok
}

// counted counts nothing.
type counted struct{}

func (counted) Routed(int)                 {}
func (counted) DeadLettered(job.Reason)    {}
func (counted) Feedback(job.Outcome, bool) {}

// route runs a router until the test ends.
func (n *namespace) route(t *testing.T) *signalled {
	t.Helper()
	s := &signalled{got: make(map[string]string)}
	r := &router.Router{Workflows: s, Counter: counted{}, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(n.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := n.bus.Receive(ctx, servicebus.Source{Queue: deviceMessages}, servicebus.ReceiveOptions{}, func(ctx context.Context, batch []*servicebus.Delivery) {
			var in []router.Delivery
			for _, d := range batch {
				in = append(in, router.Delivery{Message: d.Message, DeviceID: d.Properties[job.PropertyDeviceID], SequenceNumber: d.SequenceNumber, Settlement: d})
			}
			r.Handle(ctx, in)
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s
}

// publish sends a message of a device, which it registers.
func (n *namespace) publish(t *testing.T, deviceID string, m job.Message) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(n.CAPEM())
	hub, err := iothub.New(iothub.Config{ConnectionString: n.HubConnectionString(), HTTPSAddr: n.HTTPSAddr(), AMQPSAddr: n.AMQPSAddr(), RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	if _, err := hub.EnsureDevice(n.ctx, deviceID); err != nil {
		t.Fatal(err)
	}
	connectionString, err := hub.DeviceConnectionString(n.ctx, deviceID)
	if err != nil {
		t.Fatal(err)
	}
	device, err := iotdevice.Dial(n.ctx, connectionString, iotdevice.Options{Addr: n.MQTTSAddr(), RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close(n.ctx)
	if err := device.Publish(n.ctx, m); err != nil {
		t.Fatal(err)
	}
}

// TestRefusedMessagesAreMendedAndRouted takes what devices sent, and the router refused, through list and resubmit.
func TestRefusedMessagesAreMendedAndRouted(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	workflows := n.route(t)
	n.publish(t, "sensor-1", job.Message{ID: "m1", Body: job.Body("21.5")})
	n.publish(t, "device-solver::job-9", job.Message{ID: "m2", Kind: job.KindUpdate, Body: job.Body("no update")})
	reasons := func() map[string]string {
		all := make(map[string]string)
		for _, e := range entries[deadLetterEntry](t, n, "list") {
			all[e.MessageID] = e.Reason + " from " + e.DeviceID
		}
		return all
	}
	n.eventually(t, "both are refused", func() bool {
		got := reasons()
		return len(got) == 2 && got["m1"] == "DeviceIdNotFound from sensor-1" && got["m2"] == "InvalidMessage from device-solver::job-9"
	})
	highest := func() int64 {
		listed := entries[deadLetterEntry](t, n, "list", "--newest", "--limit", "1")
		return listed[0].SequenceNumber
	}
	before := highest()
	if out := n.run(t, "resubmit", "--reason", "InvalidMessage"); out.code != ExitOK {
		t.Fatalf("got %+v", out)
	}
	n.eventually(t, "it is refused again, as nothing was mended", func() bool { return len(reasons()) == 2 && highest() > before })

	for _, args := range [][]string{
		{"resubmit", "--reason", "InvalidMessage", "--unset", "kind"},
		{"resubmit", "--reason", "DeviceIdNotFound", "--set", "iothub-connection-device-id=device-solver::job-9"},
	} {
		if out := n.run(t, args...); out.code != ExitOK {
			t.Fatalf("%v: got %+v", args, out)
		}
	}
	n.eventually(t, "both are routed", func() bool { return workflows.has("job-9 m1") && workflows.has("job-9 m2") })
	if dead := n.dead(t); len(dead) != 0 {
		t.Errorf("dead are %v", dead)
	}
}

func (n *namespace) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-n.ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
