package amqpnodes

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

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

	// Access may refuse what is done with entities; nil admits all.
	Access Access

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
	h := &handler{
		nodes:        n,
		log:          n.cfg.Logger.With("peer", p.RemoteAddr),
		conn:         p.Conn,
		certificates: p.Certificates,
		shut:         p.Shut,
		replies:      make(map[replyKey][]*replySource),
		devices:      make(map[hub.Target]*presence),
	}
	if g, ok := p.Identity.(grant); ok {
		if err := h.claims.put(g); err != nil {
			return nil, err
		}
		h.expiry = g.limit(p)
	}
	return h, nil
}

// limit ends a connection whose peer authenticated with a token when that expires:
// with SASL PLAIN there is one token for a connection (IoT Hub docs: "Control
// access to IoT Hub with shared access signatures"). It returns nil for a grant
// that doesn't expire.
func (g grant) limit(p amqpserver.Peer) *time.Timer {
	if g.byKey {
		return nil
	}
	return time.AfterFunc(g.claims.Expires.Sub(g.realm.now()), func() {
		p.Shut(amqp.Errorf(amqp.CondUnauthorizedAccess, "the token of the connection has expired"))
	})
}

// handler holds what belongs to one connection.
type handler struct {
	nodes        *Nodes
	log          *slog.Logger
	conn         net.Conn
	expiry       *time.Timer         // of the connection; nil for none
	certificates []*x509.Certificate // that the peer proved to own, its own first
	shut         func(reason error)  // ends the connection
	claims       claims
	waiting      waiting        // messages that wait for credit
	wg           sync.WaitGroup // requests under way, and the watches of devices

	mu      sync.Mutex // guards all below
	replies map[replyKey][]*replySource
	devices map[hub.Target]*presence
	doubt   *time.Timer // of expectProof; nil before
}

// Authorized implements amqpserver.Authorizer. A certificate that turns out to be
// nobody's opens no link, and the connection ends for that.
func (h *handler) Authorized() bool { return len(h.certificates) > 0 || h.claims.any() }

// Close waits for what is under way. The contexts of requests, and the sessions
// of devices, have ended.
func (h *handler) Close() {
	if h.expiry != nil {
		h.expiry.Stop()
	}
	h.mu.Lock()
	if h.doubt != nil {
		h.doubt.Stop()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// proofTimeout is how long a connection with a certificate may have links that
// need no claim before it shows whose it is.
const proofTimeout = 20 * time.Second

// expectProof is called for a link that needs no claim. With such links alone, a
// certificate of nobody would hold a connection for ever.
func (h *handler) expectProof() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt != nil || len(h.certificates) == 0 {
		return
	}
	h.doubt = time.AfterFunc(proofTimeout, func() {
		h.mu.Lock()
		known := len(h.devices) > 0
		h.mu.Unlock()
		if !known && !h.claims.any() {
			h.shut(amqp.Errorf(amqp.CondConnectionForced, "neither a valid token was put nor a link of a device opened within %v", proofTimeout))
		}
	})
}

// OpenSource implements amqpserver.Handler.
func (h *handler) OpenSource(ctx context.Context, a *amqpserver.Attach) (amqpserver.Source, error) {
	addr := parseAddress(a.Address)
	source, err := h.openSource(ctx, addr, a)
	if err != nil {
		return nil, err
	}
	h.tellEntity(addr)
	return source, nil
}

func (h *handler) openSource(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Source, error) {
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
	case kindC2D:
		return h.openC2D(ctx, addr, a)
	case kindMethods, kindTwin:
		return h.openPaired(ctx, addr, a)
	case kindEntity:
		return h.openQueue(addr, a)
	}
	return nil, unknownNode(a, "receive from")
}

// OpenTarget implements amqpserver.Handler.
func (h *handler) OpenTarget(ctx context.Context, a *amqpserver.Attach) (amqpserver.Target, error) {
	addr := parseAddress(a.Address)
	target, err := h.openTarget(ctx, addr, a)
	if err != nil {
		return nil, err
	}
	h.tellEntity(addr)
	return target, nil
}

func (h *handler) openTarget(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	switch addr.kind {
	case kindCBS:
		h.expectProof()
		return h.requests(addr, a, true, h.putToken), nil
	case kindEventsManagement:
		return h.openEventsManagement(addr, a)
	case kindManagement:
		return h.openManagement(addr, a)
	case kindDeviceBound:
		return h.openDeviceBound(a)
	case kindTelemetry:
		return h.openTelemetry(ctx, addr, a)
	case kindMethods:
		return h.openMethodResponses(ctx, addr, a)
	case kindTwin:
		return h.openTwinRequests(ctx, addr, a)
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
