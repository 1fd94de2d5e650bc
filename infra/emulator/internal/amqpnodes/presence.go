package amqpnodes

import (
	"context"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// propCorrelation is the link property by which a sending and a receiving link
// of a device belong together (azure-iot-device-amqp 1.14,
// amqp_twin_client.ts).
const propCorrelation = "com.microsoft:channel-correlation-id"

// presence is a device or module on one connection: the hub's session, which all
// its links there share. It begins with the first link and ends with the last, or
// when the hub ends the session. A connection may carry any number of them: the
// IoT SDKs multiplex devices.
type presence struct {
	handler *handler
	target  hub.Target
	session *hub.Session

	// guarded by handler.mu
	links map[*deviceLink]struct{}
	seats map[seat]*deviceLink
	// serving are the links on which the hub's own messages go out: method
	// calls, and changes of desired properties.
	serving map[kind]*deviceLink
}

// seat is a part that only one link of a presence can have.
type seat struct {
	kind      kind
	receiving bool   // the device receives on the link
	channel   string // tells pairs of links apart
}

// opposite is the seat of the other link of a pair.
func (s seat) opposite() seat {
	s.receiving = !s.receiving
	return s
}

// deviceLink is one link of a device or module. The nodes embed it for its Close.
type deviceLink struct {
	*guard
	*presence
	attach *amqpserver.Attach
	seat   seat
	// mailbox is what a link gives out on which the device receives requests,
	// or answers to its own; else nil.
	mailbox *mailbox
}

// join makes a link one of the device or module that its address names, after
// checking that the connection may speak for it.
func (h *handler) join(ctx context.Context, addr address, a *amqpserver.Attach) (*deviceLink, error) {
	g, auth, err := h.admitIdentity(addr.target)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.devices[addr.target]
	if p == nil || p.session.Err() != nil {
		if p, err = h.appear(ctx, addr.target, auth); err != nil {
			return nil, err
		}
	}
	l := &deviceLink{guard: g, presence: p, attach: a}
	p.links[l] = struct{}{}
	g.watch(a)
	a.ReplyFilter = nil // no filter has an effect
	return l, nil
}

// appear opens the hub's session of a device. The caller holds mu.
func (h *handler) appear(ctx context.Context, t hub.Target, auth hub.AuthMethod) (*presence, error) {
	s, err := h.nodes.cfg.Hub.Connect(ctx, t.DeviceID, hub.ConnectOptions{ModuleID: t.ModuleID, Auth: auth})
	if err != nil {
		return nil, hubError(err)
	}
	p := &presence{
		handler: h,
		target:  t,
		session: s,
		links:   make(map[*deviceLink]struct{}),
		seats:   make(map[seat]*deviceLink),
		serving: make(map[kind]*deviceLink),
	}
	h.devices[t] = p
	h.tellPeer(t)
	h.wg.Go(p.awaitEnd)
	return p, nil
}

// awaitEnd detaches the links when the hub ends the session: another connection
// took over, or the device was disabled or deleted.
func (p *presence) awaitEnd() {
	<-p.session.Done()
	reason := hubError(p.session.Err())
	for l := range p.vanish() {
		l.attach.Detach(reason)
	}
}

// vanish ends the presence and returns its links.
func (p *presence) vanish() map[*deviceLink]struct{} {
	p.handler.mu.Lock()
	defer p.handler.mu.Unlock()
	if p.handler.devices[p.target] == p {
		delete(p.handler.devices, p.target)
	}
	links := p.links
	p.links = nil
	return links
}

// check says whether the link may still be used.
func (l *deviceLink) check() error {
	if err := l.session.Err(); err != nil {
		return hubError(err)
	}
	return l.guard.check()
}

// Close ends the link's part in the presence, and with the last link the
// presence.
func (l *deviceLink) Close() {
	l.guard.Close()
	if l.mailbox != nil {
		l.mailbox.close()
	}
	if l.leave() {
		l.session.Close()
	}
}

// leave reports whether the link was the last one.
func (l *deviceLink) leave() bool {
	p := l.presence
	p.handler.mu.Lock()
	defer p.handler.mu.Unlock()
	if p.seats[l.seat] == l {
		p.ceaseToServe(l)
		delete(p.seats, l.seat)
	}
	if _, there := p.links[l]; !there {
		return false // the presence is over, or the link has left before
	}
	delete(p.links, l)
	if len(p.links) > 0 {
		return false
	}
	if p.handler.devices[p.target] == p {
		delete(p.handler.devices, p.target)
	}
	return true
}

// take gives the link a seat, and detaches the link that had it.
func (l *deviceLink) take(s seat) {
	p := l.presence
	p.handler.mu.Lock()
	earlier := p.seats[s]
	if earlier != nil {
		p.ceaseToServe(earlier)
	}
	l.seat = s
	p.seats[s] = l
	if s.kind == kindMethods {
		p.serve(l, func(r *deviceLink) { p.session.HandleMethods(r.deliverMethod) })
	}
	p.handler.mu.Unlock()
	if earlier != nil {
		earlier.attach.Detach(amqp.Errorf(amqp.CondStolen, "%s attached another link to the same node", p.target))
	}
}

// joinPair is join for one of a pair of links, which their correlation property
// brings together. Links without one belong together too.
func (h *handler) joinPair(ctx context.Context, addr address, a *amqpserver.Attach, receiving bool) (*deviceLink, error) {
	channel, _ := a.Properties[propCorrelation].(string)
	if len(channel) > maxEcho {
		return nil, amqp.Errorf(amqp.CondInvalidField, "%s has more than %d bytes", propCorrelation, maxEcho)
	}
	l, err := h.join(ctx, addr, a)
	if err != nil {
		return nil, err
	}
	if receiving {
		l.mailbox = newMailbox(&h.waiting)
		// What is given out here is gone with its link, so there is nothing
		// to settle; the cloud sends it settled too.
		a.Settled = true
	}
	l.take(seat{kind: addr.kind, receiving: receiving, channel: channel})
	return l, nil
}

// pairedSource gives out what comes for the receiving link of a pair.
type pairedSource struct {
	*mailbox
	link *deviceLink
}

// openPaired opens the receiving link of a pair: for direct methods, it is the one
// that the device gets calls on, and for its twin, the one that it gets answers
// and changes on.
func (h *handler) openPaired(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Source, error) {
	l, err := h.joinPair(ctx, addr, a, true)
	if err != nil {
		return nil, err
	}
	return &pairedSource{l.mailbox, l}, nil
}

func (s *pairedSource) Close() { s.link.Close() }

// partner is the other link of the pair, or nil. The caller holds handler.mu.
func (p *presence) partner(l *deviceLink) *deviceLink {
	return p.seats[l.seat.opposite()]
}

// receiver returns the link that gets the answers to what is sent on this one.
func (l *deviceLink) receiver() (*deviceLink, error) {
	l.handler.mu.Lock()
	defer l.handler.mu.Unlock()
	if r := l.partner(l); r != nil {
		return r, nil
	}
	return nil, amqp.Errorf(amqp.CondPreconditionFailed,
		"no receiving link with the same address and the same %s is attached", propCorrelation)
}

// serve makes the pair of a link the one that gets what the hub sends, with start
// telling the hub so. The newest pair is served. It reports false if half of the
// pair is missing. The caller holds handler.mu.
func (p *presence) serve(l *deviceLink, start func(receiver *deviceLink)) bool {
	other := p.partner(l)
	if other == nil {
		return false
	}
	if !l.seat.receiving {
		l = other
	}
	p.serving[l.seat.kind] = l
	start(l)
	return true
}

// ceaseToServe ends what the hub sends to the pair of a link. The caller holds
// handler.mu.
func (p *presence) ceaseToServe(l *deviceLink) {
	served := p.serving[l.seat.kind]
	if served == nil || served.seat.channel != l.seat.channel {
		return
	}
	delete(p.serving, l.seat.kind)
	switch l.seat.kind {
	case kindMethods:
		p.session.HandleMethods(nil)
	case kindTwin:
		p.session.WatchDesired(nil)
	}
}

// push gives the device a message on the link, or detaches the link if too many
// wait there: what is missing then would go unnoticed otherwise.
func (l *deviceLink) push(m *amqp.Message, bytes int) {
	if !l.mailbox.push(m, bytes) {
		l.attach.Detach(amqp.Errorf(amqp.CondResourceLimitExceeded,
			"messages wait for credit; the most are %d messages of %d bytes in all", maxWaiting, maxWaitingBytes))
	}
}
