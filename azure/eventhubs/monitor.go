package eventhubs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	azeventhubs "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/hubjobs/hubjobs/azure/internal/backoff"
	"github.com/hubjobs/hubjobs/job"
)

// Options say what Monitor shows.
type Options struct {
	ConsumerGroup string // empty: DefaultConsumerGroup
	Partition     string // ID of the only partition to read; empty: all
	FromBeginning bool   // start with the oldest message that is kept, rather than with those that come from now on
}

// DeviceMessage is a device-to-cloud message as the built-in endpoint has it.
type DeviceMessage struct {
	Partition  string
	Sequence   int64 // in the partition
	Offset     string
	EnqueuedAt time.Time
	DeviceID   string // the authenticated sender

	MessageID     string
	CorrelationID string
	ContentType   string
	Body          []byte
	Properties    map[string]string // application properties
	System        map[string]string // what the hub stamped: message annotations such as iothub-message-source
}

// Monitor calls fn with each device message, one at a time; messages of one device come in order. It returns nil when
// ctx ends, or fn's error. Lost connections are made again where they broke off; the error is one that trying again
// can't mend, job.ErrNotFound or job.ErrInvalid.
func (c *Client) Monitor(ctx context.Context, opts Options, fn func(DeviceMessage) error) error {
	group := opts.ConsumerGroup
	if group == "" {
		group = DefaultConsumerGroup
	}
	sdk, err := c.open(group)
	if err != nil {
		return classify("monitor device messages", err)
	}
	defer c.closeSDK(ctx, sdk)
	partitions := []string{opts.Partition}
	if opts.Partition == "" {
		if partitions, err = c.partitions(ctx, sdk); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	return c.monitorAll(ctx, sdk, partitions, opts, fn)
}

// monitorAll reads the partitions side by side; the first error ends all.
func (c *Client) monitorAll(ctx context.Context, sdk *azeventhubs.ConsumerClient, partitions []string, opts Options, fn func(DeviceMessage) error) error {
	outer := ctx
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var (
		one     sync.Mutex // calls of fn
		readers sync.WaitGroup
	)
	for _, id := range partitions {
		r := &reader{client: c, sdk: sdk, partition: id}
		readers.Go(func() {
			err := r.run(ctx, opts.FromBeginning, func(m DeviceMessage) error {
				one.Lock()
				defer one.Unlock()
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return fn(m)
			})
			if err != nil {
				fail(err)
			}
		})
	}
	readers.Wait()
	if outer.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// reader reads one partition.
type reader struct {
	client    *Client
	sdk       *azeventhubs.ConsumerClient
	partition string
	after     *int64 // sequence number of the last message that was shown or skipped; nil: not known yet
}

func (r *reader) run(ctx context.Context, fromBeginning bool, fn func(DeviceMessage) error) error {
	retry := backoff.Backoff{Initial: 250 * time.Millisecond, Max: 30 * time.Second}
	op := "read partition " + r.partition
	for ctx.Err() == nil {
		seen := r.after
		err := r.read(ctx, fromBeginning, fn)
		var shown *showError
		if errors.As(err, &shown) {
			return shown.error
		}
		if err = classify(op, err); !job.Retryable(err) {
			return err
		}
		if r.after != seen {
			retry.Reset()
		}
		if ctx.Err() == nil {
			r.client.log.WarnContext(ctx, "reading device messages was interrupted", "partition", r.partition, "error", err)
		}
		if backoff.Wait(ctx, retry.Next()) != nil {
			break
		}
	}
	return nil
}

// showError is fn's error.
type showError struct{ error }

// read reads over one link until that breaks.
func (r *reader) read(ctx context.Context, fromBeginning bool, fn func(DeviceMessage) error) error {
	start, err := r.start(ctx, fromBeginning)
	if err != nil {
		return err
	}
	link, err := r.sdk.NewPartitionClient(r.partition, &azeventhubs.PartitionClientOptions{StartPosition: start})
	if err != nil {
		return err
	}
	defer r.client.closeSDK(ctx, link)
	for {
		events, err := link.ReceiveEvents(ctx, 1, nil) // from what was prefetched; more would wait for more
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := fn(deviceMessage(r.partition, e)); err != nil {
				return &showError{err}
			}
			r.after = &e.SequenceNumber
		}
	}
}

// start is where to read on. "From now on" is found out once, as a sequence number: the SDK's position "latest" would be
// decided when the link is attached, and lose what comes while it is attached again before the first message.
func (r *reader) start(ctx context.Context, fromBeginning bool) (azeventhubs.StartPosition, error) {
	if r.after == nil && fromBeginning {
		earliest := true
		return azeventhubs.StartPosition{Earliest: &earliest}, nil
	}
	if r.after == nil {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		p, err := r.sdk.GetPartitionProperties(ctx, r.partition, nil)
		if err != nil {
			return azeventhubs.StartPosition{}, err
		}
		r.after = &p.LastEnqueuedSequenceNumber
	}
	return azeventhubs.StartPosition{SequenceNumber: r.after}, nil
}

// Annotation with the authenticated sender (IoT Hub docs, "Read device-to-cloud messages from the built-in endpoint").
const annotationDeviceID = job.PropertyDeviceID

func deviceMessage(partition string, e *azeventhubs.ReceivedEventData) DeviceMessage {
	m := DeviceMessage{
		Partition: partition, Sequence: e.SequenceNumber, Offset: e.Offset, Body: e.Body,
		Properties: texts(e.Properties), System: texts(e.SystemProperties),
	}
	m.DeviceID = m.System[annotationDeviceID]
	if e.EnqueuedTime != nil {
		m.EnqueuedAt = e.EnqueuedTime.UTC()
	}
	if e.MessageID != nil {
		m.MessageID = *e.MessageID
	}
	if e.CorrelationID != nil {
		m.CorrelationID = text(e.CorrelationID)
	}
	if e.ContentType != nil {
		m.ContentType = *e.ContentType
	}
	return m
}

func texts(in map[string]any) map[string]string {
	out := make(map[string]string, len(in))
	for name, value := range in {
		out[name] = text(value)
	}
	return out
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprint(v)
}
