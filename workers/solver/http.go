package solver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/role"
)

const (
	routeJobs = "/jobs"

	// Answers of a subscriber to its sidecar (Dapr docs, "Pub/sub API reference", expected HTTP response).
	statusSuccess = "SUCCESS"
	statusDrop    = "DROP"
	statusRetry   = "RETRY"

	// headerToken carries the token by which an application knows its sidecar (Dapr docs, "Authenticate requests from
	// Dapr using token authentication").
	headerToken = "dapr-api-token"

	mediaTypeCloudEvent = "application/cloudevents+json" // CloudEvents 1.0, HTTP protocol binding §3.2

	// maxRequest leaves room for an envelope and its base64 around a job.
	maxRequest = 2 * job.MaxDeviceToCloudSize
)

// api takes jobs over HTTP, as a subscriber behind a Dapr sidecar or from anybody else.
type api struct {
	intake *intake
	pubsub string // name of the sidecar's pub/sub component
	token  string // empty: none is asked for
}

func (a *api) routes(mux *http.ServeMux) {
	mux.Handle("POST "+routeJobs, a.guarded(a.post))
	mux.Handle("GET /dapr/subscribe", a.guarded(a.subscribe))
}

func (a *api) guarded(next http.HandlerFunc) http.Handler {
	want := sha256.Sum256([]byte(a.token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := sha256.Sum256([]byte(r.Header.Get(headerToken)))
		if a.token != "" && subtle.ConstantTimeCompare(given[:], want[:]) != 1 {
			role.Error(w, http.StatusUnauthorized, "the header "+headerToken+" is missing or wrong")
			return
		}
		next(w, r)
	})
}

// subscription is what a sidecar is told to subscribe to.
type subscription struct {
	PubsubName string            `json:"pubsubname"`
	Topic      string            `json:"topic"`
	Route      string            `json:"route"`
	Metadata   map[string]string `json:"metadata"`
}

// subscribe tells the sidecar what to subscribe to. The manager publishes bare jobs, which the sidecar only takes, and
// wraps, when it is told that the payload is raw.
func (a *api) subscribe(w http.ResponseWriter, _ *http.Request) {
	role.JSON(w, http.StatusOK, []subscription{{
		PubsubName: a.pubsub, Topic: role.TopicJobs, Route: routeJobs,
		Metadata: map[string]string{"rawPayload": "true"},
	}})
}

// answer is what both a sidecar and a person understand.
type answer struct {
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`
}

// post starts the job in the request. A sidecar reads the status in the body, and takes any HTTP status but 200 for a
// reason to deliver again; so an event that is not a job, which no repetition mends, is answered with 200 and DROP. Who
// posts a job as it is gets 400.
func (a *api) post(w http.ResponseWriter, r *http.Request) {
	data, event, err := jobData(w, r)
	var j job.Job
	if err == nil {
		j, err = job.DecodeJob(data)
	}
	if err != nil {
		a.refuse(w, event, err)
		return
	}
	err = role.Bounded(r.Context(), func(ctx context.Context) error {
		return a.intake.start(ctx, j, job.SolverOptions{})
	})
	switch {
	case err == nil:
		role.JSON(w, http.StatusOK, answer{Status: statusSuccess})
	case role.Permanent(err):
		a.refuse(w, event, err)
	default:
		a.intake.log.Warn("a job could not be started", "job", j.CorrelationID, "error", err)
		role.JSON(w, http.StatusServiceUnavailable, answer{Status: statusRetry, Error: "the job could not be started, try again later"})
	}
}

func (a *api) refuse(w http.ResponseWriter, event bool, err error) {
	status := http.StatusBadRequest
	if event {
		a.intake.log.Warn("an event is not a job, it is dropped", "error", err)
		status = http.StatusOK
	}
	role.JSON(w, status, answer{Status: statusDrop, Error: err.Error()})
}

// jobData returns the job's JSON, and whether it came as a CloudEvent: in structured mode as an envelope in JSON, in
// binary mode as a body with the envelope in headers (CloudEvents 1.0, HTTP protocol binding §3.1 and §3.2).
func jobData(w http.ResponseWriter, r *http.Request) (data []byte, event bool, err error) {
	binary := r.Header.Get("ce-specversion") != ""
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return nil, binary, fmt.Errorf("read the request: %w", err)
	}
	if binary {
		return body, true, nil
	}
	var envelope struct {
		SpecVersion string          `json:"specversion"`
		Data        json.RawMessage `json:"data"`
		DataBase64  []byte          `json:"data_base64"`
	}
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	err = json.Unmarshal(body, &envelope)
	if mediaType != mediaTypeCloudEvent && (err != nil || envelope.SpecVersion == "") {
		return body, false, nil
	}
	switch {
	case err != nil:
		return nil, true, fmt.Errorf("read the event: %w", err)
	case len(envelope.DataBase64) > 0:
		return envelope.DataBase64, true, nil
	case len(envelope.Data) == 0:
		return nil, true, errors.New("the event has no data")
	}
	return unquoted(envelope.Data), true, nil
}

// unquoted returns the text of a JSON string, and any other JSON as it is: who publishes JSON without saying so has it
// delivered as a string.
func unquoted(data []byte) []byte {
	var text string
	if bytes.HasPrefix(data, []byte(`"`)) && json.Unmarshal(data, &text) == nil {
		return []byte(strings.TrimSpace(text))
	}
	return data
}
