package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Versions of the state file. Others are refused.
const (
	// formatPlain is that of a file which has everything.
	formatPlain = "hubjobs emulator state 1"
	// formatLogged is that of a file which is not complete without the log. A
	// file is of the other version before the first change and after Close, so
	// that programs which know that one alone can read it, and refuse to read
	// half of the state.
	formatLogged = "hubjobs emulator state 1 with log"
)

var (
	bucketState  = []byte("state")
	bucketFormat = []byte("format")
	keyVersion   = []byte("version")
	keyLog       = []byte("log")
)

// ensureFile makes an empty but complete state file under a name of its own and
// then gives it its name, so that a file of that name is always a whole one: an
// empty file there is a damaged one and not one that is just being made.
func ensureFile(path string) error {
	// Looked at first, because another process may be making both.
	segments, err := segmentFiles(filepath.Dir(path))
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(segments) > 0 {
		return fmt.Errorf("%w: it is missing, and its log is there", ErrDamaged)
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
		return format.Put(keyVersion, []byte(formatPlain))
	})
	return errors.Join(err, db.Close())
}

// allocSize is how much longer than needed the state file is made. A checkpoint
// makes it longer once, so it need not be much.
const allocSize = 32 << 10

// openChecked reads the whole file once, read-only, before it opens it for
// writing: bbolt takes a file on trust, and meets damage with a panic, possibly
// in a goroutine of its own where nothing can catch it.
func openChecked(path string) (*bbolt.DB, error) {
	if err := check(path); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout,
		// The list of free pages is found again at start, by a scan, rather
		// than written with each commit: after a burst it is long.
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		NoStatistics:   true,
		// Whenever the file outgrows its mapping, all keys of the transaction
		// under way are copied.
		InitialMmapSize: mapSize,
	})
	if err != nil {
		return nil, err
	}
	db.AllocSize = allocSize
	return db, nil
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
	if v := string(format.Get(keyVersion)); v != formatPlain && v != formatLogged {
		return fmt.Errorf("state file has format %q and this program reads %q only", v, []string{formatPlain, formatLogged})
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

// readMark reads where the log begins.
func readMark(db *bbolt.DB) (mark logMark, err error) {
	err = db.View(func(tx *bbolt.Tx) error {
		format := tx.Bucket(bucketFormat)
		if string(format.Get(keyVersion)) != formatLogged {
			return nil
		}
		if !decodeHeader(format.Get(keyLog), &mark) || mark.Segment == 0 {
			return fmt.Errorf("%w: it doesn't say where the log begins", ErrDamaged)
		}
		return nil
	})
	return mark, err
}

// writeMark notes where the log begins, or that there is none.
func writeMark(tx *bbolt.Tx, mark logMark) error {
	format := tx.Bucket(bucketFormat)
	if mark.Segment == 0 {
		return errors.Join(format.Put(keyVersion, []byte(formatPlain)), format.Delete(keyLog))
	}
	return errors.Join(format.Put(keyVersion, []byte(formatLogged)), format.Put(keyLog, encodeHeader(mark)))
}

// fillPercent is how full new pages are. Most keys come in their order, so that
// there is no use for room between them.
const fillPercent = 0.95

// checkpoint writes a table to the state file, which then has all batches before
// the mark.
func checkpoint(db *bbolt.DB, t *table, mark logMark) error {
	return protect(func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			bucket := tx.Bucket(bucketState)
			bucket.FillPercent = fillPercent
			if err := t.write(bucket); err != nil {
				return err
			}
			return writeMark(tx, mark)
		})
	})
}
