package devicejobs

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Type is what a job does to each device.
type Type string

const (
	DeviceMethod Type = "scheduleDeviceMethod"
	UpdateTwin   Type = "scheduleUpdateTwin"
)

// State is where a job is in its life (swagger iothubservice, JobResponse).
type State string

const (
	Scheduled State = "scheduled" // its time is yet to come
	Queued    State = "queued"    // due, and waiting for its turn
	Running   State = "running"
	Completed State = "completed" // every device had its turn, whatever came of it
	Failed    State = "failed"    // its condition is no query, or its time was over
	Cancelled State = "cancelled"
)

// ended reports whether nothing more will happen to the job.
func (s State) ended() bool { return s == Completed || s == Failed || s == Cancelled }

// Limits of jobs (IoT Hub docs: "Schedule jobs on multiple devices", "IoT Hub
// quotas and throttling").
const (
	// DefaultMaxExecution is that of the Node SDK (azure-iothub 1.16
	// job_client.js), for callers that set none.
	DefaultMaxExecution = time.Hour
	// MaxExecution is the longest time that a job may have.
	MaxExecution = 48 * time.Hour
	// History is how long a job that has ended can be read.
	History = 30 * 24 * time.Hour
	// DefaultMaxActive is how many jobs of an S1 hub run at once.
	DefaultMaxActive = 1
)

// Job is a job as the service REST API shows it: a JobResponse. A caller sets
// the ID, the type, what belongs to the type, the condition and the times.
type Job struct {
	ID   string `json:"jobId"`
	Type Type   `json:"type"`
	// Method is a CloudToDeviceMethod, as the caller wrote it.
	Method json.RawMessage `json:"cloudToDeviceMethod,omitempty"`
	// Twin is a Twin, as the caller wrote it: its tags and desired properties
	// are merged into that of each device.
	Twin json.RawMessage `json:"updateTwin,omitempty"`
	// Condition is the WHERE clause of a query for devices, or all of a query
	// behind its SELECT. Empty or * means every device.
	Condition string   `json:"queryCondition"`
	Created   hub.Time `json:"createdTime"`
	// Start is when to begin; zero means now.
	Start hub.Time `json:"startTime"`
	// End is nil while the job has not ended.
	End *hub.Time `json:"endTime,omitempty"`
	// MaxSeconds is how long the job may take from its beginning.
	MaxSeconds int    `json:"maxExecutionTimeInSeconds"`
	State      State  `json:"status"`
	Failure    string `json:"failureReason,omitempty"`
	// Statistics is nil until the devices are known.
	Statistics *Statistics `json:"deviceJobStatistics,omitempty"`
}

// Statistics count the devices of a job.
type Statistics struct {
	Devices   int `json:"deviceCount"`
	Failed    int `json:"failedCount"`
	Succeeded int `json:"succeededCount"`
	Running   int `json:"runningCount"`
	Pending   int `json:"pendingCount"`
}

// update is what a job writes of a twin.
type update struct {
	hub.TwinPatch
	ETag string `json:"etag"`
}

func (u update) match() hub.IfMatch { return hub.IfMatch(strings.Trim(u.ETag, `"`)) }

// normalise checks what a caller may set, fills in defaults, and drops the rest.
func (j *Job) normalise(now time.Time) error {
	if !hub.ValidID(j.ID) {
		return hub.Errorf(hub.CodeArgumentInvalid, "job ID %q has characters that IDs can't have, or more than 128", j.ID)
	}
	if err := j.checkType(); err != nil {
		return err
	}
	longest := int(MaxExecution / time.Second)
	if j.MaxSeconds < 0 || j.MaxSeconds > longest {
		return hub.Errorf(hub.CodeArgumentInvalid, "maxExecutionTimeInSeconds is not between 1 and %d", longest)
	}
	if j.MaxSeconds == 0 {
		j.MaxSeconds = int(DefaultMaxExecution / time.Second)
	}
	j.Created = hub.Time{Time: now.Truncate(100 * time.Nanosecond)} // as exact as it is written
	if j.Start.IsZero() {
		j.Start = j.Created
	}
	j.State, j.End, j.Failure, j.Statistics = Scheduled, nil, "", nil
	return nil
}

// checkType checks what belongs to the job's type.
func (j *Job) checkType() error {
	switch {
	case strings.EqualFold(string(j.Type), string(DeviceMethod)):
		j.Type, j.Twin = DeviceMethod, nil
		var m hub.CloudToDeviceMethod
		if err := decode("cloudToDeviceMethod", j.Method, &m); err != nil {
			return err
		}
		return m.Call().Check()
	case strings.EqualFold(string(j.Type), string(UpdateTwin)):
		j.Type, j.Method = UpdateTwin, nil
		return decode("updateTwin", j.Twin, &update{})
	}
	return hub.Errorf(hub.CodeArgumentInvalid, "job type %q is neither %s nor %s", j.Type, DeviceMethod, UpdateTwin)
}

func decode(field string, text json.RawMessage, v any) error {
	if len(text) == 0 || bytes.Equal(text, []byte("null")) {
		return hub.Errorf(hub.CodeArgumentNull, "%s is missing", field)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return hub.Errorf(hub.CodeFormatError, "%s has a field of a wrong type", field)
	}
	return nil
}

// maxExecution is how long the job may take.
func (j *Job) maxExecution() time.Duration { return time.Duration(j.MaxSeconds) * time.Second }

// query is the text that selects the job's devices.
func (j *Job) query() string {
	condition := strings.TrimSpace(j.Condition)
	word, _, _ := strings.Cut(condition, " ")
	switch {
	case condition == "" || condition == "*":
		return "SELECT * FROM devices"
	case strings.EqualFold(word, "FROM"):
		return "SELECT * " + condition
	}
	return "SELECT * FROM devices WHERE " + condition
}
