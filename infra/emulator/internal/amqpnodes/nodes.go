package amqpnodes

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// Config says what the nodes stand for. All fields without a default are
// required, except that either Hub or Namespace may be missing together with its
// verifiers.
type Config struct {
	Hub       *hub.Hub
	Namespace *broker.Namespace

	// HubTokens verifies tokens for the hub (mode sas.HubKeys).
	HubTokens *sas.Verifier
	// EventsTokens verifies tokens for the hub's built-in Event Hubs endpoint:
	// the hub's policies with their keys as they are written (mode
	// sas.NamespaceKeys).
	EventsTokens *sas.Verifier
	// NamespaceTokens verifies tokens for Service Bus and Event Hubs entities
	// (mode sas.NamespaceKeys).
	NamespaceTokens *sas.Verifier

	// EventsAddr is host:port of a TLS listener that serves these nodes; clients
	// that ask the hub for its events are redirected there.
	EventsAddr string
	// Logger gets what an operator wants to know; nil means none.
	Logger *slog.Logger
}

// Nodes makes handlers for connections.
type Nodes struct {
	cfg    Config
	realms []realm
	events eventsAddr
}

type eventsAddr struct{ host, port string }

// New checks the configuration.
func New(cfg Config) (*Nodes, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Nodes{cfg: cfg}
	if cfg.Hub != nil {
		if cfg.HubTokens == nil || cfg.EventsTokens == nil {
			return nil, errors.New("amqp nodes of a hub need verifiers for its tokens")
		}
		host, port, err := net.SplitHostPort(cfg.EventsAddr)
		if err != nil {
			return nil, errors.New("amqp nodes of a hub need the address of its events endpoint as host:port")
		}
		n.events = eventsAddr{host, port}
		n.realms = append(n.realms, realm{hubRealm, cfg.HubTokens}, realm{eventsRealm, cfg.EventsTokens})
	}
	if cfg.Namespace != nil {
		if cfg.NamespaceTokens == nil {
			return nil, errors.New("amqp nodes of a namespace need a verifier for its tokens")
		}
		n.realms = append(n.realms, realm{namespaceRealm, cfg.NamespaceTokens})
	}
	if len(n.realms) == 0 {
		return nil, errors.New("amqp nodes need a hub or a namespace")
	}
	return n, nil
}

// NewHandler returns the handler of one connection, for
// amqpserver.Options.NewHandler.
func (n *Nodes) NewHandler(p amqpserver.Peer) (amqpserver.Handler, error) {
	h := &handler{nodes: n, log: n.cfg.Logger.With("peer", p.RemoteAddr), replies: make(map[replyKey][]*replySource)}
	if g, ok := p.Identity.(grant); ok {
		if err := h.claims.put(g); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// handler holds what belongs to one connection.
type handler struct {
	nodes  *Nodes
	log    *slog.Logger
	claims claims
	wg     sync.WaitGroup // management requests under way

	waiting atomic.Int64 // replies that wait for credit

	mu      sync.Mutex
	replies map[replyKey][]*replySource
}

// Close waits for the requests under way. Their contexts have ended.
func (h *handler) Close() { h.wg.Wait() }

// OpenSource implements amqpserver.Handler.
func (h *handler) OpenSource(ctx context.Context, a *amqpserver.Attach) (amqpserver.Source, error) {
	addr := parseAddress(a.Address)
	switch addr.kind {
	case kindCBS, kindEventsManagement, kindManagement:
		return h.openReplies(addr, a)
	case kindFeedback:
		return h.openFeedback(a)
	case kindFileNotifications:
		return h.openFileNotifications(a)
	case kindHubEvents:
		return nil, h.redirect()
	case kindConsumer:
		return h.openConsumer(ctx, addr, a)
	case kindEntity:
		return h.openQueue(addr, a)
	}
	return nil, unknownNode(a, "receive from")
}

// OpenTarget implements amqpserver.Handler.
func (h *handler) OpenTarget(ctx context.Context, a *amqpserver.Attach) (amqpserver.Target, error) {
	addr := parseAddress(a.Address)
	switch addr.kind {
	case kindCBS:
		return h.requests(addr, a, true, h.putToken), nil
	case kindEventsManagement:
		return h.openEventsManagement(addr, a)
	case kindManagement:
		return h.openManagement(addr, a)
	case kindDeviceBound:
		return h.openDeviceBound(a)
	case kindPartition:
		return h.openProducer(addr, a)
	case kindEntity:
		if log, _ := h.nodes.eventLog(addr.entity); log != nil {
			return h.openProducer(addr, a)
		}
		return h.openEntity(addr, a)
	}
	return nil, unknownNode(a, "send to")
}

func unknownNode(a *amqpserver.Attach, verb string) error {
	if a.Address == "" {
		return amqp.Errorf(amqp.CondInvalidField, "link %q names no address to %s", a.Name, verb)
	}
	return amqp.Errorf(amqp.CondNotImplemented, "the emulator has no AMQP node %q to %s", a.Address, verb)
}

// eventLog finds an event hub by name, and says whether it is the hub's built-in
// endpoint.
func (n *Nodes) eventLog(name string) (log *broker.EventLog, builtIn bool) {
	if n.cfg.Hub != nil {
		if events := n.cfg.Hub.Events(); strings.EqualFold(events.Name(), name) {
			return events, true
		}
	}
	if n.cfg.Namespace != nil {
		if log, err := n.cfg.Namespace.EventLog(name); err == nil {
			return log, false
		}
	}
	return nil, false
}
