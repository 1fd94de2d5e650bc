package amqp

// SASLBody is the body of a SASL frame (§5.3.3): a pointer to SASLMechanisms,
// SASLInit, SASLChallenge, SASLResponse or SASLOutcome.
type SASLBody interface {
	appender
	decode(*fields) error
}

func saslBody(code byte) SASLBody {
	switch code {
	case typeSASLMechanisms:
		return &SASLMechanisms{}
	case typeSASLInit:
		return &SASLInit{}
	case typeSASLChallenge:
		return &SASLChallenge{}
	case typeSASLResponse:
		return &SASLResponse{}
	case typeSASLOutcome:
		return &SASLOutcome{}
	}
	return nil
}

// SASLCode is the result of a SASL exchange (§5.3.3.6).
type SASLCode uint8

// SASL results.
const (
	SASLOK      SASLCode = 0
	SASLAuth    SASLCode = 1 // the credentials are wrong
	SASLSys     SASLCode = 2
	SASLSysPerm SASLCode = 3 // an error that will not go away by itself
	SASLSysTemp SASLCode = 4
)

// SASLMechanisms advertises mechanisms (§5.3.3.1).
type SASLMechanisms struct{ Mechanisms []Symbol }

// SASLInit chooses a mechanism (§5.3.3.2). A nil response is an absent one.
type SASLInit struct {
	Mechanism       Symbol
	InitialResponse []byte
	Hostname        string
}

// SASLChallenge asks the client for more (§5.3.3.3).
type SASLChallenge struct{ Challenge []byte }

// SASLResponse answers a challenge (§5.3.3.4).
type SASLResponse struct{ Response []byte }

// SASLOutcome ends the exchange (§5.3.3.5).
type SASLOutcome struct {
	Code           SASLCode
	AdditionalData []byte
}

func (m *SASLMechanisms) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeSASLMechanisms)
	c.field(m.Mechanisms)
	return c.end()
}

func (m *SASLMechanisms) decode(f *fields) error {
	f.symbols(&m.Mechanisms)
	return f.end()
}

func (i *SASLInit) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeSASLInit)
	c.field(i.Mechanism)
	c.optional(i.InitialResponse != nil, i.InitialResponse)
	c.optional(i.Hostname != "", i.Hostname)
	return c.end()
}

func (i *SASLInit) decode(f *fields) error {
	textField(f, &i.Mechanism)
	field(f, &i.InitialResponse)
	textField(f, &i.Hostname)
	return f.end()
}

func (x *SASLChallenge) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeSASLChallenge)
	c.field(x.Challenge)
	return c.end()
}

func (x *SASLChallenge) decode(f *fields) error {
	field(f, &x.Challenge)
	return f.end()
}

func (x *SASLResponse) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeSASLResponse)
	c.field(x.Response)
	return c.end()
}

func (x *SASLResponse) decode(f *fields) error {
	field(f, &x.Response)
	return f.end()
}

func (o *SASLOutcome) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeSASLOutcome)
	c.field(uint8(o.Code))
	c.optional(o.AdditionalData != nil, o.AdditionalData)
	return c.end()
}

func (o *SASLOutcome) decode(f *fields) error {
	field(f, (*uint8)(&o.Code))
	field(f, &o.AdditionalData)
	return f.end()
}
