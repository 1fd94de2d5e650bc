package fault_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/fault"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// FuzzControl posts any body to the control API. A fault that is taken is listed as
// it was sent, acts, and can be removed.
func FuzzControl(f *testing.F) {
	f.Add(`{"kind":"cut","protocol":"mqtt","device":"sensor-*","after":"10s"}`)
	f.Add(`{"kind":"refuse","code":429,"retryAfter":"3s","probability":0.5,"seed":18446744073709551615,"count":2}`)
	f.Add(`{"kind":"delay","latency":"1ns","jitter":"720h","duration":"720h"}`)
	f.Add(`{"kind":"disconnect","device":"*"}{"kind":"expire-locks"}`)
	f.Add(`{"kind":"duplicate","Kind":"cut","entity":"***a*b*"}`)
	f.Fuzz(func(t *testing.T, body string) {
		synctest.Test(t, func(t *testing.T) {
			in, _ := newInjector(t)
			api := in.Handler()
			call := func(method, path, body string, into any) int {
				r := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				api.ServeHTTP(w, r)
				if err := json.Unmarshal(w.Body.Bytes(), into); err != nil && w.Code != http.StatusNoContent {
					t.Errorf("%s %s: %d %q: %v", method, path, w.Code, w.Body, err)
				}
				return w.Code
			}
			var posted struct{ ID, Error string }
			status := call(http.MethodPost, "/faults", body, &posted)
			if status != http.StatusCreated {
				if status < 400 || status >= 500 || posted.Error == "" || len(in.Active()) > 0 {
					t.Errorf("%d %+v", status, posted)
				}
				return
			}
			var sent fault.Fault
			if err := json.Unmarshal([]byte(body), &sent); err != nil || sent.Check() != nil {
				t.Fatalf("took %s: %v", body, err)
			}
			_ = in.Admit(hub.OpD2C, hub.Target{DeviceID: "sensor-1"}, 1)
			_ = in.Repeat(hub.OpD2C, hub.Target{DeviceID: "sensor-1"})
			_ = in.RepeatEntity("queue")
			for _, active := range in.Active() {
				if active.ID != posted.ID || active.Fault != sent {
					t.Errorf("%+v is in force as %+v", sent, active)
				}
			}
			var listed struct{ Faults []json.RawMessage }
			call(http.MethodGet, "/faults", "", &listed)
			time.Sleep(61 * 24 * time.Hour) // all that has an end is over
			removed := call(http.MethodDelete, "/faults/"+posted.ID, "", new(any)) == http.StatusNoContent
			if removed != (len(listed.Faults) == 1 && sent.Duration == 0 && !once(sent)) || len(in.Active()) > 0 {
				t.Errorf("%+v: removed %t; listed %s", sent, removed, listed.Faults)
			}
		})
	})
}

// once reports whether a fault is over as soon as it has begun.
func once(f fault.Fault) bool { return f.Kind == fault.ExpireLocks || f.Kind == fault.Disconnect }
