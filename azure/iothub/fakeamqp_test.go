package iothub

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// fakeAMQP is a hub's AMQP endpoint that does what a test tells it: for what a healthy hub never does. It knows just
// enough of AMQP 1.0 for go-amqp, and nothing of large or odd frames.
type fakeAMQP struct {
	t *testing.T
	// claim answers put-token with a status code; 0 leaves it without an answer. nil: 200.
	claim func(n int) int32
	// sent is called with each cloud-to-device message; it settles it, or not.
	sent func(d *fakeDelivery)

	mu     sync.Mutex
	conns  int
	claims int
	links  int // to the devicebound address
}

// newFakeAMQP starts one and returns a client of it.
func newFakeAMQP(t *testing.T, f *fakeAMQP) *Client {
	t.Helper()
	certified := httptest.NewTLSServer(nil) // for its certificate of example.com
	defer certified.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certified.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	f.t = t
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { f.serve(nc) })
		}
	})
	c, err := New(Config{
		ConnectionString: "HostName=example.com;SharedAccessKeyName=service;SharedAccessKey=" + serviceKey,
		AMQPSAddr:        listener.Addr().String(),
		RootCAs:          certified.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = listener.Close()
		_ = c.Close()
		serving.Wait()
	})
	return c
}

func (f *fakeAMQP) count(n *int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	*n++
	return *n
}

func (f *fakeAMQP) read(n *int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *n
}

// fakeDelivery is a cloud-to-device message that the hub has to settle.
type fakeDelivery struct {
	conn      *fakeAMQPConn
	channel   uint16
	handle    uint64
	id        uint64
	MessageID string
}

func (d *fakeDelivery) accept()  { d.settle(described{0x24, []any{}}) }
func (d *fakeDelivery) release() { d.settle(described{0x26, []any{}}) }
func (d *fakeDelivery) reject(condition string) {
	d.settle(described{0x25, []any{amqpError(condition)}})
}

func (d *fakeDelivery) settle(state described) {
	d.conn.send(d.channel, 0x15, true, uint32(d.id), uint32(d.id), true, state)
}

// detach closes the link that the message came by.
func (d *fakeDelivery) detach(condition string) {
	d.conn.send(d.channel, 0x16, uint32(d.handle), true, amqpError(condition))
}

func (d *fakeDelivery) closeConn() { _ = d.conn.net.Close() }

func amqpError(condition string) described {
	return described{0x1d, []any{symbol(condition), "as the test wants"}}
}

type fakeLink struct {
	address string
	sends   bool // the client does
}

type fakeAMQPConn struct {
	fake  *fakeAMQP
	net   net.Conn
	write sync.Mutex
	links map[[2]uint64]fakeLink // by channel and handle
}

func (f *fakeAMQP) serve(nc net.Conn) {
	defer func() { _ = nc.Close() }()
	f.count(&f.conns)
	c := &fakeAMQPConn{fake: f, net: nc, links: make(map[[2]uint64]fakeLink)}
	if err := c.run(); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		f.t.Logf("fake hub: %v", err)
	}
}

func (c *fakeAMQPConn) run() error {
	for {
		header := make([]byte, 8)
		if _, err := io.ReadFull(c.net, header); err != nil {
			return err
		}
		if bytes.HasPrefix(header, []byte("AMQP")) {
			if _, err := c.net.Write(header); err != nil {
				return err
			}
			if header[4] == 3 { // the SASL layer (AMQP 1.0 §5.3.1)
				c.frame(1, 0, encode(described{0x40, []any{symbol("ANONYMOUS")}}))
			}
			continue
		}
		body := make([]byte, binary.BigEndian.Uint32(header)-8)
		if _, err := io.ReadFull(c.net, body); err != nil {
			return err
		}
		if len(body) == 0 {
			continue // a heartbeat
		}
		if err := c.handle(binary.BigEndian.Uint16(header[6:]), body); err != nil {
			return err
		}
	}
}

func (c *fakeAMQPConn) handle(channel uint16, body []byte) error {
	d := &decoder{b: body}
	performative, ok := d.value().(described)
	if !ok {
		return fmt.Errorf("not a performative: %x", body)
	}
	fields := performative.value.([]any)
	switch performative.code {
	case 0x41: // sasl-init
		c.frame(1, 0, encode(described{0x44, []any{uint8(0)}}))
	case 0x10: // open
		c.send(0, 0x10, "fake", nil, uint32(65536), uint16(1000))
	case 0x11: // begin
		c.send(channel, 0x11, channel, uint32(1), uint32(1000), uint32(1000), uint32(100))
	case 0x12:
		c.attach(channel, fields)
	case 0x14:
		c.transfer(channel, fields, d.b)
	case 0x16: // detach
		c.send(channel, 0x16, uint32(fields[0].(uint64)), true)
	case 0x17: // end
		c.send(channel, 0x17)
	case 0x18: // close
		c.send(0, 0x18)
		return io.EOF
	}
	return nil
}

func (c *fakeAMQPConn) attach(channel uint16, fields []any) {
	name, handle, receives := fields[0], fields[1].(uint64), fields[2].(bool)
	link := fakeLink{sends: !receives}
	end := 5 // the source, or the target
	if link.sends {
		end = 6
	}
	link.address, _ = fields[end].(described).value.([]any)[0].(string)
	c.links[[2]uint64{uint64(channel), handle}] = link
	address := []any{link.address}
	c.send(channel, 0x12, name, uint32(handle), !receives, uint8(2), uint8(0),
		described{0x28, address}, described{0x29, address}, nil, nil, uint32(0), uint64(0))
	if link.sends {
		c.send(channel, 0x13, uint32(0), uint32(1000), uint32(1), uint32(1000), uint32(handle), uint32(0), uint32(100))
	}
	if link.address == addressDevicebound {
		c.fake.count(&c.fake.links)
	}
}

func (c *fakeAMQPConn) transfer(channel uint16, fields []any, message []byte) {
	handle, id := fields[0].(uint64), fields[1].(uint64)
	link := c.links[[2]uint64{uint64(channel), handle}]
	d := &fakeDelivery{conn: c, channel: channel, handle: handle, id: id, MessageID: messageID(message)}
	if link.address != "$cbs" {
		c.fake.sent(d)
		return
	}
	d.accept()
	n, status := c.fake.count(&c.fake.claims), int32(200)
	if c.fake.claim != nil {
		status = c.fake.claim(n)
	}
	if status != 0 {
		c.answerClaim(channel, d.MessageID, status)
	}
}

// answerClaim sends the answer over the link whose source is $cbs.
func (c *fakeAMQPConn) answerClaim(channel uint16, correlationID string, status int32) {
	for key, link := range c.links {
		if key[0] == uint64(channel) && link.address == "$cbs" && !link.sends {
			transfer := encode(described{0x14, []any{uint32(key[1]), uint32(0), []byte{0}, uint32(0), true}})
			properties := encode(described{0x73, []any{nil, nil, nil, nil, nil, correlationID}})
			application := encode(described{0x74, pairs{"status-code", status, "status-description", "as the test wants"}})
			c.frame(0, channel, transfer, properties, application, encode(described{0x77, nil}))
		}
	}
}

// messageID reads the message-id of an encoded message.
func messageID(message []byte) string {
	for d := (&decoder{b: message}); len(d.b) > 0; {
		if section := d.value().(described); section.code == 0x73 {
			id, _ := section.value.([]any)[0].(string)
			return id
		}
	}
	return ""
}

func (c *fakeAMQPConn) send(channel uint16, code uint64, fields ...any) {
	c.frame(0, channel, encode(described{code, fields}))
}

func (c *fakeAMQPConn) frame(kind byte, channel uint16, parts ...[]byte) {
	body := bytes.Join(parts, nil)
	head := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	head = binary.BigEndian.AppendUint16(append(head, 2, kind), channel)
	c.write.Lock()
	defer c.write.Unlock()
	_, _ = c.net.Write(append(head, body...)) // the client may have gone
}

// The types of AMQP that the fake needs (AMQP 1.0 §1.6). Decoded numbers are all uint64 or int64.
type (
	symbol    string
	pairs     []any // a map: key, value, key, value, ...
	described struct {
		code  uint64
		value any
	}
)

func encode(v any) []byte {
	u32 := func(code byte, n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{code}, n) }
	text := func(code byte, s string) []byte { return append(u32(code, uint32(len(s))), s...) }
	compound := func(code byte, items []any) []byte {
		var body []byte
		for _, item := range items {
			body = append(body, encode(item)...)
		}
		return append(binary.BigEndian.AppendUint32(u32(code, uint32(4+len(body))), uint32(len(items))), body...)
	}
	switch v := v.(type) {
	case nil:
		return []byte{0x40}
	case bool:
		if v {
			return []byte{0x41}
		}
		return []byte{0x42}
	case uint8:
		return []byte{0x50, v}
	case uint16:
		return binary.BigEndian.AppendUint16([]byte{0x60}, v)
	case uint32:
		return u32(0x70, v)
	case uint64:
		return binary.BigEndian.AppendUint64([]byte{0x80}, v)
	case int32:
		return u32(0x71, uint32(v))
	case string:
		return text(0xb1, v)
	case symbol:
		return text(0xb3, string(v))
	case []byte:
		return text(0xb0, string(v))
	case []any:
		return compound(0xd0, v)
	case pairs:
		return compound(0xd1, v)
	case described:
		return append([]byte{0, 0x53, byte(v.code)}, encode(v.value)...)
	}
	panic(fmt.Sprintf("can't encode %T", v))
}

type decoder struct{ b []byte }

func (d *decoder) take(n int) []byte {
	head := d.b[:n]
	d.b = d.b[n:]
	return head
}

// number reads n bytes.
func (d *decoder) number(n int) uint64 {
	var v uint64
	for _, b := range d.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (d *decoder) value() any {
	code := d.take(1)[0]
	switch code {
	case 0x00:
		descriptor, _ := d.value().(uint64)
		return described{descriptor, d.value()}
	case 0x40:
		return nil
	case 0x41, 0x42:
		return code == 0x41
	case 0x43, 0x44:
		return uint64(0)
	case 0x45:
		return []any{}
	case 0xa1:
		return string(d.take(int(d.number(1))))
	case 0xb1:
		return string(d.take(int(d.number(4))))
	}
	width := map[byte]int{4: 0, 5: 1, 6: 2, 7: 4, 8: 8, 9: 16, 0xa: 1, 0xb: 4, 0xc: 1, 0xd: 4, 0xe: 1, 0xf: 4}[code>>4]
	switch {
	case code>>4 <= 9:
		return d.number(width)
	case code>>4 <= 0xb:
		return d.take(int(d.number(width)))
	case code>>4 >= 0xe: // an array, of no interest here
		return d.take(int(d.number(width)))
	}
	inner := &decoder{b: d.take(int(d.number(width)))}
	items := make([]any, inner.number(width))
	for i := range items {
		items[i] = inner.value()
	}
	return items
}
