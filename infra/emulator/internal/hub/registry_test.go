package hub_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestCreateDevice(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	d := create(t, h, deviceID)
	check(t, "status", d.Status, "enabled")
	check(t, "state", d.ConnectionState, "Disconnected")
	check(t, "authentication", d.Authentication.Type, "sas")
	check(t, "digits of the generation", len(d.GenerationID), 18)
	for _, key := range []string{d.Authentication.SymmetricKey.PrimaryKey, d.Authentication.SymmetricKey.SecondaryKey} {
		if b, err := base64.StdEncoding.DecodeString(key); err != nil || len(b) != 32 {
			t.Errorf("generated key has %d bytes (%v)", len(b), err)
		}
	}
	if d.ETag == "" || strings.Contains(d.ETag, `"`) {
		t.Errorf("ETag %q", d.ETag)
	}
	_, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: deviceID})
	wantCode(t, "second creation", err, hub.CodeDeviceAlreadyExists)
	got, err := h.GetDevice(deviceID)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "read back", fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", d))
	if _, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: strings.ToUpper(deviceID)}); err != nil {
		t.Errorf("IDs that differ in case are different: %v", err)
	}
}

func TestIdentityRules(t *testing.T) {
	t.Parallel()
	key := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	sasKeys := func(primary string) hub.Authentication {
		return hub.Authentication{SymmetricKey: hub.SymmetricKey{PrimaryKey: primary}}
	}
	for name, tc := range map[string]struct {
		id hub.Identity
		ok bool
	}{
		"all characters":       {hub.Identity{DeviceID: "aZ09-:.+%_#*?!(),=@;$'"}, true},
		"128 characters":       {hub.Identity{DeviceID: strings.Repeat("a", 128)}, true},
		"129 characters":       {hub.Identity{DeviceID: strings.Repeat("a", 129)}, false},
		"empty":                {hub.Identity{}, false},
		"space":                {hub.Identity{DeviceID: "a b"}, false},
		"slash":                {hub.Identity{DeviceID: "a/b"}, false},
		"umlaut":               {hub.Identity{DeviceID: "gerät"}, false},
		"disabled":             {hub.Identity{DeviceID: "d", Status: "disabled"}, true},
		"status in capitals":   {hub.Identity{DeviceID: "d", Status: "Enabled"}, true},
		"unknown status":       {hub.Identity{DeviceID: "d", Status: "asleep"}, false},
		"reason of 128":        {hub.Identity{DeviceID: "d", StatusReason: new(strings.Repeat("r", 128))}, true},
		"reason of 129":        {hub.Identity{DeviceID: "d", StatusReason: new(strings.Repeat("r", 129))}, false},
		"key of 16 bytes":      {hub.Identity{DeviceID: "d", Authentication: sasKeys(key(16))}, true},
		"key of 64 bytes":      {hub.Identity{DeviceID: "d", Authentication: sasKeys(key(64))}, true},
		"key of 15 bytes":      {hub.Identity{DeviceID: "d", Authentication: sasKeys(key(15))}, false},
		"key of 65 bytes":      {hub.Identity{DeviceID: "d", Authentication: sasKeys(key(65))}, false},
		"key not base64":       {hub.Identity{DeviceID: "d", Authentication: sasKeys("!")}, false},
		"authentication none":  {hub.Identity{DeviceID: "d", Authentication: hub.Authentication{Type: "none"}}, true},
		"authentication other": {hub.Identity{DeviceID: "d", Authentication: hub.Authentication{Type: "password"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := newHub(t, store.Memory()).CreateDevice(t.Context(), tc.id)
			if tc.ok && err != nil {
				t.Error(err)
			}
			if !tc.ok {
				wantCode(t, "creation", err, hub.CodeArgumentInvalid)
			}
		})
	}
}

func TestUpdateDevice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, store.Memory())
		before := create(t, h, "d")
		_, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "other"}, hub.AnyVersion)
		wantCode(t, "update of an unknown device", err, hub.CodeDeviceNotFound)
		_, err = h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d"}, "wrong")
		wantCode(t, "update with another ETag", err, hub.CodePreconditionFailed)

		time.Sleep(time.Second)
		after, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "disabled", StatusReason: new("test")}, hub.IfMatch(before.ETag))
		if err != nil {
			t.Fatal(err)
		}
		check(t, "status", after.Status, "disabled")
		check(t, "status updated", after.StatusUpdatedTime.Equal(time.Now()), true)
		check(t, "same ETag", after.ETag == before.ETag, false)
		check(t, "generation", after.GenerationID, before.GenerationID)
		check(t, "keys that were left out", after.Authentication, before.Authentication)
		_, err = h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d"}, hub.IfMatch(before.ETag))
		wantCode(t, "update with the old ETag", err, hub.CodePreconditionFailed)
		if _, err = h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d"}, hub.AnyVersion); err != nil {
			t.Errorf("update with *: %v", err)
		}
	})
}

func TestDeleteDevice(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	before := create(t, h, "d")
	wantCode(t, "other ETag", h.DeleteDevice(t.Context(), "d", "wrong"), hub.CodePreconditionFailed)
	sendC2D(t, h, "d", c2d("1", "full"))
	s := connect(t, h, "d")
	if err := h.DeleteDevice(t.Context(), "d", hub.IfMatch(before.ETag)); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	wantCode(t, "reason of the session", s.Err(), hub.CodeDeviceNotFound)
	wantCode(t, "second deletion", h.DeleteDevice(t.Context(), "d", hub.AnyVersion), hub.CodeDeviceNotFound)
	_, err := h.GetDevice("d")
	wantCode(t, "get", err, hub.CodeDeviceNotFound)
	wantCode(t, "send", h.SendC2D(t.Context(), "d", c2d("2", "")), hub.CodeDeviceNotFound)
	wantCode(t, "publish", s.Publish(t.Context(), msg("a")), hub.CodeDeviceNotFound)
	after := create(t, h, "d")
	if after.GenerationID <= before.GenerationID {
		t.Errorf("generation %s after %s", after.GenerationID, before.GenerationID)
	}
	check(t, "messages of the device before", after.CloudToDeviceMessageCount, 0)
}

func TestOneOfManyCreationsSucceeds(t *testing.T) {
	t.Parallel()
	h := newHub(t, openStore(t, t.TempDir()))
	results := make(chan error, 50)
	var wg sync.WaitGroup
	for range cap(results) {
		wg.Go(func() {
			_, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: "d"})
			results <- err
		})
	}
	wg.Wait()
	close(results)
	created := 0
	for err := range results {
		if err == nil {
			created++
			continue
		}
		wantCode(t, "the others", err, hub.CodeDeviceAlreadyExists)
	}
	check(t, "created", created, 1)
}

func TestCreateAndDeleteInTurns(t *testing.T) {
	t.Parallel()
	h := newHub(t, openStore(t, t.TempDir()))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if _, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: "d"}); err != nil && !errors.Is(err, hub.CodeDeviceAlreadyExists) {
					t.Error(err)
				}
				if err := h.DeleteDevice(t.Context(), "d", hub.AnyVersion); err != nil && !errors.Is(err, hub.CodeDeviceNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	check(t, "devices left", len(list(t, h, 10)), 0)
}

func TestListAndStatistics(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	for _, id := range []string{"c", "a", "b"} {
		create(t, h, id)
	}
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "b", Status: "disabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	s := connect(t, h, "a")
	var ids []string
	for _, d := range list(t, h, 2) {
		ids = append(ids, d.DeviceID)
	}
	check(t, "first two", ids, "[a b]")
	check(t, "all", len(list(t, h, 1000)), 3)
	check(t, "devices", h.DeviceStatistics(), hub.DeviceStatistics{Total: 3, Enabled: 2, Disabled: 1})
	check(t, "connected", h.ServiceStatistics().Connected, 1)
	s.Close()
	check(t, "connected then", h.ServiceStatistics().Connected, 0)
}

func TestRegistrySurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHub(t, openStore(t, dir))
	kept := create(t, h, deviceID)
	create(t, h, "deleted")
	if err := h.DeleteDevice(t.Context(), "deleted", hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	connect(t, h, deviceID).Close()
	seen, err := h.GetDevice(deviceID)
	if err != nil {
		t.Fatal(err)
	}
	create(t, h, "after") // a commit behind the one that notes the activity
	policy, err := h.Policy("iothubowner")
	if err != nil {
		t.Fatal(err)
	}

	again := newHub(t, afterKill(t, dir))
	got, err := again.GetDevice(deviceID)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "keys", got.Authentication, kept.Authentication)
	check(t, "generation and ETag", got.GenerationID+got.ETag, kept.GenerationID+kept.ETag)
	check(t, "last activity", got.LastActivityTime.Equal(seen.LastActivityTime.Time), true)
	check(t, "state updated", got.ConnectionStateUpdatedTime.Equal(seen.ConnectionStateUpdatedTime.Time), true)
	_, err = again.GetDevice("deleted")
	wantCode(t, "deleted device", err, hub.CodeDeviceNotFound)
	same, err := again.Policy("iothubowner")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "policy keys", same.Keys, policy.Keys)
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	keys := make(map[string]bool)
	for name, want := range map[string]string{
		"iothubowner":       "RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect",
		"service":           "ServiceConnect",
		"device":            "DeviceConnect",
		"registryRead":      "RegistryRead",
		"registryReadWrite": "RegistryRead, RegistryWrite",
	} {
		p, err := h.Policy(name)
		if err != nil {
			t.Fatal(err)
		}
		check(t, name, p.Permissions, want)
		keys[p.Keys.Primary], keys[p.Keys.Secondary] = true, true
	}
	check(t, "different keys", len(keys), 10)
	if _, err := h.Policy("other"); !errors.Is(err, sas.ErrUnknownPolicy) {
		t.Errorf("unknown policy: %v", err)
	}
}

func TestDeviceKeysForTokens(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	d := create(t, h, "d")
	got, err := h.Device("d")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "device", got, sas.Device{Enabled: true, Keys: sas.Keys{
		Primary: d.Authentication.SymmetricKey.PrimaryKey, Secondary: d.Authentication.SymmetricKey.SecondaryKey,
	}})
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "disabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Device("d"); err != nil || got.Enabled {
		t.Errorf("disabled device: %v %v", got.Enabled, err)
	}
	if _, err := h.Device("other"); !errors.Is(err, sas.ErrUnknownDevice) {
		t.Errorf("unknown device: %v", err)
	}
}

func TestIdentityJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(hub.Identity{
		DeviceID: "d", GenerationID: "638000000000000000", ETag: "MTIz", ConnectionState: "Connected", Status: "enabled",
		LastActivityTime: hub.Time{Time: time.Date(2026, 1, 2, 3, 4, 5, 67_000_000, time.UTC)},
		Authentication:   hub.Authentication{Type: "sas", SymmetricKey: hub.SymmetricKey{PrimaryKey: "p", SecondaryKey: "s"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "identity", string(text), `{"deviceId":"d","generationId":"638000000000000000","etag":"MTIz",`+
		`"connectionState":"Connected","status":"enabled","statusReason":null,`+
		`"connectionStateUpdatedTime":"0001-01-01T00:00:00Z","statusUpdatedTime":"0001-01-01T00:00:00Z",`+
		`"lastActivityTime":"2026-01-02T03:04:05.0670000Z","cloudToDeviceMessageCount":0,`+
		`"authentication":{"type":"sas","symmetricKey":{"primaryKey":"p","secondaryKey":"s"},`+
		`"x509Thumbprint":{"primaryThumbprint":null,"secondaryThumbprint":null}},"capabilities":{"iotEdge":false}}`)
}

func TestTimesOfSDKsAreAccepted(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Time{
		`"2026-01-02T03:04:05Z"`: at, `"2026-01-02T03:04:05"`: at, `"2026-01-02T03:04:05.0000000Z"`: at,
		`"0001-01-01T00:00:00"`: {}, `null`: {}, `""`: {}, `7`: {}, `"tomorrow"`: {},
	} {
		var got hub.Time
		if err := json.Unmarshal([]byte(text), &got); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	_, err := newHub(t, store.Memory()).GetDevice("d")
	e := hub.AsError(fmt.Errorf("wrapped: %w", err))
	check(t, "code", int(e.Code), 404001)
	check(t, "name", e.Code.Name(), "DeviceNotFound")
	check(t, "status", e.Code.Status(), 404)
	if e.TrackingID == "" {
		t.Error("no tracking ID")
	}
	internal := hub.AsError(errors.New("disk on fire"))
	check(t, "other errors", internal.Code.Status(), 500)
	if strings.Contains(internal.Error(), "fire") {
		t.Errorf("the cause shows: %v", internal)
	}
}

// gated is a store that takes changes once it is opened.
type gated struct {
	store.Store
	arrived chan struct{} // receives a value with each change, until it is full
	open    chan struct{}
}

func (g *gated) Submit(done func(error), ops ...store.Op) {
	select {
	case g.arrived <- struct{}{}:
	default:
	}
	go func() {
		<-g.open
		g.Store.Submit(done, ops...)
	}()
}

// Nobody who deletes a device too hears that it is gone before it is gone for good.
func TestDeletionIsToldOfWhenStored(t *testing.T) {
	t.Parallel()
	open := make(chan struct{})
	close(open)
	g := &gated{Store: store.Memory(), open: open}
	h := newHub(t, g)
	create(t, h, deviceID)
	g.arrived, g.open = make(chan struct{}, 1), make(chan struct{})
	results := make(chan error, 2)
	remove := func() { results <- h.DeleteDevice(context.Background(), deviceID, hub.AnyVersion) }
	go remove()
	<-g.arrived
	go remove()
	select {
	case err := <-results:
		t.Errorf("answered before the deletion was stored: %v", err)
		results <- err
	case <-time.After(50 * time.Millisecond): // it waits
	}
	close(g.open)
	first, second := <-results, <-results
	if first != nil {
		first, second = second, first
	}
	if first != nil || !errors.Is(second, hub.CodeDeviceNotFound) {
		t.Errorf("got %v and %v", first, second)
	}
}
