package mqtt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	// maxConnectPacket bounds what somebody unknown can make the server
	// allocate: a will of 64 KiB, and room for a user name and a token.
	maxConnectPacket = 80 << 10
	// maxControlPacket bounds all other packets but PUBLISH.
	maxControlPacket = 16 << 10
	// maxTopic is the longest topic name (MQTT 3.1.1 §1.5.3).
	maxTopic = 1<<16 - 1
	// readStep is the most that is allocated before any byte has arrived.
	readStep = 4 << 10
)

var (
	errMalformed = errors.New("malformed packet")
	errTooLarge  = errors.New("packet is too large")
)

// limits are the largest packets, by remaining length, that are read.
type limits struct {
	connect, control, publish int
}

func (l limits) of(packetType byte) int {
	switch packetType {
	case packets.Connect:
		return l.connect
	case packets.Publish:
		return l.publish
	}
	return l.control
}

// readFrame reads one packet as header and body. The length is checked before
// the body is read, and memory grows with what really arrives.
func readFrame(r *bufio.Reader, max limits) (packets.FixedHeader, []byte, error) {
	first, err := r.ReadByte()
	if err != nil {
		return packets.FixedHeader{}, nil, err
	}
	h := packets.FixedHeader{
		MessageType: first >> 4,
		Dup:         first&0x08 != 0,
		Qos:         first >> 1 & 0x03,
		Retain:      first&0x01 != 0,
	}
	if err := checkFlags(h.MessageType, first&0x0f); err != nil {
		return h, nil, err
	}
	if h.RemainingLength, err = readLength(r); err != nil {
		return h, nil, noEOF(err)
	}
	if limit := max.of(h.MessageType); h.RemainingLength > limit {
		return h, nil, fmt.Errorf("%w: %d bytes of at most %d", errTooLarge, h.RemainingLength, limit)
	}
	body, err := readBody(r, h.RemainingLength)
	return h, body, noEOF(err)
}

// checkFlags refuses reserved flags other than the prescribed ones
// [MQTT-2.2.2-2].
func checkFlags(packetType, flags byte) error {
	want := byte(0)
	switch packetType {
	case packets.Publish:
		if flags&0x06 == 0x06 {
			return fmt.Errorf("%w: QoS 3", errMalformed) // [MQTT-3.3.1-4]
		}
		return nil
	case packets.Subscribe, packets.Unsubscribe, packets.Pubrel:
		want = 0x02
	}
	if flags != want {
		return fmt.Errorf("%w: flags %#x in a packet of type %d", errMalformed, flags, packetType)
	}
	return nil
}

// readLength reads the remaining length: at most four bytes of seven bits each
// (MQTT 3.1.1 §2.2.3).
func readLength(r io.ByteReader) (int, error) {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		n |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: remaining length has more than four bytes", errMalformed)
}

func readBody(r io.Reader, n int) ([]byte, error) {
	if n <= readStep {
		body := make([]byte, n)
		_, err := io.ReadFull(r, body)
		return body, err
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) < n {
		err = io.ErrUnexpectedEOF
	}
	return body, err
}

// noEOF turns an end within a packet into an error that says so.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decode makes a packet of a frame. It is stricter than the codec, which takes
// short bodies for full ones and ignores what is left over.
func decode(h packets.FixedHeader, body []byte) (packets.ControlPacket, error) {
	p, err := packets.NewControlPacketWithHeader(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	r := &exactReader{rest: body}
	if err := p.Unpack(r); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if len(r.rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes left over", errMalformed, len(r.rest))
	}
	return p, nil
}

// exactReader fills the whole of what it is given or fails.
type exactReader struct{ rest []byte }

func (r *exactReader) Read(p []byte) (int, error) {
	if len(p) > len(r.rest) {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// protocol returns protocol name and level of a CONNECT without decoding what
// follows, which other levels lay out in other ways.
func protocol(body []byte) (name string, level byte, err error) {
	if len(body) < 2 {
		return "", 0, errMalformed
	}
	n := int(body[0])<<8 | int(body[1])
	if len(body) < 2+n+1 {
		return "", 0, errMalformed
	}
	return string(body[2 : 2+n]), body[2+n], nil
}

// isText reports whether s may stand in a packet as a string: UTF-8 without the
// null character [MQTT-1.5.3-1, MQTT-1.5.3-2].
func isText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}
