package amqpserver

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// Windows and limits that sessions announce.
const (
	// incomingWindow is how many transfer frames a peer may have under way. It
	// only has to keep a fast sender busy: memory is bounded by link credit.
	incomingWindow = 5000
	// outgoingWindow says that the server doesn't limit what it sends.
	outgoingWindow = math.MaxInt32
	// maxHandle bounds the links of one session.
	maxHandle = math.MaxUint16
)

// session is one session (§2.5). Everything below mu is guarded by it.
type session struct {
	conn    *conn
	channel uint16

	mu             sync.Mutex
	ended          bool // no frames are sent any more
	links          map[uint32]*link
	nextIncomingID uint32 // transfer-id that the peer's next frame has
	received       uint32 // transfer frames since the peer was last told the window
	nextOutgoingID uint32 // transfer-id of the next frame sent
	peerWindow     uint32 // transfer frames that the peer takes
	nextDeliveryID uint32
	unsettled      map[uint32]unsettled // deliveries sent, by delivery-id
}

// unsettled is a delivery that the peer has not decided on.
type unsettled struct {
	link    *link
	settler Settler
}

func newSession(c *conn, channel uint16, b *amqp.Begin) *session {
	return &session{
		conn:           c,
		channel:        channel,
		links:          make(map[uint32]*link),
		nextIncomingID: b.NextOutgoingID,
		peerWindow:     b.IncomingWindow,
		unsettled:      make(map[uint32]unsettled),
	}
}

// put sends a frame on the session, unless it has ended. The caller holds mu.
func (s *session) put(p amqp.Performative, payload []byte) {
	if !s.ended {
		s.conn.put(s.channel, p, payload)
	}
}

// handle handles one frame of the session. An error ends the connection; breaches
// of session rules end the session only.
func (s *session) handle(ctx context.Context, f amqp.Frame) error {
	var breach *amqp.Error
	switch p := f.Body.(type) {
	case *amqp.Attach:
		breach = s.attach(ctx, p)
	case *amqp.Flow:
		breach = s.flow(p)
	case *amqp.Transfer:
		breach = s.transfer(ctx, p, f.Payload)
	case *amqp.Disposition:
		s.disposition(p)
	case *amqp.Detach:
		breach = s.detached(p)
	default:
		return amqp.Errorf(amqp.CondIllegalState, "unexpected %T", p)
	}
	if breach != nil {
		s.fail(breach)
	}
	return nil
}

// fail ends the session from the server's side. Until the peer's end arrives,
// what it still sends is ignored.
func (s *session) fail(e *amqp.Error) {
	s.conn.log.Warn("amqp session ended for a breach of protocol", "error", e)
	s.close(&amqp.End{Error: e})
}

// end answers the peer's end. All links end with it, without detaches:
// azservicebus ends the session of its token exchange in that way.
func (s *session) end(e *amqp.End) {
	if e.Error != nil {
		s.conn.log.Info("amqp peer ended a session", "error", e.Error)
	}
	s.close(&amqp.End{})
}

// drop is end without an answer, when the connection is gone.
func (s *session) drop() { s.close(nil) }

func (s *session) close(last *amqp.End) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if last != nil {
		s.put(last, nil)
	}
	s.ended = true
	for _, l := range s.links {
		s.forget(l)
	}
	clear(s.unsettled)
}

// forget ends a link for good. The caller holds mu, on the reading goroutine or
// at the end of the session.
func (s *session) forget(l *link) {
	if s.links[l.handle] == l {
		delete(s.links, l.handle)
		s.conn.links--
	}
	l.cease()
	if s.conn.names[l.key()] == l {
		delete(s.conn.names, l.key())
	}
}

// state returns a flow with the session's part filled in. Every flow must carry
// next-incoming-id: go-amqp's senders crash on one without. The caller holds mu.
func (s *session) state() *amqp.Flow {
	next := s.nextIncomingID
	s.received = 0
	return &amqp.Flow{
		NextIncomingID: &next,
		IncomingWindow: incomingWindow,
		NextOutgoingID: s.nextOutgoingID,
		OutgoingWindow: outgoingWindow,
	}
}

// attach begins the attach of a link; the handler decides on it in a goroutine
// of its own.
func (s *session) attach(ctx context.Context, a *amqp.Attach) *amqp.Error {
	if len(a.Name) > maxName {
		return amqp.Errorf(amqp.CondInvalidField, "the name of a link has %d bytes of at most %d", len(a.Name), maxName)
	}
	l := newLink(s, a)
	// A name that the session uses in the same direction is taken over (§2.6.1).
	if old := s.conn.names[l.key()]; old != nil {
		old.detach(amqp.Errorf(amqp.CondStolen, "link %q was attached again", a.Name))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	switch {
	case a.Handle > maxHandle || s.links[a.Handle] != nil:
		return amqp.Errorf(amqp.CondHandleInUse, "handle %d is in use or out of range", a.Handle)
	case s.conn.links >= maxLinks:
		return amqp.Errorf(amqp.CondResourceLimitExceeded, "more than %d links on one connection", maxLinks)
	}
	s.conn.links++
	s.links[a.Handle] = l
	s.conn.names[l.key()] = l
	ctx, l.cancel = context.WithCancel(ctx)
	s.conn.wg.Go(func() { l.run(ctx, a) })
	return nil
}

// flow takes over the peer's windows and hands on what concerns a link.
func (s *session) flow(f *amqp.Flow) *amqp.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	s.nextIncomingID = f.NextOutgoingID
	var seen uint32 // a peer that has not got our begin yet counts from its start, 0
	if f.NextIncomingID != nil {
		seen = *f.NextIncomingID
	}
	wasShut := s.peerWindow == 0
	s.peerWindow = left(f.IncomingWindow, seen, s.nextOutgoingID)
	if wasShut && s.peerWindow > 0 {
		for _, l := range s.links {
			l.signal()
		}
	}
	if f.Handle == nil {
		if f.Echo {
			s.put(s.state(), nil)
		}
		return nil
	}
	l := s.links[*f.Handle]
	if l == nil {
		return amqp.Errorf(amqp.CondUnattachedHandle, "flow for handle %d", *f.Handle)
	}
	l.flow(f)
	return nil
}

// left is what is left of a window or credit that the peer gave when it had seen
// so many, now that so many are sent; both counts wrap (RFC 1982). Windows and
// credits of all 32 bits are in use, so they are not added to the counts.
func left(given, seen, sent uint32) uint32 {
	underWay := sent - seen
	if int32(underWay) < 0 {
		underWay = 0 // the peer has seen more than was sent: it counts wrong
	}
	if underWay >= given {
		return 0
	}
	return given - underWay
}

// transfer counts a transfer frame and gives it to its link.
func (s *session) transfer(ctx context.Context, t *amqp.Transfer, payload []byte) *amqp.Error {
	in, l, breach := s.receive(t, payload)
	if breach != nil || in == nil {
		return breach
	}
	l.target.Deliver(ctx, in)
	return nil
}

// receive does the part of transfer that needs the lock. It returns a message
// once it is complete.
func (s *session) receive(t *amqp.Transfer, payload []byte) (*Incoming, *link, *amqp.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, nil, nil
	}
	s.nextIncomingID++
	if s.received++; s.received > incomingWindow {
		return nil, nil, amqp.Errorf(amqp.CondWindowViolation, "more than %d transfers beyond the last flow", incomingWindow)
	}
	if s.received == incomingWindow/2 {
		s.put(s.state(), nil)
	}
	l := s.links[t.Handle]
	if l == nil {
		return nil, nil, amqp.Errorf(amqp.CondUnattachedHandle, "transfer for handle %d", t.Handle)
	}
	in := l.receive(t, payload)
	if s.conn.buffered.Load() > maxBuffered {
		return nil, nil, amqp.Errorf(amqp.CondResourceLimitExceeded, "more than %d bytes of incomplete messages on one connection", maxBuffered)
	}
	return in, l, nil
}

// disposition applies the peer's decisions on deliveries that it received. Those
// of a peer as sender need nothing: the server settles in one step.
func (s *session) disposition(d *amqp.Disposition) {
	if d.Role != amqp.RoleReceiver {
		return
	}
	outcome := d.State
	if outcome == nil && d.Settled {
		// Settled without saying how: the peer may not have dealt with it.
		outcome = &amqp.Released{}
	}
	switch outcome.(type) {
	case nil, *amqp.Received:
		return // not decided yet
	}
	if d.First == d.Last {
		if x, ok := s.decidedOne(d.First, d.Settled); ok {
			x.settler.Settle(outcome, x.done)
		}
		return
	}
	for _, x := range s.decided(d) {
		x.settler.Settle(outcome, x.done)
	}
}

// decision is a delivery whose outcome has come.
type decision struct {
	settler Settler
	done    func(amqp.DeliveryState)
}

// decided takes the deliveries that a disposition names out of the unsettled
// ones, in order. Unknown ones are left out: they are settled, or their link is
// gone.
func (s *session) decided(d *amqp.Disposition) []decision {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []decision
	for _, id := range s.named(d.First, d.Last) {
		if x, ok := s.decide(id, d.Settled); ok {
			list = append(list, x)
		}
	}
	return list
}

func (s *session) decidedOne(id uint32, settled bool) (decision, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.decide(id, settled)
}

// decide takes one delivery. The caller holds mu.
func (s *session) decide(id uint32, settled bool) (decision, bool) {
	u, ok := s.unsettled[id]
	if !ok {
		return decision{}, false
	}
	delete(s.unsettled, id)
	return decision{settler: u.settler, done: s.confirm(u.link, id, settled)}, true
}

// named returns the delivery-ids of a range, in order; those that are settled, or
// were never sent, may be left out. The range may name billions of them: what is
// gone through is the smaller of the two sets.
func (s *session) named(first, last uint32) []uint32 {
	sent := s.nextDeliveryID - first // numbers may wrap
	if int32(sent) <= 0 {
		return nil
	}
	span := min(last-first, sent-1)
	var ids []uint32
	if uint64(span) < uint64(len(s.unsettled)) {
		for i := range span + 1 {
			ids = append(ids, first+i)
		}
		return ids
	}
	for id := range s.unsettled {
		if id-first <= span {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b uint32) int { return cmp.Compare(a-first, b-first) })
	return ids
}

// confirm returns the function that answers a disposition. A peer that settled
// by itself waits for nothing.
func (s *session) confirm(l *link, id uint32, settled bool) func(amqp.DeliveryState) {
	if settled {
		return ignoreReply
	}
	return func(reply amqp.DeliveryState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		// go-amqp ends its session on a disposition of a detached link.
		if l.attached() {
			s.put(&amqp.Disposition{Role: amqp.RoleSender, First: id, Last: id, Settled: true, State: reply}, nil)
		}
	}
}

func ignoreReply(amqp.DeliveryState) {}

// detached handles the peer's detach: its wish, or the answer to ours.
func (s *session) detached(d *amqp.Detach) *amqp.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	l := s.links[d.Handle]
	if l == nil {
		return amqp.Errorf(amqp.CondUnattachedHandle, "detach for handle %d", d.Handle)
	}
	l.answerDetach()
	s.forget(l)
	for id, u := range s.unsettled {
		if u.link == l {
			delete(s.unsettled, id)
		}
	}
	return nil
}
