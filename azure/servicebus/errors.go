package servicebus

import (
	"errors"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/azure/internal/fault"
	"github.com/hubjobs/hubjobs/job"
)

// codes are the SDK's own classification. Its errors hide their cause, so there is nothing more to find in them.
var codes = map[azservicebus.Code]error{
	azservicebus.CodeUnauthorizedAccess: job.ErrUnauthorized,
	azservicebus.CodeNotFound:           job.ErrNotFound,
	azservicebus.CodeLockLost:           job.ErrLockLost,
	azservicebus.CodeConnectionLost:     job.ErrUnavailable,
	azservicebus.CodeTimeout:            job.ErrUnavailable,
	azservicebus.CodeClosed:             job.ErrUnavailable,
}

// An entity that is full or disabled can be used again after a while or after an operator's help: the kinds that
// fault has for all of AMQP fit the first, unavailable fits the second.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, azservicebus.ErrMessageTooLarge) {
		return fault.Of(op, job.ErrTooLarge, err)
	}
	var sdk *azservicebus.Error
	if errors.As(err, &sdk) {
		if kind, ok := codes[sdk.Code]; ok {
			return fault.Of(op, kind, err)
		}
	}
	return fault.Wrap(op, err, nil)
}
