package fault_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/fault"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// subject notes what is done to it.
type subject struct {
	devices, entities []string // that there are

	mu sync.Mutex // guards all below
	marks
}

type marks struct{ expired, locked, disconnects []string }

func hit(names []string, match func(string) bool, to *[]string) (n int) {
	for _, name := range names {
		if match(name) {
			*to = append(*to, name)
			n++
		}
	}
	return n
}

func (s *subject) ExpireDeviceLocks(match func(string) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return hit(s.devices, match, &s.expired)
}

func (s *subject) ExpireEntityLocks(match func(string) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return hit(s.entities, match, &s.locked)
}

func (s *subject) Disconnect(match func(string) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return hit(s.devices, match, &s.disconnects)
}

func newInjector(t *testing.T) (*fault.Injector, *subject) {
	t.Helper()
	s := &subject{devices: []string{"sensor-1", "sensor-2", "lamp"}, entities: []string{"Queue", "jobs/Subscriptions/jobs"}}
	in := fault.New(s, nil)
	t.Cleanup(in.Close)
	return in, s
}

func inject(t *testing.T, in *fault.Injector, text string) string {
	t.Helper()
	f, err := fault.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	id, err := in.Inject(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// wantHits checks how often the only fault took effect.
func wantHits(t *testing.T, in *fault.Injector, want int) {
	t.Helper()
	active := in.Active()
	if len(active) != 1 || active[0].Hits != want {
		t.Errorf("there are the faults %+v, want one with %d hits", active, want)
	}
}

func wantNone(t *testing.T, in *fault.Injector) {
	t.Helper()
	if active := in.Active(); len(active) != 0 {
		t.Errorf("there are the faults %+v, want none", active)
	}
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	sensor := hub.Target{DeviceID: "sensor-1"}
	for name, tc := range map[string]struct {
		fault   string
		op      hub.Operation
		target  hub.Target
		access  string // on an entity instead of op and target
		entity  string
		refused hub.Code // 0 for none
	}{
		"any operation":            {fault: "refuse,code=503", op: hub.OpD2C, target: sensor, refused: hub.CodeServiceUnavailable},
		"any access":               {fault: "refuse,code=503", access: "send", entity: "q", refused: hub.CodeServiceUnavailable},
		"operation":                {fault: "refuse,code=429,operation=c2d", op: hub.OpC2D, target: sensor, refused: hub.CodeThrottling},
		"another operation":        {fault: "refuse,code=429,operation=c2d", op: hub.OpD2C, target: sensor},
		"operation and access":     {fault: "refuse,code=429,operation=c2d", access: "send", entity: "q"},
		"device":                   {fault: "refuse,code=401,device=sensor-*", op: hub.OpConnect, target: sensor, refused: hub.CodeUnauthorized},
		"module of a device":       {fault: "refuse,code=401,device=sensor-*", op: hub.OpConnect, target: hub.Target{DeviceID: "sensor-1", ModuleID: "m"}, refused: hub.CodeUnauthorized},
		"another device":           {fault: "refuse,code=401,device=lamp", op: hub.OpConnect, target: sensor},
		"no device":                {fault: "refuse,code=401,device=*", op: hub.OpQuery},
		"device and access":        {fault: "refuse,code=401,device=*", access: "send", entity: "q"},
		"quota":                    {fault: "refuse,code=403", op: hub.OpD2C, refused: hub.CodeQuotaExceeded},
		"queue full":               {fault: "refuse,code=403004", op: hub.OpC2D, refused: hub.CodeMaxQueueDepthExceeded},
		"entity in any case":       {fault: "refuse,code=500,entity=q*", access: "receive", entity: "Queue", refused: hub.CodeServerError},
		"another entity":           {fault: "refuse,code=500,entity=q", access: "receive", entity: "Queue"},
		"entity, on the hub":       {fault: "refuse,code=500,entity=*", op: hub.OpD2C, target: sensor},
		"access of one kind":       {fault: "refuse,code=504,operation=send", access: "send", entity: "q", refused: hub.CodeGatewayTimeout},
		"access of another kind":   {fault: "refuse,code=504,operation=send", access: "receive", entity: "q"},
		"duplicate is no refusal":  {fault: "duplicate", op: hub.OpD2C, target: sensor},
		"cut is no refusal either": {fault: "cut", op: hub.OpD2C, target: sensor},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, _ := newInjector(t)
			id := inject(t, in, tc.fault)
			ask := func() error {
				switch tc.access {
				case fault.OpSend:
					return in.AdmitSend(tc.entity)
				case fault.OpReceive:
					return in.AdmitReceive(tc.entity)
				}
				return in.Admit(tc.op, tc.target, 0)
			}
			err := ask()
			if tc.refused == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, tc.refused) || !strings.Contains(err.Error(), "injected fault "+id) {
				t.Errorf("got %v, want %v", err, tc.refused)
			}
			wantHits(t, in, 1)
			if !in.Remove(id) || in.Remove(id) {
				t.Error("the fault is not removed once")
			}
			if err := ask(); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	inject(t, in, "refuse,code=429,retryAfter=3s")
	var e *hub.Error
	if err := in.Admit(hub.OpD2C, hub.Target{}, 0); !errors.As(err, &e) || e.RetryAfter != 3*time.Second {
		t.Errorf("got %v", err)
	}
}

func TestCountAndProbability(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	refused := func() (n int) {
		for range 1000 {
			if in.Admit(hub.OpD2C, hub.Target{}, 0) != nil {
				n++
			}
		}
		return n
	}
	inject(t, in, "refuse,code=429,count=3")
	if n := refused(); n != 3 {
		t.Errorf("%d were refused, want 3", n)
	}
	wantNone(t, in)
	inject(t, in, "refuse,code=429,probability=0.3,seed=5")
	first := refused()
	if first < 200 || first > 400 {
		t.Errorf("%d of 1000 were refused with a probability of 0.3", first)
	}
	in.Clear()
	inject(t, in, "refuse,code=429,probability=0.3,seed=5")
	if again := refused(); again != first {
		t.Errorf("%d and then %d were refused with the same seed", first, again)
	}
}

func TestAfterAndDuration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "refuse,code=429,after=10s,duration=5s")
		for _, step := range []struct {
			wait    time.Duration
			refused bool
		}{{0, false}, {10*time.Second - 1, false}, {1, true}, {5*time.Second - 1, true}, {1, false}} {
			time.Sleep(step.wait)
			synctest.Wait()
			if err := in.Admit(hub.OpD2C, hub.Target{}, 0); (err != nil) != step.refused {
				t.Errorf("%v later: %v", step.wait, err)
			}
		}
		wantNone(t, in)
	})
}

func TestRepeat(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	sensor := hub.Target{DeviceID: "sensor-1"}
	if in.Repeat(hub.OpD2C, sensor) || in.RepeatEntity("q") {
		t.Error("repeated without a fault")
	}
	inject(t, in, "duplicate,operation=d2c,device=sensor-*")
	if !in.Repeat(hub.OpD2C, sensor) {
		t.Error("not repeated")
	}
	if in.Repeat(hub.OpC2D, sensor) || in.Repeat(hub.OpD2C, hub.Target{DeviceID: "lamp"}) || in.RepeatEntity("q") {
		t.Error("something else is repeated")
	}
	in.Clear()
	inject(t, in, "duplicate,entity=queue,count=1")
	if in.Repeat(hub.OpC2D, sensor) || in.RepeatEntity("other") {
		t.Error("something else is repeated")
	}
	if !in.RepeatEntity("Queue") || in.RepeatEntity("Queue") {
		t.Error("not repeated once")
	}
	inject(t, in, "duplicate")
	if !in.Repeat(hub.OpD2C, sensor) || !in.Repeat(hub.OpC2D, sensor) || !in.RepeatEntity("Queue") {
		t.Error("not everything is repeated")
	}
}

func TestOverAtOnce(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]marks{
		"disconnect,device=sensor-*":                   {disconnects: []string{"sensor-1", "sensor-2"}},
		"disconnect":                                   {disconnects: []string{"sensor-1", "sensor-2", "lamp"}},
		"expire-locks":                                 {expired: []string{"sensor-1", "sensor-2", "lamp"}, locked: []string{"Queue", "jobs/Subscriptions/jobs"}},
		"expire-locks,device=lamp":                     {expired: []string{"lamp"}},
		"expire-locks,entity=JOBS/subscriptions/*":     {locked: []string{"jobs/Subscriptions/jobs"}},
		"expire-locks,device=another":                  {},
		"expire-locks,entity=queue,after=1m":           {locked: []string{"Queue"}},
		"disconnect,device=sensor-2,after=10s":         {disconnects: []string{"sensor-2"}},
		"expire-locks,entity=jobs/subscriptions/other": {},
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				in, s := newInjector(t)
				inject(t, in, text)
				if strings.Contains(text, "after") {
					wantHits(t, in, 0)
					time.Sleep(time.Minute)
					synctest.Wait()
				}
				wantNone(t, in)
				for what, names := range map[string][2][]string{
					"disconnected": {s.disconnects, want.disconnects}, "devices": {s.expired, want.expired}, "entities": {s.locked, want.locked},
				} {
					if strings.Join(names[0], " ") != strings.Join(names[1], " ") {
						t.Errorf("%s: got %q, want %q", what, names[0], names[1])
					}
				}
			})
		})
	}
}

func TestEndsBeforeItBegins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, s := newInjector(t)
		in.Remove(inject(t, in, "disconnect,after=1s"))
		time.Sleep(time.Minute)
		if s.disconnects != nil {
			t.Error("a fault took effect that was removed before")
		}
	})
}

func TestBounds(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	if _, err := in.Inject(fault.Fault{Kind: "other"}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("invalid: %v", err)
	}
	for range 1000 {
		inject(t, in, "cut,device=d")
	}
	if _, err := in.Inject(fault.Fault{Kind: fault.Cut}); !errors.Is(err, fault.ErrTooMany) {
		t.Errorf("too many: %v", err)
	}
	if n := in.Clear(); n != 1000 {
		t.Errorf("%d were removed", n)
	}
	in.Close()
	if _, err := in.Inject(fault.Fault{Kind: fault.Cut}); !errors.Is(err, fault.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestBatchIsRefusedForOneOfItsParts(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	inject(t, in, "refuse,operation=registry,device=lamp,code=429")
	lamp, sensor := hub.Part{Target: hub.Target{DeviceID: "lamp"}}, hub.Part{Target: hub.Target{DeviceID: "sensor-1"}}
	if err := in.AdmitAll(hub.OpRegistry, []hub.Part{sensor, sensor}); err != nil {
		t.Error(err)
	}
	if err := in.AdmitAll(hub.OpRegistry, []hub.Part{sensor, lamp}); !errors.Is(err, hub.CodeThrottling) {
		t.Errorf("got %v", err)
	}
}
