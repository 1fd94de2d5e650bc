package iothub

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
)

// apiVersion is the newest stable version of the service API (azure-iot-sdk-node, azure-iothub, lib/version.ts).
const apiVersion = "2021-04-12"

// Refusals for being too fast are not retried here but classified: who calls knows how urgent it is.
var retried = []int{
	http.StatusRequestTimeout, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

func newTransport(addr string, tlsConfig *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSClientConfig:     tlsConfig.Clone(),
		TLSHandshakeTimeout: 15 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
	}
	if addr != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, addr)
		}
	}
	return t
}

func newPipeline(transport *http.Transport, auth authenticator) runtime.Pipeline {
	return runtime.NewPipeline("iothub", "v1.0.0",
		runtime.PipelineOptions{PerRetry: []policy.Policy{auth.httpPolicy()}},
		&policy.ClientOptions{
			Retry: policy.RetryOptions{
				MaxRetries: 3, RetryDelay: 300 * time.Millisecond, MaxRetryDelay: 5 * time.Second, StatusCodes: retried,
			},
			Transport: &http.Client{Transport: transport},
			Telemetry: policy.TelemetryOptions{ApplicationID: "hubjobs"},
		})
}

// call is one request of the service API.
type call struct {
	op     string // for errors: what is tried
	method string
	path   string // escaped
	header map[string]string
	body   any // sent as JSON unless nil
	result any // the answer is read into it unless nil
}

// do sends a request and returns the answer's header. The caller's context must have a deadline.
func (c *Client) do(ctx context.Context, in call) (http.Header, error) {
	req, err := runtime.NewRequest(ctx, in.method, "https://"+c.host+in.path+"?api-version="+apiVersion)
	if err != nil {
		return nil, classify(in.op, err)
	}
	for name, value := range in.header {
		req.Raw().Header.Set(name, value)
	}
	if in.body != nil {
		if err := runtime.MarshalAsJSON(req, in.body); err != nil {
			return nil, classify(in.op, err)
		}
	}
	resp, err := c.pipeline.Do(req)
	if err != nil {
		return nil, classify(in.op, err)
	}
	payload, err := runtime.Payload(resp)
	if err != nil {
		return nil, classify(in.op, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, refusal(in.op, resp, payload)
	}
	if in.result != nil {
		if err := json.Unmarshal(payload, in.result); err != nil {
			return nil, classify(in.op, err)
		}
	}
	return resp.Header, nil
}

// withDeadline bounds one call.
func (c *Client) withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}
