package iothub

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

func TestSendOutcomes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sent func(*fakeDelivery)
		want error
	}{
		"accepted":        {(*fakeDelivery).accept, nil},
		"no such device":  {func(d *fakeDelivery) { d.reject("amqp:not-found") }, job.ErrNotFound},
		"queue full":      {func(d *fakeDelivery) { d.reject("amqp:resource-limit-exceeded") }, job.ErrQueueFull},
		"throttled":       {func(d *fakeDelivery) { d.reject("com.microsoft:device-container-throttled") }, job.ErrThrottled},
		"daily quota":     {func(d *fakeDelivery) { d.reject("com.microsoft:quota-exceeded") }, job.ErrQuota},
		"released":        {(*fakeDelivery).release, job.ErrUnavailable}, // go-amqp's Send would call it sent
		"link detached":   {func(d *fakeDelivery) { d.detach("amqp:not-found") }, job.ErrNotFound},
		"connection lost": {(*fakeDelivery).closeConn, job.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newFakeAMQP(t, &fakeAMQP{sent: c.sent})
			err := client.SendCloudToDevice(t.Context(), "d", job.Message{ID: "m1"}, time.Hour)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// When the hub detaches the link over one message, the others under way on it are sent again, and none gets the blame.
func TestSendBesideOneThatBreaksTheLink(t *testing.T) {
	t.Parallel()
	const messages = 5
	var under sync.Mutex
	seen := 0
	fake := &fakeAMQP{sent: func(d *fakeDelivery) {
		under.Lock()
		defer under.Unlock()
		seen++
		switch {
		case seen < messages: // hold it, until all are under way on the shared link
		case seen == messages, d.MessageID == "bad":
			d.detach("amqp:not-found")
		default:
			d.accept()
		}
	}}
	client := newFakeAMQP(t, fake)
	var wg sync.WaitGroup
	for _, id := range []string{"bad", "m1", "m2", "m3", "m4"} {
		wg.Go(func() {
			err := client.SendCloudToDevice(t.Context(), "d", job.Message{ID: id}, time.Hour)
			switch {
			case id == "bad" && !errors.Is(err, job.ErrNotFound):
				t.Errorf("%s: got %v, want %v", id, err, job.ErrNotFound)
			case id != "bad" && err != nil:
				t.Errorf("%s: got %v", id, err)
			}
		})
	}
	wg.Wait()
}

func TestSendConnectsAgainAfterALoss(t *testing.T) {
	t.Parallel()
	var once sync.Once
	fake := &fakeAMQP{sent: func(d *fakeDelivery) {
		lost := false
		once.Do(func() { lost = true })
		if lost {
			d.closeConn()
			return
		}
		d.accept()
	}}
	client := newFakeAMQP(t, fake)
	for range 3 {
		if err := client.SendCloudToDevice(t.Context(), "d", job.Message{ID: "m1"}, time.Hour); err != nil {
			t.Error(err)
		}
	}
	if n := fake.read(&fake.conns); n != 2 {
		t.Errorf("connected %d times", n)
	}
}

func TestSendEndsWithItsContext(t *testing.T) {
	t.Parallel()
	received := make(chan struct{}, 1)
	client := newFakeAMQP(t, &fakeAMQP{sent: func(*fakeDelivery) { received <- struct{}{} }})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-received // and never settled
		cancel()
	}()
	err := client.SendCloudToDevice(ctx, "d", job.Message{ID: "m1"}, time.Hour)
	if !errors.Is(err, job.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestSendersShareOneLink(t *testing.T) {
	t.Parallel()
	fake := &fakeAMQP{sent: (*fakeDelivery).accept}
	client := newFakeAMQP(t, fake)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := client.SendCloudToDevice(t.Context(), "d", job.Message{ID: "m"}, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if conns, links := fake.read(&fake.conns), fake.read(&fake.links); conns != 1 || links != 1 {
		t.Errorf("made %d connections and %d links", conns, links)
	}
}

func TestClaimRefused(t *testing.T) {
	t.Parallel()
	client := newFakeAMQP(t, &fakeAMQP{claim: func(int) int32 { return 401 }})
	if err := client.SendCloudToDevice(t.Context(), "d", job.Message{ID: "m1"}, time.Hour); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("got %v", err)
	}
}

func TestClaimWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	client := newFakeAMQP(t, &fakeAMQP{claim: func(int) int32 { close(asked); return 0 }})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if err := client.SendCloudToDevice(ctx, "d", job.Message{ID: "m1"}, time.Hour); !errors.Is(err, job.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// A connection whose claim can't be renewed is closed when the claim has ended; the next call makes another.
func TestClaimThatIsNotRenewed(t *testing.T) {
	t.Parallel()
	fake := &fakeAMQP{sent: (*fakeDelivery).accept, claim: func(n int) int32 {
		if n == 1 {
			return 200
		}
		return 401
	}}
	client := newFakeAMQP(t, fake)
	client.amqp.auth.(*policyKey).life = 2 * time.Second
	conn, err := client.amqp.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-conn.conn.Done():
	case <-time.After(time.Minute):
		t.Fatal("the connection is still there")
	}
	if n := fake.read(&fake.claims); n < 2 {
		t.Errorf("tried %d times to renew", n-1)
	}
	if err := client.SendCloudToDevice(t.Context(), "d", job.Message{ID: "m1"}, time.Hour); !errors.Is(err, job.ErrUnauthorized) {
		t.Errorf("got %v", err)
	}
}
