package devicejobs

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Keys in the store: j/<job>/i holds a job, j/<job>/d/<device>[/<module>] what
// became of it there.
const (
	jobPrefix    = "j/"
	jobSuffix    = "i"
	devicePrefix = "d/"
)

func jobKeys(id string) string { return jobPrefix + url.PathEscape(id) + "/" }

// record is a job in the store.
type record struct {
	Job
	// Began is when the job began to run; zero before.
	Began time.Time
}

func (r *record) put() (store.Op, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return store.Op{}, fmt.Errorf("job %s: %w", r.ID, err)
	}
	return store.Put(jobKeys(r.ID)+jobSuffix, value), nil
}

func (d *deviceJob) put() (store.Op, error) {
	value, err := json.Marshal(d)
	if err != nil {
		return store.Op{}, fmt.Errorf("job %s on %s: %w", d.JobID, d.target(), err)
	}
	key := jobKeys(d.JobID) + devicePrefix + url.PathEscape(d.DeviceID)
	if d.ModuleID != "" {
		key += "/" + url.PathEscape(d.ModuleID)
	}
	return store.Put(key, value), nil
}

// load reads all jobs, as they were when the process ended.
func load(s store.Store) (map[string]*job, error) {
	jobs := make(map[string]*job)
	err := s.Load(jobPrefix, func(key string, value []byte) error {
		escaped, name, _ := strings.Cut(key[len(jobPrefix):], "/")
		id, err := url.PathUnescape(escaped)
		if err != nil {
			return fmt.Errorf("stored job %q: %w", escaped, err)
		}
		j := jobs[id]
		if j == nil {
			j = new(job)
			jobs[id] = j
		}
		if name == jobSuffix {
			err = json.Unmarshal(value, &j.record)
		} else {
			d := new(deviceJob)
			err = json.Unmarshal(value, d)
			j.devices = append(j.devices, d)
		}
		if err != nil {
			return fmt.Errorf("stored job %s: %w", id, err)
		}
		return nil
	})
	for _, j := range jobs {
		slices.SortFunc(j.devices, (*deviceJob).compare)
	}
	return jobs, err
}

// saved is a job or a device of one.
type saved interface{ put() (store.Op, error) }

// save queues a change behind those before it, and returns where its result will
// come. The caller holds mu, so that changes come to the store in their order,
// and waits without it.
func (r *Runner) save(changes ...saved) <-chan error {
	result := make(chan error, 1)
	ops := make([]store.Op, len(changes))
	for i, c := range changes {
		var err error
		if ops[i], err = c.put(); err != nil {
			result <- err
			return result
		}
	}
	if len(ops) == 0 {
		result <- nil
		return result
	}
	r.store.Submit(func(err error) { result <- err }, ops...)
	return result
}

// recover brings a job that was in the store into a state to go on from, and
// returns what changed.
func (j *job) recover(now time.Time) []saved {
	j.accepted = true
	var changed []saved
	for _, d := range j.devices {
		switch {
		case d.State != devicePending && d.State != deviceRunning:
			continue
		case j.State == Cancelled:
			d.finish(now, deviceCanceled, nil, errorOf(errCancelled))
		case d.State == devicePending:
			continue
		case j.Type == DeviceMethod:
			d.finish(now, deviceFailed, nil, errorOf(errInterrupted))
		default:
			d.State, d.Start = devicePending, nil
		}
		changed = append(changed, d)
	}
	return changed
}
