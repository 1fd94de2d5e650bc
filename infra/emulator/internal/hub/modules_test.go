package hub_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// moduleID has characters that have to be escaped in one place or another.
const moduleID = "$edge:Agent%(?#)"

func createModule(t *testing.T, h fixture, device, module string) hub.Module {
	t.Helper()
	m, err := h.CreateModule(t.Context(), hub.Module{DeviceID: device, ModuleID: module})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func connectModule(t *testing.T, h fixture, device, module string) *hub.Session {
	t.Helper()
	s, err := h.Connect(t.Context(), device, hub.ConnectOptions{ModuleID: module})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestCreateModule(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	d := create(t, h, deviceID)
	m, err := h.CreateModule(t.Context(), hub.Module{DeviceID: deviceID, ModuleID: moduleID, ManagedBy: new("iotEdge"), ETag: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "IDs", m.DeviceID+" "+m.ModuleID, deviceID+" "+moduleID)
	check(t, "state", m.ConnectionState, "Disconnected")
	check(t, "managed by", *m.ManagedBy, "iotEdge")
	check(t, "authentication", m.Authentication.Type, "sas")
	keys := map[string]bool{
		d.Authentication.SymmetricKey.PrimaryKey: true, d.Authentication.SymmetricKey.SecondaryKey: true,
		m.Authentication.SymmetricKey.PrimaryKey: true, m.Authentication.SymmetricKey.SecondaryKey: true,
	}
	check(t, "different keys", len(keys), 4)
	if m.ETag == "" || m.ETag == "mine" || m.GenerationID <= d.GenerationID {
		t.Errorf("ETag %q, generation %q", m.ETag, m.GenerationID)
	}
	got, err := h.GetModule(hub.Target{DeviceID: deviceID, ModuleID: moduleID})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "read back", fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", m))

	_, err = h.CreateModule(t.Context(), hub.Module{DeviceID: deviceID, ModuleID: moduleID})
	wantCode(t, "second creation", err, hub.CodeModuleAlreadyExists)
	_, err = h.CreateModule(t.Context(), hub.Module{DeviceID: "other", ModuleID: "m"})
	wantCode(t, "unknown device", err, hub.CodeDeviceNotFound)
	for _, id := range []string{"a b", "a/b", strings.Repeat("m", 129)} {
		_, err = h.CreateModule(t.Context(), hub.Module{DeviceID: deviceID, ModuleID: id})
		wantCode(t, "module ID "+id, err, hub.CodeArgumentInvalid)
	}
	_, err = h.CreateModule(t.Context(), hub.Module{DeviceID: deviceID})
	wantCode(t, "no module ID", err, hub.CodeArgumentInvalid)
}

func TestModuleLimit(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	create(t, h, "other")
	for i := range hub.MaxModules {
		createModule(t, h, "d", fmt.Sprintf("m%02d", hub.MaxModules-i))
	}
	_, err := h.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "last"})
	wantCode(t, "one more", err, hub.CodeTooManyModules)
	createModule(t, h, "other", "m")
	modules, err := h.ListModules("d")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "listed", len(modules), hub.MaxModules)
	check(t, "in order", modules[0].ModuleID+" "+modules[1].ModuleID, "m01 m02")
	if err := h.DeleteModule(t.Context(), hub.Target{DeviceID: "d", ModuleID: "m01"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	createModule(t, h, "d", "last")
	_, err = h.ListModules("ghost")
	wantCode(t, "list of an unknown device", err, hub.CodeDeviceNotFound)
}

func TestUpdateAndDeleteModule(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	before := createModule(t, h, "d", "m")
	target := hub.Target{DeviceID: "d", ModuleID: "m"}
	_, err := h.UpdateModule(t.Context(), before, "wrong")
	wantCode(t, "update with another ETag", err, hub.CodePreconditionFailed)
	after, err := h.UpdateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "m", ManagedBy: new("me")}, hub.IfMatch(before.ETag))
	if err != nil {
		t.Fatal(err)
	}
	check(t, "same ETag", after.ETag == before.ETag, false)
	check(t, "generation", after.GenerationID, before.GenerationID)
	check(t, "keys that were left out", after.Authentication, before.Authentication)
	check(t, "managed by", *after.ManagedBy, "me")
	_, err = h.UpdateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "x"}, hub.AnyVersion)
	wantCode(t, "update of an unknown module", err, hub.CodeModuleNotFound)
	_, err = h.UpdateModule(t.Context(), hub.Module{DeviceID: "x", ModuleID: "m"}, hub.AnyVersion)
	wantCode(t, "update on an unknown device", err, hub.CodeDeviceNotFound)

	s := connectModule(t, h, "d", "m")
	wantCode(t, "delete with the old ETag", h.DeleteModule(t.Context(), target, hub.IfMatch(before.ETag)), hub.CodePreconditionFailed)
	check(t, "session ended", s.Err(), nil)
	if err := h.DeleteModule(t.Context(), target, hub.IfMatch(after.ETag)); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	wantCode(t, "reason of the session", s.Err(), hub.CodeModuleNotFound)
	_, err = h.GetModule(target)
	wantCode(t, "get", err, hub.CodeModuleNotFound)
	wantCode(t, "second deletion", h.DeleteModule(t.Context(), target, hub.AnyVersion), hub.CodeModuleNotFound)
	_, err = h.Connect(t.Context(), "d", hub.ConnectOptions{ModuleID: "m"})
	wantCode(t, "connection", err, hub.CodeModuleNotFound)
	_, err = h.InvokeMethod(t.Context(), target, hub.MethodCall{Name: "m"})
	wantCode(t, "method", err, hub.CodeModuleNotFound)
	if again := createModule(t, h, "d", "m"); again.GenerationID <= before.GenerationID {
		t.Errorf("generation %s after %s", again.GenerationID, before.GenerationID)
	}
}

func TestModuleSessionIsItsOwn(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	createModule(t, h, "d", "m")
	createModule(t, h, "d", "n")
	device, m, n := connect(t, h, "d"), connectModule(t, h, "d", "m"), connectModule(t, h, "d", "n")
	check(t, "target", m.Target(), hub.Target{DeviceID: "d", ModuleID: "m"})
	check(t, "connected devices", h.ServiceStatistics().Connected, 1)
	second := connectModule(t, h, "d", "m")
	<-m.Done()
	wantCode(t, "reason of the first", m.Err(), hub.CodeConnectionReplaced)
	for name, s := range map[string]*hub.Session{"device": device, "second": second, "other module": n} {
		check(t, name+" ended", s.Err(), nil)
	}
	device.Close()
	got, err := h.GetModule(hub.Target{DeviceID: "d", ModuleID: "m"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "state", got.ConnectionState, "Connected")
	check(t, "active", got.LastActivityTime.IsZero(), false)
	d, err := h.GetDevice("d")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "state of the device", d.ConnectionState, "Disconnected")
	_, err = h.Connect(t.Context(), "d", hub.ConnectOptions{ModuleID: "M"})
	wantCode(t, "IDs that differ in case are different", err, hub.CodeModuleNotFound)
	_, err = second.Receive(broker.ConsumerOptions{})
	wantCode(t, "cloud-to-device messages of a module", err, hub.CodeInvalidOperation)
}

func TestModulesEndWithTheirDevice(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	createModule(t, h, "d", "m")
	target := hub.Target{DeviceID: "d", ModuleID: "m"}
	s := connectModule(t, h, "d", "m")
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "disabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	wantCode(t, "reason after disabling", s.Err(), hub.CodeUnauthorized)
	for _, transient := range []bool{false, true} {
		_, err := h.Connect(t.Context(), "d", hub.ConnectOptions{ModuleID: "m", Transient: transient})
		wantCode(t, "connection while disabled", err, hub.CodeUnauthorized)
	}
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "enabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	s = connectModule(t, h, "d", "m")
	if err := h.DeleteDevice(t.Context(), "d", hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	wantCode(t, "reason after deletion", s.Err(), hub.CodeDeviceNotFound)
	_, err := h.GetModule(target)
	wantCode(t, "get", err, hub.CodeDeviceNotFound)
	create(t, h, "d")
	_, err = h.GetModule(target)
	wantCode(t, "get from a new device", err, hub.CodeModuleNotFound)
	createModule(t, h, "d", "m")
	s = connectModule(t, h, "d", "m")
	h.Close()
	<-s.Done()
	wantCode(t, "reason after the end", s.Err(), hub.CodeServiceUnavailable)
}

func TestModuleTelemetry(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, deviceID)
	m := createModule(t, h, deviceID, moduleID)
	s := connectModule(t, h, deviceID, moduleID)
	if err := s.Publish(t.Context(), msg("a")); err != nil {
		t.Fatal(err)
	}
	stamps := map[string]any{
		"iothub-connection-device-id": deviceID, "iothub-connection-module-id": moduleID,
		"iothub-connection-auth-generation-id": m.GenerationID,
		"iothub-connection-auth-method":        `{"scope":"module","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}`,
	}
	q := h.queue.Peek(0, 1)[0].Message
	check(t, "queue", q.ApplicationProperties, stamps)
	if want := "/devices/device-solver::job-1%25$%27%28%3F%23%29/modules/$edge:Agent%25%28%3F%23%29/messages/events"; *q.Properties.To != want {
		t.Errorf("to %q, want %q", *q.Properties.To, want)
	}
	r, err := h.events.OpenReader(broker.ReaderOptions{PartitionID: "0"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	es, err := r.Next(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "partition key", es[0].PartitionKey, deviceID)
	for name, want := range stamps {
		check(t, "events: "+name, es[0].Message.Annotations[name], want)
	}
}

func TestModuleMethods(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	createModule(t, h, "d", "m")
	connect(t, h, "d").HandleMethods(func(hub.MethodRequest) { t.Error("the device got a call for its module") })
	target := hub.Target{DeviceID: "d", ModuleID: "m"}
	_, err := h.InvokeMethod(t.Context(), target, hub.MethodCall{Name: "m"})
	wantCode(t, "not connected", err, hub.CodeDeviceNotOnline)
	s := connectModule(t, h, "d", "m")
	s.HandleMethods(func(r hub.MethodRequest) {
		go s.RespondMethod(r.RequestID, hub.MethodResult{Status: 7, Payload: r.Payload})
	})
	result, err := h.InvokeMethod(t.Context(), target, hub.MethodCall{Name: "m", Payload: json.RawMessage(`1`)})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "result", fmt.Sprint(result.Status, string(result.Payload)), "71")
}

// TestDeletionEndsWaitingCalls would hang for five minutes without its subject.
func TestDeletionEndsWaitingCalls(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	createModule(t, h, "d", "m")
	results := make(chan error, 2)
	for _, target := range []hub.Target{{DeviceID: "d"}, {DeviceID: "d", ModuleID: "m"}} {
		go func() {
			_, err := h.InvokeMethod(t.Context(), target, hub.MethodCall{Name: "m", ConnectTimeout: hub.MaxMethodTimeout})
			results <- err
		}()
	}
	if err := h.DeleteDevice(t.Context(), "d", hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	for range cap(results) {
		if err := <-results; !errors.Is(err, hub.CodeDeviceNotFound) && !errors.Is(err, hub.CodeModuleNotFound) {
			t.Errorf("got %v", err)
		}
	}
}

func TestModuleKeysForTokens(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	m := createModule(t, h, "d", "m")
	want := sas.Device{Enabled: true, Keys: sas.Keys{
		Primary: m.Authentication.SymmetricKey.PrimaryKey, Secondary: m.Authentication.SymmetricKey.SecondaryKey,
	}}
	got, err := h.Module("d", "m")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "module", got, want)
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "disabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	want.Enabled = false
	if got, err = h.Module("d", "m"); err != nil {
		t.Fatal(err)
	}
	check(t, "module of a disabled device", got, want)
	for _, id := range [][2]string{{"d", "x"}, {"x", "m"}} {
		if _, err := h.Module(id[0], id[1]); !errors.Is(err, sas.ErrUnknownDevice) {
			t.Errorf("%v: %v", id, err)
		}
	}
}

func TestModulesSurviveKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHub(t, openStore(t, dir))
	create(t, h, deviceID)
	create(t, h, deviceID+"2") // its keys come between those of the first and the end
	kept, err := h.CreateModule(t.Context(), hub.Module{DeviceID: deviceID, ModuleID: moduleID, ManagedBy: new("me")})
	if err != nil {
		t.Fatal(err)
	}
	createModule(t, h, deviceID, "deleted")
	if err := h.DeleteModule(t.Context(), hub.Target{DeviceID: deviceID, ModuleID: "deleted"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	create(t, h, "deleted")
	createModule(t, h, "deleted", "m")
	if err := h.DeleteDevice(t.Context(), "deleted", hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	connectModule(t, h, deviceID, moduleID).Close()
	target := hub.Target{DeviceID: deviceID, ModuleID: moduleID}
	seen, err := h.GetModule(target)
	if err != nil {
		t.Fatal(err)
	}
	create(t, h, "after") // a commit behind the one that notes the activity

	again := newHub(t, afterKill(t, dir))
	got, err := again.GetModule(target)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "keys", got.Authentication, kept.Authentication)
	check(t, "generation and ETag", got.GenerationID+got.ETag, kept.GenerationID+kept.ETag)
	check(t, "managed by", *got.ManagedBy, "me")
	check(t, "last activity", got.LastActivityTime.Equal(seen.LastActivityTime.Time), true)
	modules, err := again.ListModules(deviceID)
	check(t, "modules", fmt.Sprint(len(modules), err), "1 <nil>")
	check(t, "devices", len(list(t, again, 10)), 3)
	create(t, again, "deleted")
	_, err = again.GetModule(hub.Target{DeviceID: "deleted", ModuleID: "m"})
	wantCode(t, "module of a deleted device", err, hub.CodeModuleNotFound)
}

// TestRecordsOfTheFirstVersion opens what a data directory had in it before there
// were modules.
func TestRecordsOfTheFirstVersion(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	err := store.Commit(s,
		store.Put("d/a:b/a", []byte(`{"Last":"2026-01-02T03:04:05Z","StateUpdated":"2026-01-02T03:04:06Z"}`)),
		store.Put("d/a:b/i", []byte(`{"deviceId":"a:b","generationId":"639000000000000000","etag":"MTIz","connectionState":"",`+
			`"status":"enabled","statusReason":null,"connectionStateUpdatedTime":"0001-01-01T00:00:00Z",`+
			`"statusUpdatedTime":"0001-01-01T00:00:00Z","lastActivityTime":"0001-01-01T00:00:00Z","cloudToDeviceMessageCount":0,`+
			`"authentication":{"type":"selfSigned","symmetricKey":{"primaryKey":"","secondaryKey":""},`+
			`"x509Thumbprint":{"primaryThumbprint":"not one","secondaryThumbprint":null}},"capabilities":{"iotEdge":false}}`)))
	if err != nil {
		t.Fatal(err)
	}
	d, err := newHub(t, s).GetDevice("a:b")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "generation and ETag", d.GenerationID+" "+d.ETag, "639000000000000000 MTIz")
	check(t, "last activity", d.LastActivityTime.Unix(), 1767323045)
	check(t, "state updated", d.ConnectionStateUpdatedTime.Unix(), 1767323046)
	check(t, "thumbprint", *d.Authentication.X509Thumbprint.PrimaryThumbprint, "not one")
}

func TestDamagedRecordsAreReported(t *testing.T) {
	t.Parallel()
	for key, value := range map[string]string{
		"d/a/i":     `{`,
		"d/a/m/b/i": `{`,
		"d/a/m/b/a": `[]`,
		"d/a/z":     `{}`,
		"d/%zz/i":   `{}`,
		"d/a/m/%/i": `{}`,
	} {
		s := openStore(t, t.TempDir())
		if err := store.Commit(s, store.Put(key, []byte(value))); err != nil {
			t.Fatal(err)
		}
		l, err := broker.OpenEventLog(s, "hub", broker.EventLogOptions{Partitions: 1})
		if err != nil {
			t.Fatal(err)
		}
		if h, err := hub.Open(s, hub.Options{Events: l}); err == nil {
			t.Errorf("%s = %s was taken", key, value)
			h.Close()
		}
		l.Close()
	}
}

// TestModulesInTurns lets connections, changes and the end of a device meet.
func TestModulesInTurns(t *testing.T) {
	t.Parallel()
	h := newHub(t, openStore(t, t.TempDir()))
	expected := []hub.Code{
		hub.CodeDeviceNotFound, hub.CodeModuleNotFound, hub.CodeDeviceAlreadyExists, hub.CodeModuleAlreadyExists,
		hub.CodeUnauthorized, hub.CodeConnectionReplaced,
	}
	try := func(_ any, err error) {
		for _, code := range expected {
			if err == nil || errors.Is(err, code) {
				return
			}
		}
		t.Error(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		target := hub.Target{DeviceID: "d", ModuleID: fmt.Sprint("m", i%2)}
		wg.Go(func() {
			for j := range 10 {
				try(h.CreateDevice(t.Context(), hub.Identity{DeviceID: "d"}))
				try(h.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: target.ModuleID}))
				if s, err := h.Connect(t.Context(), "d", hub.ConnectOptions{ModuleID: target.ModuleID}); err == nil {
					try(nil, s.Publish(t.Context(), msg("a")))
					defer s.Close()
				} else {
					try(nil, err)
				}
				try(h.GetModule(target))
				switch j % 3 {
				case 0:
					try(nil, h.DeleteModule(t.Context(), target, hub.AnyVersion))
				case 1:
					try(h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "disabled"}, hub.AnyVersion))
				case 2:
					try(nil, h.DeleteDevice(t.Context(), "d", hub.AnyVersion))
				}
			}
		})
	}
	wg.Wait()
	try(nil, h.DeleteDevice(t.Context(), "d", hub.AnyVersion))
	check(t, "devices left", len(list(t, h, 10)), 0)
	check(t, "connected", h.ServiceStatistics().Connected, 0)
}

func TestModuleJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(hub.Module{
		DeviceID: "d", ModuleID: "m", GenerationID: "638000000000000000", ETag: "MTIz", ConnectionState: "Connected",
		Authentication: hub.Authentication{Type: "certificateAuthority"},
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "module", string(text), `{"moduleId":"m","managedBy":null,"deviceId":"d","generationId":"638000000000000000","etag":"MTIz",`+
		`"connectionState":"Connected","connectionStateUpdatedTime":"0001-01-01T00:00:00Z","lastActivityTime":"0001-01-01T00:00:00Z",`+
		`"cloudToDeviceMessageCount":0,"authentication":{"type":"certificateAuthority",`+
		`"symmetricKey":{"primaryKey":null,"secondaryKey":null},"x509Thumbprint":{"primaryThumbprint":null,"secondaryThumbprint":null}}}`)
}
