package rest

import (
	"cmp"
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/devicejobs"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// maxJob is the largest body of a job in bytes: room for a twin.
const maxJob = maxTwin

// jobRequest is a JobRequest (swagger iothubservice 2020-09-30).
type jobRequest struct {
	ID         string          `json:"jobId"`
	Type       devicejobs.Type `json:"type"`
	Method     json.RawMessage `json:"cloudToDeviceMethod"`
	Twin       json.RawMessage `json:"updateTwin"`
	Condition  string          `json:"queryCondition"`
	Start      *string         `json:"startTime"`
	MaxSeconds int             `json:"maxExecutionTimeInSeconds"`
}

func (h *Handler) createJob(_ context.Context, r request) (response, error) {
	var q jobRequest
	if err := readJSON(r, maxJob, &q); err != nil {
		return response{}, err
	}
	if err := samePath("jobId", &q.ID, r.jobID); err != nil {
		return response{}, err
	}
	start, err := startTime(q.Start)
	if err != nil {
		return response{}, err
	}
	return jobAnswer(h.jobs.Create(devicejobs.Job{
		ID: q.ID, Type: q.Type, Method: q.Method, Twin: q.Twin, Condition: q.Condition, Start: start, MaxSeconds: q.MaxSeconds,
	}))
}

// startTime is zero for a job that starts at once. A time without zone is UTC,
// like those of .NET.
func startTime(text *string) (hub.Time, error) {
	if text == nil || *text == "" {
		return hub.Time{}, nil
	}
	for _, format := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if t, err := time.Parse(format, *text); err == nil {
			return hub.Time{Time: t.UTC()}, nil
		}
	}
	return hub.Time{}, hub.Errorf(hub.CodeArgumentInvalid, "startTime is not a time in RFC 3339")
}

func (h *Handler) getJob(_ context.Context, r request) (response, error) {
	return jobAnswer(h.jobs.Get(r.jobID))
}

func (h *Handler) cancelJob(_ context.Context, r request) (response, error) {
	return jobAnswer(h.jobs.Cancel(r.jobID))
}

func jobAnswer(j devicejobs.Job, err error) (response, error) {
	return response{body: j}, err
}

// listJobs pages like a query, with headers as azure-iothub sends them or with
// the parameters of the swagger.
func (h *Handler) listJobs(_ context.Context, r request) (response, error) {
	parameters := r.URL.Query()
	size, err := pageSize(r)
	if text := parameters.Get("pageSize"); text != "" {
		size, err = strconv.Atoi(text)
	}
	if err != nil || size < 0 {
		return response{}, hub.Errorf(hub.CodeArgumentInvalid, "the page size is not a positive number")
	}
	filter := devicejobs.Filter{
		Type:  devicejobs.Type(parameters.Get("jobType")),
		State: devicejobs.State(parameters.Get("jobStatus")),
	}
	continuation := cmp.Or(r.Header.Get(headerContinuation), parameters.Get("continuationToken"))
	return page(h.jobs.List(filter, size, continuation))
}
