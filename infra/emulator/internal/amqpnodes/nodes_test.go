package amqpnodes_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	client "github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/common"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpnodes"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMain(m *testing.M) {
	// azeventhubs v2.0.2 forgets the goroutine that renews the token of a link
	// when the link is refused or stolen.
	const renewer = "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/internal.(*Namespace).startNegotiateClaimRenewer.func3"
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(renewer))
}

// testTimeout bounds every wait of a test, so that a hang becomes a failure.
const testTimeout = 30 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

const (
	hubName   = "localhost"
	rootName  = "RootManageSharedAccessKey"
	rootKey   = "root key, used as it is written"
	sendName  = "SendOnly"
	sendKey   = "send key"
	otherName = "telemetry" // an event hub of the namespace
)

// keyring holds the policies of the namespace.
type keyring map[string]sas.Policy

func (k keyring) Policy(name string) (sas.Policy, error) {
	p, ok := k[name]
	if !ok {
		return p, sas.ErrUnknownPolicy
	}
	return p, nil
}

func (k keyring) Device(string) (sas.Device, error) { return sas.Device{}, sas.ErrUnknownDevice }

func (k keyring) Module(string, string) (sas.Device, error) {
	return sas.Device{}, sas.ErrUnknownDevice
}

// emulator is the core with AMQP around it, on a loopback port without TLS.
type emulator struct {
	hub       *hub.Hub
	namespace *broker.Namespace
	events    *broker.EventLog
	other     *broker.EventLog
	addr      string
	clock     *clock
}

// clock is the time by which tokens are judged.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func start(t *testing.T) *emulator {
	t.Helper()
	return startWith(t, func(*hub.Options) {})
}

// startWith is start with a hub of other options.
func startWith(t *testing.T, change func(*hub.Options)) *emulator {
	t.Helper()
	e := newCore(t, change)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.addr = l.Addr().String()
	e.serve(t, l)
	return e
}

// newCore is the core alone.
func newCore(t *testing.T, change func(*hub.Options)) *emulator {
	t.Helper()
	s := store.Memory()
	e := &emulator{namespace: broker.NewNamespace(s), clock: &clock{}}
	e.events = must[*broker.EventLog](t)(broker.OpenEventLog(s, hubName, broker.EventLogOptions{Partitions: 2}))
	e.other = must[*broker.EventLog](t)(e.namespace.CreateEventLog(otherName, broker.EventLogOptions{Partitions: 2}))
	opts := hub.Options{
		Name: hubName, Events: e.events, FallbackRoute: true,
		Feedback: hub.FeedbackOptions{Interval: time.Millisecond},
	}
	change(&opts)
	e.hub = must[*hub.Hub](t)(hub.Open(s, opts))
	queue := must[*broker.Queue](t)
	queue(e.namespace.CreateQueue("queue", broker.QueueOptions{MaxDeliveryCount: 3}))
	must[*broker.Topic](t)(e.namespace.CreateTopic("topic", broker.TopicOptions{DuplicateWindow: time.Minute}))
	queue(e.namespace.CreateSubscription("topic", "first", broker.QueueOptions{}))
	queue(e.namespace.CreateSubscription("topic", "second", broker.QueueOptions{}))
	t.Cleanup(func() {
		e.hub.Close()
		e.namespace.Close()
		e.events.Close()
	})
	return e
}

// serve serves AMQP on a listener until the end of the test.
func (e *emulator) serve(t *testing.T, l net.Listener) {
	t.Helper()
	nodes, err := amqpnodes.New(e.config())
	if err != nil {
		t.Fatal(err)
	}
	server := amqpserver.New(amqpserver.Options{NewHandler: nodes.NewHandler, Plain: nodes.Plain, External: nodes.External})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _ = server.ServeConn(context.Background(), nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		if err := server.Close(testContext(t)); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func (e *emulator) config() amqpnodes.Config {
	hosts := []string{hubName, "127.0.0.1"}
	return amqpnodes.Config{
		Hub:          e.hub,
		Namespace:    e.namespace,
		HubTokens:    &sas.Verifier{Hosts: hosts, Mode: sas.HubKeys, Keys: e.hub, Now: e.clock.now},
		EventsTokens: &sas.Verifier{Hosts: hosts, Mode: sas.NamespaceKeys, Keys: e.hub, Now: e.clock.now},
		NamespaceTokens: &sas.Verifier{Hosts: hosts, Mode: sas.NamespaceKeys, Now: e.clock.now, Keys: keyring{
			rootName: {Keys: sas.Keys{Primary: rootKey}, Permissions: sas.Listen | sas.Send | sas.Manage},
			sendName: {Keys: sas.Keys{Primary: sendKey}, Permissions: sas.Send},
		}},
		EventsAddr: e.addr,
	}
}

// connectionString is one for Service Bus and Event Hubs.
func (e *emulator) connectionString(policy, key, entity string) string {
	s := fmt.Sprintf("Endpoint=sb://%s;SharedAccessKeyName=%s;SharedAccessKey=%s;UseDevelopmentEmulator=true", e.addr, policy, key)
	if entity != "" {
		s += ";EntityPath=" + entity
	}
	return s
}

func (e *emulator) policyKey(t *testing.T, name string) string {
	t.Helper()
	p, err := e.hub.Policy(name)
	if err != nil {
		t.Fatal(err)
	}
	return p.Keys.Primary
}

// hubToken is a token for the hub, signed with a policy's key.
func (e *emulator) hubToken(t *testing.T, policy string) string {
	t.Helper()
	token, err := common.NewSharedAccessKey(hubName, policy, e.policyKey(t, policy)).Token(hubName, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token.String()
}

// dial connects with go-amqp, without SASL if sasl is nil.
func (e *emulator) dial(t *testing.T, sasl client.SASLType) (*client.Conn, error) {
	t.Helper()
	conn, err := client.Dial(testContext(t), "amqp://"+e.addr, &client.ConnOptions{SASLType: sasl})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func (e *emulator) serviceBus(t *testing.T) *azservicebus.Client {
	t.Helper()
	return e.serviceBusAs(t, rootName, rootKey)
}

func (e *emulator) serviceBusAs(t *testing.T, policy, key string) *azservicebus.Client {
	t.Helper()
	c, err := azservicebus.NewClientFromConnectionString(e.connectionString(policy, key, ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(testContext(t)) })
	return c
}

// condition returns the AMQP condition within an error, or "".
func condition(err error) client.ErrCond {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Condition
	}
	var linkErr *client.LinkError
	if errors.As(err, &linkErr) && linkErr.RemoteErr != nil {
		return linkErr.RemoteErr.Condition
	}
	return ""
}

func wantCondition(t *testing.T, err error, want client.ErrCond) {
	t.Helper()
	if got := condition(err); got != want {
		t.Errorf("condition: %q, want %q (error: %v)", got, want, err)
	}
}

func contains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q doesn't contain %q", text, part)
	}
}
