package hub

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// feedbackBatch is how many records make a batch at once (IoT Hub docs: "Send
// cloud-to-device messages from an IoT hub").
const feedbackBatch = 64

// Wire constants of feedback messages (IoT Hub docs, same page).
const (
	feedbackContentType = "application/vnd.microsoft.iothub.feedback.json"
	feedbackAddress     = "/messages/serviceBound/feedback"
	feedbackQueueName   = "$feedback"
)

// feedbackPrefix begins the keys of records that wait for their batch.
const feedbackPrefix = "f/"

// feedbackRecord tells the end of one cloud-to-device message.
type feedbackRecord struct {
	OriginalMessageID  string `json:"originalMessageId"`
	Description        string `json:"description"`
	DeviceGenerationID string `json:"deviceGenerationId"`
	DeviceID           string `json:"deviceId"`
	EnqueuedTime       Time   `json:"enqueuedTimeUtc"` // of the outcome
	StatusCode         string `json:"statusCode"`
}

var statusCodes = map[broker.Cause]string{
	broker.Completed:             "Success",
	broker.Expired:               "Expired",
	broker.DeliveryCountExceeded: "DeliveryCountExceeded",
	broker.Rejected:              "Rejected",
	broker.Purged:                "Purged",
}

var statusDescriptions = map[broker.Cause]string{
	broker.Completed:             "Success",
	broker.Expired:               "Message expired before it was completed",
	broker.DeliveryCountExceeded: "Message was delivered too often without being completed",
	broker.Rejected:              "Message was rejected by the device",
	broker.Purged:                "Message was purged from the device's queue",
}

// feedback gathers records into batches.
type feedback struct {
	hubName  string
	store    store.Store
	interval time.Duration
	queue    *broker.Queue

	mu      sync.Mutex // guards all below; comes after every mutex of broker
	last    uint64     // number of the record made last
	waiting []waitingRecord
	timer   *time.Timer
	closed  bool
	timers  sync.WaitGroup
}

type waitingRecord struct {
	key  string
	text json.RawMessage
}

// about reports whether a record is about a device of that generation.
func (w waitingRecord) about(deviceID, generation string) bool {
	var r feedbackRecord
	err := json.Unmarshal(w.text, &r)
	return err == nil && r.DeviceID == deviceID && r.DeviceGenerationID == generation
}

func openFeedback(s store.Store, hubName string, opts FeedbackOptions) (*feedback, error) {
	q, err := broker.OpenQueue(s, feedbackQueueName, broker.QueueOptions{
		LockDuration:     opts.LockDuration,
		MaxDeliveryCount: opts.MaxDeliveryCount,
		DefaultTTL:       opts.TTL,
		NoDeadLetter:     true,
	})
	if err != nil {
		return nil, err
	}
	f := &feedback{hubName: hubName, store: s, interval: opts.Interval, queue: q}
	err = s.Load(feedbackPrefix, func(key string, value []byte) error {
		f.last = binary.BigEndian.Uint64([]byte(key[len(feedbackPrefix):]))
		f.waiting = append(f.waiting, waitingRecord{key, value})
		return nil
	})
	if err != nil {
		q.Close()
		return nil, fmt.Errorf("read feedback: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arm()
	return f, nil
}

// record notes the end of a message, in the transaction that removes it, if its
// sender asked for that.
func (f *feedback) record(tx *broker.Tx, deviceID, generation string, o broker.Outcome) {
	ack, err := ackOf(o.Delivery.Message)
	if err != nil || !ack.wants(o.Cause) {
		return // SendC2D refused every ack that can't be read
	}
	r := feedbackRecord{
		Description:        statusDescriptions[o.Cause],
		DeviceGenerationID: generation,
		DeviceID:           deviceID,
		EnqueuedTime:       Time{time.Now().UTC()},
		StatusCode:         statusCodes[o.Cause],
	}
	if p := o.Delivery.Message.Properties; p != nil {
		r.OriginalMessageID, _ = p.MessageID.(string)
	}
	if o.Description != "" {
		r.Description = o.Description
	}
	text, err := json.Marshal(r)
	if err != nil {
		return // strings and a time: it never fails
	}
	w := waitingRecord{key: f.nextKey(), text: text}
	tx.Add(store.Put(w.key, w.text))
	tx.OnCommit(func() { f.add(w) })
}

func (f *feedback) nextKey() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	return string(binary.BigEndian.AppendUint64([]byte(feedbackPrefix), f.last))
}

// add puts a record that is durable into the next batch.
func (f *feedback) add(w waitingRecord) {
	f.mu.Lock()
	f.waiting = append(f.waiting, w)
	f.arm()
	full := len(f.waiting) >= feedbackBatch
	f.mu.Unlock()
	if full {
		f.flush()
	}
}

// forget drops the records about a device that are in no batch yet: they are
// deleted with the device (IoT Hub docs: "Understand cloud-to-device messaging
// from an IoT hub", pending feedback for deleted devices).
func (f *feedback) forget(tx *broker.Tx, deviceID, generation string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = slices.DeleteFunc(f.waiting, func(w waitingRecord) bool {
		gone := w.about(deviceID, generation)
		if gone {
			tx.Add(store.Delete(w.key))
		}
		return gone
	})
}

// arm sets the timer of the batch that is being gathered.
func (f *feedback) arm() {
	if len(f.waiting) == 0 || f.timer != nil || f.closed {
		return
	}
	f.timers.Add(1)
	f.timer = time.AfterFunc(f.interval, func() {
		defer f.timers.Done()
		f.flush()
	})
}

func (f *feedback) stopTimer() {
	if f.timer != nil && f.timer.Stop() {
		f.timers.Done()
	}
	f.timer = nil
}

// flush moves what waits into the queue, as one message or, after a start with
// many records, several.
func (f *feedback) flush() {
	f.mu.Lock()
	waiting := f.waiting
	f.waiting = nil
	f.stopTimer()
	f.mu.Unlock()
	for len(waiting) > 0 {
		n := min(len(waiting), feedbackBatch)
		f.send(waiting[:n])
		waiting = waiting[n:]
	}
}

func (f *feedback) send(batch []waitingRecord) {
	tx := broker.NewTx(f.store)
	records := make([]json.RawMessage, len(batch))
	for i, w := range batch {
		records[i] = w.text
		tx.Add(store.Delete(w.key))
	}
	body, err := json.Marshal(records)
	if err == nil {
		err = f.queue.Stage(tx, f.message(body))
	}
	if err != nil {
		tx.Abort() // the queue is closed: the records wait in the store
		return
	}
	tx.CommitAsync(nil)
}

func (f *feedback) message(body []byte) *amqp.Message {
	to, contentType := feedbackAddress, feedbackContentType
	return &amqp.Message{
		Annotations: map[string]any{PropertyEnqueuedTime: time.Now().UTC()},
		Properties: &amqp.Properties{
			MessageID:   uuid.NewString(),
			UserID:      []byte(f.hubName),
			To:          &to,
			ContentType: &contentType,
		},
		Data: [][]byte{body},
	}
}

func (f *feedback) close() {
	f.mu.Lock()
	f.closed = true
	f.stopTimer()
	f.mu.Unlock()
	f.timers.Wait()
	f.queue.Close()
}
