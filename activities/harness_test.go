package activities

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// attempt is the circumstances of one attempt at an activity.
type attempt struct {
	ctx       context.Context // of the worker; nil: of the test
	details   any             // heartbeat of the attempt before; nil: none
	stop      chan struct{}   // the worker's stop channel; nil: it never stops
	heartbeat time.Duration   // heartbeat timeout; 0: none
	beats     *beatLog        // takes every heartbeat; may be nil
}

// run executes fn as ref in a test environment.
func run[In, Out any](t *testing.T, a attempt, ref job.Activity[In, Out],
	fn func(context.Context, In) (Out, error), in In) (Out, error) {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	if a.ctx == nil {
		a.ctx = t.Context()
	}
	env.SetWorkerOptions(worker.Options{
		BackgroundActivityContext: a.ctx,
		Interceptors:              []interceptor.WorkerInterceptor{&observer{attempt: a}},
	})
	if a.details != nil {
		env.SetHeartbeatDetails(a.details)
	}
	if a.stop != nil {
		env.SetWorkerStopChannel(a.stop)
	}
	Register(env, ref, fn)
	var out Out
	value, err := env.ExecuteActivity(ref.Name, in)
	if err == nil {
		err = value.Get(&out)
	}
	return out, err
}

// observer sees every heartbeat before it is throttled, and sets the heartbeat timeout.
type observer struct {
	interceptor.WorkerInterceptorBase
	attempt attempt
}

func (o *observer) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &observedInbound{ActivityInboundInterceptorBase: interceptor.ActivityInboundInterceptorBase{Next: next}, attempt: o.attempt}
}

type observedInbound struct {
	interceptor.ActivityInboundInterceptorBase
	attempt attempt
}

func (o *observedInbound) Init(outbound interceptor.ActivityOutboundInterceptor) error {
	return o.Next.Init(&observedOutbound{
		ActivityOutboundInterceptorBase: interceptor.ActivityOutboundInterceptorBase{Next: outbound}, attempt: o.attempt})
}

type observedOutbound struct {
	interceptor.ActivityOutboundInterceptorBase
	attempt attempt
}

func (o *observedOutbound) GetInfo(ctx context.Context) activity.Info {
	info := o.Next.GetInfo(ctx)
	info.HeartbeatTimeout = o.attempt.heartbeat
	return info
}

func (o *observedOutbound) RecordHeartbeat(ctx context.Context, details ...any) {
	if o.attempt.beats != nil {
		o.attempt.beats.add(details[0])
	}
	o.Next.RecordHeartbeat(ctx, details...)
}

// beatLog keeps the heartbeats of an activity as JSON.
type beatLog struct {
	mu    sync.Mutex
	beats []string
	seen  chan struct{} // gets a value for each heartbeat, if anybody listens
}

func newBeatLog() *beatLog { return &beatLog{seen: make(chan struct{}, 64)} }

func (b *beatLog) add(details any) {
	text, err := json.Marshal(details)
	if err != nil {
		panic(err)
	}
	b.mu.Lock()
	b.beats = append(b.beats, string(text))
	b.mu.Unlock()
	select {
	case b.seen <- struct{}{}:
	default:
	}
}

func (b *beatLog) last() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.beats) == 0 {
		return ""
	}
	return b.beats[len(b.beats)-1]
}

// application returns err's application error, or fails the test.
func application(t *testing.T, err error) *temporal.ApplicationError {
	t.Helper()
	var app *temporal.ApplicationError
	if !errors.As(err, &app) {
		t.Fatalf("got error %v, want an application error", err)
	}
	return app
}

func message(id string) job.Message {
	return job.Message{ID: id, CorrelationID: "job-1", Body: job.Body(`{"n":1}`)}
}

func ids(messages []job.Message) []string {
	var ids []string
	for _, m := range messages {
		ids = append(ids, m.ID)
	}
	return ids
}

// outbox takes messages as a queue, a topic, a hub or a device connection, and fails those that it is told to.
type outbox struct {
	mu   sync.Mutex
	sent []job.Message
	to   []string // the device, where there is one
	ttl  time.Duration
	fail map[string]error // by message ID
}

func (o *outbox) Send(_ context.Context, m job.Message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.fail[m.ID]; err != nil {
		return err
	}
	o.sent = append(o.sent, m)
	return nil
}

func (o *outbox) SendCloudToDevice(ctx context.Context, deviceID string, m job.Message, ttl time.Duration) error {
	if err := o.Send(ctx, m); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.to, o.ttl = append(o.to, deviceID), ttl
	return nil
}

func (o *outbox) ids() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return ids(o.sent)
}
