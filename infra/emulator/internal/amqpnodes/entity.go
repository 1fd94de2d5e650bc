package amqpnodes

import (
	"context"
	"errors"
	"fmt"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// entityTarget takes messages for a queue or a topic.
type entityTarget struct {
	permit
	entity broker.Target
}

func (h *handler) openEntity(addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	g, err := h.admit(addr.entity, sendRights...)
	if err != nil {
		return nil, err
	}
	entity, err := h.entity(addr.entity)
	if err != nil {
		return nil, err
	}
	a.MaxMessageSize = uint64(entity.MaxMessageSize())
	g.watch(a)
	return &entityTarget{h.sending(g, addr.entity), entity}, nil
}

// entity finds a queue or topic to send to.
func (h *handler) entity(name string) (broker.Target, error) {
	if h.nodes.cfg.Namespace == nil {
		return nil, amqp.Errorf(amqp.CondNotFound, "no entity %q: there is no namespace here", name)
	}
	entity, err := h.nodes.cfg.Namespace.Target(name)
	if errors.Is(err, broker.ErrNotFound) {
		if _, err := h.nodes.cfg.Namespace.Source(name); err == nil {
			return nil, amqp.Errorf(amqp.CondNotAllowed, "%q can't be sent to; send to its topic or queue", name)
		}
		return nil, amqp.Errorf(amqp.CondNotFound, "the messaging entity %q could not be found; entities come from the emulator's configuration", name)
	}
	if err != nil {
		return nil, brokerError(err)
	}
	return entity, nil
}

// queue finds a queue to receive from.
func (h *handler) queue(path string) (*broker.Queue, error) {
	if h.nodes.cfg.Namespace == nil {
		return nil, amqp.Errorf(amqp.CondNotFound, "no entity %q: there is no namespace here", path)
	}
	queue, err := h.nodes.cfg.Namespace.Source(path)
	if errors.Is(err, broker.ErrNotFound) || err == nil && queue == nil { // nil: it has no dead-letter queue
		return nil, amqp.Errorf(amqp.CondNotFound, "the messaging entity %q could not be found; entities come from the emulator's configuration", path)
	}
	if err != nil {
		return nil, brokerError(err)
	}
	return queue, nil
}

// Deliver stores a message or a batch, all or none. It is accepted when it is
// stored; refusals are always Rejected, because azservicebus counts Released and
// Modified as success.
func (t *entityTarget) Deliver(_ context.Context, in *amqpserver.Incoming) {
	msgs, err := take(t, in)
	if err != nil {
		in.Reject(err)
		return
	}
	t.entity.SendAsync(stored(in, brokerError), msgs...)
}

// take decodes the messages of a transfer if the link still has its right.
func take(p permit, in *amqpserver.Incoming) ([]*amqp.Message, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	msgs, err := in.Messages()
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		plainIDs(m)
	}
	return msgs, nil
}

// stored returns the function that settles a delivery once it is stored or not.
func stored(in *amqpserver.Incoming, explain func(error) error) func(error) {
	return func(err error) {
		if err != nil {
			in.Reject(explain(err))
			return
		}
		in.Accept()
	}
}

// plainIDs makes message ID and correlation ID strings. The Node.js SDKs send
// IDs that look like a UUID as one, and azservicebus receives only strings.
func plainIDs(m *amqp.Message) {
	if m.Properties == nil {
		return
	}
	for _, id := range []*any{&m.Properties.MessageID, &m.Properties.CorrelationID} {
		switch v := (*id).(type) {
		case amqp.UUID:
			*id = v.String()
		case uint64:
			*id = fmt.Sprint(v)
		case []byte:
			*id = fmt.Sprintf("%x", v)
		}
	}
}
