package amqpnodes_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	client "github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// sendC2D sends messages to the device that ask for full feedback.
func (e *emulator) sendC2D(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		m := &amqp.Message{
			Properties:            &amqp.Properties{MessageID: id},
			ApplicationProperties: map[string]any{"iothub-ack": "full", "a": "b"},
			Data:                  [][]byte{[]byte("body of " + id)},
		}
		if err := e.hub.SendC2D(testContext(t), device, m); err != nil {
			t.Fatal(err)
		}
	}
}

func take(t *testing.T, r *client.Receiver) *client.Message {
	t.Helper()
	return must[*client.Message](t)(r.Receive(testContext(t), nil))
}

// outcome returns what the feedback says of the next message that has ended.
func outcome(t *testing.T, feedback *client.Receiver) string {
	t.Helper()
	m := take(t, feedback)
	var records []struct{ OriginalMessageID, StatusCode string }
	if err := json.Unmarshal(m.GetData(), &records); err != nil || len(records) != 1 {
		t.Fatalf("records %+v, error %v", records, err)
	}
	if err := feedback.AcceptMessage(testContext(t), m); err != nil {
		t.Fatal(err)
	}
	return records[0].OriginalMessageID + " " + records[0].StatusCode
}

func (e *emulator) feedback(t *testing.T) *client.Receiver {
	t.Helper()
	return newReceiver(t, e.service(t, "service"), "/messages/serviceBound/feedback")
}

func TestCloudToDeviceMessage(t *testing.T) {
	t.Parallel()
	e := start(t)
	receiver := newReceiver(t, e.startDevice(t, bare), address(bare, nodeC2D))
	e.sendC2D(t, "m1")
	m := take(t, receiver)
	if string(m.GetData()) != "body of m1" || m.Properties.MessageID != "m1" || m.ApplicationProperties["a"] != "b" {
		t.Errorf("message: %+v", m)
	}
	if m.Properties.To == nil || *m.Properties.To != "/devices/device-solver::job-1/messages/deviceBound" {
		t.Errorf("to: %v", *m.Properties.To)
	}
	if n, ok := m.Annotations["x-opt-sequence-number"].(uint64); !ok || n != 1 {
		t.Errorf("sequence number: %#v", m.Annotations["x-opt-sequence-number"])
	}
	if n, ok := m.Annotations["iothub-deliverycount"].(uint8); !ok || n != 0 {
		t.Errorf("delivery count: %#v", m.Annotations["iothub-deliverycount"])
	}
	if _, ok := m.Annotations["iothub-enqueuedtime"].(time.Time); !ok {
		t.Errorf("enqueued time: %#v", m.Annotations["iothub-enqueuedtime"])
	}
	token, ok := m.Annotations["x-opt-lock-token"].(client.UUID)
	if !ok || len(m.DeliveryTag) != 16 || m.DeliveryTag[0] != token[3] || m.DeliveryTag[15] != token[15] {
		t.Errorf("lock token %v, tag %x", token, m.DeliveryTag)
	}
}

// Receivers of both settle modes: in mode second, go-amqp waits for the server to
// settle too.
var settleModes = map[string]*client.ReceiverSettleMode{
	"first":  client.ReceiverSettleModeFirst.Ptr(),
	"second": client.ReceiverSettleModeSecond.Ptr(),
}

func TestCloudToDeviceOutcomes(t *testing.T) {
	t.Parallel()
	for name, mode := range settleModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startWith(t, func(o *hub.Options) { o.C2D.MaxDeliveryCount = 2 })
			ctx := testContext(t)
			r := must[*client.Receiver](t)(e.startDevice(t, bare).NewReceiver(ctx, address(bare, nodeC2D), &client.ReceiverOptions{SettlementMode: mode}))
			feedback := e.feedback(t)

			e.sendC2D(t, "completed")
			if err := r.AcceptMessage(ctx, take(t, r)); err != nil {
				t.Fatal(err)
			}
			if got := outcome(t, feedback); got != "completed Success" {
				t.Error(got)
			}
			e.sendC2D(t, "rejected")
			if err := r.RejectMessage(ctx, take(t, r), &client.Error{Condition: "Rejected by application"}); err != nil {
				t.Fatal(err)
			}
			if got := outcome(t, feedback); got != "rejected Rejected" {
				t.Error(got)
			}
			e.sendC2D(t, "abandoned")
			if err := r.ReleaseMessage(ctx, take(t, r)); err != nil {
				t.Fatal(err)
			}
			again := take(t, r)
			if again.Properties.MessageID != "abandoned" || again.Annotations["iothub-deliverycount"] != uint8(1) {
				t.Errorf("after it was abandoned: %v, count %v", again.Properties.MessageID, again.Annotations["iothub-deliverycount"])
			}
			if err := r.ModifyMessage(ctx, again, &client.ModifyMessageOptions{DeliveryFailed: true}); err != nil {
				t.Fatal(err)
			}
			if got := outcome(t, feedback); got != "abandoned DeliveryCountExceeded" {
				t.Error(got)
			}
		})
	}
}

func TestLostLock(t *testing.T) {
	t.Parallel()
	e := startWith(t, func(o *hub.Options) { o.C2D.LockDuration = 50 * time.Millisecond })
	ctx := testContext(t)
	r := must[*client.Receiver](t)(e.startDevice(t, bare).NewReceiver(ctx, address(bare, nodeC2D), &client.ReceiverOptions{
		SettlementMode: client.ReceiverSettleModeSecond.Ptr(), Credit: 10,
	}))
	e.sendC2D(t, "m1")
	first := take(t, r)
	again := take(t, r) // when the lock is over
	if again.Properties.MessageID != "m1" || again.Annotations["iothub-deliverycount"] != uint8(0) {
		t.Errorf("delivered again: %v, count %v", again.Properties.MessageID, again.Annotations["iothub-deliverycount"])
	}
	wantCondition(t, r.AcceptMessage(ctx, first), "com.microsoft:message-lock-lost")
}

// What a device leaves unsettled comes again when the lock is over.
func TestUnsettledMessagesComeAgain(t *testing.T) {
	t.Parallel()
	e := startWith(t, func(o *hub.Options) { o.C2D.LockDuration = 50 * time.Millisecond })
	e.create(t, bare)
	conn, session := e.connect(t, bare)
	r := newReceiver(t, session, address(bare, nodeC2D))
	e.sendC2D(t, "m1")
	take(t, r)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	_, session = e.connect(t, bare)
	r = newReceiver(t, session, address(bare, nodeC2D))
	if m := take(t, r); m.Properties.MessageID != "m1" {
		t.Errorf("message: %v", m.Properties.MessageID)
	}
}

func TestCreditOrderAndDrain(t *testing.T) {
	t.Parallel()
	e := start(t)
	ctx := testContext(t)
	r := must[*client.Receiver](t)(e.startDevice(t, bare).NewReceiver(ctx, address(bare, nodeC2D), &client.ReceiverOptions{Credit: -1}))
	var ids []string
	for i := range 10 {
		ids = append(ids, fmt.Sprint(i))
	}
	e.sendC2D(t, ids...)
	next := 0
	for _, credit := range []uint32{1, 3, 6} {
		if err := r.IssueCredit(credit); err != nil {
			t.Fatal(err)
		}
		for range credit {
			m := take(t, r)
			if m.Properties.MessageID != ids[next] {
				t.Errorf("message %v, want %s", m.Properties.MessageID, ids[next])
			}
			next++
			if err := r.AcceptMessage(ctx, m); err != nil {
				t.Fatal(err)
			}
		}
		if m := r.Prefetched(); m != nil {
			t.Errorf("%v came without credit", m.Properties.MessageID)
		}
	}
	if err := r.IssueCredit(5); err != nil {
		t.Fatal(err)
	}
	if err := r.DrainCredit(ctx, nil); err != nil {
		t.Fatal(err)
	}
	// The drained credit is gone, and can be given anew.
	e.sendC2D(t, "last")
	if err := r.IssueCredit(1); err != nil {
		t.Fatal(err)
	}
	if m := take(t, r); m.Properties.MessageID != "last" {
		t.Errorf("message: %v", m.Properties.MessageID)
	}
}

func TestSecondReceiverTakesOver(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	first := newReceiver(t, session, address(bare, nodeC2D))
	second := newReceiver(t, session, address(bare, nodeC2D))
	wantDetached(t, first, "amqp:link:stolen")
	e.sendC2D(t, "m1")
	take(t, second)
}

// A module's link is there and stays silent; nobody can send to it.
func TestModulesGetNoMessages(t *testing.T) {
	t.Parallel()
	e := start(t)
	newReceiver(t, e.startDevice(t, module), address(module, nodeC2D))
	sender := newSender(t, e.service(t, "service"), "/messages/devicebound")
	err := sender.Send(testContext(t), bound(address(module, nodeC2D), "m", "none"), nil)
	wantCondition(t, err, client.ErrCondNotAllowed)
}
