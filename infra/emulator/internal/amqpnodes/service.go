package amqpnodes

import (
	"context"
	"maps"
	"strconv"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// deviceBound takes cloud-to-device messages (IoT Hub docs: "Send
// cloud-to-device messages from an IoT hub").
type deviceBound struct {
	*guard
	hub *hub.Hub
}

func (h *handler) openDeviceBound(a *amqpserver.Attach) (amqpserver.Target, error) {
	g, err := h.admitService("messages/devicebound")
	if err != nil {
		return nil, err
	}
	// More than the hub takes, so that it is the hub that refuses what is too
	// large, with its own error.
	a.MaxMessageSize = hub.MaxD2CMessageSize
	g.watch(a)
	return &deviceBound{g, h.nodes.cfg.Hub}, nil
}

// admitService checks the right to a node of the hub's service side.
func (h *handler) admitService(path string) (*guard, error) {
	if h.nodes.cfg.Hub == nil {
		return nil, amqp.Errorf(amqp.CondNotFound, "no node %q: there is no hub here", path)
	}
	return h.admit(path, serviceRights...)
}

func (t *deviceBound) Deliver(_ context.Context, in *amqpserver.Incoming) {
	msgs, err := take(t, in)
	if err != nil {
		in.Reject(err)
		return
	}
	if len(msgs) != 1 {
		in.Reject(amqp.Errorf(amqp.CondNotAllowed, "cloud-to-device messages can't be sent in batches"))
		return
	}
	m := msgs[0]
	target, err := boundFor(m.Properties)
	if err == nil {
		err = flatten(m)
	}
	if err != nil {
		in.Reject(err)
		return
	}
	t.hub.SendC2DAsync(target, m, stored(in, hubError))
}

// boundFor returns what a message is for, from its property to:
// /devices/{percent-encoded ID}/messages/devicebound, or
// /devices/{ID}/modules/{ID}/messages/devicebound.
func boundFor(p *amqp.Properties) (hub.Target, error) {
	if p == nil || p.To == nil {
		return hub.Target{}, amqp.Errorf(condArgumentError, "the property to is missing; set it to /devices/{id}/messages/devicebound")
	}
	addr := parseAddress(*p.To)
	if addr.kind != kindC2D || addr.target.DeviceID == "" {
		return hub.Target{}, amqp.Errorf(condArgumentError, "the property to is %q; set it to /devices/{id}/messages/devicebound", *p.To)
	}
	return addr.target, nil
}

func (h *handler) openFeedback(a *amqpserver.Attach) (amqpserver.Source, error) {
	g, err := h.admitService("messages/servicebound/feedback")
	if err != nil {
		return nil, err
	}
	g.watch(a)
	return newQueueSource(g, h.nodes.cfg.Hub.Feedback(), feedbackMessage, hubSettlement), nil
}

// feedbackMessage is a batch of feedback records as the hub gives it out.
func feedbackMessage(d *broker.Delivery) *amqp.Message {
	m := *d.Message
	m.Header = header(d)
	m.Annotations = maps.Clone(m.Annotations)
	if m.Annotations == nil {
		m.Annotations = make(map[string]any, 3)
	}
	m.Annotations[hub.PropertyEnqueuedTime] = d.EnqueuedTime
	m.Annotations[annotLockToken] = d.LockToken
	m.Annotations[annotSequenceNumber] = d.SequenceNumber
	return &m
}

// hubSettlement: accepting completes, rejecting gives up, and everything else
// makes the message available again (IoT Hub docs: "Send cloud-to-device
// messages": life cycle, and message feedback).
func hubSettlement(outcome amqp.DeliveryState) broker.Settlement {
	switch outcome.(type) {
	case *amqp.Accepted:
		return broker.Settlement{Action: broker.Complete}
	case *amqp.Rejected:
		return broker.Settlement{Action: broker.DeadLetter}
	}
	return broker.Settlement{Action: broker.Abandon}
}

// silentSource never has a message. File upload is not emulated, but clients
// that subscribe to its notifications expect the link; so do modules that wait
// for cloud-to-device messages, which only devices get.
type silentSource struct{ permit }

func (h *handler) openFileNotifications(a *amqpserver.Attach) (amqpserver.Source, error) {
	g, err := h.admitService("messages/servicebound/filenotifications")
	if err != nil {
		return nil, err
	}
	g.watch(a)
	return silentSource{g}, nil
}

func (silentSource) Next(context.Context) (*amqpserver.Outgoing, error) { return nil, nil }
func (silentSource) Ready() <-chan struct{}                             { return nil }

// redirect refuses to give out events on the hub's own endpoint and says where
// they are. It has to be a refusal of the attach: amenzhinsky/iothub v0.9.1
// (iotservice/client.go) looks for it in the error of the attach.
func (h *handler) redirect() error {
	if _, err := h.admitService("messages/events"); err != nil {
		return err
	}
	events := h.nodes.events
	port, err := strconv.ParseUint(events.port, 10, 16)
	if err != nil {
		return err
	}
	host := events.host
	if events.port != "5671" {
		// That client dials the host name as it stands, with 5671 by default.
		host += ":" + events.port
	}
	return &amqp.Error{
		Condition:   amqp.CondLinkRedirect,
		Description: "device-to-cloud messages are read from the Event Hubs compatible endpoint",
		Info: map[string]any{
			"hostname":     host,
			"network-host": events.host,
			"port":         uint16(port),
			// The same client finds the name behind ":5671/", whatever the port.
			"address": "amqps://" + events.host + ":5671/" + h.nodes.cfg.Hub.Events().Name() + "/",
		},
	}
}
