package amqpnodes

import (
	"errors"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Access may refuse what is done with queues, topics, subscriptions and event
// hubs. Its methods must not block. An *hub.Error reaches the peer as the
// condition that Service Bus has for such a case.
type Access interface {
	// AdmitSend is asked before messages are taken for an entity.
	AdmitSend(entity string) error
	// AdmitReceive is asked before a message is given out.
	AdmitReceive(entity string) error
}

// accessPermit is the permit of a link to an entity.
type accessPermit struct {
	permit
	entity string
	ask    func(entity string) error
}

func (p *accessPermit) check() error {
	if err := p.permit.check(); err != nil {
		return err
	}
	return accessError(p.ask(p.entity))
}

// sending is the permit of a link on which the peer sends to an entity.
func (h *handler) sending(p permit, entity string) permit {
	if h.nodes.cfg.Access == nil {
		return p
	}
	return &accessPermit{p, entity, h.nodes.cfg.Access.AdmitSend}
}

// receiving is the permit of a link on which the peer receives from an entity.
func (h *handler) receiving(p permit, entity string) permit {
	if h.nodes.cfg.Access == nil {
		return p
	}
	return &accessPermit{p, entity, h.nodes.cfg.Access.AdmitReceive}
}

// admitAccess asks for an operation on $management.
func (h *handler) admitAccess(entity string, send bool) error {
	switch a := h.nodes.cfg.Access; {
	case a == nil:
		return nil
	case send:
		return accessError(a.AdmitSend(entity))
	default:
		return accessError(a.AdmitReceive(entity))
	}
}

// accessConditions are what Service Bus and Event Hubs say where a hub has these
// codes (azservicebus v1.11 internal/errors.go). Server busy and timeout are
// tried again by the SDKs.
var accessConditions = map[hub.Code]amqp.Symbol{
	hub.CodeUnauthorizedAccess:    amqp.CondUnauthorizedAccess,
	hub.CodeUnauthorized:          amqp.CondUnauthorizedAccess,
	hub.CodeQuotaExceeded:         amqp.CondResourceLimitExceeded,
	hub.CodeMaxQueueDepthExceeded: amqp.CondResourceLimitExceeded,
	hub.CodeDeviceNotFound:        amqp.CondNotFound,
	hub.CodeMessageLockLost:       condMessageLockLost,
	hub.CodeMessageTooLarge:       amqp.CondMessageSizeExceeded,
	hub.CodeThrottling:            condServerBusy,
	hub.CodeServiceUnavailable:    condServerBusy,
	hub.CodeGatewayTimeout:        condTimeout,
}

func accessError(err error) error {
	var e *hub.Error
	if !errors.As(err, &e) {
		return err
	}
	condition, ok := accessConditions[e.Code]
	if !ok {
		condition = amqp.CondInternalError
	}
	return amqp.Errorf(condition, "%s", e.Message)
}
