package amqpnodes

import (
	"context"
	"slices"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

// Bounds on what a peer that gives no credit can pile up, without any claim.
const (
	// maxRequest is the largest request, in bytes, to the nodes that need no
	// claim. Tokens have a few thousand at most.
	maxRequest = 64 << 10
	// maxEcho is the largest message ID or reply address of a request, which a
	// reply repeats, and of the links for replies.
	maxEcho = 1 << 10
	// maxDescription is the longest description in a reply.
	maxDescription = 1 << 10
)

// replyKey says where replies may go: to links of the same session with the
// requested node as their source.
type replyKey struct {
	session amqpserver.SessionID
	node    string
}

func keyOf(addr address, a *amqpserver.Attach) replyKey {
	return replyKey{session: a.Session, node: strings.ToLower(addr.path)}
}

// replySource gives out the replies of a node.
type replySource struct {
	*mailbox
	handler *handler
	key     replyKey
	address string // where the peer wants replies sent to
}

// openReplies opens the receiving half of a request-response pair. Who may get
// replies is decided on the other half.
func (h *handler) openReplies(addr address, a *amqpserver.Attach) (amqpserver.Source, error) {
	if len(a.PeerAddress) > maxEcho || len(addr.path) > maxEcho {
		return nil, amqp.Errorf(amqp.CondInvalidField, "an address of the link has more than %d bytes", maxEcho)
	}
	h.expectProof()
	// The clients neither settle replies nor get credit for them again unless
	// they come settled, whatever mode they ask for.
	a.Settled = true
	s := &replySource{mailbox: newMailbox(&h.waiting), handler: h, key: keyOf(addr, a), address: a.PeerAddress}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.replies[s.key] = append(h.replies[s.key], s)
	return s, nil
}

func (s *replySource) Close() {
	h := s.handler
	s.mailbox.close()
	h.mu.Lock()
	defer h.mu.Unlock()
	left := slices.DeleteFunc(h.replies[s.key], func(other *replySource) bool { return other == s })
	if len(left) == 0 {
		delete(h.replies, s.key)
		return
	}
	h.replies[s.key] = left
}

// replyLink finds the link for a reply: the one with that address, else the newest.
// Clients that use one pair for all are careless with the address, and of one
// that puts tokens over a pair of links each, the link before may still be on its
// way out.
func (h *handler) replyLink(key replyKey, replyTo string) *replySource {
	h.mu.Lock()
	defer h.mu.Unlock()
	links := h.replies[key]
	for _, s := range links {
		if replyTo != "" && s.address == replyTo {
			return s
		}
	}
	if len(links) == 0 {
		return nil
	}
	return links[len(links)-1]
}

// request is a request to a node.
type request struct {
	msg       *amqp.Message
	operation string
}

// property returns an application property that is a string, or "".
func (r *request) property(name string) string {
	s, _ := r.msg.ApplicationProperties[name].(string)
	return s
}

// body returns the map in the request's amqp-value section, or nil.
func (r *request) body() map[string]any {
	m, _ := r.msg.Value.(map[string]any)
	return m
}

// response is a node's answer.
type response struct {
	status      int32 // as in HTTP
	description string
	condition   amqp.Symbol // of the error; may be empty
	body        any
	// serviceBus spells names as the management nodes of Service Bus do.
	serviceBus bool
}

func failure(status int32, condition amqp.Symbol, description string) response {
	return response{status: status, condition: condition, description: description}
}

// message is the reply's wire form. The status must be an int: clients take any
// other type for a missing one. Its name is status-code (AMQP Claims-based
// Security 1.0 §3.3), but statusCode in Service Bus (Service Bus docs: "AMQP 1.0 in
// Azure Service Bus: request-response-based operations"), and the SDK for
// JavaScript looks for that one alone in answers to peek-message.
func (r response) message(to *amqp.Message) *amqp.Message {
	var p amqp.Properties
	if q := to.Properties; q != nil {
		p.CorrelationID = q.MessageID
		if p.CorrelationID == nil {
			p.CorrelationID = q.CorrelationID
		}
		p.To = q.ReplyTo
	}
	description := r.description[:min(len(r.description), maxDescription)]
	status, text := "status-code", "status-description"
	if r.serviceBus {
		status, text = "statusCode", "statusDescription"
	}
	props := map[string]any{status: r.status, text: strings.ToValidUTF8(description, "?")}
	if r.condition != "" {
		props["errorCondition"] = r.condition // the name that the Service Bus SDK for .NET reads
	}
	return &amqp.Message{Properties: &p, ApplicationProperties: props, Value: r.body, HasValue: true}
}

// responder answers requests.
type responder func(ctx context.Context, r *request) response

// requestTarget takes the requests to a node.
type requestTarget struct {
	handler *handler
	key     replyKey
	inline  bool // the responder doesn't block
	respond responder
}

func (h *handler) requests(addr address, a *amqpserver.Attach, inline bool, respond responder) amqpserver.Target {
	if addr.kind != kindManagement {
		a.MaxMessageSize = maxRequest
	}
	return &requestTarget{handler: h, key: keyOf(addr, a), inline: inline, respond: respond}
}

func (t *requestTarget) Deliver(ctx context.Context, in *amqpserver.Incoming) {
	m, err := in.Message()
	if err != nil {
		in.Reject(err)
		return
	}
	if echoSize(m.Properties) > maxEcho {
		in.Reject(amqp.Errorf(amqp.CondInvalidField, "message ID and reply-to of a request have more than %d bytes", maxEcho))
		return
	}
	var replyTo string
	if m.Properties != nil && m.Properties.ReplyTo != nil {
		replyTo = *m.Properties.ReplyTo
	}
	link := t.handler.replyLink(t.key, replyTo)
	if link == nil {
		in.Reject(amqp.Errorf(amqp.CondPreconditionFailed, "no receiver for replies from %q is attached in this session", t.key.node))
		return
	}
	r := &request{msg: m}
	r.operation = r.property("operation")
	answer := func() {
		if !link.push(t.respond(ctx, r).message(m), 0) {
			in.Reject(amqp.Errorf(amqp.CondResourceLimitExceeded, "%d replies wait for credit", maxWaiting))
			return
		}
		in.Accept()
	}
	if t.inline {
		answer()
		return
	}
	t.handler.wg.Go(answer)
}

func (t *requestTarget) Close() {}

// echoSize is how many bytes of a request a reply may repeat.
func echoSize(p *amqp.Properties) int {
	if p == nil {
		return 0
	}
	n := 0
	for _, id := range []any{p.MessageID, p.CorrelationID} {
		switch id := id.(type) {
		case string:
			n = max(n, len(id))
		case []byte:
			n = max(n, len(id))
		}
	}
	if p.ReplyTo != nil {
		n += len(*p.ReplyTo)
	}
	return n
}
