package amqpnodes_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	client "github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/x509test"
)

// bad is a request to $cbs that is answered with a failure.
func bad(messageID string) *client.Message {
	m := client.NewMessage(nil)
	m.Properties = &client.MessageProperties{MessageID: messageID}
	m.ApplicationProperties = map[string]any{"operation": "none"}
	return m
}

// Who has shown no token must not be able to fill the memory with answers that he
// doesn't take.
func TestRepliesThatNobodyTakes(t *testing.T) {
	t.Parallel()
	e := start(t)
	conn := must[*client.Conn](t)(e.dial(t, client.SASLTypeAnonymous()))
	for range 2 { // what one session left, another can use
		session := must[*client.Session](t)(conn.NewSession(testContext(t), nil))
		must[*client.Receiver](t)(session.NewReceiver(testContext(t), "$cbs", &client.ReceiverOptions{Credit: -1}))
		sender := must[*client.Sender](t)(session.NewSender(testContext(t), "$cbs", nil))
		const most = 1000
		for range most {
			if err := sender.Send(testContext(t), bad("m"), nil); err != nil {
				t.Fatal(err)
			}
		}
		wantCondition(t, sender.Send(testContext(t), bad("m"), nil), "amqp:resource-limit-exceeded")
		if err := session.Close(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRequestsAreSmall(t *testing.T) {
	t.Parallel()
	e := start(t)
	conn := must[*client.Conn](t)(e.dial(t, client.SASLTypeAnonymous()))
	session := must[*client.Session](t)(conn.NewSession(testContext(t), nil))
	for _, node := range []string{"$cbs", "$management"} {
		must[*client.Receiver](t)(session.NewReceiver(testContext(t), node, nil))
		sender := must[*client.Sender](t)(session.NewSender(testContext(t), node, nil))
		if n := sender.MaxMessageSize(); n != 64<<10 {
			t.Errorf("%s takes requests of %d bytes", node, n)
		}
		wantCondition(t, sender.Send(testContext(t), bad(strings.Repeat("m", 1025)), nil), "amqp:invalid-field")
	}
}

func TestAddressesOfRepliesAreShort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, newCore(t, func(*hub.Options) {}), "", "")
		long := strings.Repeat("a", 1025)
		for i, a := range []*amqp.Attach{
			{Source: &amqp.Source{Address: "$cbs"}, Target: &amqp.Target{Address: long}},
			{Source: &amqp.Source{Address: long + "/$management"}},
		} {
			a.Name, a.Role, a.Handle = string(rune('a'+i)), amqp.RoleReceiver, uint32(i)
			w.send(nil, a)
		}
		refused := heard[*amqp.Detach](w)
		if len(refused) != 2 {
			t.Fatalf("%d links are refused", len(refused))
		}
		for _, d := range refused {
			if d.Error == nil || d.Error.Condition != amqp.CondInvalidField {
				t.Errorf("refused with %v", d.Error)
			}
		}
	})
}

// A certificate that is nobody's must not hold a connection with links that
// anybody may have.
func TestCertificateOfNobody(t *testing.T) {
	t.Parallel()
	own := x509test.Issue(t, "anybody", nil)
	for name, tt := range map[string]struct {
		links []string
		open  bool
	}{
		"replies":            {[]string{"$cbs"}, false},
		"device":             {[]string{address(hub.Target{DeviceID: device}, nodeTwin)}, true},
		"device and replies": {[]string{"$cbs", address(hub.Target{DeviceID: device}, nodeTwin)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newCore(t, func(*hub.Options) {})
				must[hub.Identity](t)(e.hub.CreateDevice(t.Context(), hub.Identity{
					DeviceID: device, Authentication: hub.Authentication{X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: x509test.Thumbprint(own)}},
				}))
				now := time.Now() // the bubble's time is another than the certificate's
				inTime := *own.Leaf
				inTime.NotBefore, inTime.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
				w := newWire(t, e, "", "", &inTime)
				for i, link := range tt.links {
					w.send(nil, &amqp.Attach{Name: link, Handle: uint32(i), Role: amqp.RoleReceiver, Source: &amqp.Source{Address: link}})
				}
				for range 10 {
					w.write([]byte{0, 0, 0, 8, 2, 0, 0, 0})
					time.Sleep(30 * time.Second) // of virtual time
				}
				closed := heard[*amqp.Close](w)
				switch {
				case tt.open != (len(closed) == 0):
					t.Errorf("closed %d times", len(closed))
				case !tt.open && (closed[0].Error == nil || closed[0].Error.Condition != amqp.CondConnectionForced):
					t.Errorf("closed with %v", closed[0].Error)
				}
			})
		})
	}
}
