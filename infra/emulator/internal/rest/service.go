package rest

import (
	"context"
	"net/http"
)

func (h *Handler) deviceStatistics(context.Context, request) (response, error) {
	return response{body: h.hub.DeviceStatistics()}, nil
}

func (h *Handler) serviceStatistics(context.Context, request) (response, error) {
	return response{body: h.hub.ServiceStatistics()}, nil
}

func (h *Handler) purge(ctx context.Context, r request) (response, error) {
	result, err := h.hub.PurgeC2D(ctx, r.deviceID)
	return response{body: result}, err
}

// noFileNotification answers that there is none: without file upload there never
// is.
func noFileNotification(context.Context, request) (response, error) {
	return response{status: http.StatusNoContent}, nil
}
