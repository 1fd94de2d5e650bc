package rest

import (
	"context"
	"errors"
	"net/http"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// receiveFeedback answers with the next batch of feedback records, an array, and
// locks it (IoT Hub docs: "Cloud To Device Messages - Receive Feedback
// Notification").
func (h *Handler) receiveFeedback(ctx context.Context, _ request) (response, error) {
	c := h.hub.Feedback().NewConsumer(broker.ConsumerOptions{})
	defer c.Close()
	ds, err := c.TryReceive(ctx, 1)
	if err != nil || len(ds) == 0 {
		return response{status: http.StatusNoContent}, err
	}
	header := etag(uuid.UUID(ds[0].LockToken).String())
	header.Set("Content-Type", contentType)
	return response{header: header, message: ds[0].Message.Body()}, nil
}

func (h *Handler) completeFeedback(ctx context.Context, r request) (response, error) {
	return h.settleFeedback(ctx, r, broker.Complete)
}

func (h *Handler) abandonFeedback(ctx context.Context, r request) (response, error) {
	return h.settleFeedback(ctx, r, broker.Abandon)
}

func (h *Handler) settleFeedback(ctx context.Context, r request, action broker.Action) (response, error) {
	token, err := lockToken(r)
	if err != nil {
		return response{}, err
	}
	err = h.hub.Feedback().Settle(ctx, token, broker.Settlement{Action: action})
	if errors.Is(err, broker.ErrLockLost) {
		err = hub.Errorf(hub.CodeMessageLockLost, "the feedback isn't locked under this token any more")
	}
	return response{status: http.StatusNoContent}, err
}

// lockToken returns the lock token in the path.
func lockToken(r request) (amqp.UUID, error) {
	token, err := uuid.Parse(r.lock)
	if err != nil {
		return amqp.UUID{}, hub.Errorf(hub.CodeArgumentInvalid, "the lock token in the path is not a UUID")
	}
	return amqp.UUID(token), nil
}
