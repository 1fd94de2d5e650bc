package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/amenzhinsky/iothub/iotservice"

	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
)

const (
	apiKey    = "the-api-key"
	scheduler = "device-scheduler::foo"
	solver    = "device-solver::foo"
)

// newService returns the library's own service client for the emulator.
func newService(t *testing.T, e *emulator) *iotservice.Client {
	t.Helper()
	pem, err := os.ReadFile(e.settings["EMULATOR_CA_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate")
	}
	key, err := iotservice.ParseConnectionString(e.settings["IOTHUB_CONNECTION_STRING"])
	if err != nil {
		t.Fatal(err)
	}
	host := key.HostName
	_, port, err := net.SplitHostPort(e.settings["EMULATOR_AMQPS_ADDR"])
	if err != nil {
		t.Fatal(err)
	}
	key.HostName = net.JoinHostPort(host, port) // the one way to move the library's AMQP
	transport := &http.Transport{TLSClientConfig: endpoint.TLS(roots, host), DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, e.settings["EMULATOR_HTTPS_ADDR"])
	}}
	t.Cleanup(transport.CloseIdleConnections)
	service, err := iotservice.New(key, iotservice.WithTLSConfig(amqpTLS(roots, host)), iotservice.WithHTTPClient(&http.Client{Transport: transport, Timeout: patience}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Close() })
	return service
}

// amqpTLS checks the certificate by itself: where the library follows the redirect to the events, it takes a host with a
// port for the name in the certificate.
func amqpTLS(roots *x509.CertPool, host string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(state tls.ConnectionState) error {
		_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
		return err
	}}
}

// startManager starts a stand-in for the manager, which makes identities with the library.
func startManager(t *testing.T, service *iotservice.Client, hostName string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := path.Base(r.URL.Path)
		if r.Header.Get("x-api-key") != apiKey {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/deregister/") {
			if err := service.DeleteDevice(r.Context(), &iotservice.Device{DeviceID: id}); err != nil {
				t.Errorf("delete %s: %v", id, err)
			}
			return
		}
		device, err := ensureDevice(r.Context(), service, id)
		if err != nil {
			t.Errorf("create %s: %v", id, err)
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"url": "HostName=" + hostName + ";DeviceId=" + id +
			";SharedAccessKey=" + device.Authentication.SymmetricKey.PrimaryKey})
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func ensureDevice(ctx context.Context, service *iotservice.Client, id string) (*iotservice.Device, error) {
	device, err := service.CreateDevice(ctx, &iotservice.Device{DeviceID: id})
	var refused *iotservice.RequestError
	if errors.As(err, &refused) && refused.Code == http.StatusConflict {
		return service.GetDevice(ctx, id)
	}
	return device, err
}

// world is an emulator with a manager.
type world struct {
	emulator *emulator
	service  *iotservice.Client
	manager  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	e := startEmulator(t, t.TempDir())
	service := newService(t, e)
	host, _, _ := net.SplitHostPort(service.HostName())
	return &world{emulator: e, service: service, manager: startManager(t, service, host)}
}

func (w *world) device(t *testing.T, id string, args ...string) *process {
	t.Helper()
	p := start(t, []string{"HUBJOBS_API_KEY=" + apiKey, "HUBJOBS_MANAGER_URL=" + w.manager},
		"console-device", append([]string{"--env-file", w.emulator.file, "--output", "json", "--device-id", id}, args...)...)
	p.next(t, "connected")
	return p
}

func (w *world) cloud(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, []string{}, "console-cloud", append([]string{"--env-file", w.emulator.file, "--output", "json"}, args...)...)
}

// field descends into decoded JSON.
func field(t *testing.T, value any, names ...string) any {
	t.Helper()
	for _, name := range names {
		object, ok := value.(map[string]any)
		if !ok {
			t.Fatalf("%v has no %s", value, name)
		}
		value = object[name]
	}
	return value
}

func TestDeviceToCloud(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	monitor := w.cloud(t, "monitor")
	monitor.next(t, "connected")
	device := w.device(t, solver, "--property", "to-device="+scheduler, "--property", "a b=c&d=ä")
	device.write(t, "hello")
	sent := device.next(t, "sent")
	seen := monitor.next(t, "message")
	for _, want := range []struct {
		path  []string
		value any
	}{
		{[]string{"deviceId"}, solver},
		{[]string{"message", "messageId"}, field(t, sent, "message", "messageId")},
		{[]string{"message", "correlationId"}, "foo"},
		{[]string{"message", "body"}, "hello"},
		{[]string{"message", "properties", "to-device"}, scheduler},
		{[]string{"message", "properties", "a b"}, "c&d=ä"},
		{[]string{"message", "systemProperties", "content-type"}, "text/plain"},
		{[]string{"message", "systemProperties", "content-encoding"}, "utf-8"},
		{[]string{"message", "systemProperties", "iothub-connection-device-id"}, solver},
		{[]string{"message", "systemProperties", "iothub-message-source"}, "Telemetry"},
	} {
		if got := field(t, seen, want.path...); got != want.value {
			t.Errorf("%s is %v, want %v", strings.Join(want.path, "."), got, want.value)
		}
	}
	for _, name := range []string{"iothub-enqueuedtime", "iothub-connection-auth-method", "iothub-connection-auth-generation-id",
		"x-opt-enqueued-time", "x-opt-sequence-number", "x-opt-offset"} {
		if field(t, seen, "message", "systemProperties", name) == nil {
			t.Errorf("system property %s is missing", name)
		}
	}
	monitor.interrupt(t)

	again := w.cloud(t, "monitor", "--all")
	if got := field(t, again.next(t, "message"), "message", "body"); got != "hello" {
		t.Errorf("the stored message is %v", got)
	}
	again.interrupt(t)
}

func TestOrderIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	monitor := w.cloud(t, "monitor")
	monitor.next(t, "connected")
	device := w.device(t, solver)
	lines := []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}
	for _, line := range lines {
		device.write(t, line)
	}
	device.write(t, "")
	if err := device.end(t); err != nil {
		t.Errorf("console-device: %v: %s", err, device.stderr.String())
	}
	for _, line := range lines {
		if got := field(t, monitor.next(t, "message"), "message", "body"); got != line {
			t.Fatalf("got message %v, want %v", got, line)
		}
	}
}

func TestCloudToDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	feedback := make(chan *iotservice.Feedback, 10)
	go func() {
		_ = w.service.SubscribeFeedback(ctx, func(f *iotservice.Feedback) error { // ends with the test
			feedback <- f
			return nil
		})
	}()
	if _, err := ensureDevice(ctx, w.service, scheduler); err != nil {
		t.Fatal(err)
	}
	send := func(id, body string) {
		t.Helper()
		if err := w.service.SendEvent(ctx, scheduler, []byte(body), iotservice.WithSendMessageID(id), iotservice.WithSendCorrelationID("foo"),
			iotservice.WithSendAck(iotservice.AckFull), iotservice.WithSendProperty("from-device", solver)); err != nil {
			t.Fatal(err)
		}
	}
	send("early", "sent before the device was there")
	device := w.device(t, scheduler)
	check := func(id, body string) {
		t.Helper()
		got := device.next(t, "received")
		if field(t, got, "message", "messageId") != id || field(t, got, "message", "body") != body ||
			field(t, got, "message", "correlationId") != "foo" || field(t, got, "message", "properties", "from-device") != solver {
			t.Errorf("received %v", got)
		}
	}
	check("early", "sent before the device was there")
	send("late", "sent to the connected device")
	check("late", "sent to the connected device")
	for _, id := range []string{"early", "late"} {
		select {
		case f := <-feedback:
			if f.OriginalMessageID != id || f.StatusCode != "Success" || f.DeviceID != scheduler {
				t.Errorf("feedback %+v, want success of %s", f, id)
			}
		case <-ctx.Done():
			t.Fatalf("no feedback for %s", id)
		}
	}
}

// What waits in the device's queue when it connects comes in the order in which it was sent.
func TestQueueKeepsOrder(t *testing.T) {
	t.Parallel()
	const count = 30
	w := newWorld(t)
	if _, err := ensureDevice(t.Context(), w.service, scheduler); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		if err := w.service.SendEvent(t.Context(), scheduler, []byte(strconv.Itoa(i)), iotservice.WithSendMessageID("m"+strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	device := w.device(t, scheduler)
	for i := range count {
		if got := field(t, device.next(t, "received"), "message", "body"); got != strconv.Itoa(i) {
			t.Fatalf("received %v, want %d", got, i)
		}
	}
}

func TestIdentityRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	device := w.device(t, solver)
	// What comes shows that the console has subscribed. Before, it ends when it loses the connection.
	if err := w.service.SendEvent(t.Context(), solver, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	device.next(t, "received")
	if err := w.service.DeleteDevice(t.Context(), &iotservice.Device{DeviceID: solver}); err != nil {
		t.Fatal(err)
	}
	for {
		reason, _ := device.next(t, "disconnected")["error"].(string)
		if strings.Contains(reason, "refused the device") {
			break
		}
	}
	device.interrupt(t)
}

func TestDirectMethod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	device := w.device(t, solver)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, name := range []string{"reboot", "any.name_of-method"} {
		result, err := w.service.CallDeviceMethod(ctx, solver, &iotservice.MethodCall{MethodName: name, ResponseTimeout: 30, Payload: map[string]any{"a": 1}})
		if err != nil {
			t.Fatal(err)
		}
		if result.Status != 200 || result.Payload["method"] != name || field(t, result.Payload, "payload", "a") != 1.0 {
			t.Errorf("result %+v", result)
		}
		if got := device.next(t, "method"); field(t, got, "method", "name") != name || field(t, got, "method", "payload", "a") != 1.0 {
			t.Errorf("console shows %v", got)
		}
	}
	if result, err := w.service.CallDeviceMethod(ctx, solver, &iotservice.MethodCall{MethodName: "bare", ResponseTimeout: 30}); err != nil || result.Status != 200 {
		t.Errorf("call without payload: %+v, %v", result, err)
	}
	device.interrupt(t)
	if _, err := w.service.CallDeviceMethod(ctx, solver, &iotservice.MethodCall{MethodName: "reboot"}); err == nil {
		t.Error("a method of a device that is not connected succeeds")
	}
}

func TestStatisticsAndDevices(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	device := w.device(t, solver, "--deregister")
	if _, err := ensureDevice(t.Context(), w.service, scheduler); err != nil {
		t.Fatal(err)
	}
	stats := w.cloud(t, "stats")
	got := field(t, stats.next(t, "statistics"), "statistics").(map[string]any)
	for name, want := range map[string]float64{"connectedDeviceCount": 1, "totalDeviceCount": 2, "enabledDeviceCount": 2, "disabledDeviceCount": 0} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	list := w.cloud(t, "devices")
	states := map[any]any{}
	for range 2 {
		d := field(t, list.next(t, "device"), "device")
		states[field(t, d, "deviceId")] = field(t, d, "connectionState")
		if active := field(t, d, "lastActivityTime") != nil; active != (field(t, d, "deviceId") == solver) {
			t.Errorf("last activity of %v", d)
		}
	}
	if states[solver] != "Connected" || states[scheduler] != "Disconnected" {
		t.Errorf("states are %v", states)
	}
	if err := list.end(t); err != nil {
		t.Error(err)
	}
	device.write(t, "")
	device.next(t, "deregistered")
	if err := device.end(t); err != nil {
		t.Error(err)
	}
	var refused *iotservice.RequestError
	if _, err := w.service.GetDevice(t.Context(), solver); !errors.As(err, &refused) || refused.Code != http.StatusNotFound {
		t.Errorf("the deregistered device: %v", err)
	}
}

func TestWrongKey(t *testing.T) {
	t.Parallel()
	e := startEmulator(t, t.TempDir())
	const wrong = "d3Jvbmcga2V5"
	variable := "IOTHUB_CONNECTION_STRING=HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=" + wrong
	for _, command := range []string{"stats", "devices", "monitor"} {
		p := start(t, []string{variable}, "console-cloud", "--env-file", e.file, command)
		err := p.end(t)
		said := p.stderr.String()
		if err == nil || !strings.Contains(said, "refused the credentials") {
			t.Errorf("%s: %v: %s", command, err, said)
		}
		if strings.Count(said, "\n") != 1 || strings.Contains(said, wrong) || strings.Contains(said, "SharedAccessSignature") {
			t.Errorf("%s says more than one line or a secret: %s", command, said)
		}
	}
}

// The list of devices comes in pages of a hundred.
func TestManyDevices(t *testing.T) {
	t.Parallel()
	const count = 105
	w := newWorld(t)
	for i := range count {
		if _, err := w.service.CreateDevice(t.Context(), &iotservice.Device{DeviceID: "device-" + strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
	}
	list := w.cloud(t, "devices")
	seen := map[any]bool{}
	for range count {
		seen[field(t, list.next(t, "device"), "deviceId")] = true
	}
	if len(seen) != count {
		t.Errorf("%d different devices are listed, want %d", len(seen), count)
	}
}

// A hub that goes away and comes back must not cost a message.
func TestHubRestarts(t *testing.T) {
	t.Parallel()
	dataDir := t.TempDir()
	e := startEmulator(t, dataDir)
	service := newService(t, e)
	host, _, _ := net.SplitHostPort(service.HostName())
	w := &world{emulator: e, service: service, manager: startManager(t, service, host)}
	device := w.device(t, scheduler)
	device.write(t, "before")
	device.next(t, "sent")
	if err := e.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = e.end(t) // killed
	device.next(t, "disconnected")
	device.write(t, "while the hub is away")
	var same []string
	for name, variable := range map[string]string{"amqps": "EMULATOR_AMQPS_ADDR", "amqp": "EMULATOR_AMQP_ADDR", "mqtts": "EMULATOR_MQTTS_ADDR", "https": "EMULATOR_HTTPS_ADDR"} {
		same = append(same, "--"+name+"-addr", e.settings[variable])
	}
	w.emulator = startEmulator(t, dataDir, same...)
	device.next(t, "sent")
	monitor := w.cloud(t, "monitor", "--all")
	stored := map[any]bool{}
	for range 2 {
		stored[field(t, monitor.next(t, "message"), "message", "body")] = true
	}
	if !stored["before"] || !stored["while the hub is away"] {
		t.Errorf("the hub has %v", stored)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := newService(t, w.emulator).SendEvent(ctx, scheduler, []byte("welcome back")); err != nil {
		t.Fatal(err)
	}
	if got := field(t, device.next(t, "received"), "message", "body"); got != "welcome back" {
		t.Errorf("received %v", got)
	}
}

// The library's own way to the events, which differs from the console's.
func TestLibraryFollowsRedirect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	device := w.device(t, solver)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, failed := make(chan *iotservice.Event, 10), make(chan error, 1)
	go func() {
		failed <- w.service.SubscribeEvents(ctx, func(e *iotservice.Event) error {
			events <- e
			return nil
		})
	}()
	for {
		device.write(t, "hello")
		select {
		case e := <-events:
			if string(e.Payload) != "hello" || e.ConnectionDeviceID != solver || e.CorrelationID != "foo" {
				t.Errorf("event %+v", e)
			}
			return
		case err := <-failed:
			t.Fatal(err)
		case <-device.lines: // sent; not seen yet, so the subscription came later
		}
	}
}
