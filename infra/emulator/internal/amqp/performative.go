package amqp

import "math"

// Performative is the body of an AMQP frame (§2.7): a pointer to Open, Begin,
// Attach, Flow, Transfer, Disposition, Detach, End or Close.
type Performative interface {
	appender
	decode(*fields) error
}

func performative(code byte) Performative {
	switch code {
	case typeOpen:
		return &Open{MaxFrameSize: math.MaxUint32, ChannelMax: math.MaxUint16}
	case typeBegin:
		return &Begin{HandleMax: math.MaxUint32}
	case typeAttach:
		return &Attach{SenderSettleMode: SenderMixed}
	case typeFlow:
		return &Flow{}
	case typeTransfer:
		return &Transfer{}
	case typeDisposition:
		return &Disposition{}
	case typeDetach:
		return &Detach{}
	case typeEnd:
		return &End{}
	case typeClose:
		return &Close{}
	}
	return nil
}

// Role is which end of a link its sender is (§2.8.1).
type Role bool

// Link roles.
const (
	RoleSender   Role = false
	RoleReceiver Role = true
)

// SenderSettleMode is how a link's sender settles (§2.8.2).
type SenderSettleMode uint8

// Sender settle modes.
const (
	SenderUnsettled SenderSettleMode = 0
	SenderSettled   SenderSettleMode = 1
	SenderMixed     SenderSettleMode = 2 // the default
)

// ReceiverSettleMode is how a link's receiver settles (§2.8.3).
type ReceiverSettleMode uint8

// Receiver settle modes. In mode second the receiver states an outcome, and
// settles once the sender has confirmed it.
const (
	ReceiverFirst  ReceiverSettleMode = 0 // the default
	ReceiverSecond ReceiverSettleMode = 1
)

// Open negotiates connection parameters (§2.7.1).
type Open struct {
	ContainerID         string
	Hostname            string
	MaxFrameSize        uint32 // bytes; absent = 4294967295
	ChannelMax          uint16 // absent = 65535
	IdleTimeout         uint32 // milliseconds; 0 = none
	OfferedCapabilities []Symbol
	DesiredCapabilities []Symbol
	Properties          map[string]any
}

func (o *Open) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeOpen)
	c.field(o.ContainerID)
	c.optional(o.Hostname != "", o.Hostname)
	c.field(o.MaxFrameSize)
	c.field(o.ChannelMax)
	c.optional(o.IdleTimeout != 0, o.IdleTimeout)
	c.null() // outgoing-locales
	c.null() // incoming-locales
	c.symbols(o.OfferedCapabilities)
	c.symbols(o.DesiredCapabilities)
	c.symbolMap(o.Properties)
	return c.end()
}

func (o *Open) decode(f *fields) error {
	textField(f, &o.ContainerID)
	textField(f, &o.Hostname)
	field(f, &o.MaxFrameSize)
	field(f, &o.ChannelMax)
	field(f, &o.IdleTimeout)
	f.skip() // outgoing-locales
	f.skip() // incoming-locales
	f.symbols(&o.OfferedCapabilities)
	f.symbols(&o.DesiredCapabilities)
	f.namedMap(&o.Properties)
	return f.end()
}

// Begin starts a session (§2.7.2).
type Begin struct {
	RemoteChannel       *uint16 // set in the answer only
	NextOutgoingID      uint32
	IncomingWindow      uint32 // transfer frames
	OutgoingWindow      uint32 // transfer frames
	HandleMax           uint32 // absent = 4294967295
	OfferedCapabilities []Symbol
	DesiredCapabilities []Symbol
	Properties          map[string]any
}

func (s *Begin) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeBegin)
	pointer(c, s.RemoteChannel)
	c.field(s.NextOutgoingID)
	c.field(s.IncomingWindow)
	c.field(s.OutgoingWindow)
	c.optional(s.HandleMax != math.MaxUint32, s.HandleMax)
	c.symbols(s.OfferedCapabilities)
	c.symbols(s.DesiredCapabilities)
	c.symbolMap(s.Properties)
	return c.end()
}

func (s *Begin) decode(f *fields) error {
	fieldPointer(f, &s.RemoteChannel)
	field(f, &s.NextOutgoingID)
	field(f, &s.IncomingWindow)
	field(f, &s.OutgoingWindow)
	field(f, &s.HandleMax)
	f.symbols(&s.OfferedCapabilities)
	f.symbols(&s.DesiredCapabilities)
	f.namedMap(&s.Properties)
	return f.end()
}

// Attach attaches a link to a session (§2.7.3). The map of unsettled deliveries
// is neither written nor read: links are not resumed.
type Attach struct {
	Name                 string
	Handle               uint32
	Role                 Role // of the side that sends this frame
	SenderSettleMode     SenderSettleMode
	ReceiverSettleMode   ReceiverSettleMode
	Source               *Source
	Target               *Target
	InitialDeliveryCount uint32 // written if Role is RoleSender
	MaxMessageSize       uint64 // bytes; 0 = no limit
	OfferedCapabilities  []Symbol
	DesiredCapabilities  []Symbol
	Properties           map[string]any
}

func (a *Attach) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeAttach)
	c.field(a.Name)
	c.field(a.Handle)
	c.field(bool(a.Role))
	c.field(uint8(a.SenderSettleMode))
	c.field(uint8(a.ReceiverSettleMode))
	c.optional(a.Source != nil, a.Source)
	c.optional(a.Target != nil, a.Target)
	c.null() // unsettled
	c.null() // incomplete-unsettled
	c.optional(a.Role == RoleSender, a.InitialDeliveryCount)
	c.optional(a.MaxMessageSize != 0, a.MaxMessageSize)
	c.symbols(a.OfferedCapabilities)
	c.symbols(a.DesiredCapabilities)
	c.symbolMap(a.Properties)
	return c.end()
}

func (a *Attach) decode(f *fields) error {
	textField(f, &a.Name)
	field(f, &a.Handle)
	field(f, (*bool)(&a.Role))
	field(f, (*uint8)(&a.SenderSettleMode))
	field(f, (*uint8)(&a.ReceiverSettleMode))
	f.source(&a.Source)
	f.target(&a.Target)
	f.skip() // unsettled
	f.skip() // incomplete-unsettled
	field(f, &a.InitialDeliveryCount)
	field(f, &a.MaxMessageSize)
	f.symbols(&a.OfferedCapabilities)
	f.symbols(&a.DesiredCapabilities)
	f.namedMap(&a.Properties)
	if f.err == nil && (a.SenderSettleMode > SenderMixed || a.ReceiverSettleMode > ReceiverSecond) {
		return malformed("settle modes %d and %d", a.SenderSettleMode, a.ReceiverSettleMode)
	}
	return f.end()
}

// Flow updates session and link flow state (§2.7.4). The fields from DeliveryCount
// on belong to the link that Handle names.
type Flow struct {
	NextIncomingID *uint32
	IncomingWindow uint32
	NextOutgoingID uint32
	OutgoingWindow uint32
	Handle         *uint32
	DeliveryCount  *uint32
	LinkCredit     *uint32
	Available      *uint32
	Drain          bool
	Echo           bool
	Properties     map[string]any
}

func (w *Flow) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeFlow)
	c.uintPointer(w.NextIncomingID)
	c.uint(w.IncomingWindow)
	c.uint(w.NextOutgoingID)
	c.uint(w.OutgoingWindow)
	c.uintPointer(w.Handle)
	c.uintPointer(w.DeliveryCount)
	c.uintPointer(w.LinkCredit)
	c.uintPointer(w.Available)
	c.flag(w.Drain)
	c.flag(w.Echo)
	c.symbolMap(w.Properties)
	return c.end()
}

func (w *Flow) decode(f *fields) error {
	fieldPointer(f, &w.NextIncomingID)
	field(f, &w.IncomingWindow)
	field(f, &w.NextOutgoingID)
	field(f, &w.OutgoingWindow)
	fieldPointer(f, &w.Handle)
	fieldPointer(f, &w.DeliveryCount)
	fieldPointer(f, &w.LinkCredit)
	fieldPointer(f, &w.Available)
	field(f, &w.Drain)
	field(f, &w.Echo)
	f.namedMap(&w.Properties)
	return f.end()
}

// Transfer carries a message or a part of one (§2.7.5). Continuations of a
// delivery may leave out all but Handle and More. The settle mode of the one
// delivery is neither written nor read: the link's mode holds.
type Transfer struct {
	Handle        uint32
	DeliveryID    *uint32
	DeliveryTag   []byte
	MessageFormat *uint32
	Settled       bool
	More          bool
	State         DeliveryState
	Resume        bool
	Aborted       bool
	Batchable     bool
}

func (t *Transfer) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeTransfer)
	c.uint(t.Handle)
	c.uintPointer(t.DeliveryID)
	c.binary(t.DeliveryTag)
	c.uintPointer(t.MessageFormat)
	c.flag(t.Settled)
	c.flag(t.More)
	c.null() // rcv-settle-mode
	c.optional(t.State != nil, t.State)
	c.flag(t.Resume)
	c.flag(t.Aborted)
	c.flag(t.Batchable)
	return c.end()
}

func (t *Transfer) decode(f *fields) error {
	field(f, &t.Handle)
	fieldPointer(f, &t.DeliveryID)
	field(f, &t.DeliveryTag)
	fieldPointer(f, &t.MessageFormat)
	field(f, &t.Settled)
	field(f, &t.More)
	f.skip() // rcv-settle-mode
	f.state(&t.State)
	field(f, &t.Resume)
	field(f, &t.Aborted)
	field(f, &t.Batchable)
	return f.end()
}

// Disposition tells the state of deliveries First to Last (§2.7.6).
type Disposition struct {
	Role      Role // of the side that sends this frame
	First     uint32
	Last      uint32 // equal to First when absent
	Settled   bool
	State     DeliveryState
	Batchable bool
}

func (d *Disposition) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeDisposition)
	c.field(bool(d.Role))
	c.uint(d.First)
	if d.Last == d.First {
		c.null()
	} else {
		c.uint(d.Last)
	}
	c.flag(d.Settled)
	c.optional(d.State != nil, d.State)
	c.flag(d.Batchable)
	return c.end()
}

func (d *Disposition) decode(f *fields) error {
	field(f, (*bool)(&d.Role))
	field(f, &d.First)
	d.Last = d.First
	field(f, &d.Last)
	field(f, &d.Settled)
	f.state(&d.State)
	field(f, &d.Batchable)
	return f.end()
}

// Detach detaches a link, for good if Closed (§2.7.7).
type Detach struct {
	Handle uint32
	Closed bool
	Error  *Error
}

func (d *Detach) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeDetach)
	c.field(d.Handle)
	c.flag(d.Closed)
	c.optional(d.Error != nil, d.Error)
	return c.end()
}

func (d *Detach) decode(f *fields) error {
	field(f, &d.Handle)
	field(f, &d.Closed)
	f.amqpError(&d.Error)
	return f.end()
}

// End ends a session (§2.7.8).
type End struct{ Error *Error }

func (e *End) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeEnd)
	c.optional(e.Error != nil, e.Error)
	return c.end()
}

func (e *End) decode(f *fields) error {
	f.amqpError(&e.Error)
	return f.end()
}

// Close closes a connection (§2.7.9).
type Close struct{ Error *Error }

func (e *Close) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeClose)
	c.optional(e.Error != nil, e.Error)
	return c.end()
}

func (e *Close) decode(f *fields) error {
	f.amqpError(&e.Error)
	return f.end()
}
