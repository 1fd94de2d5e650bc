package hub_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// pages runs a query to its end, with something done between pages, and returns
// the items in JSON.
func pages(t testing.TB, h *hub.Hub, text string, size int, between func()) (sizes []int, items []string) {
	t.Helper()
	q := hub.Query{Text: text, PageSize: size}
	for {
		page, err := h.Query(q)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		sizes = append(sizes, len(page.Items))
		for _, item := range page.Items {
			text, err := json.Marshal(item)
			if err != nil {
				t.Fatal(err)
			}
			items = append(items, string(text))
		}
		if page.Continuation == "" {
			return sizes, items
		}
		q.Continuation = page.Continuation
		between()
	}
}

func nothing() {}

func TestQueryPages(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	for i := range 250 {
		create(t, h, fmt.Sprintf("d%03d", i))
		if i%10 == 0 {
			patchTwin(t, h.Hub, hub.Target{DeviceID: fmt.Sprintf("d%03d", i)}, fmt.Sprintf(`{"tags":{"ten":true,"hundred":%d}}`, i/100))
		}
	}
	for _, tc := range []struct {
		text  string
		size  int
		sizes string
		first string
	}{
		{"SELECT * FROM devices", 0, "[100 100 50]", "d000"},
		{"SELECT * FROM devices", 1000, "[100 100 50]", "d000"},
		{"SELECT * FROM devices", 125, "[100 100 50]", "d000"},
		{"SELECT * FROM devices", 50, "[50 50 50 50 50]", "d000"},
		{"SELECT * FROM devices WHERE deviceId > 'd149'", 100, "[100]", "d150"},
		{"SELECT TOP 1 * FROM devices", 0, "[1]", "d000"},
		{"SELECT TOP 100 * FROM devices", 100, "[100]", "d000"},
		{"SELECT TOP 130 * FROM devices", 100, "[100 30]", "d000"},
		{"SELECT TOP 1000 * FROM devices", 100, "[100 100 50]", "d000"},
		{"SELECT TOP 110 * FROM devices", 50, "[50 50 10]", "d000"},
		{"SELECT * FROM devices WHERE tags.ten = true", 10, "[10 10 5]", "d000"},
		{"SELECT TOP 12 * FROM devices WHERE tags.hundred = 1", 10, "[10]", "d100"},
		{"SELECT deviceId FROM devices WHERE tags.hundred >= 1", 12, "[12 3]", "d100"},
		{"SELECT * FROM devices WHERE tags.none = 1", 10, "[0]", ""},
		{"SELECT deviceId, COUNT() AS n FROM devices GROUP BY deviceId", 100, "[100 100 50]", "d000"},
		{"SELECT TOP 120 deviceId, COUNT() AS n FROM devices GROUP BY deviceId", 100, "[100 20]", "d000"},
	} {
		sizes, items := pages(t, h.Hub, tc.text, tc.size, nothing)
		check(t, tc.text, fmt.Sprint(sizes), tc.sizes)
		seen := make(map[string]bool)
		for i, item := range items {
			var twin struct{ DeviceID string }
			if err := json.Unmarshal([]byte(item), &twin); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				check(t, tc.text, twin.DeviceID, tc.first)
			}
			seen[twin.DeviceID] = true
		}
		check(t, "different devices of "+tc.text, len(seen), len(items))
	}
}

// TestQueryWhileDevicesComeAndGo checks that a token stays good: nothing is left
// out or comes twice but for what was created or deleted meanwhile.
func TestQueryWhileDevicesComeAndGo(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"SELECT deviceId FROM devices WHERE STARTSWITH(deviceId, 'd')",
		"SELECT deviceId FROM devices WHERE STARTSWITH(deviceId, 'd') GROUP BY deviceId",
	} {
		h := newHub(t, store.Memory())
		for i := range 10 {
			create(t, h, fmt.Sprint("d", i))
		}
		n := 0
		sizes, items := pages(t, h.Hub, text, 3, func() {
			n++
			create(t, h, fmt.Sprint("d00", n)) // before what was served
			switch n {
			case 1:
				for _, id := range []string{"d2", "d3"} { // the last one served, and the next
					if err := h.DeleteDevice(t.Context(), id, hub.AnyVersion); err != nil {
						t.Fatal(err)
					}
				}
			case 2:
				create(t, h, "d65")
			}
		})
		check(t, "sizes", fmt.Sprint(sizes), "[3 3 3 1]")
		check(t, "devices", strings.NewReplacer(`{"deviceId":"`, "", `"}`, "").Replace(strings.Join(items, " ")), "d0 d1 d2 d4 d5 d6 d65 d7 d8 d9")
	}
}

func TestQuery(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	reason := "repair"
	for _, id := range []hub.Identity{
		{DeviceID: "a", Capabilities: hub.Capabilities{IotEdge: true}},
		{DeviceID: "b", Status: hub.StatusDisabled, StatusReason: &reason, DeviceScope: "scope", ParentScopes: []string{"p1", "p2"}},
		{DeviceID: "c", Authentication: hub.Authentication{Type: hub.AuthAuthority}},
	} {
		if _, err := h.CreateDevice(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for device, modules := range map[string]string{"a": "xy", "c": "x"} {
		for _, m := range modules {
			createModule(t, h, device, string(m))
		}
	}
	target := func(device, module string) hub.Target { return hub.Target{DeviceID: device, ModuleID: module} }
	patchTwin(t, h.Hub, target("a", ""), `{"tags":{"site":"S1","n":1},"properties":{"desired":{"v":2}}}`)
	patchTwin(t, h.Hub, target("b", ""), `{"tags":{"site":"S1","n":2}}`)
	patchTwin(t, h.Hub, target("a", "y"), `{"tags":{"k":1}}`)
	report(t, connect(t, h, "a"), `{"v":2,"on":true}`)
	report(t, connectModule(t, h, "c", "x"), `{"status":"scanning"}`)
	sendC2D(t, h, "c", c2d("1", ""))

	for _, tc := range []struct{ text, want string }{
		// Built-in fields.
		{"devices WHERE status = 'disabled'", "b"},
		{"devices WHERE statusReason = 'repair'", "b"},
		{"devices WHERE connectionState = 'Connected'", "a"},
		{"devices WHERE capabilities.iotEdge = true", "a"},
		{"devices WHERE authenticationType = 'certificateAuthority'", "c"},
		{"devices WHERE x509Thumbprint.primaryThumbprint = null", "a b c"},
		{"devices WHERE cloudToDeviceMessageCount > 0", "c"},
		{"devices WHERE lastActivityTime > '2020-01-01'", "a"},
		{"devices WHERE lastActivityTime = '0001-01-01T00:00:00Z'", "b c"},
		{"devices WHERE statusUpdateTime = '0001-01-01T00:00:00Z'", "a b c"},
		{"devices WHERE deviceScope = 'scope' AND 'p2' IN parentScopes", "b"},
		{"devices WHERE etag = 'AAAAAAAAAAE='", "c"},
		{"devices WHERE version = 2", "c"},
		{"devices WHERE is_defined(deviceEtag) AND is_defined(capabilities) AND is_defined(x509Thumbprint)", "a b c"},
		{"devices WHERE is_defined(moduleId) OR is_defined(properties.other) OR is_defined(status.x) OR is_defined(status.x.y)", ""},
		// Tags and properties.
		{"devices WHERE tags.site = 'S1' AND tags.n > 1", "b"},
		{"devices WHERE is_defined(tags.site)", "a b"},
		{"devices WHERE properties.desired.v = properties.reported.v", "a"},
		{"devices WHERE properties.reported.on = true", "a"},
		{"devices WHERE properties.reported.$version > 1", "a"},
		{"devices WHERE properties.desired.$metadata.v.$lastUpdatedVersion = 2", "a"},
		{"devices WHERE deviceId IN ['c', 'a', 'z']", "a c"},
		// Modules.
		{"devices.modules", "a/x a/y c/x"},
		{"devices.modules WHERE properties.reported.status = 'scanning'", "c/x"},
		{"devices.modules WHERE moduleId = 'x' AND deviceId IN ['a', 'b']", "a/x"},
		{"devices.modules WHERE devices.modules.tags.k = 1", "a/y"},
		{"devices.modules WHERE connectionState = 'Connected' AND status = 'enabled'", "c/x"},
	} {
		_, items := pages(t, h.Hub, "SELECT * FROM "+tc.text, 2, nothing)
		var ids []string
		for _, item := range items {
			var twin hub.Twin
			if err := json.Unmarshal([]byte(item), &twin); err != nil {
				t.Fatal(err)
			}
			id := twin.DeviceID
			if twin.ModuleID != "" {
				id += "/" + twin.ModuleID
			}
			ids = append(ids, id)
		}
		check(t, tc.text, strings.Join(ids, " "), tc.want)
	}
	for _, tc := range []struct{ text, want string }{
		{"SELECT DeviceId, tags.site FROM devices", `[{"deviceId":"a","site":"S1"} {"deviceId":"b","site":"S1"} {"deviceId":"c"}]`},
		{"SELECT tags FROM devices WHERE deviceId != 'b'", `[{"tags":{"n":1,"site":"S1"}} {"tags":{}}]`},
		{"SELECT capabilities, x509Thumbprint AS t, parentScopes FROM devices WHERE deviceId = 'b'", `[{"capabilities":{"iotEdge":false},"parentScopes":["p1","p2"],"t":{"primaryThumbprint":null,"secondaryThumbprint":null}}]`},
		{"SELECT x509Thumbprint.secondaryThumbprint FROM devices WHERE deviceId = 'b'", `[{"secondaryThumbprint":null}]`},
		{"SELECT moduleId, deviceId FROM devices.modules WHERE tags.k = 1", `[{"deviceId":"a","moduleId":"y"}]`},
		{"SELECT COUNT() AS n FROM devices", `[{"n":3}]`},
		{"SELECT COUNT() AS n FROM devices.modules WHERE deviceId = 'a'", `[{"n":2}]`},
		{"SELECT tags.site AS site, COUNT() AS n, SUM(tags.n) AS s FROM devices GROUP BY tags.site", `[{"n":1,"s":0} {"n":2,"s":3,"site":"S1"}]`},
	} {
		_, items := pages(t, h.Hub, tc.text, 0, nothing)
		check(t, tc.text, fmt.Sprint(items), tc.want)
	}
	_, items := pages(t, h.Hub, "SELECT properties, properties.desired AS d FROM devices WHERE deviceId = 'c'", 0, nothing)
	if !strings.Contains(items[0], `"properties":{"desired":{"$metadata":`) || !strings.Contains(items[0], `"d":{"$metadata":`) {
		t.Errorf("properties: %s", items[0])
	}
}

func TestQueryTypes(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	for text, want := range map[string]string{
		"SELECT * FROM devices":         "twin",
		"SELECT * FROM devices.modules": "twin",
		"SELECT deviceId FROM devices":  "raw",
		"SELECT COUNT() FROM devices":   "raw",
	} {
		page, err := h.Query(hub.Query{Text: text})
		if err != nil {
			t.Fatal(err)
		}
		check(t, text, page.Type, want)
	}
	page, err := h.Query(hub.Query{Text: "SELECT * FROM devices"})
	check(t, "error", err, nil)
	items, err := json.Marshal(page.Items)
	check(t, "no devices", string(items), "[]")
	check(t, "error", err, nil)
}

func TestQueriesThatAreRefused(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "a")
	create(t, h, "b")
	page, err := h.Query(hub.Query{Text: "SELECT * FROM devices", PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		query hub.Query
		want  hub.Code
	}{
		{hub.Query{}, hub.CodeArgumentNull},
		{hub.Query{Text: " "}, hub.CodeArgumentNull},
		{hub.Query{Text: "SELECT * FROM devices WHERE status == 'enabled'"}, hub.CodeArgumentInvalid},
		{hub.Query{Text: "SELECT * FROM devices.jobs"}, hub.CodeInvalidOperation},
		{hub.Query{Text: "SELECT TOP 0 * FROM devices"}, hub.CodeArgumentInvalid},
		{hub.Query{Text: "SELECT * FROM devices", Continuation: "%"}, hub.CodeArgumentInvalid},
		{hub.Query{Text: "SELECT * FROM devices", Continuation: "e30x"}, hub.CodeArgumentInvalid},
		{hub.Query{Text: "SELECT * FROM devices", Continuation: "e30"}, hub.CodeArgumentInvalid},
		{hub.Query{Text: "SELECT *  FROM devices", Continuation: page.Continuation}, hub.CodeArgumentInvalid},
	} {
		_, err := h.Query(tc.query)
		wantCode(t, tc.query.Text, err, tc.want)
	}
	_, err = h.Query(hub.Query{Text: "SELECT * FROM devices WHERE status == 'enabled'"})
	if !strings.Contains(fmt.Sprint(err), "query: at character 37: a property or value is expected and not =") {
		t.Errorf("got %v", err)
	}
}

// BenchmarkQuery asks for a page of those few of 10,000 devices that have a tag.
func BenchmarkQuery(b *testing.B) {
	s := store.Memory()
	l, err := broker.OpenEventLog(s, "hub", broker.EventLogOptions{Partitions: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(l.Close)
	h, err := hub.Open(s, hub.Options{Events: l})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(h.Close)
	for i := range 10000 {
		id := fmt.Sprintf("device-%05d", i)
		if _, err := h.CreateDevice(b.Context(), hub.Identity{DeviceID: id}); err != nil {
			b.Fatal(err)
		}
		patchTwin(b, h, hub.Target{DeviceID: id}, fmt.Sprintf(`{"tags":{"site":"S%d","n":%d}}`, i%200, i))
	}
	for name, text := range map[string]string{
		"where": "SELECT * FROM devices WHERE tags.site = 'S7' AND tags.n >= 0",
		"field": "SELECT * FROM devices WHERE connectionState = 'Connected'",
		"count": "SELECT COUNT() AS n FROM devices",
		"group": "SELECT tags.site AS site, COUNT() AS n FROM devices GROUP BY tags.site",
		"page":  "SELECT * FROM devices",
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := h.Query(hub.Query{Text: text}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
