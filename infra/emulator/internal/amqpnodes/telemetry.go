package amqpnodes

import (
	"context"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// propModel is the link property by which a plug and play device names its model
// (azure-iot-sdk-csharp, AmqpIotConstants.cs).
const propModel = "com.microsoft:model-id"

// telemetryTarget takes device-to-cloud messages (IoT Hub docs: "Communicate with
// your IoT hub by using the AMQP protocol").
type telemetryTarget struct {
	*deviceLink
	model string
}

func (h *handler) openTelemetry(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	l, err := h.join(ctx, addr, a)
	if err != nil {
		return nil, err
	}
	a.MaxMessageSize = hub.MaxD2CMessageSize
	model, _ := a.Properties[propModel].(string)
	return &telemetryTarget{l, model}, nil
}

// Deliver stores a message or a batch, all or none, and accepts it when it is
// stored.
func (t *telemetryTarget) Deliver(_ context.Context, in *amqpserver.Incoming) {
	msgs, err := take(t, in)
	if err != nil {
		in.Reject(err)
		return
	}
	for _, m := range msgs {
		if err := flatten(m); err != nil {
			in.Reject(err)
			return
		}
		m.Annotations = t.annotations(m.Annotations)
	}
	t.session.PublishBatchAsync(msgs, stored(in, hubError))
}

// annotations returns those of a message that are the device's to set.
func (t *telemetryTarget) annotations(sent map[string]any) map[string]any {
	var kept map[string]any
	keep := func(name, value string) {
		if kept == nil {
			kept = make(map[string]any)
		}
		kept[name] = value
	}
	for _, name := range []string{hub.AnnotationInterface, hub.AnnotationComponent} {
		if value, ok := sent[name].(string); ok {
			keep(name, value)
		}
	}
	if t.model != "" {
		keep(hub.AnnotationModel, t.model)
	}
	return kept
}

// flatten makes the body of a message one of bytes, which is what the hub stores.
func flatten(m *amqp.Message) error {
	switch v := m.Value.(type) {
	case string:
		m.Data = [][]byte{[]byte(v)}
	case []byte:
		m.Data = [][]byte{v}
	default:
		if m.HasValue || len(m.Sequence) > 0 {
			return amqp.Errorf(amqp.CondNotImplemented, "the body of a message must be a data section, a string or binary")
		}
	}
	m.Value, m.HasValue = nil, false
	return nil
}
