package hub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// bulk runs a bulk operation given as the JSON that clients send.
func bulk(t *testing.T, h fixture, text string) hub.BulkResult {
	t.Helper()
	var items []hub.BulkItem
	if err := json.Unmarshal([]byte(text), &items); err != nil {
		t.Fatal(err)
	}
	r, err := h.Bulk(t.Context(), items)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// summary lists the errors and warnings of a result.
func summary(r hub.BulkResult) string {
	parts := []string{fmt.Sprint(r.IsSuccessful)}
	for _, e := range r.Errors {
		parts = append(parts, fmt.Sprintf("%s/%s %d %s", e.DeviceID, e.ModuleID, int(e.ErrorCode), e.Operation))
	}
	for _, w := range r.Warnings {
		parts = append(parts, w.DeviceID+" "+w.WarningCode)
	}
	return strings.Join(parts, ", ")
}

// TestBulkOfSDKs sends what azure-iothub 1.16 (registry.js, _processBulkDevices)
// and amenzhinsky/iothub v0.9.1 (iotservice, bulkRequest) send.
func TestBulkOfSDKs(t *testing.T) {
	t.Parallel()
	node := `"authentication":{"type":"sas","symmetricKey":{"primaryKey":"","secondaryKey":""}}`
	for name, steps := range map[string][][2]string{
		"azure-iothub": {
			{`[{"id":"a",` + node + `,"importMode":"create"},{"id":"b","status":"disabled",` + node + `,"importMode":"create"}]`, "true"},
			{`[{"id":"a",` + node + `,"importMode":"create"},{"id":"c",` + node + `,"importMode":"create"}]`, "false, a/ 409001 create"},
			{`[{"id":"a","status":"disabled",` + node + `,"importMode":"Update"},{"id":"x",` + node + `,"importMode":"Update"}]`, "false, x/ 404001 Update"},
			{`[{"id":"a","etag":"stale",` + node + `,"importMode":"UpdateIfMatchETag"}]`, "false, a/ 412001 UpdateIfMatchETag"},
			{`[{"id":"a","etag":"\"stale\"",` + node + `,"importMode":"DeleteIfMatchETag"}]`, "false, a/ 412001 DeleteIfMatchETag"},
			{`[{"id":"a",` + node + `,"importMode":"Delete"},{"id":"b",` + node + `,"importMode":"Delete"},{"id":"c",` + node + `,"importMode":"Delete"}]`, "true"},
		},
		"amenzhinsky/iothub": {
			{`[{"id":"a","importMode":"create","tags":{"tag-1":true}},{"id":"b","importMode":"create","tags":{"tag-2":true}}]`, "true"},
			{`[{"id":"a","importMode":"create"},{"id":"c","importMode":"create"}]`, "false, a/ 409001 create"},
			{`[{"id":"a","importMode":"UpdateIfMatchETag","tags":{"tag-1":true}},{"id":"b","importMode":"UpdateIfMatchETag"}]`, "true"},
			{`[{"id":"a","importMode":"UpdateTwinIfMatchETag","tags":{"tag-1":false}},{"id":"b","importMode":"UpdateTwin"}]`, "true"},
			{`[{"id":"a","importMode":"DeleteIfMatchETag"},{"id":"b","importMode":"Delete"},{"id":"c","importMode":"Delete"}]`, "true"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, store.Memory())
			for _, step := range steps {
				check(t, step[0], summary(bulk(t, h, step[0])), step[1])
			}
			check(t, "devices left", len(list(t, h, 10)), 0)
		})
	}
}

func TestBulkKeepsWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	before := create(t, h, "d")
	r := bulk(t, h, `[{"id":"d","eTag":"\"`+before.ETag+`\"","importMode":"updateIfMatchETag","status":"disabled","statusReason":"test",`+
		`"generationId":"1","tags":null,"properties":null,"capabilities":{"iotEdge":true}}]`)
	check(t, "result", summary(r), "true")
	after, err := h.GetDevice("d")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "keys", after.Authentication, before.Authentication)
	check(t, "generation", after.GenerationID, before.GenerationID)
	check(t, "status", string(after.Status)+" "+*after.StatusReason, "disabled test")
	check(t, "capabilities", after.Capabilities.IotEdge, true)
	check(t, "same ETag", after.ETag == before.ETag, false)
}

func TestBulkTwins(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	check(t, "creation", summary(bulk(t, h, `[
		{"id":"a","importMode":"create","tags":{"x":1},"properties":{"desired":{"y":2},"reported":{"z":3}}},
		{"id":"b","importMode":"create","tags":{"$no":1}},
		{"id":"a","moduleId":"m","importMode":"create","tags":{"of":"module"}}]`)), "true, b DeviceRegisteredWithoutTwin")
	if _, err := h.GetDevice("b"); err != nil {
		t.Errorf("device without twin: %v", err)
	}
	twin := func(target hub.Target) string {
		t.Helper()
		twin, err := h.GetTwin(target)
		if err != nil {
			t.Fatal(err)
		}
		var desired, reported map[string]any
		if err := errors.Join(json.Unmarshal(twin.Properties.Desired, &desired), json.Unmarshal(twin.Properties.Reported, &reported)); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %v %v", twin.Tags, desired["y"], reported["z"])
	}
	a := hub.Target{DeviceID: "a"}
	check(t, "twin", twin(a), `{"x":1} 2 <nil>`)
	check(t, "twin of the module", twin(hub.Target{DeviceID: "a", ModuleID: "m"}), `{"of":"module"} <nil> <nil>`)

	check(t, "update", summary(bulk(t, h, `[
		{"id":"a","importMode":"updateTwin","tags":{"w":4}},
		{"id":"x","importMode":"updateTwin","tags":{"w":4}},
		{"id":"y","importMode":"updateTwin"},
		{"id":"a","moduleId":"x","importMode":"updateTwin","tags":{"w":4}}]`)),
		"false, x/ 404001 updateTwin, y/ 404001 updateTwin, a/x 404010 updateTwin")
	check(t, "twin after an update", twin(a), `{"w":4} 2 <nil>`)

	check(t, "other ETag", summary(bulk(t, h, `[{"id":"a","importMode":"updateTwinIfMatchETag","twinETag":"x","tags":{"w":5}}]`)),
		"false, a/ 412001 updateTwinIfMatchETag")
	got, err := h.GetTwin(a)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "its ETag", summary(bulk(t, h, `[{"id":"a","importMode":"updateTwinIfMatchETag","twinETag":"`+got.ETag+`","properties":{"desired":{"y":6}}}]`)), "true")
	check(t, "twin at last", twin(a), `{"w":4} 6 <nil>`)
}

func TestBulkOfModules(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	check(t, "device and modules at once", summary(bulk(t, h, `[
		{"id":"d","importMode":"create"},
		{"id":"d","moduleId":"m","managedBy":"me","importMode":"create"},
		{"id":"d","moduleId":"n","importMode":"CREATE"},
		{"id":"x","moduleId":"m","importMode":"create"}]`)), "false, x/m 404001 create")
	check(t, "changes", summary(bulk(t, h, `[
		{"id":"d","moduleId":"m","importMode":"update","authentication":{"type":"certificateAuthority"}},
		{"id":"d","moduleId":"n","importMode":"deleteIfMatchETag","eTag":"x"},
		{"id":"d","moduleId":"o","importMode":"delete"}]`)), "false, d/n 412001 deleteIfMatchETag, d/o 404010 delete")
	m, err := h.GetModule(hub.Target{DeviceID: "d", ModuleID: "m"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "authentication", m.Authentication.Type, "certificateAuthority")
	check(t, "deletion", summary(bulk(t, h, `[{"id":"d","moduleId":"n","importMode":"delete"}]`)), "true")
	modules, err := h.ListModules("d")
	check(t, "modules", fmt.Sprint(len(modules), err), "1 <nil>")
}

func TestBulkRefusals(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	for text, want := range map[string]string{
		`[]`: "true",
		`[{"id":"a","importMode":"create"},{"id":"b","importMode":"create"},{"id":"a","importMode":"delete"}]`: "false, a/ 400011 create, a/ 400011 delete",
		`[{"id":"e"}]`:                                                                                "false, e/ 400004 ",
		`[{"id":"e","importMode":"replace"}]`:                                                         "false, e/ 400004 replace",
		`[{"importMode":"create"}]`:                                                                   "false, / 400004 create",
		`[{"id":"a b","importMode":"create"}]`:                                                        "false, a b/ 400004 create",
		`[{"id":"d","moduleId":"a b","importMode":"create"}]`:                                         "false, d/a b 400004 create",
		`[{"id":"e","importMode":"create","status":"asleep"}]`:                                        "false, e/ 400004 create",
		`[{"id":"e","importMode":"create","authentication":{"type":"selfSigned"}}]`:                   "false, e/ 400004 create",
		`[{"id":"d","importMode":"update","authentication":{"symmetricKey":{"primaryKey":"short"}}}]`: "false, d/ 400004 update",
	} {
		check(t, text, summary(bulk(t, h, text)), want)
	}
	if _, err := h.GetDevice("e"); !errors.Is(err, hub.CodeDeviceNotFound) {
		t.Errorf("a refused device is there: %v", err)
	}
	_, err := h.Bulk(t.Context(), make([]hub.BulkItem, hub.MaxBulkItems+1))
	wantCode(t, "too many", err, hub.CodeTooManyDevices)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Bulk(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestBulkSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHub(t, openStore(t, dir))
	items := make([]hub.BulkItem, hub.MaxBulkItems)
	for i := range items {
		items[i] = hub.BulkItem{ID: fmt.Sprintf("d%d", i/2), ImportMode: hub.ImportCreate}
		if i%2 == 1 {
			items[i].ModuleID = "m"
		}
		items[i].Tags = json.RawMessage(`{"n":1}`)
	}
	r, err := h.Bulk(t.Context(), items)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "result", summary(r), "true")
	again := newHub(t, afterKill(t, dir))
	check(t, "devices", len(list(t, again, 1000)), hub.MaxBulkItems/2)
	for _, i := range items {
		twin, err := again.GetTwin(hub.Target{DeviceID: i.ID, ModuleID: i.ModuleID})
		if err != nil {
			t.Fatal(err)
		}
		check(t, "tags", string(twin.Tags), `{"n":1}`)
	}
}

// TestBulkResultJSON pins what clients read: errorCode is a number, and neither
// list is ever null.
func TestBulkResultJSON(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	for text, want := range map[string]string{
		`[]`: `{"isSuccessful":true,"errors":[],"warnings":[]}`,
		`[{"id":"x","moduleId":"m","importMode":"delete"}]`: `{"isSuccessful":false,"errors":[{"deviceId":"x","errorCode":404001,` +
			`"errorStatus":"device \"x\" is not registered","moduleId":"m","operation":"delete"}],"warnings":[]}`,
	} {
		got, err := json.Marshal(bulk(t, h, text))
		if err != nil {
			t.Fatal(err)
		}
		check(t, text, string(got), want)
	}
}
