package amqp

import (
	"encoding/binary"
	"fmt"
)

// Sizes in bytes that the transport fixes (§2.3.1, §2.7.1).
const (
	FrameHeaderSize  = 8
	MinMaxFrameSize  = 512
	ProtocolHeadSize = 8
)

// ProtocolHeader is what each side of a connection sends first, and again after
// a security layer (§2.2).
type ProtocolHeader [ProtocolHeadSize]byte

// The protocol headers of version 1.0.0.
var (
	AMQPHeader = ProtocolHeader{'A', 'M', 'Q', 'P', 0, 1, 0, 0}
	TLSHeader  = ProtocolHeader{'A', 'M', 'Q', 'P', 2, 1, 0, 0}
	SASLHeader = ProtocolHeader{'A', 'M', 'Q', 'P', 3, 1, 0, 0}
)

// FrameType tells what a frame's body is (§2.3.1).
type FrameType uint8

// Frame types.
const (
	FrameAMQP FrameType = 0
	FrameSASL FrameType = 1
)

// Frame is one decoded frame.
type Frame struct {
	Type    FrameType
	Channel uint16
	// Body is a pointer to one of the performatives or SASL bodies, or nil for
	// an empty frame, which only shows that the peer is alive (§2.4.5).
	Body any
	// Payload is what follows a Transfer. It is a part of the decoded bytes, not
	// a copy.
	Payload []byte
}

// FrameSize returns the size of a whole frame from its first four bytes, if it
// lies between the smallest frame and limit.
func FrameSize(header [4]byte, limit uint32) (int, error) {
	size := binary.BigEndian.Uint32(header[:])
	if size < FrameHeaderSize || size > limit {
		return 0, malformed("frame of %d bytes, limit %d", size, limit)
	}
	return int(size), nil
}

// DecodeFrame decodes one whole frame, its size field included.
func DecodeFrame(b []byte) (Frame, error) {
	if len(b) < FrameHeaderSize || uint64(binary.BigEndian.Uint32(b)) != uint64(len(b)) {
		return Frame{}, malformed("frame of %d bytes with another size in its header", len(b))
	}
	offset := int(b[4]) * 4
	if offset < FrameHeaderSize || offset > len(b) {
		return Frame{}, malformed("frame body at offset %d of %d", offset, len(b))
	}
	f := Frame{Type: FrameType(b[5]), Channel: binary.BigEndian.Uint16(b[6:])}
	body := b[offset:]
	switch f.Type {
	case FrameAMQP:
		if len(body) == 0 {
			return f, nil
		}
		return f, f.decodePerformative(body)
	case FrameSASL:
		f.Channel = 0 // §5.3.1: these two bytes mean nothing
		return f, f.decodeSASL(body)
	}
	return Frame{}, malformed("frame type %d", b[5])
}

func (f *Frame) decodePerformative(body []byte) error {
	r := newReader(body)
	code, err := r.descriptor()
	if err != nil {
		return err
	}
	p := performative(code)
	if p == nil {
		return malformed("unknown performative 0x%02x", code)
	}
	if err := p.decode(r.fields()); err != nil {
		return fmt.Errorf("%T: %w", p, err)
	}
	f.Body = p
	if _, ok := p.(*Transfer); ok {
		f.Payload = r.b
		return nil
	}
	return r.done()
}

func (f *Frame) decodeSASL(body []byte) error {
	r := newReader(body)
	code, err := r.descriptor()
	if err != nil {
		return err
	}
	p := saslBody(code)
	if p == nil {
		return malformed("unknown SASL frame 0x%02x", code)
	}
	if err := p.decode(r.fields()); err != nil {
		return fmt.Errorf("%T: %w", p, err)
	}
	f.Body = p
	return r.done()
}

// AppendFrame appends an AMQP frame. A payload belongs to a Transfer only; a nil
// performative makes an empty frame.
func AppendFrame(b []byte, channel uint16, p Performative, payload []byte) ([]byte, error) {
	b, start := beginFrame(b, FrameAMQP, channel)
	if p != nil {
		var err error
		if b, err = p.appendTo(b); err != nil {
			return nil, err
		}
	}
	return endFrame(append(b, payload...), start), nil
}

// AppendSASLFrame appends a SASL frame.
func AppendSASLFrame(b []byte, body SASLBody) ([]byte, error) {
	b, start := beginFrame(b, FrameSASL, 0)
	b, err := body.appendTo(b)
	if err != nil {
		return nil, err
	}
	return endFrame(b, start), nil
}

func beginFrame(b []byte, t FrameType, channel uint16) ([]byte, int) {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 2, byte(t))
	return binary.BigEndian.AppendUint16(b, channel), start
}

func endFrame(b []byte, start int) []byte {
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}
