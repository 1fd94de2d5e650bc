package azure_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/azure/eventhubs"
	"github.com/hubjobs/hubjobs/azure/iotdevice"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
)

// target is a hub to run the behaviours against, with its Service Bus namespace and its built-in endpoint.
type target struct {
	hub        iothub.Config
	device     iotdevice.Options // how to reach the hub
	servicebus servicebus.Config
	eventhubs  eventhubs.Config
	patience   time.Duration // for anything that takes the services' time
	poll       time.Duration // between looks at the registry, which a live hub throttles
}

// Entities that the pipeline's infrastructure has.
const (
	queueDeviceMessages = "device-messages"
	topicJobs           = "jobs"
	subscriptionJobs    = "jobs"
)

// behaviours are what the pipeline relies on.
var behaviours = []struct {
	name string
	run  func(*testing.T, *fixture)
}{
	{"registry", testRegistry},
	{"wrong key", testWrongKey},
	{"device to cloud", testDeviceToCloud},
	{"cloud to device, offline then online", testCloudToDevice},
	{"cloud to nobody", testCloudToNobody},
	{"redelivery when the handler fails", testRedelivery},
	{"direct method", testMethod},
	{"topic and dead-letter queue", testTopic},
	{"missing entity", testMissingEntity},
}

func run(t *testing.T, to target) {
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			b.run(t, newFixture(t, to))
		})
	}
}

// fixture is one behaviour's clients of a target.
type fixture struct {
	target
	hubClient *iothub.Client
	bus       *servicebus.Client
	events    *eventhubs.Client
}

func newFixture(t *testing.T, to target) *fixture {
	t.Helper()
	f := &fixture{target: to}
	var err error
	if f.hubClient, err = iothub.New(to.hub); err != nil {
		t.Fatal(err)
	}
	if f.bus, err = servicebus.New(to.servicebus); err != nil {
		t.Fatal(err)
	}
	if f.events, err = eventhubs.New(to.eventhubs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.hubClient.Close(); err != nil {
			t.Error(err)
		}
		if err := f.bus.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), f.patience)
	t.Cleanup(cancel)
	return ctx
}

// newDevice makes a device identity for one test and returns its ID and connection string.
func (f *fixture) newDevice(t *testing.T) (id, connectionString string) {
	t.Helper()
	ctx := f.context(t)
	id = string(job.RoleSolver) + "::test-" + uuid.NewString()
	if created, err := f.hubClient.EnsureDevice(ctx, id); err != nil || !created {
		t.Fatalf("EnsureDevice: %v, %v", created, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.patience)
		defer cancel()
		if _, err := f.hubClient.DeleteDevice(ctx, id); err != nil {
			t.Error(err)
		}
	})
	connectionString, err := f.hubClient.DeviceConnectionString(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return id, connectionString
}

func (f *fixture) connect(t *testing.T, connectionString string, opts iotdevice.Options) *iotdevice.Client {
	t.Helper()
	opts.Addr, opts.RootCAs = f.device.Addr, f.device.RootCAs
	client, err := iotdevice.Dial(f.context(t), connectionString, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), f.patience)
		defer cancel()
		if err := client.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return client
}

// pending returns how many messages wait for a device.
func (f *fixture) pending(t *testing.T, ctx context.Context, deviceID string) int {
	t.Helper()
	d, err := f.hubClient.GetDevice(ctx, deviceID)
	if err != nil {
		t.Fatal(err)
	}
	return d.PendingMessages
}

// background runs a receiver until the test ends.
func background(t *testing.T, receive func(context.Context) error) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := receive(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func next[T any](t *testing.T, ctx context.Context, values <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-values:
		return v
	case <-ctx.Done():
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// eventually tries until ok is true.
func (f *fixture) eventually(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-time.After(f.poll):
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func testRegistry(t *testing.T, f *fixture) {
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	if !strings.Contains(connectionString, ";DeviceId="+id+";") {
		t.Error("the connection string is not the device's")
	}
	if created, err := f.hubClient.EnsureDevice(ctx, id); created || err != nil {
		t.Errorf("EnsureDevice of an existing device: %v, %v", created, err)
	}
	if d, err := f.hubClient.GetDevice(ctx, id); err != nil || d.ID != id || !d.Enabled || d.Connected {
		t.Errorf("GetDevice: %+v, %v", d, err)
	}
	f.eventually(t, ctx, "the query lists the device", func() bool {
		for d, err := range f.hubClient.Devices(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if d.ID == id {
				return true
			}
		}
		return false
	})
	if s, err := f.hubClient.Statistics(ctx); err != nil || s.Total < 1 || s.Enabled+s.Disabled != s.Total {
		t.Errorf("Statistics: %+v, %v", s, err)
	}
	if existed, err := f.hubClient.DeleteDevice(ctx, id); !existed || err != nil {
		t.Errorf("DeleteDevice: %v, %v", existed, err)
	}
	if existed, err := f.hubClient.DeleteDevice(ctx, id); existed || err != nil {
		t.Errorf("DeleteDevice again: %v, %v", existed, err)
	}
	if _, err := f.hubClient.GetDevice(ctx, id); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("GetDevice of none: %v", err)
	}
	if _, err := f.hubClient.DeviceConnectionString(ctx, id); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("DeviceConnectionString of none: %v", err)
	}
}

// wrongKey replaces the key of a connection string.
func wrongKey(connectionString string) string {
	parts := strings.Split(connectionString, ";")
	for i, p := range parts {
		if strings.HasPrefix(p, "SharedAccessKey=") {
			parts[i] = "SharedAccessKey=d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXkhISE="
		}
	}
	return strings.Join(parts, ";")
}

func testWrongKey(t *testing.T, f *fixture) {
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	if _, err := iotdevice.Dial(ctx, wrongKey(connectionString), iotdevice.Options{Addr: f.device.Addr, RootCAs: f.device.RootCAs}); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("device: %v", err)
	}
	cfg := f.hub
	cfg.ConnectionString = wrongKey(cfg.ConnectionString)
	hub, err := iothub.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hub.Close() }()
	if _, err := hub.GetDevice(ctx, id); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("registry: %v", err)
	}
	if err := hub.SendCloudToDevice(ctx, id, job.Message{ID: "m"}, 0); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("cloud to device: %v", err)
	}
	busConfig := f.servicebus
	busConfig.ConnectionString = wrongKey(busConfig.ConnectionString)
	bus, err := servicebus.New(busConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bus.Close(ctx) }()
	sender, err := bus.Sender(topicJobs)
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Send(ctx, job.Message{ID: "m"}); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("service bus: %v", err)
	}
	eventsConfig := f.eventhubs
	eventsConfig.ConnectionString = wrongKey(eventsConfig.ConnectionString)
	events, err := eventhubs.New(eventsConfig)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Partitions(ctx); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("events: %v", err)
	}
}

func update(id, from, to string) job.Message {
	return job.Message{
		ID: id, CorrelationID: "job-test", Kind: job.KindUpdate, Sequence: 7, To: to, From: from,
		ContentType: job.ContentTypeJSON, ContentEncoding: job.ContentEncodingUTF8, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Properties: map[string]string{"site": "north & south / 100%"},
		Body:       job.Body(`{"CorrelationId":"job-test","Step":"Done","Status":"Completed"}`),
	}
}

// same reports how got differs from the message that was sent, apart from when.
func same(got, want job.Message) string {
	got.SentAt = time.Time{}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		return "got " + g + "\nwant " + w
	}
	return ""
}

func testDeviceToCloud(t *testing.T, f *fixture) {
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	messageID := uuid.NewString()

	watching := make(chan eventhubs.DeviceMessage, 16)
	background(t, func(ctx context.Context) error {
		return f.events.Monitor(ctx, eventhubs.Options{FromBeginning: true}, func(m eventhubs.DeviceMessage) error {
			if m.DeviceID == id {
				watching <- m
			}
			return nil
		})
	})
	queued := make(chan *servicebus.Delivery, 16)
	f.receiveOf(t, id, queued, nil)

	device := f.connect(t, connectionString, iotdevice.Options{})
	sent := update(messageID, "", "device-scheduler::x")
	if err := device.Publish(ctx, sent); err != nil {
		t.Fatal(err)
	}

	got := next(t, ctx, queued, "the message in the queue")
	want := sent
	want.From = id
	if diff := same(got.Message, want); diff != "" {
		t.Error(diff)
	}
	if got.DeliveryCount < 1 || got.EnqueuedAt.IsZero() || got.Properties[job.PropertyDeviceID] != id {
		t.Errorf("got delivery %+v", got)
	}
	event := next(t, ctx, watching, "the event")
	if event.MessageID != messageID || event.CorrelationID != "job-test" || event.ContentType != job.ContentTypeJSON ||
		string(event.Body) != string(sent.Body) || event.Properties["site"] != sent.Properties["site"] || event.EnqueuedAt.IsZero() {
		t.Errorf("got event %+v", event)
	}
	partitions, err := f.events.Partitions(ctx)
	if err != nil || !slices.Contains(partitions, event.Partition) {
		t.Errorf("the event is of partition %s, there are %v, %v", event.Partition, partitions, err)
	}
}

// receiveOf completes the messages of one device in the queue and passes them on; those of others it gives back. Where
// connections are cut, the answer to a completion may get lost: then allowed is job.ErrLockLost.
func (f *fixture) receiveOf(t *testing.T, deviceID string, out chan<- *servicebus.Delivery, allowed error) {
	background(t, func(ctx context.Context) error {
		return f.bus.Receive(ctx, servicebus.Source{Queue: queueDeviceMessages}, servicebus.ReceiveOptions{Batch: 1},
			func(ctx context.Context, batch []*servicebus.Delivery) {
				for _, d := range batch {
					if d.Message.From != deviceID {
						continue
					}
					if err := d.Complete(ctx); err != nil && !errors.Is(err, allowed) {
						t.Error(err)
					}
					out <- d
				}
			})
	})
}

func testCloudToDevice(t *testing.T, f *fixture) {
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	feedback := make(chan job.FeedbackRecord, 16)
	background(t, func(ctx context.Context) error {
		return f.hubClient.ReceiveFeedback(ctx, func(_ context.Context, records []job.FeedbackRecord) error {
			for _, r := range records {
				if r.DeviceID == id {
					feedback <- r
				}
			}
			return nil
		})
	})

	sent := []job.Message{update(uuid.NewString(), "device-scheduler::x", id), update(uuid.NewString(), "device-scheduler::x", id)}
	for _, m := range sent {
		if err := f.hubClient.SendCloudToDevice(ctx, id, m, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	f.eventually(t, ctx, "the messages wait for the device", func() bool { return f.pending(t, ctx, id) == len(sent) })
	received := make(chan job.Message, 16)
	f.connect(t, connectionString, iotdevice.Options{Handle: func(_ context.Context, m job.Message) error {
		received <- m
		return nil
	}})
	for _, want := range sent {
		if diff := same(next(t, ctx, received, "the message"), want); diff != "" {
			t.Error(diff)
		}
	}
	delivered := map[string]job.Outcome{}
	for range sent {
		r := next(t, ctx, feedback, "the feedback")
		delivered[r.MessageID] = r.Outcome
		if r.At.IsZero() {
			t.Errorf("feedback without a time: %+v", r)
		}
	}
	for _, m := range sent {
		if delivered[m.ID] != job.OutcomeSuccess {
			t.Errorf("feedback of %s: %q", m.ID, delivered[m.ID])
		}
	}
}

func testCloudToNobody(t *testing.T, f *fixture) {
	ctx := f.context(t)
	id, _ := f.newDevice(t)
	nobody := id + "-nobody"
	// Beside others over the same link, which must not suffer.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := f.hubClient.SendCloudToDevice(ctx, id, job.Message{ID: fmt.Sprint("m", i)}, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range 2 {
		if err := f.hubClient.SendCloudToDevice(ctx, nobody, job.Message{ID: fmt.Sprint("n", i)}, time.Hour); !errors.Is(err, job.ErrNotFound) {
			t.Errorf("to nobody: %v", err)
		}
	}
	wg.Wait()
}

func testRedelivery(t *testing.T, f *fixture) {
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	handled := make(chan string, 64)
	var once sync.Once
	device := f.connect(t, connectionString, iotdevice.Options{
		MinBackoff: 10 * time.Millisecond,
		Handle: func(_ context.Context, m job.Message) (err error) {
			handled <- m.ID
			once.Do(func() { err = errors.New("not now") })
			return err
		},
	})
	for _, m := range []string{"m1", "m2"} {
		if err := f.hubClient.SendCloudToDevice(ctx, id, job.Message{ID: m}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"m1", "m1", "m2"} {
		if got := next(t, ctx, handled, want); got != want {
			t.Fatalf("handled %s, want %s", got, want)
		}
	}
	f.eventually(t, ctx, "nothing waits for the device", func() bool { return f.pending(t, ctx, id) == 0 })
	f.eventually(t, ctx, "the device is connected again", device.Connected)
}

func testMethod(t *testing.T, f *fixture) {
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	method := iothub.Method{Name: "echo", Payload: []byte(`{"a":1}`), ResponseTimeout: 10 * time.Second}
	if _, err := f.hubClient.InvokeMethod(ctx, id, method); !errors.Is(err, job.ErrUnavailable) {
		t.Errorf("of a device that is offline: %v", err)
	}
	if _, err := f.hubClient.InvokeMethod(ctx, id+"-nobody", method); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("of nobody: %v", err)
	}
	f.connect(t, connectionString, iotdevice.Options{Method: func(_ context.Context, name string, payload []byte) (int, []byte) {
		return 207, []byte(`{"name":"` + name + `","payload":` + string(payload) + `}`)
	}})
	got, err := f.hubClient.InvokeMethod(ctx, id, method)
	if err != nil || got.Status != 207 || strings.Join(strings.Fields(string(got.Payload)), "") != `{"name":"echo","payload":{"a":1}}` {
		t.Errorf("got %d %s, %v", got.Status, got.Payload, err)
	}
}

func testTopic(t *testing.T, f *fixture) {
	ctx := f.context(t)
	sender, err := f.bus.Sender(topicJobs)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sender.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	sent := update(uuid.NewString(), "device-scheduler::x", "")
	if err := sender.Send(ctx, sent); err != nil {
		t.Fatal(err)
	}
	from := servicebus.Source{Topic: topicJobs, Subscription: subscriptionJobs}
	counts := make(chan int, 16)
	background(t, func(ctx context.Context) error {
		return f.bus.Receive(ctx, from, servicebus.ReceiveOptions{}, func(ctx context.Context, batch []*servicebus.Delivery) {
			for _, d := range batch {
				if d.Message.ID != sent.ID {
					continue // not settled: is given back
				}
				counts <- d.DeliveryCount
				if d.DeliveryCount == 1 {
					continue
				}
				if diff := same(d.Message, sent); diff != "" {
					t.Error(diff)
				}
				if err := d.DeadLetter(ctx, job.ReasonInvalidMessage, "for the test"); err != nil {
					t.Error(err)
				}
				if err := d.Complete(ctx); !errors.Is(err, job.ErrLockLost) {
					t.Errorf("settling again: %v", err)
				}
			}
		})
	})
	for want := range 2 {
		if got := next(t, ctx, counts, "the delivery"); got != want+1 {
			t.Errorf("delivery %d has count %d", want+1, got)
		}
	}
	from.DeadLetter = true
	dead := make(chan *servicebus.Delivery, 16)
	background(t, func(ctx context.Context) error {
		return f.bus.Receive(ctx, from, servicebus.ReceiveOptions{}, func(ctx context.Context, batch []*servicebus.Delivery) {
			for _, d := range batch {
				if d.Message.ID == sent.ID {
					if err := d.Complete(ctx); err != nil {
						t.Error(err)
					}
					dead <- d
				}
			}
		})
	})
	d := next(t, ctx, dead, "the dead letter")
	if d.DeadLetterReason != string(job.ReasonInvalidMessage) || d.DeadLetterDescription != "for the test" {
		t.Errorf("got reason %q, description %q", d.DeadLetterReason, d.DeadLetterDescription)
	}
}

func testMissingEntity(t *testing.T, f *fixture) {
	ctx := f.context(t)
	const missing = "no-such-entity"
	sender, err := f.bus.Sender(missing)
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Send(ctx, job.Message{ID: "m"}); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("send: %v", err)
	}
	err = f.bus.Receive(ctx, servicebus.Source{Queue: missing}, servicebus.ReceiveOptions{}, func(context.Context, []*servicebus.Delivery) {})
	if !errors.Is(err, job.ErrNotFound) {
		t.Errorf("receive: %v", err)
	}
	err = f.events.Monitor(ctx, eventhubs.Options{ConsumerGroup: missing, FromBeginning: true}, func(eventhubs.DeviceMessage) error { return nil })
	if !errors.Is(err, job.ErrNotFound) {
		t.Errorf("monitor: %v", err)
	}
}
