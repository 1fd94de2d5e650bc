package rest

import (
	"context"
	"net/http"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// route is an operation of the API.
type route struct {
	method string
	// path has segments in braces for what named holds, and a final * for
	// whatever may follow.
	path string
	// anyOf are the permissions of which a policy must have one.
	anyOf []sas.Permission
	serve func(context.Context, request) (response, error)
	// failure encodes errors of this route; nil means registryFailure.
	failure func(*hub.Error) any
}

// Permissions are those of "Control access to IoT Hub by using shared access
// signatures" (IoT Hub docs); where that page leaves it open, either of two will
// do.
var (
	toRead    = []sas.Permission{sas.RegistryRead}
	toWrite   = []sas.Permission{sas.RegistryWrite}
	toServe   = []sas.Permission{sas.ServiceConnect}
	toQuery   = []sas.Permission{sas.ServiceConnect, sas.RegistryRead}
	toPurge   = []sas.Permission{sas.ServiceConnect, sas.RegistryWrite}
	toConnect = []sas.Permission{sas.DeviceConnect}
	anybody   = []sas.Permission{sas.RegistryRead, sas.RegistryWrite, sas.ServiceConnect, sas.DeviceConnect}
)

// table lists the operations.
func (h *Handler) table() []route {
	var routes []route
	for _, group := range [][]route{h.registryRoutes(), h.twinRoutes(), h.serviceRoutes(), h.deviceRoutes(), h.jobRoutes(), notEmulated()} {
		routes = append(routes, group...)
	}
	return routes
}

func (h *Handler) registryRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "devices", anyOf: toRead, serve: h.listDevices},
		{method: http.MethodPost, path: "devices", anyOf: toWrite, serve: h.bulk},
		{method: http.MethodGet, path: "devices/{id}", anyOf: toRead, serve: h.getDevice},
		{method: http.MethodPut, path: "devices/{id}", anyOf: toWrite, serve: h.putDevice},
		{method: http.MethodDelete, path: "devices/{id}", anyOf: toWrite, serve: h.deleteDevice},
		{method: http.MethodGet, path: "devices/{id}/modules", anyOf: toRead, serve: h.listModules},
		{method: http.MethodGet, path: "devices/{id}/modules/{mid}", anyOf: toRead, serve: h.getModule},
		{method: http.MethodPut, path: "devices/{id}/modules/{mid}", anyOf: toWrite, serve: h.putModule},
		{method: http.MethodDelete, path: "devices/{id}/modules/{mid}", anyOf: toWrite, serve: h.deleteModule},
		{method: http.MethodGet, path: "statistics/devices", anyOf: toRead, serve: h.deviceStatistics},
		{method: http.MethodGet, path: "statistics/service", anyOf: toQuery, serve: h.serviceStatistics},
	}
}

// twinRoutes are there for devices and for modules.
func (h *Handler) twinRoutes() []route {
	var routes []route
	for _, path := range []string{"twins/{id}", "twins/{id}/modules/{mid}"} {
		routes = append(routes,
			route{method: http.MethodGet, path: path, anyOf: toServe, serve: h.getTwin},
			route{method: http.MethodPatch, path: path, anyOf: toServe, serve: writeTwin(h.hub.PatchTwin)},
			route{method: http.MethodPut, path: path, anyOf: toServe, serve: writeTwin(h.hub.ReplaceTwin)},
			route{method: http.MethodPost, path: path + "/methods", anyOf: toServe, serve: h.invokeMethod, failure: methodFailure},
		)
	}
	return append(routes, route{method: http.MethodPost, path: "devices/query", anyOf: toQuery, serve: h.query})
}

func (h *Handler) serviceRoutes() []route {
	return []route{
		{method: http.MethodDelete, path: "devices/{id}/commands", anyOf: toPurge, serve: h.purge},
		{method: http.MethodGet, path: "messages/servicebound/feedback", anyOf: toServe, serve: h.receiveFeedback},
		{method: http.MethodDelete, path: "messages/servicebound/feedback/{lock}", anyOf: toServe, serve: h.completeFeedback},
		{method: http.MethodPost, path: "messages/servicebound/feedback/{lock}/abandon", anyOf: toServe, serve: h.abandonFeedback},
		{method: http.MethodGet, path: "messages/servicebound/filenotifications", anyOf: toServe, serve: noFileNotification},
	}
}

func (h *Handler) deviceRoutes() []route {
	return []route{
		{method: http.MethodPost, path: "devices/{id}/messages/events", anyOf: toConnect, serve: h.sendEvents},
		{method: http.MethodPost, path: "devices/{id}/modules/{mid}/messages/events", anyOf: toConnect, serve: h.sendEvents},
		{method: http.MethodGet, path: "devices/{id}/messages/devicebound", anyOf: toConnect, serve: h.receiveC2D},
		{method: http.MethodDelete, path: "devices/{id}/messages/devicebound/{lock}", anyOf: toConnect, serve: h.completeC2D},
		{method: http.MethodPost, path: "devices/{id}/messages/devicebound/{lock}/abandon", anyOf: toConnect, serve: h.abandonC2D},
	}
}

func (h *Handler) jobRoutes() []route {
	if h.jobs == nil {
		return []route{{path: "jobs/v2/*", anyOf: toServe, serve: refuseAs("jobs")}}
	}
	return []route{
		{method: http.MethodGet, path: "jobs/v2/query", anyOf: toServe, serve: h.listJobs},
		{method: http.MethodPut, path: "jobs/v2/{job}", anyOf: toServe, serve: h.createJob},
		{method: http.MethodGet, path: "jobs/v2/{job}", anyOf: toServe, serve: h.getJob},
		{method: http.MethodPost, path: "jobs/v2/{job}/cancel", anyOf: toServe, serve: h.cancelJob},
	}
}

// notEmulated are the operations that the hub of the cloud has beside those.
func notEmulated() []route {
	var routes []route
	for path, what := range map[string]string{
		"devices/{id}/files/*":                   "file upload",
		"devices/{id}/applyconfigurationcontent": "configurations",
		"configurations/*":                       "configurations",
		"jobs":                                   "import and export jobs",
		"jobs/{job}":                             "import and export jobs",
		"digitaltwins/*":                         "digital twins",
		"messages/servicebound/filenotifications/*": "file upload",
	} {
		routes = append(routes, route{path: path, anyOf: anybody, serve: refuseAs(what)})
	}
	return routes
}

func refuseAs(what string) func(context.Context, request) (response, error) {
	return func(context.Context, request) (response, error) { return response{}, &notEmulatedError{what} }
}

// notEmulatedError refuses what only the cloud does.
type notEmulatedError struct{ what string }

func (e *notEmulatedError) Error() string { return e.what + ": not emulated" }
