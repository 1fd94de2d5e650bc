package azure_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/azure/eventhubs"
	"github.com/hubjobs/hubjobs/azure/iotdevice"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
	"github.com/hubjobs/hubjobs/job"
)

// shortestLock is the shortest lock duration there is.
const shortestLock = 5 * time.Second

func shortLocks() *emulator.Config {
	cfg := emulator.DefaultConfig()
	for i := range cfg.Queues {
		cfg.Queues[i].LockDuration = shortestLock
	}
	return cfg
}

// proxied puts a proxy before each of the target's endpoints.
type proxied struct {
	mqtt, amqps, amqp *proxy
}

func withProxies(t *testing.T, to *target) *proxied {
	t.Helper()
	p := &proxied{mqtt: newProxy(t, to.device.Addr), amqps: newProxy(t, to.hub.AMQPSAddr), amqp: newProxy(t, to.servicebus.Addr)}
	to.device.Addr, to.hub.AMQPSAddr = p.mqtt.addr, p.amqps.addr
	to.servicebus.Addr, to.eventhubs.Addr = p.amqp.addr, p.amqp.addr
	return p
}

// Cuts happen at any point of an exchange; whatever was accepted must arrive, at least once and in order of first arrival.
func TestDeviceToCloudSurvivesCuts(t *testing.T) {
	t.Parallel()
	to := emulatorTarget(t, emulatortest.Config(shortLocks())) // what is lost with a link comes again when its lock ends
	proxies := withProxies(t, &to)
	f := newFixture(t, to)
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	device := f.connect(t, connectionString, iotdevice.Options{MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond})
	queued := make(chan *servicebus.Delivery, 256)
	f.receiveOf(t, id, queued, job.ErrLockLost)
	watching := make(chan eventhubs.DeviceMessage, 256)
	background(t, func(ctx context.Context) error {
		return f.events.Monitor(ctx, eventhubs.Options{FromBeginning: true}, func(m eventhubs.DeviceMessage) error {
			if m.DeviceID == id {
				watching <- m
			}
			return nil
		})
	})
	const n = 12
	for i := range n {
		switch i % 4 {
		case 1:
			proxies.mqtt.cut()
		case 3:
			proxies.amqp.cut()
		}
		if err := device.Publish(ctx, job.Message{ID: fmt.Sprintf("m%02d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	inOrder := func(what string, next func() string) {
		t.Helper()
		for i, seen := 0, map[string]bool{}; i < n; {
			id := next()
			if want := fmt.Sprintf("m%02d", i); id == want {
				seen[id] = true
				i++
			} else if !seen[id] {
				t.Fatalf("%s: got %s, want %s", what, id, want)
			}
		}
	}
	arrived := map[string]bool{} // the queue may give messages back and deliver them later: no order
	for len(arrived) < n {
		arrived[next(t, ctx, queued, "the message in the queue").Message.ID] = true
	}
	inOrder("events", func() string { return next(t, ctx, watching, "the event").MessageID })
}

func TestCloudToDeviceSurvivesCuts(t *testing.T) {
	t.Parallel()
	to := emulatorTarget(t)
	proxies := withProxies(t, &to)
	f := newFixture(t, to)
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	var mu sync.Mutex
	var order []string
	seen := map[string]bool{}
	f.connect(t, connectionString, iotdevice.Options{
		MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond,
		Handle: func(_ context.Context, m job.Message) error {
			mu.Lock()
			defer mu.Unlock()
			if !seen[m.ID] {
				seen[m.ID] = true
				order = append(order, m.ID)
			}
			return nil
		},
	})
	delivered := make(chan string, 256)
	background(t, func(ctx context.Context) error {
		return f.hubClient.ReceiveFeedback(ctx, func(_ context.Context, records []job.FeedbackRecord) error {
			for _, r := range records {
				if r.DeviceID == id && r.Outcome == job.OutcomeSuccess {
					delivered <- r.MessageID
				}
			}
			return nil
		})
	})
	const n = 12
	for i := range n {
		switch i % 4 {
		case 1:
			proxies.mqtt.cut()
		case 3:
			proxies.amqps.cut()
		}
		m := job.Message{ID: fmt.Sprintf("m%02d", i)}
		f.eventually(t, ctx, "the message is accepted", func() bool {
			err := f.hubClient.SendCloudToDevice(ctx, id, m, time.Hour)
			if err != nil && !job.Retryable(err) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	f.eventually(t, ctx, "all messages are handled", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(order) == n
	})
	for i, got := range order {
		if want := fmt.Sprintf("m%02d", i); got != want {
			t.Fatalf("handled %v", order)
		}
	}
	confirmed := map[string]bool{}
	for len(confirmed) < n {
		confirmed[next(t, ctx, delivered, "the feedback")] = true
	}
}

func TestFeedbackComesAgainUntilItIsHandled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, emulatorTarget(t))
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	calls := make(chan string, 16)
	var once sync.Once
	background(t, func(ctx context.Context) error {
		return f.hubClient.ReceiveFeedback(ctx, func(_ context.Context, records []job.FeedbackRecord) (err error) {
			for _, r := range records {
				calls <- r.MessageID
			}
			once.Do(func() { err = errors.New("not now") })
			return err
		})
	})
	f.connect(t, connectionString, iotdevice.Options{Handle: func(context.Context, job.Message) error { return nil }})
	if err := f.hubClient.SendCloudToDevice(ctx, id, job.Message{ID: "m1"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := next(t, ctx, calls, "the feedback"); got != "m1" {
			t.Errorf("got feedback of %s", got)
		}
	}
}

func TestFeedbackOfAnExpiredMessage(t *testing.T) {
	t.Parallel()
	f := newFixture(t, emulatorTarget(t))
	ctx := f.context(t)
	id, _ := f.newDevice(t)
	outcomes := make(chan job.FeedbackRecord, 16)
	background(t, func(ctx context.Context) error {
		return f.hubClient.ReceiveFeedback(ctx, func(_ context.Context, records []job.FeedbackRecord) error {
			for _, r := range records {
				outcomes <- r
			}
			return nil
		})
	})
	if err := f.hubClient.SendCloudToDevice(ctx, id, job.Message{ID: "m1"}, time.Second); err != nil {
		t.Fatal(err)
	}
	if r := next(t, ctx, outcomes, "the feedback"); r.MessageID != "m1" || r.DeviceID != id || r.Outcome != job.OutcomeExpired {
		t.Errorf("got %+v", r)
	}
}

func TestDeviceTokenIsRenewed(t *testing.T) {
	t.Parallel()
	to := emulatorTarget(t)
	proxies := withProxies(t, &to)
	f := newFixture(t, to)
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	handled := make(chan string, 256)
	device := f.connect(t, connectionString, iotdevice.Options{
		TokenLifetime: 4 * time.Second,
		Handle: func(_ context.Context, m job.Message) error {
			handled <- m.ID
			return nil
		},
	})
	for i := 0; proxies.mqtt.count() < 3; i++ { // all the time, so that something is under way when it happens
		message := job.Message{ID: fmt.Sprint("m", i)}
		if err := device.Publish(ctx, message); err != nil {
			t.Fatal(err)
		}
		if err := f.hubClient.SendCloudToDevice(ctx, id, message, time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := next(t, ctx, handled, "the message"); got != message.ID {
			t.Fatalf("got %s, want %s: it was delivered twice although nothing broke", got, message.ID)
		}
	}
}

// A batch that is handled when the program stops is given back, and so comes at once to another receiver.
func TestReceiveGivesBackWhatIsUnsettled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, emulatorTarget(t))
	ctx := f.context(t)
	sender, err := f.bus.Sender(topicJobs)
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Send(ctx, job.Message{ID: "m1"}); err != nil {
		t.Fatal(err)
	}
	from := servicebus.Source{Topic: topicJobs, Subscription: subscriptionJobs}
	stopping, stop := context.WithCancel(ctx)
	err = f.bus.Receive(stopping, from, servicebus.ReceiveOptions{}, func(ctx context.Context, _ []*servicebus.Delivery) {
		stop()
		<-ctx.Done()
	})
	if err != nil {
		t.Fatal(err)
	}
	again := make(chan int, 16)
	background(t, func(ctx context.Context) error {
		return f.bus.Receive(ctx, from, servicebus.ReceiveOptions{}, func(ctx context.Context, batch []*servicebus.Delivery) {
			again <- batch[0].DeliveryCount
			if err := batch[0].Complete(ctx); err != nil {
				t.Error(err)
			}
		})
	})
	if got := next(t, ctx, again, "the message"); got != 2 {
		t.Errorf("delivery count is %d", got)
	}
}

func TestLocksAreRenewedForSlowHandlers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, emulatorTarget(t, emulatortest.Config(shortLocks())))
	ctx := f.context(t)
	sender, err := f.bus.Sender(queueDeviceMessages)
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Send(ctx, job.Message{ID: "m1"}); err != nil {
		t.Fatal(err)
	}
	stopping, stop := context.WithCancel(ctx)
	calls := 0
	err = f.bus.Receive(stopping, servicebus.Source{Queue: queueDeviceMessages}, servicebus.ReceiveOptions{}, func(ctx context.Context, batch []*servicebus.Delivery) {
		defer stop()
		calls++
		<-time.After(shortestLock * 3 / 2) // the work
		if err := batch[0].Complete(ctx); err != nil {
			t.Error(err)
		}
	})
	if err != nil || calls != 1 {
		t.Errorf("got %v, handled %d times", err, calls)
	}
}

func TestTakenOverConnectionComesBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, emulatorTarget(t))
	ctx := f.context(t)
	_, connectionString := f.newDevice(t)
	first := f.connect(t, connectionString, iotdevice.Options{})
	second, err := iotdevice.Dial(ctx, connectionString, iotdevice.Options{Addr: f.device.Addr, RootCAs: f.device.RootCAs, MinBackoff: time.Hour, MaxBackoff: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	f.eventually(t, ctx, "the second loses to the first", func() bool { return first.Connected() && !second.Connected() })
	if err := second.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := first.Publish(ctx, job.Message{ID: "m"}); err != nil {
		t.Error(err)
	}
}

func TestDeletedDeviceEndsItsClient(t *testing.T) {
	t.Parallel()
	f := newFixture(t, emulatorTarget(t))
	ctx := f.context(t)
	id, connectionString := f.newDevice(t)
	device := f.connect(t, connectionString, iotdevice.Options{MinBackoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond})
	if _, err := f.hubClient.DeleteDevice(ctx, id); err != nil {
		t.Fatal(err)
	}
	next(t, ctx, device.Done(), "the end of the client")
	if !errors.Is(device.Err(), job.ErrUnauthorized) {
		t.Errorf("got %v", device.Err())
	}
}

func TestFullDeviceQueue(t *testing.T) {
	t.Parallel()
	f := newFixture(t, emulatorTarget(t))
	ctx := f.context(t)
	id, _ := f.newDevice(t)
	for i := range job.MaxDeviceQueue {
		if err := f.hubClient.SendCloudToDevice(ctx, id, job.Message{ID: fmt.Sprint("m", i)}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.hubClient.SendCloudToDevice(ctx, id, job.Message{ID: "one-more"}, time.Hour); !errors.Is(err, job.ErrQueueFull) {
		t.Errorf("got %v", err)
	}
}
