package e2e

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/common"
	"github.com/amenzhinsky/iothub/iotdevice"
	"github.com/amenzhinsky/iothub/iotdevice/transport"
	httptransport "github.com/amenzhinsky/iothub/iotdevice/transport/http"
	"github.com/amenzhinsky/iothub/iotdevice/transport/mqtt"
	"github.com/amenzhinsky/iothub/iotservice"
	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
)

// clients are the library's clients for one emulator.
type clients struct {
	*iotservice.Client
	emulator *emulator
	roots    *x509.CertPool
	count    atomic.Int32 // of device IDs that were given out
}

func newClients(t *testing.T) *clients {
	t.Helper()
	e := startEmulator(t, t.TempDir())
	pem, err := os.ReadFile(e.settings["EMULATOR_CA_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	c := &clients{Client: newService(t, e), emulator: e, roots: x509.NewCertPool()}
	if !c.roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate")
	}
	return c
}

// bounded is a context for a call.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// lasting is for subscriptions, which the library takes the context of as their own: with the test's, it would complain of
// answers that are under way when the test ends.
func lasting(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

// ok fails the test if a call failed, and returns what the call did.
func ok[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// equal compares what people read of two values.
func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// refused fails the test unless the hub refused a call with a status.
func refused(t *testing.T, err error, status int) {
	t.Helper()
	var refusal *iotservice.RequestError
	if !errors.As(err, &refusal) || refusal.Code != status {
		t.Errorf("got %v, want status %d", err, status)
	}
}

// notEmulated fails the test unless the emulator said that it lacks something.
func notEmulated(t *testing.T, err error) {
	t.Helper()
	refused(t, err, http.StatusNotImplemented)
	if err != nil && !strings.Contains(err.Error(), "not emulated") {
		t.Errorf("the refusal doesn't say why: %v", err)
	}
}

// eventually repeats a check until it holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx := bounded(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

// id is one that no other test has.
func (c *clients) id() string { return fmt.Sprintf("device::%d", c.count.Add(1)) }

// device registers a device.
func (c *clients) device(t *testing.T) *iotservice.Device {
	t.Helper()
	return ok[*iotservice.Device](t)(c.CreateDevice(bounded(t), &iotservice.Device{DeviceID: c.id()}))
}

// module registers a module of a new device.
func (c *clients) module(t *testing.T) *iotservice.Module {
	t.Helper()
	return ok[*iotservice.Module](t)(c.CreateModule(bounded(t), &iotservice.Module{DeviceID: c.device(t).DeviceID, ModuleID: "camera", ManagedBy: "admin"}))
}

// host is the hub's name without the port that the service client has in it.
func (c *clients) host() string { return endpoint.HostOnly(c.HostName()) }

// redirected makes the library's MQTT go to the emulator.
func (c *clients) redirected() mqtt.TransportOption {
	return mqtt.WithClientOptionsConfig(func(o *paho.ClientOptions) {
		o.SetTLSConfig(endpoint.TLS(c.roots, c.host()))
		o.Servers = nil
		o.AddBroker("tls://" + c.emulator.settings["EMULATOR_MQTTS_ADDR"])
	})
}

// credentials are those of a device's own key.
func (c *clients) credentials(d *iotservice.Device) *iotdevice.SharedAccessKeyCredentials {
	return &iotdevice.SharedAccessKeyCredentials{
		DeviceID:        d.DeviceID,
		SharedAccessKey: common.SharedAccessKey{HostName: c.host(), SharedAccessKey: d.Authentication.SymmetricKey.PrimaryKey},
	}
}

// connect connects a device over MQTT.
func (c *clients) connect(t *testing.T, d *iotservice.Device) *iotdevice.Client {
	t.Helper()
	return c.connected(t, mqtt.New(c.redirected()), d)
}

// overHTTP is the library's other transport, for what it doesn't do over MQTT.
func (c *clients) overHTTP(t *testing.T, d *iotservice.Device) *iotdevice.Client {
	t.Helper()
	client := c.https()
	t.Cleanup(client.CloseIdleConnections)
	return c.connected(t, httptransport.New(httptransport.WithClient(client)), d)
}

func (c *clients) connected(t *testing.T, over transport.Transport, d *iotservice.Device) *iotdevice.Client {
	t.Helper()
	device := ok[*iotdevice.Client](t)(iotdevice.New(over, c.credentials(d)))
	if err := device.Connect(bounded(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = device.Close() }) // a test may have closed it
	return device
}

// https is a client that reaches the emulator under the hub's name.
func (c *clients) https() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: endpoint.TLS(c.roots, c.host()),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, c.emulator.settings["EMULATOR_HTTPS_ADDR"])
		},
	}}
}

// connectModule connects a module over MQTT.
func (c *clients) connectModule(t *testing.T, m *iotservice.Module) *iotdevice.ModuleClient {
	t.Helper()
	credentials := &iotdevice.ModuleSharedAccessKeyCredentials{
		SharedAccessKeyCredentials: iotdevice.SharedAccessKeyCredentials{
			DeviceID:        m.DeviceID,
			SharedAccessKey: common.SharedAccessKey{HostName: c.host(), SharedAccessKey: m.Authentication.SymmetricKey.PrimaryKey},
		},
		ModuleID: m.ModuleID,
	}
	module := ok[*iotdevice.ModuleClient](t)(iotdevice.NewModule(mqtt.NewModuleTransport(c.redirected()), credentials))
	if err := module.Connect(bounded(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = module.Close() })
	return module
}

// echo answers a method with its payload.
func echo(payload map[string]any) (int, map[string]any, error) {
	return http.StatusOK, map[string]any{"echo": payload}, nil
}

// call is a test of one method of a client.
type call = func(*testing.T, *clients)

// TestServiceCalls has a case for each method of the service client.
func TestServiceCalls(t *testing.T) {
	t.Parallel()
	runCalls(t, reflect.TypeFor[*iotservice.Client](), serviceCalls)
}

// TestDeviceCalls has a case for each method of the device client.
func TestDeviceCalls(t *testing.T) {
	t.Parallel()
	runCalls(t, reflect.TypeFor[*iotdevice.Client](), deviceCalls)
}

// runCalls runs the cases on one emulator, and misses those that the table lacks.
func runCalls(t *testing.T, client reflect.Type, calls map[string]call) {
	t.Helper()
	for method := range client.Methods() {
		if calls[method.Name] == nil {
			t.Errorf("there is no case for %s", method.Name)
		}
	}
	c := newClients(t)
	for name, holds := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			holds(t, c)
		})
	}
}

var serviceCalls = map[string]call{
	"HostName":               callHostName,
	"Close":                  callClose,
	"DeviceConnectionString": callDeviceConnectionString,
	"ModuleConnectionString": callModuleConnectionString,
	"DeviceSAS":              callDeviceSAS,

	"CreateDevice": callCreateDevice,
	"GetDevice":    callGetDevice,
	"UpdateDevice": callUpdateDevice,
	"DeleteDevice": callDeleteDevice,
	"ListDevices":  callListDevices,
	"DeviceStats":  callDeviceStats,
	"ServiceStats": callServiceStats,

	"CreateDevices":     callCreateDevices,
	"UpdateDevices":     callUpdateDevices,
	"UpdateDeviceTwins": callUpdateDeviceTwins,
	"DeleteDevices":     callDeleteDevices,

	"CreateModule": callCreateModule,
	"GetModule":    callGetModule,
	"UpdateModule": callUpdateModule,
	"DeleteModule": callDeleteModule,
	"ListModules":  callListModules,

	"GetDeviceTwin":    callGetDeviceTwin,
	"UpdateDeviceTwin": callUpdateDeviceTwin,
	"GetModuleTwin":    callGetModuleTwin,
	"UpdateModuleTwin": callUpdateModuleTwin,
	"QueryDevices":     callQueryDevices,

	"CallDeviceMethod":           callCallDeviceMethod,
	"CallModuleMethod":           callCallModuleMethod,
	"SendEvent":                  callSendEvent,
	"PurgeQueue":                 callPurgeQueue,
	"SubscribeFeedback":          callSubscribeFeedback,
	"SubscribeEvents":            callSubscribeEvents,
	"SubscribeFileNotifications": callSubscribeFileNotifications,

	"CreateJobV2": callCreateJobV2,
	"GetJobV2":    callGetJobV2,
	"CancelJobV2": callCancelJobV2,
	"QueryJobsV2": callQueryJobsV2,

	// Import and export of identities need the cloud's storage.
	"CreateJob": func(t *testing.T, c *clients) {
		_, err := c.CreateJob(bounded(t), &iotservice.Job{Type: iotservice.JobExport})
		notEmulated(t, err)
	},
	"ListJobs":  func(t *testing.T, c *clients) { _, err := c.ListJobs(bounded(t)); notEmulated(t, err) },
	"GetJob":    func(t *testing.T, c *clients) { _, err := c.GetJob(bounded(t), "j"); notEmulated(t, err) },
	"CancelJob": func(t *testing.T, c *clients) { _, err := c.CancelJob(bounded(t), "j"); notEmulated(t, err) },

	"GetDigitalTwin": func(t *testing.T, c *clients) { _, err := c.GetDigitalTwin(bounded(t), "d"); notEmulated(t, err) },
	"UpdateDigitalTwin": func(t *testing.T, c *clients) {
		_, err := c.UpdateDigitalTwin(bounded(t), "d", []map[string]any{})
		notEmulated(t, err)
	},
	"CallDigitalTwin": func(t *testing.T, c *clients) {
		_, _, err := c.CallDigitalTwin(bounded(t), "d", "reboot", []byte("{}"))
		notEmulated(t, err)
	},
	"CallDigitalTwinComponent": func(t *testing.T, c *clients) {
		_, _, err := c.CallDigitalTwinComponent(bounded(t), "d", "thermostat", "reboot", []byte("{}"))
		notEmulated(t, err)
	},

	"ListConfigurations": func(t *testing.T, c *clients) { _, err := c.ListConfigurations(bounded(t)); notEmulated(t, err) },
	"GetConfiguration":   func(t *testing.T, c *clients) { _, err := c.GetConfiguration(bounded(t), "c"); notEmulated(t, err) },
	"CreateConfiguration": func(t *testing.T, c *clients) {
		_, err := c.CreateConfiguration(bounded(t), &iotservice.Configuration{ID: "c"})
		notEmulated(t, err)
	},
	"UpdateConfiguration": func(t *testing.T, c *clients) {
		_, err := c.UpdateConfiguration(bounded(t), &iotservice.Configuration{ID: "c"})
		notEmulated(t, err)
	},
	"DeleteConfiguration": func(t *testing.T, c *clients) {
		notEmulated(t, c.DeleteConfiguration(bounded(t), &iotservice.Configuration{ID: "c"}))
	},
	"ApplyConfigurationContentOnDevice": func(t *testing.T, c *clients) {
		notEmulated(t, c.ApplyConfigurationContentOnDevice(bounded(t), "d", &iotservice.ConfigurationContent{}))
	},
}

var deviceCalls = map[string]call{
	"Connect":  callConnect,
	"Close":    callDeviceClose,
	"DeviceID": callDeviceID,

	"SendEvent":              callDeviceSendEvent,
	"SubscribeEvents":        callDeviceSubscribeEvents,
	"UnsubscribeEvents":      callDeviceUnsubscribeEvents,
	"RegisterMethod":         callRegisterMethod,
	"UnregisterMethod":       callUnregisterMethod,
	"RetrieveTwinState":      callRetrieveTwinState,
	"UpdateTwinState":        callUpdateTwinState,
	"SubscribeTwinUpdates":   callSubscribeTwinUpdates,
	"UnsubscribeTwinUpdates": callUnsubscribeTwinUpdates,

	"UploadFile": func(t *testing.T, c *clients) {
		err := c.overHTTP(t, c.device(t)).UploadFile(bounded(t), "blob", strings.NewReader("x"), 1)
		saysStatus(t, err, http.StatusNotImplemented)
	},

	// A device's own key doesn't open the registry.
	"ListModules": func(t *testing.T, c *clients) {
		_, err := c.overHTTP(t, c.device(t)).ListModules(bounded(t))
		saysStatus(t, err, http.StatusUnauthorized)
	},
	"GetModule": func(t *testing.T, c *clients) {
		_, err := c.overHTTP(t, c.device(t)).GetModule(bounded(t), "camera")
		saysStatus(t, err, http.StatusUnauthorized)
	},
	"CreateModule": func(t *testing.T, c *clients) {
		_, err := c.overHTTP(t, c.device(t)).CreateModule(bounded(t), &iotservice.Module{ModuleID: "camera"})
		saysStatus(t, err, http.StatusUnauthorized)
	},
	"UpdateModule": callDeviceUpdateModule,
	"DeleteModule": callDeviceDeleteModule,
}

// saysStatus fails the test unless the HTTP transport got a status; it has no type for that.
func saysStatus(t *testing.T, err error, status int) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) {
		t.Errorf("got %v, want status %d", err, status)
	}
}

func callHostName(t *testing.T, c *clients) { equal(t, "host", c.host(), "localhost") }

func callClose(t *testing.T, c *clients) {
	own := newService(t, c.emulator)
	d := c.device(t)
	if err := own.SendEvent(bounded(t), d.DeviceID, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
	if err := own.SendEvent(bounded(t), d.DeviceID, []byte("x")); err == nil {
		t.Error("a client that is closed sends")
	}
}

func callDeviceConnectionString(t *testing.T, c *clients) {
	text := ok[string](t)(c.DeviceConnectionString(c.device(t), true))
	credentials := ok[*iotdevice.SharedAccessKeyCredentials](t)(iotdevice.ParseConnectionString(text))
	credentials.HostName = c.host()
	device := ok[*iotdevice.Client](t)(iotdevice.New(mqtt.New(c.redirected()), credentials))
	if err := device.Connect(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if err := device.Close(); err != nil {
		t.Error(err)
	}
}

func callModuleConnectionString(t *testing.T, c *clients) {
	m := c.module(t)
	text := ok[string](t)(c.ModuleConnectionString(m, false))
	credentials := ok[*iotdevice.ModuleSharedAccessKeyCredentials](t)(iotdevice.ParseModuleConnectionString(text))
	credentials.HostName = c.host()
	module := ok[*iotdevice.ModuleClient](t)(iotdevice.NewModule(mqtt.NewModuleTransport(c.redirected()), credentials))
	if err := module.Connect(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if err := module.Close(); err != nil {
		t.Error(err)
	}
}

func callDeviceSAS(t *testing.T, c *clients) {
	d := c.device(t)
	client := c.https()
	defer client.CloseIdleConnections()
	for _, secondary := range []bool{false, true} {
		token := ok[string](t)(c.DeviceSAS(d, "/devices/"+d.DeviceID, time.Hour, secondary))
		url := "https://" + c.host() + "/devices/" + d.DeviceID + "/messages/events?api-version=2020-09-30"
		req := ok[*http.Request](t)(http.NewRequestWithContext(bounded(t), http.MethodPost, url, strings.NewReader("x")))
		req.Header.Set("Authorization", token)
		resp := ok[*http.Response](t)(client.Do(req))
		body, _ := io.ReadAll(resp.Body) // for the message alone
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			t.Errorf("status %d: %s", resp.StatusCode, body)
		}
	}
}

func callCreateDevice(t *testing.T, c *clients) {
	d := c.device(t)
	keys := d.Authentication.SymmetricKey
	if keys.PrimaryKey == "" || keys.SecondaryKey == "" || d.ETag == "" || d.GenerationID == "" {
		t.Errorf("created %+v", d)
	}
	equal(t, "state", []any{d.Status, d.ConnectionState, d.Authentication.Type}, []any{iotservice.Enabled, iotservice.Disconnected, iotservice.AuthSAS})
	_, err := c.CreateDevice(bounded(t), &iotservice.Device{DeviceID: d.DeviceID})
	refused(t, err, http.StatusConflict)
}

func callGetDevice(t *testing.T, c *clients) {
	made := c.device(t)
	got := ok[*iotservice.Device](t)(c.GetDevice(bounded(t), made.DeviceID))
	equal(t, "device", []any{got.GenerationID, got.ETag, *got.Authentication.SymmetricKey}, []any{made.GenerationID, made.ETag, *made.Authentication.SymmetricKey})
	_, err := c.GetDevice(bounded(t), c.id())
	refused(t, err, http.StatusNotFound)
}

func callUpdateDevice(t *testing.T, c *clients) {
	d := c.device(t)
	stale := d.ETag
	d.Status, d.StatusReason = iotservice.Disabled, "broken"
	changed := ok[*iotservice.Device](t)(c.UpdateDevice(bounded(t), d))
	equal(t, "status", []any{changed.Status, changed.StatusReason}, []any{iotservice.Disabled, "broken"})
	d.ETag = stale
	_, err := c.UpdateDevice(bounded(t), d)
	refused(t, err, http.StatusPreconditionFailed)
	d.ETag = "" // any
	ok[*iotservice.Device](t)(c.UpdateDevice(bounded(t), d))
}

func callDeleteDevice(t *testing.T, c *clients) {
	d := c.device(t)
	refused(t, c.DeleteDevice(bounded(t), &iotservice.Device{DeviceID: d.DeviceID, ETag: "c3RhbGU="}), http.StatusPreconditionFailed)
	if err := c.DeleteDevice(bounded(t), d); err != nil {
		t.Error(err)
	}
	refused(t, c.DeleteDevice(bounded(t), d), http.StatusNotFound)
}

func callListDevices(t *testing.T, c *clients) {
	d := c.device(t)
	all := ok[[]*iotservice.Device](t)(c.ListDevices(bounded(t)))
	if !slices.ContainsFunc(all, func(found *iotservice.Device) bool { return found.DeviceID == d.DeviceID }) {
		t.Errorf("%s is not among %d devices", d.DeviceID, len(all))
	}
}

// callDeviceStats has an emulator of its own, as others count too.
func callDeviceStats(t *testing.T, _ *clients) {
	c := newClients(t)
	c.device(t)
	d := c.device(t)
	d.Status = iotservice.Disabled
	ok[*iotservice.Device](t)(c.UpdateDevice(bounded(t), d))
	equal(t, "statistics", *ok[*iotservice.DeviceStats](t)(c.DeviceStats(bounded(t))), iotservice.DeviceStats{
		DisabledDeviceCount: 1, EnabledDeviceCount: 1, TotalDeviceCount: 2,
	})
}

func callServiceStats(t *testing.T, _ *clients) {
	c := newClients(t)
	c.device(t)
	connected := func() uint { return ok[*iotservice.ServiceStats](t)(c.ServiceStats(bounded(t))).ConnectedDeviceCount }
	equal(t, "number of connected devices", connected(), 0)
	c.connect(t, c.device(t))
	equal(t, "number of connected devices", connected(), 1)
}

// several are descriptions of new devices.
func (c *clients) several(n int, tags map[string]any) []*iotservice.Device {
	all := make([]*iotservice.Device, n)
	for i := range all {
		all[i] = &iotservice.Device{DeviceID: c.id(), Tags: tags}
	}
	return all
}

func (c *clients) createSeveral(t *testing.T, n int, tags map[string]any) []*iotservice.Device {
	t.Helper()
	all := c.several(n, tags)
	successful(t, ok[*iotservice.BulkResult](t)(c.CreateDevices(bounded(t), all)))
	return all
}

func successful(t *testing.T, r *iotservice.BulkResult) {
	t.Helper()
	if !r.IsSuccessful || len(r.Errors) > 0 {
		t.Fatalf("the whole failed: %+v", r)
	}
}

func callCreateDevices(t *testing.T, c *clients) {
	all := c.createSeveral(t, 3, map[string]any{"lot": 7})
	for _, d := range all {
		equal(t, "tags", ok[*iotservice.Twin](t)(c.GetDeviceTwin(bounded(t), d.DeviceID)).Tags, map[string]any{"lot": 7})
	}
	again := append(c.several(1, nil), all[0])
	result := ok[*iotservice.BulkResult](t)(c.CreateDevices(bounded(t), again))
	if result.IsSuccessful || len(result.Errors) != 1 || result.Errors[0].DeviceID != all[0].DeviceID {
		t.Errorf("one exists already: %+v", result)
	}
	ok[*iotservice.Device](t)(c.GetDevice(bounded(t), again[0].DeviceID)) // the other one was made
}

func callUpdateDevices(t *testing.T, c *clients) {
	all := c.createSeveral(t, 2, nil)
	for _, d := range all {
		d.Status = iotservice.Disabled
	}
	successful(t, ok[*iotservice.BulkResult](t)(c.UpdateDevices(bounded(t), all, true)))
	for _, d := range all {
		equal(t, "status", ok[*iotservice.Device](t)(c.GetDevice(bounded(t), d.DeviceID)).Status, iotservice.Disabled)
	}
	all[0].ETag = "c3RhbGU="
	if r := ok[*iotservice.BulkResult](t)(c.UpdateDevices(bounded(t), all[:1], false)); r.IsSuccessful || len(r.Errors) != 1 {
		t.Errorf("with a stale ETag: %+v", r)
	}
}

func callUpdateDeviceTwins(t *testing.T, c *clients) {
	all := c.createSeveral(t, 2, map[string]any{"lot": 7})
	for _, d := range all {
		d.Tags = map[string]any{"site": "north"}
		d.Properties = &iotservice.Properties{Desired: map[string]any{"every": "5m"}}
	}
	successful(t, ok[*iotservice.BulkResult](t)(c.UpdateDeviceTwins(bounded(t), all, true)))
	for _, d := range all {
		twin := ok[*iotservice.Twin](t)(c.GetDeviceTwin(bounded(t), d.DeviceID))
		equal(t, "site and interval", []any{twin.Tags["site"], twin.Properties.Desired["every"]}, []any{"north", "5m"})
	}
}

func callDeleteDevices(t *testing.T, c *clients) {
	all := c.createSeveral(t, 2, nil)
	successful(t, ok[*iotservice.BulkResult](t)(c.DeleteDevices(bounded(t), all, true)))
	for _, d := range all {
		_, err := c.GetDevice(bounded(t), d.DeviceID)
		refused(t, err, http.StatusNotFound)
	}
}

func callCreateModule(t *testing.T, c *clients) {
	m := c.module(t)
	if m.Authentication.SymmetricKey.PrimaryKey == "" || m.ETag == "" || m.GenerationID == "" {
		t.Errorf("created %+v", m)
	}
	equal(t, "manager", m.ManagedBy, "admin")
	_, err := c.CreateModule(bounded(t), &iotservice.Module{DeviceID: m.DeviceID, ModuleID: m.ModuleID})
	refused(t, err, http.StatusConflict)
}

func callGetModule(t *testing.T, c *clients) {
	made := c.module(t)
	got := ok[*iotservice.Module](t)(c.GetModule(bounded(t), made.DeviceID, made.ModuleID))
	equal(t, "module", []any{got.GenerationID, got.ETag}, []any{made.GenerationID, made.ETag})
	_, err := c.GetModule(bounded(t), made.DeviceID, "another")
	refused(t, err, http.StatusNotFound)
}

func callUpdateModule(t *testing.T, c *clients) {
	m := c.module(t)
	stale := m.ETag
	m.ManagedBy = "another"
	equal(t, "manager", ok[*iotservice.Module](t)(c.UpdateModule(bounded(t), m)).ManagedBy, "another")
	m.ETag = stale
	_, err := c.UpdateModule(bounded(t), m)
	refused(t, err, http.StatusPreconditionFailed)
}

func callDeleteModule(t *testing.T, c *clients) {
	m := c.module(t)
	if err := c.DeleteModule(bounded(t), m); err != nil {
		t.Error(err)
	}
	_, err := c.GetModule(bounded(t), m.DeviceID, m.ModuleID)
	refused(t, err, http.StatusNotFound)
}

func callListModules(t *testing.T, c *clients) {
	m := c.module(t)
	all := ok[[]*iotservice.Module](t)(c.ListModules(bounded(t), m.DeviceID))
	if len(all) != 1 || all[0].ModuleID != m.ModuleID {
		t.Errorf("the device has %d modules", len(all))
	}
}

func callGetDeviceTwin(t *testing.T, c *clients) {
	d := c.device(t)
	twin := ok[*iotservice.Twin](t)(c.GetDeviceTwin(bounded(t), d.DeviceID))
	equal(t, "versions", []any{twin.Properties.Desired["$version"], twin.Properties.Reported["$version"]}, []any{1, 1})
	equal(t, "identity", []any{twin.DeviceID, twin.DeviceETag, twin.Status, twin.AuthenticationType}, []any{d.DeviceID, d.ETag, iotservice.Enabled, "sas"})
}

func callUpdateDeviceTwin(t *testing.T, c *clients) {
	d := c.device(t)
	twin := ok[*iotservice.Twin](t)(c.GetDeviceTwin(bounded(t), d.DeviceID))
	stale := twin.ETag
	twin.Tags = map[string]any{"site": "north"}
	twin.Properties.Desired["every"] = "5m"
	changed := ok[*iotservice.Twin](t)(c.UpdateDeviceTwin(bounded(t), twin))
	equal(t, "twin", []any{changed.Tags["site"], changed.Properties.Desired["every"], changed.Properties.Desired["$version"]}, []any{"north", "5m", 2})
	twin.ETag = stale
	_, err := c.UpdateDeviceTwin(bounded(t), twin)
	refused(t, err, http.StatusPreconditionFailed)
}

func callGetModuleTwin(t *testing.T, c *clients) {
	m := c.module(t)
	twin := ok[*iotservice.ModuleTwin](t)(c.GetModuleTwin(bounded(t), m.DeviceID, m.ModuleID))
	equal(t, "identity", []any{twin.DeviceID, twin.ModuleID, twin.Properties.Desired["$version"]}, []any{m.DeviceID, m.ModuleID, 1})
}

func callUpdateModuleTwin(t *testing.T, c *clients) {
	m := c.module(t)
	changed := ok[*iotservice.ModuleTwin](t)(c.UpdateModuleTwin(bounded(t), &iotservice.ModuleTwin{
		DeviceID: m.DeviceID, ModuleID: m.ModuleID, Properties: &iotservice.Properties{Desired: map[string]any{"hw": "1.12"}},
	}))
	equal(t, "desired properties", []any{changed.Properties.Desired["hw"], changed.Properties.Desired["$version"]}, []any{"1.12", 2})
}

// callQueryDevices finds more devices than fit on a page.
func callQueryDevices(t *testing.T, c *clients) {
	lot := c.id()
	c.createSeveral(t, 100, map[string]any{"lot": lot})
	c.createSeveral(t, 5, map[string]any{"lot": lot})
	found := map[any]bool{}
	err := c.QueryDevices(bounded(t), "SELECT * FROM devices WHERE tags.lot = '"+lot+"'", func(twin map[string]any) error {
		found[twin["deviceId"]] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "number of devices", len(found), 105)
	var bad *iotservice.BadRequestError
	if err := c.QueryDevices(bounded(t), "SELECT nonsense", nil); !errors.As(err, &bad) {
		t.Errorf("a bad query: %v", err)
	}
}

func callCallDeviceMethod(t *testing.T, c *clients) {
	d := c.device(t)
	_, err := c.CallDeviceMethod(bounded(t), d.DeviceID, &iotservice.MethodCall{MethodName: "echo"})
	refused(t, err, http.StatusNotFound) // nobody is there
	if err := c.connect(t, d).RegisterMethod(lasting(t), "echo", echo); err != nil {
		t.Fatal(err)
	}
	result := ok[*iotservice.MethodResult](t)(c.CallDeviceMethod(bounded(t), d.DeviceID, &iotservice.MethodCall{
		MethodName: "echo", Payload: map[string]any{"a": 1}, ResponseTimeout: 60,
	}))
	equal(t, "result", *result, iotservice.MethodResult{Status: 200, Payload: map[string]any{"echo": map[string]any{"a": 1}}})
}

func callCallModuleMethod(t *testing.T, c *clients) {
	m := c.module(t)
	if err := c.connectModule(t, m).RegisterMethod(lasting(t), "echo", echo); err != nil {
		t.Fatal(err)
	}
	result := ok[*iotservice.MethodResult](t)(c.CallModuleMethod(bounded(t), m.DeviceID, m.ModuleID, &iotservice.MethodCall{
		MethodName: "echo", Payload: map[string]any{"a": 1}, ResponseTimeout: 60,
	}))
	equal(t, "result", *result, iotservice.MethodResult{Status: 200, Payload: map[string]any{"echo": map[string]any{"a": 1}}})
}

// callSendEvent has clients of its own: a message that is refused ends the link that all of a client's go over.
func callSendEvent(t *testing.T, c *clients) {
	d := c.device(t)
	own := newService(t, c.emulator)
	for range 50 {
		if err := own.SendEvent(bounded(t), d.DeviceID, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	refusedAs(t, own.SendEvent(bounded(t), d.DeviceID, []byte("x")), amqp.ErrCondResourceLimitExceeded)
	equal(t, "number of messages", ok[*iotservice.Device](t)(c.GetDevice(bounded(t), d.DeviceID)).CloudToDeviceMessageCount, 50)
	refusedAs(t, newService(t, c.emulator).SendEvent(bounded(t), c.id(), []byte("x")), amqp.ErrCondNotFound)
}

// refusedAs fails the test unless the hub refused a message with a condition.
func refusedAs(t *testing.T, err error, want amqp.ErrCond) {
	t.Helper()
	var refusal *amqp.DetachError
	if !errors.As(err, &refusal) || refusal.RemoteErr == nil || refusal.RemoteErr.Condition != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func callPurgeQueue(t *testing.T, c *clients) {
	d := c.device(t)
	for range 3 {
		if err := c.SendEvent(bounded(t), d.DeviceID, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	purged := ok[*iotservice.PurgeMessageQueueResult](t)(c.PurgeQueue(bounded(t), d.DeviceID))
	equal(t, "result", []any{purged.DeviceID, purged.TotalMessagesPurged}, []any{d.DeviceID, 3})
}

func callSubscribeFeedback(t *testing.T, c *clients) {
	d := c.device(t)
	expiry := time.Now().Add(time.Second)
	for id, options := range map[string][]iotservice.SendOption{
		"received": {iotservice.WithSendAck(iotservice.AckFull)},
		"expired":  {iotservice.WithSendAck(iotservice.AckNegative), iotservice.WithSendExpiryTime(expiry)},
	} {
		if err := c.SendEvent(bounded(t), d.DeviceID, []byte("x"), append(options, iotservice.WithSendMessageID(id))...); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "one message has expired", func() bool { return time.Now().After(expiry) })
	ok[*iotdevice.EventSub](t)(c.connect(t, d).SubscribeEvents(lasting(t)))
	seen := map[string]string{}
	ctx, enough := context.WithCancel(bounded(t))
	err := c.SubscribeFeedback(ctx, func(f *iotservice.Feedback) error {
		if f.DeviceID == d.DeviceID && f.DeviceGenerationID == d.GenerationID {
			seen[f.OriginalMessageID] = f.StatusCode
		}
		if len(seen) == 2 {
			enough()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	equal(t, "feedback", seen, map[string]string{"received": "Success", "expired": "Expired"})
}

// callSubscribeEvents sends until the subscription is there: it begins with what comes later.
func callSubscribeEvents(t *testing.T, c *clients) {
	d := c.device(t)
	device := c.connect(t, d)
	ctx, enough := context.WithCancel(bounded(t))
	events, ended := make(chan *iotservice.Event, 100), make(chan error, 1)
	go func() {
		ended <- c.SubscribeEvents(ctx, func(e *iotservice.Event) error {
			if e.ConnectionDeviceID == d.DeviceID {
				select {
				case events <- e:
				default:
				}
			}
			return nil
		})
	}()
	var first *iotservice.Event
	eventually(t, "an event comes", func() bool {
		err := device.SendEvent(bounded(t), []byte("hello"), iotdevice.WithSendMessageID("m"), iotdevice.WithSendCorrelationID("c"), iotdevice.WithSendProperty("color", "red"))
		if err != nil {
			t.Fatal(err)
		}
		select {
		case first = <-events:
		case err := <-ended:
			t.Fatal(err)
		default:
		}
		return first != nil
	})
	equal(t, "event", []any{string(first.Payload), first.MessageID, first.CorrelationID, first.Properties["color"], first.ConnectionDeviceGenerationID},
		[]any{"hello", "m", "c", "red", d.GenerationID})
	enough()
	<-ended
}

// callSubscribeFileNotifications shows that a subscriber is not refused, though there is no file upload to tell of.
func callSubscribeFileNotifications(t *testing.T, c *clients) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := c.SubscribeFileNotifications(ctx, func(n *iotservice.FileNotification) error { return fmt.Errorf("got %+v", n) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// twinJob sets a tag of devices, now or later.
func (c *clients) twinJob(t *testing.T, start time.Time, devices ...*iotservice.Device) *iotservice.JobV2 {
	t.Helper()
	var ids []string
	for _, d := range devices {
		ids = append(ids, "'"+d.DeviceID+"'")
	}
	return ok[*iotservice.JobV2](t)(c.CreateJobV2(bounded(t), &iotservice.JobV2{
		JobID:                     strings.ReplaceAll(c.id(), ":", "-"),
		Type:                      iotservice.JobTypeUpdateTwin,
		UpdateTwin:                map[string]any{"etag": "*", "tags": map[string]any{"done": true}},
		QueryCondition:            "deviceId IN [" + strings.Join(ids, ", ") + "]",
		StartTime:                 start,
		MaxExecutionTimeInSeconds: 60,
	}))
}

func callCreateJobV2(t *testing.T, c *clients) {
	devices := []*iotservice.Device{c.device(t), c.device(t)}
	c.twinJob(t, time.Now(), devices...)
	for _, d := range devices {
		eventually(t, "the job is done on "+d.DeviceID, func() bool {
			return ok[*iotservice.Twin](t)(c.GetDeviceTwin(bounded(t), d.DeviceID)).Tags["done"] == true
		})
	}
}

func callGetJobV2(t *testing.T, c *clients) {
	id := c.twinJob(t, time.Now(), c.device(t)).JobID
	eventually(t, "the job is completed", func() bool {
		j := ok[*iotservice.JobV2](t)(c.GetJobV2(bounded(t), id))
		return j.Status == iotservice.JobStatusCompleted && j.Type == iotservice.JobTypeUpdateTwin
	})
	_, err := c.GetJobV2(bounded(t), "another")
	refused(t, err, http.StatusNotFound)
}

func callCancelJobV2(t *testing.T, c *clients) {
	d := c.device(t)
	id := c.twinJob(t, time.Now().Add(time.Hour), d).JobID
	equal(t, "status", ok[*iotservice.JobV2](t)(c.CancelJobV2(bounded(t), id)).Status, iotservice.JobStatusCancelled)
}

func callQueryJobsV2(t *testing.T, c *clients) {
	job := c.twinJob(t, time.Now().Add(time.Hour), c.device(t))
	find := func(q iotservice.JobV2Query) (found bool) {
		err := c.QueryJobsV2(bounded(t), &q, func(j *iotservice.JobV2) error {
			found = found || j.JobID == job.JobID
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	equal(t, "among the scheduled ones", find(iotservice.JobV2Query{Type: iotservice.JobTypeUpdateTwin, Status: iotservice.JobStatusScheduled}), true)
	equal(t, "among the methods", find(iotservice.JobV2Query{Type: iotservice.JobTypeDeviceMethod}), false)
	ok[*iotservice.JobV2](t)(c.CancelJobV2(bounded(t), job.JobID))
	equal(t, "among the cancelled ones", find(iotservice.JobV2Query{Status: iotservice.JobStatusCancelled}), true)
}

func callConnect(t *testing.T, c *clients) {
	d := c.device(t)
	c.connect(t, d)
	equal(t, "state", ok[*iotservice.Device](t)(c.GetDevice(bounded(t), d.DeviceID)).ConnectionState, iotservice.Connected)
	credentials := c.credentials(d)
	credentials.SharedAccessKey.SharedAccessKey = "d3Jvbmcga2V5"
	device := ok[*iotdevice.Client](t)(iotdevice.New(mqtt.New(c.redirected()), credentials))
	if err := device.Connect(bounded(t)); err == nil {
		t.Error("a device connects with a wrong key")
	}
}

func callDeviceClose(t *testing.T, c *clients) {
	d := c.device(t)
	device := c.connect(t, d)
	if err := device.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device is disconnected", func() bool {
		return ok[*iotservice.Device](t)(c.GetDevice(bounded(t), d.DeviceID)).ConnectionState == iotservice.Disconnected
	})
}

func callDeviceID(t *testing.T, c *clients) {
	d := c.device(t)
	equal(t, "ID", c.connect(t, d).DeviceID(), d.DeviceID)
}

func callDeviceSendEvent(t *testing.T, c *clients) {
	device := c.connect(t, c.device(t))
	for qos := range 2 {
		if err := device.SendEvent(bounded(t), []byte("x"), iotdevice.WithSendQoS(qos)); err != nil {
			t.Errorf("QoS %d: %v", qos, err)
		}
	}
}

func callDeviceSubscribeEvents(t *testing.T, c *clients) {
	d := c.device(t)
	sub := ok[*iotdevice.EventSub](t)(c.connect(t, d).SubscribeEvents(lasting(t)))
	for i := range 3 {
		err := c.SendEvent(bounded(t), d.DeviceID, fmt.Append(nil, i), iotservice.WithSendMessageID(fmt.Sprint("m", i)),
			iotservice.WithSendCorrelationID("c"), iotservice.WithSendUserID("ada"), iotservice.WithSendProperty("color", "red"))
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		m := receive(t, sub.C())
		equal(t, "message", []any{string(m.Payload), m.MessageID, m.CorrelationID, m.UserID, m.Properties["color"]},
			[]any{i, fmt.Sprint("m", i), "c", "ada", "red"})
	}
}

// receive takes a value from a channel.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-bounded(t).Done():
		t.Fatal("nothing comes")
		panic("unreachable")
	}
}

func callDeviceUnsubscribeEvents(t *testing.T, c *clients) {
	d := c.device(t)
	device := c.connect(t, d)
	ended := ok[*iotdevice.EventSub](t)(device.SubscribeEvents(lasting(t)))
	sub := ok[*iotdevice.EventSub](t)(device.SubscribeEvents(lasting(t)))
	device.UnsubscribeEvents(ended)
	if err := c.SendEvent(bounded(t), d.DeviceID, []byte("x")); err != nil {
		t.Fatal(err)
	}
	equal(t, "message", string(receive(t, sub.C()).Payload), "x")
	if m, more := <-ended.C(); more {
		t.Errorf("the subscription that has ended got %+v", m)
	}
}

func callRegisterMethod(t *testing.T, c *clients) {
	d := c.device(t)
	err := c.connect(t, d).RegisterMethod(lasting(t), "fail", func(map[string]any) (int, map[string]any, error) {
		return http.StatusTeapot, map[string]any{"why": "no coffee"}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	result := ok[*iotservice.MethodResult](t)(c.CallDeviceMethod(bounded(t), d.DeviceID, &iotservice.MethodCall{MethodName: "fail", ResponseTimeout: 60}))
	equal(t, "result", *result, iotservice.MethodResult{Status: http.StatusTeapot, Payload: map[string]any{"why": "no coffee"}})
}

func callUnregisterMethod(t *testing.T, c *clients) {
	d := c.device(t)
	device := c.connect(t, d)
	if err := device.RegisterMethod(lasting(t), "echo", echo); err != nil {
		t.Fatal(err)
	}
	device.UnregisterMethod("echo")
	if err := device.RegisterMethod(lasting(t), "echo", echo); err != nil {
		t.Fatal(err)
	}
	ok[*iotservice.MethodResult](t)(c.CallDeviceMethod(bounded(t), d.DeviceID, &iotservice.MethodCall{MethodName: "echo", ResponseTimeout: 60}))
}

func callRetrieveTwinState(t *testing.T, c *clients) {
	d := c.device(t)
	ok[*iotservice.Twin](t)(c.UpdateDeviceTwin(bounded(t), &iotservice.Twin{
		DeviceID: d.DeviceID, Properties: &iotservice.Properties{Desired: map[string]any{"every": "5m"}},
	}))
	desired, reported, err := c.connect(t, d).RetrieveTwinState(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "desired", desired, iotdevice.TwinState{"every": "5m", "$version": 2})
	equal(t, "reported", reported, iotdevice.TwinState{"$version": 1})
}

func callUpdateTwinState(t *testing.T, c *clients) {
	d := c.device(t)
	device := c.connect(t, d)
	for i, state := range []iotdevice.TwinState{{"battery": 60, "door": "open"}, {"battery": nil}} {
		equal(t, "version", ok[int](t)(device.UpdateTwinState(bounded(t), state)), i+2)
	}
	reported := ok[*iotservice.Twin](t)(c.GetDeviceTwin(bounded(t), d.DeviceID)).Properties.Reported
	equal(t, "reported", []any{reported["door"], reported["battery"]}, []any{"open", nil})
}

func callSubscribeTwinUpdates(t *testing.T, c *clients) {
	d := c.device(t)
	sub := ok[*iotdevice.TwinStateSub](t)(c.connect(t, d).SubscribeTwinUpdates(lasting(t)))
	ok[*iotservice.Twin](t)(c.UpdateDeviceTwin(bounded(t), &iotservice.Twin{
		DeviceID: d.DeviceID, Properties: &iotservice.Properties{Desired: map[string]any{"every": "5m"}},
	}))
	equal(t, "update", receive(t, sub.C()), iotdevice.TwinState{"every": "5m", "$version": 2})
}

func callUnsubscribeTwinUpdates(t *testing.T, c *clients) {
	d := c.device(t)
	device := c.connect(t, d)
	ended := ok[*iotdevice.TwinStateSub](t)(device.SubscribeTwinUpdates(lasting(t)))
	sub := ok[*iotdevice.TwinStateSub](t)(device.SubscribeTwinUpdates(lasting(t)))
	device.UnsubscribeTwinUpdates(ended)
	ok[*iotservice.Twin](t)(c.UpdateDeviceTwin(bounded(t), &iotservice.Twin{
		DeviceID: d.DeviceID, Properties: &iotservice.Properties{Desired: map[string]any{"every": "5m"}},
	}))
	equal(t, "version", receive(t, sub.C()).Version(), 2)
}

// The library doesn't look at the answer to these two, so the module has to tell.
func callDeviceUpdateModule(t *testing.T, c *clients) {
	m := c.module(t)
	d := ok[*iotservice.Device](t)(c.GetDevice(bounded(t), m.DeviceID))
	_, _ = c.overHTTP(t, d).UpdateModule(bounded(t), &iotservice.Module{DeviceID: m.DeviceID, ModuleID: m.ModuleID, ManagedBy: "the device"})
	equal(t, "manager", ok[*iotservice.Module](t)(c.GetModule(bounded(t), m.DeviceID, m.ModuleID)).ManagedBy, "admin")
}

func callDeviceDeleteModule(t *testing.T, c *clients) {
	m := c.module(t)
	d := ok[*iotservice.Device](t)(c.GetDevice(bounded(t), m.DeviceID))
	_ = c.overHTTP(t, d).DeleteModule(bounded(t), m)
	ok[*iotservice.Module](t)(c.GetModule(bounded(t), m.DeviceID, m.ModuleID))
}

func TestModuleHasItsOwnTwin(t *testing.T) {
	t.Parallel()
	c := newClients(t)
	m := c.module(t)
	module := c.connectModule(t, m)
	equal(t, "version", ok[int](t)(module.UpdateTwinState(bounded(t), iotdevice.TwinState{"of": "module"})), 2)
	sub := ok[*iotdevice.TwinStateSub](t)(module.SubscribeTwinUpdates(lasting(t)))
	ok[*iotservice.ModuleTwin](t)(c.UpdateModuleTwin(bounded(t), &iotservice.ModuleTwin{
		DeviceID: m.DeviceID, ModuleID: m.ModuleID, Properties: &iotservice.Properties{Desired: map[string]any{"hw": "1.12"}},
	}))
	equal(t, "update", receive(t, sub.C()), iotdevice.TwinState{"hw": "1.12", "$version": 2})
	equal(t, "reported by the device", ok[*iotservice.Twin](t)(c.GetDeviceTwin(bounded(t), m.DeviceID)).Properties.Reported["of"], nil)
}
