package rest

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const (
	// maxQuery is the largest body of a query in bytes; our own bound.
	maxQuery = 64 << 10
	// methodOverhead is what a method call may have beside its payload.
	methodOverhead = 4 << 10
)

// Headers of queries (IoT Hub docs: "IoT Hub query language").
const (
	headerPageSize     = "X-Ms-Max-Item-Count"
	headerContinuation = "X-Ms-Continuation"
	headerItemType     = "X-Ms-Item-Type"
)

func (h *Handler) deviceStatistics(context.Context, request) (response, error) {
	return response{body: h.hub.DeviceStatistics()}, nil
}

func (h *Handler) serviceStatistics(context.Context, request) (response, error) {
	return response{body: h.hub.ServiceStatistics()}, nil
}

// query answers one page. The continuation header stands there only while there
// is more: azure-iothub takes its presence for that.
func (h *Handler) query(_ context.Context, r request) (response, error) {
	var q struct {
		Query string `json:"query"`
	}
	if err := readJSON(r, maxQuery, &q); err != nil {
		return response{}, err
	}
	size := 0
	if text := r.Header.Get(headerPageSize); text != "" {
		var err error
		if size, err = strconv.Atoi(text); err != nil || size < 1 {
			return response{}, refuse(hub.CodeArgumentInvalid, "header %s is not a positive number", headerPageSize)
		}
	}
	page, err := h.hub.Query(hub.Query{Text: q.Query, PageSize: size, Continuation: r.Header.Get(headerContinuation)})
	if err != nil {
		return response{}, err
	}
	header := http.Header{headerItemType: {page.Type}}
	if page.Continuation != "" {
		header[headerContinuation] = []string{page.Continuation}
	}
	return response{header: header, body: page.Items}, nil
}

func (h *Handler) purge(ctx context.Context, r request) (response, error) {
	result, err := h.hub.PurgeC2D(ctx, r.deviceID)
	return response{body: result}, err
}

func (h *Handler) getTwin(_ context.Context, r request) (response, error) {
	twin, err := h.hub.GetTwin(r.deviceID)
	return response{header: etag(twin.ETag), body: twin}, err
}

// invokeMethod waits for the device's answer, whose status is in the body: to
// HTTP, every answer is a success (IoT Hub docs: "Understand and invoke direct
// methods from IoT Hub").
func (h *Handler) invokeMethod(ctx context.Context, r request) (response, error) {
	var call struct {
		Name            string          `json:"methodName"`
		Payload         json.RawMessage `json:"payload"`
		ResponseTimeout int             `json:"responseTimeoutInSeconds"`
		ConnectTimeout  int             `json:"connectTimeoutInSeconds"`
	}
	if err := readJSON(r, hub.MaxMethodPayload+methodOverhead, &call); err != nil {
		return response{}, err
	}
	result, err := h.hub.InvokeMethod(ctx, r.deviceID, hub.MethodCall{
		Name:            call.Name,
		Payload:         call.Payload,
		ResponseTimeout: seconds(call.ResponseTimeout),
		ConnectTimeout:  seconds(call.ConnectTimeout),
	})
	return response{body: result}, err
}

// seconds keeps numbers that are far too large from turning into small ones.
func seconds(n int) time.Duration {
	const limit = 1 << 30
	return time.Duration(max(-limit, min(n, limit))) * time.Second
}
