package devicejobs

import (
	"cmp"
	"encoding/json"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// deviceState is where a job is on one device (azure-iot-sdk-csharp,
// DeviceJobStatus.cs).
type deviceState string

const (
	devicePending   deviceState = "pending"
	deviceRunning   deviceState = "running"
	deviceCompleted deviceState = "completed"
	deviceFailed    deviceState = "failed"
	deviceCanceled  deviceState = "canceled"
)

// deviceJob is what became of a job on one device, as a query of devices.jobs
// shows it (IoT Hub docs: "IoT Hub query language"; azure-iot-sdk-csharp,
// DeviceJob.cs).
type deviceJob struct {
	DeviceID string       `json:"deviceId"`
	ModuleID string       `json:"moduleId,omitempty"`
	JobID    string       `json:"jobId"`
	Type     Type         `json:"jobType"`
	State    deviceState  `json:"status"`
	Start    *hub.Time    `json:"startTimeUtc,omitempty"`
	End      *hub.Time    `json:"endTimeUtc,omitempty"`
	Created  hub.Time     `json:"createdDateTimeUtc"`
	Updated  hub.Time     `json:"lastUpdatedDateTimeUtc"`
	Outcome  *outcome     `json:"outcome,omitempty"`
	Error    *deviceError `json:"error,omitempty"`
}

// outcome is what a device answered; empty for a twin update.
type outcome struct {
	Response *hub.MethodResult `json:"deviceMethodResponse"`
}

// deviceError says why a job failed on a device.
type deviceError struct {
	Code        string `json:"code"`
	Description string `json:"description"`
}

func errorOf(err error) *deviceError {
	e := hub.AsError(err)
	return &deviceError{Code: e.Code.Name(), Description: e.Message}
}

func (d *deviceJob) target() hub.Target {
	return hub.Target{DeviceID: d.DeviceID, ModuleID: d.ModuleID}
}

// compare orders the devices of a job.
func (d *deviceJob) compare(other *deviceJob) int {
	return cmp.Or(strings.Compare(d.DeviceID, other.DeviceID), strings.Compare(d.ModuleID, other.ModuleID))
}

// begin notes that the device has its turn.
func (d *deviceJob) begin(now time.Time) {
	d.State, d.Start, d.Updated = deviceRunning, &hub.Time{Time: now}, hub.Time{Time: now}
}

// finish notes the end.
func (d *deviceJob) finish(now time.Time, state deviceState, result *outcome, err *deviceError) {
	end := hub.Time{Time: now}
	d.State, d.End, d.Updated = state, &end, end
	d.Outcome, d.Error = result, err
}

// count adds the device to the statistics of its job.
func (s *Statistics) count(d *deviceJob) {
	s.Devices++
	switch d.State {
	case devicePending:
		s.Pending++
	case deviceRunning:
		s.Running++
	case deviceCompleted:
		s.Succeeded++
	default:
		s.Failed++
	}
}

// document is a deviceJob for the WHERE clause of a query.
type document map[string]any

func newDocument(d deviceJob) (document, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	fields := make(document)
	return fields, json.Unmarshal(text, &fields)
}

// Lookup implements query.Document. Names of fields don't mind case.
func (d document) Lookup(path []string) (any, bool) {
	var value any = map[string]any(d)
	for _, name := range path {
		object, ok := value.(map[string]any)
		if !ok {
			return nil, false
		}
		if value, ok = field(object, name); !ok {
			return nil, false
		}
	}
	return value, true
}

func field(object map[string]any, name string) (any, bool) {
	if value, ok := object[name]; ok {
		return value, true
	}
	for known, value := range object {
		if strings.EqualFold(known, name) {
			return value, true
		}
	}
	return nil, false
}
