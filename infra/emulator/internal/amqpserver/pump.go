package amqpserver

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// pump sends what the source has for as long as the link lives.
//
// A source that said that it has nothing may count on being asked when it
// signals (queues signal one consumer per message). So a signal is answered by a
// call of Next even when the credit is gone by then, and the message returned
// for others to take.
func (l *link) pump(ctx context.Context, src Source) {
	var ready <-chan struct{} // not nil while the source owes a signal
	signalled := false
	for {
		asked := signalled || l.mayTake()
		if asked {
			out, err := src.Next(ctx)
			switch {
			case ctx.Err() != nil:
				giveBack(out)
				return
			case err != nil:
				l.detach(err)
				return
			case out != nil:
				ready, signalled = nil, false
				if !l.send(ctx, out) {
					giveBack(out)
				}
				continue
			}
			signalled = false
			ready = src.Ready()
		}
		l.finishDrain(asked)
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-ready:
			signalled = true
		}
	}
}

func giveBack(out *Outgoing) {
	if out != nil && out.Settler != nil {
		out.Settler.Return()
	}
}

// mayTake reports whether the peer has credit.
func (l *link) mayTake() bool {
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	return l.attached() && l.credit > 0
}

// finishDrain gives back unused credit if the peer asked for that (§2.6.7), once
// the source has been asked and said that it has nothing. Credit that came since
// is for the next round: the peer's flow has left a signal.
func (l *link) finishDrain(asked bool) {
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	if !l.drain || !l.attached() || !asked && l.credit > 0 {
		return
	}
	l.deliveryCount += l.credit
	l.credit = 0
	l.tellCredit()
	l.drain = false
}

// send sends one message as a delivery of its own. It reports false if nothing
// went out: the link ended, or its credit was taken back.
func (l *link) send(ctx context.Context, out *Outgoing) bool {
	payload, err := out.Message.AppendBinary(l.scratch[:0])
	if err != nil {
		l.detach(err)
		return false
	}
	if cap(payload) <= maxScratch { // the outbox has a copy of what was sent
		l.scratch = payload
	}
	d := &delivery{link: l, out: out, rest: payload}
	for {
		if err := l.session.conn.out.await(ctx); err != nil {
			return d.begun
		}
		switch err := d.sendSome(); {
		case err == nil:
			d.finish()
			return true
		case errors.Is(err, errWindow):
			select {
			case <-ctx.Done():
				return d.begun
			case <-l.wake:
			}
		case !errors.Is(err, errRoom):
			return d.begun
		}
	}
}

// maxScratch is the largest buffer that a link keeps.
const maxScratch = 4 << 10

// Why a delivery could not be sent in full.
var (
	errWindow = errors.New("session window is shut")
	errRoom   = errors.New("outbox is full")
	errGone   = errors.New("link is gone or without credit")
)

// delivery is a message while it is sent. Once begun, it counts as the peer's:
// if the link ends in the middle, the node's lock on it stays until it expires,
// as for one that was sent and not settled.
type delivery struct {
	link  *link
	out   *Outgoing
	rest  []byte
	begun bool
	id    uint32
}

// burst is how many bytes of a delivery are put into the outbox at a time.
const burst = 256 << 10

// sendSome sends frames until the message is complete (nil), or says what is in
// the way.
func (d *delivery) sendSome() error {
	s := d.link.session
	s.mu.Lock()
	defer s.mu.Unlock()
	for sent := 0; ; {
		switch {
		case !d.link.attached() || !d.begun && d.link.credit == 0:
			return errGone
		case s.peerWindow == 0:
			return errWindow
		case sent >= burst:
			return errRoom
		}
		n, more := d.sendFrame()
		if !more {
			return nil
		}
		sent += n
	}
}

// transferOverhead is more than a frame header and a transfer performative take
// up, with a tag of 32 bytes.
const transferOverhead = 128

// sendFrame sends the next frame and returns its payload's length.
func (d *delivery) sendFrame() (n int, more bool) {
	s := d.link.session
	t := &amqp.Transfer{Handle: d.link.handle, Settled: d.link.settled}
	if !d.begun {
		d.begin(t)
	}
	n = min(len(d.rest), int(s.conn.frameSize)-transferOverhead)
	t.More = n < len(d.rest)
	s.put(t, d.rest[:n])
	d.rest = d.rest[n:]
	s.nextOutgoingID++
	s.peerWindow--
	return n, t.More
}

// begin takes a delivery-id and a credit. The delivery is entered as unsettled
// before its first byte leaves, because the answer may come quickly.
func (d *delivery) begin(t *amqp.Transfer) {
	l, s := d.link, d.link.session
	d.begun = true
	d.id = s.nextDeliveryID
	s.nextDeliveryID++
	l.credit--
	l.deliveryCount++
	tag := d.out.Tag
	if tag == nil {
		tag = binary.BigEndian.AppendUint32(nil, d.id)
	}
	var format uint32
	t.DeliveryID, t.DeliveryTag, t.MessageFormat = &d.id, tag, &format
	if !l.settled && d.out.Settler != nil {
		s.unsettled[d.id] = unsettled{link: l, settler: d.out.Settler}
	}
}

// finish settles a delivery that the peer will say nothing about.
func (d *delivery) finish() {
	if d.link.settled && d.out.Settler != nil {
		d.out.Settler.Settle(&amqp.Accepted{}, func(amqp.DeliveryState) {})
	}
}
