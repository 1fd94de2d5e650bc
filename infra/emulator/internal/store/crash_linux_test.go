//go:build amd64 || arm64

package store_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

const crashWriter = "STORE_TEST_CRASH_WRITER"

func init() {
	if setting := os.Getenv(crashWriter); setting != "" {
		var generation uint64
		var dir string
		if _, err := fmt.Sscanf(setting, "%d %s", &generation, &dir); err != nil {
			panic(err)
		}
		if err := writeChanges(dir, generation); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(0)
	}
}

// crashChanges is how many changes a writer makes: enough for several
// checkpoints.
const crashChanges = 60

// changes are those of a generation of the writer: some messages come, some go,
// and some come again under the key that they had.
func changes(generation uint64) [][]store.Op {
	rnd := rand.New(rand.NewPCG(5, generation))
	all := make([][]store.Op, crashChanges)
	for i := range all {
		name := fmt.Sprintf("%d.%d", generation, i)
		all[i] = []store.Op{
			store.Put(fmt.Sprintf("q/1/%d", rnd.IntN(30)), bytes.Repeat([]byte(name), 1+rnd.IntN(800))),
			store.Delete(fmt.Sprintf("q/1/%d", rnd.IntN(30))),
			store.Put("last", []byte(name)),
		}
		if rnd.IntN(10) == 0 {
			all[i] = append(all[i], store.DeletePrefix("q/1/1"))
		}
	}
	return all
}

// writeChanges submits the changes in groups, and says how many of them were
// acknowledged whenever one is.
func writeChanges(dir string, generation uint64) error {
	s, err := store.OpenSmall(dir)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(6, generation))
	var group sync.WaitGroup
	wait := 0
	for i, ops := range changes(generation) {
		group.Add(1)
		s.Submit(func(err error) {
			defer group.Done()
			if err == nil {
				_, err = fmt.Println(i + 1)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}, ops...)
		if wait--; wait <= 0 {
			group.Wait()
			wait = rnd.IntN(4)
		}
	}
	group.Wait()
	return s.Close()
}

// after returns the contents of the store after each of the changes, as contents
// shows them, by how many there were.
func after(before map[string]string, all [][]store.Op) []map[string]string {
	states := []map[string]string{before}
	now := maps.Clone(before)
	for _, ops := range all {
		for _, op := range ops {
			switch {
			case op.Prefix:
				maps.DeleteFunc(now, func(key, _ string) bool { return strings.HasPrefix(key, op.Key) })
			case op.Value == nil:
				delete(now, op.Key)
			default:
				now[op.Key] = string(op.Value)
			}
		}
		states = append(states, maps.Clone(now))
	}
	return states
}

// disk is a directory as a process sees it, or as a loss of power leaves it.
type disk struct {
	names map[string]int
	files map[int]content
}

// content is that of a file, with zeros behind the data.
type content struct {
	data []byte
	size int64
}

// readFiles returns the files in a directory by name.
func readFiles(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if err == nil {
			files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (d disk) clone() disk {
	c := disk{names: maps.Clone(d.names), files: make(map[int]content, len(d.files))}
	for file, b := range d.files {
		c.files[file] = content{bytes.Clone(b.data), b.size}
	}
	return c
}

func (d disk) apply(e event) {
	f := d.files[e.file]
	switch e.kind {
	case eventWrite:
		end := e.at + int64(len(e.data))
		f.size = max(f.size, end)
		f.data = append(f.data, make([]byte, max(0, end-int64(len(f.data))))...)
		copy(f.data[e.at:], e.data)
	case eventResize:
		f.size = e.at
		f.data = f.data[:min(f.size, int64(len(f.data)))]
	case eventNames:
		clear(d.names)
		maps.Copy(d.names, e.names)
		return
	}
	d.files[e.file] = f
}

// write makes a directory of it.
func (d disk) write(dir string) error {
	for name, file := range d.names {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, d.files[file].data, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(path, d.files[file].size); err != nil {
			return err
		}
	}
	return nil
}

// crashes finds what a crash leaves after each of the events.
type crashes struct {
	rnd     *rand.Rand
	now     disk
	durable disk    // what a loss of power can't take
	since   []event // what it can
	acked   int
	// segments are all names that there were.
	segments map[string]int
}

// step applies an event, and reports whether a crash leaves something else than
// before.
func (c *crashes) step(t *testing.T, e event) {
	t.Helper()
	c.now.apply(e)
	switch e.kind {
	case eventSaid:
		if _, err := fmt.Sscan(string(e.data), &c.acked); err != nil {
			t.Fatal(err)
		}
	case eventSync:
		c.settle(func(s event) bool { return s.file == e.file && s.kind != eventNames })
	case eventSyncNames:
		c.settle(func(s event) bool { return s.kind == eventNames })
	default:
		c.since = append(c.since, e)
	}
	maps.Copy(c.segments, e.names)
}

// settle makes events durable.
func (c *crashes) settle(synced func(event) bool) {
	var left []event
	for _, e := range c.since {
		if synced(e) {
			c.durable.apply(e)
		} else {
			left = append(left, e)
		}
	}
	c.since = left
}

// powerLoss returns what a loss of power may leave now: of names those of some
// moment since they were synced, and of files any of the sectors that were written
// since.
func (c *crashes) powerLoss() disk {
	d := c.durable.clone()
	names := true
	for _, e := range c.since {
		switch {
		case e.kind == eventNames:
			if names = names && c.rnd.IntN(2) == 0; names {
				d.apply(e)
			}
		case e.kind == eventResize:
			if c.rnd.IntN(2) == 0 {
				d.apply(e)
			}
		default:
			c.tear(d, e)
		}
	}
	return d
}

// tear writes some of the sectors of a write.
func (c *crashes) tear(d disk, e event) {
	all := c.rnd.IntN(4)
	for from := int64(0); from < int64(len(e.data)); {
		to := min((e.at+from)/sector*sector+sector-e.at, int64(len(e.data)))
		if all == 0 || all > 1 && c.rnd.IntN(2) == 0 {
			d.apply(event{kind: eventWrite, file: e.file, at: e.at + from, data: e.data[from:to]})
		}
		from = to
	}
}

// Whenever a process is killed or the power goes, what was acknowledged is there
// and nothing but it, apart from changes that were under way and are there
// completely: while the store is opened, at each write, between all steps of a
// checkpoint and of Close, and in a store that a crash left behind.
func TestCrashAtEveryWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for generation := range uint64(3) {
		before := load(t, afterKill(t, dir))
		files := readFiles(t, dir)
		names, events := trace(t, dir, fmt.Sprintf("%s=%d %s", crashWriter, generation+1, dir))
		start := disk{names: names, files: make(map[int]content)}
		for name, file := range names {
			start.files[file] = content{files[name], int64(len(files[name]))}
		}
		dir = crashEverywhere(t, start, events, after(before, changes(generation+1)), generation)
	}
}

// crashEverywhere checks what crashes leave, and returns the directory of one of
// them.
func crashEverywhere(t *testing.T, start disk, events []event, states []map[string]string, generation uint64) string {
	t.Helper()
	c := &crashes{rnd: rand.New(rand.NewPCG(7, generation)), now: start.clone(), durable: start.clone(), segments: make(map[string]int)}
	work, below := make(chan func(), 100), inMemory(t)
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for f := range work {
				f()
			}
		})
	}
	next, stop := start, len(events)/3+c.rnd.IntN(len(events)/3)
	for i, e := range events {
		c.step(t, e)
		left := []disk{c.powerLoss()}
		if e.kind != eventSync && e.kind != eventSyncNames { // they change nothing for a kill
			left = append(left, c.now.clone())
		}
		for _, d := range left {
			when := fmt.Sprintf("generation %d, event %d, %d acknowledged", generation, i, c.acked)
			possible := states[c.acked:]
			work <- func() { checkCrash(t, when, below, d, possible) }
		}
		if i == stop {
			next = c.now.clone()
		}
	}
	close(work)
	workers.Wait()
	if _, several := c.segments["state-00000004.log"]; c.acked != crashChanges || !several {
		t.Errorf("%d of %d changes were acknowledged, in %v", c.acked, crashChanges, c.segments)
	}
	dir := t.TempDir()
	if err := next.write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// inMemory returns a directory where syncing costs nothing, if there is one: what
// is checked there is what is read, however it came there.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store-test-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// checkCrash opens what a crash left, twice, and looks for one of the states that
// are possible.
func checkCrash(t *testing.T, when, below string, left disk, possible []map[string]string) {
	t.Helper()
	dir, err := os.MkdirTemp(below, "")
	if err == nil {
		defer os.RemoveAll(dir) // else it goes with the one that it is in
		err = left.write(dir)
	}
	if err != nil {
		t.Error(err)
		return
	}
	for range 2 {
		s, err := store.OpenSmall(dir)
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		found := snapshot(t, s)
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if !slices.ContainsFunc(possible, func(m map[string]string) bool { return maps.Equal(m, found) }) {
			t.Errorf("%s: %d keys, and the last change is %q", when, len(found), found["last"])
		}
	}
}

func snapshot(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	all := make(map[string]string)
	if err := s.Load("", func(k string, v []byte) error { all[k] = string(v); return nil }); err != nil {
		t.Error(err)
	}
	return all
}

func load(t *testing.T, dir string) map[string]string {
	t.Helper()
	return snapshot(t, open(t, dir))
}
