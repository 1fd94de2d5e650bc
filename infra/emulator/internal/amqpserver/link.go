package amqpserver

import (
	"context"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// linkState is where a link is in its life.
type linkState uint8

const (
	attaching linkState = iota // the handler has not decided yet
	live                       // attached
	detaching                  // our detach is sent, the peer's is awaited
	gone
)

// link is one link. Fields are guarded by session.mu unless they say otherwise.
type link struct {
	session *session
	name    string
	handle  uint32    // of both sides: the server uses the peer's number
	role    amqp.Role // the server's
	cancel  context.CancelFunc
	wake    chan struct{} // tells the sending goroutine that fields have changed

	state   linkState
	pending *amqp.Error // detach asked for while attaching

	// The link's flow state (§2.6.7). credit counts from deliveryCount on.
	deliveryCount uint32
	credit        uint32
	drain         bool // the peer wants unused credit back

	// Links on which the server sends.
	settled bool   // transfers are sent settled
	scratch []byte // for the sending goroutine to encode into

	// Links on which the server receives.
	target     Target // set before the state is live, and never changed
	maxSize    uint64
	maxCredit  uint32
	toReplace  uint32    // settled deliveries whose credit was not given again
	partial    *Incoming // a delivery of which frames are missing
	partialBad bool      // it is too large, or aborted
}

func newLink(s *session, a *amqp.Attach) *link {
	l := &link{
		session: s,
		name:    a.Name,
		handle:  a.Handle,
		role:    !a.Role,
		wake:    make(chan struct{}, 1),
	}
	if a.Role == amqp.RoleSender {
		// The sender of a link chooses where its count starts.
		l.deliveryCount = a.InitialDeliveryCount
	}
	return l
}

func (l *link) key() linkKey {
	return linkKey{channel: l.session.channel, name: l.name, role: l.role}
}

func (l *link) attached() bool { return l.state == live }

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// cease ends the link's goroutine, if it has one.
func (l *link) cease() {
	l.state = gone
	l.dropPartial()
	l.cancel()
}

// run asks the handler about an attach and then serves the link. On links on
// which the server sends, it runs as long as the link.
func (l *link) run(ctx context.Context, a *amqp.Attach) {
	if a.Target != nil && a.Target.Coordinator {
		l.refuse(a, amqp.Errorf(amqp.CondNotImplemented, "transactions are not supported"))
		return
	}
	req := l.request(a)
	if l.role == amqp.RoleSender {
		src, err := l.session.conn.handler.OpenSource(ctx, req)
		if err != nil {
			l.refuse(a, err)
			return
		}
		defer src.Close()
		if l.accept(a, req, nil) {
			l.pump(ctx, src)
		}
		return
	}
	tgt, err := l.session.conn.handler.OpenTarget(ctx, req)
	if err != nil {
		l.refuse(a, err)
		return
	}
	if !l.accept(a, req, tgt) {
		tgt.Close()
		return
	}
	l.session.conn.wg.Add(1)
	context.AfterFunc(ctx, func() {
		defer l.session.conn.wg.Done()
		tgt.Close()
	})
}

// request describes an attach to the handler.
func (l *link) request(a *amqp.Attach) *Attach {
	req := &Attach{
		Session:             SessionID(l.session.channel),
		Name:                a.Name,
		Properties:          a.Properties,
		DesiredCapabilities: a.DesiredCapabilities,
		SenderSettleMode:    a.SenderSettleMode,
		ReceiverSettleMode:  a.ReceiverSettleMode,
		Settled:             a.SenderSettleMode == amqp.SenderSettled,
		MaxMessageSize:      DefaultMaxMessageSize,
		Credit:              DefaultCredit,
		link:                l,
	}
	var source, target string
	if a.Source != nil {
		source, req.Filter = a.Source.Address, a.Source.Filter
	}
	if a.Target != nil {
		target = a.Target.Address
	}
	req.ReplyFilter = req.Filter
	req.Address, req.PeerAddress = source, target
	if l.role == amqp.RoleReceiver {
		req.Address, req.PeerAddress = target, source
	}
	return req
}

// answer is the attach that both acceptance and refusal send: settle modes and
// termini as the peer asked for, because go-amqp gives a link up whose modes
// differ from those it set.
func (l *link) answer(a *amqp.Attach) *amqp.Attach {
	return &amqp.Attach{
		Name:               l.name,
		Handle:             l.handle,
		Role:               l.role,
		SenderSettleMode:   a.SenderSettleMode,
		ReceiverSettleMode: a.ReceiverSettleMode,
		Source:             a.Source,
		Target:             a.Target,
	}
}

// accept answers an attach. It reports false if the link has ended meanwhile.
func (l *link) accept(a *amqp.Attach, req *Attach, tgt Target) bool {
	reply := l.answer(a)
	reply.Properties = req.ReplyProperties
	reply.OfferedCapabilities = req.OfferedCapabilities
	if reply.Source == nil {
		reply.Source = &amqp.Source{}
	}
	if reply.Target == nil {
		reply.Target = &amqp.Target{}
	}
	source := *reply.Source
	source.Filter = req.ReplyFilter
	reply.Source = &source

	s := l.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.state != attaching {
		return false
	}
	l.state = live
	l.settled = req.Settled
	if tgt != nil {
		l.target, l.maxSize, l.maxCredit = tgt, req.MaxMessageSize, max(req.Credit, 1)
		reply.MaxMessageSize = l.maxSize
	}
	s.put(reply, nil)
	if l.pending != nil {
		l.sendDetach(l.pending)
	} else if tgt != nil {
		l.credit = l.maxCredit
		l.tellCredit()
	}
	return true
}

// refuse answers an attach with one that lacks the wanted terminus, and a detach
// with the reason (§2.6.3).
func (l *link) refuse(a *amqp.Attach, err error) {
	e := l.session.conn.asError(err)
	l.session.conn.log.Info("amqp attach refused", "link", l.name, "error", e)
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	if l.state == attaching {
		l.putRefusal(a)
		l.sendDetach(e)
	}
}

// putRefusal leaves out both termini. §2.6.3 asks only for the server's own to be
// missing, and go-amqp v1.7 looks only at that (link.go, nilTerminus). But go-amqp
// v0.18, which amenzhinsky/iothub uses, takes an attach with either of them for
// an acceptance, and its caller would learn of the refusal from a later call, or
// never. rhea reads the attach for neither: it waits for the detach and its error.
func (l *link) putRefusal(a *amqp.Attach) {
	reply := l.answer(a)
	reply.Source, reply.Target = nil, nil
	l.session.put(reply, nil)
}

// detach ends the link from the server's side.
func (l *link) detach(err error) {
	e := l.session.conn.asError(err)
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	switch l.state {
	case attaching:
		if l.pending == nil {
			l.pending = e
		}
	case live:
		l.sendDetach(e)
	}
}

// sendDetach always closes: go-amqp takes a detach that does not for an error of
// its own.
func (l *link) sendDetach(e *amqp.Error) {
	l.state = detaching
	l.dropPartial()
	l.session.put(&amqp.Detach{Handle: l.handle, Closed: true, Error: e}, nil)
	l.cancel()
}

// answerDetach answers the peer's detach, if it is not itself an answer.
func (l *link) answerDetach() {
	switch l.state {
	case attaching:
		// The peer gave up before it was answered. It needs both frames to
		// pair the handles, and then to free them.
		l.session.put(&amqp.Attach{Name: l.name, Handle: l.handle, Role: l.role}, nil)
		fallthrough
	case live:
		l.session.put(&amqp.Detach{Handle: l.handle, Closed: true}, nil)
	}
}

// flow takes over what the peer says of the link.
func (l *link) flow(f *amqp.Flow) {
	if l.role == amqp.RoleReceiver {
		if f.Echo && l.attached() {
			l.tellCredit()
		}
		return
	}
	if f.LinkCredit != nil {
		var count uint32 // a peer that has not got our attach yet counts from 0
		if f.DeliveryCount != nil {
			count = *f.DeliveryCount
		}
		l.credit = left(*f.LinkCredit, count, l.deliveryCount)
	}
	l.drain = f.Drain
	if f.Echo && l.attached() {
		l.tellCredit()
	}
	l.signal()
}

// tellCredit sends a flow with the link's state. It always carries link-credit,
// which go-amqp's senders read unchecked.
func (l *link) tellCredit() {
	f := l.session.state()
	handle, count, credit := l.handle, l.deliveryCount, l.credit
	f.Handle, f.DeliveryCount, f.LinkCredit = &handle, &count, &credit
	f.Drain = l.drain
	l.session.put(f, nil)
}
