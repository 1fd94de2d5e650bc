package hub_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func sensors(id string) bool { return strings.HasPrefix(id, "sensor") }

func TestDisconnect(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	for _, id := range []string{"sensor-1", "sensor-2", "sensor-3", "lamp"} {
		create(t, h, id)
	}
	if _, err := h.CreateModule(t.Context(), hub.Module{DeviceID: "sensor-2", ModuleID: "m"}); err != nil {
		t.Fatal(err)
	}
	sensor, lamp := connect(t, h, "sensor-1"), connect(t, h, "lamp")
	module, err := h.Connect(t.Context(), "sensor-2", hub.ConnectOptions{ModuleID: "m"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "disconnected", h.Disconnect(sensors), 2)
	for _, s := range []*hub.Session{sensor, module} {
		<-s.Done()
		if !errors.Is(s.Err(), hub.CodeConnectionClosed) {
			t.Errorf("%s: %v", s.Target(), s.Err())
		}
	}
	if err := lamp.Err(); err != nil {
		t.Errorf("another device: %v", err)
	}
	connect(t, h, "sensor-1") // may come back
	check(t, "disconnected again", h.Disconnect(sensors), 1)
}

func TestExpireLocksOfDevices(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	locked := make(map[string]*broker.Delivery)
	queues := make(map[string]*broker.Queue)
	for _, id := range []string{"sensor", "lamp"} {
		create(t, h, id)
		sendC2D(t, h, id, c2d("m", "none"))
		s := connect(t, h, id)
		q, err := s.Queue()
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Receive(broker.ConsumerOptions{})
		if err != nil {
			t.Fatal(err)
		}
		locked[id], queues[id] = receive(t, c), q
	}
	create(t, h, "sensor-without-messages")
	check(t, "locks", h.ExpireLocks(sensors), 1)
	settlement := broker.Settlement{Action: broker.Complete}
	if err := queues["sensor"].Settle(t.Context(), locked["sensor"].LockToken, settlement); !errors.Is(err, broker.ErrLockLost) {
		t.Errorf("settled without a lock: %v", err)
	}
	if err := queues["lamp"].Settle(t.Context(), locked["lamp"].LockToken, settlement); err != nil {
		t.Errorf("another device: %v", err)
	}
}
