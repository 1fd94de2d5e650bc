package iotdevice

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type dialed struct {
	client *Client
	err    error
}

// dial connects in the background: the test has to play the hub meanwhile.
func (h *fakeHub) dial(cs string, opts Options) <-chan dialed {
	out := make(chan dialed, 1)
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	h.t.Cleanup(cancel)
	go func() {
		c, err := Dial(ctx, cs, opts)
		out <- dialed{c, err}
	}()
	return out
}

// connected returns a client and its first connection.
func (h *fakeHub) connected(opts Options) (*Client, *fakeConn) {
	h.t.Helper()
	dialing := h.dial(connectionString, opts)
	subscriptions := 0
	if opts.Handle != nil {
		subscriptions++
	}
	if opts.Method != nil {
		subscriptions++
	}
	conn := h.accepted(subscriptions)
	d := <-dialing
	if d.err != nil {
		h.t.Fatal(d.err)
	}
	h.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = d.client.Close(ctx) // of what a test has left open
	})
	return d.client, conn
}

func publish(t *testing.T, c *Client, m job.Message) <-chan error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- c.Publish(ctx, m) }()
	return done
}

func TestConnect(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.KeepAlive = 40 * time.Second
	client, conn := h.connected(opts)
	p := conn.connect
	if p.ProtocolName != "MQTT" || p.ProtocolVersion != 4 || p.CleanSession || p.Keepalive != 40 || p.ClientIdentifier != deviceID {
		t.Errorf("got %s", p)
	}
	if p.Username != "example.com/"+deviceID+"/?api-version=2021-04-12" {
		t.Errorf("got user name %s", p.Username)
	}
	token, err := url.ParseQuery(strings.TrimPrefix(conn.token(), "SharedAccessSignature "))
	if err != nil || token.Get("sr") != "example.com/devices/"+deviceID || token.Has("skn") {
		t.Errorf("got token %v, %v", token, err)
	}
	if !client.Connected() {
		t.Error("is not connected")
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if !conn.gone() {
		t.Error("did not send DISCONNECT")
	}
	if client.Connected() || client.Err() != nil {
		t.Errorf("after Close: connected %v, error %v", client.Connected(), client.Err())
	}
	<-client.Done()
	if err := client.Publish(t.Context(), job.Message{ID: "m"}); !errors.Is(err, job.ErrUnavailable) {
		t.Errorf("Publish after Close: got %v", err)
	}
}

func TestDialRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code byte
		want error
	}{
		"bad protocol level": {1, job.ErrInvalid},
		"bad client ID":      {2, job.ErrInvalid},
		"busy":               {3, job.ErrThrottled},
		"bad credentials":    {4, job.ErrUnauthorized},
		"not authorised":     {5, job.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newFakeHub(t)
			dialing := h.dial(connectionString, h.opts)
			h.next().connack(c.code)
			d := <-dialing
			if !errors.Is(d.err, c.want) || strings.Contains(d.err.Error(), deviceKey) || !strings.Contains(d.err.Error(), deviceID) {
				t.Errorf("got %v, want %v", d.err, c.want)
			}
			if len(h.conns) > 0 {
				t.Error("tried twice")
			}
		})
	}
}

func TestDialInvalid(t *testing.T) {
	t.Parallel()
	for name, cs := range map[string]string{
		"empty":          "",
		"no key":         "HostName=h;DeviceId=d",
		"topic wildcard": credential.DeviceConnectionString("h", "device#1", deviceKey),
	} {
		if _, err := Dial(t.Context(), cs, Options{}); !errors.Is(err, job.ErrInvalid) || strings.Contains(err.Error(), deviceKey) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Dial(ctx, connectionString, h.opts)
		done <- err
	}()
	h.next() // which never gets its CONNACK
	cancel()
	if err := <-done; !errors.Is(err, job.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDialWithoutServer(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.Addr = "127.0.0.1:1"
	if _, err := Dial(t.Context(), connectionString, opts); !errors.Is(err, job.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	opts = h.opts
	opts.RootCAs = nil
	if _, err := Dial(t.Context(), connectionString, opts); !errors.Is(err, job.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("untrusted server: got %v", err)
	}
}

func TestDialWhenTheSubscriptionIsRefused(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.Handle = func(context.Context, job.Message) error { return nil }
	dialing := h.dial(connectionString, opts)
	conn := h.next()
	conn.connack(0)
	s := receive[*packets.SubscribePacket](conn)
	s.Qoss[0] = 0x80
	conn.suback(s)
	if d := <-dialing; !errors.Is(d.err, job.ErrUnavailable) {
		t.Errorf("got %v", d.err)
	}
	conn.gone()
}

func TestDialAsksForTheConnectionString(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	var asked atomic.Int32
	opts := h.opts
	opts.ConnectionString = func(context.Context) (string, error) {
		asked.Add(1)
		return connectionString, nil
	}
	t.Run("when it got none", func(t *testing.T) {
		dialing := h.dial("", opts)
		h.accepted(0)
		d := <-dialing
		if d.err != nil || asked.Load() != 1 {
			t.Fatalf("got %v, asked %d times", d.err, asked.Load())
		}
		_ = d.client.Close(t.Context())
	})
	asked.Store(0)
	t.Run("when the key is refused", func(t *testing.T) {
		dialing := h.dial(credential.DeviceConnectionString("example.com", deviceID, "b2xk"), opts)
		h.next().connack(5)
		h.accepted(0)
		d := <-dialing
		if d.err != nil || asked.Load() != 1 {
			t.Fatalf("got %v, asked %d times", d.err, asked.Load())
		}
		_ = d.client.Close(t.Context())
	})
}

func TestPublishWaitsForPuback(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	client, conn := h.connected(h.opts)
	done := publish(t, client, job.Message{ID: "m1", Body: job.Body("hello")})
	p := receive[*packets.PublishPacket](conn)
	if p.Qos != 1 || p.Retain || string(p.Payload) != "hello" || !hasMessageID(p, "m1") {
		t.Errorf("got %s", p)
	}
	select {
	case err := <-done:
		t.Fatalf("returned %v before PUBACK", err)
	default:
	}
	conn.puback(p.MessageID)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPublishAgainAfterALoss(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	client, conn := h.connected(h.opts)
	done := publish(t, client, job.Message{ID: "m1"})
	for range 3 {
		p := receive[*packets.PublishPacket](conn)
		if !hasMessageID(p, "m1") {
			t.Errorf("got %s", p)
		}
		_ = conn.net.Close() // before PUBACK
		conn = h.accepted(0)
	}
	conn.puback(receive[*packets.PublishPacket](conn).MessageID)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPublishAgainWhenTheHubDoesNotAcknowledge(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.ackTimeout = 500 * time.Millisecond
	client, conn := h.connected(opts)
	done := publish(t, client, job.Message{ID: "m1"})
	receive[*packets.PublishPacket](conn) // which never gets its PUBACK
	conn.gone()
	conn = h.accepted(0)
	conn.puback(receive[*packets.PublishPacket](conn).MessageID)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPublishEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	client, conn := h.connected(h.opts)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- client.Publish(ctx, job.Message{ID: "m1"}) }()
	receive[*packets.PublishPacket](conn) // which never gets its PUBACK
	cancel()
	if err := <-done; !errors.Is(err, job.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// The connection is as good as before.
	again := publish(t, client, job.Message{ID: "m2"})
	conn.puback(receive[*packets.PublishPacket](conn).MessageID)
	if err := <-again; err != nil {
		t.Error(err)
	}
}

func TestPublishWhileDisconnectedEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	client, conn := h.connected(h.opts)
	_ = conn.net.Close()
	h.next() // which never gets its CONNACK
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := client.Publish(ctx, job.Message{ID: "m1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestPublishRefusesBeforeSending(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	client, _ := h.connected(h.opts)
	for name, c := range map[string]struct {
		m    job.Message
		want error
	}{
		"body too large":       {job.Message{ID: "m", Body: make(job.Body, job.MaxDeviceToCloudSize)}, job.ErrTooLarge},
		"properties too large": {job.Message{ID: "m", Properties: map[string]string{"a": strings.Repeat("&", 30_000)}}, job.ErrTooLarge},
		"reserved name":        {job.Message{ID: "m", Properties: map[string]string{"$.mid": "x"}}, job.ErrInvalid},
	} {
		if err := client.Publish(t.Context(), c.m); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestHandleInOrderAndAcknowledgeAfterwards(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	handled, proceed := make(chan string, 8), make(chan error)
	opts := h.opts
	opts.Handle = func(_ context.Context, m job.Message) error {
		handled <- m.ID
		return <-proceed
	}
	dialing := h.dial(connectionString, opts)
	conn := h.next()
	conn.connack(0)
	conn.deliver(7, "early") // the session has its subscription already
	s := receive[*packets.SubscribePacket](conn)
	if s.Topics[0] != "devices/"+deviceID+"/messages/devicebound/#" || s.Qoss[0] != 1 {
		t.Errorf("subscribes to %v at %v", s.Topics, s.Qoss)
	}
	conn.suback(s)
	d := <-dialing
	if d.err != nil {
		t.Fatal(d.err)
	}
	defer func() { _ = d.client.Close(t.Context()) }()
	conn.deliver(8, "second")
	conn.deliver(9, "third")
	for i, want := range []string{"early", "second", "third"} {
		if got := <-handled; got != want {
			t.Fatalf("handled %s, want %s", got, want)
		}
		if len(conn.received) > 0 || len(handled) > 0 {
			t.Fatal("something went on beside the handler")
		}
		proceed <- nil
		if got := receive[*packets.PubackPacket](conn).MessageID; got != uint16(7+i) {
			t.Fatalf("acknowledged %d", got)
		}
	}
}

func TestHandleFailureBringsTheMessageAgain(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	handled := make(chan string, 8)
	var failures atomic.Int32
	opts := h.opts
	opts.Handle = func(_ context.Context, m job.Message) error {
		handled <- m.ID
		if m.ID == "m1" && failures.Add(1) <= 2 {
			return errors.New("not now")
		}
		return nil
	}
	client, conn := h.connected(opts)
	for attempt := range 3 {
		conn.deliver(1, "m1")
		conn.deliver(2, "m2")
		if got := <-handled; got != "m1" {
			t.Fatalf("attempt %d: handled %s first", attempt, got)
		}
		if attempt == 2 {
			break
		}
		conn.gone() // without a PUBACK
		conn = h.accepted(1)
	}
	if got := <-handled; got != "m2" {
		t.Errorf("then handled %s", got)
	}
	for want := uint16(1); want <= 2; want++ {
		if got := receive[*packets.PubackPacket](conn).MessageID; got != want {
			t.Errorf("acknowledged %d, want %d", got, want)
		}
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPublishGoesOnWhileRedeliveryWaits(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.MinBackoff, opts.MaxBackoff = time.Hour, time.Hour
	failed := make(chan struct{}, 1)
	opts.Handle = func(context.Context, job.Message) error {
		failed <- struct{}{}
		return errors.New("not now")
	}
	client, conn := h.connected(opts)
	conn.deliver(1, "m1")
	<-failed
	done := publish(t, client, job.Message{ID: "out"})
	conn.puback(receive[*packets.PublishPacket](conn).MessageID)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
	conn.gone()
}

func TestMessagesNobodySubscribedToAreIgnored(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.Handle = func(_ context.Context, m job.Message) error {
		if m.ID != "mine" {
			t.Errorf("handled %+v", m)
		}
		return nil
	}
	_, conn := h.connected(opts)
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.MessageID, p.Qos = "$iothub/twin/PATCH/properties/desired/?$version=2", 1, 1
	conn.send(p)
	conn.deliver(2, "mine")
	for want := uint16(1); want <= 2; want++ {
		if got := receive[*packets.PubackPacket](conn).MessageID; got != want {
			t.Errorf("acknowledged %d, want %d", got, want)
		}
	}
}

func TestTokenIsRenewedWithoutLosingWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.renewAfter = 50 * time.Millisecond
	handling, proceed := make(chan struct{}), make(chan struct{})
	opts.Handle = func(context.Context, job.Message) error {
		close(handling)
		<-proceed
		return nil
	}
	client, conn := h.connected(opts)
	before, _ := client.get()
	conn.deliver(1, "m1")
	<-handling
	select { // the renewal has begun: nothing new may be handled on this connection
	case <-waitDraining(t, before.handling):
	case <-time.After(patience):
		t.Fatal("the token was not renewed")
	}
	done := publish(t, client, job.Message{ID: "out"})
	p := receive[*packets.PublishPacket](conn) // publishing goes on as long as the handler does
	close(proceed)
	receive[*packets.PubackPacket](conn)
	conn.puback(p.MessageID)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !conn.gone() {
		t.Error("did not send DISCONNECT")
	}
	h.accepted(1)
	_ = client.Close(t.Context())
}

func TestRenewalIsWellBeforeTheEnd(t *testing.T) {
	t.Parallel()
	for range 100 {
		if got := (Options{}).renewal(time.Hour); got < 40*time.Minute || got > 55*time.Minute {
			t.Fatalf("renews a token of an hour after %s", got)
		}
	}
	(Options{}).renewal(-time.Hour) // of one that has ended: must not panic
}

// waitDraining returns a channel that is closed once t lets nothing begin any more.
func waitDraining(t *testing.T, tr *tracker) <-chan struct{} {
	draining := make(chan struct{})
	ctx := t.Context()
	go func() {
		for tr.enter() {
			tr.leave()
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
		close(draining)
	}()
	return draining
}

func TestClientEndsWhenTheKeyIsRefusedForGood(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	client, conn := h.connected(h.opts)
	waiting := publish(t, client, job.Message{ID: "m1"})
	receive[*packets.PublishPacket](conn)
	_ = conn.net.Close()
	for range maxRefusals {
		h.next().connack(5)
	}
	<-client.Done()
	if !errors.Is(client.Err(), job.ErrUnauthorized) || client.Connected() {
		t.Errorf("got %v, connected %v", client.Err(), client.Connected())
	}
	if err := <-waiting; !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("Publish: got %v", err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Errorf("Close: got %v", err)
	}
}

func TestARefusalThatPassesEndsNothing(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	client, conn := h.connected(h.opts)
	for range 2 {
		_ = conn.net.Close()
		for range maxRefusals - 1 {
			h.next().connack(5)
		}
		conn = h.accepted(0)
	}
	done := publish(t, client, job.Message{ID: "m1"})
	conn.puback(receive[*packets.PublishPacket](conn).MessageID)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestClientEndsWhenTheDeviceIsGone(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.ConnectionString = func(context.Context) (string, error) {
		return "", &job.Error{Op: "ask the manager", Kind: job.ErrNotFound}
	}
	client, conn := h.connected(opts)
	_ = conn.net.Close()
	h.next().connack(5)
	<-client.Done()
	if !errors.Is(client.Err(), job.ErrNotFound) {
		t.Errorf("got %v", client.Err())
	}
}

func TestCloseWaitsForTheHandler(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	handling, proceed := make(chan struct{}), make(chan struct{})
	opts.Handle = func(ctx context.Context, m job.Message) error {
		if m.ID != "m1" {
			t.Errorf("handled %s after Close", m.ID)
		}
		close(handling)
		<-proceed
		return ctx.Err()
	}
	client, conn := h.connected(opts)
	conn.deliver(1, "m1")
	<-handling
	conn.deliver(2, "m2")
	closed := make(chan error, 1)
	go func() { closed <- client.Close(t.Context()) }()
	before, _ := client.get()
	<-waitDraining(t, before.handling)
	close(proceed)
	if got := receive[*packets.PubackPacket](conn).MessageID; got != 1 {
		t.Errorf("acknowledged %d", got)
	}
	if !conn.gone() {
		t.Error("did not send DISCONNECT")
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestCloseInHaste(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	handling := make(chan struct{})
	opts.Handle = func(ctx context.Context, _ job.Message) error {
		close(handling)
		<-ctx.Done()
		return ctx.Err()
	}
	client, conn := h.connected(opts)
	conn.deliver(1, "m1")
	<-handling
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := client.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	conn.gone() // without a PUBACK
}

func TestMethods(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	opts := h.opts
	opts.Method = func(_ context.Context, name string, payload []byte) (int, []byte) {
		return 201, []byte(`{"` + name + `":` + string(payload) + `}`)
	}
	_, conn := h.connected(opts)
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload = "$iothub/methods/POST/reboot/?$rid=a1", []byte("null")
	conn.send(p)
	got := receive[*packets.PublishPacket](conn)
	if got.TopicName != "$iothub/methods/res/201/?$rid=a1" || got.Qos != 0 || string(got.Payload) != `{"reboot":null}` {
		t.Errorf("got %s", got)
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ gateway, addr, want string }{
		{"", "", "h:8883"},
		{"edge", "", "edge:8883"},
		{"edge:1234", "", "edge:1234"},
		{"edge", "127.0.0.1:5", "127.0.0.1:5"},
	} {
		device := credential.Device{HostName: "h", Gateway: c.gateway}
		if got := address(device, Options{Addr: c.addr}); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}
