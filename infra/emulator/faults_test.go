package emulator_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// inject puts a fault into force, written as for the flag.
func inject(t *testing.T, e *emulator.Emulator, text string) string {
	t.Helper()
	f, err := emulator.ParseFault(text)
	if err != nil {
		t.Fatal(err)
	}
	id, err := e.InjectFault(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// connected is a device whose loss of the connection goes to a channel.
func connected(t *testing.T, e *emulator.Emulator, id string, change func(*mqtt.ClientOptions)) (mqtt.Client, <-chan error) {
	t.Helper()
	key := createDevice(t, e, id).Authentication.SymmetricKey.PrimaryKey
	lost := make(chan error, 1)
	opts := paho(t, e, id, key).SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
	if change != nil {
		change(opts)
	}
	client, _ := connect(t, opts)
	return client, lost
}

// wantMessages waits until a queue holds so many messages, and no more.
func wantMessages(t *testing.T, r *azservicebus.Receiver, want int) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	for {
		msgs, err := r.PeekMessages(testContext(t), 100, &azservicebus.PeekMessagesOptions{FromSequenceNumber: new(int64(0))})
		if err != nil {
			t.Fatal(err)
		}
		if len(msgs) == want {
			return
		}
		if len(msgs) > want || time.Now().After(deadline) {
			t.Fatalf("the queue has %d messages, want %d", len(msgs), want)
		}
		time.Sleep(10 * time.Millisecond) // the interval of polling
	}
}

func TestCutHitsTheDevicesOfTheFault(t *testing.T) {
	t.Parallel()
	webSocket := func(e *emulator.Emulator) func(*mqtt.ClientOptions) {
		return func(o *mqtt.ClientOptions) {
			o.Servers = nil
			o.AddBroker("wss://" + e.HTTPSAddr() + "/$iothub/websocket")
		}
	}
	for name, tc := range map[string]struct {
		fault  string
		change func(*emulator.Emulator) func(*mqtt.ClientOptions)
	}{
		"by name":                    {"cut,device=sensor-*", nil},
		"by protocol":                {"cut,device=sensor-*,protocol=mqtt", nil},
		"after a time":               {"cut,device=sensor-*,after=20ms", nil},
		"after some bytes":           {"cut,device=sensor-*,bytes=50", nil},
		"on a WebSocket":             {"cut,device=sensor-*,protocol=mqtt", webSocket},
		"by the hub":                 {"disconnect,device=sensor-*", nil},
		"by the hub, on a WebSocket": {"disconnect,device=sensor-*,after=10ms", webSocket},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := emulatortest.Start(t)
			var change func(*mqtt.ClientOptions)
			if tc.change != nil {
				change = tc.change(e)
			}
			client, lost := connected(t, e, "sensor-1", change)
			lamp, _ := connected(t, e, "lamp", change)
			publish(t, client, "sensor-1", "", "before")
			inject(t, e, tc.fault)
			client.Publish("devices/sensor-1/messages/events/", 1, false, strings.Repeat("x", 100))
			next(t, "loss of the connection", lost)
			publish(t, lamp, "lamp", "", "still here")
			e.ClearFaults()
			done(t, client.Connect())
			publish(t, client, "sensor-1", "", "after")
		})
	}
}

func TestCutRequests(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	for _, id := range []string{"sensor", "lamp"} {
		createDevice(t, e, id)
	}
	send := func(id string) error {
		body := strings.NewReader("telemetry")
		req, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "https://"+e.HTTPSAddr()+devicePath(id)+"/messages/events?api-version=2021-04-12", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", serviceToken(t, e.HubConnectionString()))
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig(t, e), DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	inject(t, e, "cut,protocol=https,device=sensor,count=1")
	if err := send("sensor"); err == nil {
		t.Error("the connection of the device was not cut")
	}
	for _, id := range []string{"lamp", "sensor"} {
		if err := send(id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestHalfOpenConnection(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	sensor, _ := connected(t, e, "sensor", nil)
	lamp, _ := connected(t, e, "lamp", nil)
	id := inject(t, e, "half-open,device=sensor")
	held := sensor.Publish("devices/sensor/messages/events/", 1, false, "held up")
	for range 20 {
		publish(t, lamp, "lamp", "", "passes")
	}
	r := queueReceiver(t, e, "device-messages")
	wantMessages(t, r, 20)
	select {
	case <-held.Done():
		t.Error("a message on a half open connection was acknowledged")
	default:
	}
	check(t, "state", getDevice(t, e, "sensor").ConnectionState, "Connected") // nobody knows
	if !e.RemoveFault(id) {
		t.Error("the fault is gone")
	}
	done(t, held)
	wantMessages(t, r, 21)
}

// The emulator ends although connections are half open.
func TestCloseInSpiteOfFaults(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	sensor, lost := connected(t, e, "sensor", nil)
	bus, err := serviceBus(t, e).NewSender("device-messages", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.SendMessage(testContext(t), &azservicebus.Message{}, nil); err != nil {
		t.Fatal(err)
	}
	inject(t, e, "half-open")
	sensor.Publish("devices/sensor/messages/events/", 1, false, "held up")
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	next(t, "loss of the connection", lost)
	if _, err := e.InjectFault(emulator.Fault{Kind: emulator.FaultCut}); err == nil {
		t.Error("a fault was injected into an emulator that is closed")
	}
}

func TestDelayedClientsWork(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t, func(o *emulator.Options) {
		o.Faults = []emulator.Fault{{Kind: emulator.FaultDelay, Latency: time.Millisecond, Jitter: 5 * time.Millisecond}}
	})
	client, _ := connected(t, e, deviceID, nil)
	publish(t, client, deviceID, "%24.mid=m-1", strings.Repeat("x", 100<<10))
	r := queueReceiver(t, e, "device-messages")
	m := receiveOne(t, r)
	check(t, "message", m.MessageID, "m-1")
	if err := r.CompleteMessage(testContext(t), m, nil); err != nil {
		t.Error(err)
	}
	if hits := e.Faults()[0].Hits; hits < 3 { // REST, MQTT, AMQP
		t.Errorf("%d connections are slow", hits)
	}
}

func TestCutByEntity(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t, emulatortest.Config(&emulator.Config{Queues: []emulator.Queue{{Name: "Orders"}, {Name: "bills"}}}))
	send := func(queue string) error {
		client, err := azservicebus.NewClientFromConnectionString(e.ServiceBusConnectionString(), &azservicebus.ClientOptions{
			RetryOptions: azservicebus.RetryOptions{MaxRetries: -1},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close(context.WithoutCancel(t.Context()))
		sender, err := client.NewSender(queue, nil)
		if err != nil {
			t.Fatal(err)
		}
		return sender.SendMessage(testContext(t), &azservicebus.Message{}, nil)
	}
	inject(t, e, "cut,entity=orders,protocol=amqp")
	var lost *azservicebus.Error
	if err := send("Orders"); !errors.As(err, &lost) || lost.Code != azservicebus.CodeConnectionLost {
		t.Errorf("orders: %v", err)
	}
	if err := send("bills"); err != nil {
		t.Errorf("bills: %v", err)
	}
}

// condition returns that of an error of go-amqp.
func condition(err error) amqp.ErrCond {
	var e *amqp.Error
	if errors.As(err, &e) {
		return e.Condition
	}
	var link *amqp.LinkError
	if errors.As(err, &link) && link.RemoteErr != nil {
		return link.RemoteErr.Condition
	}
	return ""
}

// trySendC2D sends to a device without wanting success.
func trySendC2D(t *testing.T, session *amqp.Session, id string) error {
	t.Helper()
	sender, err := session.NewSender(testContext(t), "/messages/devicebound", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close(testContext(t))
	to := "/devices/" + url.PathEscape(id) + "/messages/devicebound"
	return sender.Send(testContext(t), &amqp.Message{Properties: &amqp.MessageProperties{To: &to}, Data: [][]byte{{'x'}}}, nil)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	service := serviceConn(t, e)
	for code, want := range map[string]amqp.ErrCond{
		"429": "com.microsoft:device-container-throttled", "403": "com.microsoft:quota-exceeded", "403004": "amqp:resource-limit-exceeded",
		"404": "amqp:not-found", "401": "amqp:unauthorized-access", "503": "com.microsoft:timeout",
	} {
		id := inject(t, e, "refuse,operation=c2d,device=device-*,code="+code)
		if err := trySendC2D(t, service, deviceID); condition(err) != want {
			t.Errorf("C2D with code %s: %v, want %s", code, err, want)
		}
		e.RemoveFault(id)
	}
	if err := trySendC2D(t, service, deviceID); err != nil {
		t.Errorf("C2D after the faults: %v", err)
	}
	inject(t, e, "refuse,operation=connect,code=401,count=1")
	device := mqtt.NewClient(paho(t, e, deviceID, key))
	connecting := device.Connect()
	if !connecting.WaitTimeout(testTimeout) || connecting.Error() == nil {
		t.Error("the device is connected")
	}
	done(t, device.Connect())
	device.Disconnect(0)
	inject(t, e, "refuse,operation=registry,code=429,retryAfter=1500ms,count=1")
	status, header, _ := rest(t, e, http.MethodGet, "/devices/"+url.PathEscape(deviceID), "")
	check(t, "registry: status", status, http.StatusTooManyRequests)
	check(t, "registry: Retry-After", header.Get("Retry-After"), "2")
	check(t, "registry: name", header.Get("iothub-errorcode"), "ThrottlingException")
	getDevice(t, e, deviceID) // one was refused
	check(t, "faults left", len(e.Faults()), 0)
}

// rest is call for any body, and tells of the whole answer.
func rest(t *testing.T, e *emulator.Emulator, method, path, body string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), method, "https://"+e.HTTPSAddr()+path+"?api-version=2021-04-12", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", serviceToken(t, e.HubConnectionString()))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig(t, e), DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

func TestRefusalsOfServiceBus(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	client := serviceBus(t, e)
	sender, err := client.NewSender("device-messages", nil)
	if err != nil {
		t.Fatal(err)
	}
	send := func() error { return sender.SendMessage(testContext(t), &azservicebus.Message{}, nil) }
	inject(t, e, "refuse,operation=send,entity=other,code=401")
	if err := send(); err != nil {
		t.Errorf("another entity: %v", err)
	}
	id := inject(t, e, "refuse,operation=send,entity=device-*,code=401")
	var refused *azservicebus.Error
	if err := send(); !errors.As(err, &refused) || refused.Code != azservicebus.CodeUnauthorizedAccess {
		t.Errorf("unauthorized: %v", err)
	}
	e.RemoveFault(id)
	r := queueReceiver(t, e, "device-messages")
	m := receiveOne(t, r)
	id = inject(t, e, "refuse,operation=receive,entity=device-messages,code=401")
	if err := r.RenewMessageLock(testContext(t), m, nil); !errors.As(err, &refused) || refused.Code != azservicebus.CodeUnauthorizedAccess {
		t.Errorf("renewal: %v", err)
	}
	other := queueReceiver(t, e, "device-messages")
	if _, err := other.ReceiveMessages(testContext(t), 1, nil); !errors.As(err, &refused) || refused.Code != azservicebus.CodeUnauthorizedAccess {
		t.Errorf("receiver: %v", err)
	}
	e.RemoveFault(id)
	if err := r.CompleteMessage(testContext(t), m, nil); err != nil {
		t.Errorf("after the fault: %v", err)
	}
}

func TestBusyServiceBusIsTriedAgain(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	client, err := azservicebus.NewClientFromConnectionString(e.ServiceBusConnectionString(), &azservicebus.ClientOptions{
		RetryOptions: azservicebus.RetryOptions{MaxRetries: 3, RetryDelay: time.Millisecond, MaxRetryDelay: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(context.WithoutCancel(t.Context()))
	sender, err := client.NewSender("jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	inject(t, e, "refuse,operation=send,entity=jobs,code=503,count=2")
	if err := sender.SendMessage(testContext(t), &azservicebus.Message{}, nil); err != nil {
		t.Error(err)
	}
	check(t, "faults left", len(e.Faults()), 0)
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	client, messages := connect(t, paho(t, e, deviceID, key))
	r := queueReceiver(t, e, "device-messages")

	inject(t, e, "duplicate,operation=d2c,device="+deviceID+",count=1")
	publish(t, client, deviceID, "%24.mid=d-1", "x")
	wantMessages(t, r, 2)
	publish(t, client, deviceID, "%24.mid=d-2", "x")
	wantMessages(t, r, 3)

	inject(t, e, "duplicate,entity=device-messages,count=1")
	for _, want := range []string{"d-1", "d-1", "d-1", "d-2"} {
		m := receiveOne(t, r)
		check(t, "from the queue", m.MessageID, want)
		if err := r.CompleteMessage(testContext(t), m, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantMessages(t, r, 0)

	inject(t, e, "duplicate,operation=c2d")
	service := serviceConn(t, e)
	sendC2D(t, service, deviceID, "c-1", "x")
	for range 2 { // without a loss of the connection in between
		m := next(t, "message", messages)
		if !strings.Contains(m.Topic(), "c-1") {
			t.Errorf("got %s", m.Topic())
		}
		m.Ack()
	}
	check(t, "feedback", feedbackRecords(t, service)[0]["statusCode"], "Success")
	check(t, "waiting", getDevice(t, e, deviceID).CloudToDeviceMessageCount, 0)
}

func TestExpiredLocks(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	sender, err := serviceBus(t, e).NewSender("device-messages", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.SendMessage(testContext(t), &azservicebus.Message{}, nil); err != nil {
		t.Fatal(err)
	}
	r := queueReceiver(t, e, "device-messages")
	m := receiveOne(t, r)
	inject(t, e, "expire-locks,entity=jobs/subscriptions/jobs")
	if err := r.RenewMessageLock(testContext(t), m, nil); err != nil {
		t.Errorf("locks of another entity: %v", err)
	}
	inject(t, e, "expire-locks,entity=device-*")
	var lost *azservicebus.Error
	if err := r.RenewMessageLock(testContext(t), m, nil); !errors.As(err, &lost) || lost.Code != azservicebus.CodeLockLost {
		t.Errorf("renewal: %v", err)
	}
	if m = receiveOne(t, r); m.DeliveryCount != 2 {
		t.Errorf("delivery %d, want the second", m.DeliveryCount)
	}
	if err := r.CompleteMessage(testContext(t), m, nil); err != nil {
		t.Error(err)
	}
}

func TestControlAPI(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := emulatortest.Start(t, emulatortest.DataDir(dir), func(o *emulator.Options) { o.ControlAddr = "127.0.0.1:0" })
	if !strings.Contains(readFile(t, dir+"/"+emulator.EnvFile), "EMULATOR_CONTROL_ADDR="+e.ControlAddr()+"\n") {
		t.Error("the settings don't tell of the control API")
	}
	_, lost := connected(t, e, "sensor", nil)
	req, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "http://"+e.ControlAddr()+"/faults", strings.NewReader(`{"kind":"cut","device":"sensor"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	check(t, "status", resp.StatusCode, http.StatusCreated)
	next(t, "loss of the connection", lost)
	check(t, "faults", e.Faults()[0].Device, "sensor")
	check(t, "control address of another", emulatortest.Start(t).ControlAddr(), "")
}
