package store

import (
	"context"
	"errors"
	"testing"
)

func TestFailedStoreStaysFailed(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := Update(t.Context(), s, Put("k", nil)); err != nil {
		t.Fatal(err)
	}
	// The disk goes away under the store.
	if err := s.(*file).log.close(); err != nil {
		t.Fatal(err)
	}
	first := Update(context.Background(), s, Put("k", []byte("v")))
	if first == nil {
		t.Fatal("a change was acknowledged that can't be on the disk")
	}
	if again := Commit(s, Put("l", nil)); !errors.Is(again, first) {
		t.Errorf("second change: %v, want %v", again, first)
	}
	if told := <-s.Failed(); !errors.Is(told, first) {
		t.Errorf("told: %v, want %v", told, first)
	}
}
