package rest_test

import (
	"encoding/json"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// document is what a test reads of a twin.
type document struct {
	DeviceID, ModuleID, ETag string
	Tags                     map[string]any
	Properties               struct{ Desired, Reported map[string]any }
}

// TestWriteTwin merges, replaces and reads the twins of a device and of a module.
func TestWriteTwin(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	_, err := f.hub.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "m"})
	must(t, err)
	for _, path := range []string{"/twins/d", "/twins/d/modules/m"} {
		before := decode[document](t, f.call("GET", path, ""))
		a := f.call("PATCH", path, `{"tags":{"room":"a","floor":1},"properties":{"desired":{"on":true}},"deviceId":"x","etag":"x"}`, "If-Match", `"*"`)
		merged := decode[document](t, a)
		if a.status != 200 || merged.Tags["room"] != "a" || merged.Properties.Desired["on"] != true || merged.DeviceID != "d" {
			t.Errorf("%s: merged %s", path, a)
		}
		if tag := a.header.Get("ETag"); tag != `"`+merged.ETag+`"` || merged.ETag == before.ETag {
			t.Errorf("%s: ETag header %s, field %s, before %s", path, tag, merged.ETag, before.ETag)
		}
		expectFailure(t, f.call("PATCH", path, `{"tags":{}}`, "If-Match", `"`+before.ETag+`"`), hub.CodePreconditionFailed)
		expectFailure(t, f.call("PUT", path, `{"tags":{}}`, "If-Match", `"`+before.ETag+`"`), hub.CodePreconditionFailed)
		if a := f.call("PATCH", path, `{"tags":{"floor":null}}`); a.status != 200 {
			t.Errorf("%s: merge without If-Match: %s", path, a)
		}
		if got := decode[document](t, f.call("GET", path, "")); len(got.Tags) != 1 || got.Tags["room"] != "a" {
			t.Errorf("%s: tags %v", path, got.Tags)
		}
		a = f.call("PUT", path, `{"tags":{"shelf":"b"},"properties":{"desired":{"off":1}}}`)
		replaced := decode[document](t, a)
		if _, stays := replaced.Properties.Desired["on"]; a.status != 200 || stays || len(replaced.Tags) != 1 {
			t.Errorf("%s: replaced %s", path, a)
		}
		expectFailure(t, f.call("PATCH", path, `{"tags":"room"}`), hub.CodeArgumentInvalid)
		expectFailure(t, f.call("PATCH", path, `{`), hub.CodeFormatError)
	}
	if got := decode[document](t, f.call("GET", "/twins/d/modules/m", "")); got.ModuleID != "m" {
		t.Errorf("twin of a module %+v", got)
	}
	expectFailure(t, f.call("PATCH", "/twins/ghost", `{"tags":{"a":1}}`), hub.CodeDeviceNotFound)
	expectFailure(t, f.call("GET", "/twins/d/modules/ghost", ""), hub.CodeModuleNotFound)
}

// TestQueryItems asks for twins and for parts of them.
func TestQueryItems(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("a", "b")
	f.call("PATCH", "/twins/b", `{"tags":{"room":"x"}}`)
	for query, want := range map[string]string{
		`SELECT deviceId, tags.room AS room FROM devices WHERE tags.room = 'x'`: `[{"deviceId":"b","room":"x"}]`,
		`SELECT COUNT() AS n FROM devices`:                                      `[{"n":2}]`,
		`SELECT * FROM devices WHERE deviceId = 'ghost'`:                        `[]`,
	} {
		text, err := json.Marshal(map[string]string{"query": query})
		must(t, err)
		a := f.call("POST", "/devices/query", string(text))
		if a.status != 200 || string(a.body) != want {
			t.Errorf("%s: %s, want %s", query, a, want)
		}
		wantType := "raw"
		if query[:8] == "SELECT *" {
			wantType = "twin"
		}
		if got := a.header.Get("x-ms-item-type"); got != wantType {
			t.Errorf("%s: type %q, want %q", query, got, wantType)
		}
	}
}

func TestModuleMethod(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	_, err := f.hub.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "m"})
	must(t, err)
	s, err := f.hub.Connect(t.Context(), "d", hub.ConnectOptions{ModuleID: "m"})
	must(t, err)
	defer s.Close()
	s.HandleMethods(func(r hub.MethodRequest) {
		go s.RespondMethod(r.RequestID, hub.MethodResult{Status: 201, Payload: json.RawMessage(`"done"`)})
	})
	if a := f.call("POST", "/twins/d/modules/m/methods", `{"methodName":"m"}`); string(a.body) != `{"status":201,"payload":"done"}` {
		t.Errorf("got %s", a)
	}
	if a := f.call("POST", "/twins/d/methods", `{"methodName":"m"}`); a.status != 404 {
		t.Errorf("the device itself answered: %s", a)
	}
}
