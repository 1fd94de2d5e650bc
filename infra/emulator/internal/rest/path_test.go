package rest

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzPath splits any path. An ID that comes out of it went into it, and none
// contains a slash.
func FuzzPath(f *testing.F) {
	f.Add("/devices/device-solver%3A%3Ajob-1")
	f.Add("/twins/a%2Fb/methods")
	f.Add("/devices/../devices/{id}//")
	f.Add("/devices/d/modules/%25/messages/events")
	f.Add("/devices/d/messages/devicebound/*/abandon")
	h := new(Handler)
	h.routes = h.table()
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI("/" + strings.TrimPrefix(path, "/"))
		if err != nil {
			return
		}
		segments, err := splitPath(u)
		if err != nil {
			return
		}
		for _, method := range []string{"GET", "PUT", "POST", "DELETE", "PATCH"} {
			_, names, err := h.find(method, segments)
			if err != nil {
				continue
			}
			for _, id := range []string{names.deviceID, names.moduleID, names.lock, names.jobID} {
				if strings.Contains(id, "/") || !strings.Contains(u.Path, id) {
					t.Errorf("path %q names %q", path, id)
				}
			}
		}
	})
}
