package sas

import (
	"net"
	"net/url"
	"strings"
)

// resource is a parsed resource URI: a host and the segments of a path.
type resource struct {
	host string // lower case, without port
	path []string
}

// parseResource reads host[:port][/segment...] with or without a scheme.
// Ports are dropped: behind one name there is one hub or namespace, whatever
// the port that it happens to be reached on.
func parseResource(s string) resource {
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
	}
	host, path, _ := strings.Cut(s, "/")
	r := resource{host: bareHost(host)}
	if path = strings.Trim(path, "/"); path != "" {
		r.path = strings.Split(path, "/")
	}
	return r
}

func bareHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

func (r resource) String() string {
	return strings.Join(append([]string{r.host}, r.path...), "/")
}

// identity names a device, or one of its modules.
type identity struct {
	device string
	module string // empty for the device itself
}

// identity returns whose host/devices/{id}[/modules/{id}][/...] is. The list of
// a device's modules is the device's own.
func (r resource) identity() (identity, bool) {
	if len(r.path) < 2 || r.path[0] != "devices" || r.path[1] == "" {
		return identity{}, false
	}
	id := identity{device: r.path[1]}
	if len(r.path) >= 4 && r.path[2] == "modules" {
		id.module = r.path[3]
	}
	return id, true
}

// path is that of the identity's resource.
func (id identity) path() []string {
	if id.module == "" {
		return []string{"devices", id.device}
	}
	return []string{"devices", id.device, "modules", id.module}
}

// unescaped decodes both IDs once more; false if that changes nothing.
func (id identity) unescaped() (identity, bool) {
	device, err1 := url.PathUnescape(id.device)
	module, err2 := url.PathUnescape(id.module)
	decoded := identity{device, module}
	return decoded, err1 == nil && err2 == nil && decoded != id
}

// covers reports whether the path of r is a prefix of the path of asked, by
// whole segments. Hosts are the caller's business.
func (r resource) covers(asked resource, same func(granted, asked string) bool) bool {
	if len(r.path) > len(asked.path) {
		return false
	}
	for i, segment := range r.path {
		if !same(segment, asked.path[i]) {
			return false
		}
	}
	return true
}

// sameSegment compares segments of a hub resource. The C# device SDK encodes
// the device ID for itself and then the whole resource once more
// (DeviceAuthenticationWithSakRefresh.cs), so that after one decoding the ID is
// still encoded; the other SDKs encode once.
func sameSegment(granted, asked string) bool {
	if granted == asked {
		return true
	}
	decoded, err := url.PathUnescape(granted)
	return err == nil && decoded == asked
}

// exactSegment compares segments that are known in full, such as those of a
// device that has been looked up: "a%3Ab" and "a:b" are two devices.
func exactSegment(granted, asked string) bool { return granted == asked }
