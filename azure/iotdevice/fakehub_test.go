package iotdevice

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/azure/credential"
)

// patience bounds waits in tests for what should happen soon.
const patience = time.Minute

const (
	deviceID  = "device-solver::1"
	deviceKey = "ZGV2aWNlLWtleQ=="
)

var connectionString = credential.DeviceConnectionString("example.com", deviceID, deviceKey)

// fakeHub accepts MQTT connections under TLS and leaves each to the test: for what a healthy hub never does.
type fakeHub struct {
	t     *testing.T
	opts  Options // to reach it, with short waits
	conns chan *fakeConn
}

func newFakeHub(t *testing.T) *fakeHub {
	t.Helper()
	certified := httptest.NewTLSServer(nil) // for its certificate of example.com
	defer certified.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certified.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHub{t: t, conns: make(chan *fakeConn, 16)}
	h.opts = Options{
		Addr:       listener.Addr().String(),
		RootCAs:    certified.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs,
		MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond,
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		h.accept(listener)
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-accepting
	})
	return h
}

func (h *fakeHub) accept(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		conn := &fakeConn{t: h.t, net: c, received: make(chan packets.ControlPacket, 64)}
		h.t.Cleanup(func() { _ = c.Close() })
		go conn.read()
		h.conns <- conn
	}
}

// next waits for a connection and reads its CONNECT.
func (h *fakeHub) next() *fakeConn {
	h.t.Helper()
	select {
	case c := <-h.conns:
		c.connect = receive[*packets.ConnectPacket](c)
		return c
	case <-time.After(patience):
		h.t.Fatal("the device did not connect")
		return nil
	}
}

// accepted waits for a connection and lets it in, with its subscriptions.
func (h *fakeHub) accepted(subscriptions int) *fakeConn {
	h.t.Helper()
	c := h.next()
	c.connack(0)
	for range subscriptions {
		c.suback(receive[*packets.SubscribePacket](c))
	}
	return c
}

// fakeConn is the hub's end of a connection. Tests write to it from one goroutine.
type fakeConn struct {
	t        *testing.T
	net      net.Conn
	received chan packets.ControlPacket // closed when the device has gone
	connect  *packets.ConnectPacket
}

func (c *fakeConn) read() {
	defer close(c.received)
	for {
		p, err := packets.ReadPacket(c.net)
		if err != nil {
			return
		}
		if _, ping := p.(*packets.PingreqPacket); !ping {
			c.received <- p
		}
	}
}

// receive waits for the next packet, which must be a P.
func receive[P packets.ControlPacket](c *fakeConn) P {
	c.t.Helper()
	var none P
	select {
	case p, ok := <-c.received:
		if !ok {
			c.t.Fatalf("the device has gone, want a %T", none)
		}
		if wanted, ok := p.(P); ok {
			return wanted
		}
		c.t.Fatalf("got %s, want a %T", p, none)
	case <-time.After(patience):
		c.t.Fatalf("waited in vain for a %T", none)
	}
	return none
}

// gone waits until the device has closed the connection; all it may send before is DISCONNECT.
func (c *fakeConn) gone() (disconnect bool) {
	c.t.Helper()
	for {
		select {
		case p, ok := <-c.received:
			if !ok {
				return disconnect
			}
			if _, disconnect = p.(*packets.DisconnectPacket); !disconnect {
				c.t.Fatalf("got %s, want nothing more", p)
			}
		case <-time.After(patience):
			c.t.Fatal("the device did not close the connection")
		}
	}
}

func (c *fakeConn) send(p packets.ControlPacket) {
	c.t.Helper()
	if err := p.Write(c.net); err != nil {
		c.t.Fatal(err)
	}
}

func (c *fakeConn) connack(code byte) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	p.ReturnCode = code
	c.send(p)
}

func (c *fakeConn) suback(s *packets.SubscribePacket) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	p.MessageID, p.ReturnCodes = s.MessageID, s.Qoss
	c.send(p)
}

func (c *fakeConn) puback(id uint16) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	p.MessageID = id
	c.send(p)
}

// deliver sends a cloud-to-device message.
func (c *fakeConn) deliver(packetID uint16, messageID string) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.MessageID, p.Qos = topicDevicebound(deviceID)+"%24.mid="+messageID, packetID, 1
	c.send(p)
}

func (c *fakeConn) token() string { return string(c.connect.Password) }

func hasMessageID(p *packets.PublishPacket, id string) bool {
	return strings.Contains(p.TopicName, "%24.mid="+id)
}
