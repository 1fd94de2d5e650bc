package mqtt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
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

// source reads packets. While it waits for one it has no buffer: of ten thousand
// connections, nearly all are waiting.
type source struct {
	nc     net.Conn
	first  [1]byte
	buffer *bufio.Reader // nil while nothing has been read ahead
}

// readBuffer is for packets of the usual size, several at once.
const readBuffer = 4 << 10

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}

// frame reads one packet as header and body.
func (s *source) frame(max limits) (packets.FixedHeader, []byte, error) {
	first, err := s.wait()
	if err != nil {
		return packets.FixedHeader{}, nil, err
	}
	h, body, err := readFrame(first, s.buffer, max)
	if s.buffer.Buffered() == 0 {
		s.buffer.Reset(nil)
		readers.Put(s.buffer)
		s.buffer = nil
	}
	return h, body, err
}

// wait reads the first byte of a packet, and provides a buffer for the others.
func (s *source) wait() (byte, error) {
	if s.buffer != nil {
		return s.buffer.ReadByte()
	}
	if _, err := io.ReadFull(s.nc, s.first[:]); err != nil {
		return 0, err
	}
	s.buffer = readers.Get().(*bufio.Reader)
	s.buffer.Reset(s.nc)
	return s.first[0], nil
}

// readFrame reads what follows the first byte of a packet. The length is checked
// before the body is read, and memory grows with what really arrives.
func readFrame(first byte, r *bufio.Reader, max limits) (packets.FixedHeader, []byte, error) {
	h := packets.FixedHeader{
		MessageType: first >> 4,
		Dup:         first&0x08 != 0,
		Qos:         first >> 1 & 0x03,
		Retain:      first&0x01 != 0,
	}
	err := checkFlags(h.MessageType, first&0x0f)
	if err != nil {
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

// readBody reads n bytes into a slice of that length. What it allocates before
// they have arrived is at most four times as much as has.
func readBody(r io.Reader, n int) ([]byte, error) {
	body := make([]byte, min(n, readStep))
	for read := 0; ; {
		if _, err := io.ReadFull(r, body[read:]); err != nil {
			return nil, err
		}
		read = len(body)
		if read == n {
			return body, nil
		}
		larger := make([]byte, min(n, 4*read))
		copy(larger, body)
		body = larger
	}
}

// noEOF turns an end within a packet into an error that says so.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// publish is a PUBLISH of a device. The codec would copy topic and payload twice.
type publish struct {
	topic   string
	payload []byte // of the frame
	id      uint16 // 0 at QoS 0
	qos     byte
	retain  bool
}

func decodePublish(h packets.FixedHeader, body []byte) (publish, error) {
	p := publish{qos: h.Qos, retain: h.Retain}
	topic, rest, ok := cutString(body)
	if ok && h.Qos > 0 {
		if ok = len(rest) >= 2; ok {
			p.id, rest = binary.BigEndian.Uint16(rest), rest[2:]
		}
	}
	if !ok {
		return p, fmt.Errorf("%w: PUBLISH ends early", errMalformed)
	}
	p.topic, p.payload = string(topic), rest
	return p, nil
}

// cutString takes a string with its length off the front.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	if len(b) < n {
		return nil, nil, false
	}
	return b[2:n], b[n:], true
}

// decode makes a packet of a frame other than PUBLISH. It is stricter than the codec, which takes
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
	s, rest, ok := cutString(body)
	if !ok || len(rest) == 0 {
		return "", 0, errMalformed
	}
	return string(s), rest[0], nil
}

// isText reports whether s may stand in a packet as a string: UTF-8 without the
// null character [MQTT-1.5.3-1, MQTT-1.5.3-2].
func isText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}
