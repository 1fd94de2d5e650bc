package store

import (
	"errors"
	"os"
	"syscall"
)

// mapSize is how much of the address space the state file gets at first, whatever
// its size.
const mapSize = 256 << 20

// syncData makes what was written durable. Unlike File.Sync it leaves out the
// time of modification, which nobody reads.
func syncData(f *os.File) error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// syncDir makes changes of directory entries durable. A file system that can't
// sync a directory says EINVAL, and keeps the order by itself.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err = d.Sync(); errors.Is(err, syscall.EINVAL) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
