package hub_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// gate notes what it is asked, and refuses while it is shut.
type gate struct {
	repeats bool

	mu      sync.Mutex
	shut    bool
	asked   []string
	metered []string
}

func (g *gate) Admit(op hub.Operation, t hub.Target, bytes int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, fmt.Sprintf("%v %s/%s %d", op, t.DeviceID, t.ModuleID, bytes))
	if g.shut {
		return &hub.Error{Code: hub.CodeThrottling, Message: "too fast"}
	}
	return nil
}

func (g *gate) AdmitAll(op hub.Operation, parts []hub.Part) error {
	for _, p := range parts {
		if err := g.Admit(op, p.Target, p.Bytes); err != nil {
			return err
		}
	}
	return nil
}

func (g *gate) Meter(op hub.Operation, t hub.Target, bytes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.metered = append(g.metered, fmt.Sprintf("%v %s/%s %d", op, t.DeviceID, t.ModuleID, bytes))
}

func (g *gate) Repeat(hub.Operation, hub.Target) bool { return g.repeats }

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.asked = shut, nil
}

// TestGate asks for each operation twice: with the gate shut, when it must not
// take place, and with the gate open.
func TestGate(t *testing.T) {
	t.Parallel()
	g := new(gate)
	h := newHub(t, store.Memory(), func(o *hub.Options) { o.Gate, o.Meter = g, g })
	create(t, h, "d")
	createModule(t, h, "d", "m")
	s, m := connect(t, h, "d"), connectModule(t, h, "d", "m")
	transient, err := h.Connect(t.Context(), "d", hub.ConnectOptions{Transient: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transient.Close)
	m.HandleMethods(func(r hub.MethodRequest) {
		go m.RespondMethod(r.RequestID, hub.MethodResult{Payload: []byte("[1,2]")})
	})
	device, module := hub.Target{DeviceID: "d"}, hub.Target{DeviceID: "d", ModuleID: "m"}
	ctx := t.Context()
	for _, tc := range []struct {
		want string
		do   func() error
	}{
		{"registry e/ 0", func() error { _, err := h.CreateDevice(ctx, hub.Identity{DeviceID: "e"}); return err }},
		{"registry e/ 0", func() error { _, err := h.GetDevice("e"); return err }},
		{"registry e/ 0", func() error { _, err := h.UpdateDevice(ctx, hub.Identity{DeviceID: "e"}, hub.AnyVersion); return err }},
		{"registry / 0", func() error { _, err := h.ListDevices(1); return err }},
		{"registry e/ 0", func() error { return h.DeleteDevice(ctx, "e", hub.AnyVersion) }},
		{"registry d/n 0", func() error { _, err := h.CreateModule(ctx, hub.Module{DeviceID: "d", ModuleID: "n"}); return err }},
		{"registry d/n 0", func() error { _, err := h.GetModule(hub.Target{DeviceID: "d", ModuleID: "n"}); return err }},
		{"registry d/n 0", func() error {
			_, err := h.UpdateModule(ctx, hub.Module{DeviceID: "d", ModuleID: "n"}, hub.AnyVersion)
			return err
		}},
		{"registry d/ 0", func() error { _, err := h.ListModules("d"); return err }},
		{"registry d/n 0", func() error {
			return h.DeleteModule(ctx, hub.Target{DeviceID: "d", ModuleID: "n"}, hub.AnyVersion)
		}},
		{"registry f/ 0 registry g/ 0", func() error {
			_, err := h.Bulk(ctx, []hub.BulkItem{{ID: "f", ImportMode: hub.ImportCreate}, {ID: "g", ImportMode: hub.ImportCreate}})
			return err
		}},
		{"connect f/ 0", func() error { _, err := h.Connect(ctx, "f", hub.ConnectOptions{}); return err }},
		{"d2c d/ 3", func() error { return s.Publish(ctx, msg("abc")) }},
		{"d2c d/m 3", func() error { return m.Publish(ctx, msg("abc")) }},
		{"d2c d/ 3", func() error { return transient.Publish(ctx, msg("abc")) }},
		{"d2c d/ 1 d2c d/ 2", func() error { return s.PublishBatch(ctx, []*amqp.Message{msg("a"), msg("bc")}) }},
		{"c2d d/ 2", func() error { return h.SendC2D(ctx, "d", c2d("1", "")) }},
		{"registry d/ 0", func() error { _, err := h.PurgeC2D(ctx, "d"); return err }},
		{"method d/m 4", func() error {
			_, err := h.InvokeMethod(ctx, module, hub.MethodCall{Name: "m", Payload: []byte("null")})
			return err
		}},
	} {
		g.set(true)
		wantCode(t, tc.want, tc.do(), hub.CodeThrottling)
		g.set(false)
		if err := tc.do(); err != nil {
			t.Errorf("%s: %v", tc.want, err)
		}
		g.mu.Lock()
		check(t, "asked", fmt.Sprint(g.asked), "["+tc.want+"]")
		g.mu.Unlock()
	}
	check(t, "answers", fmt.Sprint(g.metered), "[method d/m 5]")
	g.set(false)
	d, err := h.GetDevice(device.DeviceID)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "messages left", d.CloudToDeviceMessageCount, 0)
	check(t, "messages stored", len(h.queue.Peek(0, 10)), 5)
}

func TestGateRepeatsMessages(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory(), func(o *hub.Options) { o.Gate = &gate{repeats: true} })
	create(t, h, "d")
	s := connect(t, h, "d")
	if err := s.PublishBatch(t.Context(), []*amqp.Message{msg("a"), msg("b")}); err != nil {
		t.Fatal(err)
	}
	var bodies []string
	for _, d := range h.queue.Peek(0, 10) {
		bodies = append(bodies, string(d.Message.Body()))
	}
	check(t, "from the device", bodies, "[a b a b]")

	sendC2D(t, h, "d", c2d("1", "full"))
	c, q := receiver(t, s)
	for range 2 {
		d := receive(t, c)
		check(t, "number", d.SequenceNumber, 1)
		settle(t, q, d, broker.Complete)
	}
	check(t, "left", q.Len(), 0)
}
