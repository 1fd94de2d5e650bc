package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// protocolLevel is that of MQTT 3.1.1, the only one a hub speaks (IoT Hub docs:
// "Communicate with an IoT hub using the MQTT protocol").
const protocolLevel = 4

// maxIdle is the longest that a hub lets a connection be silent, and what it
// takes for a keep-alive of zero (IoT Hub docs, same page: 29.45 minutes).
const maxIdle = 1767 * time.Second

var errProtocol = errors.New("protocol violation")

// refusal is a CONNECT that is answered with a return code.
type refusal struct {
	code byte
	err  error
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s: %v", strings.ToLower(packets.ConnackReturnCodes[r.code]), r.err)
}

func (r *refusal) Unwrap() error { return r.err }

func refuse(code byte, err error) error { return &refusal{code: code, err: err} }

// connect reads the CONNECT, opens the device's session and answers. After an
// error the connection is only good to be closed.
func (c *conn) connect(ctx context.Context) error {
	if err := c.nc.SetDeadline(time.Now().Add(c.server.opts.ConnectTimeout)); err != nil {
		return err
	}
	p, err := c.readConnect()
	if err == nil {
		err = c.open(ctx, p)
	}
	var r *refusal
	if errors.As(err, &r) {
		return errors.Join(err, c.connack(r.code, false))
	}
	if err != nil {
		return err
	}
	if err := c.welcome(); err != nil {
		c.session.Close()
		return err
	}
	return nil
}

// welcome answers a CONNECT whose session is open. Kept subscriptions take
// effect before the device hears of them; what they bring waits for the writer.
func (c *conn) welcome() error {
	var present bool
	c.subs, present = c.server.kept.resume(c.deviceID, c.session.GenerationID(), c.clean)
	c.persist()
	for f, g := range c.subs {
		c.activate(f, g)
	}
	if err := c.connack(packets.Accepted, present); err != nil {
		return err
	}
	return c.nc.SetDeadline(time.Time{})
}

func (c *conn) connack(code byte, present bool) error {
	p := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	p.ReturnCode, p.SessionPresent = code, present
	return p.Write(c.nc)
}

func (c *conn) readConnect() (*packets.ConnectPacket, error) {
	h, body, err := readFrame(c.r, c.server.limits)
	if err != nil {
		return nil, err
	}
	if h.MessageType != packets.Connect {
		return nil, fmt.Errorf("%w: the first packet is no CONNECT", errProtocol) // [MQTT-3.1.0-1]
	}
	name, level, err := protocol(body)
	switch {
	case err != nil:
		return nil, err
	case name != "MQTT" && name != "MQIsdp":
		return nil, fmt.Errorf("%w: protocol name is not MQTT", errProtocol) // [MQTT-3.1.2-1]
	case name != "MQTT" || level != protocolLevel:
		return nil, refuse(packets.ErrRefusedBadProtocolVersion, fmt.Errorf("protocol level %d, want %d (MQTT 3.1.1)", level, protocolLevel))
	}
	p, err := decode(h, body)
	if err != nil {
		return nil, err
	}
	connect := p.(*packets.ConnectPacket)
	return connect, checkConnect(connect)
}

// checkConnect refuses what MQTT 3.1.1 §3.1 forbids and the codec lets pass.
func checkConnect(p *packets.ConnectPacket) error {
	switch {
	case p.ReservedBit != 0, // [MQTT-3.1.2-3]
		p.WillQos > 2, // [MQTT-3.1.2-14]
		!p.WillFlag && (p.WillQos != 0 || p.WillRetain), // [MQTT-3.1.2-13, MQTT-3.1.2-15]
		p.PasswordFlag && !p.UsernameFlag:               // [MQTT-3.1.2-22]
		return fmt.Errorf("%w: flags of the CONNECT", errProtocol)
	case !isText(p.ClientIdentifier), !isText(p.WillTopic), !isText(p.Username):
		return fmt.Errorf("%w: a string that is not UTF-8", errProtocol)
	}
	return nil
}

// open authenticates the device and opens its session.
func (c *conn) open(ctx context.Context, p *packets.ConnectPacket) error {
	claims, err := c.authenticate(p)
	if err != nil {
		return err
	}
	if c.will, err = will(c.deviceID, p); err != nil {
		return refuse(packets.ErrRefusedNotAuthorised, err)
	}
	c.expires = claims.Expires
	c.auth = hub.AuthMethod{Scope: "device", Type: "sas"}
	if claims.Policy != "" {
		c.auth.Scope = "hub"
	}
	c.clean = p.CleanSession
	c.idle = idleTime(p.Keepalive)
	c.session, err = c.server.hub.Connect(ctx, c.deviceID, hub.ConnectOptions{Auth: c.auth})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hub.CodeDeviceNotFound), errors.Is(err, hub.CodeUnauthorized):
		return refuse(packets.ErrRefusedNotAuthorised, err)
	}
	return refuse(packets.ErrRefusedServerUnavailable, err)
}

// authenticate checks user name, client ID and password.
func (c *conn) authenticate(p *packets.ConnectPacket) (sas.Claims, error) {
	user, err := parseUserName(p.Username)
	switch {
	case err != nil:
		return sas.Claims{}, refuse(packets.ErrRefusedNotAuthorised, err)
	case p.ClientIdentifier != user.clientID():
		return sas.Claims{}, refuse(packets.ErrRefusedIDRejected, errors.New("client ID and user name name different devices"))
	case user.moduleID != "":
		return sas.Claims{}, refuse(packets.ErrRefusedNotAuthorised, errors.New("module identities are not emulated"))
	case len(p.Password) == 0:
		return sas.Claims{}, refuse(packets.ErrRefusedNotAuthorised, errors.New("no token as password; X.509 authentication is not emulated"))
	}
	c.deviceID = user.deviceID
	c.log = c.log.With("device", user.deviceID)
	claims, err := c.server.verifier.Verify(string(p.Password), user.host+"/devices/"+user.deviceID)
	switch {
	case err == nil && !claims.Permissions.Has(sas.DeviceConnect):
		err = fmt.Errorf("policy %q lacks the permission %s", claims.Policy, sas.DeviceConnect)
	case err == nil:
		return claims, nil
	case !sas.Refused(err):
		return sas.Claims{}, refuse(packets.ErrRefusedServerUnavailable, err)
	}
	return sas.Claims{}, refuse(packets.ErrRefusedNotAuthorised, err)
}

// idleTime is how long a connection may be silent: one and a half times the
// keep-alive [MQTT-3.1.2-24], up to the hub's own limit.
func idleTime(keepAlive uint16) time.Duration {
	if keepAlive == 0 {
		return maxIdle
	}
	return min(time.Duration(keepAlive)*time.Second*3/2, maxIdle)
}

// will makes the message that a broken connection leaves behind, or returns nil
// if the device wants none. The hub takes it as telemetry of its own message
// type (IoT Hub docs: "Communicate with an IoT hub using the MQTT protocol").
func will(deviceID string, p *packets.ConnectPacket) (*amqp.Message, error) {
	if !p.WillFlag {
		return nil, nil
	}
	if p.WillQos == 2 {
		return nil, errors.New("the will has QoS 2, which the hub doesn't offer")
	}
	m, err := parseTelemetry(deviceID, p.WillTopic, p.WillMessage, p.WillRetain)
	if err != nil {
		return nil, fmt.Errorf("will: %w", err)
	}
	addApplicationProperty(m, propertyMessageType, messageTypeWill)
	return m, nil
}

// sendWill publishes the will of a connection that broke. The session is over,
// and another one may be the device's, so it goes through a session of its own.
func (c *conn) sendWill(ctx context.Context) {
	if c.will == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), willTimeout)
	defer cancel()
	s, err := c.server.hub.Connect(ctx, c.deviceID, hub.ConnectOptions{Auth: c.auth, Transient: true})
	if err == nil {
		defer s.Close()
		err = s.Publish(ctx, c.will)
	}
	if err != nil {
		c.log.Info("last will not sent", "error", err)
	}
}

// timedOut reports whether a read or write ran into its deadline.
func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
