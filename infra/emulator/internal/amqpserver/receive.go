package amqpserver

import "github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"

// receive adds a transfer frame to the delivery that it belongs to, and returns
// the delivery when it is complete and the target is to have it. The caller
// holds session.mu.
func (l *link) receive(t *amqp.Transfer, payload []byte) *Incoming {
	if !l.attached() || l.role != amqp.RoleReceiver {
		return nil // under way when we detached
	}
	if l.partial == nil && !l.begin(t) {
		return nil
	}
	in := l.partial
	in.Settled = in.Settled || t.Settled
	l.append(in, t, payload)
	if t.More && !t.Aborted {
		return nil
	}
	l.dropPartial()
	switch {
	case t.Aborted: // §2.6.14: as if it had not been sent
		l.replaceCredit()
		return nil
	case !l.partialBad:
		return in
	}
	e := amqp.Errorf(amqp.CondMessageSizeExceeded, "message is larger than the %d bytes allowed", l.maxSize)
	if in.Settled {
		l.sendDetach(e) // there is no other way to tell
		return nil
	}
	l.settle(in, &amqp.Rejected{Error: e})
	return nil
}

// begin starts a delivery with its first frame. It detaches links on which the
// peer breaks the rules.
func (l *link) begin(t *amqp.Transfer) bool {
	switch {
	case l.credit == 0:
		l.sendDetach(amqp.Errorf(amqp.CondTransferLimitExceeded, "transfer without credit"))
		return false
	case t.DeliveryID == nil:
		l.sendDetach(amqp.Errorf(amqp.CondInvalidField, "first transfer of a delivery without delivery-id"))
		return false
	}
	l.credit--
	l.deliveryCount++
	l.partial = &Incoming{id: *t.DeliveryID, link: l}
	l.partialBad = false
	if t.MessageFormat != nil {
		l.partial.Format = *t.MessageFormat
	}
	return true
}

// append adds a frame's payload. A message that grows too large is forgotten at
// once, but its frames are still taken until the last.
func (l *link) append(in *Incoming, t *amqp.Transfer, payload []byte) {
	if uint64(len(in.Payload))+uint64(len(payload)) > l.maxSize {
		l.partialBad = true
		l.session.conn.buffered.Add(-int64(len(in.Payload)))
		in.Payload = nil
	}
	if l.partialBad || t.Aborted {
		return
	}
	l.session.conn.buffered.Add(int64(len(payload)))
	in.Payload = append(in.Payload, payload...)
}

// dropPartial ends the delivery under way, if there is one: it is complete, or
// nobody will have it.
func (l *link) dropPartial() {
	if l.partial != nil {
		l.session.conn.buffered.Add(-int64(len(l.partial.Payload)))
		l.partial = nil
	}
}

// settleIncoming tells the peer how its delivery ended.
func (l *link) settleIncoming(in *Incoming, state amqp.DeliveryState) {
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	// go-amqp ends its session on a disposition of a detached link.
	if l.attached() {
		l.settle(in, state)
	}
}

// settle settles in one step, whatever the receiver settle mode: the two-step
// mode exists for receivers that must not act twice, which here is the node's
// affair. The caller holds session.mu.
func (l *link) settle(in *Incoming, state amqp.DeliveryState) {
	if !in.Settled {
		l.session.put(&amqp.Disposition{Role: amqp.RoleReceiver, First: in.id, Last: in.id, Settled: true, State: state}, nil)
	}
	l.replaceCredit()
}

// replaceCredit gives the credit of a finished delivery again, half of all at a
// time.
func (l *link) replaceCredit() {
	if l.toReplace++; l.toReplace < (l.maxCredit+1)/2 {
		return
	}
	l.credit += l.toReplace
	l.toReplace = 0
	l.tellCredit()
}
