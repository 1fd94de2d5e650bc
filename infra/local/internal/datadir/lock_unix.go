//go:build unix

package datadir

import (
	"errors"
	"os"
	"syscall"
)

// errLocked says that another open file has the lock.
var errLocked = syscall.EWOULDBLOCK

// lockFile takes the lock that ends with the open file, and so also with a killed process (flock(2)).
func lockFile(file *os.File) error {
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
