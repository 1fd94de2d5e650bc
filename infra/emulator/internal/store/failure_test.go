package store

import (
	"context"
	"errors"
	"slices"
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

// What gathers while the disk stalls is written in batches of a bounded size.
func TestBatchesAreBounded(t *testing.T) {
	t.Parallel()
	s := &file{wake: make(chan struct{}, 1), closed: true}
	value := make([]byte, maxBatch/4) // all share it
	sizes := []int{1, 2, 0, 2, 5, 1}
	for _, n := range sizes {
		c := change{}
		for range n {
			c.ops = append(c.ops, Put("k", value))
		}
		s.pending = append(s.pending, c)
	}
	var got []int
	for last := false; !last; {
		var batch []change
		batch, last = s.take()
		got = append(got, len(batch))
		if !last {
			<-s.wake // the next is called for
		}
	}
	if want := []int{4, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("batches of %v changes, want %v", got, want)
	}
}
