package mqtt_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestConnectReturnCodes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	off := "off"
	f.addDevice(off)
	_, err := f.hub.UpdateDevice(t.Context(), hub.Identity{DeviceID: off, Status: hub.StatusDisabled}, hub.AnyVersion)
	must(t, err)
	disabled, err := f.hub.GetDevice(off)
	must(t, err)
	policyToken := func(name string) string {
		policy, err := f.hub.Policy(name)
		must(t, err)
		return token(t, hubName, name, policy.Keys.Primary, time.Hour)
	}
	user := func(name string) func(*packets.ConnectPacket) {
		return func(p *packets.ConnectPacket) { p.Username = name }
	}
	password := func(text string) func(*packets.ConnectPacket) {
		return func(p *packets.ConnectPacket) { p.Password = []byte(text) }
	}
	as := func(id, key string) func(*packets.ConnectPacket) {
		return func(p *packets.ConnectPacket) {
			p.ClientIdentifier = id
			p.Username = hubName + "/" + id
			p.Password = []byte(token(t, hubName, "", key, time.Hour))
		}
	}
	withWill := func(topic string, qos byte) func(*packets.ConnectPacket) {
		return func(p *packets.ConnectPacket) {
			p.WillFlag, p.WillTopic, p.WillQos, p.WillMessage = true, topic, qos, []byte("x")
		}
	}
	tests := map[string]struct {
		change func(*packets.ConnectPacket)
		want   byte
	}{
		"azure-iot-device (Node)": {user(hubName + "/" + deviceID + "/?api-version=2021-04-12&DeviceClientType=azure-iot-device%2F1.18.0%20(node%20v20)&model-id=dtmi%3Aa%3Bb;1"), 0},
		"amenzhinsky/iothub": {func(p *packets.ConnectPacket) {
			p.Username = hubName + "/" + deviceID + "/api-version=2020-09-30"
			p.Password = []byte(token(t, hubName, "", f.key, time.Hour))
		}, 0},
		"azure-iot-sdk-csharp":   {password(token(t, hubName+"/devices/"+url.QueryEscape(deviceID), "", f.key, time.Hour)), 0},
		"plain user name":        {user(hubName + "/" + deviceID), 0},
		"closing slash":          {user(hubName + "/" + deviceID + "/"), 0},
		"host in another case":   {user("LocalHost/" + deviceID), 0},
		"policy device":          {password(policyToken("device")), 0},
		"protocol level 3":       {func(p *packets.ConnectPacket) { p.ProtocolName, p.ProtocolVersion = "MQIsdp", 3 }, 1},
		"protocol level 5":       {func(p *packets.ConnectPacket) { p.ProtocolVersion = 5 }, 1},
		"another client ID":      {func(p *packets.ConnectPacket) { p.ClientIdentifier = "other" }, 2},
		"no client ID":           {func(p *packets.ConnectPacket) { p.ClientIdentifier = "" }, 2},
		"wrong key":              {as(deviceID, "AAAAAAAAAAAAAAAAAAAAAA=="), 5},
		"another device's key":   {as(deviceID, disabled.Authentication.SymmetricKey.PrimaryKey), 5},
		"unknown device":         {as("ghost", f.key), 5},
		"disabled device":        {as(off, disabled.Authentication.SymmetricKey.PrimaryKey), 5},
		"expired token":          {password(token(t, hubName, "", f.key, -time.Second)), 5},
		"token of another host":  {password(token(t, "elsewhere/devices/"+deviceID, "", f.key, time.Hour)), 5},
		"user name, other host":  {user("elsewhere/" + deviceID), 5},
		"policy service":         {password(policyToken("service")), 5},
		"no password":            {func(p *packets.ConnectPacket) { p.PasswordFlag = false }, 5},
		"no user name":           {func(p *packets.ConnectPacket) { p.UsernameFlag, p.PasswordFlag = false, false }, 5},
		"user name without ID":   {user(hubName), 5},
		"will on the events":     {withWill(eventsTopic, 1), 0},
		"will elsewhere":         {withWill("devices/other/messages/events/", 1), 5},
		"will at QoS 2":          {withWill(eventsTopic, 2), 5},
		"will with a broken bag": {withWill(eventsTopic+"a=%zz", 1), 5},
		"module": {func(p *packets.ConnectPacket) {
			p.ClientIdentifier = deviceID + "/m"
			p.Username = hubName + "/" + deviceID + "/m/?api-version=2021-04-12"
		}, 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := f.pipe()
			c.t = t
			ack := f.login(c, tt.change)
			if ack.ReturnCode != tt.want || ack.SessionPresent {
				t.Errorf("CONNACK %d, session present %v; want %d", ack.ReturnCode, ack.SessionPresent, tt.want)
			}
			if tt.want != packets.Accepted {
				c.expectClosed()
			}
		})
	}
}

func TestConnectWhileHubCloses(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	f.hub.Close()
	if ack := f.login(f.pipe()); ack.ReturnCode != packets.ErrRefusedServerUnavailable {
		t.Errorf("CONNACK %d", ack.ReturnCode)
	}
}

// TestNoConnect sends what must be answered by closing alone.
func TestNoConnect(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	tests := map[string][]byte{
		"PINGREQ first":            {0xc0, 0},
		"another protocol":         {0x10, 5, 0, 2, 'H', 'T', 4},
		"HTTP":                     []byte("GET / HTTP/1.1\r\n\r\n"),
		"CONNECT cut short":        {0x10, 9, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0},
		"reserved flag":            {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 1, 0, 0, 0, 0},
		"password without user":    {0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 4, 0x40, 0, 0, 0, 0, 0, 0},
		"bytes left over":          {0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 0, 9},
		"more than a CONNECT is":   {0x10, 0xff, 0xff, 0x7f},
		"length of five bytes":     {0x10, 0xff, 0xff, 0xff, 0xff, 1},
		"flags of the fixed part":  {0x12, 0},
		"empty":                    {0x10, 0},
		"client ID is not UTF-8":   {0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 1, 0xff},
		"null character in an ID":  {0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 1, 0},
		"retain without a will":    {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 0x22, 0, 0, 0, 0},
		"QoS of will without will": {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 0x0a, 0, 0, 0, 0},
	}
	for name, raw := range tests {
		t.Run(name, func(t *testing.T) {
			c := f.pipe()
			c.t = t
			go c.conn.Write(raw) // the server may close before it has read all
			if p := c.next(); p != nil {
				t.Errorf("answered with %v", p)
			}
		})
	}
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	first := f.connected(func(p *packets.ConnectPacket) {
		p.WillFlag, p.WillTopic, p.WillMessage = true, eventsTopic+"n=1", []byte("taken over")
	})
	first.subscribe(1, deviceboundFilter)
	f.sendC2D("one", nil)
	expect[*packets.PublishPacket](first)
	second := f.connected()
	first.expectClosed()
	second.subscribe(1, deviceboundFilter)
	if p := expect[*packets.PublishPacket](second); string(p.Payload) != "one" {
		t.Errorf("second connection got %q", p.Payload)
	}
	second.ping()
	will := f.nextTelemetry()
	if string(will.Body()) != "taken over" || will.ApplicationProperties["iothub-MessageType"] != "Will" || will.ApplicationProperties["n"] != "1" {
		t.Errorf("will is %q with %v", will.Body(), will.ApplicationProperties)
	}
	if n := f.hub.ServiceStatistics().Connected; n != 1 {
		t.Errorf("%d devices connected, want 1", n)
	}
}

func TestDisconnectLeavesNoWill(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.connected(func(p *packets.ConnectPacket) { p.WillFlag, p.WillTopic = true, eventsTopic })
	c.send(packets.NewControlPacket(packets.Disconnect))
	c.expectClosed()
	f.server.Close()
	if n := f.telemetry.Len(); n != 0 {
		t.Errorf("%d messages in the queue", n)
	}
}

func TestIdentityChangesDropConnection(t *testing.T) {
	t.Parallel()
	changes := map[string]func(*fixture) error{
		"disabled": func(f *fixture) error {
			_, err := f.hub.UpdateDevice(f.t.Context(), hub.Identity{DeviceID: deviceID, Status: hub.StatusDisabled}, hub.AnyVersion)
			return err
		},
		"deleted": func(f *fixture) error { return f.hub.DeleteDevice(f.t.Context(), deviceID, hub.AnyVersion) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, store.Memory(), nil)
			c := f.connected()
			must(t, change(f))
			c.expectClosed()
			if ack := f.login(f.pipe()); ack.ReturnCode != packets.ErrRefusedNotAuthorised {
				t.Errorf("CONNACK %d afterwards", ack.ReturnCode)
			}
		})
	}
}

// TestSplitPackets sends a whole conversation one byte at a time.
func TestSplitPackets(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.dial()
	c.conn = byteByByte{c.conn}
	if ack := f.login(c); ack.ReturnCode != packets.Accepted {
		t.Fatalf("CONNACK %d", ack.ReturnCode)
	}
	c.subscribe(1, deviceboundFilter)
	c.publish(7, eventsTopic+"a=b", "hello")
	c.ping()
	if m := f.nextTelemetry(); string(m.Body()) != "hello" {
		t.Errorf("got %q", m.Body())
	}
}

func TestCloseEndsConnections(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	c := f.dial()
	f.login(c)
	unfinished := f.pipe() // has sent nothing yet
	f.server.Close()
	c.expectClosed()
	unfinished.expectClosed()
	if n := f.hub.ServiceStatistics().Connected; n != 0 {
		t.Errorf("%d devices connected after Close", n)
	}
	f.pipe().expectClosed()
}
