package iothub

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/hubjobs/hubjobs/job"
)

// Method is a direct method to invoke on a device.
type Method struct {
	Name            string
	Payload         json.RawMessage // any JSON; nil: null
	ResponseTimeout time.Duration   // 5 s to 5 min; 0: 30 s
	ConnectTimeout  time.Duration   // how long to wait for a device that is offline, up to 5 min; 0: not at all
}

// MethodResult is what the device answered. Status is the device's own; the call succeeded whatever it is.
type MethodResult struct {
	Status  int             `json:"status"`
	Payload json.RawMessage `json:"payload"`
}

// InvokeMethod invokes a direct method and returns the device's answer. It is never retried, as the device may have run
// it. The error matches job.ErrUnavailable when the device is offline or doesn't answer in time.
func (c *Client) InvokeMethod(ctx context.Context, deviceID string, m Method) (MethodResult, error) {
	if err := job.ValidateDeviceID(deviceID); err != nil {
		return MethodResult{}, err
	}
	op := "invoke method " + m.Name + " of device " + deviceID
	if m.Name == "" {
		return MethodResult{}, invalid("invoke a method of device "+deviceID, "the method has no name")
	}
	if m.ResponseTimeout == 0 {
		m.ResponseTimeout = 30 * time.Second
	}
	if m.Payload == nil {
		m.Payload = json.RawMessage("null")
	}
	ctx, cancel := context.WithTimeout(policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1}),
		m.ResponseTimeout+m.ConnectTimeout+c.timeout)
	defer cancel()
	var result MethodResult
	_, err := c.do(ctx, call{
		op: op, method: http.MethodPost, path: "/twins/" + url.PathEscape(deviceID) + "/methods",
		body: map[string]any{
			"methodName": m.Name, "payload": m.Payload,
			"responseTimeoutInSeconds": seconds(m.ResponseTimeout), "connectTimeoutInSeconds": seconds(m.ConnectTimeout),
		},
		result: &result,
	})
	return result, err
}

// seconds rounds up: a timeout of less than a second shall not become none.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
