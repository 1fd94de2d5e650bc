package store

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"reflect"
	"testing"
)

// written is a segment of the log with batches of different sizes.
type written struct {
	bytes  []byte
	at     []int               // where each batch begins
	states []map[string][]byte // after so many batches
}

func writeSegment(f *testing.F, batches int) written {
	f.Helper()
	dir := f.TempDir()
	s, err := createSegment(dir, 1, 1)
	if err != nil {
		f.Fatal(err)
	}
	w := written{states: []map[string][]byte{{}}}
	t := newTable()
	for i := range batches {
		batch := []change{{ops: []Op{
			Put(fmt.Sprintf("k/%d", i), bytes.Repeat([]byte{byte(i)}, 300*i)),
			Delete(fmt.Sprintf("k/%d", i-2)),
		}}}
		w.at = append(w.at, int(s.end))
		if err := s.append(batch); err != nil {
			f.Fatal(err)
		}
		for _, op := range batch[0].ops {
			t.apply(op)
		}
		w.states = append(w.states, state(t))
	}
	if err := s.close(); err != nil {
		f.Fatal(err)
	}
	if w.bytes, err = os.ReadFile(segmentPath(dir, 1)); err != nil {
		f.Fatal(err)
	}
	return w
}

func state(t *table) map[string][]byte {
	all := make(map[string][]byte)
	for _, group := range t.groups {
		maps.Copy(all, group)
	}
	return all
}

// intact reports whether a batch can still be read where it was written.
func (w written) intact(b []byte, batch int) bool {
	s := segmentReader{b: b, next: uint64(batch) + 1, table: newTable()}
	if w.at[batch] >= len(b) {
		return false
	}
	_, err := s.record(w.at[batch])
	return err == nil
}

// FuzzRecovery reads a segment that was overwritten in one place and cut off in
// another. What is read is what was written, or the damage is reported: no batch
// is left out that can still be read.
func FuzzRecovery(f *testing.F) {
	const batches = 8
	w := writeSegment(f, batches)
	last := uint32(w.at[batches-1])
	f.Add(uint32(0), uint32(1<<31), []byte{}, true)
	f.Add(last+100, uint32(1<<31), []byte{1}, true)
	f.Add(last/sectorSize*sectorSize+sectorSize, uint32(1<<31), make([]byte, sectorSize), true)
	f.Add(uint32(w.at[3]), uint32(1<<31), make([]byte, 1024), true)
	f.Add(uint32(w.at[7]), uint32(1<<31), make([]byte, 4096), false)
	f.Add(uint32(0), last+1, []byte{}, true)
	f.Fuzz(func(t *testing.T, at, size uint32, patch []byte, final bool) {
		b := bytes.Clone(w.bytes)
		if int64(at) < int64(len(b)) {
			copy(b[at:], patch)
		}
		b = b[:min(int64(size), int64(len(b)))]
		s := segmentReader{b: b, next: 1, last: final, table: newTable()}
		err := s.read(1)
		if bytes.Equal(b, w.bytes) && err != nil {
			t.Fatalf("a log in order: %v", err)
		}
		if err != nil {
			return
		}
		found := int(s.next) - 1
		if found > batches || !reflect.DeepEqual(state(s.table), w.states[found]) {
			t.Fatalf("%d batches, and another state than was written", found)
		}
		for batch := found; batch < batches; batch++ {
			if w.intact(b, batch) {
				t.Errorf("%d batches were read without an error, and batch %d is left out", found, batch+1)
			}
		}
	})
}

// FuzzBatch reads any payload; what can be read is the same when it is written
// again.
func FuzzBatch(f *testing.F) {
	f.Add(appendBatch(nil, []change{{ops: []Op{Put("a", []byte("b")), Put("c", nil), Delete("d"), DeletePrefix("e/")}}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{1, kindPut, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, payload []byte) {
		read := func(b []byte) (ops []Op, err error) {
			err = readBatch(b, func(op Op) { ops = append(ops, op) })
			return ops, err
		}
		ops, err := read(payload)
		if len(ops) > len(payload) {
			t.Fatalf("%d changes in %d bytes", len(ops), len(payload))
		}
		if err != nil {
			return
		}
		again, err := read(appendBatch(nil, []change{{ops: ops}}))
		if err != nil || !reflect.DeepEqual(again, ops) {
			t.Errorf("%+v became %+v: %v", ops, again, err)
		}
	})
}
