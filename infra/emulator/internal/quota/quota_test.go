package quota_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/quota"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, s store.Store, tier quota.Tier, units int) *quota.Gate {
	t.Helper()
	g, err := quota.Open(s, tier, units)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// passing counts the operations that pass in a row, up to a bound.
func passing(g *quota.Gate, op hub.Operation, bytes, bound int) (n int, refused error) {
	for n = range bound {
		if err := g.Admit(op, hub.Target{DeviceID: "d"}, bytes); err != nil {
			return n, err
		}
	}
	return bound, nil
}

func wantCode(t *testing.T, err error, code hub.Code) *hub.Error {
	t.Helper()
	var e *hub.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v, want %v", err, code)
	}
	return e
}

func wantUsed(t *testing.T, g *quota.Gate, want int64) {
	t.Helper()
	if used, _ := g.Used(); used != want {
		t.Errorf("%d messages are counted, want %d", used, want)
	}
}

// The clock stands still within a bubble of synctest, so exactly the burst of a
// minute passes.
func TestThrottles(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		tier  quota.Tier
		units int
		op    hub.Operation
		bytes int
		burst int
		wait  time.Duration // for the next one
	}{
		"registry on F1":           {quota.F1, 1, hub.OpRegistry, 0, 100, 600 * time.Millisecond},
		"registry on S1":           {quota.S1, 1, hub.OpRegistry, 0, 100, 600 * time.Millisecond},
		"registry on 3 units":      {quota.S2, 3, hub.OpRegistry, 0, 300, 200 * time.Millisecond},
		"registry on S3":           {quota.S3, 1, hub.OpRegistry, 0, 5000, 12 * time.Millisecond},
		"connections on 1 unit":    {quota.S1, 1, hub.OpConnect, 0, 100 * 60, 10 * time.Millisecond},
		"connections on 9 units":   {quota.S1, 9, hub.OpConnect, 0, 108 * 60, time.Second / 108},
		"telemetry on S2":          {quota.S2, 1, hub.OpD2C, 100, 120 * 60, time.Second / 120},
		"telemetry on B2":          {quota.B2, 1, hub.OpD2C, 100, 120 * 60, time.Second / 120},
		"to devices":               {quota.S1, 1, hub.OpC2D, 100, 100, 600 * time.Millisecond},
		"receiving over HTTPS":     {quota.S1, 1, hub.OpC2DReceive, 0, 1000, 60 * time.Millisecond},
		"queries":                  {quota.S1, 2, hub.OpQuery, 0, 40, 1500 * time.Millisecond},
		"small methods":            {quota.S1, 1, hub.OpMethod, 0, 40 * 60, 25 * time.Millisecond},
		"methods of 4 KB and more": {quota.S1, 1, hub.OpMethod, 4097, 20 * 60, 50 * time.Millisecond},
		"methods of 128 KB":        {quota.S2, 1, hub.OpMethod, 128 << 10, 480 * 60 / 128, 800 * time.Millisecond / 3},
		"twin reads, any units":    {quota.S1, 5, hub.OpTwinRead, 0, 100 * 60, 10 * time.Millisecond},
		"twin reads on 20 units":   {quota.S2, 20, hub.OpTwinRead, 0, 200 * 60, 5 * time.Millisecond},
		"twin updates on S3":       {quota.S3, 2, hub.OpTwinUpdate, 0, 500 * 60, 2 * time.Millisecond},
		"large twin updates":       {quota.S1, 1, hub.OpTwinUpdate, 9 << 10, 1000, 60 * time.Millisecond},
		"jobs":                     {quota.S1, 1, hub.OpJob, 0, 100, 600 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := open(t, store.Memory(), tc.tier, tc.units)
				n, err := passing(g, tc.op, tc.bytes, tc.burst+1)
				if n != tc.burst {
					t.Errorf("%d passed, want %d", n, tc.burst)
				}
				e := wantCode(t, err, hub.CodeThrottling)
				if diff := e.RetryAfter - tc.wait; diff < -time.Microsecond || diff > time.Microsecond {
					t.Errorf("to be tried again after %v, want %v", e.RetryAfter, tc.wait)
				}
				time.Sleep(e.RetryAfter + time.Microsecond)
				if n, _ := passing(g, tc.op, tc.bytes, 2); n != 1 {
					t.Errorf("%d passed after the wait, want 1", n)
				}
				time.Sleep(time.Hour)
				if n, _ := passing(g, tc.op, tc.bytes, tc.burst+1); n != tc.burst {
					t.Errorf("%d passed after an hour, want %d", n, tc.burst)
				}
			})
		})
	}
}

func TestOperationsDoNotShareThrottles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := open(t, store.Memory(), quota.S1, 1)
		passing(g, hub.OpRegistry, 0, 1000)
		if n, err := passing(g, hub.OpC2D, 1, 100); n != 100 {
			t.Error(err)
		}
	})
}

func TestWhatCounts(t *testing.T) {
	t.Parallel()
	type step struct {
		op     hub.Operation
		bytes  int
		answer int // bytes, or -1 for none that is metered
	}
	for name, tc := range map[string]struct {
		tier quota.Tier
		step step
		want int64
	}{
		"telemetry":              {quota.S1, step{hub.OpD2C, 4096, -1}, 1},
		"empty telemetry":        {quota.S1, step{hub.OpD2C, 0, -1}, 1},
		"large telemetry":        {quota.S1, step{hub.OpD2C, 4097, -1}, 2},
		"telemetry on F1":        {quota.F1, step{hub.OpD2C, 4096, -1}, 8},
		"to a device":            {quota.S1, step{hub.OpC2D, 6 << 10, -1}, 2},
		"method and response":    {quota.S1, step{hub.OpMethod, 6 << 10, 1 << 10}, 3},
		"response without body":  {quota.S1, step{hub.OpMethod, 4 << 10, 0}, 2},
		"twin read":              {quota.S1, step{hub.OpTwinRead, 0, 8 << 10}, 2},
		"twin that is not there": {quota.S1, step{hub.OpTwinRead, 0, -1}, 1},
		"twin update":            {quota.S1, step{hub.OpTwinUpdate, 12 << 10, -1}, 3},
		"query":                  {quota.S1, step{hub.OpQuery, 0, 9 << 10}, 3},
		"connection":             {quota.S1, step{hub.OpConnect, 0, -1}, 0},
		"registry":               {quota.S1, step{hub.OpRegistry, 5000, 5000}, 0},
		"receiving over HTTPS":   {quota.S1, step{hub.OpC2DReceive, 0, 100}, 0},
		"job":                    {quota.S1, step{hub.OpJob, 100, 100}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := open(t, store.Memory(), tc.tier, 1)
			if err := g.Admit(tc.step.op, hub.Target{DeviceID: "d"}, tc.step.bytes); err != nil {
				t.Fatal(err)
			}
			if tc.step.answer >= 0 {
				g.Meter(tc.step.op, hub.Target{DeviceID: "d"}, tc.step.answer)
			}
			wantUsed(t, g, tc.want)
		})
	}
}

func TestDailyQuota(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(23*time.Hour + 59*time.Minute) // bubbles begin at midnight UTC
		g := open(t, store.Memory(), quota.F1, 1)
		const half = 4000
		if n, err := passing(g, hub.OpD2C, 512, half); n != half {
			t.Fatal(err)
		}
		if err := g.Admit(hub.OpC2D, hub.Target{}, 512*(half-1)); err != nil {
			t.Fatal(err)
		}
		if err := g.Admit(hub.OpD2C, hub.Target{}, 513); !errors.Is(err, hub.CodeQuotaExceeded) {
			t.Errorf("more than what is left: %v", err)
		}
		if err := g.Admit(hub.OpD2C, hub.Target{}, 512); err != nil {
			t.Errorf("what is left: %v", err)
		}
		for _, op := range []hub.Operation{hub.OpD2C, hub.OpC2D, hub.OpMethod, hub.OpTwinRead, hub.OpTwinUpdate, hub.OpQuery} {
			wantCode(t, g.Admit(op, hub.Target{}, 0), hub.CodeQuotaExceeded)
		}
		for _, op := range []hub.Operation{hub.OpConnect, hub.OpRegistry, hub.OpC2DReceive, hub.OpJob} {
			if err := g.Admit(op, hub.Target{}, 0); err != nil {
				t.Errorf("%v counts against the quota: %v", op, err)
			}
		}
		time.Sleep(time.Minute)
		wantUsed(t, g, 0)
		if err := g.Admit(hub.OpD2C, hub.Target{}, 1); err != nil {
			t.Errorf("at midnight: %v", err)
		}
	})
}

func TestQuotaGrowsWithUnits(t *testing.T) {
	t.Parallel()
	for tier, want := range map[quota.Tier]int64{
		quota.S1: 3 * 400_000, quota.B1: 3 * 400_000, quota.S2: 3 * 6_000_000, quota.B2: 3 * 6_000_000,
		quota.S3: 3 * 300_000_000, quota.B3: 3 * 300_000_000,
	} {
		if _, got := open(t, store.Memory(), tier, 3).Used(); got != want {
			t.Errorf("3 units of %s have %d messages, want %d", tier, got, want)
		}
	}
}

func TestBasicTiersLackOperations(t *testing.T) {
	t.Parallel()
	g := open(t, store.Memory(), quota.B1, 1)
	for _, op := range []hub.Operation{hub.OpC2D, hub.OpC2DReceive, hub.OpMethod, hub.OpTwinRead, hub.OpTwinUpdate, hub.OpJob} {
		wantCode(t, g.Admit(op, hub.Target{}, 0), hub.CodeNotInTier)
	}
	for _, op := range []hub.Operation{hub.OpConnect, hub.OpD2C, hub.OpRegistry, hub.OpQuery} {
		if err := g.Admit(op, hub.Target{}, 0); err != nil {
			t.Errorf("%v: %v", op, err)
		}
	}
}

func TestCountOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := open(t, s, quota.S1, 1)
	for range 10 {
		if err := g.Admit(hub.OpD2C, hub.Target{}, 1); err != nil {
			t.Fatal(err)
		}
	}
	// An operation that is stored, so that clients may hear of it, is counted even
	// if the process is killed then.
	if err := store.Commit(s, store.Put("message", nil)); err != nil {
		t.Fatal(err)
	}
	killed := t.TempDir()
	if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{killed, dir} {
		s, err := store.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		wantUsed(t, open(t, s, quota.S1, 2), 10)
	}
}

func TestDamagedCount(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := store.Commit(s, store.Put("quota/today", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	if _, err := quota.Open(s, quota.S1, 1); err == nil || !strings.Contains(err.Error(), "stored count of messages") {
		t.Errorf("got %v", err)
	}
}

func TestTiersAndUnits(t *testing.T) {
	t.Parallel()
	for tier, most := range map[quota.Tier]int{"F1": 1, "S1": 200, "S2": 200, "S3": 10, "B1": 200, "B2": 200, "B3": 10} {
		for units, ok := range map[int]bool{-1: false, 0: false, 1: true, most: true, most + 1: false} {
			_, err := quota.Open(store.Memory(), tier, units)
			if (err == nil) != ok {
				t.Errorf("%d units of %s: %v", units, tier, err)
			}
		}
	}
	if tier, err := quota.ParseTier("s1"); tier != quota.S1 || err != nil {
		t.Errorf("s1 is read as %q, %v", tier, err)
	}
	for _, name := range []string{"", "S4", "GEN2"} {
		if _, err := quota.ParseTier(name); err == nil {
			t.Errorf("tier %q is known", name)
		}
		if _, err := quota.Open(store.Memory(), quota.Tier(name), 1); err == nil {
			t.Errorf("a hub of tier %q was opened", name)
		}
	}
}

// TestBatches are admitted in full or not at all.
func TestBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := open(t, store.Memory(), quota.F1, 1)
		registry := make([]hub.Part, 60) // of 100 a minute
		if err := g.AdmitAll(hub.OpRegistry, registry); err != nil {
			t.Fatal(err)
		}
		e := wantCode(t, g.AdmitAll(hub.OpRegistry, registry), hub.CodeThrottling)
		if diff := e.RetryAfter - 12*time.Second; diff < -time.Microsecond || diff > time.Microsecond {
			t.Errorf("to be tried again after %v, want 12 s: until there is room for all", e.RetryAfter)
		}
		if n, _ := passing(g, hub.OpRegistry, 0, 100); n != 40 {
			t.Errorf("%d single operations passed, want the 40 that the batch left", n)
		}
		telemetry := []hub.Part{{Bytes: 512}, {Bytes: 513}, {}}
		if err := g.AdmitAll(hub.OpD2C, telemetry); err != nil {
			t.Fatal(err)
		}
		wantUsed(t, g, 4)
		huge := []hub.Part{{Bytes: 1}, {Bytes: 8000 * 512}}
		wantCode(t, g.AdmitAll(hub.OpD2C, huge), hub.CodeQuotaExceeded)
		wantUsed(t, g, 4)
	})
}
