package rest

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const (
	// maxList is the most that a list of devices holds, and its default (IoT
	// Hub docs: "Understand the identity registry").
	maxList = 1000
	// maxIdentity is the largest body of an identity in bytes; our own bound.
	maxIdentity = 64 << 10
)

func (h *Handler) listDevices(_ context.Context, r request) (response, error) {
	top := maxList
	if text := r.URL.Query().Get("top"); text != "" {
		var err error
		if top, err = strconv.Atoi(text); err != nil || top < 1 || top > maxList {
			return response{}, refuse(hub.CodeArgumentInvalid, "query parameter top must be a number from 1 to %d", maxList)
		}
	}
	return response{body: h.hub.ListDevices(top)}, nil
}

func (h *Handler) getDevice(_ context.Context, r request) (response, error) {
	return identity(h.hub.GetDevice(r.deviceID))
}

// putDevice creates an identity, or with If-Match updates it. Both answer 200:
// amenzhinsky/iothub takes no 201.
func (h *Handler) putDevice(ctx context.Context, r request) (response, error) {
	var id hub.Identity
	if err := readJSON(r, maxIdentity, &id); err != nil {
		return response{}, err
	}
	switch id.DeviceID {
	case r.deviceID:
	case "":
		id.DeviceID = r.deviceID
	default:
		return response{}, refuse(hub.CodeArgumentInvalid, "deviceId of the body is not that of the path")
	}
	match, err := ifMatch(r)
	if err != nil {
		return response{}, err
	}
	if match == "" {
		return identity(h.hub.CreateDevice(ctx, id))
	}
	return identity(h.hub.UpdateDevice(ctx, id, match))
}

func (h *Handler) deleteDevice(ctx context.Context, r request) (response, error) {
	match, err := ifMatch(r)
	if err != nil {
		return response{}, err
	}
	if match == "" {
		return response{}, refuse(hub.CodeArgumentInvalid, "header If-Match is missing: send the ETag, or * for any")
	}
	return response{status: http.StatusNoContent}, h.hub.DeleteDevice(ctx, r.deviceID, match)
}

// identity answers with an identity and its ETag, which is in quotes in the
// header and without in the body.
func identity(id hub.Identity, err error) (response, error) {
	return response{header: etag(id.ETag), body: id}, err
}

func etag(tag string) http.Header {
	return http.Header{"Etag": {strconv.Quote(tag)}}
}

// ifMatch returns the condition of a write; empty when there is none. The quotes
// may be left out, and azure-iothub puts them around the asterisk too.
func ifMatch(r request) (hub.IfMatch, error) {
	values := r.Header.Values("If-Match")
	if len(values) == 0 {
		return "", nil
	}
	value := strings.TrimSpace(values[0])
	if unquoted, ok := strings.CutPrefix(value, `"`); ok {
		value = strings.TrimSuffix(unquoted, `"`)
	}
	if len(values) > 1 || value == "" || strings.ContainsAny(value, `",`) {
		return "", refuse(hub.CodeArgumentInvalid, "header If-Match is not one ETag or *")
	}
	return hub.IfMatch(value), nil
}
