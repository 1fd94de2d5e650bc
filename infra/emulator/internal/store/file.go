package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Names of the files in the data directory.
const (
	stateFile = "state.db"
	ownerFile = "state.pid"
)

// lockTimeout is how long Open waits for another process to let go: enough for
// one that is just ending.
const lockTimeout = 2 * time.Second

// formatVersion goes into the file when it is made. Another version is refused.
const formatVersion = "hubjobs emulator state 1"

var (
	bucketState  = []byte("state")
	bucketFormat = []byte("format")
	keyVersion   = []byte("version")
)

// file is a Store in a bbolt file. One goroutine commits what is pending; while
// it waits for the disk, the next batch gathers.
type file struct {
	dir string
	db  *bbolt.DB

	mu      sync.Mutex // guards pending and closed
	pending []change
	closed  bool
	failed  error         // the committer's own
	wake    chan struct{} // holds a value when pending or closed changed
	stopped chan struct{} // closed when the committer has ended
	failure chan error    // has room for the one failure
}

type change struct {
	ops  []Op
	done func(error)
}

// Open returns the store in a directory, which is made if it doesn't exist. It
// fails with ErrInUse while another process has it open, and with ErrDamaged
// when the file there is not in order; it never repairs or replaces a file.
func Open(dir string) (Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(dir, stateFile)
	if err := ensureFile(path); err != nil {
		return nil, fmt.Errorf("make state file %s: %w", path, err)
	}
	db, err := openChecked(path)
	if err != nil {
		return nil, explain(dir, path, err)
	}
	s := &file{dir: dir, db: db, wake: make(chan struct{}, 1), stopped: make(chan struct{}), failure: make(chan error, 1)}
	s.writeOwner()
	go s.commitLoop()
	return s, nil
}

func explain(dir, path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: %s is held by %s; stop it or use another directory", ErrInUse, dir, owner(dir))
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("%w; restore %s from a copy, or move it away to start empty", err, path)
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

// ensureFile makes an empty but complete state file under a name of its own and
// then gives it its name, so that a file of that name is always a whole one: an
// empty file there is a damaged one and not one that is just being made.
func ensureFile(path string) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), stateFile+".*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the link, the file lives on under its name
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := initialise(tmp.Name()); err != nil {
		return err
	}
	// Unlike a rename, a link can't replace the file of a process that is
	// faster than this one.
	err = os.Link(tmp.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil { // a file system without links
		err = os.Rename(tmp.Name(), path)
	}
	return errors.Join(err, syncDir(filepath.Dir(path)))
}

func initialise(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(bucketState); err != nil {
			return err
		}
		format, err := tx.CreateBucket(bucketFormat)
		if err != nil {
			return err
		}
		return format.Put(keyVersion, []byte(formatVersion))
	})
	return errors.Join(err, db.Close())
}

// syncDir makes a new directory entry survive a power failure. Not all systems
// can sync a directory; those that can't do it by themselves.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync()
	return d.Close()
}

// openChecked reads the whole file once, read-only, before it opens it for
// writing: bbolt takes a file on trust, and meets damage with a panic, possibly
// in a goroutine of its own where nothing can catch it.
func openChecked(path string) (*bbolt.DB, error) {
	if err := check(path); err != nil {
		return nil, err
	}
	return bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout,
		// The list of free pages is found again at start, by a scan, rather
		// than written with each commit: after a burst it is long.
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		NoStatistics:   true,
	})
}

func check(path string) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, ReadOnly: true})
	if err != nil {
		if errors.Is(err, berrors.ErrTimeout) || errors.Is(err, fs.ErrPermission) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return protect(func() error { return db.View(checkTx) })
}

// protect turns what bbolt does on damaged pages, panics and faults of mapped
// memory, into ErrDamaged.
func protect(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return f()
}

func checkTx(tx *bbolt.Tx) error {
	info, err := os.Stat(tx.DB().Path())
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: it is cut off after %d of %d bytes", ErrDamaged, info.Size(), tx.Size())
	}
	format, state := tx.Bucket(bucketFormat), tx.Bucket(bucketState)
	if format == nil || state == nil {
		return fmt.Errorf("%w: it is not a state file of the emulator", ErrDamaged)
	}
	if v := format.Get(keyVersion); string(v) != formatVersion {
		return fmt.Errorf("state file has format %q and this program reads %q only", v, formatVersion)
	}
	return state.ForEach(func(k, v []byte) error {
		_, err := unseal(k, v)
		return err
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal appends a checksum over key and value: bbolt protects its meta pages
// only.
func seal(key string, value []byte) []byte {
	sum := crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, value)
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(value)+4), value...), sum)
}

func unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - 4
	if n >= 0 {
		sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, sealed[:n])
		if sum == binary.BigEndian.Uint32(sealed[n:]) {
			return sealed[:n], nil
		}
	}
	return nil, fmt.Errorf("%w: checksum of %q is wrong", ErrDamaged, key)
}

func (s *file) Durable() bool { return true }

func (s *file) Failed() <-chan error { return s.failure }

func (s *file) Load(prefix string, fn func(key string, value []byte) error) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketState).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, v = c.Next() {
			value, err := unseal(k, v)
			if err != nil {
				return err
			}
			if err := fn(string(k), bytes.Clone(value)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *file) Submit(done func(error), ops ...Op) {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.pending = append(s.pending, change{ops: ops, done: done})
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
	defer close(s.stopped)
	for range s.wake {
		batch, closed := s.take()
		if len(batch) > 0 {
			s.commit(batch)
		}
		if closed {
			return // take returned everything, and Submit accepts no more
		}
	}
}

func (s *file) take() ([]change, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch := s.pending
	s.pending = nil
	return batch, s.closed
}

func (s *file) commit(batch []change) {
	err := s.write(batch)
	for _, c := range batch {
		if c.done != nil {
			c.done(err)
		}
	}
}

// write commits a batch. After a failure it only says so.
func (s *file) write(batch []change) error {
	if s.failed != nil {
		return s.failed
	}
	err := protect(func() error { return s.db.Update(func(tx *bbolt.Tx) error { return apply(tx, batch) }) })
	if err != nil {
		err = fmt.Errorf("write state to %s: %w; nothing more is accepted until a restart", s.dir, err)
		s.failed = err
		s.failure <- err
	}
	return err
}

func apply(tx *bbolt.Tx, batch []change) error {
	bucket := tx.Bucket(bucketState)
	for _, c := range batch {
		for _, op := range c.ops {
			if err := applyOp(bucket, op); err != nil {
				return err
			}
		}
	}
	return nil
}

func applyOp(bucket *bbolt.Bucket, op Op) error {
	switch {
	case op.Prefix:
		return deletePrefix(bucket, []byte(op.Key))
	case op.Value == nil:
		return bucket.Delete([]byte(op.Key))
	}
	return bucket.Put([]byte(op.Key), seal(op.Key, op.Value))
}

func deletePrefix(bucket *bbolt.Bucket, prefix []byte) error {
	// The keys are gathered first because a cursor skips keys when the bucket
	// changes under it.
	var keys [][]byte
	c := bucket.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix) && k != nil; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := bucket.Delete(k); err != nil {
			return err
		}
	}
	return nil
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
	return s.db.Close()
}
