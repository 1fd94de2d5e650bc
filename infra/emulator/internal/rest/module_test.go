package rest_test

import (
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// TestModuleLife goes through create, read, update and delete of a module.
func TestModuleLife(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.add("d")
	const path = "/devices/d/modules/a%2Bb"

	expectFailure(t, f.call("GET", path, ""), hub.CodeModuleNotFound)
	expectFailure(t, f.call("PUT", "/devices/ghost/modules/m", "{}"), hub.CodeDeviceNotFound)
	if a := f.call("GET", "/devices/d/modules", ""); a.status != 200 || string(a.body) != "[]" {
		t.Errorf("list of nothing: %s", a)
	}
	a := f.call("PUT", path, `{"deviceId":"d","moduleId":"a+b","managedBy":"me"}`)
	created := decode[hub.Module](t, a)
	if a.status != 200 || created.ModuleID != "a+b" || created.DeviceID != "d" || a.header.Get("ETag") != `"`+created.ETag+`"` {
		t.Errorf("created %s, ETag %s", a, a.header.Get("ETag"))
	}
	if created.Authentication.SymmetricKey.PrimaryKey == "" {
		t.Error("no key was generated")
	}
	if a := f.call("PUT", path, "{}"); a.status != 409 {
		t.Errorf("created twice: %s", a)
	}
	expectFailure(t, f.call("PUT", path, "{}", "If-Match", `"bm9wZQ=="`), hub.CodePreconditionFailed)
	a = f.call("PUT", path, `{"managedBy":"you"}`, "If-Match", `"`+created.ETag+`"`)
	if updated := decode[hub.Module](t, a); a.status != 200 || *updated.ManagedBy != "you" || updated.ETag == created.ETag {
		t.Errorf("updated %s", a)
	}
	expectFailure(t, f.call("PUT", path, `{"moduleId":"other"}`), hub.CodeArgumentInvalid)
	expectFailure(t, f.call("PUT", path, `{"deviceId":"other"}`), hub.CodeArgumentInvalid)
	if list := decode[[]hub.Module](t, f.call("GET", "/devices/d/modules", "")); len(list) != 1 || *list[0].ManagedBy != "you" {
		t.Errorf("list %v", list)
	}
	expectFailure(t, f.call("GET", "/devices/ghost/modules", ""), hub.CodeDeviceNotFound)
	expectFailure(t, f.call("DELETE", path, ""), hub.CodeArgumentInvalid)
	if a := f.call("DELETE", path, "", "If-Match", "*"); a.status != 204 {
		t.Errorf("deleted: %s", a)
	}
	expectFailure(t, f.call("DELETE", path, "", "If-Match", "*"), hub.CodeModuleNotFound)
}
