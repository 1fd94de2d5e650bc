package conformance_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// wire is an MQTT client that does what it is told, packet by packet: for what
// paho hides from its users, and for what it would never do.
type wire struct {
	w    *world
	conn net.Conn
}

// mqttWire opens a connection on which nothing has been said yet.
func (w *world) mqttWire() *wire {
	w.t.Helper()
	dialer := tls.Dialer{Config: w.tls()}
	conn, err := dialer.DialContext(w.ctx(), "tcp", w.emulator().MQTTSAddr())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() }) // the hub may have closed it
	if err := conn.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		w.t.Fatal(err)
	}
	return &wire{w, conn}
}

// mqttConnect is the CONNECT of a device that shows a token of its own key and
// keeps its session.
func (w *world) mqttConnect(d device) *packets.ConnectPacket {
	w.t.Helper()
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion = "MQTT", 4
	p.Keepalive = 60
	p.ClientIdentifier = d.id
	p.UsernameFlag, p.Username = true, w.emulator().HubName()+"/"+d.id+"/?api-version="+apiVersion
	p.PasswordFlag, p.Password = true, []byte(w.deviceToken(d))
	return p
}

// mqttPackets connects a device with the CONNECT of mqttConnect after change, if
// that is not nil, and reports whether the hub remembers a session.
func (w *world) mqttPackets(d device, change func(*packets.ConnectPacket)) (c *wire, present bool) {
	w.t.Helper()
	c = w.mqttWire()
	p := w.mqttConnect(d)
	if change != nil {
		change(p)
	}
	c.send(p)
	ack := expect[*packets.ConnackPacket](c)
	if ack.ReturnCode != packets.Accepted {
		w.t.Fatalf("CONNACK with return code %d", ack.ReturnCode)
	}
	return c, ack.SessionPresent
}

// cleanSession asks for a session that ends with the connection.
func cleanSession(p *packets.ConnectPacket) { p.CleanSession = true }

func (c *wire) send(all ...packets.ControlPacket) {
	c.w.t.Helper()
	for _, p := range all {
		if err := p.Write(c.conn); err != nil {
			c.w.t.Fatal(err)
		}
	}
}

// expect reads the next packet, which has to be of a certain type.
func expect[T packets.ControlPacket](c *wire) T {
	c.w.t.Helper()
	p, err := packets.ReadPacket(c.conn)
	if err != nil {
		c.w.t.Fatal(err)
	}
	packet, ok := p.(T)
	if !ok {
		c.w.t.Fatalf("the hub sends %v, want a %T", p, packet)
	}
	return packet
}

// ended waits until the hub has closed the connection, without another word.
func (c *wire) ended() {
	c.w.t.Helper()
	p, err := packets.ReadPacket(c.conn)
	var timeout net.Error
	switch {
	case err == nil:
		c.w.t.Fatalf("the hub sends %v, want the end of the connection", p)
	case errors.As(err, &timeout) && timeout.Timeout():
		c.w.t.Fatal("the hub leaves the connection open")
	}
}

// ping shows that the connection is open, and that everything before was dealt
// with. Nothing but the answer may come.
func (c *wire) ping() {
	c.w.t.Helper()
	c.send(packets.NewControlPacket(packets.Pingreq))
	expect[*packets.PingrespPacket](c)
}

// lose breaks the connection without a DISCONNECT.
func (c *wire) lose() { _ = c.conn.Close() }

// disconnect says goodbye, and waits until the hub has heard it.
func (c *wire) disconnect() {
	c.w.t.Helper()
	c.send(packets.NewControlPacket(packets.Disconnect))
	c.ended()
}

// subscribe returns the code of the SUBACK.
func (c *wire) subscribe(filter string, qos byte) byte {
	c.w.t.Helper()
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p.MessageID, p.Topics, p.Qoss = 1, []string{filter}, []byte{qos}
	c.send(p)
	ack := expect[*packets.SubackPacket](c)
	if len(ack.ReturnCodes) != 1 {
		c.w.t.Fatalf("SUBACK with %d codes for one filter", len(ack.ReturnCodes))
	}
	return ack.ReturnCodes[0]
}

func (c *wire) unsubscribe(filter string) {
	c.w.t.Helper()
	p := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
	p.MessageID, p.Topics = 1, []string{filter}
	c.send(p)
	expect[*packets.UnsubackPacket](c)
}

// publication is a PUBLISH; id is 0 at QoS 0.
func publication(topic string, qos byte, id uint16, payload string) *packets.PublishPacket {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Qos, p.MessageID, p.Payload = topic, qos, id, []byte(payload)
	return p
}

func (c *wire) puback(p *packets.PublishPacket) {
	c.w.t.Helper()
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = p.MessageID
	c.send(ack)
}

// bagOf takes the property bag at the end of a topic apart. Properties without an
// equals sign have the value "null".
func (w *world) bagOf(topic, prefix string) map[string]string {
	w.t.Helper()
	text, ok := strings.CutPrefix(topic, prefix)
	if !ok {
		w.t.Fatalf("topic %q, want one below %q", topic, prefix)
	}
	bag := make(map[string]string)
	for pair := range strings.SplitSeq(strings.TrimPrefix(text, "?"), "&") {
		key, value, set := strings.Cut(pair, "=")
		if !set {
			value = "null"
		}
		name, err1 := url.PathUnescape(key)
		decoded, err2 := url.PathUnescape(value)
		if err := errors.Join(err1, err2); err != nil {
			w.t.Fatalf("topic %q: %v", topic, err)
		}
		bag[name] = decoded
	}
	return bag
}
