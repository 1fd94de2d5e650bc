package steps

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSimulateWaits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ given, want time.Duration }{
		"the job's time":                {2 * time.Second, 2 * time.Second},
		"the solver's, if none given":   {-1, time.Minute},
		"no time at all, if that's set": {0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				out, err := Simulate{StepTime: time.Minute}.Run(t.Context(), job.RunStepInput{Time: c.given})
				if err != nil || out.Status != job.StatusCompleted {
					t.Fatalf("got %+v, %v", out, err)
				}
				if took := time.Since(start); took != c.want {
					t.Errorf("took %s, want %s", took, c.want)
				}
			})
		})
	}
}

func TestSimulateEndsWithItsContext(t *testing.T) {
	t.Parallel()
	cause := errors.New("time is up")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 0, cause)
	defer cancel()
	if _, err := (Simulate{}).Run(ctx, job.RunStepInput{Time: time.Hour}); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
}

func TestSimulateAcceptsEverything(t *testing.T) {
	t.Parallel()
	if step, reason := (Simulate{}).Check([]string{"anything", "../at all"}); step != "" || reason != "" {
		t.Errorf("rejected %q: %s", step, reason)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		written string
		want    string
	}{
		"nothing":                    {"", ""},
		"short":                      {"a\nb\n", "a\nb\n"},
		"exactly full":               {strings.Repeat("x", MaxOutput), strings.Repeat("x", MaxOutput)},
		"one byte over":              {"y" + strings.Repeat("x", MaxOutput), "..." + strings.Repeat("x", MaxOutput-3)},
		"a character cut in two":     {"ä" + strings.Repeat("ä", MaxOutput/2), "..." + strings.Repeat("ä", MaxOutput/2-2)},
		"not UTF-8 to begin with":    {"a\xffb", "ab"},
		"a character begun and left": {"a\xc3", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out tail
			for _, b := range []byte(c.written) {
				_, _ = out.Write([]byte{b})
			}
			got := out.String()
			if got != c.want {
				t.Errorf("got %d bytes %.20q..., want %d bytes %.20q...", len(got), got, len(c.want), c.want)
			}
			if len(got) > MaxOutput || !utf8.ValidString(got) {
				t.Errorf("%d bytes, valid: %v", len(got), utf8.ValidString(got))
			}
		})
	}
}
