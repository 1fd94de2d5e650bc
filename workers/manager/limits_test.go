package manager

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits    Limits
		perSecond float64
		problem   string
	}{
		"none":            {Limits{}, 0, ""},
		"free":            {Limits{TierF1, 0}, 1.667, ""},
		"one unit":        {Limits{TierS1, 1}, 1.667, ""},
		"many units":      {Limits{TierS2, 200}, 333.333, ""},
		"large":           {Limits{TierS3, 10}, 833.333, ""},
		"too many units":  {Limits{TierS3, 11}, 0, "1 to 10 units, not 11"},
		"two free units":  {Limits{TierF1, 2}, 0, "1 to 1 units"},
		"fewer than none": {Limits{TierS1, -1}, 0, "not -1"},
		"units alone":     {Limits{"", 2}, 0, "without a hub tier"},
		"an unknown tier": {Limits{"B1", 1}, 0, `"B1" is unknown`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.limits.Validate()
			if c.problem != "" {
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Errorf("got %v, want %q", err, c.problem)
				}
				return
			}
			if got := c.limits.perSecond(); err != nil || math.Abs(got-c.perSecond) > 0.001 {
				t.Errorf("got %v a second, %v; want %v", got, err, c.perSecond)
			}
		})
	}
}

func TestConcurrencyKeepsWithinThePatience(t *testing.T) {
	t.Parallel()
	for _, l := range []Limits{{TierS1, 1}, {TierS1, 7}, {TierS3, 1}, {TierS3, 10}} {
		perSecond := l.perSecond()
		if n := concurrency(perSecond); n < 2 || float64(n)/perSecond > maxPace.Seconds() {
			t.Errorf("%v: %d at a time would wait %.1f s for their turns", l, n, float64(n)/perSecond)
		}
	}
	if n := concurrency(0); n != 0 {
		t.Errorf("%d at a time without a limit", n)
	}
}

// hub counts the operations on it, by the second of their time.
type hub struct {
	calls []time.Time
	err   error
	keys  map[string]string // connection strings by device ID
}

func (h *hub) call() error {
	h.calls = append(h.calls, time.Now())
	return h.err
}

func (h *hub) EnsureDevice(_ context.Context, id string) (bool, error) {
	if err := h.call(); err != nil {
		return false, err
	}
	if _, exists := h.keys[id]; exists {
		return false, nil
	}
	h.keys[id] = "HostName=hub;DeviceId=" + id + ";SharedAccessKey=secret"
	return true, nil
}

func (h *hub) DeviceConnectionString(_ context.Context, id string) (string, error) {
	if err := h.call(); err != nil {
		return "", err
	}
	s, exists := h.keys[id]
	if !exists {
		return "", &job.Error{Kind: job.ErrNotFound}
	}
	return s, nil
}

func (h *hub) DeleteDevice(_ context.Context, id string) (bool, error) {
	if err := h.call(); err != nil {
		return false, err
	}
	_, existed := h.keys[id]
	delete(h.keys, id)
	return existed, nil
}

func (h *hub) SendCloudToDevice(context.Context, string, job.Message, time.Duration) error {
	return h.call()
}

func TestPaceSpreadsOperations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &hub{keys: make(map[string]string)}
		pace := newPaces(Limits{TierS1, 1})
		registry, sends := &pacedRegistry{h, pace.registry}, &pacedSender{h, pace.sends}
		start := time.Now()
		for range 10 {
			for _, err := range []error{
				second(registry.EnsureDevice(t.Context(), "d")),
				second(registry.DeviceConnectionString(t.Context(), "d")),
				second(registry.DeleteDevice(t.Context(), "d")),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		took := time.Since(start)
		if atLeast := 28 * time.Minute / 100; took < atLeast || took > 2*atLeast { // 30, of which 2 are a burst
			t.Errorf("30 operations took %s, an S1 hub allows 100 a minute", took)
		}
		if err := sends.SendCloudToDevice(t.Context(), "d", job.Message{}, 0); err != nil || time.Since(start) != took {
			t.Errorf("a send had to wait for the registry: %v", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestPaceGivesUpInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &hub{}
		s := &pacedSender{h, newPace(0.01)}
		if err := s.SendCloudToDevice(t.Context(), "d", job.Message{}, 0); err != nil {
			t.Fatal(err)
		}
		err := s.SendCloudToDevice(t.Context(), "d", job.Message{}, 0)
		if !errors.Is(err, job.ErrThrottled) || len(h.calls) != 1 {
			t.Errorf("got %v after %d calls", err, len(h.calls))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.SendCloudToDevice(ctx, "d", job.Message{}, 0); !errors.Is(err, context.Canceled) || errors.Is(err, job.ErrThrottled) {
			t.Errorf("got %v for a cancelled call", err)
		}
	})
}
