package mqtt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// readBuffer is small because there may be ten thousand connections, nearly all
// of them idle; bodies of larger packets are read past it.
const readBuffer = 512

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
	r      *bufio.Reader
	end    context.CancelCauseFunc
	log    *slog.Logger

	// set by connect and constant afterwards
	deviceID string
	session  *hub.Session
	auth     hub.AuthMethod
	clean    bool
	idle     time.Duration
	expires  time.Time
	will     *amqp.Message

	subs     subscriptions    // of the reader alone
	consumer *broker.Consumer // of the writer alone; nil before the first subscription

	out  outbox
	acks acknowledger
	down downlink
}

func newConn(s *Server, nc net.Conn, end context.CancelCauseFunc) *conn {
	c := &conn{
		server: s,
		nc:     nc,
		r:      bufio.NewReaderSize(nc, readBuffer),
		end:    end,
		log:    s.opts.Logger.With("remote", nc.RemoteAddr().String()),
	}
	c.out.init()
	c.acks.init(&c.out)
	return c
}

// run serves the connection until it ends, and leaves nothing running.
func (c *conn) run(ctx context.Context) {
	c.log.Debug("MQTT device connected", "cleanSession", c.clean)
	var writer sync.WaitGroup
	writer.Go(func() { c.stop(c.write(ctx)) })
	c.stop(c.read())
	writer.Wait()
	c.session.Close()
	cause := context.Cause(ctx)
	if leavesWill(cause) {
		c.sendWill(ctx)
	}
	c.log.Debug("MQTT device gone", "cause", cause)
}

// leavesWill reports whether a connection that ended so leaves the will behind:
// unless the device said goodbye [MQTT-3.1.2-8] or the server went away, when
// there is soon no hub to take it.
func leavesWill(cause error) bool {
	return !errors.Is(cause, errDisconnected) && !errors.Is(cause, ErrServerClosed) && !errors.Is(cause, context.Canceled)
}

// stop ends the connection; the first cause counts. It wakes the reader from
// all that it may wait for, and the writer by the end of its context. It may
// wait for the socket: callbacks of the hub call end, and the writer does the
// rest.
func (c *conn) stop(cause error) {
	c.end(cause)
	c.out.close()
	c.acks.close()
	c.nc.Close()
}

func (c *conn) persist() {
	if !c.clean && c.session.Err() == nil { // not if a newer connection is at it
		c.server.kept.keep(c.deviceID, c.session.GenerationID(), c.subs)
	}
}

// read handles packets until the connection ends.
func (c *conn) read() error {
	for {
		c.out.awaitRoom()
		if err := c.nc.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return fmt.Errorf("%w: %w", errLost, err)
		}
		h, body, err := readFrame(c.r, c.server.limits)
		if err != nil {
			return readError(err)
		}
		p, err := decode(h, body)
		if err != nil {
			return err
		}
		if err := c.handle(h.MessageType, p); err != nil {
			return err
		}
	}
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
	case *packets.PublishPacket:
		return c.publish(p)
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
		code := c.subs.add(c.deviceID, filter, p.Qoss[i])
		if code == refused {
			c.log.Info("MQTT subscription refused", "filter", filter)
		}
		ack.ReturnCodes = append(ack.ReturnCodes, code)
	}
	c.persist()
	c.out.cork()
	defer c.out.uncork()
	if err := c.out.put(ack); err != nil {
		return err
	}
	for _, filter := range p.Topics {
		f := featureOf(c.deviceID, filter)
		c.activate(f, c.subs[f])
	}
	c.session.Touch()
	return nil
}

// activate starts what a subscription asks for.
func (c *conn) activate(f feature, g grant) {
	switch f {
	case featureMethods:
		c.session.HandleMethods(c.deliverMethod)
	case featureDevicebound:
		c.down.set(g, true)
	}
}

func (c *conn) unsubscribe(p *packets.UnsubscribePacket) error {
	if p.MessageID == 0 || len(p.Topics) == 0 { // [MQTT-2.3.1-1, MQTT-3.10.3-2]
		return fmt.Errorf("%w: UNSUBSCRIBE without packet ID or filter", errProtocol)
	}
	for _, filter := range p.Topics {
		c.subs.remove(filter)
	}
	c.persist()
	if _, ok := c.subs[featureMethods]; !ok {
		c.session.HandleMethods(nil)
	}
	if _, ok := c.subs[featureDevicebound]; !ok {
		c.down.set(grant{}, false)
	}
	ack := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
	ack.MessageID = p.MessageID
	return c.out.put(ack)
}
