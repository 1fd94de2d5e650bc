// Package deadletters works on the dead-letter queue of a queue or subscription: it lists what is there and why, puts
// messages back where they came from, and removes them for good.
//
// A message that is put back is sent as a copy first and completed after the copy is stored. What goes wrong in between
// repeats a message and never loses one.
package deadletters

import (
	"context"
	"fmt"
	"slices"

	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
)

// QueueDeviceMessages is the pipeline's queue of what devices send.
const QueueDeviceMessages = "device-messages"

// Queue is the dead-letter queue of a source.
type Queue struct {
	bus  *servicebus.Client
	from servicebus.Source
}

// Of returns the dead-letter queue of a queue or subscription.
func Of(bus *servicebus.Client, from servicebus.Source) *Queue {
	from.DeadLetter = true
	return &Queue{bus: bus, from: from}
}

// Filter selects dead letters.
type Filter struct {
	Reason string // only of this reason; empty: of any
	Limit  int    // at most as many; 0: all
	Newest bool   // the newest first, and not the oldest
}

// List returns dead letters, and whether there are more than the filter's limit.
func (q *Queue) List(ctx context.Context, f Filter) (found []*servicebus.Received, more bool, err error) {
	for r, err := range q.bus.Browse(ctx, q.from, 1) {
		switch {
		case err != nil:
			return nil, false, err
		case f.Reason != "" && r.DeadLetterReason != f.Reason:
			continue
		}
		if found = append(found, r); f.Limit == 0 || len(found) <= f.Limit {
			continue
		}
		more = true
		if !f.Newest {
			return found[:f.Limit], more, nil
		}
		found = slices.Delete(found, 0, 1)
	}
	if f.Newest {
		slices.Reverse(found)
	}
	return found, more, nil
}

// Find returns the dead letter of a sequence number. The error matches job.ErrNotFound when there is none.
func (q *Queue) Find(ctx context.Context, number int64) (*servicebus.Received, error) {
	found, err := q.bus.Find(ctx, q.from, number)
	if err != nil {
		return nil, err
	}
	if found[number] == nil {
		return nil, q.missing(number)
	}
	return found[number], nil
}

// Select returns the numbers of all dead letters, or of those of one reason, in ascending order. What is dead-lettered
// later isn't among them, and so a message that is put back and refused again isn't put back in turn.
func (q *Queue) Select(ctx context.Context, reason string) ([]int64, error) {
	var numbers []int64
	for r, err := range q.bus.Browse(ctx, q.from, 1) {
		if err != nil {
			return nil, err
		}
		if reason == "" || r.DeadLetterReason == reason {
			numbers = append(numbers, r.SequenceNumber)
		}
	}
	return numbers, nil
}

// Check returns an error that matches job.ErrNotFound and names the first number of which there is no dead letter.
func (q *Queue) Check(ctx context.Context, numbers []int64) error {
	found, err := q.bus.Find(ctx, q.from, numbers...)
	if err != nil {
		return err
	}
	for _, number := range numbers {
		if found[number] == nil {
			return q.missing(number)
		}
	}
	return nil
}

func (q *Queue) missing(number int64) error { return &MissingError{Number: number, Queue: q.Name()} }

// MissingError says that there is no dead letter of a number. It matches job.ErrNotFound.
type MissingError struct {
	Number int64
	Queue  string
}

// Error returns one line for people.
func (e *MissingError) Error() string {
	return fmt.Sprintf("%s has no dead letter %d", e.Queue, e.Number)
}

// Unwrap returns the kind of the error.
func (e *MissingError) Unwrap() error { return job.ErrNotFound }

// Entity is where the messages were sent to: the queue, or the subscription's topic.
func (q *Queue) Entity() string {
	if q.from.Queue != "" {
		return q.from.Queue
	}
	return q.from.Topic
}

// String names the source with what it is.
func (q *Queue) String() string {
	if q.from.Queue != "" {
		return fmt.Sprintf("queue %q", q.from.Queue)
	}
	return fmt.Sprintf("subscription %q of topic %q", q.from.Subscription, q.from.Topic)
}

// Name names the source for people: a queue, or a topic and its subscription.
func (q *Queue) Name() string {
	if q.from.Queue != "" {
		return q.from.Queue
	}
	return q.from.Topic + "/" + q.from.Subscription
}
