package amqpnodes_test

import (
	"strings"
	"testing"

	client "github.com/Azure/go-amqp"
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
