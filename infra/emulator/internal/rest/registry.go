package rest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
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
	// maxBulk is the largest body of a bulk operation in bytes: room for as many
	// items as there may be, each with a twin.
	maxBulk = 8 << 20
)

func (h *Handler) listDevices(_ context.Context, r request) (response, error) {
	top := maxList
	if text := r.URL.Query().Get("top"); text != "" {
		var err error
		if top, err = strconv.Atoi(text); err != nil || top < 1 || top > maxList {
			return response{}, hub.Errorf(hub.CodeArgumentInvalid, "query parameter top must be a number from 1 to %d", maxList)
		}
	}
	devices, err := h.hub.ListDevices(top)
	return response{body: devices}, err
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
	if err := samePath("deviceId", &id.DeviceID, r.deviceID); err != nil {
		return response{}, err
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

// samePath fills an ID that the body leaves out, and refuses another one than
// that of the path.
func samePath(field string, inBody *string, inPath string) error {
	*inBody = cmp.Or(*inBody, inPath)
	if *inBody != inPath {
		return hub.Errorf(hub.CodeArgumentInvalid, "%s of the body is not that of the path", field)
	}
	return nil
}

func (h *Handler) deleteDevice(ctx context.Context, r request) (response, error) {
	match, err := requiredMatch(r)
	if err != nil {
		return response{}, err
	}
	return response{status: http.StatusNoContent}, h.hub.DeleteDevice(ctx, r.deviceID, match)
}

// identity answers with an identity and its ETag, which is in quotes in the
// header and without in the body.
func identity(id hub.Identity, err error) (response, error) {
	return response{header: etag(id.ETag), body: id}, err
}

// bulkItems are decoded up to one more than there may be: a body has room for
// millions that say next to nothing.
type bulkItems []hub.BulkItem

// UnmarshalJSON implements json.Unmarshaler.
func (items *bulkItems) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if first, err := d.Token(); err != nil || first != json.Delim('[') {
		return errors.Join(err, &json.UnmarshalTypeError{Value: "value other than an array"})
	}
	for d.More() && len(*items) <= hub.MaxBulkItems {
		var i hub.BulkItem
		if err := d.Decode(&i); err != nil {
			return err
		}
		*items = append(*items, i)
	}
	return nil
}

// bulk answers with what became of each item, as a success or as a failure of
// the whole.
func (h *Handler) bulk(ctx context.Context, r request) (response, error) {
	var items bulkItems
	if err := readJSON(r, maxBulk, &items); err != nil {
		return response{}, err
	}
	result, err := h.hub.Bulk(ctx, items)
	status := http.StatusOK
	if !result.IsSuccessful {
		status = http.StatusBadRequest
	}
	return response{status: status, body: result}, err
}

// ifMatch returns the condition of a write; empty when there is none. The quotes
// may be left out, and azure-iothub puts them around the asterisk too. With nothing
// between them there is no condition, which is how Azure.Iot.Hub.Service creates
// identities (azure-sdk-for-net, DevicesClient_IdentityLifecycle.json).
func ifMatch(r request) (hub.IfMatch, error) {
	values := r.Header.Values("If-Match")
	if len(values) == 0 {
		return "", nil
	}
	value := strings.TrimSpace(values[0])
	if unquoted, ok := strings.CutPrefix(value, `"`); ok {
		value = strings.TrimSuffix(unquoted, `"`)
	}
	if len(values) > 1 || strings.ContainsAny(value, `",`) {
		return "", hub.Errorf(hub.CodeArgumentInvalid, "header If-Match is not one ETag or *")
	}
	return hub.IfMatch(value), nil
}

// requiredMatch is ifMatch for deletions, which need a condition.
func requiredMatch(r request) (hub.IfMatch, error) {
	match, err := ifMatch(r)
	if err == nil && match == "" {
		err = hub.Errorf(hub.CodeArgumentInvalid, "header If-Match is missing: send the ETag, or * for any")
	}
	return match, err
}
