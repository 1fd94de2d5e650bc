package conformance_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/job"
)

// Where the registry is documented.
const (
	registryPage       = "IoT Hub docs: Understand the identity registry in your IoT hub"
	registryErrorsPage = "IoT Hub REST API: IoT Hub API common error codes"
	registryErrorCodes = "azure-iot-sdk-csharp, ErrorCode.cs"
	registryQuotasPage = "IoT Hub docs: IoT Hub quotas and throttling"
	registryPut        = "IoT Hub REST API: Devices - Create Or Update Identity"
	registryDelete     = "IoT Hub REST API: Devices - Delete Identity"
	registryList       = "IoT Hub REST API: Devices - Get Devices"
	registryBulk       = "IoT Hub REST API: Bulk Registry - Update Registry"
	registryBulkModes  = "IoT Hub docs: Import and export IoT Hub device identities in bulk"
	registryModules    = "IoT Hub REST API: Modules - Create Or Update Identity"
	registryStatistics = "IoT Hub REST API: Statistics - Get Device Statistics"
	registryJobs       = "IoT Hub docs: Schedule jobs on multiple devices"
	registryJobPut     = "IoT Hub REST API: Jobs - Create Scheduled Job"
	registryJobQueries = "IoT Hub docs: Queries for IoT Hub jobs"
	registryPurge      = "IoT Hub REST API: Cloud To Device Messages - Purge Cloud To Device Message Queue"
)

var registry = area{
	name: "Registry",
	emulated: []behaviour{
		{"Device identities", "a device without keys gets two", registryPut, registryGeneratesKeys},
		{"Device identities", "a device keeps the keys that it is given", registryPut, registryKeepsKeys},
		{"Device identities", "a key has 16 to 64 bytes in base64", registryPut, registryChecksKeys},
		{"Device identities", "a new device is enabled and was never seen", registryPage, registryNewDevice},
		{"Device identities", "an ID that is taken is refused with 409001", registryErrorsPage, registryConflict},
		{"Device identities", "an unknown device is 404001", registryErrorsPage, registryUnknown},
		{"Device identities", "IDs mind case", registryPage, registryCase},
		{"Device identities", "IDs have up to 128 characters of a set", registryPage, registryIDs},
		{"Device identities", "other IDs are refused", registryPage, registryBadIDs},
		{"Device identities", "the ID of the body is that of the path", registryPut, registryOtherID},
		{"Device identities", "a deleted device is gone", registryDelete, registryDeletes},
		{"Device identities", "a device that was made again has another generation", registryPage, registryGeneration},
		{"Device identities", "what only the hub sets is ignored", registryPage, registryReadOnly},
		{"Device identities", "a status reason has up to 128 characters", registryPage, registryReason},
		{"Device identities", "creation and deletion can be repeated by a client that checks for conflicts", registryErrorsPage, registryRepeats},

		{"Conditional changes", "an update with the device's ETag makes another", registryPut, registryUpdateETag},
		{"Conditional changes", "an asterisk matches every version", registryPut, registryUpdateAny},
		{"Conditional changes", "another ETag is refused with 412001", registryPut, registryUpdateStale},
		{"Conditional changes", "an update of an unknown device is 404001", registryPut, registryUpdateUnknown},
		{"Conditional changes", "a deletion with another ETag is refused with 412001", registryDelete, registryDeleteStale},
		{"Conditional changes", "a deletion needs a condition", registryDelete, registryDeleteAlways},

		{"Disabled devices", "disabling ends an MQTT connection", registryPage, registryDisableMQTT},
		{"Disabled devices", "disabling ends an AMQP connection", registryPage, registryDisableAMQP},
		{"Disabled devices", "a disabled device can't connect over MQTT", registryPage, registryDisabledMQTT},
		{"Disabled devices", "a disabled device can't connect over AMQP", registryPage, registryDisabledAMQP},
		{"Disabled devices", "a disabled device can't send over HTTPS", registryPage, registryDisabledHTTPS},
		{"Disabled devices", "an enabled device can connect again", registryPage, registryEnable},
		{"Disabled devices", "the time of the last change of status is kept", registryPage, registryStatusTime},
		{"Disabled devices", "deletion ends a connection", registryPage, registryDeleteConnected},

		{"Connection state", "it follows an MQTT connection", registryPage, registryStateMQTT},
		{"Connection state", "it follows an AMQP connection", registryPage, registryStateAMQP},
		{"Connection state", "HTTPS doesn't change it", registryPage, registryStateHTTPS},
		{"Connection state", "last activity follows messages", registryPage, registryActivity},
		{"Connection state", "the count of waiting messages follows the queue", registryPut, registryMessageCount},

		{"Lists and statistics", "a list has up to the number asked for", registryList, registryLists},
		{"Lists and statistics", "a list has at most 1000 devices", registryList, registryListBounds},
		{"Lists and statistics", "devices are counted by status and connection", registryStatistics, registryCounts},

		{"Bulk operations", "100 devices are made at once", registryBulk, registryBulkCreate},
		{"Bulk operations", "what fails doesn't keep the rest from succeeding", registryBulk, registryBulkPartly},
		{"Bulk operations", "more than 100 are refused", registryBulk, registryBulkTooMany},
		{"Bulk operations", "a device is changed or deleted on condition", registryBulkModes, registryBulkConditions},
		{"Bulk operations", "modules are made and deleted", registryBulkModes, registryBulkModules},
		{"Bulk operations", "twins are written", registryBulkModes, registryBulkTwins},

		{"Module identities", "a module is made, changed, listed and deleted", registryModules, registryModuleLife},
		{"Module identities", "errors tell modules from devices", registryErrorCodes, registryModuleErrors},
		{"Module identities", "a device has up to 50 modules", registryQuotasPage, registryModuleLimit},
		{"Module identities", "a module connects beside its device", registryPage, registryModuleConnects},
		{"Module identities", "a module goes with its device", registryPage, registryModuleGoes},
		{"Module identities", "a module of a disabled device can't connect", registryPage, registryModuleDisabled},

		{"Scheduled jobs", "a twin update reaches the devices of its condition", registryJobPut, registryJobTwins},
		{"Scheduled jobs", "a direct method reaches devices, and each answer is kept", registryJobPut, registryJobMethod},
		{"Scheduled jobs", "a job of the future can be cancelled", registryJobs, registryJobCancel},
		{"Scheduled jobs", "an ID that is taken is refused", registryErrorCodes, registryJobConflict},
		{"Scheduled jobs", "an unknown job is 404002", registryErrorCodes, registryJobUnknown},
		{"Scheduled jobs", "jobs are found by type and status", registryJobs, registryJobList},
		{"Scheduled jobs", "a job of another type is refused", registryJobPut, registryJobType},

		{"Purge of waiting messages", "it says how many there were", registryPurge, registryPurges},
	},
	refused: []behaviour{
		{"Import and export with blobs", "a job is refused with 501", "IoT Hub REST API: Jobs - Create Import Export Job",
			registryRefuses(http.MethodPost, "/jobs/create", map[string]any{"type": "export"})},
		{"Import and export with blobs", "a list of jobs is refused with 501", "IoT Hub REST API: Jobs - Get Import Export Jobs",
			registryRefuses(http.MethodGet, "/jobs", nil)},
		{"Configurations", "one can't be made", "IoT Hub REST API: Configuration - Create Or Update",
			registryRefuses(http.MethodPut, "/configurations/one", map[string]any{"id": "one"})},
		{"Configurations", "none can be applied to an edge device", "IoT Hub REST API: Configuration - Apply On Edge Device",
			registryRefuses(http.MethodPost, "/devices/edge/applyConfigurationContent", map[string]any{"modulesContent": map[string]any{}})},
		{"Digital twins", "one can't be read", "IoT Hub REST API: Digital Twin - Get Digital Twin",
			registryRefuses(http.MethodGet, "/digitaltwins/thermostat", nil)},
	},
}

// registryRefuses is the case of a request that the emulator has no answer to.
func registryRefuses(method, path string, body any) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		a := w.must(w.rest(method, path, body), http.StatusNotImplemented)
		if !strings.Contains(string(a.body), "not emulated") {
			t.Errorf("the refusal doesn't say why: %s", a.body)
		}
	}
}

// registryUpdate changes an identity as the SDKs do: with all of it, as it was
// read.
func registryUpdate(w *world, d device, match string, change map[string]any) answer {
	w.t.Helper()
	whole := w.registered(d)
	maps.Copy(whole, change)
	return w.rest(http.MethodPut, d.path(""), whole, "If-Match: "+match)
}

// registrySetStatus enables or disables a device.
func registrySetStatus(w *world, d device, status string) {
	w.t.Helper()
	w.must(registryUpdate(w, d, "*", map[string]any{"status": status}), http.StatusOK)
}

func registryGeneratesKeys(t *testing.T, w *world) {
	d := w.newDevice("d")
	for _, key := range []string{d.primary, d.secondary} {
		if secret, err := base64.StdEncoding.DecodeString(key); err != nil || len(secret) < 16 || len(secret) > 64 {
			t.Errorf("key of %d bytes, %v", len(secret), err)
		}
	}
	if d.primary == d.secondary || d.primary == w.newDevice("e").primary {
		t.Error("two keys are the same")
	}
	w.check("type", at(w.registered(d), "authentication", "type"), "sas")
}

func registryKeepsKeys(_ *testing.T, w *world) {
	first, second := base64.StdEncoding.EncodeToString(make([]byte, 16)), base64.StdEncoding.EncodeToString(make([]byte, 64))
	keys := map[string]any{"primaryKey": first, "secondaryKey": second}
	d := w.newDeviceOf(map[string]any{"deviceId": "d", "authentication": map[string]any{"type": "sas", "symmetricKey": keys}})
	w.check("keys", []string{d.primary, d.secondary}, []string{first, second})
	w.check("keys that are read", at(w.registered(d), "authentication", "symmetricKey"), keys)
}

func registryChecksKeys(_ *testing.T, w *world) {
	for _, key := range []string{
		base64.StdEncoding.EncodeToString(make([]byte, 15)),
		base64.StdEncoding.EncodeToString(make([]byte, 65)),
		"no base64 at all!",
	} {
		keys := map[string]any{"primaryKey": key, "secondaryKey": key}
		a := w.rest(http.MethodPut, "/devices/d", map[string]any{"deviceId": "d", "authentication": map[string]any{"symmetricKey": keys}})
		w.must(a, http.StatusBadRequest)
	}
	w.must(w.rest(http.MethodGet, "/devices/d", nil), http.StatusNotFound)
}

func registryNewDevice(t *testing.T, w *world) {
	d := w.registered(w.newDevice("d"))
	for field, want := range map[string]any{
		"deviceId": "d", "status": "enabled", "statusReason": nil, "connectionState": "Disconnected",
		"cloudToDeviceMessageCount": 0, "capabilities": map[string]any{"iotEdge": false},
	} {
		w.check(field, d[field], want)
	}
	for _, field := range []string{"connectionStateUpdatedTime", "lastActivityTime"} {
		if got := fmt.Sprint(d[field]); !strings.HasPrefix(got, "0001-01-01T00:00:00") {
			t.Errorf("%s: %s", field, got)
		}
	}
	if d["generationId"] == "" || d["etag"] == "" {
		t.Errorf("no generation or no ETag: %v", d)
	}
	a := w.rest(http.MethodGet, "/devices/d", nil)
	w.check("header ETag", a.header.Get("ETag"), fmt.Sprintf("%q", d["etag"]))
}

func registryConflict(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.refuses(w.rest(http.MethodPut, d.path(""), map[string]any{"deviceId": "d"}), http.StatusConflict, "DeviceAlreadyExists")
	w.check("key after the conflict", at(w.registered(d), "authentication", "symmetricKey", "primaryKey"), d.primary)
}

func registryUnknown(t *testing.T, w *world) {
	w.refuses(w.rest(http.MethodGet, "/devices/nobody", nil), http.StatusNotFound, "DeviceNotFound")
	w.refuses(w.rest(http.MethodDelete, "/devices/nobody", nil, "If-Match: *"), http.StatusNotFound, "DeviceNotFound")
	if _, err := w.service().GetDevice(w.ctx(), "nobody"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("client: %v", err)
	}
}

func registryCase(t *testing.T, w *world) {
	lower, upper := w.newDevice("device"), w.newDevice("Device")
	if lower.primary == upper.primary {
		t.Error("two devices with one key")
	}
	w.check("ID", w.registered(upper)["deviceId"], "Device")
}

// registrySpecial are the characters of IDs beside letters and digits.
const registrySpecial = "-:.+%_#*?!(),=@;$'"

func registryIDs(_ *testing.T, w *world) {
	for _, id := range []string{"a", strings.Repeat("x", 128), "A9" + registrySpecial, "%41", "factory::job-1"} {
		d := w.newDevice(id)
		w.check("ID", w.registered(d)["deviceId"], id)
		w.mqtt(d, nil).Disconnect(0)
	}
}

func registryBadIDs(_ *testing.T, w *world) {
	for _, id := range []string{strings.Repeat("x", 129), "a b", "ü", "a\"b", "a\\b", "a&b", "a<b", "a{b}"} {
		d := device{id: id}
		w.must(w.rest(http.MethodPut, d.path(""), map[string]any{"deviceId": id}), http.StatusBadRequest)
	}
}

func registryOtherID(_ *testing.T, w *world) {
	w.refuses(w.rest(http.MethodPut, "/devices/d", map[string]any{"deviceId": "e"}), http.StatusBadRequest, "ArgumentInvalid")
}

func registryDeletes(_ *testing.T, w *world) {
	d := w.newDevice("d")
	a := w.must(w.rest(http.MethodDelete, d.path(""), nil, "If-Match: *"), http.StatusNoContent)
	w.check("body", len(a.body), 0)
	w.refuses(w.rest(http.MethodGet, d.path(""), nil), http.StatusNotFound, "DeviceNotFound")
	registryRefusedMQTT(w, d)
}

func registryGeneration(t *testing.T, w *world) {
	d := w.newDevice("d")
	first := w.registered(d)["generationId"]
	w.must(w.rest(http.MethodDelete, d.path(""), nil, "If-Match: *"), http.StatusNoContent)
	again := w.newDevice("d")
	if second := w.registered(again)["generationId"]; second == first {
		t.Errorf("both have generation %v", first)
	}
	registryRefusedMQTT(w, d) // by the key of the first
	w.mqtt(again, nil)
}

func registryReadOnly(_ *testing.T, w *world) {
	d := w.newDevice("d")
	before := w.registered(d)
	w.must(registryUpdate(w, d, "*", map[string]any{
		"generationId": "1", "etag": "x", "connectionState": "Connected", "cloudToDeviceMessageCount": 7,
		"lastActivityTime": "2020-01-01T00:00:00Z", "unheardOf": true,
	}), http.StatusOK)
	after := w.registered(d)
	for _, field := range []string{"generationId", "connectionState", "cloudToDeviceMessageCount", "lastActivityTime", "unheardOf"} {
		w.check(field, after[field], before[field])
	}
}

func registryReason(_ *testing.T, w *world) {
	d := w.newDevice("d")
	longest := strings.Repeat("é", 128)
	w.must(registryUpdate(w, d, "*", map[string]any{"status": "disabled", "statusReason": longest}), http.StatusOK)
	w.check("reason", w.registered(d)["statusReason"], longest)
	w.must(registryUpdate(w, d, "*", map[string]any{"statusReason": longest + "é"}), http.StatusBadRequest)
}

func registryRepeats(t *testing.T, w *world) {
	c := w.service()
	for i, want := range []bool{true, false} {
		if created, err := c.EnsureDevice(w.ctx(), "d"); err != nil || created != want {
			t.Errorf("creation %d: %v, %v", i, created, err)
		}
	}
	if got, err := c.GetDevice(w.ctx(), "d"); err != nil || got.ID != "d" {
		t.Errorf("device %+v, %v", got, err)
	}
	for i, want := range []bool{true, false} {
		if existed, err := c.DeleteDevice(w.ctx(), "d"); err != nil || existed != want {
			t.Errorf("deletion %d: %v, %v", i, existed, err)
		}
	}
}

func registryUpdateETag(t *testing.T, w *world) {
	d := w.newDevice("d")
	before := w.registered(d)["etag"]
	after := w.must(registryUpdate(w, d, fmt.Sprintf("%q", before), map[string]any{"status": "disabled"}), http.StatusOK).object(t)
	w.check("status", after["status"], "disabled")
	if after["etag"] == before {
		t.Errorf("the ETag is still %v", before)
	}
	w.check("keys", at(after, "authentication", "symmetricKey", "primaryKey"), d.primary)
}

func registryUpdateAny(_ *testing.T, w *world) {
	d := w.newDevice("d")
	// Some SDKs put quotes around it.
	for i, match := range []string{"*", `"*"`} {
		reason := fmt.Sprint("change ", i)
		w.must(registryUpdate(w, d, match, map[string]any{"statusReason": reason}), http.StatusOK)
		w.check("reason", w.registered(d)["statusReason"], reason)
	}
}

func registryUpdateStale(_ *testing.T, w *world) {
	d := w.newDevice("d")
	stale := fmt.Sprintf("%q", w.registered(d)["etag"])
	w.must(registryUpdate(w, d, stale, map[string]any{"statusReason": "first"}), http.StatusOK)
	w.refuses(registryUpdate(w, d, stale, map[string]any{"statusReason": "second"}), http.StatusPreconditionFailed, "PreconditionFailed")
	w.check("reason", w.registered(d)["statusReason"], "first")
}

func registryUpdateUnknown(_ *testing.T, w *world) {
	body := map[string]any{"deviceId": "nobody"}
	w.refuses(w.rest(http.MethodPut, "/devices/nobody", body, "If-Match: *"), http.StatusNotFound, "DeviceNotFound")
}

func registryDeleteStale(_ *testing.T, w *world) {
	d := w.newDevice("d")
	stale := fmt.Sprintf("If-Match: %q", w.registered(d)["etag"])
	registrySetStatus(w, d, "disabled")
	w.refuses(w.rest(http.MethodDelete, d.path(""), nil, stale), http.StatusPreconditionFailed, "PreconditionFailed")
	current := fmt.Sprintf("If-Match: %q", w.registered(d)["etag"])
	w.must(w.rest(http.MethodDelete, d.path(""), nil, current), http.StatusNoContent)
}

func registryDeleteAlways(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.must(w.rest(http.MethodDelete, d.path(""), nil), http.StatusBadRequest)
	w.registered(d)
}

// registryRefusedMQTT connects in vain.
func registryRefusedMQTT(w *world, d device) {
	w.t.Helper()
	if _, err := w.tryMQTT(d, nil); !errors.Is(err, packets.ErrorRefusedNotAuthorised) {
		w.t.Errorf("connection of %s: %v", d.id, err)
	}
}

func registryDisableMQTT(_ *testing.T, w *world) {
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	registrySetStatus(w, d, "disabled")
	c.dropped()
}

func registryDisableAMQP(t *testing.T, w *world) {
	d := w.newDevice("d")
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	registrySetStatus(w, d, "disabled")
	if _, err := r.Receive(w.ctx(), nil); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the link goes on: %v", err)
	}
}

func registryDisabled(w *world) device {
	w.t.Helper()
	return w.newDeviceOf(map[string]any{"deviceId": "d", "status": "disabled"})
}

func registryDisabledMQTT(_ *testing.T, w *world) { registryRefusedMQTT(w, registryDisabled(w)) }

func registryDisabledAMQP(t *testing.T, w *world) {
	d := registryDisabled(w)
	resource := w.resource(d.identity())
	session := w.amqp(nil, nil)
	err := w.putToken(session, resource, w.deviceToken(d))
	if err == nil {
		_, err = session.NewSender(w.ctx(), d.path("/messages/events"), nil)
	}
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a link was attached: %v", err)
	}
}

func registryDisabledHTTPS(_ *testing.T, w *world) {
	d := registryDisabled(w)
	a := w.restAs(w.deviceToken(d), http.MethodPost, d.path("/messages/events"), []byte("x"))
	w.must(a, http.StatusUnauthorized)
}

func registryEnable(_ *testing.T, w *world) {
	d := registryDisabled(w)
	registryRefusedMQTT(w, d)
	registrySetStatus(w, d, "enabled")
	w.mqtt(d, nil)
}

func registryStatusTime(t *testing.T, w *world) {
	d := w.newDevice("d")
	registrySetStatus(w, d, "disabled")
	first := w.registered(d)["statusUpdatedTime"]
	w.must(registryUpdate(w, d, "*", map[string]any{"capabilities": map[string]any{"iotEdge": true}}), http.StatusOK)
	w.check("time after another change", w.registered(d)["statusUpdatedTime"], first)
	registrySetStatus(w, d, "enabled")
	if second := w.registered(d)["statusUpdatedTime"]; second == first {
		t.Errorf("time is still %v", first)
	}
}

func registryDeleteConnected(_ *testing.T, w *world) {
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	w.must(w.rest(http.MethodDelete, d.path(""), nil, "If-Match: *"), http.StatusNoContent)
	c.dropped()
}

// registryAwait waits until a field of the identity has a value.
func registryAwait(w *world, d device, field string, want any) map[string]any {
	w.t.Helper()
	var last map[string]any
	w.eventually(fmt.Sprintf("%s is %v", field, want), func() bool {
		last = w.registered(d)
		return fmt.Sprint(last[field]) == fmt.Sprint(want)
	})
	return last
}

func registryStateMQTT(t *testing.T, w *world) {
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	since := registryAwait(w, d, "connectionState", "Connected")["connectionStateUpdatedTime"]
	c.Disconnect(0)
	if until := registryAwait(w, d, "connectionState", "Disconnected")["connectionStateUpdatedTime"]; until == since {
		t.Errorf("both changes were at %v", since)
	}
}

func registryStateAMQP(t *testing.T, w *world) {
	d := w.newDevice("d")
	session := w.amqpDevice(d)
	sender := w.sender(session, d.path("/messages/events"), nil)
	registryAwait(w, d, "connectionState", "Connected")
	if err := sender.Close(w.ctx()); err != nil {
		t.Fatal(err)
	}
	registryAwait(w, d, "connectionState", "Disconnected")
}

func registryStateHTTPS(_ *testing.T, w *world) {
	d := w.newDevice("d")
	w.must(w.restAs(w.deviceToken(d), http.MethodPost, d.path("/messages/events"), []byte("x")), http.StatusNoContent)
	w.check("state", w.registered(d)["connectionState"], "Disconnected")
}

func registryActivity(t *testing.T, w *world) {
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	connected := w.registered(d)["lastActivityTime"]
	if strings.HasPrefix(fmt.Sprint(connected), "0001") {
		t.Fatal("no activity after connecting")
	}
	c.publish("devices/d/messages/events/", 1, "x")
	if sent := w.registered(d)["lastActivityTime"]; fmt.Sprint(sent) <= fmt.Sprint(connected) {
		t.Errorf("last activity %v after %v", sent, connected)
	}
}

func registryMessageCount(_ *testing.T, w *world) {
	d := w.newDevice("d")
	registrySend(w, d, 3)
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 3)
	c := w.mqtt(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	registryAwait(w, d, "cloudToDeviceMessageCount", 0)
}

// registrySend sends cloud-to-device messages.
func registrySend(w *world, d device, n int) {
	w.t.Helper()
	session := w.amqpService("service")
	for i := range n {
		if err := w.sendC2D(session, d, fmt.Sprint("m", i), "x", ""); err != nil {
			w.t.Fatal(err)
		}
	}
}

func registryLists(t *testing.T, w *world) {
	for i := range 5 {
		w.newDevice(fmt.Sprint("d", i))
	}
	var all, some []map[string]any
	w.must(w.rest(http.MethodGet, "/devices", nil), http.StatusOK).decode(t, &all)
	w.must(w.rest(http.MethodGet, "/devices?top=2", nil), http.StatusOK).decode(t, &some)
	w.check("devices", len(all), 5)
	w.check("top", len(some), 2)
	for _, d := range all {
		if at(d, "authentication", "symmetricKey", "primaryKey") == nil {
			t.Errorf("no key: %v", d)
		}
	}
}

func registryListBounds(_ *testing.T, w *world) {
	w.must(w.rest(http.MethodGet, "/devices?top=1000", nil), http.StatusOK)
	for _, top := range []string{"0", "-1", "1001", "many"} {
		w.must(w.rest(http.MethodGet, "/devices?top="+top, nil), http.StatusBadRequest)
	}
}

func registryCounts(t *testing.T, w *world) {
	c := w.mqtt(w.newDevice("a"), nil)
	w.newDevice("b")
	w.newDeviceOf(map[string]any{"deviceId": "c", "status": "disabled"})
	got, err := w.service().Statistics(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	w.check("total, enabled, disabled, connected", []int{got.Total, got.Enabled, got.Disabled, got.Connected}, []int{3, 2, 1, 1})
	c.Disconnect(0)
	w.eventually("nobody is connected", func() bool {
		count := w.must(w.rest(http.MethodGet, "/statistics/service", nil), http.StatusOK).object(t)
		return count["connectedDeviceCount"] == 0.0
	})
}

// registryOutcome is a BulkRegistryOperationResult.
type registryOutcome struct {
	IsSuccessful bool
	Errors       []struct {
		DeviceID, ModuleID, ErrorStatus string
		ErrorCode                       any
	}
}

// registryChangeMany makes a bulk request. It answers 200 or 400, depending on
// whether all of it succeeded, with the result.
func registryChangeMany(w *world, items ...map[string]any) registryOutcome {
	w.t.Helper()
	a := w.rest(http.MethodPost, "/devices", items)
	var o registryOutcome
	a.decode(w.t, &o)
	want := http.StatusBadRequest
	if o.IsSuccessful {
		want = http.StatusOK
	}
	w.must(a, want)
	return o
}

// failed returns whose items failed.
func (o registryOutcome) failed() []string {
	var ids []string
	for _, e := range o.Errors {
		ids = append(ids, strings.TrimSuffix(e.DeviceID+"/"+e.ModuleID, "/"))
	}
	return ids
}

func registryBulkCreate(_ *testing.T, w *world) {
	items := make([]map[string]any, 100)
	for i := range items {
		items[i] = map[string]any{"id": fmt.Sprintf("d%03d", i), "importMode": "create", "status": "enabled"}
	}
	w.check("result", registryChangeMany(w, items...), registryOutcome{IsSuccessful: true})
	w.check("devices", w.must(w.rest(http.MethodGet, "/statistics/devices", nil), 200).object(w.t)["totalDeviceCount"], 100)
	if at(w.registered(device{id: "d099"}), "authentication", "symmetricKey", "primaryKey") == nil {
		w.t.Error("a device has no key")
	}
}

func registryBulkPartly(t *testing.T, w *world) {
	w.newDevice("taken")
	got := registryChangeMany(w,
		map[string]any{"id": "new", "importMode": "create"},
		map[string]any{"id": "taken", "importMode": "create"},
		map[string]any{"id": "nobody", "importMode": "delete"},
		map[string]any{"id": "not an ID", "importMode": "create"},
	)
	w.check("failed", got.failed(), []string{"taken", "nobody", "not an ID"})
	for _, e := range got.Errors {
		if e.ErrorCode == nil || e.ErrorStatus == "" {
			t.Errorf("error without reason: %+v", e)
		}
	}
	w.registered(device{id: "new"})
}

func registryBulkTooMany(t *testing.T, w *world) {
	items := make([]map[string]any, 101)
	for i := range items {
		items[i] = map[string]any{"id": fmt.Sprint("d", i), "importMode": "create"}
	}
	if a := w.rest(http.MethodPost, "/devices", items); a.status/100 != 4 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	w.check("devices", w.must(w.rest(http.MethodGet, "/statistics/devices", nil), 200).object(t)["totalDeviceCount"], 0)
}

func registryBulkConditions(_ *testing.T, w *world) {
	a, b := w.newDevice("a"), w.newDevice("b")
	got := registryChangeMany(w,
		map[string]any{"id": "a", "importMode": "updateIfMatchETag", "eTag": w.registered(a)["etag"], "status": "disabled"},
		map[string]any{"id": "b", "importMode": "updateIfMatchETag", "eTag": "AAAA", "status": "disabled"},
	)
	w.check("failed", got.failed(), []string{"b"})
	w.check("status", []any{w.registered(a)["status"], w.registered(b)["status"]}, []any{"disabled", "enabled"})
	got = registryChangeMany(w,
		map[string]any{"id": "a", "importMode": "delete"},
		map[string]any{"id": "b", "importMode": "deleteIfMatchETag", "eTag": "AAAA"},
	)
	w.check("failed", got.failed(), []string{"b"})
	w.must(w.rest(http.MethodGet, a.path(""), nil), http.StatusNotFound)
	w.registered(b)
}

func registryBulkModules(_ *testing.T, w *world) {
	w.newDevice("d")
	w.check("creation", registryChangeMany(w,
		map[string]any{"id": "d", "moduleId": "one", "importMode": "create"},
		map[string]any{"id": "d", "moduleId": "two", "importMode": "create"},
	).IsSuccessful, true)
	got := registryChangeMany(w,
		map[string]any{"id": "d", "moduleId": "one", "importMode": "delete"},
		map[string]any{"id": "d", "moduleId": "three", "importMode": "delete"},
	)
	w.check("failed", got.failed(), []string{"d/three"})
	w.check("modules", registryModuleIDs(w, "d"), []string{"two"})
}

func registryBulkTwins(_ *testing.T, w *world) {
	w.newDevice("old")
	content := func(id, mode string) map[string]any {
		return map[string]any{
			"id": id, "importMode": mode,
			"tags": map[string]any{"room": 1}, "properties": map[string]any{"desired": map[string]any{"speed": 2}},
		}
	}
	w.check("success", registryChangeMany(w, content("old", "updateTwin"), content("new", "create")).IsSuccessful, true)
	for _, id := range []string{"old", "new"} {
		twin := w.must(w.rest(http.MethodGet, "/twins/"+id, nil), http.StatusOK).object(w.t)
		w.check("tag", at(twin, "tags", "room"), 1)
		w.check("desired property", at(twin, "properties", "desired", "speed"), 2)
	}
}

// registryModuleIDs lists the modules of a device.
func registryModuleIDs(w *world, deviceID string) []string {
	w.t.Helper()
	var all []struct{ ModuleID string }
	w.must(w.rest(http.MethodGet, "/devices/"+deviceID+"/modules", nil), http.StatusOK).decode(w.t, &all)
	var ids []string
	for _, m := range all {
		ids = append(ids, m.ModuleID)
	}
	return ids
}

func registryModuleLife(t *testing.T, w *world) {
	d := w.newDevice("d")
	m := w.newModule(d, "camera")
	made := w.must(w.rest(http.MethodGet, m.path(""), nil), http.StatusOK).object(t)
	for field, want := range map[string]any{"deviceId": "d", "moduleId": "camera", "connectionState": "Disconnected"} {
		w.check(field, made[field], want)
	}
	if m.key == "" || m.key == d.primary {
		t.Error("the module has no key of its own")
	}
	made["managedBy"] = "operator"
	changed := w.must(w.rest(http.MethodPut, m.path(""), made, fmt.Sprintf("If-Match: %q", made["etag"])), http.StatusOK).object(t)
	w.check("managedBy", changed["managedBy"], "operator")
	w.refuses(w.rest(http.MethodPut, m.path(""), made, fmt.Sprintf("If-Match: %q", made["etag"])), http.StatusPreconditionFailed, "PreconditionFailed")
	w.newModule(d, "lamp")
	w.check("modules", registryModuleIDs(w, "d"), []string{"camera", "lamp"})
	w.must(w.rest(http.MethodDelete, m.path(""), nil, "If-Match: *"), http.StatusNoContent)
	w.check("modules", registryModuleIDs(w, "d"), []string{"lamp"})
}

func registryModuleErrors(_ *testing.T, w *world) {
	m := w.newModule(w.newDevice("d"), "camera")
	body := map[string]any{"deviceId": "d", "moduleId": "camera"}
	w.refuses(w.rest(http.MethodPut, m.path(""), body), http.StatusConflict, "ModuleAlreadyExistsOnDevice")
	w.refuses(w.rest(http.MethodGet, "/devices/d/modules/lamp", nil), http.StatusNotFound, "ModuleNotFound")
	w.refuses(w.rest(http.MethodGet, "/devices/nobody/modules/camera", nil), http.StatusNotFound, "DeviceNotFound")
	w.refuses(w.rest(http.MethodPut, "/devices/nobody/modules/camera", map[string]any{}), http.StatusNotFound, "DeviceNotFound")
	w.must(w.rest(http.MethodPut, "/devices/d/modules/a%20b", map[string]any{}), http.StatusBadRequest)
}

func registryModuleLimit(_ *testing.T, w *world) {
	d := w.newDevice("d")
	items := make([]map[string]any, 50)
	for i := range items {
		items[i] = map[string]any{"id": d.id, "moduleId": fmt.Sprint("m", i), "importMode": "create"}
	}
	w.check("success", registryChangeMany(w, items...).IsSuccessful, true)
	w.refuses(w.rest(http.MethodPut, "/devices/d/modules/more", map[string]any{}), http.StatusRequestEntityTooLarge, "TooManyModulesOnDevice")
}

func registryModuleConnects(_ *testing.T, w *world) {
	d := w.newDevice("d")
	m := w.newModule(d, "camera")
	state := func() any {
		return w.must(w.rest(http.MethodGet, m.path(""), nil), http.StatusOK).object(w.t)["connectionState"]
	}
	own := w.mqtt(d, nil)
	module := w.mqttAs(m)
	w.check("states", []any{state(), w.registered(d)["connectionState"]}, []any{"Connected", "Connected"})
	module.Disconnect(0)
	w.eventually("the module is disconnected", func() bool { return state() == "Disconnected" })
	own.publish("devices/d/messages/events/", 1, "still here")
}

func registryModuleGoes(_ *testing.T, w *world) {
	d := w.newDevice("d")
	m := w.newModule(d, "camera")
	c := w.mqttAs(m)
	w.must(w.rest(http.MethodDelete, d.path(""), nil, "If-Match: *"), http.StatusNoContent)
	c.dropped()
	w.newDevice("d")
	w.check("modules", len(registryModuleIDs(w, "d")), 0)
}

func registryModuleDisabled(t *testing.T, w *world) {
	d := w.newDevice("d")
	m := w.newModule(d, "camera")
	c := w.mqttAs(m)
	registrySetStatus(w, d, "disabled")
	c.dropped()
	if _, err := w.tryMQTT(d, w.asIdentity(m)); !errors.Is(err, packets.ErrorRefusedNotAuthorised) {
		t.Errorf("connection: %v", err)
	}
}

// registryJob creates a job.
func registryJob(w *world, id string, description map[string]any) map[string]any {
	w.t.Helper()
	description["jobId"] = id
	return w.must(w.rest(http.MethodPut, "/jobs/v2/"+id, description), http.StatusOK).object(w.t)
}

// registryJobEnd waits until a job has a status.
func registryJobEnd(w *world, id, status string) map[string]any {
	w.t.Helper()
	var last map[string]any
	w.eventually("job "+id+" is "+status, func() bool {
		last = w.must(w.rest(http.MethodGet, "/jobs/v2/"+id, nil), http.StatusOK).object(w.t)
		return last["status"] == status
	})
	return last
}

// registryOnDevices is what became of a job on each device.
func registryOnDevices(w *world, id string) []map[string]any {
	w.t.Helper()
	query := map[string]any{"query": "SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '" + id + "'"}
	a := w.must(w.rest(http.MethodPost, "/devices/query", query), http.StatusOK)
	w.check("item type", a.header.Get("x-ms-item-type"), "deviceJob")
	var found []map[string]any
	a.decode(w.t, &found)
	return found
}

func registryTwinJob(condition string) map[string]any {
	return map[string]any{
		"type": "scheduleUpdateTwin", "queryCondition": condition, "maxExecutionTimeInSeconds": 60,
		"updateTwin": map[string]any{"etag": "*", "tags": map[string]any{"done": true}, "properties": map[string]any{"desired": map[string]any{"speed": 3}}},
	}
}

func registryJobTwins(t *testing.T, w *world) {
	for _, id := range []string{"a", "b", "c"} {
		w.newDevice(id)
	}
	w.check("answer", registryJob(w, "j", registryTwinJob("deviceId IN ['a', 'b']"))["jobId"], "j")
	done := registryJobEnd(w, "j", "completed")
	w.check("type", done["type"], "scheduleUpdateTwin")
	w.check("statistics", done["deviceJobStatistics"], map[string]any{
		"deviceCount": 2, "failedCount": 0, "succeededCount": 2, "runningCount": 0, "pendingCount": 0,
	})
	for id, want := range map[string]any{"a": 3.0, "b": 3.0, "c": nil} {
		twin := w.must(w.rest(http.MethodGet, "/twins/"+id, nil), http.StatusOK).object(t)
		w.check("desired property of "+id, at(twin, "properties", "desired", "speed"), want)
	}
	var devices []any
	for _, d := range registryOnDevices(w, "j") {
		devices = append(devices, d["deviceId"], d["status"], d["jobType"])
	}
	w.check("devices", devices, []any{"a", "completed", "scheduleUpdateTwin", "b", "completed", "scheduleUpdateTwin"})
}

func registryJobMethod(_ *testing.T, w *world) {
	on, _ := w.newDevice("a-on"), w.newDevice("b-off")
	c := w.mqtt(on, nil)
	c.subscribe("$iothub/methods/POST/#", 0)
	registryJob(w, "j", map[string]any{
		"type": "scheduleDeviceMethod", "queryCondition": "*", "maxExecutionTimeInSeconds": 60,
		"cloudToDeviceMethod": map[string]any{"methodName": "reboot", "payload": map[string]any{"delay": 1}, "responseTimeoutInSeconds": 30},
	})
	request := c.receive("$iothub/methods/POST/reboot/")
	w.check("payload", string(request.Payload()), `{"delay":1}`)
	_, rid, _ := strings.Cut(request.Topic(), "?$rid=")
	c.publish("$iothub/methods/res/202/?$rid="+rid, 0, `"soon"`)
	done := registryJobEnd(w, "j", "completed")
	w.check("succeeded", at(done, "deviceJobStatistics", "succeededCount"), 1)
	w.check("failed", at(done, "deviceJobStatistics", "failedCount"), 1)
	devices := registryOnDevices(w, "j")
	w.check("answer", at(devices[0], "outcome", "deviceMethodResponse"), map[string]any{"status": 202, "payload": "soon"})
	w.check("offline device", devices[1]["status"], "failed")
}

func registryLaterJob() map[string]any {
	job := registryTwinJob("*")
	job["startTime"] = "2099-01-01T00:00:00Z"
	return job
}

func registryJobCancel(_ *testing.T, w *world) {
	w.newDevice("d")
	w.check("status", registryJob(w, "j", registryLaterJob())["status"], "scheduled")
	w.must(w.rest(http.MethodPost, "/jobs/v2/j/cancel", nil), http.StatusOK)
	registryJobEnd(w, "j", "cancelled")
}

func registryJobConflict(_ *testing.T, w *world) {
	registryJob(w, "j", registryLaterJob())
	w.refuses(w.rest(http.MethodPut, "/jobs/v2/j", registryLaterJob()), http.StatusConflict, "JobAlreadyExists")
}

func registryJobUnknown(_ *testing.T, w *world) {
	w.refuses(w.rest(http.MethodGet, "/jobs/v2/none", nil), http.StatusNotFound, "JobNotFound")
	w.refuses(w.rest(http.MethodPost, "/jobs/v2/none/cancel", nil), http.StatusNotFound, "JobNotFound")
}

func registryJobList(t *testing.T, w *world) {
	w.newDevice("d")
	registryJob(w, "later", registryLaterJob())
	registryJob(w, "now", registryTwinJob("*"))
	registryJobEnd(w, "now", "completed")
	for parameters, want := range map[string][]string{
		"":                               {"later", "now"},
		"jobStatus=scheduled":            {"later"},
		"jobStatus=completed":            {"now"},
		"jobType=scheduleUpdateTwin":     {"later", "now"},
		"jobType=scheduleDeviceMethod":   nil,
		"jobStatus=completed&pageSize=1": {"now"},
	} {
		var jobs []struct{ JobID string }
		w.must(w.rest(http.MethodGet, "/jobs/v2/query?"+parameters, nil), http.StatusOK).decode(t, &jobs)
		var ids []string
		for _, j := range jobs {
			ids = append(ids, j.JobID)
		}
		w.check("jobs with "+parameters, ids, want)
	}
	first := w.must(w.rest(http.MethodGet, "/jobs/v2/query?pageSize=1", nil), http.StatusOK)
	rest := w.must(w.rest(http.MethodGet, "/jobs/v2/query?pageSize=1", nil, "x-ms-continuation: "+first.header.Get("x-ms-continuation")), http.StatusOK)
	w.check("continuation of the last page", rest.header.Get("x-ms-continuation"), "")
}

func registryJobType(_ *testing.T, w *world) {
	for _, job := range []map[string]any{
		{"jobId": "j", "type": "scheduleNothing"},
		{"jobId": "j", "type": "scheduleUpdateTwin"},
		{"jobId": "j", "type": "scheduleDeviceMethod", "cloudToDeviceMethod": map[string]any{}},
	} {
		w.must(w.rest(http.MethodPut, "/jobs/v2/j", job), http.StatusBadRequest)
	}
}

func registryPurges(t *testing.T, w *world) {
	d := w.newDevice("d")
	registrySend(w, d, 3)
	for _, want := range []int{3, 0} {
		result := w.must(w.rest(http.MethodDelete, d.path("/commands"), nil), http.StatusOK).object(t)
		w.check("purged", result["totalMessagesPurged"], want)
		w.check("device", result["deviceId"], "d")
	}
	w.refuses(w.rest(http.MethodDelete, "/devices/nobody/commands", nil), http.StatusNotFound, "DeviceNotFound")
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 0)
}
