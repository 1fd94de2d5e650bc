package amqpnodes

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// management is the $management node of a Service Bus entity (azservicebus v1.11
// internal/mgmt.go; Service Bus docs: "AMQP 1.0 in Azure Service Bus:
// request-response-based operations").
type management struct {
	handler *handler
	entity  string
}

func (h *handler) openManagement(addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	if _, err := h.admit(addr.path, append(listenRights, sendRights...)...); err != nil {
		return nil, err
	}
	_, sendErr := h.entity(addr.entity)
	_, receiveErr := h.queue(addr.entity)
	if sendErr != nil && receiveErr != nil {
		return nil, receiveErr
	}
	m := &management{handler: h, entity: addr.entity}
	return h.requests(addr, a, false, m.respond), nil
}

// operation is one operation, with the permission that it needs.
type operation struct {
	permission sas.Permission
	run        func(m *management, ctx context.Context, body map[string]any) (any, error)
}

var operations = map[string]operation{
	"com.microsoft:renew-lock":                 {sas.Listen, (*management).renewLock},
	"com.microsoft:peek-message":               {sas.Listen, (*management).peek},
	"com.microsoft:receive-by-sequence-number": {sas.Listen, (*management).receiveDeferred},
	"com.microsoft:update-disposition":         {sas.Listen, (*management).updateDisposition},
	"com.microsoft:schedule-message":           {sas.Send, (*management).schedule},
	"com.microsoft:cancel-scheduled-message":   {sas.Send, (*management).cancelScheduled},
}

func (m *management) respond(ctx context.Context, r *request) response {
	answer := m.answer(ctx, r)
	answer.serviceBus = true
	return answer
}

func (m *management) answer(ctx context.Context, r *request) response {
	op, ok := operations[r.operation]
	if !ok {
		return failure(http.StatusNotImplemented, amqp.CondNotImplemented,
			"the emulator has no operation "+r.operation+" on "+m.entity)
	}
	if _, err := m.handler.admit(m.entity+"/$management", right{namespaceRealm, op.permission}); err != nil {
		return failed(err)
	}
	if err := m.handler.admitAccess(m.entity, op.permission == sas.Send); err != nil {
		return failed(err)
	}
	body, err := op.run(m, ctx, r.body())
	switch {
	case err != nil:
		return failed(err)
	case body == nil:
		return response{status: http.StatusOK, description: "OK"}
	}
	if messages, ok := body.([]any); ok {
		if len(messages) == 0 {
			return response{status: http.StatusNoContent, description: "no messages"}
		}
		body = map[string]any{"messages": messages}
	}
	return response{status: http.StatusOK, description: "OK", body: body}
}

// managementStatus maps conditions to the status codes that azservicebus tells
// apart: 401 and 404 are final, 410 is a lost lock, 500 is tried again.
var managementStatus = map[amqp.Symbol]int32{
	condMessageLockLost:            http.StatusGone,
	condMessageNotFound:            http.StatusNotFound,
	condArgumentError:              http.StatusBadRequest,
	amqp.CondUnauthorizedAccess:    http.StatusUnauthorized,
	amqp.CondNotFound:              http.StatusNotFound,
	amqp.CondNotAllowed:            http.StatusBadRequest,
	amqp.CondNotImplemented:        http.StatusNotImplemented,
	amqp.CondDecodeError:           http.StatusBadRequest,
	amqp.CondMessageSizeExceeded:   http.StatusRequestEntityTooLarge,
	amqp.CondResourceLimitExceeded: http.StatusForbidden,
}

func failed(err error) response {
	var e *amqp.Error
	if !errors.As(brokerError(err), &e) {
		e = amqp.Errorf(amqp.CondInternalError, "internal error")
	}
	status, ok := managementStatus[e.Condition]
	if !ok {
		status = http.StatusInternalServerError
	}
	return failure(status, e.Condition, e.Description)
}

func badArgument(name, want string) error {
	return amqp.Errorf(condArgumentError, "%s must be %s", name, want)
}

// argument reads a required field of a request.
func argument[T any](body map[string]any, name, want string) (T, error) {
	v, ok := body[name].(T)
	if !ok {
		return v, badArgument(name, want)
	}
	return v, nil
}

// lockTokens reads the field lock-tokens, an array or a list of uuids.
func lockTokens(body map[string]any) ([]amqp.UUID, error) {
	switch v := body["lock-tokens"].(type) {
	case []amqp.UUID:
		return v, nil
	case []any:
		tokens := make([]amqp.UUID, len(v))
		for i, e := range v {
			var ok bool
			if tokens[i], ok = e.(amqp.UUID); !ok {
				return nil, badArgument("lock-tokens", "uuids")
			}
		}
		return tokens, nil
	}
	return nil, badArgument("lock-tokens", "an array of uuids")
}

func (m *management) renewLock(_ context.Context, body map[string]any) (any, error) {
	queue, err := m.handler.queue(m.entity)
	if err != nil {
		return nil, err
	}
	tokens, err := lockTokens(body)
	if err != nil {
		return nil, err
	}
	expirations := make([]time.Time, len(tokens))
	for i, token := range tokens {
		if expirations[i], err = queue.RenewLock(token); err != nil {
			return nil, err
		}
	}
	return map[string]any{"expirations": expirations}, nil
}

// maxPeek bounds one answer of peek-message; the cloud gives no more than 250
// either (Service Bus docs: "Message browsing").
const maxPeek = 250

func (m *management) peek(_ context.Context, body map[string]any) (any, error) {
	queue, err := m.handler.queue(m.entity)
	if err != nil {
		return nil, err
	}
	from, err := argument[int64](body, "from-sequence-number", "a long")
	if err != nil {
		return nil, err
	}
	count, err := argument[int32](body, "message-count", "an int")
	if err != nil || count < 1 {
		return nil, badArgument("message-count", "a positive int")
	}
	messages := []any{}
	for _, d := range queue.Peek(from, int(min(count, maxPeek))) {
		encoded, err := serviceBusMessage(d).MarshalBinary()
		if err != nil {
			return nil, err
		}
		messages = append(messages, map[string]any{"message": encoded})
	}
	return messages, nil
}

func (m *management) receiveDeferred(ctx context.Context, body map[string]any) (any, error) {
	queue, err := m.handler.queue(m.entity)
	if err != nil {
		return nil, err
	}
	numbers, err := argument[[]int64](body, "sequence-numbers", "an array of longs")
	if err != nil {
		return nil, err
	}
	mode := broker.ReceiveAndDelete
	if settle, err := argument[uint32](body, "receiver-settle-mode", "a uint"); err != nil {
		return nil, err
	} else if amqp.ReceiverSettleMode(settle) == amqp.ReceiverSecond {
		mode = broker.PeekLock
	}
	deliveries, err := queue.ReceiveDeferred(ctx, mode, numbers...)
	if err != nil {
		return nil, messageError(err)
	}
	messages := []any{}
	for _, d := range deliveries {
		entry, err := deferredEntry(d)
		if err != nil {
			return nil, err
		}
		messages = append(messages, entry)
	}
	return messages, nil
}

// deferredEntry is a message in the answer of receive-by-sequence-number.
// azservicebus reads the lock from the delivery annotation within the encoded
// message, others from the map.
func deferredEntry(d *broker.Delivery) (map[string]any, error) {
	msg := serviceBusMessage(d)
	entry := map[string]any{}
	if d.LockToken != (amqp.UUID{}) {
		msg.DeliveryAnnotations = map[string]any{annotLockToken: d.LockToken}
		entry["lock-token"] = d.LockToken
	}
	encoded, err := msg.MarshalBinary()
	entry["message"] = encoded
	return entry, err
}

func (m *management) updateDisposition(ctx context.Context, body map[string]any) (any, error) {
	queue, err := m.handler.queue(m.entity)
	if err != nil {
		return nil, err
	}
	tokens, err := lockTokens(body)
	if err != nil {
		return nil, err
	}
	settlement, err := dispositionSettlement(body)
	if err != nil {
		return nil, err
	}
	for _, token := range tokens {
		if err := queue.Settle(ctx, token, settlement); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// dispositionSettlement reads update-disposition. "defered" is the protocol's own
// spelling.
func dispositionSettlement(body map[string]any) (broker.Settlement, error) {
	var s broker.Settlement
	status, err := argument[string](body, "disposition-status", "a string")
	if err != nil {
		return s, err
	}
	switch status {
	case "completed":
		s.Action = broker.Complete
	case "abandoned":
		s.Action = broker.Abandon
	case "defered":
		s.Action = broker.Defer
	case "suspended":
		s.Action = broker.DeadLetter
		s.Reason, _ = body["deadletter-reason"].(string)
		s.Description, _ = body["deadletter-description"].(string)
	default:
		return s, badArgument("disposition-status", "completed, abandoned, defered or suspended")
	}
	props, _ := body["properties-to-modify"].(map[string]any)
	s.Properties = maps.Clone(props)
	return s, nil
}

func (m *management) schedule(ctx context.Context, body map[string]any) (any, error) {
	target, err := m.handler.entity(m.entity)
	if err != nil {
		return nil, err
	}
	entries, err := argument[[]any](body, "messages", "a list of maps")
	if err != nil {
		return nil, err
	}
	msgs, at, err := scheduledMessages(entries)
	if err != nil {
		return nil, err
	}
	numbers, err := target.Schedule(ctx, at, msgs...)
	if err != nil {
		return nil, err
	}
	return map[string]any{"sequence-numbers": numbers}, nil
}

// scheduledMessages decodes the messages of schedule-message. They are stored all
// or none, which needs them to share one time; azservicebus gives them one.
func scheduledMessages(entries []any) ([]*amqp.Message, time.Time, error) {
	var at time.Time
	msgs := make([]*amqp.Message, len(entries))
	for i, e := range entries {
		entry, _ := e.(map[string]any)
		encoded, err := argument[[]byte](entry, "message", "binary")
		if err != nil {
			return nil, at, err
		}
		msgs[i] = new(amqp.Message)
		if err := msgs[i].UnmarshalBinary(encoded); err != nil {
			return nil, at, amqp.Errorf(amqp.CondDecodeError, "decode message %d: %v", i, err)
		}
		plainIDs(msgs[i])
		t, ok := msgs[i].Annotations[annotScheduledTime].(time.Time)
		if !ok || i > 0 && !t.Equal(at) {
			return nil, at, badArgument(annotScheduledTime, "the same timestamp in all messages")
		}
		at = t
	}
	if len(msgs) == 0 {
		return nil, at, badArgument("messages", "a list with messages")
	}
	return msgs, at, nil
}

func (m *management) cancelScheduled(ctx context.Context, body map[string]any) (any, error) {
	target, err := m.handler.entity(m.entity)
	if err != nil {
		return nil, err
	}
	numbers, err := argument[[]int64](body, "sequence-numbers", "an array of longs")
	if err != nil {
		return nil, err
	}
	return nil, messageError(target.CancelScheduled(ctx, numbers...))
}

// messageError names the condition that tells a message which isn't there from an
// entity (azure-sdk-for-net, AmqpClientConstants.cs).
func messageError(err error) error {
	if errors.Is(err, broker.ErrNotFound) {
		return amqp.Errorf(condMessageNotFound, "%v", err)
	}
	return err
}
