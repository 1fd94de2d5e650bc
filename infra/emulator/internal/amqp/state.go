package amqp

// DeliveryState is the state of a delivery (§3.4): one of Received, Accepted,
// Rejected, Released and Modified. All but Received are outcomes.
type DeliveryState interface {
	appender
	decode(*fields) error
}

// Received says how much of a delivery has arrived (§3.4.1).
type Received struct {
	SectionNumber uint32
	SectionOffset uint64
}

// Accepted is the outcome of a message that was processed (§3.4.2).
type Accepted struct{}

// Rejected is the outcome of a message that is invalid or cannot be processed
// (§3.4.3). Service Bus takes it as the wish to dead-letter.
type Rejected struct{ Error *Error }

// Released gives a message back as if it had not been sent (§3.4.4).
type Released struct{}

// Modified gives a message back with changes (§3.4.5).
type Modified struct {
	DeliveryFailed    bool
	UndeliverableHere bool
	Annotations       map[string]any
}

func (s *Received) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeReceived)
	c.field(s.SectionNumber)
	c.field(s.SectionOffset)
	return c.end()
}

func (s *Received) decode(f *fields) error {
	field(f, &s.SectionNumber)
	field(f, &s.SectionOffset)
	return f.end()
}

func (*Accepted) appendTo(b []byte) ([]byte, error) { return newComposite(b, typeAccepted).end() }
func (*Accepted) decode(f *fields) error            { return f.end() }
func (*Released) appendTo(b []byte) ([]byte, error) { return newComposite(b, typeReleased).end() }
func (*Released) decode(f *fields) error            { return f.end() }

func (s *Rejected) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeRejected)
	c.optional(s.Error != nil, s.Error)
	return c.end()
}

func (s *Rejected) decode(f *fields) error {
	f.amqpError(&s.Error)
	return f.end()
}

func (s *Modified) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeModified)
	c.flag(s.DeliveryFailed)
	c.flag(s.UndeliverableHere)
	c.symbolMap(s.Annotations)
	return c.end()
}

func (s *Modified) decode(f *fields) error {
	field(f, &s.DeliveryFailed)
	field(f, &s.UndeliverableHere)
	f.namedMap(&s.Annotations)
	return f.end()
}

func deliveryState(code byte) DeliveryState {
	switch code {
	case typeReceived:
		return &Received{}
	case typeAccepted:
		return &Accepted{}
	case typeRejected:
		return &Rejected{}
	case typeReleased:
		return &Released{}
	case typeModified:
		return &Modified{}
	}
	return nil
}

func (f *fields) state(dst *DeliveryState) {
	if !f.next() {
		return
	}
	code, err := f.r.descriptor()
	if err != nil {
		f.err = err
		return
	}
	s := deliveryState(code)
	if s == nil {
		f.err = malformed("unknown delivery state 0x%02x", code)
		return
	}
	f.err = s.decode(f.r.fields())
	*dst = s
}

// nested checks the descriptor of a composite within another.
func (f *fields) nested(code byte) *fields {
	got, err := f.r.descriptor()
	if err == nil && got != code {
		err = malformed("composite 0x%02x in place of 0x%02x", got, code)
	}
	if err != nil {
		return &fields{err: err}
	}
	return f.r.fields()
}
