package hub_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// twinPatch reads the body of a request that writes a twin.
func twinPatch(t testing.TB, body string) hub.TwinPatch {
	t.Helper()
	var p hub.TwinPatch
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func desired(t testing.TB, properties string) hub.TwinPatch {
	t.Helper()
	return twinPatch(t, `{"properties":{"desired":`+properties+`}}`)
}

func patchTwin(t testing.TB, h *hub.Hub, target hub.Target, body string) hub.Twin {
	t.Helper()
	twin, err := h.PatchTwin(t.Context(), target, twinPatch(t, body), "")
	if err != nil {
		t.Fatal(err)
	}
	return twin
}

func report(t testing.TB, s *hub.Session, patch string) int64 {
	t.Helper()
	version, err := s.UpdateReported(t.Context(), []byte(patch), 0)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func getTwin(t testing.TB, h *hub.Hub, target hub.Target) hub.Twin {
	t.Helper()
	twin, err := h.GetTwin(target)
	if err != nil {
		t.Fatal(err)
	}
	return twin
}

func view(t testing.TB, s *hub.Session) string {
	t.Helper()
	text, err := s.ReadTwin()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTwin(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	before := time.Now().Add(-time.Second)
	id := create(t, h, "d")
	connect(t, h, "d")
	target := hub.Target{DeviceID: "d"}
	twin := getTwin(t, h.Hub, target)
	text, err := json.Marshal(twin)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		`"deviceId":"d"`, `"etag":"AAAAAAAAAAE="`, `"deviceEtag":"` + id.ETag + `"`, `"status":"enabled"`,
		`"connectionState":"Connected"`, `"authenticationType":"sas"`, `"version":2`, `"tags":{}`,
		`"desired":{"$metadata":{"$lastUpdated":"`, `"$version":1`, `"capabilities":{"iotEdge":false}`,
	} {
		if !strings.Contains(string(text), part) {
			t.Errorf("%s is missing in %s", part, text)
		}
	}
	if strings.Contains(string(text), "moduleId") {
		t.Errorf("module of a device: %s", text)
	}
	var properties struct {
		Metadata struct {
			Updated time.Time `json:"$lastUpdated"`
		} `json:"$metadata"`
	}
	if err := json.Unmarshal(twin.Properties.Reported, &properties); err != nil {
		t.Fatal(err)
	}
	if at := properties.Metadata.Updated; at.Before(before) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("created at %s", at)
	}

	twin = patchTwin(t, h.Hub, target, `{"tags":{"a":1},"properties":{"desired":{"b":{"c":2}}},"deviceId":"ignored"}`)
	check(t, "tags", string(twin.Tags), `{"a":1}`)
	check(t, "version", twin.Version, 3)
	check(t, "ETag", twin.ETag, "AAAAAAAAAAI=")
	check(t, "read back", fmt.Sprintf("%+v", getTwin(t, h.Hub, target)), fmt.Sprintf("%+v", twin))
	twin, err = h.ReplaceTwin(t.Context(), target, twinPatch(t, `{"tags":{"z":1}}`), "")
	check(t, "error", err, nil)
	check(t, "tags replaced", string(twin.Tags), `{"z":1}`)
	check(t, "desired stay", strings.HasPrefix(string(twin.Properties.Desired), `{"b":{"c":2},`), true)

	_, err = h.GetTwin(hub.Target{DeviceID: "other"})
	wantCode(t, "unknown device", err, hub.CodeDeviceNotFound)
	_, err = h.GetTwin(hub.Target{DeviceID: "d", ModuleID: "m"})
	wantCode(t, "unknown module", err, hub.CodeModuleNotFound)
	_, err = h.PatchTwin(t.Context(), hub.Target{DeviceID: "d", ModuleID: "m"}, hub.TwinPatch{}, "")
	wantCode(t, "write to unknown module", err, hub.CodeModuleNotFound)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = h.PatchTwin(ended, target, desired(t, `{}`), ""); err == nil {
		t.Error("written although the context had ended")
	}
}

func TestTwinConditions(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	s := connect(t, h, "d")
	target := hub.Target{DeviceID: "d"}
	first := getTwin(t, h.Hub, target)
	second, err := h.PatchTwin(t.Context(), target, desired(t, `{"a":1}`), hub.IfMatch(first.ETag))
	check(t, "matching", err, nil)
	_, err = h.PatchTwin(t.Context(), target, desired(t, `{"a":2}`), hub.IfMatch(first.ETag))
	wantCode(t, "patch of an old version", err, hub.CodePreconditionFailed)
	_, err = h.ReplaceTwin(t.Context(), target, desired(t, `{"a":2}`), hub.IfMatch(first.ETag))
	wantCode(t, "replacement of an old version", err, hub.CodePreconditionFailed)
	report(t, s, `{"r":1}`)
	check(t, "ETag after a report", getTwin(t, h.Hub, target).ETag, second.ETag)
	for _, match := range []hub.IfMatch{"", hub.AnyVersion, hub.IfMatch(second.ETag)} {
		if _, err = h.PatchTwin(t.Context(), target, twinPatch(t, `{}`), match); err != nil {
			t.Errorf("%q: %v", match, err)
		}
	}
	check(t, "nothing written", getTwin(t, h.Hub, target).ETag, second.ETag)

	_, err = h.PatchTwin(t.Context(), target, desired(t, `{"a b":1}`), "")
	wantCode(t, "what a twin can't hold", err, hub.CodeArgumentInvalid)
	_, err = h.PatchTwin(t.Context(), target, hub.TwinPatch{Tags: []byte(`{"a"`)}, "")
	wantCode(t, "no JSON", err, hub.CodeFormatError)
	_, err = s.UpdateReported(t.Context(), []byte(`{"a":[null]}`), 0)
	wantCode(t, "what a report can't hold", err, hub.CodeArgumentInvalid)
	_, err = s.UpdateReported(t.Context(), []byte(`nothing`), 0)
	wantCode(t, "report that is no JSON", err, hub.CodeFormatError)
	_, err = s.UpdateReported(t.Context(), []byte(`{"r":2}`), 1)
	wantCode(t, "report to an old version", err, hub.CodePreconditionFailed)
	version, err := s.UpdateReported(t.Context(), []byte(`{"r":2}`), 2)
	check(t, "report to the version", fmt.Sprint(version, err), "3 <nil>")
	check(t, "view", view(t, s), `{"desired":{"a":1,"$version":2},"reported":{"r":2,"$version":3}}`)
}

// notices collects what a session is told of its desired properties.
type notices struct {
	mu    sync.Mutex
	texts []string
}

func (n *notices) deliver(patch []byte, version int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.texts = append(n.texts, fmt.Sprintf("%d %s", version, patch))
}

func (n *notices) take() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	text := strings.Join(n.texts, "; ")
	n.texts = nil
	return text
}

func TestWatchDesired(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	createModule(t, h, "d", "m")
	device, module := hub.Target{DeviceID: "d"}, hub.Target{DeviceID: "d", ModuleID: "m"}
	s, m := connect(t, h, "d"), connectModule(t, h, "d", "m")
	var ofDevice, ofModule notices
	patchTwin(t, h.Hub, device, `{"properties":{"desired":{"before":1}}}`)
	s.WatchDesired(ofDevice.deliver)
	m.WatchDesired(ofModule.deliver)
	check(t, "what was before", ofDevice.take(), "")

	patchTwin(t, h.Hub, device, `{"properties":{"desired":{"a":{"b":1},"before":null}}}`)
	check(t, "patch", ofDevice.take(), `3 {"a":{"b":1},"before":null,"$version":3}`)
	patchTwin(t, h.Hub, device, `{"tags":{"a":1}}`)
	report(t, s, `{"r":1}`)
	check(t, "tags and reports", ofDevice.take(), "")
	if _, err := h.ReplaceTwin(t.Context(), device, desired(t, `{"c":1,"d":null}`), ""); err != nil {
		t.Fatal(err)
	}
	check(t, "replacement", ofDevice.take(), `4 {"c":1,"$version":4}`)
	check(t, "of the module", ofModule.take(), "")
	patchTwin(t, h.Hub, module, `{"properties":{"desired":{"e":1}}}`)
	check(t, "of the module", ofModule.take(), `2 {"e":1,"$version":2}`)
	check(t, "of the device", ofDevice.take(), "")
	check(t, "view of the module", view(t, m), `{"desired":{"e":1,"$version":2},"reported":{"$version":1}}`)

	s.WatchDesired(nil)
	patchTwin(t, h.Hub, device, `{"properties":{"desired":{"f":1}}}`)
	check(t, "after the watch", ofDevice.take(), "")
	s.WatchDesired(ofDevice.deliver)
	next := connect(t, h, "d")
	patchTwin(t, h.Hub, device, `{"properties":{"desired":{"g":1}}}`)
	check(t, "after a takeover", ofDevice.take(), "")
	s.WatchDesired(ofDevice.deliver)
	patchTwin(t, h.Hub, device, `{"properties":{"desired":{"h":1}}}`)
	check(t, "watched by a session that has ended", ofDevice.take(), "")
	if _, err := s.UpdateReported(t.Context(), []byte(`{"r":2}`), 0); err == nil {
		t.Error("a session that has ended wrote reported properties")
	}
	if _, err := s.ReadTwin(); err == nil {
		t.Error("a session that has ended read the twin")
	}
	check(t, "view", view(t, next), `{"desired":{"c":1,"f":1,"g":1,"h":1,"$version":7},"reported":{"r":1,"$version":2}}`)
}

func TestTwinsGoWithTheirIdentities(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	device, module := hub.Target{DeviceID: "d"}, hub.Target{DeviceID: "d", ModuleID: "m"}
	for range 2 {
		create(t, h, "d")
		createModule(t, h, "d", "m")
		for _, target := range []hub.Target{device, module} {
			check(t, "ETag of "+target.String(), getTwin(t, h.Hub, target).ETag, "AAAAAAAAAAE=")
			patchTwin(t, h.Hub, target, `{"tags":{"a":1}}`)
		}
		if err := h.DeleteModule(t.Context(), module, hub.AnyVersion); err != nil {
			t.Fatal(err)
		}
		_, err := h.PatchTwin(t.Context(), module, twinPatch(t, `{"tags":{"a":1}}`), "")
		wantCode(t, "write to a deleted module", err, hub.CodeModuleNotFound)
		createModule(t, h, "d", "m")
		check(t, "tags of the next module", string(getTwin(t, h.Hub, module).Tags), "{}")
		check(t, "tags of the device", string(getTwin(t, h.Hub, device).Tags), `{"a":1}`)
		patchTwin(t, h.Hub, module, `{"tags":{"b":1}}`)
		if err := h.DeleteDevice(t.Context(), "d", hub.AnyVersion); err != nil {
			t.Fatal(err)
		}
		_, err = h.GetTwin(device)
		wantCode(t, "deleted device", err, hub.CodeDeviceNotFound)
	}
}

func TestTwinsSurviveKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHub(t, openStore(t, dir))
	targets := []hub.Target{{DeviceID: deviceID}, {DeviceID: deviceID, ModuleID: "$edgeAgent"}, {DeviceID: "untouched"}}
	create(t, h, deviceID)
	createModule(t, h, deviceID, "$edgeAgent")
	create(t, h, "untouched")
	create(t, h, "gone")
	patchTwin(t, h.Hub, hub.Target{DeviceID: "gone"}, `{"tags":{"a":1}}`)
	s, m := connect(t, h, deviceID), connectModule(t, h, deviceID, "$edgeAgent")
	patchTwin(t, h.Hub, targets[0], `{"tags":{"a":{"b":[1,"x"]}},"properties":{"desired":{"c":1.5}}}`)
	patchTwin(t, h.Hub, targets[1], `{"properties":{"desired":{"d":"<ä>"}}}`)
	report(t, s, `{"r":1}`)
	report(t, m, `{"s":2}`)
	if err := h.DeleteDevice(t.Context(), "gone", hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	state := func(h fixture) string {
		var b strings.Builder
		for _, target := range targets {
			twin := getTwin(t, h.Hub, target)
			fmt.Fprintf(&b, "%s %s %d %s %s %s\n", target, twin.ETag, twin.Version, twin.Tags, twin.Properties.Desired, twin.Properties.Reported)
		}
		return b.String()
	}
	again := newHub(t, afterKill(t, dir))
	check(t, "twins", state(again), state(h))
	create(t, again, "gone")
	check(t, "tags of a new identity", string(getTwin(t, again.Hub, hub.Target{DeviceID: "gone"}).Tags), "{}")
	check(t, "next version", patchTwin(t, again.Hub, targets[0], `{"tags":{"z":1}}`).ETag, "AAAAAAAAAAM=")
}

func TestDamagedTwinIsReported(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	h := newHub(t, s)
	create(t, h, "d")
	if err := store.Commit(s, store.Put("d/d/d", []byte(`{"tags":`))); err != nil {
		t.Fatal(err)
	}
	_, err := hub.Open(s, hub.Options{Events: h.events})
	if err == nil || !strings.Contains(err.Error(), "stored device d: twin: ") {
		t.Errorf("got %v", err)
	}
}

// TestTwinsInTurns writes a twin from both sides at once, while sessions take
// over from each other, and checks that every write counts once, that versions
// never go back, and that a session misses nothing between its watch and its end.
func TestTwinsInTurns(t *testing.T) {
	t.Parallel()
	const writers, writes = 4, 25
	h := newHub(t, openStore(t, t.TempDir()))
	create(t, h, "d")
	target := hub.Target{DeviceID: "d"}
	s := connect(t, h, "d")
	var mu sync.Mutex
	var heard []int64
	s.WatchDesired(func(_ []byte, version int64) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, version)
	})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range writes {
				patch := desired(t, fmt.Sprintf(`{"w%d":%d}`, w, i))
				if _, err := h.PatchTwin(context.Background(), target, patch, ""); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			last := int64(0)
			for i := range writes {
				version, err := s.UpdateReported(context.Background(), fmt.Appendf(nil, `{"r%d":%d}`, w, i), 0)
				if err != nil || version <= last {
					t.Errorf("version %d after %d: %v", version, last, err)
				}
				last = version
				if _, err := s.ReadTwin(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	const n = writers * writes
	twin := getTwin(t, h.Hub, target)
	check(t, "version", twin.Version, 2+2*n)
	var read struct {
		Desired, Reported map[string]any
	}
	if err := json.Unmarshal([]byte(view(t, s)), &read); err != nil {
		t.Fatal(err)
	}
	check(t, "desired", read.Desired["$version"], 1+n)
	check(t, "reported", read.Reported["$version"], 1+n)
	for w := range writers {
		check(t, "last desired", read.Desired[fmt.Sprintf("w%d", w)], writes-1)
		check(t, "last reported", read.Reported[fmt.Sprintf("r%d", w)], writes-1)
	}
	check(t, "heard", len(heard), n)
	for i, version := range heard {
		if version != int64(i)+2 {
			t.Fatalf("versions heard: %v", heard)
		}
	}
}

// TestWatchAndRead checks the order that the cloud tells devices to keep: watch,
// then read. Whatever is not in what was read is delivered.
func TestWatchAndRead(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	target := hub.Target{DeviceID: "d"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 300 {
			if _, err := h.PatchTwin(context.Background(), target, desired(t, fmt.Sprintf(`{"a":%d}`, i)), ""); err != nil {
				t.Error(err)
			}
		}
	}()
	type reader struct {
		read  int64
		heard *[]int64
		mu    *sync.Mutex
		last  *hub.Session
	}
	var readers []reader
	for range 20 {
		r := reader{heard: new([]int64), mu: new(sync.Mutex), last: connect(t, h, "d")}
		r.last.WatchDesired(func(_ []byte, version int64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			*r.heard = append(*r.heard, version)
		})
		var read struct {
			Desired struct {
				Version int64 `json:"$version"`
			}
		}
		if err := json.Unmarshal([]byte(view(t, r.last)), &read); err != nil {
			t.Fatal(err)
		}
		r.read = read.Desired.Version
		readers = append(readers, r)
	}
	<-done
	for i, r := range readers {
		next := r.read + 1
		r.mu.Lock()
		for _, version := range *r.heard {
			if version > next {
				t.Errorf("reader %d read %d and heard %v", i, r.read, *r.heard)
			}
			if version == next {
				next++
			}
		}
		r.mu.Unlock()
		if i == len(readers)-1 && next != 302 {
			t.Errorf("the last reader knows %d", next-1)
		}
	}
}

func TestTwinGate(t *testing.T) {
	t.Parallel()
	g := new(gate)
	h := newHub(t, store.Memory(), func(o *hub.Options) { o.Gate, o.Meter = g, g })
	create(t, h, "d")
	createModule(t, h, "d", "m")
	s, m := connect(t, h, "d"), connectModule(t, h, "d", "m")
	device, module := hub.Target{DeviceID: "d"}, hub.Target{DeviceID: "d", ModuleID: "m"}
	ctx := t.Context()
	for _, tc := range []struct {
		want string
		do   func() error
	}{
		{"twin-read d/m 0", func() error { _, err := h.GetTwin(module); return err }},
		{"twin-read d/ 0", func() error { _, err := s.ReadTwin(); return err }},
		{"twin-update d/ 15", func() error {
			_, err := h.PatchTwin(ctx, device, twinPatch(t, `{"tags":{"a":1},"properties":{"desired":{"b":""}}}`), "")
			return err
		}},
		{"twin-update d/m 2", func() error { _, err := h.ReplaceTwin(ctx, module, twinPatch(t, `{"tags":{}}`), ""); return err }},
		{"twin-update d/m 7", func() error { _, err := m.UpdateReported(ctx, []byte(`{"r":1}`), 0); return err }},
		{"query / 0", func() error { _, err := h.Query(hub.Query{Text: "SELECT tags FROM devices"}); return err }},
	} {
		g.set(true)
		wantCode(t, tc.want, tc.do(), hub.CodeThrottling)
		g.set(false)
		if err := tc.do(); err != nil {
			t.Errorf("%s: %v", tc.want, err)
		}
		g.mu.Lock()
		check(t, "asked", fmt.Sprint(g.asked), "["+tc.want+"]")
		g.mu.Unlock()
	}
	check(t, "last answer", g.metered[len(g.metered)-1], fmt.Sprintf("query / %d", len(`[{"tags":{"a":1}}]`)))
	check(t, "device's view", g.metered[1], fmt.Sprintf("twin-read d/ %d", len(`{"desired":{"$version":1},"reported":{"$version":1}}`)))
}
