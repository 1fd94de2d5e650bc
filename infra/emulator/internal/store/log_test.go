package store_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

const sector = 512

// afterKill copies the directory as another process would find it if this one
// were killed now.
func afterKill(t *testing.T, dir string) string {
	t.Helper()
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return other
}

func logFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "state-*.log"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// record is where a batch is in the only file of a log.
type record struct{ from, to int }

// records finds the batches of a log by the headers as they are documented.
func records(t *testing.T, log []byte) []record {
	t.Helper()
	var all []record
	for at := sector; string(log[at:at+4]) == "rec1"; {
		n := 32 + int(binary.BigEndian.Uint32(log[at+4:]))
		all = append(all, record{at, at + n})
		at += n
	}
	return all
}

// killedAfter writes batches of different sizes and returns the directory as a
// kill would leave it, with the file of the log and the batches in it.
func killedAfter(t *testing.T, batches int) (dir, log string, found []record) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir)
	for i := range batches {
		update(t, s, store.Put(fmt.Sprintf("k/%d", i), make([]byte, i*300)))
	}
	dir = afterKill(t, dir)
	files := logFiles(t, dir)
	if len(files) != 1 {
		t.Fatalf("%d files of the log", len(files))
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if found = records(t, b); len(found) != batches {
		t.Fatalf("%d batches in the log, want %d", len(found), batches)
	}
	return dir, files[0], found
}

// altered copies a directory with one file altered.
func altered(t *testing.T, dir, file string, alter func([]byte) []byte) string {
	t.Helper()
	dir = afterKill(t, dir)
	path := filepath.Join(dir, filepath.Base(file))
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, alter(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func keys(t *testing.T, dir string) int {
	t.Helper()
	s := open(t, dir)
	n := strings.Count(contents(t, s, "k/"), "=")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return n
}

func mustBeDamaged(t *testing.T, what, dir string) {
	t.Helper()
	s, err := store.Open(dir)
	if !errors.Is(err, store.ErrDamaged) {
		t.Errorf("%s: %v", what, err)
	}
	if err == nil {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLogIsReadAfterKill(t *testing.T) {
	t.Parallel()
	dir, log, _ := killedAfter(t, 10)
	if n := keys(t, dir); n != 10 {
		t.Errorf("%d keys of 10", n)
	}
	if _, err := os.Stat(log); err == nil {
		t.Error("the log is still there after it was read")
	}
	if n := keys(t, dir); n != 10 {
		t.Errorf("%d keys of 10 at the second opening", n)
	}
}

// Whatever byte of an acknowledged batch changes, it is reported, the last batch
// included.
func TestChangedByteOfLogIsReported(t *testing.T) {
	t.Parallel()
	dir, log, batches := killedAfter(t, 6)
	end := batches[len(batches)-1].to
	rnd := rand.New(rand.NewPCG(1, 2))
	places := []int{0, 8, 16, 24, batches[5].from, batches[5].from + 4, batches[5].from + 16, batches[5].from + 31, end - 1}
	for range 30 {
		places = append(places, sector+rnd.IntN(end-sector))
	}
	for _, at := range places {
		dir := altered(t, dir, log, func(b []byte) []byte {
			b[at] ^= byte(1 + rnd.IntN(255))
			return b
		})
		mustBeDamaged(t, fmt.Sprintf("byte %d of %d", at, end), dir)
	}
}

func TestCutOffLogIsReported(t *testing.T) {
	t.Parallel()
	dir, log, batches := killedAfter(t, 6)
	info, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{0, 100, sector, int64(batches[0].to), int64(batches[5].from), int64(batches[5].to), info.Size() - 1} {
		mustBeDamaged(t, fmt.Sprint("cut off after ", n), altered(t, dir, log, func(b []byte) []byte { return b[:n] }))
	}
}

func TestMissingLogIsReported(t *testing.T) {
	t.Parallel()
	dir, log, _ := killedAfter(t, 2)
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	mustBeDamaged(t, "log is missing", dir)
}

// The log without the state file is what is left of a state, and no empty one.
func TestMissingStateFileIsReported(t *testing.T) {
	t.Parallel()
	dir, log, _ := killedAfter(t, 2)
	if err := os.Remove(filepath.Join(dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	mustBeDamaged(t, "state file is missing", dir)
	if _, err := os.Stat(log); err != nil {
		t.Errorf("and the log: %v", err)
	}
}

// The name of the directory is no pattern: a file of the log that isn't found
// isn't removed, and is read as part of a later log.
func TestDirectoryNameIsNoPattern(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data [1]")
	s := open(t, dir)
	for range 18 { // two checkpoints
		update(t, s, store.Put("k", make([]byte, 1<<20)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "state.db" {
			t.Errorf("left after Close: %s", e.Name())
		}
	}
}

// A key that the state file can't take is refused before it is in the log, where
// it would be in the way of every start.
func TestImpossibleKeyIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	var results []string // only touched by the goroutine that calls done, then after Update
	for _, key := range []string{"a", "", strings.Repeat("k", 32_768), strings.Repeat("k", 32_769), "b"} {
		s.Submit(func(err error) { results = append(results, fmt.Sprint(errors.Is(err, store.ErrKey))) }, store.Put("with", nil), store.Put(key, nil))
	}
	update(t, s, store.Delete("with"), store.DeletePrefix(""), store.Put("c", nil))
	if got := strings.Join(results, " "); got != "false true false true false" {
		t.Errorf("refused: %s", got)
	}
	for _, dir := range []string{afterKill(t, dir), dir} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, open(t, dir), ""); got != "c=" {
			t.Errorf("contents: %q", got)
		}
	}
}

// A loss of power may leave any of the sectors of the last batch unwritten. It
// can't have been acknowledged; all batches before it were.
func TestUnfinishedBatchIsLeftOut(t *testing.T) {
	t.Parallel()
	dir, log, batches := killedAfter(t, 8)
	last := batches[7]
	wipe := func(b []byte, from int) []byte {
		clear(b[max(from, last.from):min(from/sector*sector+sector, last.to)])
		return b
	}
	for from := last.from; from < last.to; from = from/sector*sector + sector {
		dir := altered(t, dir, log, func(b []byte) []byte { return wipe(b, from) })
		if n := keys(t, dir); n != 7 {
			t.Errorf("without sector %d: %d keys, want 7", from, n)
		}
	}
	dir7 := altered(t, dir, log, func(b []byte) []byte { clear(b[last.from:]); return b })
	if n := keys(t, dir7); n != 7 {
		t.Errorf("without the batch: %d keys, want 7", n)
	}
}

// A batch that another one follows was acknowledged.
func TestWipedSectorWithinLogIsReported(t *testing.T) {
	t.Parallel()
	dir, log, batches := killedAfter(t, 8)
	for _, r := range batches[1:7] {
		for from := r.from; from < r.to; from = from/sector*sector + sector {
			dir := altered(t, dir, log, func(b []byte) []byte {
				clear(b[from:min(from/sector*sector+sector, r.to)])
				return b
			})
			mustBeDamaged(t, fmt.Sprint("wiped sector at ", from), dir)
		}
	}
}

// A directory that was closed has all in the state file, in the format that it
// always had.
func TestClosedDirectoryHasNoLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	version := func() string {
		db, err := bbolt.Open(filepath.Join(afterKill(t, dir), "state.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var v string
		err = db.View(func(tx *bbolt.Tx) error {
			v = string(tx.Bucket([]byte("format")).Get([]byte("version")))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	s := open(t, dir)
	if v := version(); v != "hubjobs emulator state 1" {
		t.Errorf("format before the first change: %q", v)
	}
	update(t, s, store.Put("k", []byte("v")))
	if v := version(); v != "hubjobs emulator state 1 with log" {
		t.Errorf("format with a log: %q", v)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if v := version(); v != "hubjobs emulator state 1" {
		t.Errorf("format after Close: %q", v)
	}
	if files := logFiles(t, dir); len(files) > 0 {
		t.Errorf("left: %q", files)
	}
	if got := contents(t, open(t, dir), ""); got != "k=v" {
		t.Errorf("contents: %q", got)
	}
}

// Random changes over several checkpoints, compared with a map: while they are
// made, after kills, and after Close. The log stays within its bounds.
func TestCheckpointsLoseNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newModel(t)
	m.open(dir)
	for _, restart := range []func(){
		func() { dir = afterKill(t, dir); m.open(dir) },
		func() { m.close(); m.open(dir) },
	} {
		for i := range 1500 {
			m.change()
			switch {
			case i%300 == 0:
				m.check()
			case i%7 == 0:
				m.settle() // so that there are many batches
			}
		}
		m.settle()
		if n := len(logFiles(t, dir)); n > 2 {
			t.Errorf("%d files of the log", n)
		}
		restart()
		m.check()
	}
}

// model is a store beside a map with the same contents.
type model struct {
	t     *testing.T
	rnd   *rand.Rand
	store store.Store
	want  map[string]string
}

func newModel(t *testing.T) *model {
	return &model{t: t, rnd: rand.New(rand.NewPCG(3, 4)), want: make(map[string]string)}
}

func (m *model) open(dir string) { m.store = open(m.t, dir) }

func (m *model) close() {
	if err := m.store.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// settle waits until all changes are durable.
func (m *model) settle() { update(m.t, m.store) }

func (m *model) key() string {
	return fmt.Sprintf("%c/%d/%d", 'a'+rune(m.rnd.IntN(3)), m.rnd.IntN(12), m.rnd.IntN(40))
}

func (m *model) change() {
	var ops []store.Op
	for range 1 + m.rnd.IntN(4) {
		key := m.key()
		switch n := m.rnd.IntN(100); {
		case n == 0:
			prefix := key[:1+m.rnd.IntN(len(key)-1)]
			maps.DeleteFunc(m.want, func(k, _ string) bool { return strings.HasPrefix(k, prefix) })
			ops = append(ops, store.DeletePrefix(prefix))
		case n < 30:
			delete(m.want, key)
			ops = append(ops, store.Delete(key))
		default:
			value := strings.Repeat(fmt.Sprint(n), 1+m.rnd.IntN(8000))
			m.want[key] = value
			ops = append(ops, store.Put(key, []byte(value)))
		}
	}
	m.store.Submit(nil, ops...)
}

func (m *model) check() {
	m.t.Helper()
	m.settle()
	for _, prefix := range []string{"", "a/", "b/1", "c/3/", "b/7/1"} {
		var got, want []string
		err := m.store.Load(prefix, func(k string, v []byte) error {
			got = append(got, k+"="+string(v))
			return nil
		})
		if err != nil {
			m.t.Fatal(err)
		}
		for _, k := range slices.Sorted(maps.Keys(m.want)) {
			if strings.HasPrefix(k, prefix) {
				want = append(want, k+"="+m.want[k])
			}
		}
		if !slices.Equal(got, want) {
			m.t.Fatalf("prefix %q: %d keys that differ from the %d that should be there", prefix, len(got), len(want))
		}
	}
}
