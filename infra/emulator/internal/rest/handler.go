package rest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// transferTimeout is how long a client may take to send a body, or to take an
// answer.
const transferTimeout = 30 * time.Second

// Handler serves a hub's REST APIs. It sets the deadlines of bodies and answers
// itself: a direct method may take up to ten minutes in between, so a server with
// a ReadTimeout or WriteTimeout would cut it off.
type Handler struct {
	hub      *hub.Hub
	verifier *sas.Verifier
	log      *slog.Logger
	routes   []route
	timeout  time.Duration
}

// Options tune a Handler. The zero value is ready to use.
type Options struct {
	// Logger gets refused requests at level info and failures at level error;
	// nil means none.
	Logger *slog.Logger
	// TransferTimeout is how long a client may take to send a body, or to take
	// an answer; default 30 s.
	TransferTimeout time.Duration
}

// NewHandler returns a handler of the hub that checks tokens with the verifier,
// whose hosts must include the hub's name.
// A nil opts means defaults.
func NewHandler(h *hub.Hub, v *sas.Verifier, opts *Options) *Handler {
	if opts == nil {
		opts = &Options{}
	}
	handler := &Handler{hub: h, verifier: v, log: opts.Logger, timeout: cmp.Or(opts.TransferTimeout, transferTimeout)}
	if handler.log == nil {
		handler.log = slog.New(slog.DiscardHandler)
	}
	handler.routes = handler.table()
	return handler
}

// request is an authorized request to a route.
type request struct {
	*http.Request
	control *http.ResponseController
	// deviceID is the segment {id} of the path, decoded.
	deviceID string
	claims   sas.Claims
}

// response is what a route answers.
type response struct {
	// status is 200 or 204; zero means 200.
	status int
	header http.Header
	// body is encoded as JSON unless the status is 204.
	body any
}

// route is an operation of the API.
type route struct {
	method string
	// path has the segment {id} for a device ID and a final * for whatever may
	// follow.
	path string
	// anyOf are the permissions of which a policy must have one.
	anyOf []sas.Permission
	serve func(context.Context, request) (response, error)
	// failure encodes errors of this route; nil means registryFailure.
	failure func(*hub.Error) any
}

// table lists the operations. Permissions are those of "Control access to IoT
// Hub by using shared access signatures" (IoT Hub docs); where that page leaves
// it open, either of two will do.
func (h *Handler) table() []route {
	read := []sas.Permission{sas.RegistryRead}
	write := []sas.Permission{sas.RegistryWrite}
	service := []sas.Permission{sas.ServiceConnect}
	device := []sas.Permission{sas.DeviceConnect}
	routes := []route{
		{method: "GET", path: "devices", anyOf: read, serve: h.listDevices},
		{method: "GET", path: "devices/{id}", anyOf: read, serve: h.getDevice},
		{method: "PUT", path: "devices/{id}", anyOf: write, serve: h.putDevice},
		{method: "DELETE", path: "devices/{id}", anyOf: write, serve: h.deleteDevice},
		{method: "DELETE", path: "devices/{id}/commands", anyOf: append(service, sas.RegistryWrite), serve: h.purge},
		{method: "GET", path: "statistics/devices", anyOf: read, serve: h.deviceStatistics},
		{method: "GET", path: "statistics/service", anyOf: append(service, sas.RegistryRead), serve: h.serviceStatistics},
		{method: "POST", path: "devices/query", anyOf: append(service, sas.RegistryRead), serve: h.query},
		{method: "GET", path: "twins/{id}", anyOf: service, serve: h.getTwin},
		{method: "POST", path: "twins/{id}/methods", anyOf: service, serve: h.invokeMethod, failure: methodFailure},
		{method: "POST", path: "devices/{id}/messages/events", anyOf: device, serve: h.sendEvent},
	}
	return append(routes, notEmulated()...)
}

// apiVersion is a date, for preview versions with a suffix.
var apiVersion = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}(-preview)?$`)

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	// The server reads on after a refusal, in order to use the connection again.
	// A recorder in a test has no deadlines, and needs none.
	_ = control.SetReadDeadline(time.Now().Add(h.timeout))
	h.extend(w)
	segments, err := splitPath(r.URL)
	if err != nil {
		h.fail(w, r, nil, err)
		return
	}
	found, id, err := h.find(r.Method, segments)
	if err != nil {
		h.fail(w, r, nil, err)
		return
	}
	claims, err := h.admit(r, found, segments)
	if err != nil {
		h.fail(w, r, found, err)
		return
	}
	answer, err := found.serve(r.Context(), request{Request: r, control: control, deviceID: id, claims: claims})
	if err != nil {
		h.fail(w, r, found, err)
		return
	}
	h.answer(w, r, answer)
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
			return nil, refuse(hub.CodeArgumentInvalid, "path is not percent-encoded as it should be")
		}
		segments[i] = decoded
	}
	return segments, nil
}

// find returns the route of a request and its device ID.
func (h *Handler) find(method string, segments []string) (*route, string, error) {
	var allowed []string
	for i := range h.routes {
		id, ok := h.routes[i].match(segments)
		switch {
		case !ok:
		case h.routes[i].method == method || h.routes[i].method == "":
			return &h.routes[i], id, nil
		default:
			allowed = append(allowed, h.routes[i].method)
		}
	}
	if len(allowed) > 0 {
		return nil, "", &methodError{allowed: slices.Compact(slices.Sorted(slices.Values(allowed)))}
	}
	return nil, "", errNoResource
}

func (r *route) match(segments []string) (id string, ok bool) {
	pattern := strings.Split(r.path, "/")
	for i, p := range pattern {
		switch {
		case p == "*":
			return id, true
		case i >= len(segments):
			return "", false
		case p == "{id}" && segments[i] != "":
			id = segments[i]
		case !strings.EqualFold(p, segments[i]):
			return "", false
		}
	}
	return id, len(pattern) == len(segments)
}

// admit checks what every request must have.
func (h *Handler) admit(r *http.Request, to *route, segments []string) (sas.Claims, error) {
	if v := r.URL.Query().Get("api-version"); !apiVersion.MatchString(v) {
		return sas.Claims{}, refuse(hub.CodeArgumentInvalid, "query parameter api-version must be a date such as 2021-04-12")
	}
	return h.authorize(r, to, segments)
}

// authorize checks the request's token for the permission and the resource.
func (h *Handler) authorize(r *http.Request, to *route, segments []string) (sas.Claims, error) {
	token := r.Header.Get("Authorization")
	switch {
	case token == "":
		return sas.Claims{}, refuse(hub.CodeUnauthorizedAccess, "header Authorization is missing")
	case !strings.HasPrefix(token, sas.Scheme+" "):
		return sas.Claims{}, refuse(hub.CodeUnauthorizedAccess, "the emulator takes shared access signatures only")
	}
	claims, err := h.verifier.Verify(token, h.hub.Name()+"/"+strings.Join(segments, "/"))
	if err != nil {
		if sas.Refused(err) {
			err = refuse(hub.CodeUnauthorizedAccess, "%s", err)
		}
		return sas.Claims{}, err
	}
	if !slices.ContainsFunc(to.anyOf, claims.Permissions.Has) {
		return sas.Claims{}, refuse(hub.CodeUnauthorizedAccess, "%s has %s and needs %s", holder(claims), claims.Permissions, to.anyOf[0])
	}
	return claims, nil
}

func holder(c sas.Claims) string {
	if c.Policy != "" {
		return fmt.Sprintf("policy %q", c.Policy)
	}
	return fmt.Sprintf("device %q", c.DeviceID)
}

// notEmulated are the operations that the hub of the cloud has beside those of
// the table.
func notEmulated() []route {
	anyOf := []sas.Permission{sas.RegistryRead, sas.RegistryWrite, sas.ServiceConnect, sas.DeviceConnect}
	var routes []route
	for path, what := range map[string]string{
		"devices/{id}/modules/*":              "module identities",
		"devices/{id}/messages/devicebound/*": "receiving over HTTP (use MQTT or AMQP)",
		"devices/{id}/files/*":                "file upload",
		"twins/{id}/modules/*":                "module identities",
		"jobs/*":                              "jobs",
		"messages/servicebound/*":             "feedback over HTTP (use AMQP)",
		"configurations/*":                    "configurations",
		"digitaltwins/*":                      "digital twins",
	} {
		routes = append(routes, route{path: path, anyOf: anyOf, serve: refuseAs(what)})
	}
	return append(routes,
		route{method: "POST", path: "devices", anyOf: anyOf, serve: refuseAs("bulk registry operations")},
		route{method: "PATCH", path: "twins/{id}", anyOf: anyOf, serve: refuseAs("writing twins")},
		route{method: "PUT", path: "twins/{id}", anyOf: anyOf, serve: refuseAs("writing twins")},
	)
}

func refuseAs(what string) func(context.Context, request) (response, error) {
	return func(context.Context, request) (response, error) { return response{}, &notEmulatedError{what} }
}

// notEmulatedError refuses what only the cloud does.
type notEmulatedError struct{ what string }

func (e *notEmulatedError) Error() string { return e.what + ": not emulated" }

// methodError refuses a method that a path doesn't have.
type methodError struct{ allowed []string }

func (e *methodError) Error() string {
	return "the path allows " + strings.Join(e.allowed, ", ")
}

var errNoResource = errors.New("no HTTP resource was found that matches the request URI")
