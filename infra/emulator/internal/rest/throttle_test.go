package rest_test

import (
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// gate refuses what it has an error for.
type gate map[hub.Operation]error

func (g gate) Admit(op hub.Operation, _ hub.Target, _ int) error { return g[op] }
func (g gate) AdmitAll(op hub.Operation, _ []hub.Part) error     { return g[op] }
func (gate) Repeat(hub.Operation, hub.Target) bool               { return false }

// TestThrottled asks for what the gate refuses, and reads when to come back.
func TestThrottled(t *testing.T) {
	t.Parallel()
	f := newFixtureGated(t, gate{
		hub.OpC2DReceive: &hub.Error{Code: hub.CodeThrottling, Message: "too fast", TrackingID: "t", RetryAfter: 1500 * time.Millisecond},
		hub.OpD2C:        &hub.Error{Code: hub.CodeQuotaExceeded, Message: "too much", TrackingID: "t"},
	})
	f.add("d")
	for _, tt := range []struct {
		method, path, body string
		want               hub.Code
		retryAfter         string
	}{
		{"GET", deviceBound, "", hub.CodeThrottling, "2"},
		{"POST", events, "x", hub.CodeQuotaExceeded, ""},
	} {
		a := f.call(tt.method, tt.path, tt.body)
		expectFailure(t, a, tt.want)
		if got := a.header.Get("Retry-After"); got != tt.retryAfter {
			t.Errorf("%s %s: Retry-After %q, want %q", tt.method, tt.path, got, tt.retryAfter)
		}
	}
}
