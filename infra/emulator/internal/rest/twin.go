package rest

import (
	"context"
	"net/http"
	"strconv"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/devicejobs"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const (
	// maxQuery is the largest body of a query in bytes; our own bound.
	maxQuery = 64 << 10
	// maxTwin is the largest body of a twin in bytes; our own bound, far above
	// what tags and properties may have, because SDKs send back whole twins with
	// their metadata.
	maxTwin = 512 << 10
	// methodOverhead is what a method call may have beside its payload.
	methodOverhead = 4 << 10
)

// Headers of queries (IoT Hub docs: "IoT Hub query language").
const (
	headerPageSize     = "X-Ms-Max-Item-Count"
	headerContinuation = "X-Ms-Continuation"
	headerItemType     = "X-Ms-Item-Type"
)

func (h *Handler) getTwin(_ context.Context, r request) (response, error) {
	return twin(h.hub.GetTwin(r.target()))
}

func twin(t hub.Twin, err error) (response, error) {
	return response{header: etag(t.ETag), body: t}, err
}

// twinWriter merges a patch into a twin, or replaces what the patch holds.
type twinWriter func(context.Context, hub.Target, hub.TwinPatch, hub.IfMatch) (hub.Twin, error)

func writeTwin(write twinWriter) func(context.Context, request) (response, error) {
	return func(ctx context.Context, r request) (response, error) {
		var patch hub.TwinPatch
		if err := readJSON(r, maxTwin, &patch); err != nil {
			return response{}, err
		}
		match, err := ifMatch(r)
		if err != nil {
			return response{}, err
		}
		return twin(write(ctx, r.target(), patch, match))
	}
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
	size, err := pageSize(r)
	if err != nil {
		return response{}, err
	}
	ask := h.hub.Query
	if h.jobs != nil && devicejobs.Asks(q.Query) {
		ask = h.jobs.Query
	}
	return page(ask(hub.Query{Text: q.Query, PageSize: size, Continuation: r.Header.Get(headerContinuation)}))
}

func page(p hub.QueryPage, err error) (response, error) {
	header := http.Header{headerItemType: {p.Type}}
	if p.Continuation != "" {
		header[headerContinuation] = []string{p.Continuation}
	}
	return response{header: header, body: p.Items}, err
}

// pageSize returns 0 where the request leaves it to the hub.
func pageSize(r request) (int, error) {
	text := r.Header.Get(headerPageSize)
	if text == "" {
		return 0, nil
	}
	size, err := strconv.Atoi(text)
	if err != nil || size < 1 {
		return 0, hub.Errorf(hub.CodeArgumentInvalid, "header %s is not a positive number", headerPageSize)
	}
	return size, nil
}

// invokeMethod waits for the device's answer, whose status is in the body: to
// HTTP, every answer is a success (IoT Hub docs: "Understand and invoke direct
// methods from IoT Hub").
func (h *Handler) invokeMethod(ctx context.Context, r request) (response, error) {
	var method hub.CloudToDeviceMethod
	if err := readJSON(r, hub.MaxMethodPayload+methodOverhead, &method); err != nil {
		return response{}, err
	}
	result, err := h.hub.InvokeMethod(ctx, r.target(), method.Call())
	return response{body: result}, err
}
