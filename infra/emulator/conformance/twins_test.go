package conformance_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// Where twins are documented.
const (
	twinsPage       = "IoT Hub docs: Understand and use device twins in IoT Hub"
	twinsModulePage = "IoT Hub docs: Understand and use module twins in IoT Hub"
	twinsPatchREST  = "IoT Hub REST API: Devices - Update Twin"
	twinsPutREST    = "IoT Hub REST API: Devices - Replace Twin"
	twinsMQTTPage   = "IoT Hub docs: Communicate with an IoT hub using the MQTT protocol"
	twinsErrorsPage = "IoT Hub REST API: IoT Hub API common error codes"
	twinsRoutesPage = "IoT Hub docs: Non-telemetry event schemas"
)

var twins = area{
	name: "Device twins",
	emulated: slices.Concat(
		twinsOf("Twins for services", "a new twin is empty", twinsPage, twinsNew),
		twinsOf("Twins for services", "a patch merges, and null deletes", twinsPatchREST, twinsPatch),
		twinsOf("Twins for services", "a part that a patch leaves out stays", twinsPatchREST, twinsParts),
		twinsOf("Twins for services", "a replacement leaves nothing of tags and desired properties", twinsPutREST, twinsReplace),
		twinsOf("Twins for services", "values come back as they were written", twinsPage, twinsValues),
		twinsOf("Twins for services", "a whole twin can be sent back", twinsPutREST, twinsSendBack),
		twinsOf("Twins for services", "a twin goes with its identity", twinsPage, twinsGone),
		[]behaviour{
			{"Twins for services", "a twin shows what the registry has", twinsPage, twinsIdentity},
			{"Twins for services", "a twin of nobody is 404001 or 404010", twinsErrorsPage, twinsUnknown},
		},

		twinsOf("Versions and metadata", "each write of desired properties has the next version", twinsPage, twinsVersions),
		twinsOf("Versions and metadata", "metadata has times at every level", twinsPage, twinsMetadata),
		twinsOf("Versions and metadata", "each write makes another ETag", twinsPage, twinsETag),
		twinsOf("Versions and metadata", "a write with the current ETag or an asterisk succeeds", twinsPage, twinsMatch),
		twinsOf("Versions and metadata", "a write with another ETag is refused with 412001", twinsPage, twinsMismatch),

		twinsSections("Limits of twins", "a name has no dot, dollar, space or control character", twinsNames),
		twinsSections("Limits of twins", "a name has up to 1 KB", twinsNameLength),
		twinsSections("Limits of twins", "a string has up to 4 KB", twinsStringLength),
		twinsSections("Limits of twins", "an integer has 53 bits", twinsIntegers),
		twinsSections("Limits of twins", "objects are up to 10 deep", twinsDepth),
		twinsSections("Limits of twins", "tags have 8 KB and properties 32 KB", twinsSize),
		twinsSections("Limits of twins", "a section is an object", twinsObject),
		[]behaviour{{"Limits of twins", "what is no JSON is refused", twinsErrorsPage, twinsNoJSON}},

		twinsOn("Twins for devices", "a device reads both kinds of properties, and no tags", twinsPage, twinsRead),
		twinsOn("Twins for devices", "a patch of reported properties merges, and null deletes", twinsPage, twinsReport),
		twinsOn("Twins for devices", "a bad patch is refused with 400 and changes nothing", twinsPage, twinsBadReport),
		twinsOn("Twins for devices", "answers go to their requests", twinsPage, twinsRequests),

		twinsOn("Desired property notifications", "a change comes as it was made, with its version", twinsPage, twinsNotify),
		twinsOn("Desired property notifications", "a replacement comes whole", twinsPage, twinsNotifyAll),
		twinsOn("Desired property notifications", "tags are no business of the device", twinsPage, twinsNotifyTags),
		twinsOn("Desired property notifications", "who doesn't ask gets none", twinsPage, twinsNotifyUnasked),
		twinsOn("Desired property notifications", "none are kept for who is away", twinsPage, twinsNotifyAway),

		[]behaviour{
			{"Twins for devices", "an answer before its subscription is lost", twinsMQTTPage, twinsUnanswered},
			{"Twins for devices", "a patch for another version is refused with 412", "azure-iot-sdk-java, MqttTwin.java", twinsReportVersion},
		},
	),
	refused: []behaviour{
		{"Routes of twin changes", "a configuration with one is refused", twinsRoutesPage, twinsRoute("TwinChangeEvents")},
		{"Routes of lifecycle events", "a configuration with one is refused", twinsRoutesPage, twinsRoute("DeviceLifecycleEvents")},
	},
}

// twinsOf makes a case for the twin of a device and one for that of a module.
func twinsOf(feature, says, source string, holds func(*world, identity)) []behaviour {
	moduleSource := source
	if source == twinsPage {
		moduleSource = twinsModulePage
	}
	return []behaviour{
		{feature, says + ", device", source, func(_ *testing.T, w *world) { holds(w, w.newIdentity("d")) }},
		{feature, says + ", module", moduleSource, func(_ *testing.T, w *world) { holds(w, w.newIdentity("d/camera")) }},
	}
}

// twinsGet reads a twin as a service.
func twinsGet(w *world, i identity) map[string]any {
	w.t.Helper()
	return w.must(w.rest(http.MethodGet, i.twinPath(""), nil), http.StatusOK).object(w.t)
}

// twinsSet patches a twin as a service. The text is JSON.
func twinsSet(w *world, i identity, patch string) map[string]any {
	w.t.Helper()
	return w.must(w.rest(http.MethodPatch, i.twinPath(""), []byte(patch)), http.StatusOK).object(w.t)
}

// twinsBare is a section without what the hub adds, as JSON.
func twinsBare(w *world, section any) string {
	w.t.Helper()
	values := make(map[string]any)
	object, _ := section.(map[string]any)
	for key, value := range object {
		if !strings.HasPrefix(key, "$") {
			values[key] = value
		}
	}
	text, err := json.Marshal(values)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// twinsCheck compares tags and properties with JSON.
func twinsCheck(w *world, i identity, tags, desired, reported string) {
	w.t.Helper()
	twin := twinsGet(w, i)
	w.check("tags", twinsBare(w, twin["tags"]), tags)
	w.check("desired properties", twinsBare(w, at(twin, "properties", "desired")), desired)
	w.check("reported properties", twinsBare(w, at(twin, "properties", "reported")), reported)
}

func twinsNew(w *world, i identity) {
	twinsCheck(w, i, `{}`, `{}`, `{}`)
	twin := twinsGet(w, i)
	w.check("device", twin["deviceId"], "d")
	if i.moduleID != "" {
		w.check("module", twin["moduleId"], i.moduleID)
	}
	for _, half := range []string{"desired", "reported"} {
		w.check("version", at(twin, "properties", half, "$version"), 1)
		if at(twin, "properties", half, "$metadata", "$lastUpdated") == nil {
			w.t.Errorf("%s properties have no time", half)
		}
	}
}

func twinsPatch(w *world, i identity) {
	twinsSet(w, i, `{"tags":{"site":{"room":1,"floor":2}},"properties":{"desired":{"a":{"b":1,"c":2},"d":"x"}}}`)
	answer := twinsSet(w, i, `{"tags":{"site":{"room":null,"door":3}},"properties":{"desired":{"a":{"c":[1,2]},"d":null,"e":true,"none":null}}}`)
	twinsCheck(w, i, `{"site":{"door":3,"floor":2}}`, `{"a":{"b":1,"c":[1,2]},"e":true}`, `{}`)
	w.check("answer", at(answer, "tags", "site", "door"), 3)
}

func twinsParts(w *world, i identity) {
	twinsSet(w, i, `{"tags":{"a":1},"properties":{"desired":{"b":2}}}`)
	twinsSet(w, i, `{"tags":{"c":3}}`)
	twinsSet(w, i, `{"properties":{"desired":{"d":4}}}`)
	twinsCheck(w, i, `{"a":1,"c":3}`, `{"b":2,"d":4}`, `{}`)
}

func twinsReplace(w *world, i identity) {
	twinsSet(w, i, `{"tags":{"a":1,"b":{"c":2}},"properties":{"desired":{"d":3,"e":{"f":4}}}}`)
	body := []byte(`{"tags":{"b":{"x":1}},"properties":{"desired":{"e":{"y":2}}}}`)
	w.must(w.rest(http.MethodPut, i.twinPath(""), body), http.StatusOK)
	twinsCheck(w, i, `{"b":{"x":1}}`, `{"e":{"y":2}}`, `{}`)
}

func twinsValues(w *world, i identity) {
	const values = `{"bool":false,"deep":{"er":{"est":"x"}},"empty":{},"float":-1.5,"int":42,"list":[1,"two",{"three":3},[]],"text":"Ünï ☃"}`
	twinsSet(w, i, `{"tags":`+values+`,"properties":{"desired":`+values+`}}`)
	twinsCheck(w, i, values, values, `{}`)
}

// twinsSendBack writes a twin as it was read, with all that the hub put into it.
func twinsSendBack(w *world, i identity) {
	twinsSet(w, i, `{"tags":{"a":1},"properties":{"desired":{"b":2}}}`)
	for _, method := range []string{http.MethodPatch, http.MethodPut} {
		w.must(w.rest(method, i.twinPath(""), twinsGet(w, i)), http.StatusOK)
		twinsCheck(w, i, `{"a":1}`, `{"b":2}`, `{}`)
	}
}

func twinsGone(w *world, i identity) {
	twinsSet(w, i, `{"tags":{"a":1}}`)
	w.must(w.rest(http.MethodDelete, i.path(""), nil, "If-Match: *"), http.StatusNoContent)
	w.must(w.rest(http.MethodGet, i.twinPath(""), nil), http.StatusNotFound)
	if i.moduleID == "" {
		w.newDevice(i.deviceID)
	} else {
		w.newModule(device{id: i.deviceID}, i.moduleID)
	}
	twinsCheck(w, i, `{}`, `{}`, `{}`)
}

func twinsIdentity(t *testing.T, w *world) {
	d := w.newDeviceOf(map[string]any{"deviceId": "d", "statusReason": "made for a test"})
	c := w.mqtt(d, nil)
	registrySend(w, d, 2)
	twin := twinsGet(w, d.identity())
	for field, want := range map[string]any{
		"status": "enabled", "statusReason": "made for a test", "connectionState": "Connected", "cloudToDeviceMessageCount": 2,
		"authenticationType": "sas", "x509Thumbprint": map[string]any{"primaryThumbprint": nil, "secondaryThumbprint": nil},
		"deviceEtag": w.registered(d)["etag"], "lastActivityTime": w.registered(d)["lastActivityTime"],
	} {
		w.check(field, twin[field], want)
	}
	for _, field := range []string{"generationId", "connectionStateUpdatedTime", "authentication"} {
		if value, there := twin[field]; there {
			t.Errorf("the twin shows %s: %v", field, value)
		}
	}
	c.Disconnect(0)
}

func twinsUnknown(_ *testing.T, w *world) {
	w.newDevice("d")
	for path, code := range map[string]string{"/twins/nobody": "DeviceNotFound", "/twins/d/modules/nothing": "ModuleNotFound"} {
		w.refuses(w.rest(http.MethodGet, path, nil), http.StatusNotFound, code)
		for _, method := range []string{http.MethodPatch, http.MethodPut} {
			w.refuses(w.rest(method, path, []byte(`{"tags":{"a":1}}`)), http.StatusNotFound, code)
		}
	}
}

// twinsVersion is $version of the desired or reported properties.
func twinsVersion(w *world, i identity, half string) int64 {
	w.t.Helper()
	version, _ := at(twinsGet(w, i), "properties", half, "$version").(float64)
	return int64(version)
}

func twinsVersions(w *world, i identity) {
	for n, patch := range []string{`{"a":1}`, `{"a":2}`, `{"a":null}`} {
		before := twinsGet(w, i)["version"].(float64)
		twinsSet(w, i, `{"properties":{"desired":`+patch+`}}`)
		w.check("version", twinsVersion(w, i, "desired"), n+2)
		if after := twinsGet(w, i)["version"].(float64); after <= before {
			w.t.Errorf("version of the twin: %v after %v", after, before)
		}
	}
	twinsSet(w, i, `{"tags":{"a":1}}`)
	w.check("version after a write of tags", twinsVersion(w, i, "desired"), 4)
	w.check("version of reported properties", twinsVersion(w, i, "reported"), 1)
}

func twinsMetadata(w *world, i identity) {
	metadata := func() any { return at(twinsSet(w, i, `{}`), "properties", "desired", "$metadata") }
	twinsSet(w, i, `{"properties":{"desired":{"a":{"b":1,"c":2},"d":3}}}`)
	first := metadata()
	for _, path := range [][]string{{}, {"a"}, {"a", "b"}, {"a", "c"}, {"d"}} {
		text, _ := at(first, append(path, "$lastUpdated")...).(string)
		if !strings.HasSuffix(text, "Z") || len(text) < len("2006-01-02T15:04:05Z") {
			w.t.Errorf("time of %v: %q", path, text)
		}
	}
	twinsSet(w, i, `{"properties":{"desired":{"a":{"b":null}}}}`)
	second := metadata()
	if at(second, "a", "b") != nil {
		w.t.Error("a deleted property has metadata")
	}
	for _, path := range [][]string{{"$lastUpdated"}, {"a", "$lastUpdated"}} {
		if at(second, path...) == at(first, path...) {
			w.t.Errorf("the time of %v doesn't show the deletion", path)
		}
	}
	for _, path := range [][]string{{"a", "c", "$lastUpdated"}, {"d", "$lastUpdated"}} {
		w.check("time of another property", at(second, path...), at(first, path...))
	}
}

func twinsETag(w *world, i identity) {
	seen := []any{twinsGet(w, i)["etag"]}
	for _, patch := range []string{`{"tags":{"a":1}}`, `{"properties":{"desired":{"a":1}}}`, `{"tags":{"a":2}}`} {
		etag := twinsSet(w, i, patch)["etag"]
		if slices.Contains(seen, etag) {
			w.t.Errorf("ETag %v after %s was there before", etag, patch)
		}
		seen = append(seen, etag)
		a := w.rest(http.MethodGet, i.twinPath(""), nil)
		w.check("header ETag", a.header.Get("ETag"), fmt.Sprintf("%q", etag))
	}
}

func twinsMatch(w *world, i identity) {
	for n, method := range []string{http.MethodPatch, http.MethodPut} {
		for _, match := range []string{fmt.Sprintf("%q", twinsGet(w, i)["etag"]), "*", `"*"`} {
			body := fmt.Sprintf(`{"tags":{"a":%d}}`, n)
			w.must(w.rest(method, i.twinPath(""), []byte(body), "If-Match: "+match), http.StatusOK)
		}
	}
}

func twinsMismatch(w *world, i identity) {
	stale := fmt.Sprintf("If-Match: %q", twinsGet(w, i)["etag"])
	twinsSet(w, i, `{"tags":{"a":1}}`)
	for _, method := range []string{http.MethodPatch, http.MethodPut} {
		a := w.rest(method, i.twinPath(""), []byte(`{"tags":{"a":2}}`), stale)
		w.refuses(a, http.StatusPreconditionFailed, "PreconditionFailed")
	}
	twinsCheck(w, i, `{"a":1}`, `{}`, `{}`)
}

// twinsSection is a section of a twin, and how to write it.
type twinsSection struct {
	name string
	most int // bytes
	// write merges a patch and reports whether the hub took it.
	write func(patch string) bool
	// read is the section as JSON.
	read func() string
}

// twinsSections makes a case that writes each section: tags and desired properties
// as a service, reported properties as a device.
func twinsSections(feature, says string, holds func(*world, twinsSection)) []behaviour {
	return []behaviour{{feature, says, twinsPage, func(_ *testing.T, w *world) {
		i := w.newIdentity("d")
		d := twinsMQTT(w, i)
		asService := func(pattern string) func(string) bool {
			return func(patch string) bool { return twinsTaken(w, i, fmt.Sprintf(pattern, patch)) }
		}
		for _, s := range []twinsSection{
			{"tags", 8 << 10, asService(`{"tags":%s}`), nil},
			{"desired", 32 << 10, asService(`{"properties":{"desired":%s}}`), nil},
			{"reported", 32 << 10, func(patch string) bool { return d.report(patch).status/100 == 2 }, nil},
		} {
			s.read = func() string {
				twin := twinsGet(w, i)
				if s.name == "tags" {
					return twinsBare(w, twin["tags"])
				}
				return twinsBare(w, at(twin, "properties", s.name))
			}
			holds(w, s)
		}
	}}}
}

// twinsTaken patches a twin as a service, and reports whether the hub took it.
func twinsTaken(w *world, i identity, patch string) bool {
	w.t.Helper()
	a := w.rest(http.MethodPatch, i.twinPath(""), []byte(patch))
	if a.status != http.StatusOK && a.status != http.StatusBadRequest {
		w.t.Errorf("status %d: %s", a.status, a.body)
	}
	return a.status == http.StatusOK
}

// takes fails the case unless the section takes a patch, or refuses it, as it
// should.
func (s twinsSection) takes(w *world, what, patch string, want bool) {
	w.t.Helper()
	if got := s.write(patch); got != want {
		w.t.Errorf("%s with %s: taken %v, want %v", s.name, what, got, want)
	}
}

func twinsNames(w *world, s twinsSection) {
	for _, name := range []string{"a.b", "$a", "a$", "a b", `a\tb`, `a\u0085b`} {
		s.takes(w, name, `{"`+name+`":1}`, false)
	}
	s.takes(w, "a bad name below", `{"good":{"a.b":1}}`, false)
	w.check(s.name+" after refusals", s.read(), `{}`)
	s.takes(w, "good names", `{"a-b_c":1,"A":1,"ä":1,"a/b":{"a:b":1}}`, true)
}

func twinsNameLength(w *world, s twinsSection) {
	s.takes(w, "a name of 1 KB", `{"`+strings.Repeat("n", 1<<10)+`":1}`, true)
	s.takes(w, "a longer name", `{"`+strings.Repeat("n", 1<<10+1)+`":1}`, false)
}

func twinsStringLength(w *world, s twinsSection) {
	s.takes(w, "a string of 4 KB", `{"a":"`+strings.Repeat("x", 4<<10)+`"}`, true)
	s.takes(w, "a longer string", `{"a":"`+strings.Repeat("x", 4<<10+1)+`"}`, false)
}

func twinsIntegers(w *world, s twinsSection) {
	for text, want := range map[string]bool{
		"4503599627370495": true, "-4503599627370496": true, "4503599627370496": false, "-4503599627370497": false,
	} {
		s.takes(w, text, `{"a":`+text+`}`, want)
	}
}

func twinsDepth(w *world, s twinsSection) {
	nested := func(depth int) string {
		return strings.Repeat(`{"a":`, depth) + `{"property":"value"}` + strings.Repeat(`}`, depth)
	}
	s.takes(w, "10 levels", nested(10), true)
	s.takes(w, "11 levels", nested(11), false)
}

// twinsFill is an object of a size as the hub counts: names and values.
func twinsFill(size int) string {
	const longest = 4 << 10
	var fields []string
	for n := 'a'; size > 0; n++ {
		length := min(longest, size-1)
		fields = append(fields, fmt.Sprintf(`"%c":"%s"`, n, strings.Repeat("x", length)))
		size -= length + 1
	}
	return "{" + strings.Join(fields, ",") + "}"
}

func twinsSize(w *world, s twinsSection) {
	s.takes(w, "more than there is room for", twinsFill(s.most+2), false)
	s.takes(w, "all that there is room for", twinsFill(s.most), true)
	s.takes(w, "one more", `{"z":true}`, false)
	w.check(s.name+" after refusals", s.read(), twinsFill(s.most))
	s.takes(w, "less", `{"a":null}`, true)
	s.takes(w, "one more, now", `{"z":true}`, true)
}

func twinsObject(w *world, s twinsSection) {
	for _, text := range []string{`1`, `"a"`, `[1]`, `true`} {
		s.takes(w, text, text, false)
	}
}

func twinsNoJSON(_ *testing.T, w *world) {
	i := w.newIdentity("d")
	for _, text := range []string{``, `{`, `tags`, `{"tags":{"a":}}`} {
		w.must(w.rest(http.MethodPatch, i.twinPath(""), []byte(text)), http.StatusBadRequest)
	}
	twinsCheck(w, i, `{}`, `{}`, `{}`)
}

// twinsAnswer is the hub's answer to a request of a device.
type twinsAnswer struct {
	id      string
	status  int
	version int64 // 0 for none
	body    string
}

// twinsDevice is a device that asks for its twin.
type twinsDevice struct {
	w *world
	identity
	// ask sends a request, to read for an empty patch.
	ask func(id, patch string)
	// answer is the next answer.
	answer func() twinsAnswer
	watch  func()
	// change is the next notification.
	change func() (patch string, version int64)
	// changes is how many notifications have come.
	changes    func() int
	disconnect func()
}

// twinsOn makes a case for devices and modules over either protocol.
func twinsOn(feature, says, source string, holds func(*world, twinsDevice, func() twinsDevice)) []behaviour {
	var cases []behaviour
	for _, v := range []struct {
		what, name string
		connect    func(*world, identity) twinsDevice
	}{
		{"device over MQTT", "d", twinsMQTT},
		{"module over MQTT", "d/camera", twinsMQTT},
		{"device over AMQP", "d", twinsAMQP},
		{"module over AMQP", "d/camera", twinsAMQP},
	} {
		cases = append(cases, behaviour{feature, says + ", " + v.what, source, func(_ *testing.T, w *world) {
			i := w.newIdentity(v.name)
			holds(w, v.connect(w, i), func() twinsDevice { return v.connect(w, i) })
		}})
	}
	return cases
}

// twinsMQTT connects over MQTT and subscribes to answers.
func twinsMQTT(w *world, i identity) twinsDevice {
	w.t.Helper()
	c := w.mqttAs(i)
	c.subscribe("$iothub/twin/res/#", 0)
	return twinsDevice{
		w: w, identity: i,
		ask: func(id, patch string) {
			if patch == "" {
				c.publish("$iothub/twin/GET/?$rid="+id, 0, "")
			} else {
				c.publish("$iothub/twin/PATCH/properties/reported/?$rid="+id, 0, patch)
			}
		},
		answer: func() twinsAnswer {
			m := c.receive("$iothub/twin/res/")
			return twinsParse(w, strings.TrimPrefix(m.Topic(), "$iothub/twin/res/"), string(m.Payload()))
		},
		watch: func() { c.subscribe("$iothub/twin/PATCH/properties/desired/#", 0) },
		change: func() (string, int64) {
			m := c.receive("$iothub/twin/PATCH/properties/desired/")
			a := twinsParse(w, "200"+strings.TrimPrefix(m.Topic(), "$iothub/twin/PATCH/properties/desired"), "")
			return string(m.Payload()), a.version
		},
		changes:    func() int { return len(c.messages) },
		disconnect: func() { c.Disconnect(0) },
	}
}

// twinsParse reads {status}/?$rid={id}&$version={n}.
func twinsParse(w *world, topic, body string) twinsAnswer {
	w.t.Helper()
	status, query, _ := strings.Cut(topic, "/?")
	values, err := url.ParseQuery(query)
	if err != nil {
		w.t.Fatal(err)
	}
	a := twinsAnswer{id: values.Get("$rid"), body: body}
	if a.status, err = strconv.Atoi(status); err != nil {
		w.t.Fatal(err)
	}
	if text := values.Get("$version"); text != "" {
		if a.version, err = strconv.ParseInt(text, 10, 64); err != nil {
			w.t.Fatal(err)
		}
	}
	return a
}

// twinsAMQP connects over AMQP with links for the twin, on which answers and
// notifications come: the ones with a correlation ID, the others without.
func twinsAMQP(w *world, i identity) twinsDevice {
	w.t.Helper()
	session := w.amqpAs(i)
	sender, receiver := w.amqpPair(session, i.path("/twin"))
	send := func(id, operation, resource, body string) {
		m := amqp.NewMessage([]byte(body))
		m.Properties = &amqp.MessageProperties{CorrelationID: id}
		m.Annotations = amqp.Annotations{"operation": operation}
		if resource != "" {
			m.Annotations["resource"] = resource
		}
		if err := sender.Send(w.ctx(), m, nil); err != nil {
			w.t.Fatal(err)
		}
	}
	var answers, changes []*amqp.Message
	// take returns the next message of a kind, and keeps the others.
	take := func(kind *[]*amqp.Message) *amqp.Message {
		for len(*kind) == 0 {
			m := w.receive(receiver)
			if m.Properties == nil || m.Properties.CorrelationID == nil {
				changes = append(changes, m)
			} else {
				answers = append(answers, m)
			}
		}
		m := (*kind)[0]
		*kind = (*kind)[1:]
		return m
	}
	answer := func() twinsAnswer {
		m := take(&answers)
		id, _ := m.Properties.CorrelationID.(string)
		status, _ := m.Annotations["status"].(int32)
		version, _ := m.Annotations["version"].(int64)
		return twinsAnswer{id, int(status), version, string(m.GetData())}
	}
	return twinsDevice{
		w: w, identity: i,
		ask: func(id, patch string) {
			if patch == "" {
				send(id, "GET", "", " ")
			} else {
				send(id, "PATCH", "/properties/reported", patch)
			}
		},
		answer: answer,
		watch: func() {
			send("watch", "PUT", "/notifications/twin/properties/desired", " ")
			w.check("status of the subscription", answer().status, 200)
		},
		change: func() (string, int64) {
			m := take(&changes)
			version, _ := m.Annotations["version"].(int64)
			return string(m.GetData()), version
		},
		changes: func() int { return len(changes) },
		disconnect: func() {
			_ = sender.Close(w.ctx())
			_ = receiver.Close(w.ctx())
			_ = session.Close(w.ctx())
		},
	}
}

// report patches the reported properties.
func (d twinsDevice) report(patch string) twinsAnswer {
	d.w.t.Helper()
	d.ask("patch-1", patch)
	return d.answer()
}

// read returns desired and reported properties.
func (d twinsDevice) read() map[string]any {
	d.w.t.Helper()
	d.ask("get-1", "")
	a := d.answer()
	d.w.check("status", a.status, 200)
	var twin map[string]any
	if err := json.Unmarshal([]byte(a.body), &twin); err != nil {
		d.w.t.Fatalf("%v: %s", err, a.body)
	}
	return twin
}

// desire patches the desired properties as a service.
func (d twinsDevice) desire(patch string) {
	d.w.t.Helper()
	twinsSet(d.w, d.identity, `{"properties":{"desired":`+patch+`}}`)
}

// hears checks the next notification. The patch has the version as $version.
func (d twinsDevice) hears(patch string) {
	d.w.t.Helper()
	text, version := d.change()
	var got map[string]any
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		d.w.t.Fatalf("%v: %s", err, text)
	}
	d.w.check("$version", got["$version"], version)
	delete(got, "$version")
	back, err := json.Marshal(got)
	if err != nil {
		d.w.t.Fatal(err)
	}
	d.w.check("change", string(back), patch)
}

func twinsRead(w *world, d twinsDevice, _ func() twinsDevice) {
	twinsSet(w, d.identity, `{"tags":{"secret":1},"properties":{"desired":{"speed":5}}}`)
	d.report(`{"speed":4}`)
	twin := d.read()
	w.check("sections", len(twin), 2)
	for half, speed := range map[string]int{"desired": 5, "reported": 4} {
		w.check(half, twinsBare(w, twin[half]), fmt.Sprintf(`{"speed":%d}`, speed))
		w.check("version", at(twin, half, "$version"), 2)
	}
}

func twinsReport(w *world, d twinsDevice, _ func() twinsDevice) {
	first := d.report(`{"a":{"b":1,"c":2},"d":"x"}`)
	second := d.report(`{"a":{"b":null},"d":null,"e":[1,2]}`)
	for _, a := range []twinsAnswer{first, second} {
		if a.status/100 != 2 {
			w.t.Errorf("status %d: %s", a.status, a.body)
		}
	}
	w.check("versions", []int64{first.version, second.version}, []int64{2, 3})
	w.check("version", twinsVersion(w, d.identity, "reported"), 3)
	twinsCheck(w, d.identity, `{}`, `{}`, `{"a":{"c":2},"e":[1,2]}`)
	if at(twinsGet(w, d.identity), "properties", "reported", "$metadata", "a", "c", "$lastUpdated") == nil {
		w.t.Error("no time of a reported property")
	}
}

func twinsBadReport(w *world, d twinsDevice, _ func() twinsDevice) {
	d.report(`{"a":1}`)
	for _, patch := range []string{`{"a":`, `[1]`, `{"a.b":1}`, `{"a":2,"b":"` + strings.Repeat("x", 4<<10+1) + `"}`} {
		a := d.report(patch)
		w.check("status", a.status, 400)
		if !json.Valid([]byte(a.body)) || len(a.body) == 0 {
			w.t.Errorf("refusal without reason: %q", a.body)
		}
	}
	w.check("version", twinsVersion(w, d.identity, "reported"), 2)
	twinsCheck(w, d.identity, `{}`, `{}`, `{"a":1}`)
}

func twinsRequests(w *world, d twinsDevice, _ func() twinsDevice) {
	ids := []string{"0", "00ff", "AbC-1", "b0c9c1f0-5f0c-4d1f-9f3a-6a2f4f1d7c11"}
	for n, id := range ids {
		d.ask(id, fmt.Sprintf(`{"n":%d}`, n))
	}
	for range ids {
		a := d.answer()
		// Patches are applied in their order.
		w.check("version of "+a.id, a.version, slices.Index(ids, a.id)+2)
	}
	twinsCheck(w, d.identity, `{}`, `{}`, `{"n":3}`)
}

func twinsNotify(_ *world, d twinsDevice, _ func() twinsDevice) {
	d.desire(`{"before":1}`)
	d.watch()
	for _, patch := range []string{`{"a":{"b":1}}`, `{"a":{"c":"x"}}`, `{"a":null}`} {
		d.desire(patch)
		d.hears(patch)
	}
	d.w.check("version", at(d.read(), "desired", "$version"), 5)
}

func twinsNotifyAll(w *world, d twinsDevice, _ func() twinsDevice) {
	d.desire(`{"a":1,"b":2}`)
	d.watch()
	body := []byte(`{"properties":{"desired":{"b":3,"c":4}}}`)
	w.must(w.rest(http.MethodPut, d.twinPath(""), body), http.StatusOK)
	d.hears(`{"b":3,"c":4}`)
}

func twinsNotifyTags(w *world, d twinsDevice, _ func() twinsDevice) {
	d.watch()
	twinsSet(w, d.identity, `{"tags":{"a":1}}`)
	d.report(`{"b":1}`)
	d.desire(`{"c":1}`)
	d.hears(`{"c":1}`)
}

func twinsNotifyUnasked(w *world, d twinsDevice, _ func() twinsDevice) {
	d.desire(`{"a":1}`)
	d.read() // what came before has come
	w.check("changes", d.changes(), 0)
}

func twinsNotifyAway(_ *world, d twinsDevice, connect func() twinsDevice) {
	d.watch()
	d.desire(`{"a":1}`)
	d.hears(`{"a":1}`)
	d.disconnect()
	d.w.eventually("the device is away", func() bool {
		return twinsGet(d.w, d.identity)["connectionState"] == "Disconnected"
	})
	d.desire(`{"b":2}`)
	again := connect()
	again.watch()
	again.desire(`{"c":3}`)
	again.hears(`{"c":3}`)
	d.w.check("properties", twinsBare(d.w, again.read()["desired"]), `{"a":1,"b":2,"c":3}`)
}

func twinsUnanswered(_ *testing.T, w *world) {
	i := w.newIdentity("d")
	c := w.mqttAs(i)
	c.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", 1, `{"a":1}`)
	c.subscribe("$iothub/twin/res/#", 0)
	c.publish("$iothub/twin/GET/?$rid=2", 0, "")
	m := c.receive("$iothub/twin/res/")
	w.check("first answer", m.Topic(), "$iothub/twin/res/200/?$rid=2")
	twinsCheck(w, i, `{}`, `{}`, `{"a":1}`)
}

func twinsReportVersion(_ *testing.T, w *world) {
	i := w.newIdentity("d")
	d := twinsMQTT(w, i)
	d.ask("1&$version=1", `{"a":1}`)
	w.check("answer", d.answer().version, 2)
	d.ask("2&$version=1", `{"a":2}`)
	w.check("status", d.answer().status, http.StatusPreconditionFailed)
	twinsCheck(w, i, `{}`, `{}`, `{"a":1}`)
}

// twinsRoute configures a route of events that the emulator doesn't have.
func twinsRoute(source string) func(*testing.T, *world) {
	return func(t *testing.T, _ *world) {
		text := "Hub:\n  Routes:\n    - {Name: r, Endpoint: events, Source: " + source + "}\n"
		_, err := emulator.ParseConfig("case.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), source) || !strings.Contains(err.Error(), "case.yaml:3") {
			t.Errorf("refusal: %v", err)
		}
	}
}
