package mqtt_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/amenzhinsky/iothub/common"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/mqtt"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/tlsca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hubName  = "localhost"
	deviceID = "device-solver::job-1"
	// patience bounds every wait of a test; it is no assertion about speed.
	patience = 2 * time.Minute
)

// fixture is a hub with one device, one queue that all telemetry goes to, and
// its MQTT front end.
type fixture struct {
	t         testing.TB
	hub       *hub.Hub
	server    *mqtt.Server
	telemetry *broker.Queue
	key       string // of the device
}

func newFixture(t testing.TB, s store.Store, opts *mqtt.Options, change ...func(*hub.Options)) *fixture {
	t.Helper()
	f := openFixture(t, s, opts, change...)
	f.key = f.addDevice(deviceID)
	return f
}

// openFixture is newFixture without the device.
func openFixture(t testing.TB, s store.Store, opts *mqtt.Options, change ...func(*hub.Options)) *fixture {
	t.Helper()
	events, err := broker.OpenEventLog(s, hubName, broker.EventLogOptions{Partitions: 1})
	must(t, err)
	t.Cleanup(events.Close)
	queue, err := broker.OpenQueue(s, "device-messages", broker.QueueOptions{})
	must(t, err)
	t.Cleanup(queue.Close)
	hubOptions := hub.Options{Name: hubName, Events: events, Routes: []hub.Route{{Name: "all", Endpoint: queue}}}
	for _, f := range change {
		f(&hubOptions)
	}
	h, err := hub.Open(s, hubOptions)
	must(t, err)
	t.Cleanup(h.Close)
	f := &fixture{t: t, hub: h, telemetry: queue}
	f.server = mqtt.NewServer(h, &sas.Verifier{Hosts: []string{hubName}, Keys: h}, opts)
	t.Cleanup(f.server.Close)
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addDevice registers a device and returns its primary key.
func (f *fixture) addDevice(id string) string {
	f.t.Helper()
	d, err := f.hub.CreateDevice(f.t.Context(), hub.Identity{DeviceID: id})
	must(f.t, err)
	return d.Authentication.SymmetricKey.PrimaryKey
}

// token makes a token as amenzhinsky/iothub does.
func token(t testing.TB, resource, policy, key string, life time.Duration) string {
	t.Helper()
	sig, err := common.NewSharedAccessSignature(resource, policy, key, time.Now().Add(life))
	must(t, err)
	return sig.String()
}

var certificates = sync.OnceValues(func() (*tlsca.Bundle, error) { return tlsca.Load("", nil) })

// listen serves TLS on loopback and returns the address.
func (f *fixture) listen() string {
	f.t.Helper()
	bundle, err := certificates()
	must(f.t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", bundle.ServerConfig())
	must(f.t, err)
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(context.Background(), l) }()
	f.t.Cleanup(func() {
		f.server.Close()
		if err := <-done; !errors.Is(err, mqtt.ErrServerClosed) {
			f.t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// dial opens a TLS connection to a server of its own listener.
func (f *fixture) dial() *client {
	f.t.Helper()
	bundle, err := certificates()
	must(f.t, err)
	nc, err := tls.Dial("tcp", f.listen(), &tls.Config{RootCAs: bundle.Roots(), ServerName: hubName})
	must(f.t, err)
	return newClient(f.t, nc)
}

// pipe opens a connection in memory.
func (f *fixture) pipe() *client {
	f.t.Helper()
	return newClient(f.t, f.rawPipe())
}

// rawPipe opens a connection in memory that nobody reads from yet.
func (f *fixture) rawPipe() net.Conn {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.server.ServeConn(context.Background(), theirs)
	}()
	f.t.Cleanup(func() {
		ours.Close()
		<-done
	})
	return ours
}

func readPacket(t testing.TB, nc net.Conn) packets.ControlPacket {
	t.Helper()
	p, err := packets.ReadPacket(nc)
	must(t, err)
	return p
}

// client speaks raw packets and fails the test if an answer isn't as expected.
type client struct {
	t    testing.TB
	conn net.Conn
	in   chan packets.ControlPacket // closed when the server closes
}

func newClient(t testing.TB, nc net.Conn) *client {
	c := &client{t: t, conn: nc, in: make(chan packets.ControlPacket, 256)}
	go func() {
		defer close(c.in)
		for {
			p, err := packets.ReadPacket(nc)
			if err != nil {
				return
			}
			c.in <- p
		}
	}()
	t.Cleanup(func() {
		nc.Close()
		for range c.in {
		}
	})
	return c
}

// send writes a packet. A server that has closed is noticed by what follows.
func (c *client) send(p packets.ControlPacket) {
	c.t.Helper()
	if err := p.Write(c.conn); err != nil {
		c.t.Logf("send %s: %v", p, err)
	}
}

func (c *client) sendRaw(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Logf("send raw: %v", err)
	}
}

// next returns the next packet, or nil if the server closed.
func (c *client) next() packets.ControlPacket {
	c.t.Helper()
	select {
	case p := <-c.in:
		return p
	case <-time.After(patience):
		c.t.Fatal("no packet")
		return nil
	}
}

func expect[P packets.ControlPacket](c *client) P {
	c.t.Helper()
	p := c.next()
	want, ok := p.(P)
	if !ok {
		c.t.Fatalf("got %v, want %T", p, want)
	}
	return want
}

// expectClosed drops what is still on its way and waits for the end.
func (c *client) expectClosed() {
	c.t.Helper()
	for p := c.next(); p != nil; p = c.next() {
	}
}

// ping makes sure that the server has handled all that was sent before and sent
// nothing else.
func (c *client) ping() {
	c.t.Helper()
	c.send(packets.NewControlPacket(packets.Pingreq))
	expect[*packets.PingrespPacket](c)
}

// connectPacket is the CONNECT of a device that knows its key.
func (f *fixture) connectPacket() *packets.ConnectPacket {
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion = "MQTT", 4
	p.CleanSession = true
	p.Keepalive = 60
	p.ClientIdentifier = deviceID
	p.UsernameFlag, p.Username = true, hubName+"/"+deviceID+"/?api-version=2021-04-12"
	p.PasswordFlag, p.Password = true, []byte(token(f.t, hubName+"/devices/"+deviceID, "", f.key, time.Hour))
	return p
}

// as makes the CONNECT that of another device or module. An empty key leaves the
// password out.
func (f *fixture) as(t hub.Target, key string) func(*packets.ConnectPacket) {
	return func(p *packets.ConnectPacket) {
		p.ClientIdentifier = t.DeviceID
		resource := hubName + "/devices/" + t.DeviceID
		if t.ModuleID != "" {
			p.ClientIdentifier += "/" + t.ModuleID
			resource += "/modules/" + t.ModuleID
		}
		p.Username = hubName + "/" + p.ClientIdentifier + "/?api-version=2021-04-12"
		if p.PasswordFlag, p.Password = key != "", nil; key != "" {
			p.Password = []byte(token(f.t, resource, "", key, time.Hour))
		}
	}
}

// login connects, with changes to the usual CONNECT, and returns the CONNACK.
func (f *fixture) login(c *client, change ...func(*packets.ConnectPacket)) *packets.ConnackPacket {
	c.t.Helper()
	p := f.connectPacket()
	for _, f := range change {
		f(p)
	}
	c.send(p)
	return expect[*packets.ConnackPacket](c)
}

func persistent(p *packets.ConnectPacket) { p.CleanSession = false }

// connected returns a client of the device that has been let in.
func (f *fixture) connected(change ...func(*packets.ConnectPacket)) *client {
	f.t.Helper()
	c := f.pipe()
	if ack := f.login(c, change...); ack.ReturnCode != packets.Accepted {
		f.t.Fatalf("CONNACK %d", ack.ReturnCode)
	}
	return c
}

// subscribe returns the return codes of the SUBACK.
func (c *client) subscribe(qos byte, filters ...string) []byte {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p.MessageID = 1
	p.Topics = filters
	for range filters {
		p.Qoss = append(p.Qoss, qos)
	}
	c.send(p)
	return expect[*packets.SubackPacket](c).ReturnCodes
}

func (c *client) unsubscribe(filters ...string) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
	p.MessageID, p.Topics = 1, filters
	c.send(p)
	expect[*packets.UnsubackPacket](c)
}

const (
	eventsTopic       = "devices/" + deviceID + "/messages/events/"
	deviceboundPrefix = "devices/" + deviceID + "/messages/devicebound/"
	deviceboundFilter = deviceboundPrefix + "#"
)

func publishPacket(qos byte, id uint16, topic, payload string) *packets.PublishPacket {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = qos, id, topic, []byte(payload)
	return p
}

// publish sends telemetry at QoS 1 and waits for its PUBACK.
func (c *client) publish(id uint16, topic, payload string) {
	c.t.Helper()
	c.send(publishPacket(1, id, topic, payload))
	if ack := expect[*packets.PubackPacket](c); ack.MessageID != id {
		c.t.Fatalf("PUBACK of %d, want %d", ack.MessageID, id)
	}
}

func (c *client) puback(id uint16) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	p.MessageID = id
	c.send(p)
}

// sendC2D queues a message for the device.
func (f *fixture) sendC2D(body string, properties map[string]any) {
	f.t.Helper()
	m := &amqp.Message{Data: [][]byte{[]byte(body)}, ApplicationProperties: properties}
	must(f.t, f.hub.SendC2D(f.t.Context(), deviceID, m))
}

// nextTelemetry takes the next message from the queue that telemetry goes to.
func (f *fixture) nextTelemetry() *amqp.Message {
	f.t.Helper()
	consumer := f.telemetry.NewConsumer(broker.ConsumerOptions{Mode: broker.ReceiveAndDelete})
	defer consumer.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	d, err := consumer.Next(ctx)
	must(f.t, err)
	return d.Message
}

// pending is how many cloud-to-device messages wait for the device.
func (f *fixture) pending() int {
	f.t.Helper()
	d, err := f.hub.GetDevice(deviceID)
	must(f.t, err)
	return d.CloudToDeviceMessageCount
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// valve is a store that keeps submissions back until it is opened.
type valve struct {
	store.Store
	mu     sync.Mutex
	shut   bool
	queued []func()
}

func (v *valve) Submit(done func(error), ops ...store.Op) {
	v.mu.Lock()
	if v.shut {
		v.queued = append(v.queued, func() { v.Store.Submit(done, ops...) })
		v.mu.Unlock()
		return
	}
	v.mu.Unlock()
	v.Store.Submit(done, ops...)
}

func (v *valve) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.shut = true
}

func (v *valve) waiting() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.queued)
}

func (v *valve) open() {
	v.mu.Lock()
	queued := v.queued
	v.queued, v.shut = nil, false
	v.mu.Unlock()
	for _, submit := range queued {
		submit()
	}
}

// byteByByte writes each byte for itself.
type byteByByte struct{ net.Conn }

func (b byteByByte) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := b.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}
