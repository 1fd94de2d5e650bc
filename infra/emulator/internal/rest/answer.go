package rest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

const contentType = "application/json; charset=utf-8"

// codeNotImplemented is in no list of the cloud, where everything is there.
const codeNotImplemented = "NotImplemented"

// answer writes a success.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, a response) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	status := cmp.Or(a.status, http.StatusOK)
	if a.body != nil {
		h.write(w, r, status, a.body)
		return
	}
	h.extend(w)
	w.WriteHeader(status)
	_, _ = w.Write(a.message)
}

// extend gives the client its time to take the answer, however long that was in
// the making. It is twice that of a body: the server waits for what is missing of
// a body before it writes.
func (h *Handler) extend(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(2 * h.timeout))
}

func (h *Handler) write(w http.ResponseWriter, r *http.Request, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		h.log.ErrorContext(r.Context(), "encode answer", "path", r.URL.Path, "error", err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	h.extend(w)
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that has gone needs no answer
}

// failure is the body of an error: Message starts with ErrorCode:<name>; and
// SDKs take the name from there (azure-iothub 1.16 rest_api_client.js).
type failure struct {
	Message          string `json:"Message"`
	ExceptionMessage string `json:"ExceptionMessage"`
}

// fail writes an error; to is nil when no route was found.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, to *route, err error) {
	var notEmulated *notEmulatedError
	var wrongMethod *methodError
	switch {
	case errors.As(err, &notEmulated):
		h.write(w, r, http.StatusNotImplemented, plainFailure(w, codeNotImplemented, err))
		return
	case errors.As(err, &wrongMethod):
		w.Header().Set("Allow", strings.Join(wrongMethod.allowed, ", "))
		h.write(w, r, http.StatusMethodNotAllowed, plainFailure(w, hub.CodeInvalidOperation.Name(), err))
		return
	case errors.Is(err, errNoResource):
		h.write(w, r, http.StatusNotFound, failure{Message: err.Error()})
		return
	}
	if r.Context().Err() != nil && errors.Is(err, r.Context().Err()) {
		// The client has gone, and that is nothing to log. If it only stopped
		// sending, it must not take silence for success.
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	e := hub.AsError(err)
	if status := e.Code.Status(); status >= 500 && status != http.StatusGatewayTimeout {
		h.log.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "trackingId", e.TrackingID, "error", err)
	} else {
		h.log.InfoContext(r.Context(), "request refused", "method", r.Method, "path", r.URL.Path, "trackingId", e.TrackingID, "error", err)
	}
	w.Header().Set("iothub-errorcode", e.Code.Name())
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	encode := registryFailure
	if to != nil && to.failure != nil {
		encode = to.failure
	}
	h.write(w, r, e.Code.Status(), encode(e))
}

func plainFailure(w http.ResponseWriter, name string, err error) failure {
	w.Header().Set("iothub-errorcode", name)
	return failure{Message: "ErrorCode:" + name + ";" + err.Error()}
}

// registryFailure is the form of errors of the registry and older operations.
func registryFailure(e *hub.Error) any {
	return failure{
		Message:          "ErrorCode:" + e.Code.Name() + ";" + e.Message,
		ExceptionMessage: fmt.Sprintf("Tracking ID:%s-TimeStamp:%s", e.TrackingID, time.Now().UTC().Format("01/02/2006 15:04:05")),
	}
}

// methodFailure is the form of errors of direct methods: an object as text
// within the text.
func methodFailure(e *hub.Error) any {
	inner, err := json.Marshal(struct {
		hub.ErrorBody
		Info struct{} `json:"info"`
	}{ErrorBody: e.Body()})
	if err != nil {
		return registryFailure(e)
	}
	return failure{Message: string(inner)}
}
