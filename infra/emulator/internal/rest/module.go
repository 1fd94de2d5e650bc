package rest

import (
	"context"
	"net/http"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

func (h *Handler) listModules(_ context.Context, r request) (response, error) {
	modules, err := h.hub.ListModules(r.deviceID)
	if modules == nil {
		modules = []hub.Module{} // an empty array, not null
	}
	return response{body: modules}, err
}

func (h *Handler) getModule(_ context.Context, r request) (response, error) {
	return module(h.hub.GetModule(r.target()))
}

// putModule creates a module, or with If-Match updates it. Both answer 200, as
// recordings of the cloud show (azure-sdk-for-net, ModulesClient_IdentityLifecycle.json),
// although its reference has 201 for creation; amenzhinsky/iothub takes no 201.
func (h *Handler) putModule(ctx context.Context, r request) (response, error) {
	var m hub.Module
	if err := readJSON(r, maxIdentity, &m); err != nil {
		return response{}, err
	}
	if err := samePath("deviceId", &m.DeviceID, r.deviceID); err != nil {
		return response{}, err
	}
	if err := samePath("moduleId", &m.ModuleID, r.moduleID); err != nil {
		return response{}, err
	}
	match, err := ifMatch(r)
	if err != nil {
		return response{}, err
	}
	if match == "" {
		return module(h.hub.CreateModule(ctx, m))
	}
	return module(h.hub.UpdateModule(ctx, m, match))
}

func (h *Handler) deleteModule(ctx context.Context, r request) (response, error) {
	match, err := requiredMatch(r)
	if err != nil {
		return response{}, err
	}
	return response{status: http.StatusNoContent}, h.hub.DeleteModule(ctx, r.target(), match)
}

// module answers with a module identity and its ETag.
func module(m hub.Module, err error) (response, error) {
	return response{header: etag(m.ETag), body: m}, err
}
