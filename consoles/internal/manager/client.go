// Package manager is the client of the manager's HTTP interface, which hands out device identities to those who have its
// API key.
package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// DefaultURL is where a manager on the same machine listens.
const DefaultURL = "http://127.0.0.1:8080"

// keyHeader carries the API key.
const keyHeader = "x-api-key"

const (
	requestTimeout = 30 * time.Second
	// maxAnswer is far above any answer of a manager; it guards against a wrong URL that streams something else.
	maxAnswer = 64 << 10
)

// ErrKeyRefused is the kind of error that says that the manager does not accept the API key.
var ErrKeyRefused = errors.New("the manager refused the API key: check HUBJOBS_API_KEY or --api-key-file")

// StatusError is an answer other than success; a refused key is [ErrKeyRefused] instead.
type StatusError struct {
	// Code is the HTTP status code.
	Code int
	// Reason is the manager's own explanation, if it gave one.
	Reason string
}

// Error says the status and the reason.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("the manager answered %d %s", e.Code, http.StatusText(e.Code))
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Client calls one manager. It may be used by several goroutines.
type Client struct {
	base *url.URL
	key  string
	http *http.Client
}

// New returns a client of the manager at the base URL, http or https.
func New(baseURL, apiKey string) (*Client, error) {
	base, err := url.Parse(baseURL)
	// The URL itself is not part of the errors: it may hold a password.
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") || base.User != nil || base.RawQuery != "" {
		return nil, errors.New("the manager's URL must look like " + DefaultURL)
	}
	if apiKey == "" {
		return nil, errors.New("the manager's API key is missing: set HUBJOBS_API_KEY or --api-key-file")
	}
	return &Client{base: base, key: apiKey, http: &http.Client{
		Timeout: requestTimeout,
		// A redirect would carry the API key to wherever the answer points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Negotiate makes sure that the device has an identity and returns its connection string, which is a secret.
func (c *Client) Negotiate(ctx context.Context, deviceID string) (string, error) {
	body, err := c.get(ctx, "negotiate", deviceID)
	if err != nil {
		return "", err
	}
	var answer struct {
		URL string `json:"url"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.URL == "" {
		return "", fmt.Errorf("negotiate %q: the answer holds no connection string: is %s a manager?", deviceID, c.base)
	}
	return answer.URL, nil
}

// Deregister removes the device's identity. An identity that does not exist is success.
func (c *Client) Deregister(ctx context.Context, deviceID string) error {
	_, err := c.get(ctx, "deregister", deviceID)
	var status *StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return nil
	}
	return err
}

func (c *Client) get(ctx context.Context, operation, deviceID string) ([]byte, error) {
	target := c.base.JoinPath(operation, url.PathEscape(deviceID))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", operation, deviceID, err)
	}
	request.Header.Set(keyHeader, c.key)
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s %q: is the manager running? %w", operation, deviceID, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s %q: read answer: %w", operation, deviceID, err)
	}
	if err := check(response.StatusCode, body); err != nil {
		return nil, fmt.Errorf("%s %q: %w", operation, deviceID, err)
	}
	return body, nil
}

func check(status int, body []byte) error {
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return ErrKeyRefused
	}
	var answer struct {
		Error string `json:"error"`
	}
	// A body that is not JSON, such as a proxy's page, explains nothing to the person at the console.
	_ = json.Unmarshal(body, &answer)
	return &StatusError{Code: status, Reason: strings.TrimSpace(answer.Error)}
}
