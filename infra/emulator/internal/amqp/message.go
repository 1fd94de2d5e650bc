package amqp

import (
	"bytes"
	"math"
	"time"
)

// BatchFormat is the message format of a transfer whose data sections each hold
// one whole encoded message (azservicebus v1.11 messageBatch.go; Event Hubs and
// IoT Hub use the same number).
const BatchFormat uint32 = 0x80013700

// DefaultPriority is the priority of a message whose header names none (§3.2.1).
const DefaultPriority = 4

// Message is one AMQP message with all its sections (§3.2). A nil or empty field
// means that the section is absent.
type Message struct {
	Header                *Header
	DeliveryAnnotations   map[string]any // keys are symbols on the wire
	Annotations           map[string]any // message-annotations; keys are symbols on the wire
	Properties            *Properties
	ApplicationProperties map[string]any // keys are strings on the wire
	Data                  [][]byte       // data sections, in order
	Value                 any            // amqp-value section, present when HasValue
	HasValue              bool
	Sequence              [][]any // amqp-sequence sections, in order
	Footer                map[string]any
}

// Header holds a message's delivery details (§3.2.1).
type Header struct {
	Durable bool
	// Priority is written as it stands: use DefaultPriority when there is no
	// reason for another.
	Priority      uint8
	TTL           time.Duration // 0 = none; whole milliseconds on the wire, about 49 days at most
	FirstAcquirer bool
	DeliveryCount uint32 // earlier tries that failed
}

// Properties are the immutable properties of the bare message (§3.2.4).
type Properties struct {
	MessageID          any // nil, string, UUID, uint64 or []byte
	UserID             []byte
	To                 *string
	Subject            *string
	ReplyTo            *string
	CorrelationID      any     // as MessageID
	ContentType        *string // a symbol on the wire
	ContentEncoding    *string // a symbol on the wire
	AbsoluteExpiryTime *time.Time
	CreationTime       *time.Time
	GroupID            *string
	GroupSequence      *uint32
	ReplyToGroupID     *string
}

// Body returns the data sections joined.
func (m *Message) Body() []byte {
	if len(m.Data) == 1 {
		return m.Data[0]
	}
	return bytes.Join(m.Data, nil)
}

// MarshalBinary encodes m, sections in the order of §3.2.
func (m *Message) MarshalBinary() ([]byte, error) {
	return m.AppendBinary(make([]byte, 0, m.encodedSize()))
}

// encodedSize is about how many bytes the encoding takes.
func (m *Message) encodedSize() int {
	const section, entry = 96, 48
	n := section + entry*(len(m.DeliveryAnnotations)+len(m.Annotations)+len(m.ApplicationProperties))
	for _, d := range m.Data {
		n += len(d) + 8
	}
	if m.Properties != nil {
		n += section
	}
	return n
}

// AppendBinary appends the encoding of m to b.
func (m *Message) AppendBinary(b []byte) ([]byte, error) {
	var err error
	if m.Header != nil {
		if b, err = m.Header.appendTo(b); err != nil {
			return nil, err
		}
	}
	if b, err = appendAnnotations(b, typeDeliveryAnnotations, m.DeliveryAnnotations); err != nil {
		return nil, err
	}
	if b, err = appendAnnotations(b, typeMessageAnnotations, m.Annotations); err != nil {
		return nil, err
	}
	if m.Properties != nil {
		if b, err = m.Properties.appendTo(b); err != nil {
			return nil, err
		}
	}
	if len(m.ApplicationProperties) > 0 {
		if b, err = AppendValue(appendDescriptor(b, typeApplicationProperties), m.ApplicationProperties); err != nil {
			return nil, err
		}
	}
	if b, err = m.appendBody(b); err != nil {
		return nil, err
	}
	return appendAnnotations(b, typeFooter, m.Footer)
}

func (m *Message) appendBody(b []byte) ([]byte, error) {
	var err error
	for _, d := range m.Data {
		if b, err = appendBinary(appendDescriptor(b, typeData), d); err != nil {
			return nil, err
		}
	}
	for _, s := range m.Sequence {
		if b, err = appendList(appendDescriptor(b, typeSequence), s); err != nil {
			return nil, err
		}
	}
	if !m.HasValue {
		return b, nil
	}
	return AppendValue(appendDescriptor(b, typeValue), m.Value)
}

func appendDescriptor(b []byte, code byte) []byte {
	return append(b, codeDescribed, codeSmallUlong, code)
}

func appendAnnotations(b []byte, code byte, m map[string]any) ([]byte, error) {
	if len(m) == 0 {
		return b, nil
	}
	return appendSymbolMap(appendDescriptor(b, code), m)
}

func (h *Header) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeHeader)
	c.flag(h.Durable)
	c.optional(h.Priority != DefaultPriority, h.Priority)
	c.optional(h.TTL > 0, milliseconds(h.TTL))
	c.flag(h.FirstAcquirer)
	c.field(h.DeliveryCount) // the Service Bus SDK for JavaScript knows no default for it
	return c.end()
}

// milliseconds rounds up, so that a very short time to live does not turn into
// none, and stops at the largest value that the wire can carry.
func milliseconds(d time.Duration) uint32 {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	return uint32(min(max(ms, 0), math.MaxUint32))
}

func (p *Properties) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeProperties)
	c.optional(p.MessageID != nil, p.MessageID)
	c.binary(p.UserID)
	c.text(p.To)
	c.text(p.Subject)
	c.text(p.ReplyTo)
	c.optional(p.CorrelationID != nil, p.CorrelationID)
	pointer(c, (*Symbol)(p.ContentType))
	pointer(c, (*Symbol)(p.ContentEncoding))
	pointer(c, p.AbsoluteExpiryTime)
	pointer(c, p.CreationTime)
	c.text(p.GroupID)
	c.uintPointer(p.GroupSequence)
	c.text(p.ReplyToGroupID)
	return c.end()
}

// UnmarshalBinary decodes b into m, replacing what m held. It keeps no reference
// to b, allocates in proportion to its length, and refuses sections that are
// unknown, repeated or out of order.
func (m *Message) UnmarshalBinary(b []byte) error {
	*m = Message{}
	r := newReader(b)
	last := byte(0)
	for len(r.b) > 0 {
		code, err := r.descriptor()
		if err != nil {
			return err
		}
		if code < last || code == last && code != typeData && code != typeSequence {
			return malformed("section 0x%02x after section 0x%02x", code, last)
		}
		if err := m.section(r, code); err != nil {
			return err
		}
		last = code
	}
	return nil
}

func (m *Message) section(r *reader, code byte) error {
	var err error
	switch code {
	case typeHeader:
		m.Header = &Header{Priority: DefaultPriority}
		err = m.Header.decode(r)
	case typeDeliveryAnnotations:
		m.DeliveryAnnotations, err = r.namedMap()
	case typeMessageAnnotations:
		m.Annotations, err = r.namedMap()
	case typeProperties:
		m.Properties = &Properties{}
		err = m.Properties.decode(r)
	case typeApplicationProperties:
		m.ApplicationProperties, err = r.namedMap()
	case typeFooter:
		m.Footer, err = r.namedMap()
	default:
		err = m.bodySection(r, code)
	}
	return err
}

func (m *Message) bodySection(r *reader, code byte) error {
	if code < typeData || code > typeValue {
		return malformed("unknown section 0x%02x", code)
	}
	if code == typeData {
		if data, ok, err := r.binary(); ok {
			m.Data = append(m.Data, data)
			return err
		}
	}
	v, err := r.value(0)
	if err != nil {
		return err
	}
	data, isData := v.([]byte)
	list, isList := v.([]any)
	switch {
	case code == typeValue:
		m.Value, m.HasValue = v, true
	case code == typeData && isData:
		m.Data = append(m.Data, data)
	case code == typeSequence && isList:
		m.Sequence = append(m.Sequence, list)
	default:
		return malformed("a %T in body section 0x%02x", v, code)
	}
	return nil
}

func (h *Header) decode(r *reader) error {
	f := r.fields()
	field(f, &h.Durable)
	field(f, &h.Priority)
	var ms uint32
	field(f, &ms)
	h.TTL = time.Duration(ms) * time.Millisecond
	field(f, &h.FirstAcquirer)
	field(f, &h.DeliveryCount)
	return f.end()
}

func (p *Properties) decode(r *reader) error {
	f := r.fields()
	f.messageID(&p.MessageID)
	field(f, &p.UserID)
	f.textPointer(&p.To)
	f.textPointer(&p.Subject)
	f.textPointer(&p.ReplyTo)
	f.messageID(&p.CorrelationID)
	f.textPointer(&p.ContentType)
	f.textPointer(&p.ContentEncoding)
	fieldPointer(f, &p.AbsoluteExpiryTime)
	fieldPointer(f, &p.CreationTime)
	f.textPointer(&p.GroupID)
	fieldPointer(f, &p.GroupSequence)
	f.textPointer(&p.ReplyToGroupID)
	return f.end()
}
