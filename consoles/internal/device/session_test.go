package device

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/amenzhinsky/iothub/common"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/consoles/internal/hubtest"
)

// The MQTT client sleeps between attempts to reconnect, and offers a subscription to a connection that is being closed, and
// notices only afterwards that it is to end. Its goroutines end by themselves, but later than the tests.
func TestMain(m *testing.M) {
	const client = "github.com/eclipse/paho%2emqtt%2egolang."
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(client+"(*client).reconnect"),
		goleak.IgnoreAnyFunction(client+"(*client).Subscribe"),
		goleak.IgnoreAnyFunction(client+"(*connectionStatus).Disconnecting"))
}

const (
	deviceID = "device-solver::foo"
	// devicebound is the topic of a cloud-to-device message without properties of its own.
	devicebound = "devices/" + deviceID + "/messages/devicebound/%24.to=%2Fdevices%2Fx%2Fmessages%2FdeviceBound"
)

// recorder collects what a session reports.
type recorder struct {
	messages chan *common.Message
	methods  chan string
	up       chan string
	down     chan error
	warnings chan error
}

func newRecorder() *recorder {
	return &recorder{
		messages: make(chan *common.Message, 10), methods: make(chan string, 10),
		up: make(chan string, 10), down: make(chan error, 100), warnings: make(chan error, 10),
	}
}

func (r *recorder) handlers() Handlers {
	return Handlers{
		Message: func(m *common.Message) { r.messages <- m },
		Method: func(name string, payload []byte) Answer {
			r.methods <- name + string(payload)
			return Answer{Status: 207, Payload: []byte(`{"ok":true}`)}
		},
		Up:      func(host string) { r.up <- host },
		Down:    func(err error) { r.down <- err },
		Warning: func(err error) { r.warnings <- err },
	}
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case got := <-from:
		return got
	case <-time.After(20 * time.Second):
		t.Fatalf("no %T came", *new(T))
		panic("unreachable")
	}
}

func connect(t *testing.T, h *hubtest.Hub, handlers Handlers) *Session {
	t.Helper()
	session, err := Connect(t.Context(), h.ConnectionString(deviceID), handlers, &Options{Roots: h.Roots, Address: h.Address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := session.Close(); err != nil {
			t.Error(err)
		}
	})
	return session
}

func TestConnect(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	session := connect(t, h, r.handlers())
	if got := receive(t, r.up); got != hubtest.Host {
		t.Errorf("connected to %q, want %q", got, hubtest.Host)
	}
	if session.ID() != deviceID || session.Host() != hubtest.Host {
		t.Errorf("session is %q at %q", session.ID(), session.Host())
	}
	hello := hubtest.Wait[*packets.ConnectPacket](t, h)
	if hello.ClientIdentifier != deviceID || hello.Username != hubtest.Host+"/"+deviceID+"/api-version=2020-09-30" {
		t.Errorf("client ID %q, user name %q", hello.ClientIdentifier, hello.Username)
	}
	if !strings.HasPrefix(string(hello.Password), "SharedAccessSignature sr="+hubtest.Host) {
		t.Error("the password is no token for the hub")
	}
}

func TestSend(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	session := connect(t, h, r.handlers())
	err := session.Send(t.Context(), Outgoing{ID: "m1", CorrelationID: "foo", Body: []byte("hello"), Properties: map[string]string{"a b": "c/d"}})
	if err != nil {
		t.Fatal(err)
	}
	published := hubtest.Wait[*packets.PublishPacket](t, h)
	bag, found := strings.CutPrefix(published.TopicName, "devices/"+deviceID+"/messages/events/")
	if !found || published.Qos != 1 || string(published.Payload) != "hello" {
		t.Fatalf("published %v", published)
	}
	got, err := url.ParseQuery(bag)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"$.mid": "m1", "$.cid": "foo", "$.ct": "text/plain", "$.ce": "utf-8", "a b": "c/d"} {
		if got.Get(key) != want {
			t.Errorf("%s is %q, want %q", key, got.Get(key), want)
		}
	}
}

func TestSendUnconfirmed(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	session := connect(t, h, r.handlers())
	h.Mute(true)
	session.timeout = 10 * time.Millisecond
	if err := session.Send(t.Context(), Outgoing{Body: []byte("hello")}); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("error %v, want %v", err, ErrUnconfirmed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := session.Send(ctx, Outgoing{Body: []byte("hello")}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// A connection that is made again confirms nothing: only the hub does.
func TestSendUnconfirmedOverReconnect(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	session := connect(t, h, r.handlers())
	receive(t, r.up)
	h.Mute(true)
	result := make(chan error, 1)
	go func() { result <- session.Send(t.Context(), Outgoing{ID: "m1", Body: []byte("hello")}) }()
	hubtest.Wait[*packets.PublishPacket](t, h)
	h.Drop()
	receive(t, r.up)
	again := hubtest.Wait[*packets.PublishPacket](t, h)
	if !again.Dup || string(again.Payload) != "hello" {
		t.Errorf("sent %v again", again)
	}
	select {
	case err := <-result:
		t.Fatalf("sent without a confirmation: %v", err)
	case <-time.After(100 * time.Millisecond): // long enough to notice; a slow machine can't make it fail
	}
	h.Mute(false)
	h.Drop()
	if err := receive(t, result); err != nil {
		t.Error(err)
	}
}

// A message is acknowledged only when its handler is through with it.
func TestMessageAcknowledgedAfterHandler(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	ctx, release := context.WithCancel(t.Context())
	handlers := r.handlers()
	handlers.Message = func(m *common.Message) {
		r.messages <- m
		<-ctx.Done()
	}
	session := connect(t, h, handlers)
	h.Send(t, devicebound+"&%24.mid=m1&%24.cid=foo&from-device=x", "hello", 7)
	got := receive(t, r.messages)
	if got.MessageID != "m1" || got.CorrelationID != "foo" || got.Properties["from-device"] != "x" || string(got.Payload) != "hello" {
		t.Errorf("received %+v", got)
	}
	if err := session.Send(t.Context(), Outgoing{Body: []byte("meanwhile")}); err != nil {
		t.Fatal(err)
	}
	if acknowledged := hubtest.SeenUntilPublish[*packets.PubackPacket](t, h); acknowledged {
		t.Error("the message was acknowledged while its handler ran")
	}
	release()
	if ack := hubtest.Wait[*packets.PubackPacket](t, h); ack.MessageID != 7 {
		t.Errorf("acknowledged %d, want 7", ack.MessageID)
	}
}

func TestUnreadableMessageIsReported(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	connect(t, h, r.handlers())
	h.Send(t, "devices/"+deviceID+"/messages/devicebound/a=b", "no system property", 1)
	if err := receive(t, r.warnings); err == nil {
		t.Error("warning without an error")
	}
}

func TestMethod(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ payload, called, topic, answer string }{
		"object":     {`{"a":1}`, `reboot{"a":1}`, "$iothub/methods/res/207/?$rid=1f", `{"ok":true}`},
		"number":     {`5`, `reboot5`, "$iothub/methods/res/207/?$rid=1f", `{"ok":true}`},
		"no payload": {``, `rebootnull`, "$iothub/methods/res/207/?$rid=1f", `{"ok":true}`},
		"not JSON":   {`{`, ``, "$iothub/methods/res/400/?$rid=1f", `{"error":"the payload is not JSON"}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, r := hubtest.Start(t), newRecorder()
			connect(t, h, r.handlers())
			h.Send(t, "$iothub/methods/POST/reboot/?$rid=1f", test.payload, 1)
			answer := hubtest.Wait[*packets.PublishPacket](t, h)
			if answer.TopicName != test.topic || string(answer.Payload) != test.answer {
				t.Errorf("answered %s on %s, want %s on %s", answer.Payload, answer.TopicName, test.answer, test.topic)
			}
			if test.called != "" && receive(t, r.methods) != test.called {
				t.Error("the handler got something else")
			}
		})
	}
}

// A method whose answer can't be written must not keep the connection from being made again.
func TestReconnectWhileMethodRuns(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	ctx, release := context.WithCancel(t.Context())
	handlers := r.handlers()
	handlers.Method = func(name string, _ []byte) Answer {
		r.methods <- name
		<-ctx.Done()
		return Answer{Status: 200, Payload: []byte("{}")}
	}
	connect(t, h, handlers)
	receive(t, r.up)
	h.Send(t, "$iothub/methods/POST/slow/?$rid=1", "{}", 1)
	receive(t, r.methods)
	h.Drop()
	receive(t, r.down)
	receive(t, r.up)
	release()
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	session, err := Connect(ctx, h.ConnectionString(deviceID), r.handlers(), &Options{Roots: h.Roots, Address: h.Address})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	cancel() // the context of connecting must not matter for what comes later
	receive(t, r.up)
	h.Drop()
	receive(t, r.down)
	receive(t, r.up)
	h.Send(t, devicebound, "after", 1)
	if got := receive(t, r.messages); string(got.Payload) != "after" {
		t.Errorf("received %q", got.Payload)
	}
	h.Send(t, "$iothub/methods/POST/reboot/?$rid=1", "null", 2)
	receive(t, r.methods)
	if err := session.Send(t.Context(), Outgoing{Body: []byte("back")}); err != nil {
		t.Error(err)
	}
}

func TestReconnectRefused(t *testing.T) {
	t.Parallel()
	h, r := hubtest.Start(t), newRecorder()
	connect(t, h, r.handlers())
	h.Refuse(packets.ErrRefusedNotAuthorised)
	h.Drop()
	for !errors.Is(receive(t, r.down), ErrRefused) {
	}
}

func TestConnectErrors(t *testing.T) {
	t.Parallel()
	h := hubtest.Start(t)
	h.Refuse(packets.ErrRefusedNotAuthorised)
	other := hubtest.Start(t)
	tests := map[string]struct {
		connectionString string
		options          Options
		want             string
	}{
		"refused":           {h.ConnectionString("d"), Options{Roots: h.Roots, Address: h.Address}, ErrRefused.Error()},
		"foreign authority": {h.ConnectionString("d"), Options{Roots: other.Roots, Address: h.Address}, "EMULATOR_CA_FILE"},
		"nobody listens":    {h.ConnectionString("d"), Options{Roots: h.Roots, Address: "127.0.0.1:1"}, "connect"},
		"no host":           {"DeviceId=d;SharedAccessKey=c2VjcmV0", Options{}, "HostName is required"},
		"no key":            {"HostName=h;DeviceId=d", Options{}, "SharedAccessKey is required"},
		"garbage":           {"garbage", Options{}, "malformed"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Connect(t.Context(), test.connectionString, newRecorder().handlers(), &test.options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("the error %v holds the key", err)
			}
		})
	}
}
