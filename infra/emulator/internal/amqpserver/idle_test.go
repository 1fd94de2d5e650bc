package amqpserver_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
)

// tokenHandler wants a token.
type tokenHandler struct {
	nodes
	authorized *atomic.Bool
}

func (h tokenHandler) Authorized() bool { return h.authorized.Load() }

func handlerOption(h amqpserver.Handler) amqpserver.Options {
	return amqpserver.Options{NewHandler: func(amqpserver.Peer) (amqpserver.Handler, error) { return h, nil }}
}

// forcedAfter waits until the server closes the connection, and returns how long
// that took.
func (r *raw) forcedAfter(what string) time.Duration {
	r.t.Helper()
	began := time.Now()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // the peer is there
		beat := time.NewTicker(time.Minute)
		defer beat.Stop()
		for {
			select {
			case <-beat.C:
				_, _ = r.conn.Write([]byte{0, 0, 0, 8, 2, 0, 0, 0})
			case <-stop:
				return
			}
		}
	}()
	for f := range r.frames {
		if c, ok := f.Body.(*amqp.Close); ok {
			wantReason(r.t, c.Error, amqp.CondConnectionForced)
			if c.Error != nil && !strings.Contains(c.Error.Description, what) {
				r.t.Errorf("reason %q doesn't say %q", c.Error.Description, what)
			}
			return time.Since(began)
		}
	}
	r.t.Fatal("the connection ended without a close")
	return 0
}

func TestConnectionWithoutLinksIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, done := run(t, amqpserver.Options{}, 0)
		r.start()
		if got := r.forcedAfter("did not have any active links in the past 60000 milliseconds"); got != time.Minute {
			t.Errorf("closed after %v", got)
		}
		<-done
	})
}

func TestConnectionThatLostItsLinksIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, done := run(t, handlerOption(nodes{"q": newNode()}), 0)
		r.start()
		r.begin()
		r.attachReceiver(0, "q")
		time.Sleep(2 * time.Minute) // of virtual time
		r.send(&amqp.Detach{Handle: 0, Closed: true})
		expect[*amqp.Detach](r)
		if got := r.forcedAfter("did not have any active links in the past 300000 milliseconds"); got != 5*time.Minute {
			t.Errorf("closed after %v", got)
		}
		<-done
	})
}

func TestConnectionWithoutTokenIsClosed(t *testing.T) {
	t.Parallel()
	for name, shown := range map[string]bool{"no token": false, "token": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := tokenHandler{nodes{"q": newNode(), "p": newNode()}, new(atomic.Bool)}
				r, done := run(t, handlerOption(h), 0)
				r.start()
				r.begin()
				r.attachReceiver(0, "q")
				h.authorized.Store(shown)
				if shown {
					time.Sleep(time.Minute) // of virtual time
					r.attachReceiver(1, "p")
					r.conn.Close()
				} else if got := r.forcedAfter("no valid token was put within the first 20000 milliseconds"); got != 20*time.Second {
					t.Errorf("closed after %v", got)
				}
				<-done
			})
		})
	}
}

// Deliveries that are accepted one right after the other get one disposition.
func TestDispositionsAreJoined(t *testing.T) {
	t.Parallel()
	r := newRaw(t, nodes{"q": newNode()})
	r.begin()
	r.attachSender(0, "q")
	const n = 20
	var stream []byte
	for id := range uint32(n) {
		stream = append(stream, encode(t, 0, payload(t, "x"), &amqp.Transfer{DeliveryID: &id, DeliveryTag: []byte{byte(id)}})...)
	}
	r.write(stream)
	frames := 0
	for next := uint32(0); next < n; frames++ {
		d := expect[*amqp.Disposition](r)
		if _, ok := d.State.(*amqp.Accepted); d.First != next || d.Last < d.First || d.Last >= n || !d.Settled || !ok {
			t.Fatalf("disposition %+v, want one from %d on", d, next)
		}
		next = d.Last + 1
	}
	if frames == n {
		t.Errorf("%d dispositions for %d deliveries that came at once", frames, n)
	}
}

// What isn't accepted is never part of a range.
func TestOnlyAcceptedDeliveriesAreJoined(t *testing.T) {
	t.Parallel()
	q := newNode()
	q.verdict = func(m *amqp.Message) error {
		if string(m.Body()) == "bad" {
			return amqp.Errorf(amqp.CondNotAllowed, "bad")
		}
		return nil
	}
	r := newRaw(t, nodes{"q": q})
	r.begin()
	r.attachSender(0, "q")
	var stream []byte
	for id, body := range []string{"a", "b", "bad", "c", "bad", "bad", "d"} {
		stream = append(stream, encode(t, 0, payload(t, body), &amqp.Transfer{DeliveryID: ptr(uint32(id)), DeliveryTag: []byte{byte(id)}})...)
	}
	r.write(stream)
	var got strings.Builder
	for got.Len() < 7 {
		d := expect[*amqp.Disposition](r)
		mark := "+"
		if _, ok := d.State.(*amqp.Rejected); ok {
			mark = "-"
		}
		got.WriteString(strings.Repeat(mark, int(d.Last-d.First)+1))
	}
	if got.String() != "++-+--+" {
		t.Errorf("outcomes %s", &got)
	}
}
