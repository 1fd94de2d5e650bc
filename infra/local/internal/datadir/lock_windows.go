package datadir

import (
	"os"

	"golang.org/x/sys/windows"
)

// errLocked says that another open file has the lock.
var errLocked = windows.ERROR_LOCK_VIOLATION

// lockOffset lies behind the content of the file: a locked range can't be read by others.
const lockOffset = 1 << 30

// lockFile takes the lock that ends with the open file, and so also with a killed process (LockFileEx).
func lockFile(file *os.File) error {
	return windows.LockFileEx(windows.Handle(file.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0,
		&windows.Overlapped{Offset: lockOffset})
}
