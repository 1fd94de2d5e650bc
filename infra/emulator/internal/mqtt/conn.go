package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Reasons why a connection ends.
var (
	errDisconnected = errors.New("device disconnected")
	errTokenExpired = errors.New("the token that opened the connection has expired")
	errSilent       = errors.New("nothing heard for one and a half times the keep-alive")
	errLost         = errors.New("connection lost")
	errSlow         = errors.New("device doesn't read what it is sent")
)

// conn is one connection of a device.
type conn struct {
	server *Server
	nc     net.Conn
	r      source
	end    context.CancelCauseFunc // ends the connection, for the first reason given; doesn't block
	closed chan struct{}           // closed when nothing waits for nc any more

	// set by connect and constant afterwards
	target  hub.Target
	modelID string // that the device says it implements, if it does
	session *hub.Session
	auth    hub.AuthMethod
	clean   bool
	idle    time.Duration
	expires time.Time // zero for never
	will    *amqp.Message

	subs      subscriptions    // of the reader alone
	throttled error            // of the reader alone: why the hub didn't take a message
	consumer  *broker.Consumer // of the writer alone; nil before the first subscription

	out   outbox
	acks  acknowledger
	down  downlink
	twins twins
}

func newConn(s *Server, nc net.Conn, end context.CancelCauseFunc) *conn {
	c := &conn{server: s, nc: nc, r: source{nc: nc}, end: end, closed: make(chan struct{})}
	c.out.init()
	c.acks.init(c)
	return c
}

// log returns a logger that names the connection. It is made when it is needed,
// because there may be ten thousand connections with nothing to say.
func (c *conn) log() *slog.Logger {
	log := c.server.opts.Logger.With("remote", c.nc.RemoteAddr().String(), "device", c.target.DeviceID)
	if c.target.ModuleID != "" {
		log = log.With("module", c.target.ModuleID)
	}
	return log
}

// run serves the connection until it ends, and leaves nothing running.
func (c *conn) run(ctx context.Context) {
	c.log().Debug("MQTT device connected", "cleanSession", c.clean)
	if !c.expires.IsZero() {
		expiry := time.AfterFunc(time.Until(c.expires), func() { c.end(errTokenExpired) })
		defer expiry.Stop()
	}
	c.out.start(func() { c.write(ctx) })
	c.end(c.read(ctx))
	c.close()
	c.out.writers.Wait()
	c.twins.working.Wait()
	c.session.Close()
	cause := context.Cause(ctx)
	if leavesWill(cause) {
		c.sendWill(ctx)
	}
	c.log().Debug("MQTT device gone", "cause", cause)
}

// leavesWill reports whether a connection that ended so leaves the will behind:
// unless the device said goodbye [MQTT-3.1.2-8] or the server went away.
func leavesWill(cause error) bool {
	return !errors.Is(cause, errDisconnected) && !errors.Is(cause, ErrServerClosed) && !errors.Is(cause, context.Canceled)
}

// close wakes the reader and the writer from all that they may wait for. It may
// wait for the socket, so callbacks of the hub don't call it: they call end, and
// close follows from the end of the context.
func (c *conn) close() {
	c.out.close()
	c.acks.close()
	c.nc.Close()
}

// read handles packets until the connection ends.
func (c *conn) read(ctx context.Context) error {
	for {
		c.out.awaitRoom()
		if err := c.nc.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return fmt.Errorf("%w: %w", errLost, err)
		}
		h, body, err := c.r.frame(c.server.limits)
		if err != nil {
			return readError(err)
		}
		if err := c.receive(ctx, h, body); err != nil {
			return err
		}
	}
}

func (c *conn) receive(ctx context.Context, h packets.FixedHeader, body []byte) error {
	if h.MessageType == packets.Publish {
		p, err := decodePublish(h, body)
		if err != nil {
			return err
		}
		return c.publish(ctx, &p)
	}
	p, err := decode(h, body)
	if err != nil {
		return err
	}
	return c.handle(h.MessageType, p)
}

func readError(err error) error {
	switch {
	case errors.Is(err, errMalformed), errors.Is(err, errTooLarge):
		return err
	case timedOut(err):
		return errSilent
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: closed without DISCONNECT", errLost)
	}
	return fmt.Errorf("%w: %w", errLost, err)
}

func (c *conn) handle(packetType byte, p packets.ControlPacket) error {
	switch p := p.(type) {
	case *packets.PubackPacket:
		c.complete(p.MessageID)
		return nil
	case *packets.SubscribePacket:
		return c.subscribe(p)
	case *packets.UnsubscribePacket:
		return c.unsubscribe(p)
	case *packets.PingreqPacket:
		c.session.Touch()
		return c.out.put(packets.NewControlPacket(packets.Pingresp))
	case *packets.DisconnectPacket:
		return errDisconnected
	}
	return fmt.Errorf("%w: %s from a device", errProtocol, packets.PacketNames[packetType])
}

// subscribe answers a SUBSCRIBE and puts the grants into effect. Whoever has seen
// the SUBACK can count on that, and nothing that a grant brings overtakes it.
func (c *conn) subscribe(p *packets.SubscribePacket) error {
	if p.MessageID == 0 || len(p.Topics) == 0 { // [MQTT-2.3.1-1, MQTT-3.8.3-3]
		return fmt.Errorf("%w: SUBSCRIBE without packet ID or filter", errProtocol)
	}
	ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	ack.MessageID = p.MessageID
	for i, filter := range p.Topics {
		if p.Qoss[i] > 2 || !isText(filter) { // [MQTT-3-8.3-4]
			return fmt.Errorf("%w: filter of a SUBSCRIBE", errProtocol)
		}
		code := c.subs.add(c.target, filter, p.Qoss[i])
		if code == refused {
			c.log().Info("MQTT subscription refused", "filter", filter)
		}
		ack.ReturnCodes = append(ack.ReturnCodes, code)
	}
	if err := c.keep(); err != nil {
		return err
	}
	c.out.cork()
	defer c.out.uncork()
	if err := c.out.put(ack); err != nil {
		return err
	}
	for _, filter := range p.Topics {
		f := featureOf(c.target, filter)
		c.activate(f, c.subs[f])
	}
	c.session.Touch()
	return nil
}

// activate starts what a subscription asks for, or stops it if there is none.
func (c *conn) activate(f feature, g grant) {
	active := g.Filter != ""
	switch f {
	case featureMethods:
		if active {
			c.session.HandleMethods(c.deliverMethod)
		} else {
			c.session.HandleMethods(nil)
		}
	case featureTwinDesired:
		if active {
			c.session.WatchDesired(c.deliverDesired)
		} else {
			c.session.WatchDesired(nil)
		}
	case featureDevicebound:
		c.down.set(g, active)
	}
}

func (c *conn) unsubscribe(p *packets.UnsubscribePacket) error {
	if p.MessageID == 0 || len(p.Topics) == 0 { // [MQTT-2.3.1-1, MQTT-3.10.3-2]
		return fmt.Errorf("%w: UNSUBSCRIBE without packet ID or filter", errProtocol)
	}
	for _, filter := range p.Topics {
		f := featureOf(c.target, filter)
		if f == featureNone || c.subs[f].Filter != filter {
			continue // it was never subscribed to
		}
		c.subs[f] = grant{}
		c.activate(f, grant{})
	}
	if err := c.keep(); err != nil {
		return err
	}
	ack := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
	ack.MessageID = p.MessageID
	return c.out.put(ack)
}
