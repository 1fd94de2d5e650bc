package amqpnodes

import (
	"errors"
	"net/http"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Conditions of the vendor's own (azservicebus v1.11 internal/errors.go,
// azure-iothub 1.16 amqp_common_errors).
const (
	condDeadLetter          amqp.Symbol = "com.microsoft:dead-letter"
	condMessageLockLost     amqp.Symbol = "com.microsoft:message-lock-lost"
	condMessageNotFound     amqp.Symbol = "com.microsoft:message-not-found"
	condArgumentError       amqp.Symbol = "com.microsoft:argument-error"
	condArgumentOutOfRange  amqp.Symbol = "com.microsoft:argument-out-of-range"
	condThrottled           amqp.Symbol = "com.microsoft:device-container-throttled"
	condQuotaExceeded       amqp.Symbol = "com.microsoft:quota-exceeded"
	condDeviceAlreadyExists amqp.Symbol = "com.microsoft:device-already-exists"
	condPreconditionFailed  amqp.Symbol = "com.microsoft:precondition-failed"
	condTimeout             amqp.Symbol = "com.microsoft:timeout"
	condServerBusy          amqp.Symbol = "com.microsoft:server-busy"
)

// brokerConditions maps errors of queues, topics and event logs.
var brokerConditions = []struct {
	err       error
	condition amqp.Symbol
}{
	{broker.ErrLockLost, condMessageLockLost},
	{broker.ErrNotFound, amqp.CondNotFound},
	{broker.ErrDeleted, amqp.CondNotFound},
	{broker.ErrFull, amqp.CondResourceLimitExceeded},
	{broker.ErrTooLarge, amqp.CondMessageSizeExceeded},
	{broker.ErrNotAllowed, amqp.CondNotAllowed},
	{broker.ErrClosed, amqp.CondDetachForced},
	{broker.ErrStolen, amqp.CondStolen},
	{broker.ErrOwned, amqp.CondStolen},
	{broker.ErrTooManyReaders, amqp.CondResourceLimitExceeded},
}

// brokerError turns an error of the broker into one for the peer. Others stay as
// they are and reach it as internal errors.
func brokerError(err error) error {
	for _, c := range brokerConditions {
		if errors.Is(err, c.err) {
			return amqp.Errorf(c.condition, "%v", err)
		}
	}
	return err
}

// hubConditions are those that azure-iothub 1.16 turns into its error classes.
var hubConditions = map[hub.Code]amqp.Symbol{
	hub.CodeDeviceNotFound:        amqp.CondNotFound,
	hub.CodeModuleNotFound:        amqp.CondNotFound,
	hub.CodeConnectionReplaced:    amqp.CondStolen,
	hub.CodeMaxQueueDepthExceeded: amqp.CondResourceLimitExceeded,
	hub.CodeMessageTooLarge:       amqp.CondMessageSizeExceeded,
	hub.CodeUnauthorized:          amqp.CondUnauthorizedAccess,
	hub.CodeUnauthorizedAccess:    amqp.CondUnauthorizedAccess,
	hub.CodeInvalidOperation:      amqp.CondNotAllowed,
	hub.CodeArgumentInvalid:       condArgumentError,
	hub.CodeArgumentNull:          condArgumentError,
	hub.CodeFormatError:           condArgumentError,
	hub.CodeThrottling:            condThrottled,
	hub.CodeQuotaExceeded:         condQuotaExceeded,
	hub.CodeDeviceAlreadyExists:   condDeviceAlreadyExists,
	hub.CodePreconditionFailed:    condPreconditionFailed,
	hub.CodeMessageLockLost:       condMessageLockLost,
	hub.CodeServiceUnavailable:    condTimeout,
	hub.CodeGatewayTimeout:        condTimeout,
}

// hubError turns an error of the hub into one for the peer. The info map is that
// of the service: the code lets clients tell errors apart that share a
// condition.
func hubError(err error) error {
	var e *hub.Error
	if !errors.As(err, &e) {
		return brokerError(err)
	}
	condition, ok := hubConditions[e.Code]
	if !ok {
		condition = statusCondition(e.Code.Status())
	}
	return &amqp.Error{
		Condition:   condition,
		Description: e.Message,
		Info: map[string]any{
			"com.microsoft:error-code":  int32(e.Code),
			"com.microsoft:tracking-id": e.TrackingID,
		},
	}
}

// statusCondition is the condition for codes that clients have none of their own
// for.
func statusCondition(status int) amqp.Symbol {
	switch status {
	case http.StatusUnauthorized:
		return amqp.CondUnauthorizedAccess
	case http.StatusNotFound:
		return amqp.CondNotFound
	case http.StatusTooManyRequests:
		return condThrottled
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return condTimeout
	}
	if status < http.StatusInternalServerError {
		return amqp.CondNotAllowed
	}
	return amqp.CondInternalError
}
