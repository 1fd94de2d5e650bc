package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
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
	identify(c.nc, c.target)
	if err := c.welcome(); err != nil {
		c.session.Close()
		return err
	}
	return nil
}

// welcome answers a CONNECT whose session is open. Kept subscriptions take
// effect before the device hears of them; what they bring waits for the writer.
func (c *conn) welcome() error {
	present, err := c.resume()
	if err != nil {
		return errors.Join(err, c.connack(packets.ErrRefusedServerUnavailable, false))
	}
	for f, g := range c.subs {
		if g.Filter != "" {
			c.activate(feature(f), g)
		}
	}
	if err := c.connack(packets.Accepted, present); err != nil {
		return err
	}
	return c.nc.SetDeadline(time.Time{})
}

// resume takes up the subscriptions of an earlier persistent session, and reports
// whether there was one. A clean session forgets them [MQTT-3.1.2-6].
func (c *conn) resume() (present bool, err error) {
	kept := c.session.Kept()
	switch {
	case c.clean:
		return false, c.session.Keep(nil)
	case kept == nil:
		return false, c.keep()
	}
	if c.subs, err = decodeSubscriptions(c.target, kept); err != nil {
		return false, fmt.Errorf("kept subscriptions: %w", err)
	}
	return true, nil
}

// keep makes the subscriptions of a persistent session outlive the connection
// and the process.
func (c *conn) keep() error {
	if c.clean {
		return nil
	}
	state, err := c.subs.encode()
	if err != nil {
		return err
	}
	return c.session.Keep(state)
}

func (c *conn) connack(code byte, present bool) error {
	p := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	p.ReturnCode, p.SessionPresent = code, present
	return p.Write(c.nc)
}

func (c *conn) readConnect() (*packets.ConnectPacket, error) {
	h, body, err := c.r.frame(c.server.limits)
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

// open authenticates the device or module and opens its session.
func (c *conn) open(ctx context.Context, p *packets.ConnectPacket) error {
	if err := c.authenticate(p); err != nil {
		return err
	}
	var err error
	if c.will, err = will(c.target, p); err != nil {
		return refuse(packets.ErrRefusedNotAuthorised, err)
	}
	c.clean = p.CleanSession
	c.idle = idleTime(p.Keepalive)
	opts := c.connectOptions()
	opts.OnEnd = c.end
	c.session, err = c.server.hub.Connect(ctx, c.target.DeviceID, opts)
	if err != nil {
		return refuse(refusalCode(err), err)
	}
	return nil
}

func (c *conn) connectOptions() hub.ConnectOptions {
	return hub.ConnectOptions{ModuleID: c.target.ModuleID, Auth: c.auth}
}

// refusalCode is the return code for those who can't connect: 5 if they may not,
// and 3, after which SDKs try again, if they may later.
func refusalCode(err error) byte {
	switch hub.AsError(err).Code {
	case hub.CodeUnauthorized, hub.CodeDeviceNotFound, hub.CodeModuleNotFound:
		return packets.ErrRefusedNotAuthorised
	}
	return packets.ErrRefusedServerUnavailable
}

// authenticate checks user name and client ID, and the token in the password or,
// if there is none, the client's certificate.
func (c *conn) authenticate(p *packets.ConnectPacket) error {
	user, err := parseUserName(p.Username)
	switch {
	case err != nil:
		return refuse(packets.ErrRefusedNotAuthorised, err)
	case p.ClientIdentifier != user.clientID():
		return refuse(packets.ErrRefusedIDRejected, errors.New("client ID and user name name different devices"))
	}
	c.target, c.modelID = user.target, user.modelID
	if len(p.Password) == 0 {
		return c.authenticateX509(user)
	}
	return c.authenticateSAS(user, string(p.Password))
}

func (c *conn) authenticateSAS(user userName, token string) error {
	claims, err := c.server.verifier.Verify(token, user.resource())
	switch {
	case err == nil && !claims.Permissions.Has(sas.DeviceConnect):
		err = fmt.Errorf("policy %q lacks the permission %s", claims.Policy, sas.DeviceConnect)
	case err == nil:
		c.expires = claims.Expires
		c.auth = hub.ByToken(claims)
		return nil
	case !sas.Refused(err):
		return refuse(packets.ErrRefusedServerUnavailable, err)
	}
	return refuse(packets.ErrRefusedNotAuthorised, err)
}

func (c *conn) authenticateX509(user userName) error {
	chain := peerCertificates(c.nc)
	if len(chain) == 0 {
		return refuse(packets.ErrRefusedNotAuthorised, errors.New("neither a token as password nor a client certificate"))
	}
	if !slices.ContainsFunc(c.server.verifier.Hosts, func(h string) bool { return strings.EqualFold(h, user.host) }) {
		return refuse(packets.ErrRefusedNotAuthorised, fmt.Errorf("user name names host %q", user.host))
	}
	var err error
	if c.auth, err = c.server.hub.VerifyCertificate(c.target, chain); err != nil {
		return refuse(refusalCode(err), err)
	}
	return nil
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
func will(t hub.Target, p *packets.ConnectPacket) (*amqp.Message, error) {
	if !p.WillFlag {
		return nil, nil
	}
	if p.WillQos == 2 {
		return nil, errors.New("the will has QoS 2, which the hub doesn't offer")
	}
	m, err := parseTelemetry(t, p.WillTopic, p.WillMessage, p.WillRetain)
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
	opts := c.connectOptions()
	opts.Transient = true
	s, err := c.server.hub.Connect(ctx, c.target.DeviceID, opts)
	if err == nil {
		defer s.Close()
		err = s.Publish(ctx, c.will)
	}
	if err != nil {
		c.log().Info("last will not sent", "error", err)
	}
}

// timedOut reports whether a read or write ran into its deadline.
func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
