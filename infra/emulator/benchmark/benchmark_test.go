package main

import (
	"context"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// program is the emulator, built once for all tests.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "emulator-benchmark-test-")
	if err != nil {
		panic(err)
	}
	if program, err = buildEmulator(context.Background(), dir); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	if err := goleak.Find(); code == 0 && err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
		code = 1
	}
	os.Exit(code)
}

func running(t *testing.T, onDisk bool) *emulatorServer {
	t.Helper()
	e, err := startEmulator(t.Context(), program, t.TempDir(), onDisk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.stop(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// The loads themselves, with few messages.
func TestLoads(t *testing.T) {
	t.Parallel()
	l := load{messages: 400, connections: 2, window: 20, payload: make([]byte, 100)}
	for name, onDisk := range map[string]bool{"memory": false, "disk": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := running(t, onDisk)
			if err := e.register(t.Context(), l.connections); err != nil {
				t.Fatal(err)
			}
			if took, err := e.mqtt.publish(t.Context(), l); err != nil || took <= 0 {
				t.Errorf("telemetry: %v, error %v", took, err)
			}
			for range 2 { // the second finds the queue empty
				if took, err := e.amqp.exchange(t.Context(), l); err != nil || took <= 0 {
					t.Errorf("queue: %v, error %v", took, err)
				}
			}
		})
	}
}

func TestMissingBrokerIsLeftOut(t *testing.T) {
	t.Parallel()
	s := scenario{name: "s", rival: func(ctx context.Context, _ string, _ bool) (*server, error) {
		_, err := command(ctx, "no-such-broker")
		return nil, err
	}}
	r, err := compare(t.Context(), program, s, "no-such-broker", 1, &strings.Builder{})
	if err != nil || r.Skipped != "no-such-broker is not installed" {
		t.Errorf("result %+v, error %v", r, err)
	}
	var out strings.Builder
	if err := table(&out, []result{r}); err != nil || !strings.Contains(out.String(), "skipped: no-such-broker is not installed") {
		t.Errorf("table %q, error %v", out.String(), err)
	}
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	t.Parallel()
	var r result
	r.fill([]sample{{100, 1}, {300, 2}, {200, 3}}, []sample{{50, 1}, {100, 1}, {200, 2}})
	if r.RateRatio != 2 || r.Rate != 200 || r.RivalRate != 100 || r.CPURatio != 1.5 || r.Rounds != 3 {
		t.Errorf("result: %+v", r)
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 5}, 5}} {
		if got := median(tt.in); got != tt.want {
			t.Errorf("median of %v: %v, want %v", tt.in, got, tt.want)
		}
	}
}
