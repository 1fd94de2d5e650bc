package amqp

// Source is the terminus that a link's messages come from (§3.5.3).
type Source struct {
	Address          string
	Durable          uint32
	ExpiryPolicy     Symbol // "" = absent
	Timeout          uint32 // seconds
	Dynamic          bool
	DistributionMode Symbol
	// Filter maps names to filters, each normally a Described.
	Filter         map[string]any // keys are symbols on the wire
	DefaultOutcome any
	Outcomes       []Symbol
	Capabilities   []Symbol
}

func (s *Source) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeSource)
	c.optional(s.Address != "", s.Address)
	c.optional(s.Durable != 0, s.Durable)
	c.optional(s.ExpiryPolicy != "", s.ExpiryPolicy)
	c.optional(s.Timeout != 0, s.Timeout)
	c.flag(s.Dynamic)
	c.null() // dynamic-node-properties
	c.optional(s.DistributionMode != "", s.DistributionMode)
	c.symbolMap(s.Filter)
	c.optional(s.DefaultOutcome != nil, s.DefaultOutcome)
	c.symbols(s.Outcomes)
	c.symbols(s.Capabilities)
	return c.end()
}

func (f *fields) source(dst **Source) {
	if !f.next() {
		return
	}
	s := &Source{}
	in := f.nested(typeSource)
	textField(in, &s.Address)
	field(in, &s.Durable)
	textField(in, &s.ExpiryPolicy)
	field(in, &s.Timeout)
	field(in, &s.Dynamic)
	in.skip() // dynamic-node-properties
	textField(in, &s.DistributionMode)
	in.namedMap(&s.Filter)
	field(in, &s.DefaultOutcome)
	in.symbols(&s.Outcomes)
	in.symbols(&s.Capabilities)
	if f.err = in.end(); f.err == nil {
		*dst = s
	}
}

// Target is the terminus that a link's messages go to (§3.5.4).
type Target struct {
	Address      string
	Durable      uint32
	ExpiryPolicy Symbol // "" = absent
	Timeout      uint32 // seconds
	Dynamic      bool
	Capabilities []Symbol
	// Coordinator means that the link is for transactions (§4.5.1). It is read
	// only, so that such links can be refused.
	Coordinator bool
}

func (t *Target) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeTarget)
	c.optional(t.Address != "", t.Address)
	c.optional(t.Durable != 0, t.Durable)
	c.optional(t.ExpiryPolicy != "", t.ExpiryPolicy)
	c.optional(t.Timeout != 0, t.Timeout)
	c.flag(t.Dynamic)
	c.null() // dynamic-node-properties
	c.symbols(t.Capabilities)
	return c.end()
}

func (f *fields) target(dst **Target) {
	if !f.next() {
		return
	}
	t := &Target{}
	if len(f.r.b) > 2 && f.r.b[0] == codeDescribed && f.r.b[1] == codeSmallUlong && f.r.b[2] == typeCoordinator {
		t.Coordinator = true
		f.err = f.r.skip(0)
		*dst = t
		return
	}
	in := f.nested(typeTarget)
	textField(in, &t.Address)
	field(in, &t.Durable)
	textField(in, &t.ExpiryPolicy)
	field(in, &t.Timeout)
	field(in, &t.Dynamic)
	in.skip() // dynamic-node-properties
	in.symbols(&t.Capabilities)
	if f.err = in.end(); f.err == nil {
		*dst = t
	}
}
