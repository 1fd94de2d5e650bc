package boot

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// recorder makes parts that write down when they start and stop.
type recorder struct{ events []string }

func (r *recorder) part(name string, startErr, stopErr error) Part {
	return Part{Name: name, Start: func(context.Context) (func() error, error) {
		if startErr != nil {
			return nil, startErr
		}
		r.events = append(r.events, "start "+name)
		return func() error {
			r.events = append(r.events, "stop "+name)
			return stopErr
		}, nil
	}}
}

func TestStartsInOrderAndStopsInReverse(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	var rec recorder
	running := New(&out)
	nothingToStop := Part{Name: "check", Start: func(context.Context) (func() error, error) { return nil, nil }}
	if err := running.Start(t.Context(), rec.part("a", nil, nil), nothingToStop, rec.part("b", nil, nil)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := running.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"start a", "start b", "stop b", "stop a"}; !slices.Equal(rec.events, want) {
		t.Errorf("events %q, want %q", rec.events, want)
	}
	line := regexp.MustCompile(`^starting (a|check|b) \.\.\. ready \(\d+\.\d s\)$`)
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %q", len(lines), out.String())
	}
	for _, got := range lines {
		if !line.MatchString(got) {
			t.Errorf("progress line %q", got)
		}
	}
}

func TestFailedStart(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	var rec recorder
	cause := errors.New("no room")
	running := New(&out)
	err := running.Start(t.Context(), rec.part("a", nil, nil), rec.part("b", cause, nil), rec.part("c", nil, nil))
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), "start b") {
		t.Errorf("error %v", err)
	}
	if err := running.Close(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"start a", "stop a"}; !slices.Equal(rec.events, want) {
		t.Errorf("events %q, want %q", rec.events, want)
	}
	if !strings.HasSuffix(out.String(), "starting b ... failed\n") {
		t.Errorf("progress %q", out.String())
	}
}

func TestStopGoesOnAfterAFailure(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	var rec recorder
	stuck := errors.New("stuck")
	running := New(&out)
	if err := running.Start(t.Context(), rec.part("a", nil, nil), rec.part("b", nil, stuck)); err != nil {
		t.Fatal(err)
	}
	if err := running.Close(); !errors.Is(err, stuck) || !strings.Contains(err.Error(), "stop b") {
		t.Errorf("error %v", err)
	}
	if want := []string{"start a", "start b", "stop b", "stop a"}; !slices.Equal(rec.events, want) {
		t.Errorf("events %q, want %q", rec.events, want)
	}
}

func TestEndedContextStartsNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out strings.Builder
	var rec recorder
	if err := New(&out).Start(ctx, rec.part("a", nil, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if len(rec.events) != 0 || out.Len() != 0 {
		t.Errorf("events %q, progress %q", rec.events, out.String())
	}
}
