package rest

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// named is what the variable segments of a path name, decoded; empty where the
// path has no such segment.
type named struct {
	deviceID, moduleID string
	lock               string // a lock token
	jobID              string
}

func (n named) target() hub.Target { return hub.Target{DeviceID: n.deviceID, ModuleID: n.moduleID} }

// variable returns where a variable segment of a pattern goes, or nil for a
// segment that stands for itself.
func (n *named) variable(segment string) *string {
	switch segment {
	case "{id}":
		return &n.deviceID
	case "{mid}":
		return &n.moduleID
	case "{lock}":
		return &n.lock
	case "{job}":
		return &n.jobID
	}
	return nil
}

// splitPath returns the decoded segments of a path. It works on the encoded
// path, because device IDs contain percent signs and may be ".." for all that
// the hub cares.
func splitPath(u *url.URL) ([]string, error) {
	path := strings.TrimPrefix(strings.TrimSuffix(u.EscapedPath(), "/"), "/")
	segments := strings.Split(path, "/")
	for i, s := range segments {
		decoded, err := url.PathUnescape(s)
		if err != nil || strings.Contains(decoded, "/") {
			return nil, hub.Errorf(hub.CodeArgumentInvalid, "path is not percent-encoded as it should be")
		}
		segments[i] = decoded
	}
	return segments, nil
}

// find returns the route of a request and what its path names.
func (h *Handler) find(method string, segments []string) (*route, named, error) {
	var allowed []string
	for i := range h.routes {
		names, ok := h.routes[i].match(segments)
		switch {
		case !ok:
		case h.routes[i].method == method || h.routes[i].method == "":
			return &h.routes[i], names, nil
		default:
			allowed = append(allowed, h.routes[i].method)
		}
	}
	if len(allowed) > 0 {
		return nil, named{}, &methodError{allowed: slices.Compact(slices.Sorted(slices.Values(allowed)))}
	}
	return nil, named{}, errNoResource
}

func (r *route) match(segments []string) (names named, ok bool) {
	pattern := strings.Split(r.path, "/")
	for i, p := range pattern {
		if p == "*" {
			return names, true
		}
		if i >= len(segments) || segments[i] == "" {
			return named{}, false
		}
		if variable := names.variable(p); variable != nil {
			*variable = segments[i]
		} else if !strings.EqualFold(p, segments[i]) {
			return named{}, false
		}
	}
	return names, len(pattern) == len(segments)
}

// methodError refuses a method that a path doesn't have.
type methodError struct{ allowed []string }

func (e *methodError) Error() string {
	return "the path allows " + strings.Join(e.allowed, ", ")
}

var errNoResource = errors.New("no HTTP resource was found that matches the request URI")

// etag is the header of that name, which has the tag in quotes.
func etag(tag string) http.Header { return http.Header{"Etag": {`"` + tag + `"`}} }
