package hub_test

import (
	"errors"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// TestKept keeps state from session to session of the same identity.
func TestKept(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	if _, err := h.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: "m"}); err != nil {
		t.Fatal(err)
	}
	first := connect(t, h, "d")
	if err := first.Keep([]byte("state")); err != nil {
		t.Fatal(err)
	}
	m, err := h.Connect(t.Context(), "d", hub.ConnectOptions{ModuleID: "m"})
	if err != nil {
		t.Fatal(err)
	}
	if m.Kept() != nil {
		t.Errorf("module has %q", m.Kept())
	}
	second := connect(t, h, "d")
	if err := first.Keep([]byte("late")); !errors.Is(err, hub.CodeConnectionReplaced) {
		t.Errorf("Keep of a session that has ended: %v", err)
	}
	check(t, "kept", string(second.Kept()), "state")
	if err := second.Keep(nil); err != nil {
		t.Fatal(err)
	}
	if second.Kept() != nil {
		t.Errorf("%q after it was removed", second.Kept())
	}
	if err := h.DeleteModule(t.Context(), m.Target(), hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	if err := m.Keep([]byte("x")); !errors.Is(err, hub.CodeModuleNotFound) {
		t.Errorf("Keep of a module that was deleted: %v", err)
	}
}

// TestOnEnd hears of the end of a session once, with the reason.
func TestOnEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	var reasons []error
	s, err := h.Connect(t.Context(), "d", hub.ConnectOptions{OnEnd: func(err error) { reasons = append(reasons, err) }})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, h, "d")
	s.Close()
	if len(reasons) != 1 || !errors.Is(reasons[0], hub.CodeConnectionReplaced) {
		t.Errorf("reasons: %v", reasons)
	}
}
