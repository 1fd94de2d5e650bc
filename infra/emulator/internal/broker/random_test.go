package broker_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// A random walk over everything that can happen to messages: whatever the order,
// each one ends exactly once, or is still in the queue.
func TestEveryMessageEndsOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newWalk(t, seed).run(2000) })
		})
	}
}

type walk struct {
	t      *testing.T
	rnd    *rand.Rand
	queue  *broker.Queue
	sent   int
	ended  map[string]int
	locked []*broker.Delivery
	shared *broker.Consumer
	holder *broker.Consumer
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), ended: make(map[string]int)}
	w.queue = newQueue(t, store.Memory(), broker.QueueOptions{
		MaxDeliveryCount: 4,
		DefaultTTL:       10 * time.Minute,
		OnOutcome:        func(_ *broker.Tx, o broker.Outcome) { w.ended[string(o.Delivery.Message.Body())]++ },
	})
	w.shared = newConsumer(t, w.queue, broker.ConsumerOptions{})
	w.holder = newConsumer(t, w.queue, broker.ConsumerOptions{HoldLocks: true})
	return w
}

func (w *walk) run(steps int) {
	for range steps {
		switch w.rnd.IntN(10) {
		case 0, 1:
			w.sent++
			send(w.t, w.queue, withTTL(msg(fmt.Sprint(w.sent)), time.Duration(w.rnd.IntN(600))*time.Second))
		case 2:
			w.sent++
			if _, err := w.queue.Schedule(w.t.Context(), time.Now().Add(time.Minute), msg(fmt.Sprint(w.sent))); err != nil {
				w.t.Fatal(err)
			}
		case 3, 4:
			w.receive(w.shared)
		case 5:
			w.receive(w.holder)
		case 6:
			w.holder.Close()
			w.holder = newConsumer(w.t, w.queue, broker.ConsumerOptions{HoldLocks: true})
		case 7:
			time.Sleep(time.Duration(w.rnd.IntN(60)) * time.Second)
		default:
			w.settle()
		}
	}
	synctest.Wait()
	w.check()
}

func (w *walk) receive(c *broker.Consumer) {
	ds, err := c.TryReceive(w.t.Context(), 1+w.rnd.IntN(3))
	if err != nil {
		w.t.Fatal(err)
	}
	w.locked = append(w.locked, ds...)
}

// settle settles a message that was received once, whether or not its lock is
// still there.
func (w *walk) settle() {
	if len(w.locked) == 0 {
		return
	}
	i := w.rnd.IntN(len(w.locked))
	action := broker.Action(w.rnd.IntN(int(broker.Defer) + 1))
	err := w.queue.Settle(w.t.Context(), w.locked[i].LockToken, broker.Settlement{Action: action})
	if err != nil && !errors.Is(err, broker.ErrLockLost) {
		w.t.Fatal(err)
	}
	w.locked = slices.Delete(w.locked, i, i+1)
}

func (w *walk) check() {
	left := make(map[string]bool)
	for _, d := range w.queue.Peek(0, w.sent) {
		left[string(d.Message.Body())] = true
	}
	check(w.t, "messages in the queue", w.queue.Len(), len(left))
	for body, n := range w.ended {
		if n != 1 || left[body] {
			w.t.Errorf("message %s ended %d times, still there: %t", body, n, left[body])
		}
	}
	check(w.t, "messages that ended or are left", len(w.ended)+len(left), w.sent)
}
