package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

const (
	negotiateTimeout = 15 * time.Second
	maxAnswer        = 16 << 10 // bytes of an answer that are read
)

// Negotiator asks the manager for the connection strings of devices.
type Negotiator struct {
	manager *url.URL
	key     string
	client  *http.Client
}

// NewNegotiator returns a negotiator. managerURL is like "http://manager:8080".
func NewNegotiator(managerURL, apiKey string) (*Negotiator, error) {
	u, err := url.Parse(managerURL)
	switch {
	case managerURL == "":
		return nil, errors.New("the manager's URL is not set")
	case err != nil:
		return nil, errors.New("the manager's URL can't be read: it should look like http://manager:8080")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.User != nil:
		return nil, fmt.Errorf("the manager's URL %q should look like http://manager:8080", u.Redacted())
	case apiKey == "":
		return nil, errors.New("the API key of the manager is not set")
	}
	return &Negotiator{manager: u, key: apiKey, client: &http.Client{
		Timeout: negotiateTimeout,
		// A transport of its own, so that Close can end its idle connections; and no redirects, which would carry the key
		// to wherever they lead.
		Transport:     http.DefaultTransport.(*http.Transport).Clone(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// ConnectionString returns the connection string of a device that exists: a secret. It never creates a device, because
// one that is created by a mere reconnect would outlive its job. The error matches job.ErrNotFound when there is none,
// job.ErrUnauthorized when the manager refuses the key, job.ErrInvalid, job.ErrThrottled or job.ErrUnavailable.
func (n *Negotiator) ConnectionString(ctx context.Context, deviceID string) (string, error) {
	op := "ask the manager for device " + deviceID
	u := n.manager.JoinPath("negotiate", url.PathEscape(deviceID))
	u.RawQuery = "existing=true"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", &job.Error{Op: op, Kind: job.ErrInvalid, Err: err}
	}
	req.Header.Set("x-api-key", n.key)
	resp, err := n.client.Do(req)
	if err != nil {
		return "", &job.Error{Op: op, Kind: job.ErrUnavailable, Err: err}
	}
	defer resp.Body.Close()
	var answer struct {
		URL   string `json:"url"`
		Error string `json:"error"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return "", &job.Error{Op: op, Kind: job.ErrUnavailable, Err: err}
	}
	// An answer that can't be read must not be quoted: it may hold the key.
	if json.Unmarshal(body, &answer) != nil {
		answer.Error = "the answer is not JSON"
	}
	if resp.StatusCode != http.StatusOK || answer.URL == "" {
		return "", &job.Error{Op: op, Kind: kind(resp.StatusCode), RetryAfter: retryAfter(resp.Header),
			Err: fmt.Errorf("status %d: %s", resp.StatusCode, answer.Error)}
	}
	return answer.URL, nil
}

func kind(status int) error {
	switch status {
	case http.StatusBadRequest:
		return job.ErrInvalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return job.ErrUnauthorized
	case http.StatusNotFound:
		return job.ErrNotFound
	case http.StatusTooManyRequests:
		return job.ErrThrottled
	}
	return job.ErrUnavailable
}

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// Close ends idle connections.
func (n *Negotiator) Close() { n.client.CloseIdleConnections() }
