// Package datadir is the folder in which a local run keeps what must outlive it. One process at a time may use it.
package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrInUse says that another process holds the data directory.
var ErrInUse = errors.New("data directory is in use")

// lockName is the file whose lock stands for the whole folder. It holds the process ID of the owner.
const lockName = "lock"

// Dir is a data directory that this process holds until Close.
type Dir struct {
	path      string
	lock      *os.File
	temporary bool
}

// Open creates the folder where it is missing and takes it for this process. It fails with ErrInUse when another one
// has it; a process that was killed has let go of it. The folder hides itself from git.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := takeLock(filepath.Join(path, lockName))
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	d := &Dir{path: path, lock: lock}
	if err := os.WriteFile(d.File(".gitignore"), []byte("*\n"), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), d.Close())
	}
	return d, nil
}

// Temporary makes a data directory that Close removes.
func Temporary() (*Dir, error) {
	path, err := os.MkdirTemp("", "hubjobs-")
	if err != nil {
		return nil, fmt.Errorf("temporary data directory: %w", err)
	}
	d, err := Open(path)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	d.temporary = true
	return d, nil
}

// Path is the absolute path of the folder.
func (d *Dir) Path() string { return d.path }

// File is the absolute path of a file in the folder.
func (d *Dir) File(name string) string { return filepath.Join(d.path, name) }

// Close lets go of the folder, and removes it when it is temporary.
func (d *Dir) Close() error {
	if d.temporary {
		return errors.Join(os.RemoveAll(d.path), d.lock.Close())
	}
	return d.lock.Close() // closing the file releases its lock
}

// takeLock opens the file, locks it and writes this process's ID into it.
func takeLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(file); err != nil {
		if errors.Is(err, errLocked) {
			err = fmt.Errorf("%w%s", ErrInUse, owner(file))
		}
		file.Close()
		return nil, err
	}
	if err := writeOwner(file); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func writeOwner(file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// owner names the process that holds the lock, as far as its file says so.
func owner(file *os.File) string {
	content, err := io.ReadAll(io.LimitReader(file, 32))
	pid := strings.TrimSpace(string(content))
	if err != nil || pid == "" {
		return " by another process"
	}
	return " by process " + pid
}
