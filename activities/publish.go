package activities

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// MessageSender puts messages on one queue or topic of Service Bus. Send returns when the broker holds m; its errors
// are classified as a job.Error. From and To travel as application properties.
type MessageSender interface {
	Send(ctx context.Context, m job.Message) error
}

// JobTopic is the activity Publish.
type JobTopic struct {
	Topic MessageSender
}

// Publish puts a job on the topic. The message ID is the job ID, so the topic's duplicate detection drops a repeat.
func (a *JobTopic) Publish(ctx context.Context, in job.PublishInput) (job.None, error) {
	if err := in.Job.Validate(); err != nil {
		return job.None{}, err
	}
	body, err := job.Encode(in.Job)
	if err != nil {
		return job.None{}, invalid("encode job", err)
	}
	m := job.Message{
		ID:              in.Job.CorrelationID,
		CorrelationID:   in.Job.CorrelationID,
		Kind:            job.KindJob,
		ContentType:     job.ContentTypeJSON,
		ContentEncoding: job.ContentEncodingUTF8,
		Properties:      SolverProperties(in.Options),
		Body:            body,
	}
	_, err = withDeadline(ctx, func(ctx context.Context) (job.None, error) {
		return job.None{}, a.Topic.Send(ctx, m)
	})
	if err != nil {
		return job.None{}, fmt.Errorf("publish job %q: %w", in.Job.CorrelationID, err)
	}
	return job.None{}, nil
}

// SolverProperties returns the application properties that carry o on the topic. Settings that o leaves to the solver
// are left out.
func SolverProperties(o job.SolverOptions) map[string]string {
	p := make(map[string]string)
	if o.StepTime != nil {
		p[job.PropertyStepTime] = o.StepTime.String()
	}
	if o.StepTimeout != 0 {
		p[job.PropertyStepTimeout] = o.StepTimeout.String()
	}
	if o.StepRetries != 0 {
		p[job.PropertyStepRetries] = strconv.Itoa(o.StepRetries)
	}
	if o.ReceiptTimeout != 0 {
		p[job.PropertyReceiptTimeout] = o.ReceiptTimeout.String()
	}
	if !o.Deadline.IsZero() {
		p[job.PropertyDeadline] = o.Deadline.UTC().Format(time.RFC3339Nano)
	}
	if !o.AcceptBefore.IsZero() {
		p[job.PropertyAcceptBefore] = o.AcceptBefore.UTC().Format(time.RFC3339Nano)
	}
	return p
}

// ParseSolverProperties undoes SolverProperties; other properties are ignored. The error matches job.ErrInvalid and
// names the property.
func ParseSolverProperties(p map[string]string) (job.SolverOptions, error) {
	var o job.SolverOptions
	var stepTime time.Duration
	err := parseEach(p, map[string]func(string) error{
		job.PropertyStepTime:       parseInto(&stepTime, time.ParseDuration),
		job.PropertyStepTimeout:    parseInto(&o.StepTimeout, time.ParseDuration),
		job.PropertyStepRetries:    parseInto(&o.StepRetries, strconv.Atoi),
		job.PropertyReceiptTimeout: parseInto(&o.ReceiptTimeout, time.ParseDuration),
		job.PropertyDeadline:       parseInto(&o.Deadline, parseTime),
		job.PropertyAcceptBefore:   parseInto(&o.AcceptBefore, parseTime),
	})
	if err != nil {
		return job.SolverOptions{}, err
	}
	if _, given := p[job.PropertyStepTime]; given {
		o.StepTime = &stepTime
	}
	if err := (job.Options{Solver: o}).Validate(); err != nil {
		return job.SolverOptions{}, err
	}
	return o, nil
}

func parseTime(s string) (time.Time, error) { return time.Parse(time.RFC3339Nano, s) }

func parseInto[T any](target *T, parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		v, err := parse(s)
		if err == nil {
			*target = v
		}
		return err
	}
}

func parseEach(p map[string]string, parsers map[string]func(string) error) error {
	for name, parse := range parsers {
		value, given := p[name]
		if !given {
			continue
		}
		if err := parse(value); err != nil {
			return invalid(fmt.Sprintf("property %q", name), err)
		}
	}
	return nil
}
