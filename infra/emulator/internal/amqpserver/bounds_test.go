package amqpserver_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

// Some peers give all the credit and all the window that the fields can hold.
func TestCreditAndWindowOfAllBits(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q})
	r.send(&amqp.Begin{IncomingWindow: math.MaxUint32, OutgoingWindow: 1})
	expect[*amqp.Begin](r)
	r.attachReceiver(0, "q")
	r.credit(math.MaxUint32, func(f *amqp.Flow) { f.IncomingWindow = math.MaxUint32 })
	for range 3 {
		q.push(data("x"))
	}
	for range 3 {
		expect[*amqp.Transfer](r)
	}
	r.credit(math.MaxUint32, func(f *amqp.Flow) {
		f.NextIncomingID, f.DeliveryCount, f.IncomingWindow = ptr(uint32(2)), ptr(uint32(2)), math.MaxUint32
		f.Echo = true
	})
	if f := expect[*amqp.Flow](r); *f.LinkCredit != math.MaxUint32-1 {
		t.Errorf("credit %d with one delivery under way", *f.LinkCredit)
	}
}

func TestTooManyLinksEndTheSession(t *testing.T) {
	t.Parallel()
	r := newRaw(t, targetHandler{&holdingTarget{}})
	r.begin()
	var b []byte
	for i := range uint32(6000) {
		b = append(b, encode(t, 0, nil, &amqp.Attach{Name: fmt.Sprint(i), Handle: i, Role: amqp.RoleReceiver, Source: &amqp.Source{}})...)
	}
	r.write(b)
	for {
		// All of them are refused, and wait for the peer's detach.
		if e, ok := r.next().Body.(*amqp.End); ok {
			wantReason(t, e.Error, amqp.CondResourceLimitExceeded)
			break
		}
	}
	// The links went with the session, and others have room.
	r.send(&amqp.End{})
	r.begin()
	r.attachSender(0, "q")
}

func TestChannelBeyondTheHighest(t *testing.T) {
	t.Parallel()
	r := newRaw(t, nodes{})
	r.write(encode(t, 5000, nil, &amqp.Begin{}))
	wantReason(t, expect[*amqp.Close](r).Error, amqp.CondFramingError)
	r.wantEnd()
}

func TestIncompleteMessagesAreBounded(t *testing.T) {
	t.Parallel()
	r := newRaw(t, targetHandler{&holdingTarget{}})
	r.begin()
	const links = 40 // of 1 MiB each
	for i := range uint32(links) {
		r.attachSender(i, fmt.Sprint(i))
	}
	part := make([]byte, 60_000)
	// What one link gives up, such as by an aborted delivery, another may use.
	for range 3 {
		for i := range uint32(links) {
			r.transfer(&amqp.Transfer{Handle: i, DeliveryID: &i, More: true}, part)
			r.transfer(&amqp.Transfer{Handle: i, Aborted: true}, nil)
		}
	}
	ended := false
	for n := 0; n < 17*links && !ended; n++ {
		i := uint32(n % links)
		r.transfer(&amqp.Transfer{Handle: i, DeliveryID: &i, More: true}, part)
		select {
		case f := <-r.frames:
			if e, ok := f.Body.(*amqp.End); ok {
				wantReason(t, e.Error, amqp.CondResourceLimitExceeded)
				ended = true
			}
		default:
		}
	}
	if !ended {
		wantReason(t, expect[*amqp.End](r).Error, amqp.CondResourceLimitExceeded)
	}
	r.send(&amqp.End{})
	r.begin()
	r.attachSender(0, "again")
}

var _ amqpserver.Target = (*holdingTarget)(nil)

// A range that begins far before what was sent names next to nothing, and must
// not be gone through one by one: a few of them would take minutes.
func TestDispositionOfBillions(t *testing.T) {
	t.Parallel()
	q := newNode()
	r := newRaw(t, nodes{"q": q})
	r.begin()
	r.attachReceiver(0, "q")
	q.push(data("a"), data("b"), data("c"))
	r.credit(3)
	for range 3 {
		expect[*amqp.Transfer](r)
	}
	for range 100 {
		r.send(&amqp.Disposition{Role: amqp.RoleReceiver, First: 1<<31 + 4, Last: math.MaxUint32, Settled: true, State: &amqp.Accepted{}})
	}
	r.send(&amqp.Disposition{Role: amqp.RoleReceiver, First: 1<<31 + 4, Last: 1, State: &amqp.Accepted{}})
	for id := range uint32(2) { // in order, though the range wraps
		if d := expect[*amqp.Disposition](r); d.First != id {
			t.Errorf("disposition of %d, want %d", d.First, id)
		}
	}
}

func TestLinkNameThatIsTooLong(t *testing.T) {
	t.Parallel()
	r := newRaw(t, nodes{"q": newNode()})
	r.begin()
	name := strings.Repeat("n", 1024)
	r.send(&amqp.Attach{Name: name, Role: amqp.RoleReceiver, Source: &amqp.Source{Address: "q"}})
	if a := expect[*amqp.Attach](r); a.Name != name || a.Source == nil {
		t.Errorf("attach: %+v", a)
	}
	r.send(&amqp.Attach{Name: name + "n", Handle: 1, Role: amqp.RoleReceiver, Source: &amqp.Source{Address: "q"}})
	wantReason(t, expect[*amqp.End](r).Error, amqp.CondInvalidField)
}
