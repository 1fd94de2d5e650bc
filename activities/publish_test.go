package activities

import (
	"maps"
	"reflect"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

func someJob() job.Job {
	return job.Job{Name: "Job 1", CorrelationID: "job-1", Steps: []string{"a", "Done"}}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	topic := &outbox{}
	a := &JobTopic{Topic: topic}
	in := job.PublishInput{Job: someJob(), Options: job.SolverOptions{StepRetries: 2}}
	if _, err := run(t, attempt{}, job.Publish, a.Publish, in); err != nil {
		t.Fatal(err)
	}
	want := job.Message{
		ID: "job-1", CorrelationID: "job-1", Kind: job.KindJob,
		ContentType: "application/json", ContentEncoding: "utf-8",
		Properties: map[string]string{"step-retries": "2"},
		Body:       job.Body(`{"Name":"Job 1","CorrelationId":"job-1","Steps":["a","Done"]}`),
	}
	if len(topic.sent) != 1 || !reflect.DeepEqual(topic.sent[0], want) {
		t.Errorf("got %+v, want %+v", topic.sent, want)
	}
}

func TestPublishFails(t *testing.T) {
	t.Parallel()
	a := &JobTopic{Topic: &outbox{fail: map[string]error{"job-1": &job.Error{Kind: job.ErrUnavailable}}}}
	_, err := run(t, attempt{}, job.Publish, a.Publish, job.PublishInput{Job: someJob()})
	if app := application(t, err); app.Type() != "Unavailable" || app.NonRetryable() {
		t.Errorf("got %v", err)
	}
	_, err = run(t, attempt{}, job.Publish, a.Publish, job.PublishInput{})
	if app := application(t, err); app.Type() != "Invalid" || !app.NonRetryable() {
		t.Errorf("a job without an ID: got %v", err)
	}
}

func TestSolverProperties(t *testing.T) {
	t.Parallel()
	stepTime := time.Duration(0)
	for name, c := range map[string]struct {
		options job.SolverOptions
		wire    map[string]string
	}{
		"nothing given":                 {job.SolverOptions{}, map[string]string{}},
		"no time at all is not nothing": {job.SolverOptions{StepTime: &stepTime}, map[string]string{"step-time": "0s"}},
		"everything": {
			job.SolverOptions{
				StepTime: &stepTime, StepTimeout: time.Minute, StepRetries: 3, ReceiptTimeout: 1500 * time.Millisecond,
				Deadline:     time.Date(2030, 1, 2, 3, 4, 5, 600, time.UTC),
				AcceptBefore: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
			},
			map[string]string{
				"step-time": "0s", "step-timeout": "1m0s", "step-retries": "3", "receipt-timeout": "1.5s",
				"deadline": "2030-01-02T03:04:05.0000006Z", "accept-before": "2030-01-02T03:04:05Z",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wire := SolverProperties(c.options)
			if !maps.Equal(wire, c.wire) {
				t.Errorf("got %v, want %v", wire, c.wire)
			}
			wire["other"] = "ignored"
			back, err := ParseSolverProperties(wire)
			if err != nil || !reflect.DeepEqual(back, c.options) {
				t.Errorf("read back %+v, %v; want %+v", back, err, c.options)
			}
		})
	}
}

func TestParseSolverPropertiesRefuses(t *testing.T) {
	t.Parallel()
	for _, p := range []map[string]string{
		{"step-time": "soon"}, {"step-time": "-1s"}, {"step-timeout": "5"}, {"step-retries": "1.5"}, {"step-retries": "-1"},
		{"receipt-timeout": ""}, {"deadline": "tomorrow"}, {"accept-before": "1"},
	} {
		if _, err := ParseSolverProperties(p); job.ErrorType(err) != "Invalid" {
			t.Errorf("%v: got %v, want an error that matches ErrInvalid", p, err)
		}
	}
}
