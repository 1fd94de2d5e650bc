package mqtt_test

import (
	"crypto/tls"
	"fmt"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// device is a paho client with manual acknowledgement over TLS.
type device struct {
	t        *testing.T
	client   paho.Client
	messages chan paho.Message
	lost     chan error
}

func (f *fixture) pahoOptions(t *testing.T, addr string) *paho.ClientOptions {
	bundle, err := certificates()
	must(t, err)
	return paho.NewClientOptions().
		AddBroker("tls://" + addr).
		SetTLSConfig(&tls.Config{RootCAs: bundle.Roots(), ServerName: hubName}).
		SetProtocolVersion(4).
		SetClientID(deviceID).
		SetUsername(hubName + "/" + deviceID + "/?api-version=2021-04-12").
		SetPassword(token(t, hubName+"/devices/"+deviceID, "", f.key, time.Hour)).
		SetAutoAckDisabled(true).
		SetAutoReconnect(false).
		SetCleanSession(false)
}

func newDevice(t *testing.T, opts *paho.ClientOptions) *device {
	d := &device{t: t, messages: make(chan paho.Message, 64), lost: make(chan error, 1)}
	opts.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { d.messages <- m })
	opts.SetConnectionLostHandler(func(_ paho.Client, err error) { d.lost <- err })
	d.client = paho.NewClient(opts)
	t.Cleanup(func() { d.client.Disconnect(0) })
	return d
}

func (d *device) wait(token paho.Token) {
	d.t.Helper()
	if !token.WaitTimeout(patience) {
		d.t.Fatal("no answer")
	}
	must(d.t, token.Error())
}

func (d *device) receive() paho.Message {
	d.t.Helper()
	select {
	case m := <-d.messages:
		return m
	case <-time.After(patience):
		d.t.Fatal("no message")
		return nil
	}
}

// TestPaho goes once through everything with the client that the device side of
// this project uses.
func TestPaho(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	addr := f.listen()
	d := newDevice(t, f.pahoOptions(t, addr))
	d.wait(d.client.Connect())
	d.wait(d.client.Subscribe(deviceboundFilter, 1, nil))
	d.wait(d.client.Subscribe(methodsFilter, 0, nil))

	d.wait(d.client.Publish(eventsTopic+"%24.mid=1&a=b", 1, false, "hello"))
	if m := f.nextTelemetry(); string(m.Body()) != "hello" || m.Properties.MessageID != "1" || m.ApplicationProperties["a"] != "b" {
		t.Errorf("telemetry %q %v", m.Body(), m.ApplicationProperties)
	}

	f.sendC2D("not acknowledged", nil)
	f.sendC2D("acknowledged", nil)
	d.receive()
	m := d.receive()
	m.Ack()
	eventually(t, "completed", func() bool { return f.pending() == 1 })

	done := f.invoke(hub.MethodCall{Name: "m"})
	rid := d.receive().Topic()[len("$iothub/methods/POST/m/?$rid="):]
	d.wait(d.client.Publish("$iothub/methods/res/201/?$rid="+rid, 0, false, `{}`))
	if got := <-done; got.err != nil || got.result.Status != 201 {
		t.Errorf("method: %+v", got)
	}

	// A second client takes over and gets what the first one kept.
	second := newDevice(t, f.pahoOptions(t, addr))
	d2 := second.client.Connect()
	second.wait(d2)
	if !d2.(*paho.ConnectToken).SessionPresent() {
		t.Error("no session present")
	}
	select {
	case <-d.lost:
	case <-time.After(patience):
		t.Fatal("first connection still there")
	}
	if m := second.receive(); string(m.Payload()) != "not acknowledged" {
		t.Errorf("got %q", m.Payload())
	}
}

func TestPahoRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	opts := f.pahoOptions(t, f.listen()).SetPassword("SharedAccessSignature sr=x&sig=x&se=1")
	token := newDevice(t, opts).client.Connect()
	if !token.WaitTimeout(patience) || token.Error() == nil {
		t.Fatalf("got %v", token.Error())
	}
	if code := token.(*paho.ConnectToken).ReturnCode(); code != 5 {
		t.Errorf("return code %d", code)
	}
}

// TestManyDevices has devices come, publish and go at once.
func TestManyDevices(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	addr := f.listen()
	const devices, messages = 20, 20
	var wg sync.WaitGroup
	for i := range devices {
		id := fmt.Sprintf("device-%d", i)
		key := f.addDevice(id)
		wg.Go(func() {
			opts := f.pahoOptions(t, addr).SetClientID(id).SetUsername(hubName + "/" + id).
				SetPassword(token(t, hubName, "", key, time.Hour))
			d := newDevice(t, opts)
			connect := d.client.Connect()
			if !connect.WaitTimeout(patience) || connect.Error() != nil {
				t.Errorf("%s: %v", id, connect.Error())
				return
			}
			var last paho.Token
			for n := range messages {
				last = d.client.Publish("devices/"+id+"/messages/events/", 1, false, fmt.Sprint(n))
			}
			if !last.WaitTimeout(patience) || last.Error() != nil {
				t.Errorf("%s: %v", id, last.Error())
			}
		})
	}
	wg.Wait()
	next := make(map[any]int)
	for range devices * messages {
		m := f.nextTelemetry()
		id := m.ApplicationProperties[hub.PropertyDeviceID]
		if want := fmt.Sprint(next[id]); string(m.Body()) != want {
			t.Errorf("%v: got %q, want %q", id, m.Body(), want)
		}
		next[id]++
	}
}
