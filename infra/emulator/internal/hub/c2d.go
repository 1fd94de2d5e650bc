package hub

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Ack says which outcomes of a cloud-to-device message the sender wants to hear
// of (IoT Hub docs: "Send cloud-to-device messages from an IoT hub").
type Ack string

const (
	AckNone     Ack = "none"
	AckPositive Ack = "positive"
	AckNegative Ack = "negative"
	AckFull     Ack = "full"
)

// PropertyAck is the application property that carries an Ack.
const PropertyAck = "iothub-ack"

// ackOf reads the Ack of a message.
func ackOf(m *amqp.Message) (Ack, error) {
	value, set := m.ApplicationProperties[PropertyAck]
	if !set || value == nil {
		return AckNone, nil
	}
	text, _ := value.(string)
	switch a := Ack(strings.ToLower(text)); a {
	case "", AckNone:
		return AckNone, nil
	case AckPositive, AckNegative, AckFull:
		return a, nil
	}
	return "", Errorf(CodeArgumentInvalid, "%s must be none, positive, negative or full", PropertyAck)
}

// wants reports whether the sender asked for this outcome.
func (a Ack) wants(cause broker.Cause) bool {
	switch a {
	case AckFull:
		return true
	case AckPositive:
		return cause == broker.Completed
	case AckNegative:
		return cause != broker.Completed
	}
	return false
}

// SendC2D queues a message for a device, connected or not. Its IDs are text. The
// ack is in the application property iothub-ack and the expiry in the property
// absolute-expiry-time, where the sender set them. The hub takes the message
// over.
//
// Errors: CodeDeviceNotFound, CodeMaxQueueDepthExceeded, CodeMessageTooLarge,
// CodeArgumentInvalid.
func (h *Hub) SendC2D(ctx context.Context, deviceID string, m *amqp.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := make(chan error, 1)
	h.SendC2DAsync(Target{DeviceID: deviceID}, m, func(err error) { result <- err })
	return <-result
}

// SendC2DAsync is SendC2D that calls done with the result, possibly before it
// returns. A message may be addressed to a module, but none has a queue:
// CodeModuleNotFound or CodeInvalidOperation.
func (h *Hub) SendC2DAsync(t Target, m *amqp.Message, done func(error)) {
	q, err := h.prepareC2D(t, m)
	if err != nil {
		done(err)
		return
	}
	q.SendAsync(func(err error) { done(translate(err, CodeMaxQueueDepthExceeded)) }, m)
}

func (h *Hub) prepareC2D(t Target, m *amqp.Message) (*broker.Queue, error) {
	if err := h.admit(OpC2D, t, broker.MessageSize(m)); err != nil {
		return nil, err
	}
	p, err := h.principal(t)
	if err != nil {
		return nil, err
	}
	if t.ModuleID != "" {
		return nil, Errorf(CodeInvalidOperation, "modules can't be sent cloud-to-device messages; send them to the device")
	}
	if _, err := ackOf(m); err != nil {
		return nil, err
	}
	if m.Properties == nil {
		m.Properties = &amqp.Properties{}
	}
	props := m.Properties
	if id, _ := props.MessageID.(string); id != "" && !ValidID(id) {
		return nil, Errorf(CodeArgumentInvalid, "message ID must have 1 to %d characters: letters, digits and %s", maxIDLength, idCharacters)
	}
	if expiry := props.AbsoluteExpiryTime; expiry != nil {
		switch {
		case expiry.Unix() <= 0:
			// amenzhinsky/iothub sends Go's zero time for none.
			props.AbsoluteExpiryTime = nil
		case !expiry.After(time.Now()):
			return nil, Errorf(CodeArgumentInvalid, "the expiry time is in the past")
		}
	}
	if props.To == nil {
		to := t.address() + "/messages/deviceBound"
		props.To = &to
	}
	return p.device.c2d()
}

// c2dQueuePrefix begins the names of cloud-to-device queues. No entity of the
// namespace can have such a name.
const c2dQueuePrefix = "$c2d/"

// c2dQueueName contains the generation, so that a device never gets a message
// that was meant for an earlier one of its name.
func c2dQueueName(deviceID, generation string) string {
	return c2dQueuePrefix + generation + "/" + deviceID
}

func (h *Hub) c2dOptions(deviceID, generation string) broker.QueueOptions {
	return broker.QueueOptions{
		LockDuration:     h.opts.C2D.LockDuration,
		MaxDeliveryCount: h.opts.C2D.MaxDeliveryCount,
		DefaultTTL:       h.opts.C2D.TTL,
		AbsoluteExpiry:   true,
		MaxMessageSize:   MaxC2DMessageSize,
		MaxMessages:      MaxC2DQueueDepth,
		CountAbandonOnly: !h.opts.C2D.CountEveryReturn,
		NoDeadLetter:     true,
		OnOutcome: func(tx *broker.Tx, o broker.Outcome) {
			h.feedback.record(tx, deviceID, generation, o)
		},
		Repeat: func() bool { return h.repeat(OpC2D, Target{DeviceID: deviceID}) },
	}
}

// openStoredQueues opens the queues that have messages, because those may expire
// before anybody else opens their queue. Queues whose device is gone are removed.
func (h *Hub) openStoredQueues() error {
	prefix := "q/" + url.PathEscape(c2dQueuePrefix)
	var names []string
	err := h.store.Load(prefix, func(key string, _ []byte) error {
		escaped, _, _ := strings.Cut(strings.TrimPrefix(key, "q/"), "/")
		if n := len(names); n == 0 || names[n-1] != escaped {
			names = append(names, escaped)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, escaped := range names {
		if err := h.openStoredQueue(escaped); err != nil {
			return err
		}
	}
	return nil
}

func (h *Hub) openStoredQueue(escaped string) error {
	name, err := url.PathUnescape(escaped)
	if err != nil {
		return err
	}
	generation, id, _ := strings.Cut(strings.TrimPrefix(name, c2dQueuePrefix), "/")
	d := h.device(id)
	if d != nil && d.identity.GenerationID == generation {
		_, err := d.c2d()
		return err
	}
	h.store.Submit(nil, store.DeletePrefix("q/"+escaped+"/"))
	return nil
}

// PurgeResult is the answer of DELETE /devices/{id}/commands.
type PurgeResult struct {
	TotalMessagesPurged int     `json:"totalMessagesPurged"`
	DeviceID            string  `json:"deviceId"`
	ModuleID            *string `json:"moduleId"`
}

// PurgeC2D removes the messages that wait for a device.
func (h *Hub) PurgeC2D(ctx context.Context, deviceID string) (PurgeResult, error) {
	if err := h.admit(OpRegistry, Target{DeviceID: deviceID}, 0); err != nil {
		return PurgeResult{}, err
	}
	d, err := h.find(deviceID)
	if err != nil {
		return PurgeResult{}, err
	}
	q, err := d.c2d()
	if err != nil {
		return PurgeResult{}, err
	}
	n, err := q.Purge(ctx)
	return PurgeResult{TotalMessagesPurged: n, DeviceID: deviceID}, translate(err, CodeServerError)
}
