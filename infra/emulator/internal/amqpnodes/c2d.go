package amqpnodes

import (
	"context"
	"maps"
	"math"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// An annotation of cloud-to-device messages (azure-iot-sdk-csharp,
// MessageSystemPropertyNames.cs), beside annotSequenceNumber, annotLockToken and
// hub.PropertyEnqueuedTime.
const annotHubDeliveryCount = "iothub-deliverycount"

// openC2D gives a device its cloud-to-device messages. It has one such link at a
// time, so that they keep their order.
func (h *handler) openC2D(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Source, error) {
	l, err := h.join(ctx, addr, a)
	if err != nil {
		return nil, err
	}
	if addr.target.ModuleID != "" {
		// The hub has no messages for modules, but the IoT SDK for Java
		// attaches (AmqpsTelemetryReceiverLinkHandler.java).
		return silentSource{l}, nil
	}
	queue, err := l.session.Queue()
	if err != nil {
		l.Close()
		return nil, hubError(err)
	}
	l.take(seat{kind: kindC2D, receiving: true})
	decide := func(outcome amqp.DeliveryState) broker.Settlement {
		l.session.Touch()
		return hubSettlement(outcome)
	}
	return newQueueSource(l, queue, c2dMessage, decide), nil
}

// c2dMessage is a message as the hub gives it to a device. The types of the
// annotations are those that the IoT SDK for C# expects
// (AmqpIotMessageConverter.cs).
func c2dMessage(d *broker.Delivery) *amqp.Message {
	m := *d.Message
	m.Header = header(d)
	m.DeliveryAnnotations = nil
	m.Annotations = maps.Clone(m.Annotations)
	if m.Annotations == nil {
		m.Annotations = make(map[string]any, 4)
	}
	m.Annotations[annotSequenceNumber] = uint64(d.SequenceNumber)
	m.Annotations[annotLockToken] = d.LockToken
	m.Annotations[hub.PropertyEnqueuedTime] = d.EnqueuedTime
	m.Annotations[annotHubDeliveryCount] = uint8(min(d.DeliveryCount, math.MaxUint8))
	if len(m.Data) != 1 {
		m.Data = [][]byte{m.Body()} // the SDKs read the first section only
	}
	return &m
}
