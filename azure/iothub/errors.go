package iothub

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/azure/internal/fault"
	"github.com/hubjobs/hubjobs/job"
)

// Refusal is an answer of the service API other than success: the cause in errors of the HTTPS calls.
type Refusal struct {
	StatusCode int    // of HTTP
	Code       string // the hub's name or number for it, for example "DeviceNotFound" or "404103"; may be empty
	Message    string
}

// Error returns one line.
func (r *Refusal) Error() string {
	s := "HTTP " + strconv.Itoa(r.StatusCode)
	if r.Code != "" {
		s += " " + r.Code
	}
	if r.Message != "" {
		s += ": " + r.Message
	}
	return s
}

// codes are the hub's error codes that say more than the HTTP status
// (IoT Hub docs, "Understand and resolve Azure IoT Hub errors"; azure-iot-sdk-csharp, ErrorCode.cs).
var codes = map[string]error{
	"IotHubQuotaExceeded":             job.ErrQuota,
	"403002":                          job.ErrQuota,
	"DeviceMaximumQueueDepthExceeded": job.ErrQueueFull,
	"403004":                          job.ErrQueueFull,
	"JobQuotaExceeded":                job.ErrThrottled,
	"403003":                          job.ErrThrottled,
	"DeviceNotOnline":                 job.ErrUnavailable,
	"404103":                          job.ErrUnavailable,
	"DeviceConnectionClosedRemotely":  job.ErrUnavailable,
	"404104":                          job.ErrUnavailable,
	"MessageTooLarge":                 job.ErrTooLarge,
}

// statuses are the kinds of an HTTP status without a code in codes.
var statuses = map[int]error{
	http.StatusBadRequest:            job.ErrInvalid,
	http.StatusUnauthorized:          job.ErrUnauthorized,
	http.StatusForbidden:             job.ErrUnauthorized,
	http.StatusNotFound:              job.ErrNotFound,
	http.StatusConflict:              job.ErrExists,
	http.StatusPreconditionFailed:    job.ErrPrecondition,
	http.StatusRequestEntityTooLarge: job.ErrTooLarge,
	http.StatusTooManyRequests:       job.ErrThrottled,
}

// refusal classifies an answer other than success.
func refusal(op string, resp *http.Response, payload []byte) error {
	code, message := errorBody(payload)
	if h := resp.Header.Get("iothub-errorcode"); h != "" {
		code = h
	}
	kind, ok := codes[code]
	if !ok {
		kind, ok = statuses[resp.StatusCode]
	}
	if !ok {
		kind = job.ErrUnavailable
	}
	return &job.Error{Op: op, Kind: kind, RetryAfter: retryAfter(resp.Header, time.Now()),
		Err: &Refusal{StatusCode: resp.StatusCode, Code: code, Message: message}}
}

// maxMessage is how many bytes of the service's own words are kept.
const maxMessage = 300

// errorBody reads the two shapes in which the hub explains a refusal: {"Message":"ErrorCode:<name>;<text>"}, and
// {"Message":"<JSON with errorCode and message, as a string>"} or that JSON directly.
func errorBody(payload []byte) (code, message string) {
	var outer struct {
		Message   string          `json:"Message"`
		ErrorCode json.RawMessage `json:"errorCode"`
	}
	if json.Unmarshal(payload, &outer) != nil {
		return "", ""
	}
	if len(outer.ErrorCode) > 0 {
		return strings.Trim(string(outer.ErrorCode), `"`), shorten(outer.Message)
	}
	if strings.HasPrefix(outer.Message, "{") {
		return errorBody([]byte(outer.Message))
	}
	if rest, ok := strings.CutPrefix(outer.Message, "ErrorCode:"); ok {
		code, message, _ = strings.Cut(rest, ";")
		return code, shorten(message)
	}
	return "", shorten(outer.Message)
}

func shorten(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "..."
	}
	return s
}

// retryAfter reads the header Retry-After: seconds or a date (RFC 9110 §10.2.3). 0 means that the service didn't say.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(v); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// amqpConditions are what AMQP error conditions mean for a hub in particular
// (azure-iot-sdk-node, azure-iothub, lib/amqp_service_errors.ts).
var amqpConditions = fault.Conditions{
	amqp.ErrCondResourceLimitExceeded: job.ErrQueueFull,

	"com.microsoft:device-container-throttled": job.ErrThrottled,
	"com.microsoft:quota-exceeded":             job.ErrQuota,
	"com.microsoft:device-already-exists":      job.ErrExists,
	"com.microsoft:iot-hub-suspended":          job.ErrUnauthorized,
	"com.microsoft:iot-hub-not-found-error":    job.ErrUnauthorized,
}

func classify(op string, err error) error { return fault.Wrap(op, err, amqpConditions) }

func invalid(op, format string, args ...any) error {
	return &job.Error{Op: op, Kind: job.ErrInvalid, Err: fmt.Errorf(format, args...)}
}
