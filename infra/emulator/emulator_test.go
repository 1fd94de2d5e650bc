package emulator_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

func TestTelemetryReachesQueueAndEvents(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	d := createDevice(t, e, deviceID)
	client, _ := connect(t, paho(t, e, deviceID, d.Authentication.SymmetricKey.PrimaryKey))
	publish(t, client, deviceID, "%24.mid=m-1&%24.cid=job-1&%24.ct=application%2Fjson&%24.ce=utf-8&kind=update", `{"Name":"Job 1"}`)

	r := queueReceiver(t, e, "device-messages")
	m := receiveOne(t, r)
	check(t, "queue: body", string(m.Body), `{"Name":"Job 1"}`)
	check(t, "queue: message ID", m.MessageID, "m-1")
	check(t, "queue: correlation ID", *m.CorrelationID, "job-1")
	check(t, "queue: content type", *m.ContentType, "application/json")
	for name, want := range map[string]any{
		"kind":                                 "update",
		"iothub-connection-device-id":          deviceID,
		"iothub-connection-auth-generation-id": d.GenerationID,
		"iothub-connection-auth-method":        `{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}`,
	} {
		check(t, "queue: "+name, m.ApplicationProperties[name], want)
	}
	if err := r.CompleteMessage(testContext(t), m, nil); err != nil {
		t.Error(err)
	}

	ev := firstEvent(t, e)
	check(t, "events: body", string(ev.Body), `{"Name":"Job 1"}`)
	check(t, "events: message ID", *ev.MessageID, "m-1")
	check(t, "events: application properties", ev.Properties, "map[kind:update]")
	check(t, "events: device", ev.SystemProperties["iothub-connection-device-id"], deviceID)
	check(t, "events: source", ev.SystemProperties["iothub-message-source"], "Telemetry")
	if at, ok := ev.SystemProperties["iothub-enqueuedtime"].(time.Time); !ok || at.IsZero() {
		t.Errorf("events: enqueued time %v", ev.SystemProperties["iothub-enqueuedtime"])
	}
}

func TestCloudToDevice(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	service := serviceConn(t, e)
	sendC2D(t, service, deviceID, "m-1", "while offline")
	check(t, "waiting", getDevice(t, e, deviceID).CloudToDeviceMessageCount, 1)

	client, messages := connect(t, paho(t, e, deviceID, key))
	check(t, "state", getDevice(t, e, deviceID).ConnectionState, "Connected")
	m := next(t, "message", messages)
	check(t, "body", string(m.Payload()), "while offline")
	for _, part := range []string{"%24.mid=m-1", "from-device=device-scheduler%3A%3Ajob-1", "iothub-ack=full"} {
		if !strings.Contains(m.Topic(), part) {
			t.Errorf("topic %s has no %s", m.Topic(), part)
		}
	}
	// The connection is lost before the device has acknowledged: it comes again.
	client.Disconnect(0)
	_, messages = connect(t, paho(t, e, deviceID, key))
	next(t, "message again", messages).Ack()

	records := feedbackRecords(t, service)
	check(t, "records", len(records), 1)
	check(t, "feedback", records[0]["originalMessageId"]+" "+records[0]["statusCode"]+" "+records[0]["deviceId"], "m-1 Success "+deviceID)
	check(t, "waiting afterwards", getDevice(t, e, deviceID).CloudToDeviceMessageCount, 0)
}

func TestStateSurvivesRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := emulatortest.Start(t, emulatortest.DataDir(dir))
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	client, _ := connect(t, paho(t, e, deviceID, key))
	publish(t, client, deviceID, "%24.mid=d-1", "telemetry")
	client.Disconnect(0)
	sendC2D(t, serviceConn(t, e), deviceID, "c-1", "to the device")
	before := e.Env()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	e = emulatortest.Start(t, emulatortest.DataDir(dir))
	check(t, "hub connection string", e.HubConnectionString(), before[emulator.EnvHub])
	check(t, "CA file", e.CAFile(), before[emulator.EnvCAFile])
	_, messages := connect(t, paho(t, e, deviceID, key))
	m := next(t, "message", messages)
	check(t, "message", string(m.Payload()), "to the device")
	m.Ack()
	check(t, "feedback", feedbackRecords(t, serviceConn(t, e))[0]["originalMessageId"], "c-1")
	check(t, "queue", receiveOne(t, queueReceiver(t, e, "device-messages")).MessageID, "d-1")
	check(t, "events", *firstEvent(t, e).MessageID, "d-1")
}

func TestTopicDropsDuplicatesAndDeliversAgain(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	client := serviceBus(t, e)
	sender, err := client.NewSender("jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := sender.SendMessage(testContext(t), &azservicebus.Message{MessageID: new("job-1"), Body: []byte("job")}, nil); err != nil {
			t.Fatal(err)
		}
	}
	r, err := client.NewReceiverForSubscription("jobs", "jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	m := receiveOne(t, r)
	check(t, "deliveries", m.DeliveryCount, 1)
	if err := r.AbandonMessage(testContext(t), m, nil); err != nil {
		t.Fatal(err)
	}
	m = receiveOne(t, r)
	check(t, "deliveries after abandoning", m.DeliveryCount, 2)
	if err := r.CompleteMessage(testContext(t), m, nil); err != nil {
		t.Fatal(err)
	}
	left, err := r.PeekMessages(testContext(t), 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "left", len(left), 0)
}

func TestMQTTOverWebSocket(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	opts := paho(t, e, deviceID, key)
	opts.Servers = nil
	opts.AddBroker("wss://" + e.HTTPSAddr() + "/$iothub/websocket")
	client, _ := connect(t, opts)
	publish(t, client, deviceID, "%24.mid=m-1", "over a WebSocket")
	check(t, "queue", receiveOne(t, queueReceiver(t, e, "device-messages")).MessageID, "m-1")
}

func TestWrongKeysAreTurnedAway(t *testing.T) {
	t.Parallel()
	e, other := emulatortest.Start(t), emulatortest.Start(t) // two hubs of one name
	key := createDevice(t, other, deviceID).Authentication.SymmetricKey.PrimaryKey
	createDevice(t, e, deviceID)

	status := call(t, e, serviceToken(t, other.HubConnectionString()), http.MethodGet, "/devices", nil, nil)
	check(t, "REST status", status, http.StatusUnauthorized)

	client := mqtt.NewClient(paho(t, e, deviceID, key).SetConnectRetry(false))
	connecting := client.Connect()
	if !connecting.WaitTimeout(testTimeout) || connecting.Error() == nil {
		t.Errorf("MQTT: %v", connecting.Error())
	}

	_, port, err := net.SplitHostPort(e.AMQPAddr())
	if err != nil {
		t.Fatal(err)
	}
	_, otherPort, err := net.SplitHostPort(other.AMQPAddr())
	if err != nil {
		t.Fatal(err)
	}
	bus, err := azservicebus.NewClientFromConnectionString(strings.Replace(other.ServiceBusConnectionString(), otherPort, port, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close(testContext(t))
	r, err := bus.NewReceiverForQueue("device-messages", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.ReceiveMessages(testContext(t), 1, nil)
	var refused *azservicebus.Error
	if !errors.As(err, &refused) || refused.Code != azservicebus.CodeUnauthorizedAccess {
		t.Errorf("Service Bus: %v", err)
	}
}

func TestConnectionStringsOfPoliciesAndDevices(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	service, err := e.PolicyConnectionString("service")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "registry with the policy service", call(t, e, serviceToken(t, service), http.MethodGet, "/devices", nil, nil), http.StatusUnauthorized)
	if _, err := e.PolicyConnectionString("other"); err == nil {
		t.Error("an unknown policy has a connection string")
	}
	if _, err := e.DeviceConnectionString(deviceID); err == nil {
		t.Error("an unknown device has a connection string")
	}
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	cs, err := e.DeviceConnectionString(deviceID)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "device", cs, "HostName=localhost;DeviceId="+deviceID+";SharedAccessKey="+key)
}

func TestAddDevice(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	cs, err := e.AddDevice(testContext(t), deviceID)
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := strings.Cut(cs, ";SharedAccessKey=")
	check(t, "connection string", cs, "HostName=localhost;DeviceId="+deviceID+";SharedAccessKey="+key)
	connect(t, paho(t, e, deviceID, key))
	for _, id := range []string{deviceID, "no ID"} {
		if _, err := e.AddDevice(testContext(t), id); err == nil {
			t.Errorf("%q can be added", id)
		}
	}
}

func TestLoopbackAddressesInConnectionStrings(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"127.0.0.1:0": "localhost", "127.0.0.2:0": "127.0.0.2", "[::1]:0": "[::1]",
	} {
		e, err := emulator.Start(t.Context(), emulator.Options{AMQPAddr: addr})
		if err != nil {
			t.Logf("%s: %v", addr, err) // a machine may lack the address
			continue
		}
		if cs := e.ServiceBusConnectionString(); !strings.HasPrefix(cs, "Endpoint=sb://"+want+":") {
			t.Errorf("%s: the connection string doesn't lead to %s", addr, want)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestEnvFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, emulator.EnvFile)
	if err := os.WriteFile(path, []byte("of a start before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := emulatortest.Start(t, emulatortest.DataDir(dir))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "mode", info.Mode().Perm(), os.FileMode(0o600))
	env := e.Env()
	var want strings.Builder
	for _, name := range []string{
		"IOTHUB_CONNECTION_STRING", "SERVICEBUS_CONNECTION_STRING", "EVENTHUB_CONNECTION_STRING", "EMULATOR_CA_FILE",
		"EMULATOR_HTTPS_ADDR", "EMULATOR_AMQPS_ADDR", "EMULATOR_AMQP_ADDR", "EMULATOR_MQTTS_ADDR",
	} {
		if env[name] == "" {
			t.Errorf("%s is empty", name)
		}
		fmt.Fprintf(&want, "%s=%s\n", name, env[name])
	}
	check(t, "file", readFile(t, path), want.String())
	_, port, err := net.SplitHostPort(e.AMQPAddr())
	if err != nil {
		t.Fatal(err)
	}
	for name, pattern := range map[string][]string{
		emulator.EnvHub:        {"HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey="},
		emulator.EnvServiceBus: {"Endpoint=sb://localhost:" + port + ";SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=", ";UseDevelopmentEmulator=true"},
		emulator.EnvEventHub:   {"Endpoint=sb://localhost:" + port + ";SharedAccessKeyName=iothubowner;SharedAccessKey=", ";UseDevelopmentEmulator=true;EntityPath=localhost"},
	} {
		if !strings.HasPrefix(env[name], pattern[0]) || !strings.HasSuffix(env[name], pattern[len(pattern)-1]) && len(pattern) > 1 {
			t.Errorf("%s has another form: it should begin with %s and end with %s", name, pattern[0], pattern[len(pattern)-1])
		}
	}
	check(t, "CA file", readFile(t, env[emulator.EnvCAFile]), string(e.CAPEM()))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestWithoutDataDir(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	check(t, "CA file", e.CAFile(), "")
	if _, there := e.Env()[emulator.EnvCAFile]; there {
		t.Error("there is a setting for a CA file that doesn't exist")
	}
	dir := t.TempDir()
	if err := e.WriteEnv(dir); err != nil {
		t.Fatal(err)
	}
	check(t, "CA", readFile(t, filepath.Join(dir, "ca.pem")), string(e.CAPEM()))
	if !strings.Contains(readFile(t, filepath.Join(dir, emulator.EnvFile)), "EMULATOR_CA_FILE="+dir) {
		t.Error("the settings don't name the CA file")
	}
}

func TestHubName(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t, func(o *emulator.Options) { o.HubName = "my-hub.local" })
	check(t, "events", e.EventsName(), "my-hub")
	createDevice(t, e, deviceID) // verifies the certificate against the name
	if !strings.HasPrefix(e.HubConnectionString(), "HostName=my-hub.local;") {
		t.Error("the connection string has another name")
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	held := t.TempDir()
	emulatortest.Start(t, emulatortest.DataDir(held))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "state.db"), []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opts emulator.Options
		want string
	}{
		"port taken":            {emulator.Options{MQTTSAddr: taken.Addr().String()}, "listen for MQTTS on " + taken.Addr().String()},
		"no address":            {emulator.Options{HTTPSAddr: "nowhere"}, "listen for HTTPS on nowhere"},
		"directory in use":      {emulator.Options{DataDir: held}, fmt.Sprintf("is held by process %d; stop it or use another directory", os.Getpid())},
		"directory is a file":   {emulator.Options{DataDir: file}, "make data directory"},
		"state damaged":         {emulator.Options{DataDir: damaged}, "state file is damaged"},
		"hub name":              {emulator.Options{HubName: "a b"}, `hub name "a b" is not a host name`},
		"hub name is an IP":     {emulator.Options{HubName: "127.0.0.1"}, "is not a host name"},
		"feedback interval":     {emulator.Options{FeedbackInterval: -1}, "is negative"},
		"queue named as events": {emulator.Options{Config: &emulator.Config{Queues: []emulator.Queue{{Name: "LOCALHOST"}}}}, "the hub's built-in endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := emulator.Start(t.Context(), tc.opts)
			if err == nil {
				t.Error("it started")
				_ = e.Close()
				return
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
	_, err = emulator.Start(t.Context(), emulator.Options{MQTTSAddr: taken.Addr().String()})
	var listen *emulator.ListenError
	if !errors.As(err, &listen) || listen.Listener != emulator.ListenerMQTTS {
		t.Errorf("port taken: %v", err)
	}
}

func TestCloseTwice(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t)
	for range 2 {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// lockedBuffer takes logs from many goroutines.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestLogsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	var logs lockedBuffer
	e := emulatortest.Start(t, func(o *emulator.Options) {
		o.Logger = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	client, _ := connect(t, paho(t, e, deviceID, key))
	publish(t, client, deviceID, "", "hello")
	sendC2D(t, serviceConn(t, e), deviceID, "m-1", "hello")
	receiveOne(t, queueReceiver(t, e, "device-messages"))
	refused := mqtt.NewClient(paho(t, e, deviceID, strings.Repeat("AAAA", 11)))
	if connecting := refused.Connect(); !connecting.WaitTimeout(testTimeout) || connecting.Error() == nil {
		t.Error("a wrong key was accepted")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	secrets := []string{key, "SharedAccessSignature", "sig="}
	for _, cs := range e.Env() {
		if _, rest, ok := strings.Cut(cs, "SharedAccessKey="); ok {
			secret, _, _ := strings.Cut(rest, ";")
			secrets = append(secrets, secret)
		}
	}
	if logs.String() == "" {
		t.Error("nothing was logged")
	}
	for _, secret := range secrets {
		if strings.Contains(logs.String(), secret) {
			t.Error("a secret is in the logs") // without showing it once more
		}
	}
}
