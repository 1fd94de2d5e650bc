package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Names of the files in the data directory, beside those of the log.
const (
	stateFile = "state.db"
	ownerFile = "state.pid"
)

// lockTimeout is how long Open waits for another process to let go: enough for
// one that is just ending.
const lockTimeout = 2 * time.Second

// file is a Store in a directory: a bbolt file, and a log of what is not there
// yet. One goroutine appends what is pending to the log; while it waits for the
// disk, the next batch gathers, and another goroutine tells of the one before.
// When a segment of the log is full, its changes go to the bbolt file in one
// transaction, the checkpoint, while the next segment fills.
type file struct {
	dir  string
	full int64 // size of a segment when the next one begins
	db   *bbolt.DB

	mu      sync.Mutex // guards pending and closed
	pending []change
	closed  bool

	wake    chan struct{} // holds a value when pending or closed changed
	written chan outcome  // batches to tell of
	stopped chan struct{} // closed when committer and teller have ended
	failure chan error    // has room for the one failure

	// of the committer
	failed   error
	log      *segment   // nil before the first change
	pointing chan error // result of the checkpoint under way; nil if none is

	tables  sync.RWMutex // guards what follows
	current *table       // what is in the segment that is written to
	frozen  *table       // what is in the segment before, during its checkpoint; or nil
}

type change struct {
	ops  []Op
	err  error // why it is refused
	done func(error)
}

// newChange returns a change, or an empty one that is refused in its turn: what
// the state file can't take must not get into the log.
func newChange(done func(error), ops []Op) change {
	for _, op := range ops {
		if n := len(op.Key); !op.Prefix && (n == 0 || n > bbolt.MaxKeySize) {
			return change{err: fmt.Errorf("%w: it has %d bytes", ErrKey, n), done: done}
		}
	}
	return change{ops: ops, done: done}
}

func (c *change) size() int {
	n := 0
	for _, op := range c.ops {
		n += len(op.Key) + len(op.Value)
	}
	return n
}

// outcome is what became of a batch.
type outcome struct {
	batch []change
	err   error
}

// Open returns the store in a directory, which is made if it doesn't exist. It
// fails with ErrInUse while another process has it open, and with ErrDamaged
// when a file there is not in order; it never repairs or replaces one. A batch
// at the end of the log that was not written in full, and therefore never
// acknowledged, is no damage.
func Open(dir string) (Store, error) { return open(dir, segmentSize) }

// open is Open with segments that are full at another size.
func open(dir string, full int64) (Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(dir, stateFile)
	if err := ensureFile(path); err != nil {
		return nil, explain(dir, path, err)
	}
	db, err := openChecked(path)
	if err != nil {
		return nil, explain(dir, path, err)
	}
	if err := recoverLog(dir, db); err != nil {
		return nil, errors.Join(explain(dir, path, err), db.Close())
	}
	s := &file{
		dir:     dir,
		full:    full,
		db:      db,
		wake:    make(chan struct{}, 1),
		written: make(chan outcome, 1),
		stopped: make(chan struct{}),
		failure: make(chan error, 1),
		current: newTable(),
	}
	s.writeOwner()
	go s.commitLoop()
	return s, nil
}

// recoverLog brings what is in the log into the state file.
func recoverLog(dir string, db *bbolt.DB) error {
	mark, err := readMark(db)
	if err != nil {
		return err
	}
	if mark.Segment > 0 {
		t, err := readLog(dir, mark)
		if err != nil {
			return err
		}
		if err := checkpoint(db, t, logMark{}); err != nil {
			return err
		}
	}
	return removeLog(dir, allSegments)
}

func explain(dir, path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: %s is held by %s; stop it or use another directory", ErrInUse, dir, owner(dir))
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("%w; restore %s and the files beside it from a copy, or move them away to start empty", err, path)
	}
	return fmt.Errorf("open state file %s: %w", path, err)
}

// owner names the process that wrote its ID next to the state file.
func owner(dir string) string {
	pid, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil || len(bytes.TrimSpace(pid)) == 0 {
		return "another process"
	}
	return "process " + string(bytes.TrimSpace(pid))
}

// writeOwner is a service to people who read the message of ErrInUse. The lock
// itself is on the state file, so failing to write is no reason to stop.
func (s *file) writeOwner() {
	_ = os.WriteFile(filepath.Join(s.dir, ownerFile), fmt.Appendln(nil, os.Getpid()), 0o600)
}

func (s *file) Durable() bool { return true }

func (s *file) Failed() <-chan error { return s.failure }

func (s *file) Load(prefix string, fn func(key string, value []byte) error) error {
	v, err := s.view(prefix)
	if err != nil {
		return err
	}
	defer func() { _ = v.tx.Rollback() }() // ends a transaction that only reads
	return v.each(prefix, fn)
}

// view is the state of the keys with a prefix, at one moment.
type view struct {
	tx     *bbolt.Tx
	over   map[string][]byte // what tables have, nil for what they delete
	hidden []string          // prefixes that tables delete in the state file
}

// view takes tables and transaction together, so that a checkpoint is seen in one
// of them.
func (s *file) view(prefix string) (*view, error) {
	s.tables.RLock()
	defer s.tables.RUnlock()
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, err
	}
	v := &view{tx: tx, over: make(map[string][]byte)}
	for _, t := range []*table{s.frozen, s.current} {
		if t != nil {
			t.overlay(prefix, v.over)
			v.hidden = append(v.hidden, t.clearedBelow(prefix)...)
		}
	}
	return v, nil
}

// each calls fn for the keys in order: those of the state file that no table
// changes, and those of the tables.
func (v *view) each(prefix string, fn func(key string, value []byte) error) error {
	over := slices.Sorted(maps.Keys(v.over))
	below := func(limit string, all bool) error {
		for len(over) > 0 && (all || over[0] < limit) {
			key := over[0]
			over = over[1:]
			if value := v.over[key]; value != nil {
				if err := fn(key, bytes.Clone(value)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	c := v.tx.Bucket(bucketState).Cursor()
	for k, sealed := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, sealed = c.Next() {
		key := string(k)
		if err := below(key, false); err != nil {
			return err
		}
		if _, changed := v.over[key]; changed || hasAnyPrefix(key, v.hidden) {
			continue
		}
		value, err := unseal(k, sealed)
		if err != nil {
			return err
		}
		if err := fn(key, bytes.Clone(value)); err != nil {
			return err
		}
	}
	return below("", true)
}

func (s *file) Submit(done func(error), ops ...Op) {
	c := newChange(done, ops)
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.pending = append(s.pending, c)
	}
	s.mu.Unlock()
	switch {
	case !closed:
		s.signal()
	case done != nil:
		done(ErrClosed)
	}
}

func (s *file) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *file) commitLoop() {
	go s.tell()
	defer close(s.written)
	for range s.wake {
		batch, last := s.take()
		if len(batch) > 0 {
			s.written <- outcome{batch, s.write(batch)}
		}
		if last {
			return
		}
	}
}

// take returns what is pending, or the first of it, and whether there will be no
// more: it was everything, and Submit accepts nothing.
func (s *file) take() (batch []change, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.pending) && size < maxBatch {
		size += s.pending[n].size()
		n++
	}
	batch, s.pending = s.pending[:n:n], s.pending[n:]
	if len(s.pending) > 0 {
		s.signal()
		return batch, false
	}
	s.pending = nil
	return batch, s.closed
}

// tell calls the done functions of batches, so that the committer needn't.
func (s *file) tell() {
	defer close(s.stopped)
	for o := range s.written {
		for _, c := range o.batch {
			if c.done != nil {
				c.done(cmp.Or(o.err, c.err))
			}
		}
	}
}

// write makes a batch durable. After a failure it only says so.
func (s *file) write(batch []change) error {
	if s.failed != nil {
		return s.failed
	}
	if err := s.append(batch); err != nil {
		s.failed = fmt.Errorf("write state to %s: %w; nothing more is accepted until a restart", s.dir, err)
		s.failure <- s.failed
		return s.failed
	}
	s.tables.Lock()
	defer s.tables.Unlock()
	for _, c := range batch {
		for _, op := range c.ops {
			s.current.apply(op)
		}
	}
	return nil
}

func (s *file) append(batch []change) error {
	if err := s.prepare(); err != nil {
		return err
	}
	return s.log.append(batch)
}

// prepare makes sure that there is a segment with room, and that the last
// checkpoint, if it has ended, has not failed.
func (s *file) prepare() error {
	switch {
	case s.log == nil:
		return s.beginLog()
	case s.log.end >= s.full:
		return s.rotate()
	}
	select {
	case err := <-s.pointing:
		s.pointing = nil
		return err
	default:
		return nil
	}
}

// beginLog begins the first segment. The state file is told of it before there
// is anything in it.
func (s *file) beginLog() (err error) {
	if s.log, err = createSegment(s.dir, 1, 1); err != nil {
		return err
	}
	return checkpoint(s.db, s.current, logMark{Segment: s.log.number})
}

// rotate begins the next segment and a checkpoint of the full one. It waits for
// the checkpoint before: that bounds the log to two segments.
func (s *file) rotate() error {
	if err := s.awaitCheckpoint(); err != nil {
		return err
	}
	next, err := createSegment(s.dir, s.log.number+1, s.log.next)
	if err != nil {
		return err
	}
	full := s.log
	s.log = next
	if err := full.close(); err != nil {
		return err
	}
	s.tables.Lock()
	s.frozen, s.current = s.current, newTable()
	s.tables.Unlock()
	s.pointing = make(chan error, 1)
	go s.checkpoint(s.frozen, logMark{Segment: next.number, Applied: next.next - 1}, s.pointing)
	return nil
}

// checkpoint brings a segment's changes into the state file and removes it.
func (s *file) checkpoint(t *table, mark logMark, result chan<- error) {
	err := checkpoint(s.db, t, mark)
	if err == nil {
		s.tables.Lock()
		s.frozen = nil
		s.tables.Unlock()
		err = removeLog(s.dir, mark.Segment)
	}
	result <- err
}

func (s *file) awaitCheckpoint() error {
	if s.pointing == nil {
		return nil
	}
	err := <-s.pointing
	s.pointing = nil
	return err
}

func (s *file) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.signal()
	<-s.stopped
	if !first {
		return nil
	}
	_ = os.Remove(filepath.Join(s.dir, ownerFile))
	return errors.Join(s.closeLog(), s.db.Close())
}

// closeLog brings all that is in the log into the state file. After a failure it
// leaves both as they are: the next Open reads them.
func (s *file) closeLog() error {
	err := s.awaitCheckpoint()
	if s.log == nil {
		return nil
	}
	err = errors.Join(err, s.log.close())
	switch {
	case s.failed != nil:
		return nil // it was told already
	case err != nil:
		return err
	}
	if err := checkpoint(s.db, s.current, logMark{}); err != nil {
		return err
	}
	return removeLog(s.dir, allSegments)
}
