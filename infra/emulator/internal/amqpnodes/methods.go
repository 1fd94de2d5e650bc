package amqpnodes

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Application properties of method messages (azure-iot-device-amqp 1.14,
// amqp_device_method_client.ts).
const (
	propMethodName   = "IoThub-methodname"
	propMethodStatus = "IoThub-status"
)

// maxOverhead is what the encoding of a message, beside its body, may have in
// bytes where the limit is one of the body.
const maxOverhead = 16 << 10

// deliverMethod gives the device a method call. The hub calls it.
func (l *deviceLink) deliverMethod(r hub.MethodRequest) {
	payload := []byte(r.Payload)
	if r.Payload == nil {
		payload = []byte("null") // the IoT SDK for C fails without a body
	}
	l.push(&amqp.Message{
		Properties:            &amqp.Properties{CorrelationID: methodCorrelation(r.RequestID)},
		ApplicationProperties: map[string]any{propMethodName: r.Name},
		Data:                  [][]byte{payload},
	}, len(payload))
}

// methodResponses takes what a device answers to method calls. The device gets
// calls while this link and its partner are attached.
type methodResponses struct{ *deviceLink }

func (h *handler) openMethodResponses(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	l, err := h.joinPair(ctx, addr, a, false)
	if err != nil {
		return nil, err
	}
	a.MaxMessageSize = hub.MaxMethodPayload + maxOverhead
	return &methodResponses{l}, nil
}

func (t *methodResponses) Deliver(_ context.Context, in *amqpserver.Incoming) {
	if err := t.respond(in); err != nil {
		in.Reject(err)
		return
	}
	in.Accept()
}

func (t *methodResponses) respond(in *amqpserver.Incoming) error {
	if err := t.check(); err != nil {
		return err
	}
	m, err := in.Message()
	if err != nil {
		return err
	}
	if err := flatten(m); err != nil {
		return err
	}
	status, err := methodStatus(m.ApplicationProperties[propMethodStatus])
	if err != nil {
		return err
	}
	result := hub.MethodResult{Status: status}
	switch payload := m.Body(); {
	case len(payload) > hub.MaxMethodPayload:
		return amqp.Errorf(amqp.CondMessageSizeExceeded, "the response to a method has %d bytes of at most %d", len(payload), hub.MaxMethodPayload)
	case len(payload) == 0:
	case !json.Valid(payload):
		return amqp.Errorf(condArgumentError, "the response to a method is not JSON")
	default:
		result.Payload = payload
	}
	var id any
	if m.Properties != nil {
		id = m.Properties.CorrelationID
	}
	t.session.RespondMethod(methodRequestID(id), result)
	return nil
}

// methodStatus reads the status of a response. The SDKs send an int.
func methodStatus(v any) (int, error) {
	switch v := v.(type) {
	case int32:
		return int(v), nil
	case int64:
		return int(v), nil
	}
	return 0, badArgument(propMethodStatus, "an int")
}

// methodCorrelation makes a correlation ID of the hub's ID of a call, which has up
// to 16 hexadecimal digits. The IoT SDKs for C, C# and Java need it to be a UUID;
// this one is of version 4, because azure-iot-device-amqp sends back no other as
// one.
func methodCorrelation(requestID string) any {
	n, err := strconv.ParseUint(requestID, 16, 64)
	if err != nil {
		return requestID
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	u := amqp.UUID{6: 0x40, 8: 0x80}
	copy(u[:6], b[:6])
	copy(u[14:], b[6:])
	return u
}

// methodRequestID is the reverse of methodCorrelation. What is no correlation ID
// of the hub's is none of its calls either, which ignores it.
func methodRequestID(correlation any) string {
	var u [16]byte
	switch id := correlation.(type) {
	case amqp.UUID:
		u = id
	case []byte:
		copy(u[:], id)
	case string:
		parsed, err := uuid.Parse(id)
		if err != nil {
			return id
		}
		u = parsed
	}
	return fmt.Sprintf("%x", binary.BigEndian.Uint64(append(u[:6:6], u[14:]...)))
}
